"""Tests of the command line: exit statuses, what goes to stdout and what to stderr."""

import subprocess
import sys
from pathlib import Path

import pytest

from nuclei_utils import cli, data, download


@pytest.fixture
def fetched(monkeypatch):
    """Replace the work by a record of what was asked."""
    calls = []

    def fetch(*arguments):
        calls.append(arguments)
        return [
            download.Report(Path("dsb") / "stage1_train", 670, 29461, 78_700_000, 12.34, True),
            download.Report(Path("dsb") / "stage1_test", 65, 0, 9_500_000, 0.2, False),
        ]

    monkeypatch.setattr(download, "fetch", fetch)
    return calls


def fail(error):
    def fetch(*_arguments):
        raise error

    return fetch


def test_data_passes_its_options_on_and_prints_what_is_where(fetched, capsys):
    assert cli.main(["data"]) == 0
    assert cli.main(["data", "--source", "/zips", "--dest", "dsb", "--fixes"]) == 0
    assert fetched == [(download.BROAD, None, False), ("/zips", "dsb", True)]
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "stage1_train 670 images 29,461 masks 78.7 MB 12.3 s dsb/stage1_train"
    assert "already there" in lines[1]


@pytest.mark.usefixtures("fetched")
def test_data_in_another_place_says_how_to_use_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path / "home"))
    place = tmp_path / "a disk" / "dsb2018"
    cli.main(["data", "--dest", str(place)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"to use these images:  export NUCLEI_HOME='{tmp_path / 'a disk'}'"
    ]
    cli.main(["data", "--dest", str(place.with_name("dsb"))])
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"the course looks for a folder named dsb2018: rename {place.with_name('dsb')} to {place}",
        f"to use these images:  export NUCLEI_HOME='{tmp_path / 'a disk'}'",
    ]
    for words in ([], ["--dest", str(tmp_path / "home" / "dsb2018")]):
        cli.main(["data", *words])
        assert len(capsys.readouterr().out.splitlines()) == 2, "there they are found without more ado"


@pytest.mark.parametrize("error", [data.DataError("x.zip: broken"), OSError("x.zip: broken")])
def test_an_expected_failure_is_one_line_on_stderr(error, monkeypatch, capsys):
    monkeypatch.setattr(download, "fetch", fail(error))
    assert cli.main(["data"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "nuclei-utils data: x.zip: broken\n"


def test_an_interruption_is_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(download, "fetch", fail(KeyboardInterrupt()))
    assert cli.main(["data"]) == 1
    assert "interrupted" in capsys.readouterr().err


def test_a_mistake_in_the_program_shows_itself(monkeypatch):
    monkeypatch.setattr(download, "fetch", fail(ValueError("bug")))
    with pytest.raises(ValueError, match="bug"):
        cli.main(["data"])


def test_a_warning_is_one_line_on_stderr(monkeypatch, capsys):
    def fetch(*_arguments):
        download.warnings.warn("another fingerprint", stacklevel=2)
        return []

    monkeypatch.setattr(download, "fetch", fetch)
    assert cli.main(["data"]) == 0
    assert capsys.readouterr().err == "warning: another fingerprint\n"


@pytest.mark.parametrize("words", [[], ["nonsense"], ["data", "--nonsense"], ["data", "--source"]])
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], "COMMAND --help"),
        (["data", "--help"], "examples:"),
        (["data", "--help"], "export NUCLEI_HOME=/big/disk"),
    ],
)
def test_help_teaches(words, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 0
    assert expected in capsys.readouterr().out


def test_help_is_quick_and_loads_no_heavy_package():
    code = "import sys, nuclei_utils.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "numpy", "pandas", "cv2"} & set(done.stdout.split())


def test_the_module_runs_and_fails_with_a_status(tmp_path):
    command = [sys.executable, "-m", "nuclei_utils", "data", "--source", tmp_path, "--dest", tmp_path / "dest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"nuclei-utils data: {tmp_path}: lacks stage1_train.zip, stage1_test.zip")
    assert "Traceback" not in done.stderr
