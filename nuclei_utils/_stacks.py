"""Open the files of microscopes: which axes, channels and pixel size they have, and how a part of them is read.

TIFF files (stacks, ImageJ hyperstacks, OME-TIFF) are read by tifffile, OME-Zarr by zarr, CZI, ND2 and LIF by bioio. The
last two packages are optional. All other files go through `io.read_raw`. One image of a file and one level of a pyramid
are read.
"""

import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile

from nuclei_utils import io
from nuclei_utils._decode import Refusal, check_pages, check_strips, decode_page, missing_decoder, named_errors

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the first bytes
_ZARR_FILES = ("zarr.json", ".zattrs", ".zgroup")  # in the folder of a Zarr group
_SVS = ".svs"  # slides of Aperio, TIFF files that are mostly compressed as JPEG
_FORMATS_EXTRA = 'pip install "nuclei-utils[formats]"'
_BIOIO_READERS = {  # by ending: how to install the reader
    ".czi": "pip install bioio bioio-czi (its licence is the GPL, therefore no extra of this package installs it)",
    ".lif": _FORMATS_EXTRA,
    ".nd2": _FORMATS_EXTRA,
}
_GLASS = {"label", "macro", "macro mask", "overview", "thumbnail"}  # names of pictures of the glass beside a slide
_LISTED = 10  # images that a message names
_GREY, _RGB, _PALETTE, _YCBCR = 1, 2, 3, 6  # values of the TIFF tag "photometric"
_YCBCR_JPEG_2000 = 33003  # compression of Aperio: the pixels are YCbCr, but the file and tifffile take them for RGB
_MICROMETRES = {
    **dict.fromkeys(("pm", "picometer"), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("μm", "um", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("m", "meter"), 1e6),
}
_PRINT_UNITS = ("cm", "inch")  # ImageJ takes them over from the resolution for printing


class Stack(NamedTuple):
    """An open image file."""

    axes: str  # letters T, C, Z, Y, X and S (red, green and blue, or one grey value); others are unknown
    shape: tuple[int, ...]
    dtype: np.dtype
    names: list[str | None]  # of the channels; empty if the file has no names
    pixel_size: tuple[float | None, float | None]  # width and height in micrometres
    read: Callable[[tuple[int | slice, ...]], np.ndarray]  # one index for each axis -> pixels of the axes with slices
    in_parts: bool = False  # whether `read` reads a part of a plane without reading the plane


def is_zarr(path: Path) -> bool:
    """Return whether a folder is an OME-Zarr image, judged by its name and files."""
    return path.is_dir() and (path.suffix.lower() == ".zarr" or any((path / name).exists() for name in _ZARR_FILES))


def is_of_microscope(path: Path) -> bool:
    """Return whether a path is an image that `datasets.list_images` does not list."""
    return is_zarr(path) or (path.suffix.lower() in (*_BIOIO_READERS, _SVS) and path.is_file())


@contextmanager
def open_stack(
    path: Path, max_pixels: int, in_parts: bool = False, level: int = 0, scene: int | None = None
) -> Iterator[Stack]:
    """Open an image file. The pixels of a plane can be read until the end of the block.

    Errors within the block become `NucleiError` with the file's name. `in_parts` opens a TIFF file so that parts of a
    plane can be read, if the file allows it. `level` is a level of a pyramid; other files have only the level 0.
    `scene` is the index of an image; a file with several needs it.
    """
    with named_errors(path, "a microscopy image"):
        if path.is_dir():
            stack = _open_zarr(path, level)
            _choose_scene(scene, [path.name])
            yield stack
        elif path.suffix.lower() in _BIOIO_READERS and path.is_file():
            stack = _open_by_bioio(path, scene)
            _check_level(level, 1, lambda _: stack.shape, stack.axes)
            yield stack
        elif not _is_tiff(path):
            stack = _plain_image(path, max_pixels)
            _choose_scene(scene, [path.name])
            _check_level(level, 1, lambda _: stack.shape, stack.axes)
            yield stack
        else:
            with (
                path.open("rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
                # files that the description names are not opened
                tifffile.TiffFile(opened, name=path.name, _multifile=False) as file,
            ):
                yield _open_tiff(file, content, path, max_pixels, in_parts, level, scene)


def can_be_slide(path: Path) -> bool:
    """Return whether the format of a file can be read in parts."""
    return is_zarr(path) or _is_tiff(path)


def _is_tiff(path):
    if not path.is_file():  # a pipe, for example: reading it might never end
        return False
    with path.open("rb") as file:
        return file.read(4) in _TIFF


def _plain_image(path, max_pixels, pixel_size=(None, None), names=()):
    raw = io.read_raw(path, max_pixels)
    return Stack("YXS", raw.shape, raw.dtype, list(names), pixel_size, lambda index: raw[index])


def _choose_scene(scene, names):
    """Return the index of the chosen image of a file. `names` holds the name or the size of each image."""
    n_images = len(names)
    if scene is None and n_images == 1:
        return 0
    if scene is None or not 0 <= scene < n_images:
        listing = ", ".join(f"{number}: {name}" for number, name in enumerate(names[:_LISTED]))
        more = f" and {n_images - _LISTED} more" if n_images > _LISTED else ""
        wrong = "" if scene is None else f", and no image {scene}"
        raise Refusal(
            f"found {n_images} image{'s' * (n_images != 1)} ({listing}{more}){wrong}: choose the index of one with "
            "--scene"
        )
    return scene


def _check_level(level, n_levels, read_shape, axes):
    """Refuse a level that does not exist. `read_shape` returns the shape of a level."""
    if 0 <= level < n_levels:
        return
    shapes = map(read_shape, range(n_levels))
    sizes = (" x ".join(str(shape[axes.index(axis)]) for axis in "YX") for shape in shapes)
    listing = ", ".join(f"{number}: {size}" for number, size in enumerate(sizes))
    raise Refusal(
        f"found {n_levels} level{'s' * (n_levels > 1)} (height x width {listing}), expected one of them instead of "
        f"{level}: choose with --level"
    )


def _to_micrometres(size, unit):
    """Return a size in micrometres, or None if the size or its unit is not known."""
    factor = _MICROMETRES.get((unit or "").replace("\\u00B5", "µ").casefold())
    try:
        size = float(size)
    except (TypeError, ValueError):
        return None
    return size * factor if factor and 0 < size < np.inf else None


# TIFF


def _open_tiff(file, content, path, max_pixels, in_parts, level, scene):
    check_pages(file, content)
    description = ElementTree.fromstring(file.ome_metadata) if file.is_ome else None
    if description is not None:
        _check_description(description)
    series = _choose_series(file.series, scene)
    _check_level(level, len(series.levels), lambda number: series.levels[number].shape, series.axes)
    if (file.imagej_metadata or {}).get("images", 1) > 1 and series.kind != "imagej":
        raise ValueError("the file is cut short")
    if description is not None:
        names, pixel_size = _describe_by_ome(description, file.series, series)
    elif series.kind == "svs":
        names, pixel_size = [], _aperio_pixel_size(file.pages[0].description)
    else:
        names, pixel_size = [], _imagej_pixel_size(file)
    if level:
        largest, series = series, series.levels[level]
        ratio = largest.shape[largest.axes.index("X")] / series.shape[series.axes.index("X")]
        pixel_size = tuple(size and size * ratio for size in pixel_size)
    page = series.keyframe
    if page.compression == _YCBCR_JPEG_2000:
        raise Refusal("found JPEG 2000 in the colours YCbCr, which would be misread: convert the file to OME-TIFF")
    axes, is_colour = series.axes, page.photometric in (_RGB, _YCBCR)
    is_alpha = axes[-1] == "S" and series.shape[-1] == 2 and page.extrasamples
    if "S" in axes and "C" not in axes and page.photometric < _RGB and not is_alpha:
        axes = axes.replace("S", "C")  # channels that are stored as samples of one page
    in_parts = in_parts and page.photometric in (_GREY, _RGB, _YCBCR) and page.dtype != bool
    in_parts = in_parts and page.tags.valueof("Orientation", 1) == 1
    is_plain = len(file.pages) == 1 and axes in ("YX", "YXS", "SYX") and page.dtype in (np.uint8, np.uint16, bool)
    if is_plain and not in_parts and level == 0:
        return _plain_image(path, max_pixels, pixel_size, names)
    if page.photometric > _RGB and not is_colour and not (page.photometric == _PALETTE and file.is_imagej):
        raise Refusal(f"found a stack of the type {page.photometric.name}, expected grey or RGB: convert the file")
    read = (_tiff_part_reader if in_parts else _tiff_reader)(series, content, path)
    return Stack(axes, series.shape, series.dtype, names, pixel_size, read, in_parts)


def _choose_series(found, scene):
    """Return the chosen image of a TIFF file. Pictures of the glass are left out if there are other images."""
    names = [(series.name or "").casefold().removesuffix("image").strip() for series in found]
    images = [series for series, name in zip(found, names, strict=True) if name not in _GLASS] or found
    chosen = images[_choose_scene(scene, [series.name or " x ".join(map(str, series.shape)) for series in images])]
    if chosen.kind == "bif":
        raise Refusal("found a slide of Ventana, whose tiles overlap: convert it to OME-TIFF")
    return chosen


def _check_description(description):
    files = {element.get("FileName") for element in description.iterfind(".//{*}TiffData/{*}UUID")} - {None}
    if len(files) > 1:
        raise Refusal(f"the planes are in {len(files)} files: save them as one OME-TIFF file")


def _describe_by_ome(description, found, series):
    """Return the names of the channels and the pixel size."""
    images = description.findall("{*}Image/{*}Pixels")
    if not images or len(images) != len(found):
        raise ValueError(f"the OME description holds {len(images)} images, and the file {len(found)}")
    pixels = images[found.index(series)]
    size = (_to_micrometres(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit", "µm")) for a in "XY")
    return [channel.get("Name") for channel in pixels.iterfind("{*}Channel")], tuple(size)


def _aperio_pixel_size(description):
    """Return the pixel size of an Aperio slide, "... |MPP = 0.25|..."."""
    size = re.search(r"\|\s*MPP\s*=\s*([^|]+)", description)
    return (_to_micrometres(size and size[1].replace(",", "."), "um"),) * 2


def _imagej_pixel_size(file):
    """Return the pixel size of ImageJ. Other TIFF files have none."""
    metadata = file.imagej_metadata or {}
    size, unit = [], metadata.get("unit", "")
    for name in ("XResolution", "YResolution"):
        numerator, denominator = file.pages[0].tags.valueof(name, (0, 0))  # pixels per unit
        size.append(_to_micrometres(denominator / numerator, unit) if numerator and unit not in _PRINT_UNITS else None)
    return tuple(size)


def _map_pixels(series, path):
    """Return a function that reads pixels without compression that follow each other in the file."""
    dtype = series.dtype.newbyteorder(series.keyframe.parent.byteorder)
    array = np.memmap(path, dtype, "r", series.dataoffset, series.shape)
    return lambda index: np.array(array[index])


def _tiff_reader(series, content, path):
    """Return a function that reads planes, and only the pages that hold them."""
    if series.is_truncated:  # the file lists one page, and the others follow without a list
        return _map_pixels(series, path)
    shape, n_pages = series.shape, len(series.pages)
    n_leading = next((n for n in range(len(shape)) if prod(shape[:n]) == n_pages), None)
    if n_leading is None:
        raise Refusal(f"found {n_pages} pages for an image of {shape}: export the file again")

    def read(index):
        number = sum(part * prod(shape[i + 1 : n_leading]) for i, part in enumerate(index[:n_leading]))
        if (page := series.pages[number]) is None:
            raise Refusal(f"the page of the plane {index[:n_leading]} is missing: export the file again")
        return decode_page(page, content).reshape(shape[n_leading:])[index[n_leading:]]

    return read


def _tiff_part_reader(series, content, path):
    """Return a function that reads parts of planes, and only the tiles or strips that hold them."""
    if series.dataoffset is not None:
        return _map_pixels(series, path)
    for page in series.pages:
        if page is None:
            raise Refusal("a plane is missing: export the file again")
        check_strips(page, len(content))

    @cache
    def array():
        zarr = import_zarr("a compressed TIFF file that is read in blocks", is_tiff=True)
        return zarr.open_array(series.aszarr(level=0), mode="r")

    def read(index):
        try:
            return np.asarray(array()[index])
        except ValueError as error:
            raise (missing_decoder(series.keyframe) if "imagecodecs" in str(error) else error) from None

    return read


# OME-Zarr


def import_zarr(what: str, is_tiff: bool = False):
    """Import zarr 3, which is optional. `what` needs the package. TIFF files need a newer tifffile, too."""
    try:
        import zarr
    except ImportError:
        zarr = None
    is_old = is_tiff and find_spec("tifffile.zarr") is None  # before 2025.5.21, zarr 3 cannot read through tifffile
    if zarr is None or zarr.__version__.startswith("2.") or is_old:
        raise Refusal(f'{what} needs zarr 3{" and a newer tifffile" * is_old}: pip install "nuclei-utils[large]"')
    return zarr


def ome_metadata(node) -> dict:
    """Return the OME metadata of a Zarr group, of version 0.5 or older."""
    return node.attrs.get("ome", node.attrs)


def _open_zarr(path, level):
    if not is_zarr(path):
        raise Refusal("found a folder, expected an image file or OME-Zarr: name the files in it")
    zarr = import_zarr("OME-Zarr")
    try:
        group = zarr.open_group(path, mode="r")
    except Exception as error:
        raise Refusal(
            f"no Zarr group can be opened ({error}): expected OME-Zarr 0.4 or 0.5; export it again"
        ) from error
    ome = ome_metadata(group)
    if not ome.get("multiscales"):
        part = next((f"{path.name}/{name}" for name in ("0", "A/1/0") if is_zarr(path / name)), None)
        advice = f"name an image in it, such as {part}" if part else "export the image as OME-Zarr"
        raise Refusal(f"found Zarr without the description of an image (multiscales): {advice}")
    multiscale = ome["multiscales"][0]
    axes = multiscale.get("axes", [])
    if not axes or not all(isinstance(axis, dict) for axis in axes):
        raise Refusal(f"found OME-Zarr {multiscale.get('version', '')}, expected 0.4 or 0.5: export it again")
    names = [axis["name"].upper() for axis in axes]
    datasets = multiscale["datasets"]  # the largest level is first
    _check_level(level, len(datasets), lambda number: group[datasets[number]["path"]].shape, names)
    dataset = datasets[level]
    array = group[dataset["path"]]
    scales = dict.fromkeys(names, 1.0)
    for described in (multiscale, dataset):
        for transformation in described.get("coordinateTransformations", []):
            for name, scale in zip(names, transformation.get("scale", []), strict=False):
                scales[name] *= scale
    units = {name: axis.get("unit") for name, axis in zip(names, axes, strict=True)}
    letters = "".join(name if name in ("T", "C", "Z", "Y", "X") else "Q" for name in names)
    return Stack(
        letters,
        array.shape,
        array.dtype,
        [channel.get("label") for channel in ome.get("omero", {}).get("channels", [])],
        tuple(_to_micrometres(scales.get(name), units.get(name)) for name in "XY"),
        lambda index: np.asarray(array[index]),
        True,
    )


# CZI, ND2, LIF


def _open_by_bioio(path, scene):
    missing = Refusal(f"{path.suffix} files need a reader: {_BIOIO_READERS[path.suffix.lower()]}")
    try:
        from bioio import BioImage
        from bioio_base.exceptions import UnsupportedFileFormatError
    except ImportError:
        raise missing from None
    try:
        image = BioImage(path)
    except UnsupportedFileFormatError:
        raise missing from None
    if path.suffix.lower() == ".czi":  # bioio counts the descriptions of the images: without them, it reads the first
        n_images = int(image.metadata.findtext(".//Image/SizeS", "1"))
        if n_images > 1 and image.metadata.find(".//S/Scenes/Scene") is None:
            raise Refusal(f"found {n_images} images without descriptions: convert the file to OME-TIFF")
    image.set_scene(_choose_scene(scene, image.scenes))
    size = image.physical_pixel_sizes
    return Stack(
        image.dims.order,
        image.shape,
        image.dtype,
        list(image.channel_names or []),
        (_to_micrometres(size.X, "um"), _to_micrometres(size.Y, "um")),
        lambda index: image.dask_data[index].compute(),  # `image.data` would read the whole file
    )
