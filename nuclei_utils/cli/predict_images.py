"""Work on the images of the command `predict`, in its process or on Dask workers; this is not a command.

The functions write into a work folder within the folder of results. The command moves the files from there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nuclei_utils as nu
from nuclei_utils.cli import results
from nuclei_utils.errors import NucleiError, first_line
from nuclei_utils.files import atomic_write, printable_name

if TYPE_CHECKING:
    from nuclei_utils.slides import Job, Slide


_NOTE = "made_from.json"  # of a slide: the file and the options from which its finished blocks were made
_GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")  # of the drivers of NVIDIA and AMD, and of the Windows Subsystem for Linux


class Network(NamedTuple):
    """The network that finds the nuclei."""

    path: Path | None  # file of the user; None for the included network
    precision: str | None  # of the included network
    digest: str  # SHA-256 of the file


class Options(NamedTuple):
    """The options of the command that the work on an image needs."""

    work: Path  # folder for files that are not finished
    network: Network
    planes: dict[str, Any]  # options of `microscopy.read_planes`
    max_pixels: int | None
    slide_pixels: int
    pixel_size: float | None
    block: int
    formats: list[str]
    diameter: tuple[float, str] | None  # with its unit, "pixels" or "um"
    tta: int
    segmentation: dict[str, float]  # options of `segmentation.maps_to_labels`
    progress: bool = False  # of a single large image


class Found(NamedTuple):
    """The nuclei of an image, whose files are in the work folder."""

    columns: list[str]
    rows: Iterable[bytes]  # of nuclei.csv, without its header
    codes: Iterable[bytes]  # the rows of submission.csv
    count: int
    consistency: float
    diameter: float  # median of the nuclei, pixels; NaN for a slide and without nuclei
    shape: tuple[int, int]  # height and width
    pixel_size: float | None
    pixel_size_source: str
    files: dict[str, Path]


def columns_of(channels: list[str]) -> list[str]:
    """Return the columns of nuclei.csv for images with these channels."""
    import numpy as np

    empty = np.zeros((1, 1), np.int32)
    table = nu.export.measure_nuclei(dict.fromkeys(channels, empty), empty, "")
    return [*table.columns, "pixel_size", "pixel_size_source"]


def find_nuclei(path: Path, options: Options) -> Found | Slide:
    """Find and measure the nuclei of an image, and write its files. A slide is returned as it is."""
    import cv2

    try:
        slide = nu.slides.find_slide(path, options.slide_pixels, **options.planes, pixel_size=options.pixel_size)
        return _find_nuclei(path, options) if slide is None else slide
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        raise NucleiError(
            f"{path} does not fit into memory ({first_line(error)}): cut the image into pieces"
        ) from error


def _find_nuclei(path, options):
    limit = options.max_pixels or nu.io.MAX_PIXELS
    planes = nu.microscopy.read_planes(path, **options.planes, pixel_size=options.pixel_size, max_pixels=limit)
    image = nu.io.to_rgb8(planes.image)
    if "rois" in options.formats and max(image.shape) > nu.export.WIDEST_FOR_IMAGEJ:
        raise NucleiError(
            f"{path}: the image of {image.shape[:2]} (height, width) is too large for the ROIs of ImageJ, whose limit "
            f"is {nu.export.WIDEST_FOR_IMAGEJ} pixels: use --format geojson, or cut the image"
        )
    diameter = _in_pixels(path, options.diameter, planes.pixel_size)
    prediction = {"n_tta": options.tta, "block": options.block, "diameter": diameter, **options.segmentation}
    model = load(options.network)
    progress = options.progress and max(image.shape) > 2048
    try:
        label_map = nu.predict.predict_labels(model, image, progress=progress, **prediction)
        consistency = nu.predict.tta_consistency(model, image, label_map, **prediction)
    except NucleiError as error:
        raise NucleiError(f"{path}: {error}") from error
    name = printable_name(path.stem)
    table = nu.export.measure_nuclei(planes.channels, label_map, name, planes.pixel_size)
    table = table.assign(pixel_size=planes.pixel_size, pixel_size_source=planes.pixel_size_source)
    rows, codes = (
        [nu.export.csv_bytes(part, header=False)] for part in (table, nu.export.submission_table({name: label_map}))
    )
    folder = options.work / "images" / path.stem
    shutil.rmtree(folder, ignore_errors=True)  # a killed worker may have left files
    files = results.write_results(folder, path.stem, image, label_map, options.formats)
    return Found(
        columns=list(table.columns),
        rows=rows,
        codes=codes,
        count=len(table),
        consistency=consistency,
        diameter=nu.predict.median_diameter(label_map),
        shape=label_map.shape,
        pixel_size=planes.pixel_size,
        pixel_size_source=planes.pixel_size_source,
        files=files,
    )


def _in_pixels(path, diameter, pixel_size):
    if diameter is None:
        return None
    length, unit = diameter
    if unit == "pixels":
        return length
    if pixel_size is None:
        raise NucleiError(
            f"{path} has no pixel size, which a --diameter in micrometres needs: add --pixel-size, or give pixels"
        )
    return length / pixel_size


def prepare_slide(slide: Slide, options: Options, settings: dict) -> Job:
    """Return the job of a slide. Blocks that were made from another file or with other options are removed."""
    if options.formats:
        raise NucleiError(
            f"{slide.path} is a slide, for which no outlines are written: leave out --format, and open the label image "
            "in QuPath or napari; or raise --slide-pixels, if the image fits into memory"
        )
    if options.diameter is not None:
        raise NucleiError(
            f"{slide.path} is a slide, which is not resized: leave out --diameter, and choose a --level; or raise "
            "--slide-pixels, if the image fits into memory"
        )
    if options.max_pixels is not None and slide.shape[0] * slide.shape[1] > options.max_pixels:
        raise NucleiError(
            f"{slide.path}: found {slide.shape[0]} x {slide.shape[1]} pixels, more than the limit of "
            f"{options.max_pixels:,}: raise --max-pixels"
        )
    folder = options.work / "slides" / slide.path.stem
    # a folder of OME-Zarr keeps its own time when its chunks change
    files = [path.stat() for path in ([slide.path] if slide.path.is_file() else slide.path.rglob("*"))]
    made_from = {"size": sum(file.st_size for file in files), "changed": max(file.st_mtime_ns for file in files)}
    made_from |= {"version": nu.__version__, "context": nu.predict.CONTEXT, **settings}
    made_from = json.dumps(made_from, indent=1)
    note = folder / _NOTE
    if folder.exists() and not (note.exists() and note.read_text(encoding="utf-8") == made_from):
        shutil.rmtree(folder)
    if not note.exists():
        with atomic_write(note) as partial_path:
            partial_path.write_text(made_from, encoding="utf-8")
    load_model = partial(load, options.network)
    name = printable_name(slide.path.stem)
    return nu.slides.Job(slide, folder, load_model, name, options.tta, options.segmentation, options.block)


def remove_unused(folder: Path) -> None:
    """Remove the work folders of slides that have no note: these are never used again."""
    for path in folder.iterdir() if folder.exists() else ():
        if not (path / _NOTE).exists():
            shutil.rmtree(path)


def remove_finished(job: Job) -> None:
    """Remove the work folder of a finished slide. A killed process leaves a folder without a note."""
    (job.folder / _NOTE).unlink()
    shutil.rmtree(job.folder)


# The network: each worker loads it once

_lock = threading.Lock()


def default_precision() -> str:
    """Return the precision of the included network that suits this machine."""
    if any(next(Path("/dev").glob(pattern), None) for pattern in _GPU_FILES):  # otherwise, do not load TensorFlow
        with contextlib.suppress(NucleiError):
            nu.devices.find_devices("gpu")
            return "float32"
    return "int8"


def load(network: Network) -> Any:
    """Return a network. The last network is kept."""
    with _lock:
        return _load(network)


def check_network(network: Network) -> None:
    """Load a network anew. `NucleiError` says what is wrong with the file of a user."""
    _load.cache_clear()
    load(network)


@lru_cache(maxsize=1)
def _load(network):
    if network.path:
        return _load_file(network.path)
    if network.precision == "int8":
        return nu.exported.included_network()
    return _freeze(nu.models.included_network())


def _freeze(model):
    import keras

    return nu.deploy.freeze(model) if keras.backend.backend() == "tensorflow" else model


def _load_file(path):
    """Load a network, and test it on a small random image."""
    import numpy as np

    is_exported = path.suffix in nu.exported.SUFFIXES
    if not is_exported:
        model = nu.saving.load_model(path)
        _check_network(model, path)
        model = _freeze(model)
    try:
        if is_exported:
            model = nu.exported.load(path)
        maps = nu.predict.predict_maps(model, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    except Exception as error:  # the layers of an unknown network can fail in any way
        raise NucleiError(f"{path} cannot be used: {first_line(error)}") from error
    if "mask" not in maps:
        raise NucleiError(f'{path}: found outputs with the names {sorted(maps)}, expected "mask" among them')
    return model


def _check_network(model, path):
    """Refuse a network with the wrong inputs or outputs."""
    inputs = [tensor.shape for tensor in getattr(model, "inputs", None) or []]
    outputs = [tensor.shape for tensor in getattr(model, "outputs", None) or []]
    is_network = len(inputs) == 1 and all(len(shape) == 4 for shape in (*inputs, *outputs))
    if not is_network or inputs[0][-1] != 3 or any(shape[-1] != 1 for shape in outputs):
        raise NucleiError(
            f"{path}: found a network from {inputs} to {outputs}, expected a network from colour images, "
            "[(None, None, None, 3)], to one value for each pixel, [(None, None, None, 1)]"
        )
