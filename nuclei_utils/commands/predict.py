"""Find the nuclei in images from the shell: label maps, pictures and tables, one image after the other."""

import contextlib
import errno
import hashlib
import json
import math
import os
import sys
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from nuclei_utils import datasets, export, io, predict, saving
from nuclei_utils.commands.tables import Tables, names_in_tables
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, file_lock, printable_name, remove_partial_files

TRUSTED = 0.5
"""Agreement (`predict.tta_consistency`) below which an image is said not to be trusted."""
LARGE = 2048
"""Height or width, pixels, above which an image has a progress bar of its own."""
SETTINGS = "predict_settings.json"
"""The file in the folder of results that says with which options they were made."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""Errors of writing that will happen with each further image: the run stops."""
LISTED = 5
"""Files that a message lists; of more files it gives the number."""


class Result(NamedTuple):
    """What is reported of one image."""

    nuclei: int
    agreement: float


class Plan(NamedTuple):
    """What is there of the images of this run before the run begins, by the name of the image.

    Attributes
    ----------
    measured : dict of str to int
        Images with rows in the tables that stay, and their numbers of nuclei.
    finished : set of str
        Those of them that have all files as well: they are skipped.
    outdated : set of str
        Names in the tables of which the rows go, because the results are replaced.
    others : set of str
        Names in the tables of which the rows stay: those of other images among them.
    """

    measured: dict
    finished: set
    outdated: set
    others: set


def run(arguments):
    """Predict as the options say.

    Parameters
    ----------
    arguments : argparse.Namespace
        `images`, `out`, `model`, `pixel_size`, `format`, `n_tta`, `max_pixels`, `resume`, `replace`.

    Returns
    -------
    int
        0, or 1 if an image could not be read or written.

    Raises
    ------
    errors.NucleiError
        If two images have the same name, a file would be overwritten, or the model cannot be loaded or used.
    OSError
        If no results can be written at all. The error names the file.
    """
    paths, empty = _images(arguments.images)
    _check_names(paths, arguments)
    for folder in empty:
        _complain(f"{folder} holds no image: expected PNG, JPEG, TIFF or BMP, or <id>/images/<id>.png")
    if not paths:
        return 1
    out = arguments.out
    busy = f"another `nuclei-utils predict` is writing into {out}: wait for its end, or name another folder with --out"
    with file_lock(out / ".predict.lock", busy):
        tables = Tables(out, _columns(arguments.pixel_size))
        plan = _plan(paths, tables, arguments)
        model = _network(arguments.model)
        settings = _settings(arguments)
        if plan.others:
            _check_settings(out, settings)
        tables.drop(plan.outdated)
        _write_settings(out, settings)
        broken = _predict_all(paths, model, tables, plan, arguments)
    return 1 if broken or empty else 0


def _predict_all(paths, model, tables, plan, arguments):
    """Predict the images that are not finished; return how many could not be read or written."""
    if plan.finished:
        print(f"{len(plan.finished)} of {len(paths)} images were finished before")
    nuclei = sum(plan.measured[name] for name in plan.finished)
    done, broken = len(plan.finished), 0
    left = [path for path in paths if path.stem not in plan.finished]
    # disable=None: no bar where nobody watches
    for path in tqdm(left, "finding nuclei", unit="image", disable=None if len(left) > 1 else True):
        try:
            result = _one(path, model, tables, path.stem in plan.measured, arguments)
        except MemoryError as error:
            broken += 1
            _complain(f"{path} does not fit into memory ({_first_line(error)}): cut the image into pieces")
        except cv2.error as error:
            if error.code != cv2.Error.StsNoMem:
                raise
            broken += 1
            _complain(f"{path} does not fit into memory ({error.err}): cut the image into pieces")
        except (NucleiError, OSError) as error:
            if getattr(error, "errno", None) in NO_ROOM:
                raise NucleiError(
                    f"{error}: the results of {path} could not be written. {done} of {len(paths)} images are done and "
                    "in the tables. Make room, or allow writing in the folder; the same command with --resume then "
                    "goes on"
                ) from error
            broken += 1
            _complain(error)
        else:
            done += 1
            nuclei += result.nuclei
            _report(path.stem, result)
    print(f"{done} of {len(paths)} images, {nuclei:,} nuclei: {arguments.out}")
    return broken


def _first_line(error):
    return str(error).strip().split("\n")[0] or type(error).__name__


# The network


def load_model(path):
    """Load a network that finds nuclei from a file that may come from anybody.

    Parameters
    ----------
    path : path-like
        A `.keras` file, checked by `saving.load_model`.

    Returns
    -------
    keras.Model
        Not compiled.

    Raises
    ------
    errors.NucleiError
        As from `saving.load_model`; if the network makes something else of images.
    """
    model = saving.load_model(path)
    shapes = [tensor.shape for tensor in getattr(model, "inputs", None) or []]
    outputs = [tensor.shape for tensor in getattr(model, "outputs", None) or []]
    fits = len(shapes) == 1 and all(len(shape) == 4 for shape in (*shapes, *outputs))
    if not fits or shapes[0][-1] != 3 or any(shape[-1] != 1 for shape in outputs):
        raise NucleiError(
            f"{path}: found a network from {shapes} to {outputs}, expected one from colour images, "
            "[(None, None, None, 3)], to one value for each pixel, [(None, None, None, 1)]"
        )
    if isinstance(model.output, dict) and "mask" not in model.output:
        raise NucleiError(f'{path}: found outputs named {sorted(model.output)}, expected "mask" among them')
    return model


def _network(path):
    """Load a network, and see that it works: a network of another kind is refused before any image is read."""
    model = predict.freeze(load_model(path) if path else predict.default_model())
    try:
        predict.predict_maps(model, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    except Exception as error:  # the layers of a stranger's network can fail in any way
        if not path:
            raise
        raise NucleiError(f"{path} cannot be used: {_first_line(error)}") from error
    return model


# What is there before the run


def _images(given):
    """Return the image files that the words of the command line mean, each once, and the folders that hold none."""
    paths, empty = {}, []
    for place in given:
        found = _in_folder(place) if place.is_dir() else [place]
        if not found:
            empty.append(place)
        for path in found:
            # not Path.resolve, which fails on links in a circle: reading such a file names it
            paths.setdefault(os.path.realpath(path), path)
    return list(paths.values()), empty


def _in_folder(folder):
    """Return the images of a folder, or those of the competition's layout below it."""
    below = (place for place in sorted(folder.glob("*/images")) if place.is_dir())
    return datasets.list_images(folder) or [file for place in below for file in datasets.list_images(place)]


def _check_names(paths, arguments):
    """Refuse images whose results would have the same names, or would be taken for images."""
    out = os.path.realpath(arguments.out)
    for place in arguments.images:
        if place.is_dir() and os.path.realpath(place) == out:
            raise NucleiError(
                f"{place} is to be read and written: name another folder with --out, so that results are not "
                "taken for images the next time"
            )
    names = {}
    inputs = {os.path.realpath(path) for path in paths}
    for path in paths:
        # names that differ in case alone are one on Windows and macOS
        other = names.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise NucleiError(
                f"{other} and {path} would give results of one name: rename one, or predict one at a time"
            )
        for file in _files(path.stem, arguments.out).values():
            if os.path.realpath(file) in inputs:
                raise NucleiError(
                    f"{file} is one of the images, and would be overwritten: name another folder with --out"
                )


def _files(name, out):
    """Return all files that can be results of an image, by their kind."""
    return {
        "png": out / f"{name}_labels.png",
        "tif": out / f"{name}_labels.tif",
        "mask": out / f"{name}_mask.png",
        "overlay": out / f"{name}_overlay.png",
        "geojson": out / f"{name}.geojson",
        "rois": out / f"{name}_rois.zip",
    }


def _plan(paths, tables, arguments):
    """Look at what is there. Refuse what would be overwritten, before any work."""
    names = [path.stem for path in paths]
    there = {
        name: [kind for kind, file in _files(name, arguments.out).items() if os.path.lexists(file)] for name in names
    }
    if not (arguments.resume or arguments.replace):
        _refuse_existing([*tables.existing, *_listed(there, arguments.out)])
        return Plan({}, set(), set(), set())
    spelt = dict(zip(names, names_in_tables(names), strict=True))
    complete = tables.repair(spelt.values() if arguments.replace else ())
    measured = {name: complete[spelt[name]] for name in names if spelt[name] in complete} if arguments.resume else {}
    new = {name: kinds for name, kinds in there.items() if name not in measured}
    if arguments.replace:
        _refuse_stale(new, arguments)
    else:
        _refuse_existing(_listed(new, arguments.out))
    needed = {"mask", "overlay", *arguments.format}
    finished = {name for name in measured if needed <= {*there[name]} and {"png", "tif"} & {*there[name]}}
    _remove_unfinished([name for name in names if spelt[name] in complete and name not in finished], arguments.out)
    outdated = {spelt[name] for name in new} & complete.keys()
    return Plan(measured, finished, outdated, complete.keys() - outdated)


def _remove_unfinished(names, out):
    """Remove the files that a killed process was about to write."""
    hidden = [file.name for file in out.iterdir() if file.name.startswith(".")]
    for name in names:
        for file in _files(name, out).values():
            if any(
                each.startswith(f".{file.stem}-") for each in hidden
            ):  # seldom, and cheaper than a look at all files
                remove_partial_files(file)


def _listed(kinds, out):
    return [_files(name, out)[kind] for name, several in kinds.items() for kind in several]


def _refuse_existing(files):
    if files:
        more = f" and {len(files) - LISTED:,} more" if len(files) > LISTED else ""
        raise NucleiError(
            f"{', '.join(map(str, files[:LISTED]))}{more} would be overwritten: name another folder with --out, go on "
            "with a run that was broken off or add images with --resume, or replace the results with --replace"
        )


def _refuse_stale(there, arguments):
    """Refuse to leave old results of an image beside the new ones: this command removes no files."""
    written = {"png", "mask", "overlay", *arguments.format}
    for name, kinds in there.items():
        for kind in kinds:
            if kind not in written:
                raise NucleiError(
                    f"{_files(name, arguments.out)[kind]} would stay beside the new results of the image, but is not "
                    "replaced: move or delete the file"
                )


def _columns(pixel_size):
    nothing = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.int32)
    return export.measure_nuclei(*nothing, "", pixel_size).columns


def _settings(arguments):
    """Return what the results depend on."""
    model = arguments.model
    return {
        "--model": hashlib.sha256(model.read_bytes()).hexdigest() if model else "included",
        "--pixel-size": arguments.pixel_size,
        "--tta": arguments.n_tta,
        "--format": sorted(set(arguments.format)),
    }


def _check_settings(out, settings):
    """Refuse to add results to those that were made in another way."""
    path = out / SETTINGS
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = {}
    except ValueError as error:
        raise NucleiError(f"{path} is damaged ({error}): name another folder with --out") from error
    for name, value in settings.items():
        if name not in before or before[name] != value:
            found = "another network" if name == "--model" else f"{before.get(name)}, not {value}"
            raise NucleiError(
                f"the tables in {out} hold images that were predicted with other {name}: {found}. Use the same "
                "options, or name another folder with --out"
            )


def _write_settings(out, settings):
    with atomic_write(out / SETTINGS) as aside:
        aside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


# One image


def _read(path, max_pixels):
    """Return an image as it is in the file, for measurements, and as 8-bit RGB."""
    raw = io.read_raw(path, max_pixels or io.MAX_PIXELS)
    return raw, io.to_rgb8(raw)


def _one(path, model, tables, is_measured, arguments):
    """Find the nuclei of one image, measure them, and write the results."""
    raw, image = _read(path, arguments.max_pixels)
    if "rois" in arguments.format and max(image.shape) > export.WIDEST_FOR_IMAGEJ:
        raise NucleiError(
            f"{path}: an image of {image.shape[:2]} (height, width) is too large for ImageJ's ROIs, which reach to "
            f"{export.WIDEST_FOR_IMAGEJ} pixels: write --format geojson, or cut the image"
        )
    # a bar of its own where one image takes long, and somebody watches
    progress = sys.stderr.isatty() and max(image.shape) > LARGE
    try:
        label_map = predict.predict_labels(model, image, n_tta=arguments.n_tta, progress=progress)
        agreement = predict.tta_consistency(model, image, label_map, n_tta=arguments.n_tta)
    except NucleiError as error:
        raise NucleiError(f"{path}: {error}") from error
    name = printable_name(path.stem)
    table = export.measure_nuclei(raw, label_map, name, arguments.pixel_size)
    # The rows come first. So a file without rows is never of this command, and no run needs to overwrite it.
    with contextlib.nullcontext() if is_measured else tables.added(table, export.submission_table({name: label_map})):
        _write_files(_files(path.stem, arguments.out), image, label_map, is_measured, arguments.format)
    return Result(len(table), agreement)


def _write_files(files, image, label_map, is_measured, formats):
    """Write all files of one image; if one cannot be written, remove the others again."""
    kind, other = ("png", "tif") if label_map.max(initial=0) <= io.HIGHEST_IN_16_BITS else ("tif", "png")
    if os.path.lexists(files[other]):
        raise NucleiError(f"{files[other]} is another label map of the image: move or delete the file")
    writers = {
        kind: lambda file: io.write_label_map(file, label_map),
        "mask": lambda file: io.write_mask(file, label_map),
        "overlay": lambda file: export.write_overlay(file, image, label_map),
        "geojson": lambda file: export.write_geojson(file, label_map),
        "rois": lambda file: export.write_imagej_rois(file, label_map),
    }
    written = []
    try:
        for each in (kind, "mask", "overlay", *sorted(set(formats))):
            # a killed run wrote the rows and some of the files: these files stay
            if not (is_measured and os.path.lexists(files[each])):
                writers[each](files[each])
                written.append(files[each])
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise


def _report(name, result):
    agreement = "" if math.isnan(result.agreement) else f"  agreement {result.agreement:.2f}"
    tqdm.write(f"{name}  {result.nuclei:,} nuclei{agreement}", file=sys.stdout)
    if math.isnan(result.agreement):
        _complain(f"{name}: no nucleus was found; if there are some, do not trust this result")
    elif result.agreement < TRUSTED:
        _complain(
            f"{name}: do not trust this result. Mirrored and made smaller, the image gives other nuclei (agreement "
            f"{result.agreement:.2f}, below {TRUSTED}): it may be unlike what the network was trained on"
        )


def _complain(message):
    tqdm.write(f"nuclei-utils predict: {message}", file=sys.stderr)
