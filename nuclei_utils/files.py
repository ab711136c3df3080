"""Write files atomically (a killed process leaves the old or the new file, never a part), and lock files."""

import contextlib
import errno
import glob
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file whole or not at all.

    The block writes a temporary file: a hidden file in the same folder, with the same extension. At the end of the
    block the temporary file is flushed to the disk and renamed. If the block fails, the temporary file is removed and
    an existing file stays as it was. After a power cut, the disk holds the old file or the new file. Missing folders
    are created.

    Raises
    ------
    OSError
        If the file cannot be written, for example because the disk is full. The error names `path`.

    Examples
    --------
    >>> with atomic_write("counts.csv") as partial:
    ...     _ = partial.write_text("image,count")
    >>> Path("counts.csv").read_text()
    'image,count'
    """
    path = Path(path)
    _make_folder(path.parent)
    # the process id is not unique: two threads or two machines can have the same
    stem, dot, extensions = path.name.partition(".")
    partial = path.with_name(f".{stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}{dot}{extensions}")
    try:
        yield partial
        _sync(partial, os.O_RDWR)
        partial.replace(path)
        if os.name != "nt":  # Windows cannot open folders
            with contextlib.suppress(OSError):  # some network drives cannot flush folders; the file itself is safe
                _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.errno and error.filename in (None, str(partial)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file has this name
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def _sync(path, flags):
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_lock(path: str | os.PathLike, message: str) -> Iterator[None]:
    """Let only one process run a block of code at a time.

    The operating system releases the lock when the process ends, even if the process is killed. The lock file is
    removed at the end of the block. On a file system without locks, the block runs without a lock. Missing folders are
    created.

    Raises
    ------
    BlockingIOError
        With this message, if another process, or another block of this process, holds the lock.

    Examples
    --------
    >>> with file_lock("run.lock", "run.lock is taken: another process writes to this folder"):
    ...     Path("run.lock").exists()
    True
    """
    path = Path(path)
    _make_folder(path.parent)
    file = _open_locked(path, message)
    try:
        yield
    finally:
        if fcntl:  # remove the file before the lock is released, so that no other process holds this file
            path.unlink(missing_ok=True)
        file.close()
        if not fcntl:  # Windows cannot remove an open file
            with contextlib.suppress(PermissionError):  # another process has opened the file
                path.unlink(missing_ok=True)


def _open_locked(path, message):
    """Open and lock a file. Closing the file releases the lock."""
    for _ in range(100):  # other processes may remove the file at the same moment
        file = path.open("ab")
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            # other errors mean that the file system has no locks
            if error.errno in {errno.EAGAIN, errno.EACCES, errno.EDEADLK}:
                file.close()
                raise BlockingIOError(message) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the previous holder of the lock has removed this file
    raise BlockingIOError(
        f"{path} cannot be locked: the file system changes the file's number each time; use another folder"
    )


def remove_partial_files(path: Path) -> None:
    """Remove the temporary files of killed processes.

    The processes were writing a file with `atomic_write`. No process may be writing the file now.
    """
    stem, dot, extensions = (glob.escape(text) for text in path.name.partition("."))
    for partial in path.parent.glob(f".{stem}-*-{'[0-9a-f]' * 8}{dot}{extensions}"):
        partial.unlink(missing_ok=True)


def printable_name(name: str) -> str:
    r"""Return a file name with escapes for bytes outside of UTF-8.

    Examples
    --------
    >>> printable_name("cell\udcff.png")
    'cell\\udcff.png'
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
