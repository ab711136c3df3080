"""Files are whole or not there, also where two processes write the same one."""

import subprocess
import sys

import pytest

from nuclei_utils.files import remove_older, written_whole


def test_a_file_is_put_in_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new folder" / "a.json"
    for text in ("first", "second"):
        with written_whole(str(path)) as aside:
            assert aside.suffix == ".json"
            aside.write_text(text)
            assert text == "first" or path.read_text() == "first"
        assert path.read_text() == text
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write():
        with written_whole(path) as aside:
            aside.write_text("half of i")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_before_anything_is_written_shows_itself(tmp_path):
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a.json"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_two_writers_in_one_process_do_not_clash(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as outer:
        outer.write_text("outer")
        with written_whole(path) as inner:
            inner.write_text("inner")
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"


WRITER = """
import sys
from nuclei_utils.files import written_whole
for _ in range(50):
    with written_whole("a.txt") as aside:
        with aside.open("w") as file:
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


def test_only_older_ones_of_the_same_name_are_removed(tmp_path):
    kept = ["stage1-0a1b.npz", "stage1-0a1b.txt", "stage1-0a1b2.npz", "stage1-notes.npz", "stage1_fixed-ffff.npz"]
    for name in [*kept, "stage1-ffff.npz"]:
        (tmp_path / name).touch()
    remove_older(tmp_path / kept[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_older_folders_are_removed_with_what_they_hold(tmp_path):
    for name in ("sample-00", "sample-ff"):
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "a" / "b.png").touch()
    remove_older(tmp_path / "sample-ff")
    assert [path.name for path in tmp_path.iterdir()] == ["sample-ff"]
