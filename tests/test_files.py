"""Files are written whole or not at all, and locks keep other processes out."""

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest

from nuclei_utils.files import atomic_write, file_lock, printable_name, remove_partial_files


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new folder" / "a.json"
    for text in ("first", "second"):
        with atomic_write(str(path)) as partial:
            assert partial.suffix == ".json"
            partial.write_text(text)
            assert text == "first" or path.read_text() == "first"
        assert path.read_text() == text
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_only_the_old_file(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write():
        with atomic_write(path) as partial:
            partial.write_text("half of i")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_before_the_first_byte_is_raised(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.json"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_two_writers_in_the_same_process_do_not_clash(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as outer:
        outer.write_text("outer")
        with atomic_write(path) as inner:
            inner.write_text("inner")
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"


def write(path, content=b"new"):
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def test_a_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    """After a power cut, the name must belong to a file with contents."""
    path = tmp_path / "a.json"
    path.write_text("old")
    flushed, fsync = [], os.fsync

    def record(descriptor):
        status = os.fstat(descriptor)
        flushed.append(("folder" if stat.S_ISDIR(status.st_mode) else status.st_size, path.read_bytes()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write(path, b"all of it")
    assert flushed[0] == (9, b"old")
    assert flushed[1:] in ([("folder", b"all of it")], [])  # Windows cannot flush folders


def test_a_drive_that_cannot_flush_folders_is_accepted(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    write(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == b"new"


def test_a_full_disk_is_named_by_the_file(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write(tmp_path / "a.json", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "a.json")
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_disk_error_is_named_by_the_file(tmp_path):
    with pytest.raises(PermissionError) as caught, atomic_write(tmp_path / "a.json") as partial:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(partial))
    assert caught.value.filename == str(tmp_path / "a.json")


def test_an_error_of_another_file_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.json"):
        (tmp_path / "source.json").read_text()
    assert caught.value.filename == str(tmp_path / "source.json")


@pytest.mark.parametrize("use", [write, lambda path: file_lock(path, "busy").__enter__()])
def test_a_file_with_the_name_of_the_folder_is_named(tmp_path, use):
    (tmp_path / "notes").touch()
    with pytest.raises(NotADirectoryError) as caught:
        use(tmp_path / "notes" / "a.json")
    assert caught.value.filename == str(tmp_path / "notes")


def test_a_folder_with_the_name_of_the_file_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError) as caught:
        write(tmp_path / "a.json")
    assert caught.value.filename == str(tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


WRITER = """
import sys
from nuclei_utils.files import atomic_write
for _ in range(50):
    with atomic_write("a.txt") as partial:
        with partial.open("w") as file:
            for _ in range(100):
                file.write(sys.argv[1] * 100)
                file.flush()
"""


def test_two_processes_do_not_clash(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, letter], cwd=tmp_path) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a.txt").exists():
            seen.add((tmp_path / "a.txt").read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 10_000, "b" * 10_000}
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


KILLED = """
import sys, time
from pathlib import Path
from nuclei_utils.files import {name}
with {name}({arguments}) as partial:
    if partial:
        partial.write_text("half")
    print("inside", flush=True)
    time.sleep(600)
"""


def begin(folder, name, *arguments):
    """Start a process that waits inside of a block of `atomic_write` or `file_lock`."""
    code = KILLED.format(name=name, arguments=", ".join(map(repr, arguments)))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "inside\n"
    return process


@pytest.fixture
def killed(tmp_path):
    """Return a function that starts a process, runs a check and kills the process."""

    def run(*arguments, check=lambda: None):
        with begin(tmp_path, *arguments) as process:
            try:
                check()
            finally:
                process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    return run


@pytest.mark.parametrize("name", ["a.json", "a.weights.json"])
def test_temporary_files_of_a_killed_process_are_removed(tmp_path, killed, name):
    path = tmp_path / name
    path.write_text("old")
    kept = {".a-notes.json", ".b-1-0a1b2c3d.json", ".a-1-0a1b2c3d.csv", "a-1-0a1b2c3d.json"}
    for other in kept:
        (tmp_path / other).touch()
    killed("atomic_write", name)
    assert len(list(tmp_path.iterdir())) == len(kept) + 2
    remove_partial_files(path)
    assert {path.name for path in tmp_path.iterdir()} == {name, *kept}
    assert path.read_text() == "old"


def test_a_lock_keeps_other_processes_out_until_its_process_ends(tmp_path, killed):
    path = tmp_path / "new folder" / "lock"

    def refuse():
        with pytest.raises(BlockingIOError, match=r"^busy$"), file_lock(path, "busy"):
            pytest.fail("two processes hold the lock")

    killed("file_lock", "new folder/lock", "busy", check=refuse)
    with file_lock(path, "busy"):
        assert path.exists()
    assert list(path.parent.iterdir()) == []


def test_a_lock_holds_in_the_same_process_and_ends_with_its_block(tmp_path):
    path = tmp_path / "lock"
    for _ in range(2):
        with file_lock(path, "busy"), pytest.raises(BlockingIOError), file_lock(path, "busy"):
            pytest.fail("two processes hold the lock")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), file_lock(path, "busy"):
        1 / 0  # noqa: B018
    with file_lock(path, "busy"):
        pass


COUNTER = """
from pathlib import Path
from nuclei_utils.files import file_lock
count = 0
while count < 200:
    try:
        with file_lock("lock", "busy"):
            number = int(Path("number").read_text())
            Path("number").write_text(str(number + 1))
            count += 1
    except BlockingIOError:
        pass
"""


def test_processes_that_create_and_remove_a_lock_never_hold_it_together(tmp_path):
    (tmp_path / "number").write_text("0")
    counters = [subprocess.Popen([sys.executable, "-c", COUNTER], cwd=tmp_path) for _ in range(3)]
    assert [counter.wait() for counter in counters] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "600"


def test_a_file_system_without_locks_is_accepted(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with file_lock(tmp_path / "lock", "busy"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_name_outside_of_utf_8_is_escaped():
    assert printable_name("Kern ä.png") == "Kern ä.png"
    assert printable_name(os.fsdecode(b"a\xff.png")).encode() == b"a\\udcff.png"
