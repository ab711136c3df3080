"""Read image files, masks and label maps: the pixels are right, or the file is refused with the reason.

All files are opened here. Only PNG, JPEG, TIFF and BMP are opened, whatever the name of a file says, so that no file
can start another program. The size of an image is checked before its pixels are decoded.

One fault is not seen: a JPEG file whose data end early, but with the mark of a whole file. The decoder fills the rest.
"""

import logging
import stat
import struct
import threading
import zlib
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write
from nuclei_utils.labels import check_label_map

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
"""Formats that are opened, by Pillow's names. "JPEG" includes MPO, a photograph with a preview."""


MAX_PIXELS = 1_000_000_000
"""Most pixels (height x width) of an image, unless the caller allows more: 30,000 x 30,000 fit."""


BRIGHTEST = 0.0005
"""Fraction of the brightest 16-bit values that does not count for the scale of an image."""


_IMAGE, _MASK, _LABEL_MAP = "an image", "a mask", "a label map"  # what a file is read as


_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # both byte orders of TIFF, then of BigTIFF


_BIG_ENDIAN_BIGTIFF = _TIFF_MARKS[3]  # Pillow cannot read it


_MAX_BYTES_PER_PIXEL = 16  # limits the size of a file: four channels of 32 bits


_MAX_HEADER_BYTES = 2**26


_MAX_RLE_PIXELS = 2**24  # Pillow decodes run lengths of BMP files in Python, which is slow


_MAX_SCANS = 100  # passes over a progressive JPEG; cameras and programs write about 10


_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


_UNPACKED_AT_ONCE = 2**20  # bytes


_JPEG_PIXELS_PER_BYTE = 600  # at most: a block of 64 pixels takes a bit or more


_TIFF_GROWTH = {5: 4000, 7: 1800, 8: 1100, 32773: 64, 32946: 1100}  # most bytes that one byte can unpack to


_PILLOW_WARNS = 2**26  # pixels; Pillow has its own limit above this number


_STRIP = 1024  # rows of an image that are measured at a time


_HOT = 4  # a 16-bit pixel is hot if it is so many times brighter than the median around it


_MINISWHITE, _MINISBLACK, _RGB, _PALETTE = range(4)  # "photometric" of TIFF


_ALPHA = (1, 2)  # "extra samples" of TIFF that are transparency


_NO_COMPRESSION, _DEFLATE = 1, (8, 32946)


_LOSSY = (6, 7, 33003, 33004, 33005, 34712, 34892, 34933, 34934, 50001, 50002)  # JPEG, JPEG 2000, WebP, ...


_EXIF_ORIENTATION = 274  # the number of the tag in EXIF and in TIFF


_pillow_limit = threading.Lock()


logging.getLogger("tifffile").addHandler(logging.NullHandler())  # the message of a refusal is enough


class _Refusal(Exception):
    """Say why a file is refused; the caller adds its name."""


class _Decoded(NamedTuple):
    """Pixels as they are in the file, `(H, W)` or `(H, W, channels)`, and what the file says about them."""

    pixels: np.ndarray
    is_palette: bool
    is_lossy: bool


def read_image(path, max_pixels=MAX_PIXELS):
    """Read an image file as 8-bit RGB, which networks take.

    Grey, grey + alpha, RGB, RGBA and palette images, 1 to 16 bits deep, PNG, JPEG, TIFF or BMP. The alpha channel is
    dropped. 16-bit values are scaled as `to_rgb8` does. To measure intensities, use `read_raw`.

    Parameters
    ----------
    path : path-like
    max_pixels : int
        Most pixels (height x width) that the image may have.

    Returns
    -------
    uint8 array (H, W, 3)
        RGB.

    Raises
    ------
    DataError
        If the file is missing, broken, too large, or holds something other than one image of these kinds.
    """
    raw = read_raw(path, max_pixels)
    try:
        return to_rgb8(raw)
    except MemoryError as error:
        raise NucleiError(_too_little_memory(path, raw.shape)) from error


def read_raw(path, max_pixels=MAX_PIXELS):
    """Read the pixels of an image file with the values that the file holds.

    The orientation that the file names is applied, and the alpha channel is dropped. Grey values of less than 8 bits
    are spread over 0..255, palettes become RGB, and TIFF files where 0 is white are inverted.

    Parameters
    ----------
    path : path-like
    max_pixels : int
        Most pixels (height x width) that the image may have.

    Returns
    -------
    uint8 or uint16 array (H, W, 1) or (H, W, 3)
        Grey or RGB.

    Raises
    ------
    DataError
        If the file is missing, broken, too large, or holds something other than one image of these kinds.
    """
    path = Path(path)
    pixels = _colours(path, _decode(path, max_pixels, _IMAGE).pixels)
    return np.ascontiguousarray(pixels)


def to_rgb8(raw):
    """Convert the pixels of a file to the 8-bit RGB that networks take.

    8-bit values stay as they are. 16-bit values are scaled by one factor, so that the brightest part of the image
    becomes 255. Hot pixels and the brightest 0.05 % of the values do not count: they become 255 as well. An image
    whose values are all below 256 is not scaled.

    Parameters
    ----------
    raw : uint8 or uint16 array (H, W, 1) or (H, W, 3)
        From `read_raw`.

    Returns
    -------
    uint8 array (H, W, 3)
        RGB.
    """
    raw = np.asarray(raw)
    if raw.dtype == np.uint16:
        factor = 255 / max(_brightest(raw), 255)
        table = np.minimum(np.round(np.arange(2**16) * factor), 255).astype(np.uint8)
        raw = table[raw]
    return cv2.cvtColor(raw, cv2.COLOR_GRAY2RGB) if raw.shape[2] == 1 else raw


def _brightest(raw):
    """Return the brightest value of a 16-bit image, without hot pixels and a small fraction of the others."""
    counts = np.zeros(2**16, np.int64)
    for top in range(0, raw.shape[0], _STRIP):
        above = min(top, 2)
        strip = raw[top - above : top + _STRIP + 2]
        around = cv2.medianBlur(strip, 5).reshape(strip.shape)
        capped = np.minimum(strip, np.minimum(around, 2**16 // _HOT) * np.int64(_HOT))[above : above + _STRIP]
        counts += np.bincount(capped.ravel(), minlength=2**16)[: 2**16]
    ignored = int(raw.size * BRIGHTEST)
    return int(np.searchsorted(np.cumsum(counts), raw.size - ignored))


def _colours(path, pixels):
    """Return the colours `(H, W, 1 or 3)` of decoded pixels, without alpha."""
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[2] == 3:
        return pixels
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if np.ptp(alpha) and not np.ptp(colours, axis=(0, 1)).any():
        raise NucleiError(f"{path}: only its alpha channel holds anything, the colours are one: save it without alpha")
    return colours


def read_mask(path, shape=None):
    """Read a mask file: black is background, white (or any other single value) is nucleus.

    Parameters
    ----------
    path : path-like
    shape : tuple of int, optional
        (H, W) that the mask must have.

    Returns
    -------
    bool array (H, W)

    Raises
    ------
    DataError
        If the file is broken, has another size, is a JPEG, or holds more than two values (a label map).
    """
    path = Path(path)
    decoded = _decode(path, MAX_PIXELS, _MASK)
    _check_lossless(path, decoded, _MASK)
    colours = _colours(path, decoded.pixels)
    values = colours.max(axis=2) if colours.shape[2] > 1 else colours[..., 0]
    mask = values != 0
    if mask.any() and (mask != (values == values.max())).any():
        raise NucleiError(
            f"{path}: found {len(np.unique(values))} values, expected two, background 0 and one nucleus: "
            "split a label map into one mask per nucleus; save a mask as PNG, not JPEG"
        )
    if shape is not None and mask.shape != tuple(shape):
        raise NucleiError(
            f"{path}: the mask is {mask.shape}, its image {tuple(shape)} (height, width); they must agree"
        )
    return mask


def read_label_map(path):
    """Read a label map from a grey PNG or TIFF, whoever wrote it.

    Parameters
    ----------
    path : path-like
        PNG of up to 16 bits, or TIFF of up to 64 bits. A mask of 0 and 255 is read as one nucleus with the label 255.

    Returns
    -------
    int32 array (H, W)
        Label map with the file's own labels, gaps and all.

    Raises
    ------
    DataError
        If the file is missing or broken, is no PNG or TIFF, has colours, a palette or several pages, was compressed
        with losses, or holds fractions or negative numbers.
    """
    path = Path(path)
    decoded = _decode(path, MAX_PIXELS, _LABEL_MAP)
    _check_lossless(path, decoded, _LABEL_MAP)
    pixels = decoded.pixels
    if decoded.is_palette:
        found = "a palette, whose numbers stand for colours"
    elif pixels.ndim != 2:
        found = f"pixels of shape {pixels.shape}"
    elif pixels.dtype.kind not in "biu":
        found = f"pixels of type {pixels.dtype}"
    elif pixels.size and (pixels.min() < 0 or pixels.max() > np.iinfo(np.int32).max):
        found = f"values from {pixels.min()} to {pixels.max()}"
    else:
        return pixels.astype(np.int32)
    raise NucleiError(
        f"{path}: found {found}, expected a label map, one grey channel of whole numbers from 0 up: save it as 16-bit "
        "PNG or TIFF"
    )


def _check_lossless(path, decoded, purpose):
    if decoded.is_lossy:
        raise NucleiError(
            f"{path}: found a compression with losses, such as JPEG, which changes the numbers of {purpose}: save it "
            "as PNG or TIFF"
        )


def _decode(path, max_pixels, purpose):
    """Decode a file of one image, for one of the purposes `_IMAGE`, `_MASK` and `_LABELS`."""
    try:
        content = _content(path, max_pixels)
        decode = _decode_tiff if content[:4] in _TIFF_MARKS else _decode_by_pillow
        return decode(content, max_pixels, purpose)
    except _Refusal as refusal:
        raise NucleiError(f"{path}: {refusal}") from None
    except UnidentifiedImageError as error:
        raise NucleiError(f"{path} is no image that can be read: expected PNG, JPEG, TIFF or BMP") from error
    except NucleiError:
        raise
    except MemoryError as error:
        raise NucleiError(_too_little_memory(path)) from error
    except Exception as error:  # a broken byte can trip a decoder anywhere: KeyError, TypeError, ZeroDivisionError, ...
        raise NucleiError(f"{path} cannot be read as {purpose} ({error}): fetch or export it again") from error


def _too_little_memory(path, shape=None):
    size = f" of {shape[0]} x {shape[1]} pixels" if shape else ""
    return f"{path}: the image{size} does not fit into memory: cut it into pieces, or use a machine with more memory"


def _content(path, max_pixels):
    """Read the bytes of a regular file: reading a pipe or a device might never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NucleiError(f"{path} cannot be read as an image: found {_kind(status.st_mode)}, expected a file")
        if status.st_size > _MAX_BYTES_PER_PIXEL * max_pixels + _MAX_HEADER_BYTES:
            raise _Refusal(f"found a file of {status.st_size:,} bytes, too many for {max_pixels:,} pixels")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NucleiError(f"{path} is missing: check its name, or fetch the data again") from error
    except (OSError, ValueError) as error:
        if isinstance(error, NucleiError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise NucleiError(f"{path} cannot be read ({reason}): check its name and your rights to read it") from error


def _kind(mode):
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _check_size(height, width, max_pixels):
    if not height * width:
        raise _Refusal(f"found an image of {height} x {width} pixels, which is empty")
    if height * width > max_pixels:
        raise _Refusal(
            f"found {height} x {width} pixels, more than the limit of {max_pixels:,}: cut the image into pieces, or "
            "raise the limit"
        )


def _turned(pixels, orientation):
    """Turn or mirror pixels so that they are seen as their file wants them to be seen (EXIF and TIFF number 8 ways)."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


@contextmanager
def _no_limit_of_pillow():
    """Switch off Pillow's limit, which holds for the whole process; the limit of this module has been checked."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _opened(content, formats):
    with _no_limit_of_pillow():  # only the header is read here
        return Image.open(BytesIO(content), formats=formats)


def _load(picture):
    """Decode the pixels."""
    with _no_limit_of_pillow() if picture.width * picture.height > _PILLOW_WARNS else nullcontext():
        picture.load()


def _decode_by_pillow(content, max_pixels, purpose):
    with _opened(content, FORMATS[:3]) as picture:
        _check_size(picture.height, picture.width, max_pixels)
        kind, is_deep = picture.format, picture.format == "PNG" and content[24] == 16  # the header's field of depth
        if purpose == _LABEL_MAP and kind == "BMP":
            raise _Refusal("found a BMP file, expected a label map as 16-bit PNG or TIFF")
        if kind == "BMP":
            _check_bmp(content, picture)
        elif kind == "PNG":
            if (frames := getattr(picture, "n_frames", 1)) > 1:
                raise _Refusal(f"found {frames} frames, expected one image; save each as a file of its own")
            _check_png(content)
        else:
            _check_jpeg(content, picture)
        colours = _palette_size(picture)
        _load(picture)  # raises an error if the pixels are cut short, which OpenCV may overlook
        if colours is not None and np.array(picture).max() >= colours:
            raise _Refusal(f"its palette has {colours} colours, fewer than its pixels use: export it again")
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1) if "exif" in picture.info else 1
        is_palette, is_lossy = colours is not None, kind in ("JPEG", "MPO")
        if not is_deep or picture.mode == "I;16":
            pixels = _plain(picture)
            if purpose == _LABEL_MAP and kind == "PNG" and pixels.dtype == np.uint8 and content[24] in (1, 2, 4):
                pixels = pixels // (255 // (2 ** content[24] - 1))
            return _Decoded(_turned(pixels, orientation), is_palette, is_lossy)
    pixels = _decode_by_opencv(content)
    if content[25] == 4:  # grey + alpha, which OpenCV makes colours of
        pixels = pixels[..., [0, 3]]
    return _Decoded(_turned(pixels, orientation), is_palette, is_lossy)


def _check_jpeg(content, picture):
    """Refuse a JPEG file that lacks pixels, or takes long to decode."""
    if content.count(b"\xff\xda") > _MAX_SCANS:
        raise _Refusal(f"found a JPEG with more than {_MAX_SCANS} scans, which takes too long: save it again")
    if picture.width * picture.height > _JPEG_PIXELS_PER_BYTE * len(content):
        raise ValueError("the file is cut short")


def _check_png(content):
    """Refuse a PNG file that lacks chunks or pixels: decoders take long over it, or fill in 0 in silence."""
    start, kind, pixels = 8, b"", []
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, start)
        if start + 12 + length > len(content):
            raise ValueError("the file is cut short")
        if kind == b"IDAT":
            pixels.append(memoryview(content)[start + 8 : start + 8 + length])
        start += 12 + length
    missing, unpacker = _png_bytes(content), zlib.decompressobj()
    for part in pixels:
        while missing > 0 and (found := unpacker.decompress(part, _UNPACKED_AT_ONCE)):
            missing -= len(found)
            part = unpacker.unconsumed_tail
    if missing > 0:
        raise ValueError("the file is cut short")


def _png_bytes(content):
    """Return how many bytes the pixels of a PNG file unpack to: rows, each with a byte for its filter."""
    width, height, bits, colours, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    bits *= {2: 3, 4: 2, 6: 4}.get(colours, 1)
    total = 0
    for left, top, across, down in _PNG_PASSES if is_interlaced else [(0, 0, 1, 1)]:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0:
            total += max(rows, 0) * (1 + (columns * bits + 7) // 8)
    return total


def _palette_size(picture):
    """Return the number of colours in the palette of a file; None if it has no palette."""
    if picture.mode != "P":
        return None
    palette = picture.palette
    return len(palette.palette) // len(palette.rawmode or palette.mode) if palette else 0


def _plain(picture):
    """Return the pixels of a picture that Pillow has loaded, as grey, RGB, or either with alpha."""
    if picture.mode in ("L", "LA", "RGB", "RGBA", "F", "I", "I;16", "1"):
        pixels = np.array(picture)
        return np.uint8(255) * pixels if pixels.dtype == bool else pixels
    return np.array(picture.convert("RGB"))


def _check_bmp(content, picture):
    """Refuse a BMP file that lacks pixels, or takes long to decode."""
    (header,) = struct.unpack_from("<I", content, 14)
    bits, compression = struct.unpack_from("<HI", content, 28) if header >= 40 else (1, 0)
    if compression in (1, 2):
        if picture.width * picture.height > _MAX_RLE_PIXELS:
            raise _Refusal(
                f"found a run-length coded BMP of {picture.height} x {picture.width} pixels, which takes too long: "
                "save it without compression"
            )
    elif (picture.width * bits + 7) // 8 * picture.height > len(content):
        raise ValueError("the file is cut short")


def _decode_by_opencv(content):
    """Decode 16-bit pixels; Pillow would cut 16-bit colours down to 8 bits."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("its pixels are broken")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return pixels


def _decode_tiff(content, max_pixels, purpose):
    # OME's description of the planes is not used: it may name other files, and planes that are not there
    with tifffile.TiffFile(BytesIO(content), is_ome=False) as file:
        page = _only_page(file, content)
        _check_size(page.imagelength, page.imagewidth, max_pixels)
        bits = _check_samples(page, purpose)
        _check_strips(page, bits, len(content))
        tag = page.tags.get(_EXIF_ORIENTATION)
        orientation = tag.value if tag else 1
        if orientation != 1:
            content = _without_orientation(content, tag, file.byteorder)
        pixels = _decode_page(page, content, bits, purpose)
        return _Decoded(_turned(pixels, orientation), page.photometric == _PALETTE, page.compression in _LOSSY)


def _only_page(file, content):
    """Return the only page of a TIFF file: most readers take the first page of a stack in silence."""
    if not len(file.pages):
        raise ValueError("the file is cut short")
    page, layout = file.pages[0], file.tiff
    (tags,) = struct.unpack_from(layout.tagnoformat, content, page.offset)
    (following,) = struct.unpack_from(
        layout.offsetformat, content, page.offset + layout.tagnosize + tags * layout.tagsize
    )
    if following and len(file.pages) == 1:
        raise ValueError("the file is cut short")
    axes = file.series[0].axes if len(file.pages) == 1 else ""  # a file of one page may hold a stack, too
    if axes not in ("YX", "YXS", "SYX"):
        raise _Refusal(
            f"found {len(file.pages)} pages{axes and f', axes {axes}'}, expected one image, grey or RGB; save each "
            "plane of a stack as a file of its own"
        )
    return page


def _check_samples(page, purpose):
    """Refuse kinds of pixels that would be misread; return the bits of a sample."""
    samples, photometric = page.samplesperpixel, page.photometric
    extra = tuple(page.extrasamples)
    bits = page.tags[258].value if 258 in page.tags else 1
    kinds = set(bits) if isinstance(bits, tuple) else {bits}
    if len(kinds) > 1:
        raise _Refusal(f"found channels of {sorted(kinds)} bits, expected one number of bits for all channels")
    (bits,) = kinds
    if photometric in (_MINISWHITE, _MINISBLACK):
        fits, what = samples == 1 or (samples == 2 and extra[:1] and extra[0] in _ALPHA), "grey channels"
    elif photometric == _RGB:
        fits, what = samples in (3, 4), "samples for each pixel"
    elif photometric == _PALETTE:
        fits, what = samples == 1, "samples for each pixel of a palette"
    else:
        fits, what = samples <= 4, "samples for each pixel"
    if not fits:
        raise _Refusal(
            f"found {samples} {what}, expected one image, grey or RGB; save each channel as a file of its own"
        )
    if page.dtype is None or (bits > 8 and (bits % 8 or photometric not in (_MINISWHITE, _MINISBLACK, _RGB))):
        raise _Refusal(f"found {bits} bits of the kind {getattr(photometric, 'name', photometric)}, expected 8 or 16")
    if purpose == _IMAGE and page.dtype not in (np.uint8, np.uint16, bool):
        raise _Refusal(
            f"found pixels of type {page.dtype}, expected 8- or 16-bit unsigned integers: scale and save it so"
        )
    if purpose == _LABEL_MAP and bits not in (1, 8, 16, 32, 64):
        raise _Refusal(f"found {bits} bits, expected a label map of 8, 16 or 32 bits")
    if photometric == _PALETTE and (page.colormap is None or page.colormap.shape != (3, 2**bits)):
        raise _Refusal("its palette is missing or cut short: export it again")
    return bits


def _check_strips(page, bits, size):
    """Refuse a file that lacks pixels, which most readers fill with 0 in silence."""
    offsets, counts = page.dataoffsets, page.databytecounts
    needed = int(np.prod(page.chunked))
    present = sum(bool(offset and count) for offset, count in zip(offsets, counts, strict=False))
    if present < needed:
        raise _Refusal(f"{needed - present} of its {needed} strips or tiles are missing: export it again")
    # the last part of a stream of pixels may be padded
    if max(offset + count for offset, count in zip(offsets, counts, strict=True)) > size:
        raise ValueError("the file is cut short")
    if sum(counts) > 10 * size + _MAX_HEADER_BYTES:
        raise _Refusal("its strips or tiles lie over each other: export it again")
    row = (page.imagewidth * bits * page.samplesperpixel + 7) // 8
    growth = 1 if page.compression == _NO_COMPRESSION else _TIFF_GROWTH.get(page.compression, np.inf)
    if row * page.imagelength > growth * sum(counts):
        raise ValueError("the file is cut short")


def _without_orientation(content, tag, byteorder):
    """Return a TIFF file that says it is upright: some decoders turn pixels, others do not."""
    letter = {1: "B", 3: "H", 4: "I"}.get(int(tag.dtype))
    if letter is None or tag.count != 1:
        raise _Refusal(f"found an orientation of the type {tag.dtype}, expected a number: export it again")
    content = bytearray(content)
    struct.pack_into(byteorder + letter, content, tag.valueoffset, 1)
    return bytes(content)


def _decode_page(page, content, bits, purpose):
    """Decode the pixels by a library that does it right: none of the three reads all files."""
    is_basic = page.photometric in (_MINISWHITE, _MINISBLACK, _RGB) and page.dtype.itemsize * 8 == bits
    is_planar = page.planarconfig == 2 and page.samplesperpixel > 1
    is_inverted = False
    if is_basic and page.compression in (_NO_COMPRESSION, *_DEFLATE):
        if page.compression != _NO_COMPRESSION:
            _check_deflated(page, content)
        pixels = page.asarray(maxworkers=1)
        pixels = np.moveaxis(pixels, 0, -1) if is_planar else pixels
    elif page.dtype in (np.uint8, bool) and content[:4] != _BIG_ENDIAN_BIGTIFF:
        with _opened(content, ("TIFF",)) as picture:
            _load(picture)
            pixels, is_inverted = _plain(picture), True
    elif is_planar or (page.dtype == np.uint8 and page.samplesperpixel in (2, 4)):  # OpenCV changes the colours
        raise _Refusal(f"found channels with the compression {page.compression.name}: save it without compression")
    else:
        pixels, is_inverted = _decode_by_opencv(content), page.dtype == np.uint8
        if (pixels.dtype.itemsize, pixels.dtype.kind in "iu") != (page.dtype.itemsize, page.dtype.kind in "iu"):
            raise _Refusal(f"found {page.dtype} with the compression {page.compression.name}: save it without")
        pixels = pixels.view(page.dtype)
    # numbers of labels are never inverted, and there is no white among numbers with a sign
    invert = purpose != _LABEL_MAP and page.dtype in (np.uint8, np.uint16, bool)
    if page.photometric == _MINISWHITE and invert != is_inverted and pixels.dtype in (np.uint8, np.uint16):
        return np.iinfo(pixels.dtype).max - pixels
    return pixels


def _check_deflated(page, content):
    """Refuse a strip or tile that unpacks to more or fewer bytes than its pixels have; tifffile sets no limit."""
    whole = int(np.prod(page.chunks)) * page.dtype.itemsize
    rows, height = page.chunks[0], page.imagelength
    strips = -(-height // rows)
    for number, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        is_last = not page.is_tiled and number % strips == strips - 1
        needed = whole // rows * (height - (strips - 1) * rows) if is_last else whole
        unpacker = zlib.decompressobj()
        length = len(unpacker.decompress(content[offset : offset + count], whole + 1))
        if not needed <= length <= whole:
            raise ValueError(
                f"a strip or tile unpacks to {length:,} bytes or more, not to the {needed:,} of its pixels"
            )


LOSSLESS = (".png", ".tif", ".tiff")  # endings


HIGHEST_IN_16_BITS = 2**16 - 1


def _ending(path, known):
    if path.suffix.lower() not in known:
        raise ValueError(f"{path}: found the ending {path.suffix!r}, expected one of {', '.join(known)}")
    return path.suffix.lower()


def write_label_map(path, labels):
    """Write a label map as a 16-bit PNG or TIFF, by the ending of the name.

    Parameters
    ----------
    path : path-like
        Ends in .png, .tif or .tiff.
    labels : int array (H, W)
        Label map. With labels above 65,535 a TIFF has 32 bits.

    Raises
    ------
    ValueError
        If `labels` is no label map, the ending is another, or a label is above 65,535 and the file a PNG.
    """
    path, labels = Path(path), check_label_map(labels)
    ending, highest = _ending(path, LOSSLESS), labels.max(initial=0)
    if ending == ".png" and highest > HIGHEST_IN_16_BITS:
        raise ValueError(
            f"{path}: the highest label is {highest}, a PNG holds {HIGHEST_IN_16_BITS} at most: write it as "
            f"{path.with_suffix('.tif').name}"
        )
    with atomic_write(path) as aside:
        if ending == ".png":
            Image.fromarray(labels.astype(np.uint16)).save(aside)
        else:
            bits = np.uint16 if highest <= HIGHEST_IN_16_BITS else np.uint32
            tifffile.imwrite(aside, labels.astype(bits), compression="zlib", photometric="minisblack")


def write_mask(path, labels):
    """Write which pixels are nucleus: 255, the others 0, 8-bit grey.

    Parameters
    ----------
    path : path-like
        Ends in .png, .tif or .tiff: other kinds may blur it.
    labels : int or bool array (H, W)
        Label map or mask.

    Raises
    ------
    ValueError
        If the ending is another.
    """
    path = Path(path)
    _ending(path, LOSSLESS)
    with atomic_write(path) as aside:
        Image.fromarray((np.asarray(labels) > 0).astype(np.uint8) * np.uint8(255)).save(aside)
