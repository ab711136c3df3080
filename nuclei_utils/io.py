"""Read and write images, masks and label maps.

A file is read correctly or refused with a reason; the checks of each format are in `_decode`. The formats are PNG,
JPEG, TIFF and BMP: the content of a file decides, not the name. One kind of damage is not detected: a JPEG file whose
data end before an intact end mark.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from nuclei_utils._decode import IMAGE, LABEL_MAP, MASK, read_pixels, too_little_memory
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write
from nuclei_utils.labels import check_label_map

MAX_PIXELS = 1_000_000_000
"""Largest number of pixels (height x width) that is read by default."""

LOSSLESS = (".png", ".tif", ".tiff")
"""Endings of the names of mask and label map files."""

HIGHEST_IN_16_BITS = 2**16 - 1
"""Highest label that fits into a PNG file."""

FRAME = 2
"""Width of the frame that the search of hot pixels needs around a part of an image, pixels."""

_HOT = 4  # a hot pixel is so many times brighter than the median of its neighbours
_ROWS_AT_ONCE = 1024  # limits the memory for the search of hot pixels


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image as 8-bit RGB, uint8 (H, W, 3).

    The networks take such images. The image can be grey, RGB or a palette image with 1 to 16 bits. An alpha channel is
    dropped. 16-bit values are scaled as in `to_rgb8`. Use `read_raw` to measure intensities. `max_pixels` limits height
    x width.

    Raises
    ------
    NucleiError
        If the file is missing, damaged or too large, or does not hold exactly one such image.

    Examples
    --------
    >>> Image.fromarray(np.zeros((20, 30), np.uint8)).save("grey.png")
    >>> read_image("grey.png").shape
    (20, 30, 3)
    """
    raw = read_raw(path, max_pixels)
    try:
        return to_rgb8(raw)
    except MemoryError as error:
        raise too_little_memory(path, raw.shape) from error


def read_raw(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image as `read_image` does, with the intensities of the file.

    The orientation tag is applied and an alpha channel is dropped. Grey values of 1 to 7 bits are spread over 0..255.
    Palettes become RGB. TIFF files in which 0 is white are inverted.

    Returns
    -------
    uint8 or uint16 array (H, W, 1) or (H, W, 3)
        Grey or RGB.

    Examples
    --------
    >>> Image.fromarray(np.array([[0, 4095]], np.uint16)).save("deep.png")
    >>> read_raw("deep.png")[..., 0]
    array([[   0, 4095]], dtype=uint16)
    """
    return np.ascontiguousarray(read_pixels(Path(path), max_pixels, IMAGE))


def to_rgb8(raw: np.ndarray, brightest: int | None = None) -> np.ndarray:
    """Convert intensities of a file to 8-bit RGB, uint8 (H, W, 3).

    8-bit values are kept. 16-bit values are multiplied by one factor that maps the brightest part of the image to
    255. Hot pixels and the brightest 0.05 % of the values do not count for the factor, and are clipped to 255. An
    image without values above 255 is not scaled.

    Parameters
    ----------
    raw : uint8 or uint16 array (H, W, 1) or (H, W, 3)
        Grey or RGB, from `read_raw`.
    brightest : int, optional
        The 16-bit value that becomes 255, if the image is a part of a larger image (`brightest_value`).

    Examples
    --------
    >>> to_rgb8(np.array([[[0], [1000], [4000]]], np.uint16))[..., 0]
    array([[  0,  64, 255]], dtype=uint8)
    """
    raw = np.asarray(raw)
    if raw.dtype == np.uint16:
        factor = 255 / max(_brightest(raw) if brightest is None else brightest, 255)
        table = np.minimum(np.round(np.arange(2**16) * factor), 255).astype(np.uint8)
        raw = table[raw]
    return cv2.cvtColor(raw, cv2.COLOR_GRAY2RGB) if raw.shape[2] == 1 else raw


def _brightest(raw):
    counts = np.zeros(2**16, np.int64)
    for top in range(0, raw.shape[0], _ROWS_AT_ONCE):
        n_above = min(top, FRAME)
        strip = raw[top - n_above : top + _ROWS_AT_ONCE + FRAME]
        counts += count_values(strip, (slice(n_above, n_above + _ROWS_AT_ONCE), slice(None)))
    return brightest_value(counts)


def count_values(raw: np.ndarray, inside: tuple[slice, slice] = (slice(None), slice(None))) -> np.ndarray:
    """Count how often each 16-bit value occurs in a part of an image, for `brightest_value`.

    A hot pixel counts with a lower value, near those of its neighbours.

    Parameters
    ----------
    raw : uint16 array (H, W, 1) or (H, W, 3)
        The part with a frame of two pixels (`FRAME`) of the image, where the image goes on.
    inside : (slice, slice)
        Rows and columns of the part without its frame.

    Examples
    --------
    >>> np.flatnonzero(count_values(np.full((3, 3, 1), 7, np.uint16))).tolist()
    [7]
    """
    median = cv2.medianBlur(raw, 5).reshape(raw.shape)
    capped = np.minimum(raw, np.minimum(median, 2**16 // _HOT) * np.int64(_HOT))
    return np.bincount(capped[inside].ravel(), minlength=2**16)[: 2**16]


def brightest_value(counts: np.ndarray) -> int:
    """Return the brightest 16-bit value that sets the scale of `to_rgb8`.

    0.05 % of the values do not count.

    Examples
    --------
    >>> brightest_value(np.array([0, 5000, 2])), brightest_value(np.array([0, 5000, 3]))
    (1, 2)
    """
    total = int(counts.sum())
    return int(np.searchsorted(np.cumsum(counts), total - int(total * 0.0005)))


def read_mask(path: str | os.PathLike, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask as a bool array (H, W).

    The file is PNG, TIFF or BMP. 0 is background, and all other pixels must have the same value. `shape` is the
    expected height and width.

    Raises
    ------
    NucleiError
        If the file is missing or damaged, is a JPEG, has another size, or holds more than two values.

    Examples
    --------
    >>> write_mask("mask.png", np.array([[0, 1, 1]]))
    >>> read_mask("mask.png", shape=(1, 3))
    array([[False,  True,  True]])
    """
    path = Path(path)
    values = read_pixels(path, MAX_PIXELS, MASK).max(axis=2)
    mask = values != 0
    if mask.any() and (mask != (values == values.max())).any():
        raise NucleiError(
            f"{path}: found {len(np.unique(values))} values, expected 0 for background and another for the nucleus: "
            "split a label map into one mask per nucleus, and save a mask as PNG instead of JPEG"
        )
    if shape is not None and mask.shape != tuple(shape):
        raise NucleiError(
            f"{path}: the mask is {mask.shape}, its image {tuple(shape)} (height, width): both must have the same size"
        )
    return mask


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """Read a label map as an int32 array (H, W).

    The file is a grey PNG (up to 16 bits) or TIFF (up to 64 bits). The labels of the file stay, and can have gaps. A
    mask of 0 and 255 becomes a nucleus with label 255.

    Raises
    ------
    NucleiError
        If the file is missing, damaged, or not a PNG or TIFF; if it has colours, a palette, several pages or lossy
        compression; or if it holds fractions or negative numbers.

    Examples
    --------
    >>> write_label_map("labels.png", np.array([[0, 1, 7]]))
    >>> read_label_map("labels.png")
    array([[0, 1, 7]], dtype=int32)
    """
    path = Path(path)
    return to_label_map(read_pixels(path, MAX_PIXELS, LABEL_MAP), path)


def to_label_map(pixels: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Convert the pixels of a file to a label map, int32 (H, W).

    `NucleiError` is raised if the pixels are not whole numbers from 0 in one channel. Its message names `path`.

    Examples
    --------
    >>> to_label_map(np.array([[0, 7]], np.uint8), "labels.png")
    array([[0, 7]], dtype=int32)
    """
    if pixels.ndim != 2:
        problem = f"pixels of shape {pixels.shape}"
    elif pixels.dtype.kind not in "biu":
        problem = f"pixels of type {pixels.dtype}"
    elif pixels.size and (pixels.min() < 0 or pixels.max() > np.iinfo(np.int32).max):
        problem = f"values from {pixels.min()} to {pixels.max()}"
    else:
        return pixels.astype(np.int32)
    raise NucleiError(
        f"{path}: found {problem}, expected a label map, one grey channel of whole numbers from 0: save the label map "
        "as 16-bit PNG or TIFF"
    )


def check_ending(path: Path, endings: Sequence[str] = LOSSLESS) -> str:
    """Return the ending of a file name in lower case.

    If the ending is not one of `endings`, `ValueError` is raised.

    Examples
    --------
    >>> check_ending(Path("labels.PNG"))
    '.png'
    """
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path}: found the ending {path.suffix!r}, expected one of {', '.join(endings)}")
    return path.suffix.lower()


def write_label_map(path: str | os.PathLike, label_map: np.ndarray) -> None:
    """Write a label map as a PNG or TIFF file.

    The label map is an int array (H, W). The file has 16 bits. A TIFF file has 32 bits if a label is above 65,535,
    which does not fit into a PNG.

    Examples
    --------
    >>> write_label_map("labels.tif", np.array([[0, 1, 70_000]]))
    >>> read_label_map("labels.tif")
    array([[    0,     1, 70000]], dtype=int32)
    """
    path, label_map = Path(path), check_label_map(label_map)
    ending, highest = check_ending(path), label_map.max(initial=0)
    if ending == ".png" and highest > HIGHEST_IN_16_BITS:
        raise ValueError(
            f"{path}: the highest label is {highest}, a PNG holds up to {HIGHEST_IN_16_BITS}: write "
            f"{path.with_suffix('.tif').name}"
        )
    with atomic_write(path) as partial:
        if ending == ".png":
            Image.fromarray(label_map.astype(np.uint16)).save(partial)
        else:
            dtype = np.uint16 if highest <= HIGHEST_IN_16_BITS else np.uint32
            tifffile.imwrite(partial, label_map.astype(dtype), compression="zlib", photometric="minisblack")


def write_mask(path: str | os.PathLike, label_map: np.ndarray) -> None:
    """Write a mask as an 8-bit grey PNG or TIFF file.

    `label_map` is a label map or mask (H, W). Nuclei are 255, and background is 0.

    Examples
    --------
    >>> write_mask("mask.png", np.array([[0, 3, 7]]))
    >>> read_label_map("mask.png")
    array([[  0, 255, 255]], dtype=int32)
    """
    path = Path(path)
    check_ending(path)
    with atomic_write(path) as partial:
        Image.fromarray((np.asarray(label_map) > 0).astype(np.uint8) * np.uint8(255)).save(partial)
