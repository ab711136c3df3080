"""A corpus of good and bad image files, with the expected result of reading each file.

`python -m tests.corpus` reads the corpus and 2,000 damaged copies in one process, and prints a table by group. `cases`
lists the files, `outcome` reads one file, and `mutations` damages good files. All files are drawn by this module.
"""

import contextlib
import io
import itertools
import os
import re
import signal
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from nuclei_utils import io as image_io
from nuclei_utils.errors import NucleiError

HEIGHT, WIDTH = SIZE = 24, 36
TIME_LIMIT = 10  # seconds for one file, which protects the test run
OUTCOMES = ("right", "refused", "other reason", "wrong", "good refused", "traceback", "slow")
"""The first two are correct. "other reason" means that the message does not name the fault of the file."""
GOOD_OUTCOMES = OUTCOMES[:2]


class Refused(NamedTuple):
    """The expected refusal: a regular expression for the reason in the message."""

    reason: str


class Case(NamedTuple):
    """A file of the corpus.

    Attributes
    ----------
    group : str
        Row of the table.
    name : str
        File name.
    write : callable
        Function that takes a path and writes the file.
    expected : array or Refused
        Raw values (H, W, 1 or 3) of an image, or the mask or label map (H, W).
    read_as : str
        "image", "mask" or "label map".
    tolerance : int
        Largest allowed difference of values, for JPEG.
    """

    group: str
    name: str
    write: Callable
    expected: np.ndarray | Refused
    read_as: str = "image"
    tolerance: int = 0


# Pixels


def _draw():
    """Draw three nuclei. All eight orientations of the drawing differ."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grey, labels = (y * 2 + x).astype(np.uint8), np.zeros(SIZE, np.uint8)
    for number, (top, left, radius) in enumerate([(7, 8, 5), (16, 25, 6), (5, 30, 3)], start=1):
        inside = (y - top) ** 2 + (x - left) ** 2 <= radius**2
        grey[inside], labels[inside] = 255 - 40 * (number - 1), number
    return grey, np.dstack([grey, np.roll(grey, 5, axis=1), 255 - grey]), labels


GREY, COLOUR, LABELS = _draw()
MASK = np.where(LABELS == 2, 255, 0).astype(np.uint8)
ALPHA = np.where(LABELS > 0, 255, 90).astype(np.uint8)
# 257 * v is the 16-bit value of the 8-bit value v
GREY16, COLOUR16, ALPHA16 = (array.astype(np.uint16) * 257 for array in (GREY, COLOUR, ALPHA))
SMOOTH = np.dstack([np.linspace(a, b, HEIGHT * WIDTH).reshape(SIZE) for a, b in ((0, 200), (50, 250), (200, 90))])
SMOOTH = SMOOTH.astype(np.uint8)


def oriented(pixels, orientation):
    """Return the image that a file shows with an orientation tag from 1 to 8."""
    transposed = np.swapaxes(pixels, 0, 1)
    images = {
        1: pixels,
        2: np.fliplr(pixels),
        3: np.rot90(pixels, 2),
        4: np.flipud(pixels),
        5: transposed,
        6: np.rot90(pixels, -1),
        7: np.rot90(transposed, 2),
        8: np.rot90(pixels, 1),
    }
    return np.ascontiguousarray(images[orientation])


# Encoders, written by hand because libraries refuse to write some of the files


def content(file):
    """Return a function that writes bytes to a path."""
    return lambda path: path.write_bytes(file)


def pillow(array, file_format, mode=None, **options):
    """Encode with Pillow."""
    file = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(file, file_format, **options)
    return file.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(array, bits=8, colours=None, size=None, interlace=False, before=b"", filtered=0, level=6):
    """Encode a PNG. `colours` is a palette, `before` holds the chunks before the pixels."""
    array = np.asarray(array)
    channels = array.shape[2] if array.ndim == 3 else 1
    colour_type = 3 if colours is not None else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    height, width = size or array.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    body = b"".join(_rows(array[top::down, left::across], bits, filtered) for top, left, down, across in passes)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlace))
    palette = chunk(b"PLTE", colours) if colours else b""
    chunks = [chunk(b"IHDR", header), before, palette, chunk(b"IDAT", zlib.compress(body, level)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _rows(array, bits, filtered=0):
    if not array.size:
        return b""
    step = max(1, bits // 8 * (array.shape[2] if array.ndim == 3 else 1))
    rows, above = [], None
    for row in array:
        row = np.frombuffer(packed(row, bits, ">"), np.uint8)
        coded = row
        if filtered == 1:
            coded = row - np.concatenate([np.zeros(step, np.uint8), row[:-step]])
        elif filtered == 2 and above is not None:
            coded = row - above
        rows.append(bytes([filtered]) + coded.tobytes())
        above = row
    return b"".join(rows)


def packed(values, bits, order):
    """Pack a row of values into bytes."""
    values = np.asarray(values)
    if bits >= 8:
        return values.astype(values.dtype.newbyteorder(order)).tobytes()
    fields = (values[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(fields.ravel().astype(np.uint8)).tobytes()


def lzw(body):
    """Encode as LZW with 9-bit literal codes. A clear code comes before codes need 10 bits."""
    codes = []
    for start in range(0, len(body), 250):
        codes += [256, *body[start : start + 250]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def packbits(body):
    """Encode as PackBits with literal runs."""
    runs = (body[start : start + 128] for start in range(0, len(body), 128))
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


COMPRESSIONS = {1: bytes, 8: zlib.compress, 5: lzw, 32773: packbits}
TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 16: "Q"}


def tiff(
    array,
    photometric=None,
    compression=1,
    tile=None,
    rows=None,
    planar=False,
    order="<",
    big=False,
    bits=None,
    tags=None,
):
    """Encode a TIFF. `tags` sets tags, {number: (type, values)}, or omits tags, {number: None}."""
    array = np.asarray(array)
    bits = bits or array.dtype.itemsize * 8
    cube = array[..., None] if array.ndim == 2 else array
    height, width, samples = cube.shape
    photometric = photometric if photometric is not None else (2 if samples > 2 else 1)
    planes = [cube[..., [index]] for index in range(samples)] if planar else [cube]
    strips = [
        COMPRESSIONS[compression](b"".join(packed(row.ravel(), bits, order) for row in strip))
        for plane in planes
        for strip in _strips(plane, tile, rows or height)
    ]
    n_extra = samples - (3 if photometric == 2 else 1)
    sample_format = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    offsets, sizes = (324, 325) if tile else (273, 279)
    table = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [compression]),
        262: (3, [photometric]),
        277: (3, [samples]),
        284: (3, [2 if planar else 1]),
        339: (3, [sample_format] * samples),
        offsets: (16 if big else 4, strips),  # `_tiff_file` replaces strips with offsets
        sizes: (16 if big else 4, [len(strip) for strip in strips]),
    }
    if n_extra > 0:
        table[338] = (3, [2] + [0] * (n_extra - 1))
    if tile:
        table |= {322: (4, [tile]), 323: (4, [tile])}
    else:
        table[278] = (4, [rows or height])
    table |= tags or {}
    return _tiff_file({number: entry for number, entry in table.items() if entry}, order, big)


def _strips(plane, tile, rows):
    if not tile:
        return [plane[top : top + rows] for top in range(0, len(plane), rows)]
    height, width = (-(-side // tile) * tile for side in plane.shape[:2])
    whole = np.zeros((height, width, plane.shape[2]), plane.dtype)
    whole[: plane.shape[0], : plane.shape[1]] = plane
    corners = itertools.product(range(0, height, tile), range(0, width, tile))
    return [whole[top : top + tile, left : left + tile] for top, left in corners]


def _tiff_file(table, order, big):
    mark = b"II" if order == "<" else b"MM"
    count, offset, inline = ("Q", "Q", 8) if big else ("H", "I", 4)
    head = mark + (struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8))
    start, entry_size = len(head), 20 if big else 12
    free = start + struct.calcsize(f"={count}") + entry_size * len(table) + struct.calcsize(f"={offset}")
    body, entries = bytearray(), b""

    def append(data):
        body.extend(b"\0" * (-len(body) % 2) + data)
        return free + len(body) - len(data)

    for number, (tag_type, values) in sorted(table.items()):
        if number in (273, 324) and isinstance(values[0], bytes):
            values = [append(strip) for strip in values]
        raw = b"".join(values) if tag_type == 2 else struct.pack(f"{order}{len(values)}{TYPES[tag_type]}", *values)
        length = len(raw) if tag_type == 2 else len(values)
        if len(raw) > inline:
            raw = struct.pack(order + offset, append(raw))
        entries += struct.pack(f"{order}HH{offset}", number, tag_type, length) + raw.ljust(inline, b"\0")
    return head + struct.pack(order + count, len(table)) + entries + struct.pack(order + offset, 0) + bytes(body)


def bmp(array, bits=8, compression=0, colours=None, size=None, body=None, top_down=False):
    """Encode a BMP, grey or with a palette."""
    height, width = size or array.shape[:2]
    if colours is None:
        colours = b"".join(bytes([value, value, value, 0]) for value in range(2**bits)) if bits <= 8 else b""
    if body is None:
        rows = array if top_down else array[::-1]
        body = b"".join((line := packed(row.ravel(), min(bits, 8), "<")) + b"\0" * (-len(line) % 4) for row in rows)
    start = 54 + len(colours)
    height, n_colours = -height if top_down else height, len(colours) // 4
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, n_colours, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colours + body


def rle(array):
    """Encode the rows of an 8-bit BMP as run lengths."""
    lines = []
    for row in array[::-1]:
        runs = [(len(list(same)), value) for value, same in itertools.groupby(row.tolist())]
        lines.append(b"".join(bytes(run) for run in runs) + b"\0\0")
    return b"".join(lines) + b"\0\1"


def jpeg_of_size(height, width):
    """Return a small progressive JPEG with another size in its header."""
    body = bytearray(pillow(SMOOTH, "JPEG", progressive=True))
    start = body.index(b"\xff\xc2") + 5
    body[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(body)


def jpeg_of_many_scans(count):
    """Return a progressive JPEG that repeats its last scan."""
    body = pillow(SMOOTH, "JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    return body[:last] + body[last:-2] * count + b"\xff\xd9"


# The cases


def cases():
    """Return all cases of the corpus."""
    groups = (
        _png_good, _tiff_good, _jpeg_good, _bmp_good, _orientation, _label_maps_good, _masks_good, _truncated,
        _other_formats, _pixels_bad, _structure_bad, _palettes_bad, _label_maps_bad, _masks_bad, _no_files, _huge,
    )  # fmt: skip
    return [case for group in groups for case in group()]


def _image(array):
    return array[..., None] if array.ndim == 2 else array[..., :3] if array.shape[2] >= 3 else array[..., :1]


def _png_good():
    palette = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 9)], axis=1).astype(np.uint8)
    case = partial(Case, "PNG, good")
    for interlace in (False, True):
        suffix = "_interlaced" if interlace else ""
        for bits in (1, 2, 4, 8):
            values, step = GREY >> (8 - bits), 255 // (2**bits - 1)
            yield case(
                f"grey{bits}{suffix}.png", content(png(values, bits, interlace=interlace)), _image(values * step)
            )
            file = png(values, bits, palette[: 2**bits].tobytes(), interlace=interlace)
            yield case(f"palette{bits}{suffix}.png", content(file), palette[values])
        for name, array in _arrays().items():
            bits = array.dtype.itemsize * 8
            if name != "grey8":
                yield case(f"{name}{suffix}.png", content(png(array, bits, interlace=interlace)), _image(array))
    for filtered, level in itertools.product((0, 1, 2), (0, 1, 9)):
        for name, array in {"grey16": GREY16, "rgb8": COLOUR, "rgb16": COLOUR16}.items():
            file = png(array, array.dtype.itemsize * 8, filtered=filtered, level=level)
            yield case(f"{name}_filter{filtered}_level{level}.png", content(file), _image(array))
    text = chunk(b"tEXt", b"Comment\0drawn") + chunk(b"gAMA", struct.pack(">I", 45455))
    yield case("chunks.png", content(png(COLOUR, before=text)), COLOUR)
    yield case("clear_grey.png", content(pillow(GREY, "PNG", transparency=3)), _image(GREY))
    yield case("clear_colour.png", content(pillow(COLOUR, "PNG", transparency=(1, 2, 3))), COLOUR)
    for name in ("UPPER.PNG", "a name, with (ümlaut) & spaces.png", "two.dots.png", "really_a_png.tif"):
        yield case(name, content(png(COLOUR)), COLOUR)
    yield case("one_pixel.png", content(png(COLOUR[:1, :1])), COLOUR[:1, :1])
    yield case("one_row.png", content(png(COLOUR[:1])), COLOUR[:1])
    yield case("one_column.png", content(png(GREY16[:, 8:9], 16)), _image(GREY16[:, 8:9]))


def _arrays():
    return {
        "grey8": GREY,
        "grey16": GREY16,
        "rgb8": COLOUR,
        "rgb16": COLOUR16,
        "grey_alpha8": np.dstack([GREY, ALPHA]),
        "grey_alpha16": np.dstack([GREY16, ALPHA16]),
        "rgba8": np.dstack([COLOUR, ALPHA]),
        "rgba16": np.dstack([COLOUR16, ALPHA16]),
    }


def _tiff_good():
    case = partial(Case, "TIFF, good")
    layouts = {"strip": {}, "strips": {"rows": 5}, "tiles": {"tile": 16}}
    names = {1: "plain", 8: "deflate", 5: "lzw", 32773: "packbits"}
    options = itertools.product(_arrays().items(), layouts.items(), names, "<>", (False, True))
    for (name, array), (layout, settings), compression, order, big in options:
        # a third of the combinations, in which each pair of options occurs
        number = list(names).index(compression) + list(layouts).index(layout) + (order == ">") + 2 * big
        if (number + list(_arrays()).index(name)) % 3 and layout != "strip":
            continue
        title = "_".join(
            [name, layout, names[compression], "be" if order == ">" else "le", "big" if big else "classic"]
        )
        file = tiff(array, compression=compression, order=order, big=big, **settings)
        # the libraries would lose a channel of these files, or multiply the colours by alpha
        is_misread = name == "grey_alpha16" or (name in ("grey_alpha8", "rgba8") and order == ">" and big)
        expected = Refused("compression") if is_misread and compression in (5, 32773) else _image(array)
        yield case(f"{title}.tif", content(file), expected)
    for compression, (name, array) in itertools.product((1, 8), {"rgb8": COLOUR, "rgb16": COLOUR16}.items()):
        file = tiff(array, compression=compression, planar=True, rows=7)
        yield case(f"{name}_planes_{names[compression]}.tif", content(file), array)
    yield case("rgb8_planes_lzw.tif", content(tiff(COLOUR, compression=5, planar=True)), COLOUR)
    for bits, compression in itertools.product((1, 4), (1, 5)):
        values, step = GREY >> (8 - bits), 255 // (2**bits - 1)
        file = tiff(values, bits=bits, compression=compression)
        yield case(f"grey{bits}_{names[compression]}.tif", content(file), _image(values * step))
    for name, array in {"grey8": GREY, "grey16": GREY16}.items():
        for compression in names:
            file = tiff(np.iinfo(array.dtype).max - array, photometric=0, compression=compression)
            yield case(f"{name}_white_is_0_{names[compression]}.tif", content(file), _image(array))
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 9)]).astype(np.uint16)
    file = tiff(GREY, photometric=3, tags={320: (3, (colours * 257).ravel().tolist())})
    yield case("palette.tif", content(file), colours.T[GREY].astype(np.uint8))
    yield case("jpeg_inside.tif", content(pillow(SMOOTH, "TIFF", compression="jpeg", quality=98)), SMOOTH, "image", 9)
    yield case("really_a_tiff.png", content(tiff(GREY16)), _image(GREY16))
    description = b'<OME xmlns="x"><Image><Pixels SizeX="36" SizeY="24" SizeZ="1" SizeC="1" SizeT="1"/></Image></OME>\0'
    yield case("ome.tif", content(tiff(GREY16, tags={270: (2, [description])})), _image(GREY16))
    yield case(
        "imagej.tif", content(tiff(GREY16, order=">", tags={270: (2, [b"ImageJ=1.54f\nmin=0\n\0"])})), _image(GREY16)
    )


def _jpeg_good():
    case = partial(Case, "JPEG, good", tolerance=10)
    rgb = {"": {}, "_progressive": {"progressive": True}, "_optimized": {"optimize": True}}
    for (suffix, options), subsampling in itertools.product(rgb.items(), (0, 1, 2)):
        file = pillow(SMOOTH, "JPEG", quality=97, subsampling=subsampling, **options)
        yield case(f"rgb{suffix}_{subsampling}.jpg", content(file), SMOOTH)
    yield case("grey.jpg", content(pillow(SMOOTH[..., 0], "JPEG", quality=97)), _image(SMOOTH[..., 0]))
    yield case("cmyk.jpg", content(pillow(SMOOTH, "JPEG", "CMYK", quality=97)), SMOOTH)
    yield case("really_a_jpeg.png", content(pillow(SMOOTH, "JPEG", quality=97)), SMOOTH)
    preview = [Image.fromarray(SMOOTH[::2, ::2].copy())]
    yield case("preview.jpg", content(pillow(SMOOTH, "MPO", quality=97, save_all=True, append_images=preview)), SMOOTH)


def _bmp_good():
    case = partial(Case, "BMP, good")
    for bits in (1, 4, 8):
        values, step = GREY >> (8 - bits), 255 // (2**bits - 1)
        colours = b"".join(bytes([value * step] * 3 + [0]) for value in range(2**bits))
        expected = np.dstack([values * step] * 3) if bits == 4 else _image(values * step)  # Pillow reads a palette
        yield case(f"grey{bits}.bmp", content(bmp(values, bits, colours=colours)), expected)
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 9), np.zeros(256)], axis=1).astype(np.uint8)
    yield case("palette.bmp", content(bmp(GREY, colours=colours.tobytes())), colours[GREY][..., 2::-1])
    yield case("top_down.bmp", content(bmp(GREY, top_down=True)), _image(GREY))
    yield case("runs.bmp", content(bmp(GREY, compression=1, body=rle(GREY))), _image(GREY))
    yield case("rgb.bmp", content(pillow(COLOUR, "BMP")), COLOUR)
    yield case("rgb32.bmp", content(bmp(np.dstack([COLOUR[..., ::-1], ALPHA * 0]), 32)), COLOUR)
    yield case("really_a_bmp.png", content(pillow(COLOUR, "BMP")), COLOUR)


def _orientation():
    arrays = {"grey8": GREY, "grey16": GREY16, "rgb8": COLOUR, "rgb16": COLOUR16}
    for orientation in range(1, 9):
        case, tags = partial(Case, "orientation"), {274: (3, [orientation])}
        for name, array in arrays.items():
            for compression, method in ((1, "plain"), (5, "lzw")):
                file = tiff(array, compression=compression, tags=tags, order="<>"[orientation % 2])
                yield case(f"{name}_{method}_{orientation}.tif", content(file), oriented(_image(array), orientation))
        for dtype in (np.uint8, np.uint16, np.int32):
            file = tiff(LABELS.astype(dtype), compression=8, tags=tags)
            name = f"labels_{np.dtype(dtype)}_{orientation}.tif"
            yield case(name, content(file), oriented(LABELS, orientation), "label map")
        yield case(f"mask_{orientation}.tif", content(tiff(MASK, tags=tags)), oriented(MASK > 0, orientation), "mask")
        exif = Image.Exif()
        exif[274] = orientation
        file = pillow(SMOOTH, "JPEG", quality=97, exif=exif)
        yield case(f"photo_{orientation}.jpg", content(file), oriented(SMOOTH, orientation), "image", 10)


def _label_maps_good():
    case = partial(Case, "label maps, good", expected=LABELS, read_as="label map")
    for bits in (2, 4, 8, 16):
        values = LABELS.astype(np.uint16 if bits > 8 else np.uint8)
        yield case(f"grey{bits}.png", content(png(values, bits)))
    for name in ("u1", "u2", "u4", "u8", "i2", "i4", "i8"):
        for compression, order in ((1, "<"), (1, ">"), (8, "<")):
            file = tiff(LABELS.astype(name), compression=compression, order=order, rows=7)
            yield case(f"{name}_{compression}{'be' if order == '>' else 'le'}.tif", content(file))
    for name in ("u1", "u2", "i4"):
        yield case(f"{name}_lzw.tif", content(tiff(LABELS.astype(name), compression=5)))
        yield case(f"{name}_tiles.tif", content(tiff(LABELS.astype(name), tile=16)))
        yield case(f"{name}_big.tif", content(tiff(LABELS.astype(name), big=True, order=">")))
    # ImageJ's inverting look-up table changes the display and not the labels
    for compression in (1, 5):
        yield case(f"white_is_0_{compression}.tif", content(tiff(LABELS, photometric=0, compression=compression)))
    yield case("really_a_tiff.png", content(tiff(LABELS.astype(np.uint16))))
    yield case("really_a_png.tif", content(png(LABELS)))
    file = tiff(LABELS.astype(np.uint32) * 70_000, compression=8)
    yield Case("label maps, good", "high.tif", content(file), LABELS.astype(int) * 70_000, "label map")


def _masks_good():
    case = partial(Case, "masks, good", expected=MASK > 0, read_as="mask")
    rgb = np.dstack([MASK] * 3)
    yield case("white.png", content(png(MASK)))
    yield case("one.png", content(png(MASK // 255)))
    yield case("bit.png", content(png(MASK // 255, 1)))
    yield case("palette.png", content(pillow(MASK, "PNG", "P")))
    yield case("rgb.png", content(png(rgb)))
    yield case("rgba.png", content(png(np.dstack([rgb, MASK * 0 + 255]))))
    yield case("red.png", content(png(np.dstack([MASK // 255, MASK * 0, MASK * 0]))))
    yield case("grey_alpha.png", content(png(np.dstack([MASK, MASK * 0 + 255]))))
    yield case("deep.png", content(png(MASK.astype(np.uint16), 16)))
    yield case("deep_rgb.png", content(png(rgb.astype(np.uint16) // 255, 16)))
    yield case("white.tif", content(tiff(MASK)))
    yield case("float.tif", content(tiff(MASK.astype(np.float32) / 510)))
    yield case("int.tif", content(tiff(MASK.astype(np.int32))))
    yield case("white.bmp", content(bmp(MASK)))
    for name, array in {"black": MASK * 0, "full": MASK * 0 + 255}.items():
        yield Case("masks, good", f"{name}.png", content(png(array)), array > 0, "mask")
    opaque = np.dstack([rgb * 0, MASK * 0 + 255])
    yield Case("masks, good", "black_opaque.png", content(png(opaque)), MASK < 0, "mask")


def _truncated():
    files = {
        "grey.png": png(GREY),
        "deep.png": png(COLOUR16, 16),
        "plain.tif": tiff(COLOUR),
        "deep.tif": tiff(GREY16),
        "strips.tif": tiff(GREY, rows=3),
        "deflate.tif": tiff(COLOUR16, compression=8),
        "lzw.tif": tiff(GREY, compression=5),
        "tiles.tif": tiff(COLOUR, tile=16),
        "big.tif": tiff(GREY16, big=True),
        "grey.bmp": bmp(GREY),
        "runs.bmp": bmp(GREY, compression=1, body=rle(GREY)),
        "photo.jpg": pillow(SMOOTH, "JPEG"),
    }
    for (name, file), percent in itertools.product(files.items(), (0, 5, 30, 60, 90)):
        expected = Refused("not a PNG" if percent == 0 else "read|missing")
        yield Case("cut short", f"{percent}_{name}", content(file[: len(file) * percent // 100]), expected)


def _other_formats():
    case = partial(Case, "other formats", expected=Refused("not a PNG, JPEG, TIFF or BMP"))
    for file_format in (
        "GIF",
        "WEBP",
        "PPM",
        "ICO",
        "TGA",
        "PCX",
        "SGI",
        "DDS",
        "JPEG2000",
        "MSP",
        "XBM",
        "SPIDER",
    ):
        with contextlib.suppress(OSError, KeyError):  # this Pillow cannot write the format
            array, mode = (
                (GREY, "1")
                if file_format in ("MSP", "XBM")
                else (GREY, "F")
                if file_format == "SPIDER"
                else (COLOUR, None)
            )
            yield case(f"{file_format}.png", content(pillow(array, file_format, mode)))
    with contextlib.suppress(OSError, KeyError):
        yield case("deep_JPEG2000.png", content(pillow(GREY16, "JPEG2000")))
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2"]
    cards += [f"NAXIS1  = {WIDTH:>20}", f"NAXIS2  = {HEIGHT:>20}", "END"]
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    yield case("fits.png", content(header + GREY16.astype(">i2").tobytes()))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 36 24\n%%EndComments\n0 0 moveto showpage\n%%EOF\n"
    for name in ("script.png", "script.tif", "script.jpg", "script.bmp"):
        yield case(name, content(script))
    wrapped = b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(script)) + b"\0" * 20 + script
    yield case("wrapped_script.png", content(wrapped))
    yield case("document.png", content(b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF"))
    yield case("drawing.png", content(b'<svg xmlns="http://www.w3.org/2000/svg"/>'))
    yield case("page.png", content(b"<html>404 Not found</html>"))
    yield case("archive.png", content(b"PK\x05\x06" + b"\0" * 18))
    yield case("noise.png", content(np.random.default_rng(0).bytes(4000)))
    yield case("zeros.tif", content(bytes(4000)))
    yield case("nothing.png", content(b""))
    yield case("nothing.tif", content(b""))
    for name, signature in {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff", "bmp": b"BM", "tif": b"II*\0"}.items():
        yield Case("other formats", f"signature.{name}", content(signature), Refused("read"))
    file = pillow(GREY, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    yield Case("other formats", "animation.png", content(file), Refused("2 frames"))


def _pixels_bad():
    case = partial(Case, "other pixels")
    for dtype in (np.int8, np.int16, np.int32, np.uint32, np.float32, np.float64, np.int64):
        for compression in (1, 8):
            name = f"{np.dtype(dtype)}_{compression}.tif"
            file = tiff((GREY // 3).astype(dtype), compression=compression)
            yield case(name, content(file), Refused(f"{np.dtype(dtype)}, expected 8- or 16-bit"))
    for dtype, compression in itertools.product((np.int8, np.int16), (5, 32773)):
        file = tiff((GREY // 3).astype(dtype), compression=compression)
        yield case(f"{np.dtype(dtype)}_{compression}.tif", content(file), Refused("expected 8- or 16-bit"))
    for samples, dtype in itertools.product((5, 6, 9), (np.uint8, np.uint16)):
        many = np.dstack([GREY.astype(dtype)] * samples)
        for colours, photometric in (("rgb", 2), ("grey", 1)):
            name = f"{colours}_of_{samples}_{np.dtype(dtype)}.tif"
            yield case(name, content(tiff(many, photometric)), Refused(f"{samples} (samples|grey channels)"))
            file = tiff(many, photometric, planar=True)
            yield case(f"planes_{name}", content(file), Refused(f"{samples} (samples|grey channels)"))
    for samples in (2, 3, 4):
        file = tiff(np.dstack([GREY] * samples), 1, tags={338: (3, [0] * (samples - 1))})
        yield case(f"stains_of_{samples}.tif", content(file), Refused(f"{samples} grey channels"))
    yield case("rgb_of_2.tif", content(tiff(np.dstack([GREY] * 2), 2)), Refused("2 samples"))
    yield case(
        "bits12.tif", content(tiff(GREY16 >> 4, bits=12, tags={279: (4, [2 * GREY.size])})), Refused("12 bits|cut")
    )
    planar = tiff(np.dstack([COLOUR, ALPHA]), tags={284: (3, [133])})
    yield case("planar_133.tif", content(planar), Refused("planar"))
    mixed = tiff(COLOUR, tags={258: (3, [8, 8, 16])})
    yield case("mixed_bits.tif", content(mixed), Refused("bits|expected"))
    for name, colour in {"black": 0, "white": 255}.items():
        transparent = np.dstack([np.full_like(COLOUR, colour), ALPHA])
        for ending, encode in {"png": png, "tif": tiff}.items():
            yield case(f"transparent_{name}.{ending}", content(encode(transparent)), Refused("only its alpha"))


def _pages(count):
    """Encode a TIFF with several grey pages."""
    file = bytearray(b"II*\0" + struct.pack("<I", 8))
    for index in range(count):
        page, start = bytearray(tiff(GREY)[8:]), len(file)
        (n_entries,) = struct.unpack_from("<H", page)
        for entry in range(2, 2 + 12 * n_entries, 12):  # add to all offsets
            number, tag_type, length, value = struct.unpack_from("<HHII", page, entry)
            if number == 273 or length * {1: 1, 2: 1, 3: 2, 4: 4}[tag_type] > 4:
                struct.pack_into("<I", page, entry + 8, value + start - 8)
        page += b"\0" * (len(page) % 2)
        struct.pack_into("<I", page, 2 + 12 * n_entries, start + len(page) if index < count - 1 else 0)
        file += page
    return bytes(file)


def _structure_bad():
    case = partial(Case, "other structure")
    for count in (2, 3, 50):
        yield case(f"pages_{count}.tif", content(_pages(count)), Refused(f"{count} pages"))
    stack = {270: (2, [b"ImageJ=1.54f\nimages=3\nslices=3\n\0"]), 273: (4, [GREY.tobytes() * 3]), 279: (4, [GREY.size])}
    yield case("stack_in_one_page.tif", content(tiff(GREY, tags=stack)), Refused("axes"))
    for compression, dtype in itertools.product((1, 8, 5), (np.uint8, np.uint16)):
        for layout, options in {"strips": {"rows": 5}, "tiles": {"tile": 16}}.items():
            file = tiff(GREY.astype(dtype), compression=compression, **options)
            for number, tag in zip((273, 279) if layout == "strips" else (324, 325), ("offset", "size"), strict=True):
                name = f"{layout}_without_{tag}_{compression}_{np.dtype(dtype)}.tif"
                yield case(name, content(_zeroed(file, number, 1)), Refused("missing"))
    fewer = tiff(GREY, rows=5, tags={273: (4, [8, 200]), 279: (4, [180, 180])})
    yield case("fewer_strips.tif", content(fewer), Refused("missing"))
    yield case("no_strips.tif", content(tiff(GREY, tags={273: None, 279: None})), Refused("missing|read"))
    beyond = tiff(GREY, tags={273: (4, [10**9])})
    yield case("beyond_the_end.tif", content(beyond), Refused("cut short"))
    small = tiff(GREY, tags={279: (4, [100])})
    yield case("short_strip.tif", content(small), Refused("cut short"))
    for dtype in (np.uint8, np.uint16):
        # a complete deflate stream with half of the pixels
        half = tiff(GREY[:12].astype(dtype), compression=8, tags={257: (4, [HEIGHT]), 278: (4, [HEIGHT])})
        yield case(f"half_a_stream_{np.dtype(dtype)}.tif", content(half), Refused("read"))
    for name, array in {"grey": GREY, "deep_grey": GREY16, "colour": COLOUR, "deep_colour": COLOUR16}.items():
        for interlace in (False, True):
            file = png(array[:12], array.dtype.itemsize * 8, size=SIZE, interlace=interlace)
            yield case(f"half_a_stream_{name}{interlace:d}.png", content(file), Refused("read"))
    loop = bytearray(tiff(GREY))
    entries = struct.unpack_from("<H", loop, 8)[0]
    struct.pack_into("<I", loop, 10 + 12 * entries, 8)
    yield case("circle.tif", content(bytes(loop)), Refused("read|pages"))
    for array in (COLOUR, COLOUR16):
        damaged = bytearray(png(array, array.dtype.itemsize * 8))
        damaged[len(damaged) // 2] ^= 0x5A
        yield case(f"damaged_{array.dtype}.png", content(bytes(damaged)), Refused("read"))
    yield case("no_end.png", content(png(COLOUR)[:-12]), Refused("read"))
    yield case("no_pixels.png", content(png(COLOUR)[:33] + png(COLOUR)[-12:]), Refused("read"))


def _zeroed(file, number, index):
    """Set a value of a tag with several values to 0, in a little-endian TIFF."""
    file = bytearray(file)
    for entry in range(struct.unpack_from("<H", file, 8)[0]):
        entry_number, _, length, offset = struct.unpack_from("<HHII", file, 10 + 12 * entry)
        if entry_number == number:
            assert length > 1
            struct.pack_into("<I", file, offset + 4 * index, 0)
    return bytes(file)


def _palettes_bad():
    case = partial(Case, "palettes", expected=Refused("palette"))
    for bits in (2, 4, 8):
        values = GREY >> (8 - bits)
        yield case(f"cut{bits}.png", content(png(values, bits, bytes(3 * (2**bits // 2)))))
        yield Case("palettes", f"missing{bits}.png", content(png(values, bits, b"")), Refused("palette|read"))
    colours = list(range(768))
    yield case("missing.tif", content(tiff(GREY, photometric=3)))
    yield case("cut.tif", content(tiff(GREY, photometric=3, tags={320: (3, colours[:300])})))
    yield case("long.tif", content(tiff(GREY, photometric=3, tags={320: (3, colours * 2)})))
    yield case("cut.bmp", content(bmp(GREY, colours=bytes([9, 8, 7, 0]) + bytes(4 * 99))))


def _label_maps_bad():
    case = partial(Case, "label maps, bad", read_as="label map")
    palette = bytes(range(30))
    yield case("palette.png", content(png(LABELS, 8, palette)), Refused("palette"))
    yield case("palette4.png", content(png(LABELS, 4, palette)), Refused("palette"))
    yield case("palette.tif", content(tiff(LABELS, 3, tags={320: (3, list(range(768)))})), Refused("palette"))
    jpeg = pillow(LABELS * 80, "JPEG")
    for name in ("photo.jpg", "photo.png", "photo.tif"):
        yield case(name, content(jpeg), Refused("loss|JPEG"))
    inside = pillow(LABELS * 80, "TIFF", compression="jpeg")
    yield case("jpeg_inside.tif", content(inside), Refused("loss"))
    yield case("rgb.png", content(png(COLOUR)), Refused("shape"))
    yield case("rgb.tif", content(tiff(COLOUR)), Refused("shape"))
    yield case("alpha.png", content(png(np.dstack([LABELS, ALPHA]))), Refused("shape"))
    yield case("fractions.tif", content(tiff(LABELS.astype(np.float32) / 2)), Refused("float32"))
    yield case("doubles.tif", content(tiff(LABELS.astype(np.float64))), Refused("float64"))
    for compression in (1, 5):
        file = tiff(LABELS.astype(np.int16) - 1, compression=compression)
        yield case(f"negative_{compression}.tif", content(file), Refused("-1"))
    yield case("too_high.tif", content(tiff(LABELS.astype(np.uint32) * 2**30)), Refused("values"))
    yield case("stack.tif", content(_pages(3)), Refused("pages|shape"))
    yield case("grey.bmp", content(bmp(LABELS)), Refused("BMP|read"))
    yield case("text.png", content(b"1 2 3"), Refused("not a PNG"))
    for percent in (40, 80, 95):
        for name, file in {"png": png(LABELS.astype(np.uint16), 16), "tif": tiff(LABELS, compression=8)}.items():
            yield case(f"cut_{percent}.{name}", content(file[: len(file) * percent // 100]), Refused("read"))
    body = zlib.compress(bytes(300_000_000), 1)
    bomb = tiff(LABELS.astype(np.int64), compression=8, tags={273: (4, [body]), 279: (4, [len(body)])})
    yield case("bomb.tif", content(bomb), Refused("read"))


def _masks_bad():
    case = partial(Case, "masks, bad", read_as="mask")
    yield case("label_map.png", content(png(LABELS)), Refused("3 values|4 values|expected two"))
    for name in ("photo.jpg", "photo.png"):
        yield case(name, content(pillow(MASK, "JPEG")), Refused("JPEG"))
    yield case("black.jpg", content(pillow(MASK * 0, "JPEG")), Refused("JPEG"))
    transparent = np.dstack([np.dstack([MASK * 0] * 3), MASK])
    yield case("transparent.png", content(png(transparent)), Refused("only its alpha"))
    yield case("stack.tif", content(_pages(2)), Refused("2 pages"))


def _no_files():
    case = partial(Case, "no ordinary file")

    def loop(path):
        path.symlink_to(path.with_name("other_" + path.name))
        path.with_name("other_" + path.name).symlink_to(path)

    for ending, read_as in (
        ("png", "image"),
        ("tif", "image"),
        ("png", "mask"),
        ("png", "label map"),
        ("tif", "label map"),
    ):
        name = partial("{0}_{1}.{2}".format, read_as)
        yield case(name("none", ending), lambda path: None, Refused("is missing"), read_as)
        yield case(name("folder", ending), Path.mkdir, Refused("folder"), read_as)
        if hasattr(os, "mkfifo"):
            yield case(name("pipe", ending), os.mkfifo, Refused("pipe"), read_as)
        if Path("/dev/zero").exists():
            yield case(name("zeros", ending), lambda path: path.symlink_to("/dev/zero"), Refused("device"), read_as)
            yield case(name("null", ending), lambda path: path.symlink_to("/dev/null"), Refused("device"), read_as)
        yield case(name("loop", ending), loop, Refused("read|missing"), read_as)
        yield case(name("dangling", ending), lambda path: path.symlink_to("nowhere"), Refused("is missing"), read_as)


def _huge():
    case = partial(Case, "huge", expected=Refused("limit|cut short|too long|missing|many"))
    for side in (40_000, 65_500, 2**31 - 1):
        yield case(f"header_{side}.png", content(png(GREY, size=(side, side))))
        yield case(f"header_{side}.tif", content(tiff(GREY, tags={256: (4, [side]), 257: (4, [side])})))
        yield case(f"deflate_{side}.tif", content(tiff(GREY, compression=8, tags={256: (4, [side]), 257: (4, [side])})))
        yield case(f"lzw_{side}.tif", content(tiff(GREY, compression=5, tags={256: (4, [side]), 257: (4, [side])})))
        yield case(f"header_{side}.bmp", content(bmp(GREY, size=(side, side))))
        yield case(f"runs_{side}.bmp", content(bmp(GREY, compression=1, body=rle(GREY), size=(side, side))))
    # below the limit of pixels, with too few bytes
    tall = {256: (4, [30_000]), 257: (4, [30_000]), 278: (4, [30_000])}
    for compression in (5, 7, 8, 32773):
        file = tiff(GREY, compression=compression if compression != 7 else 5, tags=tall | {259: (3, [compression])})
        yield case(f"compression_{compression}_of_few_bytes.tif", content(file))
    for side in (30_000, 40_000, 65_500):
        yield case(f"header_{side}.jpg", content(jpeg_of_size(side, side)))
    # Pillow would pad each of these rows byte by byte
    yield case("wide_runs.bmp", content(bmp(GREY, compression=1, body=b"\1\0\0\0" * 300, size=(300, 3_000_000))))
    yield case("scans.jpg", content(jpeg_of_many_scans(5_000)))
    body = zlib.compress(bytes(200_000_000), 1)
    for array in (GREY, GREY16):
        bomb = tiff(array, compression=8, tags={273: (4, [body]), 279: (4, [len(body)])})
        yield Case("huge", f"bomb_{array.dtype}.tif", content(bomb), Refused("read"))
    yield Case("huge", "no_height.png", content(png(GREY, size=(0, WIDTH))), Refused("empty|read"))
    yield Case("huge", "no_width.tif", content(tiff(GREY, tags={256: (4, [0])})), Refused("empty|read"))

    def sparse_file(path):
        with path.open("wb") as file:
            file.write(png(GREY))
            file.truncate(2**40)

    yield Case("huge", "terabyte.png", sparse_file, Refused("bytes, too many"))


# Reading


READERS = {"image": image_io.read_image, "mask": image_io.read_mask, "label map": image_io.read_label_map}


class TooSlowError(BaseException):
    """A file took longer than the limit. A reader must not catch this error as one of a decoder."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raise `TooSlowError` after the time limit, on systems that can interrupt Python."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_):
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(case, folder):
    """Write and read a file.

    Returns
    -------
    outcome : str
        One of `OUTCOMES`.
    detail : str
        Description of the result.
    """
    path = Path(folder) / f"{re.sub(r'[^a-z]+', '_', case.group.lower())}-{case.name}"
    case.write(path)
    try:
        with time_limit(TIME_LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _compare(case, path)
    except TooSlowError:
        return "slow", f"not read after {TIME_LIMIT} s"
    finally:
        if path.is_file() and not path.is_symlink():
            path.unlink()


def _compare(case, path):
    expected = case.expected
    try:
        result = READERS[case.read_as](path)
        raw = image_io.read_raw(path) if case.read_as == "image" else None
    except NucleiError as error:
        message = str(error)
        if not isinstance(expected, Refused):
            return "good refused", message
        is_clear = str(path) in message and re.search(expected.reason, message) and " at 0x" not in message
        return "refused" if is_clear else "other reason", message
    except Exception as error:
        return "traceback", repr(error)
    if isinstance(expected, Refused):
        return "wrong", f"read as {result.dtype} {result.shape}, expected a refusal"
    if raw is not None:
        if not _is_close(raw, expected, case.tolerance):
            return "wrong", f"other raw values, {raw.dtype} {raw.shape}"
        expected = (expected // 257 if expected.dtype == np.uint16 else expected) + np.zeros(3, np.uint8)
    is_right = _is_close(result, expected, case.tolerance)
    return ("right", "") if is_right else ("wrong", f"other pixels, {result.dtype} {result.shape}")


def _is_close(result, expected, tolerance):
    return result.shape == expected.shape and np.abs(result.astype(int) - expected.astype(int)).max() <= tolerance


def mutations(count, seed=0):
    """Yield damaged copies of good files: name, content and `read_as`."""
    rng = np.random.default_rng(seed)
    good = [case for case in cases() if case.group.endswith("good")]
    with tempfile.TemporaryDirectory() as folder:
        originals = []
        for index, case in enumerate(good):
            path = Path(folder) / str(index)
            case.write(path)
            originals.append((Path(case.name).suffix, path.read_bytes(), case.read_as))
    for number in range(count):
        ending, file, read_as = originals[rng.integers(len(originals))]
        file = bytearray(file)
        for _ in range(rng.integers(1, 5)):
            # most of the damage is near the header
            start = int(rng.integers(min(len(file), 300 if rng.random() < 0.7 else len(file))))
            method = rng.random()
            if method < 0.6:
                file[start] = rng.integers(256)
            elif method < 0.8:
                numbers = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\1\0"]
                file[start : start + 4] = rng.choice(numbers)
            elif method < 0.9:
                del file[start : start + int(rng.integers(1, 40))]
            else:
                file = file[: max(start, 20)]
        yield f"{number}{ending}", bytes(file), read_as


def read_mutation(name, file, read_as, folder):
    """Return the outcome and the detail for a damaged file. Any pixels are "right", and any reason is accepted."""
    case = Case("mutations", name, content(file), np.zeros((1, 1, 1), np.uint8), read_as)
    result, detail = outcome(case, folder)
    return {"wrong": "right", "good refused": "refused"}.get(result, result), detail


def main():
    """Read the corpus and print a table by group. The exit status is 1 if an outcome is not correct."""
    with contextlib.suppress(ImportError, ValueError):
        import resource  # missing on Windows

        # a reader that takes too much memory must not stop the machine
        resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, resource.RLIM_INFINITY))
    counts, faults = Counter(), []

    def count(group, name, result, detail):
        counts[group, result] += 1
        if result not in GOOD_OUTCOMES:
            faults.append(f"{result}: {group}: {name}: {detail[:200]}")

    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            count(case.group, case.name, *outcome(case, folder))
        for name, *mutation in mutations(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000):
            count("mutations", name, *read_mutation(name, *mutation, folder))
    print(*faults, "", sep="\n")
    print(f"{'group':<18}{'files':>7}", *(f"{name:>{len(name) + 2}}" for name in OUTCOMES))
    for group in [*dict.fromkeys(group for group, _ in counts), "all"]:
        row = [sum(counts[key] for key in counts if key[1] == name and group in (key[0], "all")) for name in OUTCOMES]
        cells = (f"{number or '-':>{len(name) + 2}}" for number, name in zip(row, OUTCOMES, strict=True))
        print(f"{group:<18}{sum(row):>7}", *cells)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
