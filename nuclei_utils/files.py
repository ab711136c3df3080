"""Files that are whole or not there, whatever interrupts the writing; and locks, and what newer files leave behind."""

import contextlib
import errno
import glob
import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


TAKEN = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
"""What the system says of a lock that another process holds; other errors say that the file system has no locks."""


LOCK_TRIES = 100
"""How often a lock file is made anew that another process has just removed."""


@contextmanager
def atomic_write(path):
    """Write a file aside, and move it to its place when it is whole; a file that was there stays until then.

    The file reaches the disk before its name changes. A power cut leaves the old file or the new file.

    Parameters
    ----------
    path : path-like
        Where the file goes; its folder is made if need be.

    Yields
    ------
    pathlib.Path
        Where to write: a hidden name of its own in the same folder, with the same ending. If the block fails, it is
        removed again.

    Raises
    ------
    OSError
        If the file cannot be written, for example on a full disk. The error names `path`.
    """
    path = Path(path)
    _make_folder(path.parent)
    # a number of the process alone is not enough: processes on two machines, or two threads, may share one
    stem, dot, endings = path.name.partition(".")
    aside = path.with_name(f".{stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}{dot}{endings}")
    try:
        yield aside
        _sync(aside, os.O_RDWR)
        aside.replace(path)
        if os.name != "nt":  # Windows opens no folders
            with contextlib.suppress(OSError):  # some network drives do not sync folders; the file itself is safe
                _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.errno and error.filename in (None, str(aside)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def _sync(path, flags):
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_lock(path, message):
    """Keep other processes out of a block of code. The lock ends with the process, even if the process is killed.

    On a file system without locks, the block runs without a lock.

    Parameters
    ----------
    path : path-like
        Of the lock file. The block that holds the lock removes the file at its end.
    message : str
        Of the error if the lock is taken.

    Raises
    ------
    BlockingIOError
        If another process, or another part of this process, holds the lock.
    OSError
        If the lock file cannot be made. The error names the file.
    """
    path = Path(path)
    _make_folder(path.parent)
    file = _lock(path, message)
    try:
        yield
    finally:
        if fcntl:  # while the lock is held, so that nobody else can hold this file
            path.unlink(missing_ok=True)
        file.close()
        if not fcntl:  # Windows removes no open file
            with contextlib.suppress(PermissionError):  # another process has opened it already
                path.unlink(missing_ok=True)


def _lock(path, message):
    """Open a lock file and lock it; the lock ends when the file is closed."""
    for _ in range(LOCK_TRIES):
        file = path.open("ab")
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in TAKEN:
                file.close()
                raise BlockingIOError(message) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the process that held the lock removed this file: make a new file
    raise BlockingIOError(f"{path} cannot be locked: its file system changes the file's number at each look")


def remove_partial_files(path):
    """Remove what killed processes left of a file that `written_whole` was about to write.

    Parameters
    ----------
    path : pathlib.Path
        Of the file. No other process may be writing the file now.
    """
    stem, dot, endings = (glob.escape(part) for part in path.name.partition("."))
    for aside in path.parent.glob(f".{stem}-*-{'[0-9a-f]' * 8}{dot}{endings}"):
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


def printable_name(name):
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
