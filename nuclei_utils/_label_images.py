"""Write the label image of a slide block by block: OME-Zarr 0.4, or a tiled OME-TIFF made from it.

napari and QuPath both read version 0.4; QuPath writes it. The group holds a small colour image of the slide, because
napari shows labels only beside an image, and the pyramid of the labels in the group `labels/nuclei`.
"""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from nuclei_utils import preprocess
from nuclei_utils._stacks import import_zarr
from nuclei_utils.files import atomic_write

OVERVIEW = 8
"""The image in the group is so many times smaller than the slide."""

_LABELS = "labels/nuclei"


def n_levels(shape: tuple[int, int], block: int) -> int:
    """Return the number of levels of the pyramid. The smallest level is one block."""
    return 1 + max(0, math.ceil(math.log2(max(shape) / block)))


def n_chunk_rows(shape: tuple[int, int], block: int, level: int) -> int:
    """Return the number of rows of chunks of a level."""
    return math.ceil(_sizes(shape, level)[0] / block)


def create(path: Path, shape: tuple[int, int], block: int, pixel_size: float | None) -> None:
    """Create an OME-Zarr group without pixels, if it does not exist."""
    if path.exists():
        return
    zarr = import_zarr("OME-Zarr")
    import numcodecs

    partial = path.with_name(f"new-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    root = zarr.open_group(partial, mode="w", zarr_format=2)
    options = {
        "compressors": numcodecs.Zlib(1),  # which all readers know
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
        "fill_value": 0,
    }
    small = tuple(math.ceil(side / OVERVIEW) for side in shape)
    root.create_array("0", shape=(3, *small), chunks=(3, *[block // OVERVIEW] * 2), dtype=np.uint8, **options)
    channels = [
        {"label": name, "color": colour, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
        for name, colour in (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    ]
    root.attrs.update(_multiscales("overview", "cyx", [OVERVIEW], pixel_size) | {"omero": {"channels": channels}})
    root.create_group("labels").attrs["labels"] = ["nuclei"]
    labels = root.create_group(_LABELS)
    scales = [2**level for level in range(n_levels(shape, block))]
    for level in range(len(scales)):
        labels.create_array(str(level), shape=_sizes(shape, level), chunks=(block, block), dtype=np.int32, **options)
    labels.attrs.update(_multiscales("nuclei", "yx", scales, pixel_size) | {"image-label": {"version": "0.4"}})
    partial.rename(path)


def _multiscales(name, axes, scales, pixel_size):
    """Return the description of a pyramid. Pixel positions are those of the upper left corner."""
    unit = {} if pixel_size is None else {"unit": "micrometer"}
    described = [
        {"name": axis, "type": "channel"} if axis == "c" else {"name": axis, "type": "space", **unit} for axis in axes
    ]
    datasets = []
    for level, scale in enumerate(scales):
        size = scale * (pixel_size or 1)
        transformation = {"type": "scale", "scale": [1.0 if axis == "c" else size for axis in axes]}
        datasets.append({"path": str(level), "coordinateTransformations": [transformation]})
    return {"multiscales": [{"version": "0.4", "name": name, "axes": described, "datasets": datasets}]}


def _sizes(shape, level):
    return tuple(math.ceil(side / 2**level) for side in shape)


def _open(path, name, mode="r+"):
    return import_zarr("OME-Zarr").open_array(path / name, mode=mode)


def write_block(path: Path, place: tuple[slice, slice], label_map: np.ndarray, image: np.ndarray) -> None:
    """Write the labels and the colours of a block. Blocks consist of whole chunks."""
    _open(path, f"{_LABELS}/0")[place] = label_map
    small = tuple(slice(side.start // OVERVIEW, math.ceil(side.stop / OVERVIEW)) for side in place)
    resized = preprocess.resize(image, tuple(side.stop - side.start for side in small))
    _open(path, "0")[:, *small] = np.moveaxis(resized, -1, 0)


def shrink(path: Path, level: int, row: int) -> None:
    """Write a row of chunks of a level from the level before: each second row and column."""
    source, target = _open(path, f"{_LABELS}/{level - 1}", "r"), _open(path, f"{_LABELS}/{level}")
    side = target.chunks[0]
    rows = slice(row * side, min((row + 1) * side, target.shape[0]))
    for left in range(0, target.shape[1], side):
        columns = slice(left, min(left + side, target.shape[1]))
        before = tuple(slice(2 * span.start, 2 * span.stop) for span in (rows, columns))
        target[rows, columns] = source[before][::2, ::2]


def write_tiff(source: Path, path: Path, pixel_size: float | None) -> Path:
    """Write the labels of an OME-Zarr group as a tiled OME-TIFF file with 32 bits. Return its path."""
    levels, name = [], 0
    while (source / _LABELS / str(name)).exists():
        levels.append(_open(source, f"{_LABELS}/{name}", "r"))
        name += 1
    metadata = {"axes": "YX", "Name": "nuclei"}
    if pixel_size is not None:
        metadata |= {f"PhysicalSize{axis}": pixel_size for axis in "XY"}
        metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    with atomic_write(path) as partial, tifffile.TiffWriter(partial, bigtiff=True, ome=True) as file:
        for number, level in enumerate(levels):
            file.write(
                _tiles(level),
                shape=level.shape,
                dtype=np.uint32,
                tile=level.chunks,
                compression="zlib",
                photometric="minisblack",
                **({"subifds": len(levels) - 1, "metadata": metadata} if number == 0 else {"subfiletype": 1}),
            )
    return path


def _tiles(level) -> Iterator[np.ndarray]:
    side = level.chunks[0]
    for top in range(0, level.shape[0], side):
        for left in range(0, level.shape[1], side):
            yield level[top : top + side, left : left + side].astype(np.uint32)
