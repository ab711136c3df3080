"""What stands beside the figures: the command, the commit, the machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import explore, results
from nuclei_utils import datasets


@pytest.fixture
def as_benchmark(monkeypatch):
    """Let this process look like `python -m benchmarks.explore --data sample`."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="benchmarks.explore"))
    monkeypatch.setattr(sys, "argv", ["explore.py", "--data", "sample"])
    for name in [name for name in os.environ if name.startswith("NUCLEI_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("as_benchmark")
def test_command_names_the_variables_that_are_set(monkeypatch):
    assert results.command() == "python -m benchmarks.explore --data sample"
    monkeypatch.setenv("NUCLEI_PROFILE", "full")
    monkeypatch.setenv("NUCLEI_DATA", "stage1")
    monkeypatch.setenv("NUCLEI_HOME", "/somebody/at home")
    assert results.command() == "NUCLEI_DATA=stage1 NUCLEI_PROFILE=full python -m benchmarks.explore --data sample"
    monkeypatch.setattr(sys, "argv", ["explore.py"])
    assert results.command().endswith("benchmarks.explore")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_that_of_the_checkout_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit() is None
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "--quiet"], [*identity, "commit", "--quiet", "--allow-empty", "--message", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{7,}", results.commit())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert results.commit() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("processor: 0\nmodel name\t: AMD: EPYC\n", "AMD: EPYC"), ("processor: 0\nCPU part: 0xd0c\n", ""), (None, "")],
)
def test_a_processor_without_a_name_is_no_obstacle(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(results, "CPU", tmp_path / "cpuinfo")
    if text is not None:
        results.CPU.write_text(text)
    assert results.processor()
    assert results.processor() == expected or not expected


@pytest.mark.usefixtures("as_benchmark")
def test_results_are_written_with_their_circumstances(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    path = results.write("x", {"dice": 0.5})
    written = json.loads(path.read_text())
    assert list(written) == ["command", "date", "commit", "hardware", "versions", "python", "dice"]
    assert written["command"] == "python -m benchmarks.explore --data sample"
    assert list(path.parent.iterdir()) == [path]


def test_resizing_counts_what_vanishes_and_what_is_wrong():
    labels = np.zeros((8, 8), np.int32)
    labels[:4, :4] = 1  # shrinks to 2 x 2 pixels, its area is right
    labels[6, 6] = 2  # between the pixels that are kept
    found = explore.resizing([datasets.Record("a", np.zeros((8, 8, 3), np.uint8), labels, "")], size=4)
    assert json.loads(json.dumps(found)) == {
        "size": 4,
        "nuclei": 2,
        "vanished": 1,
        "mean_error_of_area_percent": 50,
    }


@pytest.mark.usefixtures("as_benchmark")
def test_runs_are_added_to_what_is_there_each_with_its_circumstances(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert results.runs("x") == {}
    for name, dice in {"a": 0.1, "b": 0.2, "a, again": 0.3}.items():
        results.add("x", name, {"dice": dice}, data="sample")
    assert {name: run["dice"] for name, run in results.runs("x").items()} == {"a": 0.1, "b": 0.2, "a, again": 0.3}
    assert all(run["hardware"] for run in results.runs("x").values())
    assert json.loads((tmp_path / "x.json").read_text())["data"] == "sample"
