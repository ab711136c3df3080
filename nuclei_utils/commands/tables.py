"""The tables of a folder of results: they grow with each image, and hold the rows of an image whole or not at all."""

import csv
import io
import os
from collections import Counter
from contextlib import contextmanager

import pandas as pd

from nuclei_utils import export
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, printable_name, remove_partial_files


class Tables:
    """`nuclei.csv` and `submission.csv` of one folder.

    Rows are added at the end of the files. A process that is killed while it adds rows leaves a part of them in the
    files: `repair` removes this part. Each image has its rows in `nuclei.csv` first. The rows in `submission.csv`,
    one for each nucleus, or one without a code if there is no nucleus, show that the rows in `nuclei.csv` are complete.

    Parameters
    ----------
    folder : pathlib.Path
    columns : sequence of str
        Of `nuclei.csv`. The first column is the name of the image.
    """

    def __init__(self, folder, columns):
        self.columns = {folder / "nuclei.csv": list(columns), folder / "submission.csv": ["ImageId", "EncodedPixels"]}

    @property
    def existing(self):
        """The tables that exist, a list of paths."""
        return [path for path in self.columns if os.path.lexists(path)]

    def repair(self, replaced=()):
        """Remove rows that a killed process left incomplete: those of the last image.

        Parameters
        ----------
        replaced : iterable of str
            Images that may be incomplete as well, because their rows are replaced (`drop` was killed).

        Returns
        -------
        dict of str to int
            Number of nuclei of each image that has all its rows. The names are those of `names_in_tables`.

        Raises
        ------
        errors.NucleiError
            If a file is no such table, or rows of other images are missing. Nothing is changed then.
        """
        for path in self.columns:
            remove_partial_files(path)
        nuclei, submission = self.columns
        names = [row[0] for row in _rows(nuclei, self.columns[nuclei]) if row]
        measured, coded = Counter(names), Counter()
        for name, code in filter(None, _rows(submission, self.columns[submission])):
            coded[name] += bool(code)  # no code: no nucleus
        complete = {name: number for name, number in coded.items() if number == measured[name]}
        changed = sorted((measured.keys() | coded.keys()) - complete.keys() - {*names[-1:], *replaced})
        if changed:
            more = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
            raise NucleiError(
                f"{nuclei} and {submission.name} do not hold the same nuclei of {printable_name(changed[0])}{more}: rows or "
                "a file were removed or changed. Put them back, move both tables away, or name another folder with "
                "--out"
            )
        self._keep(lambda name: name in complete)
        return complete

    def drop(self, names):
        """Remove the rows of images.

        Parameters
        ----------
        names : set of str
            As `names_in_tables` gives them.
        """
        self._keep(lambda name: name not in names)

    def _keep(self, wanted):
        for path, columns in self.columns.items():
            if all(row and wanted(row[0]) for row in _rows(path, columns)):
                continue
            with atomic_write(path) as aside, _opened(aside, "w") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(row for row in _rows(path, columns) if row and wanted(row[0]))

    @contextmanager
    def added(self, nuclei, submission):
        """Add the rows of an image for good if the block succeeds; if it fails, remove them again.

        Parameters
        ----------
        nuclei, submission : pandas.DataFrame
            Rows for the two files.

        Raises
        ------
        OSError
            If a file cannot be written. The error names the file.
        """
        sizes = {path: path.stat().st_size if path.exists() else None for path in self.columns}
        try:
            for (path, columns), table in zip(self.columns.items(), (nuclei, submission), strict=True):
                _append(path, table[columns], is_new=sizes[path] is None)
            yield
        except BaseException:
            for path, size in sizes.items():
                if size is None:
                    path.unlink(missing_ok=True)
                elif path.stat().st_size > size:
                    os.truncate(path, size)
            raise


def names_in_tables(names):
    """Return how the tables spell names of files, which is not the same for all names.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    list of str
    """
    text = export.csv_bytes(pd.DataFrame({"image": [printable_name(name) for name in names]}), header=False).decode()
    return [row[0] for row in csv.reader(io.StringIO(text, newline=""))]


def _append(path, table, is_new):
    content = export.csv_bytes(table, header=is_new)
    if is_new:
        with atomic_write(path) as aside:
            aside.write_bytes(content)
        return
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _rows(path, columns):
    """Read the rows of a table one by one; instead of a last row that is incomplete, give []."""
    if not path.exists():
        return
    csv.field_size_limit(2**31 - 1)  # the run lengths of a large nucleus are longer than the limit of Python
    with _opened(path) as file:
        reader = csv.reader(file)
        found = next(reader, [])
        if found != columns:
            raise NucleiError(
                f"{path}: found the columns {', '.join(found)}, expected {', '.join(columns)}: it is no table of this "
                "command; move it, or name another folder with --out"
            )
        row = next(reader, None)
        for after in reader:
            if len(row) != len(columns):
                raise NucleiError(f"{path}, line {reader.line_num}: found {len(row)} cells, expected {len(columns)}")
            yield row
            row = after
    if row is not None:
        yield row if len(row) == len(columns) and _last_byte(path) == b"\n" else []


def _opened(path, mode="r"):
    """Open a table; bytes that are not UTF-8, which another program may have written, stay as they are."""
    return path.open(mode, encoding="utf-8", newline="", errors="surrogateescape")


def _last_byte(path):
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read()
