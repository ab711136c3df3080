"""Find the nuclei in images from the shell: label maps, pictures and tables, one image after the other."""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import pandas as pd
from PIL import Image
from tqdm import tqdm

from nuclei_utils import data, export, models, predict  # noqa: F401 - a file may hold the classes of `models`
from nuclei_utils.data import DataError

TRUSTED = 0.5
"""Agreement (`predict.agreement`) below which an image is said not to be trusted."""
LARGE = 2048
"""Height or width, pixels, above which an image has a progress bar of its own."""


class Result(NamedTuple):
    """What was found in one image, but for its pixels."""

    table: pd.DataFrame
    submission: pd.DataFrame
    agreement: float


def run(arguments):
    """Predict as the options say.

    Parameters
    ----------
    arguments : argparse.Namespace
        `images`, `out`, `model`, `pixel_size`, `format`, `views`.

    Returns
    -------
    int
        0, or 1 where an image could not be read or written.

    Raises
    ------
    data.DataError
        If two images have one name, an image would be overwritten, or the model cannot be loaded.
    """
    Image.MAX_IMAGE_PIXELS = None  # a guard against pictures from strangers; whole slides are larger
    paths, empty = _images(arguments.images)
    _check_names(paths, arguments)
    for folder in empty:
        _complain(f"{folder} holds no image: expected PNG, JPEG, TIFF or BMP, or <id>/images/<id>.png")
    if not paths:
        return 1
    model = load_model(arguments.model) if arguments.model else predict.default_model()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results, broken = {}, 0
    try:
        # disable=None: no bar where nobody watches
        for path in tqdm(paths, "finding nuclei", unit="image", disable=None if len(paths) > 1 else True):
            try:
                result = _one(path, model, arguments)
            except (DataError, OSError) as error:
                broken += 1
                _complain(error)
                continue
            results[path.stem] = result
            _report(path.stem, result)
    finally:  # interrupted, too: what is done is kept
        _write_tables(results, arguments.out)
    nuclei = sum(len(result.table) for result in results.values())
    print(f"{len(results)} of {len(paths)} images, {nuclei:,} nuclei: {arguments.out}")
    return 1 if broken or empty else 0


def load_model(path):
    """Load a model file that may come from anywhere: in Keras' safe mode, which runs no code from the file.

    Parameters
    ----------
    path : path-like
        A `.keras` file. Older formats have no safe mode.

    Returns
    -------
    keras.Model
        Not compiled.

    Raises
    ------
    data.DataError
        If the file is missing or broken, holds code, or a network that makes something else of images.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is missing: name a model, such as `nuclei-utils train` writes")
    if path.suffix != ".keras":
        raise DataError(f"{path}: found a {path.suffix or 'nameless'} file, expected .keras, which has a safe mode")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a broken byte can trip it anywhere, and code is refused by a ValueError like any other
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{path} cannot be loaded as a Keras model, in safe mode: {reason}") from error
    shapes = [tensor.shape for tensor in getattr(model, "inputs", None) or []]
    outputs = [tensor.shape for tensor in getattr(model, "outputs", None) or []]
    fits = len(shapes) == 1 and all(len(shape) == 4 for shape in (*shapes, *outputs))
    if not fits or shapes[0][-1] != 3 or any(shape[-1] != 1 for shape in outputs):
        raise DataError(
            f"{path}: found a network from {shapes} to {outputs}, expected one from colour images, "
            "[(None, None, None, 3)], to one value for each pixel, [(None, None, None, 1)]"
        )
    if isinstance(model.output, dict) and "mask" not in model.output:
        raise DataError(f'{path}: found outputs named {sorted(model.output)}, expected "mask" among them')
    return model


def _images(given):
    """Return the image files that the words of the command line mean, each once, and the folders that hold none."""
    paths, empty = {}, []
    for place in given:
        found = _in_folder(place) if place.is_dir() else [place]
        if not found:
            empty.append(place)
        for path in found:
            paths.setdefault(path.resolve(), path)
    return list(paths.values()), empty


def _in_folder(folder):
    """Return the images of a folder, or those of the competition's layout below it."""
    below = (place for place in sorted(folder.glob("*/images")) if place.is_dir())
    return data.images_in(folder) or [file for place in below for file in data.images_in(place)]


def _check_names(paths, arguments):
    """Refuse what would be overwritten, before any work."""
    for place in arguments.images:
        if place.is_dir() and place.resolve() == arguments.out.resolve():
            raise DataError(
                f"{place} is to be read and written: name another folder with --out, so that results are not "
                "taken for images the next time"
            )
    names = {}
    inputs = {path.resolve() for path in paths}
    for path in paths:
        # names that differ in case alone are one on Windows and macOS
        other = names.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise DataError(f"{other} and {path} would give results of one name: rename one, or predict one at a time")
        for file in _files(path.stem, arguments.out):
            if file.resolve() in inputs:
                raise DataError(
                    f"{file} is one of the images, and would be overwritten: name another folder with --out"
                )


def _files(name, out):
    return [out / f"{name}_{what}" for what in ("labels.png", "labels.tif", "mask.png", "overlay.png")]


def _one(path, model, arguments):
    """Find the nuclei of one image, and write its files."""
    name = path.stem
    labels_png, labels_tif, mask_file, overlay_file = _files(name, arguments.out)
    image = data.read_image(path)
    # a bar of its own where one image takes long, and somebody watches
    progress = sys.stderr.isatty() and max(image.shape) > LARGE
    labels = predict.labels(model, image, views=arguments.views, progress=progress)
    agreement = predict.agreement(model, image, labels, views=arguments.views)
    few = labels.max(initial=0) <= export.HIGHEST_IN_16_BITS
    export.write_labels(labels_png if few else labels_tif, labels)
    # what an earlier run left would be another answer to the same question
    (labels_tif if few else labels_png).unlink(missing_ok=True)
    export.write_mask(mask_file, labels)
    export.write_overlay(overlay_file, image, labels)
    for other in ("geojson", "rois"):
        if other not in arguments.format:
            _outlines(name, other, arguments.out).unlink(missing_ok=True)
    if "geojson" in arguments.format:
        export.write_geojson(_outlines(name, "geojson", arguments.out), labels)
    if "rois" in arguments.format:
        _write_rois(_outlines(name, "rois", arguments.out), labels)
    table = export.nuclei_table(image, labels, name, arguments.pixel_size)
    return Result(table, export.submission({name: labels}), agreement)


def _outlines(name, kind, out):
    return out / {"geojson": f"{name}.geojson", "rois": f"{name}_rois.zip"}[kind]


def _write_rois(path, labels):
    if max(labels.shape) > export.WIDEST_FOR_IMAGEJ:
        raise DataError(f"{path} cannot hold an image of {labels.shape} pixels: write --format geojson, or cut it")
    export.write_rois(path, labels)


def _report(name, result):
    agreement = "" if math.isnan(result.agreement) else f"  agreement {result.agreement:.2f}"
    tqdm.write(f"{name}  {len(result.table):,} nuclei{agreement}", file=sys.stdout)
    if math.isnan(result.agreement):
        _complain(f"{name}: no nucleus was found; if there are some, do not trust this result")
    elif result.agreement < TRUSTED:
        _complain(
            f"{name}: do not trust this result. Mirrored and made smaller, the image gives other nuclei (agreement "
            f"{result.agreement:.2f}, below {TRUSTED}): it may be unlike what the network was trained on"
        )


def _complain(message):
    tqdm.write(f"nuclei-utils predict: {message}", file=sys.stderr)


def _write_tables(results, out):
    """Write the tables of all images, if any was read."""
    if not results:
        return
    export.write_table(out / "nuclei.csv", _joined([result.table for result in results.values()]))
    export.write_submission(out / "submission.csv", _joined([result.submission for result in results.values()]))


def _joined(tables):
    # an empty table has columns, but they have no type of their own
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
