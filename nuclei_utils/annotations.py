"""Read the labels that people correct in QuPath, ImageJ and napari: label maps, outlines and OME-Zarr.

The ending of a file's name decides how it is read. NAME is the name of the image without its ending. A label map that
is written to a file and read back is the same, except for the following.

- `NAME.png`, `NAME.tif` or `NAME_labels.*`: a label map of napari, Fiji or the command `predict`. PNG holds no label
  above 65,535.
- `NAME.geojson`, `NAME.geojson.gz` or `NAME.zip`: outlines of QuPath. The file does not hold the size of the image.
- `NAME_rois.zip`, `NAME.zip` or `NAME.roi`: outlines of ImageJ and Fiji. The file does not hold the size of the image.
  Polygons of ImageJ have no holes. A hole can be read only from a combination of outlines (XOR in the ROI Manager).
- `NAME.zarr`, `NAME.ome.zarr` or `NAME_labels.ome.zarr`: an OME-Zarr label image, such as that of a slide. This needs
  the package zarr (the extra `large`).
"""

import re
import zipfile
from os import PathLike
from pathlib import Path

import numpy as np

from nuclei_utils._decode import Refusal
from nuclei_utils._outline_files import read_geojson, read_imagej_rois
from nuclei_utils._stacks import import_zarr, ome_metadata
from nuclei_utils.errors import NucleiError, first_line
from nuclei_utils.io import MAX_PIXELS, read_label_map, to_label_map

ENDINGS = (".geojson", ".geojson.gz", ".zip", ".roi", ".zarr")
"""Endings of the names of outlines and OME-Zarr, in lower case."""


def image_name(path: str | PathLike) -> str:
    """Return the name of the image of a file of labels.

    The name has no ending, no `_labels` or `_rois`, and no `.ome` before or after them.

    Examples
    --------
    >>> [image_name(f"a{end}") for end in (".tif", "_labels.png", ".ome.zarr", "_rois.zip", ".ome_labels.ome.tif")]
    ['a', 'a', 'a', 'a', 'a']
    """
    path = Path(path)
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), path.suffix)
    name = without_ome(path.name[: len(path.name) - len(ending)])
    return without_ome(re.sub("_rois$" if ending in (".zip", ".roi") else "_labels$", "", name))


def without_ome(name: str) -> str:
    """Remove the ending `.ome` from the name of an image.

    Examples
    --------
    >>> without_ome("cells.OME"), without_ome("cells.1")
    ('cells', 'cells.1')
    """
    return name[:-4] if name.lower().endswith(".ome") else name


def read_labels(path: str | PathLike, shape: tuple[int, int] | None) -> np.ndarray:
    """Read labels from a label map, outlines or OME-Zarr.

    Label maps and OME-Zarr keep their labels, holes and overlaps are as in `export.read_geojson`. In OME-Zarr, the
    label image is the array itself, a multiscale image (the largest level is read), or the only one in the group
    `labels`. Chunks that are missing in OME-Zarr are background, because the format leaves out empty chunks.

    Parameters
    ----------
    shape : tuple of int or None
        (height, width) of the image. None accepts a label map or OME-Zarr of any size; outlines need the size.

    Returns
    -------
    int32 array (H, W)

    Raises
    ------
    NucleiError
        If the file is missing, damaged or has another size, or an outline is open.

    Examples
    --------
    >>> from nuclei_utils import export
    >>> export.write_geojson("nuclei.geojson", np.array([[0, 7, 7]]))
    >>> read_labels("nuclei.geojson", (1, 3))
    array([[0, 7, 7]], dtype=int32)
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith((".geojson", ".geojson.gz")) or (name.endswith(".zip") and _holds_geojson(path)):
        return read_geojson(path, shape)
    if name.endswith((".zip", ".roi")):
        return read_imagej_rois(path, shape)
    label_map = _read_zarr(path) if name.endswith(".zarr") else read_label_map(path)
    if shape is not None and label_map.shape != tuple(shape):
        raise NucleiError(f"{path}: found (height, width) {label_map.shape}, expected {tuple(shape)} as in the image")
    return label_map


def _holds_geojson(path):
    try:
        with zipfile.ZipFile(path) as archive:
            endings = {Path(name).suffix.lower() for name in archive.namelist()}
        return ".roi" not in endings and not endings.isdisjoint({".geojson", ".json"})
    except (OSError, ValueError, zipfile.BadZipFile):
        return False  # `read_imagej_rois` says what is wrong


def _read_zarr(path):
    try:
        zarr = import_zarr("OME-Zarr")
    except Refusal as error:
        advice = "install zarr 3 with pip install 'nuclei-utils[large]', or save the labels as TIFF"
        raise NucleiError(f"{path}: the package zarr is missing, which reads OME-Zarr: {advice}") from error
    try:
        array = _label_array(zarr.open(path, mode="r"), path)
        if np.prod(array.shape, dtype=object) > MAX_PIXELS:
            raise NucleiError(f"{path}: found {array.shape}, more than the limit of {MAX_PIXELS:,} pixels: cut it")
        pixels = np.asarray(array[:])
    except NucleiError:
        raise
    except Exception as error:  # damaged metadata can raise any error
        raise NucleiError(f"{path} cannot be read as OME-Zarr ({first_line(error)}): export it again") from error
    while pixels.ndim > 2 and len(pixels) == 1:  # an axis of time, channels or planes
        pixels = pixels[0]
    return to_label_map(pixels, path)


def _label_array(node, path):
    """Return the array of labels of a Zarr array or group."""
    if not hasattr(node, "attrs") or hasattr(node, "shape"):
        return node
    metadata = ome_metadata(node)
    if "multiscales" in metadata and "labels" not in node:
        return node[metadata["multiscales"][0]["datasets"][0]["path"]]
    labels = node.get("labels", node)
    names = ome_metadata(labels).get("labels", [])
    if len(names) != 1:
        found = f"found {len(names)} label images{': ' if names else ''}{', '.join(names)}"
        raise NucleiError(f"{path}: {found}, expected an OME-Zarr label image: keep one, or export the labels again")
    return _label_array(labels[names[0]], path)
