"""Files that are whole or not there, whatever interrupts the writing; and what newer ones leave behind."""

import glob
import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path):
    """Write a file aside, and move it to its place when it is whole; a file that was there stays until then.

    Parameters
    ----------
    path : path-like
        Where the file goes; its folder is made if need be.

    Yields
    ------
    pathlib.Path
        Where to write: a hidden name of its own in the same folder, with the same ending. If the block fails, it is
        removed again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a number of the process alone is not enough: processes on two machines, or two threads, may share one
    aside = path.with_name(f".{path.stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def remove_older(path):
    """Remove what lies beside a file or folder under the same name with another fingerprint.

    Parameters
    ----------
    path : pathlib.Path
        Its name ends in "-" and a fingerprint in hexadecimal digits, before the ending if it has one.
    """
    name, _, fingerprint = path.stem.rpartition("-")
    for older in path.parent.glob(f"{glob.escape(name)}-{'[0-9a-f]' * len(fingerprint)}{path.suffix}"):
        if older == path:
            continue
        if older.is_dir():
            shutil.rmtree(older, ignore_errors=True)  # another process may be about the same
        else:
            older.unlink(missing_ok=True)


def printable(name):
    r"""Return the name of a file as text that can be written as UTF-8.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
        The name; bytes that are not UTF-8 become escapes such as `\udcff`.
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
