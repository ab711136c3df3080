"""Output folder of the command `predict`: files of each image, growing tables, settings; this is not a command."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nuclei_utils as nu
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, printable_name, remove_partial_files

if TYPE_CHECKING:
    import numpy as np

SETTINGS = "predict_settings.json"  # the options that the results depend on
IMAGE_COLUMNS = ["image", "file", "height", "width", "nuclei", "median_diameter", "consistency"]
IMAGE_COLUMNS += ["pixel_size", "pixel_size_source", "warning"]
SLIDE_LABELS = {"slide_zarr": "zarr", "slide_tif": "tif"}  # kind of file -> format
_LABELS = ("png", "tif", *SLIDE_LABELS)  # kinds of files of which an image has one
_MAX_FILES = 5  # in a message


class Tables:
    """The tables of a folder of results: `images.csv`, `nuclei.csv` and `submission.csv`.

    The rows of an image are added at the end, in the order `images.csv`, `nuclei.csv`, `submission.csv`. They are
    removed in the opposite order. So a killed process leaves incomplete rows only of the last image in `images.csv`,
    and `repair` removes them. `submission.csv` has one row for each nucleus, or one row without a code for an image
    without nuclei: these rows show that the rows in `nuclei.csv` are complete. The first column of each table has the
    name of the image. `columns` are those of `nuclei.csv`. None: the first image sets them.
    """

    def __init__(self, folder: Path, columns: Sequence[str] | None):
        self._nuclei = folder / "nuclei.csv"
        self.columns = {
            folder / "images.csv": IMAGE_COLUMNS,
            self._nuclei: None if columns is None else list(columns),
            folder / "submission.csv": ["ImageId", "EncodedPixels"],
        }

    @property
    def measured_columns(self) -> list[str] | None:
        """Return the columns of `nuclei.csv`, or None before the first image."""
        return self.columns[self._nuclei]

    @property
    def existing(self) -> list[Path]:
        """Return the paths of the tables that exist."""
        return [path for path in self.columns if os.path.lexists(path)]

    def repair(self, replaced: Iterable[str] = ()) -> dict[str, int]:
        """Remove the incomplete rows of the last image.

        The method returns the number of nuclei of each complete image. The images in `replaced` may be incomplete too,
        because a process was killed while it replaced them. If rows of other images are missing, `NucleiError` is
        raised and the files do not change.
        """
        for path in self.columns:
            remove_partial_files(path)
        images, nuclei, submission = self.columns
        listed, measured, coded, last = Counter(), Counter(), Counter(), None
        for last, *_ in filter(None, self._rows(images)):
            listed[last] += 1
        for name, *_ in filter(None, self._rows(nuclei)):
            measured[name] += 1
        for name, code in filter(None, self._rows(submission)):
            coded[name] += bool(code)
        complete = {name: count for name, count in coded.items() if count == measured[name] and listed[name] == 1}
        changed = sorted((listed.keys() | measured.keys() | coded.keys()) - complete.keys() - {last, *replaced})
        if changed and not images.exists():
            raise NucleiError(
                f"{images} does not exist, but {nuclei.name} or {submission.name} does: an older version of "
                "nuclei-utils wrote the results, or the file was removed. Predict all images again with --replace, or "
                "use another folder with --out"
            )
        if changed:
            more = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
            raise NucleiError(
                f"{images}, {nuclei.name} and {submission.name} do not hold the same nuclei of "
                f"{printable_name(changed[0])}{more}: another program removed or changed rows or a file. Restore them, "
                "move the three tables away, or use another folder with --out"
            )
        self._keep(lambda name: name in complete)
        return complete

    def drop(self, names: set[str]) -> None:
        """Remove the rows of images, given by their names in the tables."""
        self._keep(lambda name: name not in names)

    @contextmanager
    def adding(
        self, columns: Sequence[str], image: Iterable[bytes], nuclei: Iterable[bytes], codes: Iterable[bytes]
    ) -> Iterator[None]:
        """Add the rows of an image; remove them if the block fails.

        The rows of each table come in parts, as CSV without a header. `columns` are those of `nuclei.csv`.
        """
        before, sizes = self.measured_columns, {path: _size(path) for path in self.columns}
        self.columns[self._nuclei] = list(columns)
        try:
            for (path, names), parts in zip(self.columns.items(), (image, nuclei, codes), strict=True):
                _append(path, parts, names if sizes[path] is None else None)
            yield
        except BaseException:
            self.columns[self._nuclei] = before
            for path, size in reversed(sizes.items()):
                if size is None:
                    path.unlink(missing_ok=True)
                elif path.stat().st_size > size:
                    os.truncate(path, size)
            raise

    def _keep(self, is_kept: Callable[[str], bool]) -> None:
        for path, columns in reversed(self.columns.items()):
            if all(row and is_kept(row[0]) for row in self._rows(path)):
                continue
            with atomic_write(path) as partial_path, _open(partial_path, "w") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(row for row in self._rows(path) if row and is_kept(row[0]))

    def _rows(self, path):
        """Yield the rows of a table, and [] for an incomplete row."""
        if not path.exists():
            return
        columns = self.columns[path]
        csv.field_size_limit(2**31 - 1)  # the code of a large nucleus is longer than the default limit
        with _open(path) as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header != columns:
                raise NucleiError(
                    f"{path}: found the columns {', '.join(header)}, expected {', '.join(columns)}: another program "
                    "wrote this table; move it, or use another folder with --out"
                )
            row = next(reader, None)
            for next_row in reader:
                if len(row) != len(columns):
                    raise NucleiError(
                        f"{path}, line {reader.line_num}: found {len(row)} cells, expected {len(columns)}: move the "
                        "table, or use another folder with --out"
                    )
                yield row
                row = next_row
        if row is not None:
            yield row if len(row) == len(columns) and _ends_with_newline(path) else []


def read_header(path: Path) -> list[str] | None:
    """Return the columns of a table, or None if the table does not exist."""
    if not path.exists():
        return None
    with _open(path) as file:
        return next(csv.reader(file), [])


def names_in_tables(names: Sequence[str]) -> list[str]:
    """Return file names in the spelling of the tables.

    Some characters are escaped.
    """
    import pandas as pd

    table = pd.DataFrame({"image": [printable_name(name) for name in names]})
    text = nu.export.csv_bytes(table, header=False).decode()
    return [row[0] for row in csv.reader(io.StringIO(text, newline=""))]


def _size(path):
    return path.stat().st_size if path.exists() else None


def _append(path, parts, header):
    if header is not None:
        with atomic_write(path) as partial_path, partial_path.open("wb") as file:
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerow(header)
            file.write(text.getvalue().encode())
            file.writelines(parts)
        return
    try:
        with path.open("ab") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _open(path, mode="r"):
    # another program may have written bytes that are not UTF-8: they stay as they are
    return path.open(mode, encoding="utf-8", newline="", errors="surrogateescape")


def _ends_with_newline(path):
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


class Plan(NamedTuple):
    """Contents of a folder of results before a run."""

    measured: dict[str, int]  # number of nuclei of each image of the run whose rows stay
    finished: set[str]  # measured images that have all files; the run skips them
    outdated: set[str]  # names in the tables of images whose rows are replaced
    others: set[str]  # names in the tables of images whose rows stay


def make_plan(
    folder: Path, names: Sequence[str], formats: Iterable[str], tables: Tables, resume: bool, replace: bool
) -> Plan:
    """Examine a folder of results, and repair its tables.

    `NucleiError` is raised if a file would be overwritten, or would stay beside new results of its image.
    """
    existing = {
        name: {kind for kind, path in result_files(folder, name).items() if os.path.lexists(path)} for name in names
    }
    if not (resume or replace):
        _refuse_existing(folder, existing, tables.existing)
        return Plan({}, set(), set(), set())
    written = {"mask", "overlay", *formats}
    spelt = dict(zip(names, names_in_tables(names), strict=True))
    complete = tables.repair(spelt.values() if replace else ())
    measured = {name: complete[spelt[name]] for name in names if spelt[name] in complete} if resume else {}
    new = {name: kinds for name, kinds in existing.items() if name not in measured}
    if replace:
        _refuse_stale(folder, new, {"png", *SLIDE_LABELS, *written})
    else:
        _refuse_existing(folder, new)
    finished = {
        name
        for name in measured
        if (written <= existing[name] and {"png", "tif"} & existing[name]) or {*SLIDE_LABELS} & existing[name]
    }
    outdated = {spelt[name] for name in new} & complete.keys()
    return Plan(measured, finished, outdated, complete.keys() - outdated)


def result_files(folder: Path, name: str) -> dict[str, Path]:
    """Return the paths of all possible results of an image."""
    return {
        "png": folder / f"{name}_labels.png",
        "tif": folder / f"{name}_labels.tif",
        "slide_zarr": folder / f"{name}_labels.ome.zarr",
        "slide_tif": folder / f"{name}_labels.ome.tif",
        "mask": folder / f"{name}_mask.png",
        "overlay": folder / f"{name}_overlay.png",
        "geojson": folder / f"{name}.geojson",
        "rois": folder / f"{name}_rois.zip",
    }


def _refuse_existing(folder, existing, tables=()):
    paths = [*tables, *(result_files(folder, name)[kind] for name, kinds in existing.items() for kind in sorted(kinds))]
    if paths:
        more = f" and {len(paths) - _MAX_FILES:,} more" if len(paths) > _MAX_FILES else ""
        raise NucleiError(
            f"{', '.join(map(str, paths[:_MAX_FILES]))}{more} would be overwritten: use another folder with --out, "
            "resume an interrupted run or add images with --resume, or replace the results with --replace"
        )


def _refuse_stale(folder, existing, written):
    """Refuse to leave old files of an image beside new results.

    The command `predict` deletes no files.
    """
    for name, kinds in existing.items():
        for kind in sorted(kinds - written):
            raise NucleiError(
                f"{result_files(folder, name)[kind]} would stay beside its new results: move or delete the file"
            )


def read_settings(folder: Path) -> dict:
    """Return the settings of existing results."""
    path = folder / SETTINGS
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise NucleiError(f"{path} is damaged ({error}): use another folder with --out") from error


def check_settings(folder: Path, saved: dict, settings: dict) -> None:
    """Refuse to add results to results with other settings."""
    for name, value in settings.items():
        if name not in saved or saved[name] != value:
            if name == "--precision" and name not in saved:  # those results are from a network of the user
                name = "--model"
            difference = "another network" if name == "--model" else f"{saved.get(name)}, not {value}"
            raise NucleiError(
                f"the tables in {folder} hold images that were predicted with other {name}: {difference}. Use the same "
                "options, or use another folder with --out"
            )


def write_settings(folder: Path, settings: dict) -> None:
    """Write the settings of the results."""
    remove_partial_files(folder / SETTINGS)
    with atomic_write(folder / SETTINGS) as partial_path:
        partial_path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def write_results(
    folder: Path, name: str, image: np.ndarray, label_map: np.ndarray, formats: Iterable[str]
) -> dict[str, Path]:
    """Write all files of an image into an empty folder, and return their paths."""
    kind = "png" if label_map.max(initial=0) <= nu.io.HIGHEST_IN_16_BITS else "tif"
    writers = {
        kind: lambda path: nu.io.write_label_map(path, label_map),
        "mask": lambda path: nu.io.write_mask(path, label_map),
        "overlay": lambda path: nu.export.write_overlay(path, image, label_map),
        "geojson": lambda path: nu.export.write_geojson(path, label_map),
        "rois": lambda path: nu.export.write_imagej_rois(path, label_map),
    }
    paths = result_files(folder, name)
    written = {file_kind: paths[file_kind] for file_kind in (kind, "mask", "overlay", *sorted(set(formats)))}
    for file_kind, path in written.items():
        writers[file_kind](path)
    return written


def refuse_other_files(folder: Path, name: str, kinds: Iterable[str]) -> None:
    """Refuse another label map of an image. A slide has no other file than its label map."""
    kinds, paths = {*kinds}, result_files(folder, name)
    refused = paths if kinds & {*SLIDE_LABELS} else _LABELS
    for kind in sorted({*refused} - kinds):
        if os.path.lexists(paths[kind]):
            raise NucleiError(
                f"{paths[kind]} would stay beside another label map of its image: move or delete the file"
            )


def move_results(files: dict[str, Path], folder: Path, name: str, keep_existing: bool) -> None:
    """Move all files of an image into the folder of results, or none.

    `keep_existing` keeps the files that a killed process moved after the rows of the image were written.
    """
    targets = result_files(folder, name)
    refuse_other_files(folder, name, files.keys())
    moved = []
    try:
        for file_kind, path in files.items():
            target = targets[file_kind]
            if not (keep_existing and os.path.lexists(target)):
                if target.is_dir():
                    target.rename(path.with_name(f"old-{path.name}"))
                path.replace(target)
                moved.append(target)
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
