"""Decode the bytes of PNG, JPEG, BMP and TIFF files into arrays, or refuse them with a reason.

Pillow decodes PNG, JPEG and BMP files, and OpenCV decodes the 16-bit PNG files that Pillow would reduce to 8 bits. The
decoder of a TIFF file depends on its compression, because tifffile, Pillow and OpenCV each lack some kinds. The
libraries fill missing pixels with zeros, and allocate the memory that a header asks for. Incomplete files and
implausible headers are therefore refused before they are decoded.
"""

import logging
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from nuclei_utils.errors import NucleiError

IMAGE, MASK, LABEL_MAP = "an image", "a mask", "a label map"  # the purpose that a file is read for

_MAX_HEADER_BYTES = 2**26  # allowed in a file besides its pixels

_BIG_ENDIAN_BIGTIFF = b"MM\0+"  # the first bytes; Pillow cannot read this format
_ORIENTATION, _PHOTOMETRIC, _BITS, _DESCRIPTION = 274, 262, 258, 270  # TIFF tags; EXIF has the first tag as well

_MAX_SCANS = 100  # of a progressive JPEG; cameras and programs write about 10
_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE = range(4)  # values of the TIFF tag "photometric"
_ALPHA = (1, 2)  # values of the TIFF tag "extra samples" that mean transparency
_NO_COMPRESSION, _DEFLATE = 1, (8, 32946)
_LOSSY = (6, 7, 33003, 33004, 33005, 34712, 34892, 34933, 34934, 50001, 50002)  # JPEG, JPEG 2000, WebP, ...
_MAX_GROWTH = {1: 1, 5: 4000, 7: 1800, 8: 1100, 32773: 64, 32946: 1100}  # bytes that one compressed byte can hold

_pillow_lock = threading.Lock()
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # the error message is enough


class Refusal(Exception):
    """Reason to refuse a file. The caller adds the file's name."""


def read_pixels(path: Path, max_pixels: int, purpose: str) -> np.ndarray:
    """Read the pixels of a file that holds one image.

    The pixels are grey, (H, W, 1), or RGB, (H, W, 3). An alpha channel is dropped. For a label map, the pixels have the
    shape of the file.
    """
    with named_errors(path, purpose):
        content = _read_bytes(path, max_pixels)
        for signature, decode in _DECODERS.items():
            if content.startswith(signature):
                pixels = decode(content, max_pixels, purpose)
                return pixels if purpose == LABEL_MAP else _without_alpha(pixels)
        raise Refusal("this is not a PNG, JPEG, TIFF or BMP file: convert the file")


@contextmanager
def named_errors(path: Path, purpose: str) -> Iterator[None]:
    """Turn all errors of the block into `NucleiError` with the file's name."""
    try:
        yield
    except NucleiError:
        raise
    except Refusal as refusal:
        raise NucleiError(f"{path}: {refusal}") from None
    except MemoryError as error:
        raise too_little_memory(path) from error
    except Exception as error:  # a damaged byte can cause any error in a decoder: KeyError, ZeroDivisionError, ...
        raise NucleiError(f"{path} cannot be read as {purpose} ({error}): fetch or export it again") from error


def too_little_memory(path: Path, shape: tuple[int, ...] = ()) -> NucleiError:
    """Return the error for an image that does not fit into memory."""
    size = f" of {shape[0]} x {shape[1]} pixels" if shape else ""
    return NucleiError(
        f"{path}: the image{size} does not fit into memory: cut it into tiles, or use a machine with more memory"
    )


def _read_bytes(path, max_pixels):
    """Read a regular file. Pipes and devices are refused, because reading them might never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            types = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
            raise Refusal(f"found {types.get(stat.S_IFMT(status.st_mode), 'a device')}, expected a file")
        if status.st_size > 16 * max_pixels + _MAX_HEADER_BYTES:  # four channels of 32 bits
            raise Refusal(f"found a file of {status.st_size:,} bytes, too many for {max_pixels:,} pixels")
        return path.read_bytes()
    except FileNotFoundError:
        raise Refusal("the file is missing: check its name, or fetch the data again") from None
    except OSError as error:
        raise Refusal(f"the file cannot be read ({error.strerror}): check its name and your permissions") from None


# PNG, JPEG and BMP. The classes of Pillow's plugins are used instead of `Image.open`, which has a limit of pixels.


def _decode_png(content, max_pixels, purpose):
    with PngImageFile(BytesIO(content)) as picture:
        check_size(picture.height, picture.width, max_pixels)
        if (frames := picture.n_frames) > 1:
            raise Refusal(f"found {frames} frames, expected one image: save each frame as a separate file")
        _check_png_data(content)
        pixels = _decode_picture(picture, purpose)  # before OpenCV, which overlooks some missing pixels
        bits, colour_type = content[24:26]
        if bits == 16 and picture.mode != "I;16":
            pixels = _decode_by_opencv(content)
            if colour_type == 4:  # grey and alpha, which OpenCV turns into four channels
                pixels = pixels[..., [0, 3]]
            pixels = _orient(pixels, _exif_orientation(picture))
        elif bits < 8 and purpose == LABEL_MAP:  # the numbers themselves, not spread over 0..255
            pixels = pixels // (255 // (2**bits - 1))
        return pixels


def _decode_jpeg(content, max_pixels, purpose):
    with JpegImageFile(BytesIO(content)) as picture:
        check_size(picture.height, picture.width, max_pixels)
        if content.count(b"\xff\xda") > _MAX_SCANS:
            raise Refusal(f"found a JPEG with more than {_MAX_SCANS} scans, which takes too long: save the image again")
        _check_length(picture.height * picture.width, 600 * len(content))  # a block of 64 pixels takes a bit or more
        _refuse_lossy(purpose)
        return _decode_picture(picture, purpose)


def _decode_bmp(content, max_pixels, purpose):
    with BmpImageFile(BytesIO(content)) as picture:
        check_size(picture.height, picture.width, max_pixels)
        if purpose == LABEL_MAP:
            raise Refusal("found a BMP file, expected a label map as 16-bit PNG or TIFF")
        (header,) = struct.unpack_from("<I", content, 14)
        bits, compression = struct.unpack_from("<HI", content, 28) if header >= 40 else (1, 0)
        if compression not in (1, 2):
            _check_length((picture.width * bits + 7) // 8 * picture.height, len(content))
        elif picture.width * picture.height > 2**24:  # Pillow decodes run lengths in Python, which is slow
            raise Refusal(f"found a run-length BMP above {2**24:,} pixels, which takes too long: save it uncompressed")
        return _decode_picture(picture, purpose)


def _decode_picture(picture, purpose):
    """Decode a file that Pillow has opened."""
    if picture.mode == "P":
        _refuse_palette(purpose)
        palette = picture.palette
        n_colours = len(palette.palette) // len(palette.rawmode or palette.mode) if palette else 0
        picture.load()
        if np.array(picture).max() >= n_colours:
            raise Refusal(f"the palette has {n_colours} colours, fewer than the pixels use: export the file again")
    picture.load()
    return _orient(_to_array(picture), _exif_orientation(picture))


def _to_array(picture):
    """Return the pixels of a picture, with or without alpha."""
    if picture.mode not in ("L", "LA", "RGB", "RGBA", "F", "I", "I;16", "1"):
        picture = picture.convert("RGB")
    pixels = np.array(picture)
    return np.uint8(255) * pixels if pixels.dtype == bool else pixels


def _exif_orientation(picture):
    return picture.getexif().get(_ORIENTATION, 1) if "exif" in picture.info else 1


def _decode_by_opencv(content):
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("the pixels are damaged")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return pixels


def _orient(pixels, orientation):
    """Rotate or mirror pixels by the orientation tag, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _without_alpha(pixels):
    """Return pixels as `(H, W, 1)` or `(H, W, 3)`."""
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[2] == 3:
        return pixels
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if np.ptp(alpha) and not np.ptp(colours, axis=(0, 1)).any():
        raise Refusal("only its alpha channel has contents, all colours are equal: save the image without alpha")
    return colours


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image that is empty or too large."""
    if not height * width:
        raise Refusal(f"found an image of {height} x {width} pixels, which is empty: export the file again")
    if height * width > max_pixels:
        raise Refusal(
            f"found {height} x {width} pixels, more than the limit of {max_pixels:,}: cut the image or raise the limit"
        )


def _refuse_lossy(purpose):
    if purpose != IMAGE:
        raise Refusal(f"found a compression with losses, such as JPEG, expected {purpose} as PNG or TIFF")


def _refuse_palette(purpose):
    if purpose == LABEL_MAP:
        raise Refusal("found a palette of colours, expected a label map: save 16-bit PNG or TIFF")


def _check_length(needed, available):
    if needed > available:
        raise ValueError("the file is cut short")


def _check_png_data(content):
    """Check that a PNG file has all its chunks and pixels."""
    start, name, chunks = 8, b"", []
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", content, start)
        _check_length(start + 12 + length, len(content))
        if name == b"IDAT":
            chunks.append(memoryview(content)[start + 8 : start + 8 + length])
        start += 12 + length
    missing, unpacker = _png_size(content), zlib.decompressobj()
    for chunk in chunks:
        while missing > 0 and (unpacked := unpacker.decompress(chunk, 2**20)):
            missing -= len(unpacked)
            chunk = unpacker.unconsumed_tail
    _check_length(missing, 0)


def _png_size(content):
    """Return the unpacked size of a PNG file's pixels in bytes.

    Each row has one more byte for the filter.
    """
    width, height, bits, colour_type, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    bits *= {2: 3, 4: 2, 6: 4}.get(colour_type, 1)
    total = 0
    for left, top, across, down in _PNG_PASSES if is_interlaced else [(0, 0, 1, 1)]:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0:
            total += max(rows, 0) * (1 + (columns * bits + 7) // 8)
    return total


# TIFF


def _decode_tiff(content, max_pixels, purpose):
    # the OME description of planes is ignored, because it can name other files and planes that do not exist
    with tifffile.TiffFile(BytesIO(content), is_ome=False) as file:
        page = _only_page(file, content)
        check_size(page.imagelength, page.imagewidth, max_pixels)
        _check_samples(page, purpose)
        if page.compression in _LOSSY:
            _refuse_lossy(purpose)
        check_strips(page, len(content))
        pixels = _decode_page(page, content)
        # a label map keeps its numbers, and signed numbers and fractions have no white
        if page.photometric == _MINISWHITE and purpose != LABEL_MAP and pixels.dtype in (np.uint8, np.uint16):
            pixels = np.iinfo(pixels.dtype).max - pixels
        orientation = page.tags.get(_ORIENTATION)
        return _orient(pixels, orientation.value if orientation else 1)


def _only_page(file, content):
    """Return the only page of a TIFF file. Most readers silently take the first page of several."""
    if not len(file.pages):
        raise ValueError("the file is cut short")
    page = file.pages[0]
    if len(file.pages) == 1:
        _check_last_page(file, content)
    axes = file.series[0].axes if len(file.pages) == 1 else ""  # a single page can hold a stack as well
    if axes not in ("YX", "YXS", "SYX"):
        raise Refusal(
            f"found {len(file.pages)} pages{axes and f', axes {axes}'}, expected one image, grey or RGB: save each "
            "plane of a stack as a separate file"
        )
    return page


def check_pages(file: tifffile.TiffFile, content: bytes) -> None:
    """Refuse a TIFF file that lacks a page or its description. tifffile leaves them out."""
    if not len(file.pages):
        raise ValueError("the file is cut short")
    _check_last_page(file, content)
    page, layout = file.pages[0], file.tiff
    (n_tags,) = struct.unpack_from(layout.tagnoformat, content, page.offset)
    first = page.offset + layout.tagnosize
    tags = [struct.unpack_from(f"{file.byteorder}H", content, first + i * layout.tagsize)[0] for i in range(n_tags)]
    if _DESCRIPTION in tags and _DESCRIPTION not in page.tags:
        raise ValueError("the file is cut short")


def _check_last_page(file, content):
    page, layout = file.pages[-1], file.tiff
    (n_tags,) = struct.unpack_from(layout.tagnoformat, content, page.offset)
    end_of_tags = page.offset + layout.tagnosize + n_tags * layout.tagsize
    (next_page,) = struct.unpack_from(layout.offsetformat, content, end_of_tags)
    if next_page:
        raise ValueError("the file is cut short")


def decode_page(page: tifffile.TiffPage | tifffile.TiffFrame, content: bytes) -> np.ndarray:
    """Decode one page of a TIFF file of several pages. The pixels have the shape of the page."""
    layout = page.keyframe
    check_strips(page, len(content))
    if layout.compression in _DEFLATE:
        _check_deflated(page, content)
    try:
        pixels = page.asarray(maxworkers=1)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise missing_decoder(layout) from None
    if layout.photometric == _MINISWHITE and pixels.dtype in (np.uint8, np.uint16):
        pixels = np.iinfo(pixels.dtype).max - pixels
    return pixels


def missing_decoder(page: tifffile.TiffPage) -> Refusal:
    """Return the refusal of a compression that needs the package imagecodecs."""
    return Refusal(
        f'found the compression {page.compression.name}: install its decoder, pip install "nuclei-utils[formats]", or '
        "save the file without compression"
    )


def _check_samples(page, purpose):
    """Refuse samples whose number, size or type would be misread."""
    samples, photometric, bits = page.samplesperpixel, page.photometric, page.bitspersample
    is_grey = photometric in (_MINISWHITE, _MINISBLACK)
    if page.planarconfig not in (1, 2):
        raise Refusal(f"found the planar configuration {page.planarconfig}, expected 1 or 2: export the file again")
    bits_of_channels = np.unique(page.tags.valueof(_BITS, bits))
    if bits_of_channels.size > 1:
        raise Refusal(f"found channels of {bits_of_channels} bits, expected equal bits: export the file again")
    if is_grey:
        is_valid = samples == 1 or (samples == 2 and page.extrasamples and page.extrasamples[0] in _ALPHA)
    else:
        is_valid = samples in {_RGB: (3, 4), _PALETTE: (1,)}.get(photometric, range(5))
    if not is_valid:
        raise Refusal(
            f"found {samples} {'grey channels' if is_grey else 'samples per pixel'}, expected one image, grey or RGB: "
            "save each channel as a separate file"
        )
    if page.dtype is None or (bits > 8 and (bits % 8 or not (is_grey or photometric == _RGB))):
        raise Refusal(
            f"found {bits} bits of the type {getattr(photometric, 'name', photometric)}, expected 8 or 16: convert it"
        )
    if purpose == IMAGE and page.dtype not in (np.uint8, np.uint16, bool):
        raise Refusal(
            f"found pixels of type {page.dtype}, expected 8- or 16-bit unsigned integers: scale them to 16 bits"
        )
    if purpose == LABEL_MAP and bits not in (1, 8, 16, 32, 64):
        raise Refusal(f"found {bits} bits, expected a label map of 8, 16 or 32 bits: convert the file")
    if photometric == _PALETTE:
        _refuse_palette(purpose)
        if page.colormap is None or page.colormap.shape != (3, 2**bits):
            raise Refusal("the palette is missing or cut short: export the file again")


def check_strips(page: tifffile.TiffPage | tifffile.TiffFrame, size: int) -> None:
    """Refuse a file that lacks pixels, or whose strips or tiles overlap."""
    offsets, counts, page = page.dataoffsets, page.databytecounts, page.keyframe  # pages of a stack share the layout
    needed = int(np.prod(page.chunked))
    complete = sum(bool(offset and count) for offset, count in zip(offsets, counts, strict=False))
    if complete < needed:
        raise Refusal(f"{needed - complete} of {needed} strips or tiles are missing: export the file again")
    if len(offsets) != len(counts):
        raise Refusal(f"found {len(offsets)} offsets and {len(counts)} sizes of strips: export the file again")
    _check_length(max(offset + count for offset, count in zip(offsets, counts, strict=True)), size)
    total = sum(counts)
    if total > 10 * size + _MAX_HEADER_BYTES:
        raise Refusal("the strips or tiles overlap in the file: export the file again")
    row = (page.imagewidth * page.bitspersample * page.samplesperpixel + 7) // 8
    _check_length(row * page.imagelength, _MAX_GROWTH.get(page.compression, np.inf) * total)


def _decode_page(page, content):
    """Decode the pixels with a decoder that reads the page correctly."""
    is_planar = page.planarconfig == 2 and page.samplesperpixel > 1
    is_plain = page.dtype.itemsize * 8 == page.bitspersample and page.photometric in (_MINISWHITE, _MINISBLACK, _RGB)
    if is_plain and page.compression in (_NO_COMPRESSION, *_DEFLATE):
        if page.compression != _NO_COMPRESSION:
            _check_deflated(page, content)
        pixels = page.asarray(maxworkers=1)
        return np.moveaxis(pixels, 0, -1) if is_planar else pixels
    # Pillow and OpenCV apply these tags to a few types of pages only
    if _ORIENTATION in page.tags:
        content = _with_tag(content, page, _ORIENTATION, 1)
    if page.photometric == _MINISWHITE:
        content = _with_tag(content, page, _PHOTOMETRIC, _MINISBLACK)
    if page.dtype in (np.uint8, bool) and not content.startswith(_BIG_ENDIAN_BIGTIFF):
        with TiffImageFile(BytesIO(content)) as picture, _without_pillow_limit(picture.width * picture.height):
            picture.load()
            return _to_array(picture)
    if not is_planar and (page.dtype != np.uint8 or page.samplesperpixel not in (2, 4)):  # OpenCV mixes the channels up
        pixels = _decode_by_opencv(content)
        if (pixels.dtype.itemsize, pixels.dtype.kind in "iu") == (page.dtype.itemsize, page.dtype.kind in "iu"):
            return pixels.view(page.dtype)
    raise Refusal(f"found {page.dtype} with the compression {page.compression.name}: save the file without compression")


def _check_deflated(page, content):
    """Refuse a strip or tile that unpacks to the wrong number of bytes. tifffile has no limit."""
    segments, page = zip(page.dataoffsets, page.databytecounts, strict=True), page.keyframe
    whole = int(np.prod(page.chunks)) * page.dtype.itemsize
    rows, height = page.chunks[0], page.imagelength
    n_strips = -(-height // rows)
    for number, (offset, count) in enumerate(segments):
        is_last = not page.is_tiled and number % n_strips == n_strips - 1
        needed = whole // rows * (height - (n_strips - 1) * rows) if is_last else whole
        unpacker = zlib.decompressobj()
        length = len(unpacker.decompress(content[offset : offset + count], whole + 1))
        if not needed <= length <= whole:
            raise ValueError(f"a strip or tile unpacks to at least {length:,} bytes instead of {needed:,}")


def _with_tag(content, page, number, value):
    """Return a TIFF file's content with another value of one tag."""
    tag = page.tags.get(number)
    letter = tag and {1: "B", 3: "H", 4: "I"}.get(int(tag.dtype))
    if not letter or tag.count != 1:
        raise Refusal(f"the TIFF tag {number} is missing or damaged: export the file again")
    content = bytearray(content)
    struct.pack_into(page.parent.byteorder + letter, content, tag.valueoffset, value)
    return bytes(content)


@contextmanager
def _without_pillow_limit(n_pixels):
    """Switch off Pillow's limit of pixels for one large image.

    The limit belongs to the whole process.
    """
    if n_pixels <= (Image.MAX_IMAGE_PIXELS or 0):
        yield
        return
    with _pillow_lock:  # another thread would restore the limit too early
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


_DECODERS = {  # by the first bytes of a file
    b"\x89PNG\r\n\x1a\n": _decode_png,
    b"\xff\xd8\xff": _decode_jpeg,
    b"BM": _decode_bmp,
    b"II*\0": _decode_tiff,  # little-endian
    b"MM\0*": _decode_tiff,  # big-endian
    b"II+\0": _decode_tiff,  # BigTIFF, little-endian
    _BIG_ENDIAN_BIGTIFF: _decode_tiff,
}
