"""Tests of the command line: exit statuses, stdout and stderr of all commands; the commands `data` and `evaluate`."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nuclei_utils import cli, download, export, io
from nuclei_utils.errors import NucleiError
from tests.commands import image_of, run, three_nuclei, write_image


@pytest.fixture
def fetch_calls(monkeypatch):
    """Replace the download, and record its arguments."""
    calls = []

    def fetch(*arguments):
        calls.append(arguments)
        return [
            download.Report(Path("dsb") / "stage1_train", 670, 29461, 78_700_000, 12.34, True),
            download.Report(Path("dsb") / "stage1_test", 65, 0, 9_500_000, 0.2, False),
        ]

    monkeypatch.setattr(download, "fetch", fetch)
    return calls


def raising(error):
    def fetch(*_arguments):
        raise error

    return fetch


# data


def test_data_passes_its_options_on_and_prints_each_folder(fetch_calls, capsys):
    assert run("data") == 0
    assert run("data", "--source", "/zips", "--dest", "dsb", "--fixes") == 0
    assert fetch_calls == [(download.BROAD, None, False), ("/zips", "dsb", True)]
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "stage1_train 670 images 29,461 masks 78.7 MB 12.3 s dsb/stage1_train"
    assert "already there" in lines[1]


@pytest.mark.usefixtures("fetch_calls")
def test_data_in_another_folder_explains_the_variable(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path / "home"))
    export_line = f"export NUCLEI_HOME='{tmp_path / 'a disk'}'"
    for dest, hints in [
        (None, 0),
        (tmp_path / "home" / "dsb2018", 0),
        (tmp_path / "a disk" / "dsb2018", 1),
        (tmp_path / "a disk" / "dsb", 2),
    ]:
        run("data", *(["--dest", dest] if dest else []))
        lines = capsys.readouterr().out.splitlines()[2:]
        assert len(lines) == hints
        assert not hints or export_line in lines[-1]
        assert hints < 2 or f"rename {dest} to {dest.with_name('dsb2018')}" in lines[0]


# Errors, warnings, help


@pytest.mark.parametrize("error", [NucleiError("x.zip: broken"), OSError("x.zip: broken")])
def test_an_expected_error_is_one_line_on_stderr(error, monkeypatch, capsys):
    monkeypatch.setattr(download, "fetch", raising(error))
    assert run("data") == 1
    assert capsys.readouterr() == ("", "nuclei-utils data: x.zip: broken\n")


def test_an_interruption_is_one_line_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(download, "fetch", raising(KeyboardInterrupt()))
    assert run("data") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted" in line


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(download, "fetch", raising(ValueError("bug")))
    with pytest.raises(ValueError, match="bug"):
        run("data")


@pytest.mark.filterwarnings("default")  # the command prints warnings, and the test reads them
def test_a_warning_is_one_line_on_stderr(monkeypatch, capsys):
    def fetch(*_arguments):
        download.warnings.warn("another fingerprint", stacklevel=2)
        return []

    monkeypatch.setattr(download, "fetch", fetch)
    assert run("data") == 0
    assert capsys.readouterr().err == "warning: another fingerprint\n"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "nonsense",
        "data --nonsense",
        "data --source",
        "data --dest ~no-such-user/dsb2018",
        "train --model resnet --out a.keras",
        "train --model unet --out a.h5",
        "train --model unet --out a.keras --epochs 0",
        "predict --out result",
        "predict a.png",
        *(
            f"predict a.png --out result {option}"
            for option in (
                "--pixel-size -1",
                "--pixel-size nan",
                "--tta 3",
                "--prob-thresh 1",
                "--prob-thresh x",
                "--min-size -1",
                "--min-size 2.5",
                "--max-pixels 0",
            )
        ),
        "evaluate result",
    ],
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*words.split())
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], *([command] for command in cli.COMMANDS)])
def test_help_has_examples_and_loads_no_large_package(command):
    code = (
        "import sys, nuclei_utils.cli as c\n"
        "try: c.main([*sys.argv[1:], '--help'])\n"
        "except SystemExit as end: print(end.code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    status, *loaded = done.stderr.split()
    assert status == "0"
    assert f"nuclei_utils {command[0]} " in done.stdout if command else "COMMAND --help" in done.stdout
    large = {"tensorflow", "keras", "numpy", "pandas", "skimage", "matplotlib", "scipy", "cv2", "PIL"}
    assert not large & set(loaded)


def test_the_module_runs_and_exits_with_a_status(tmp_path):
    command = [sys.executable, "-m", "nuclei_utils", "data", "--source", tmp_path, "--dest", tmp_path / "dest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("nuclei-utils data: ")
    assert "stage1_train.zip" in line


# evaluate


def write_label_map(path, label_map):
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_label_map(path, label_map)


@pytest.fixture
def predicted(tmp_path):
    """Results of two images beside masks and overlays; in the second image, a nucleus is missing."""
    folder = tmp_path / "out"
    for name, label_map in {"a": three_nuclei(), "b": np.where(three_nuclei() == 2, 0, three_nuclei())}.items():
        write_label_map(folder / f"{name}_labels.png", label_map)
        io.write_mask(folder / f"{name}_mask.png", label_map)
        export.write_overlay(folder / f"{name}_overlay.png", image_of(label_map), label_map)
    return folder


def write_truth(layout, folder):
    """Write the truth of the two images in a layout. Return its path."""
    label_map = three_nuclei()
    if layout == "csv":
        rows = export.submission_table(dict.fromkeys(("a", "b.ome"), label_map))  # as `predict` names b.ome.tif
        rows.assign(Height=60, Width=80, Usage="Public").to_csv(folder / "solution.csv", index=False)
        return folder / "solution.csv"
    for name in "ab":
        if layout == "masks":
            masks = folder / "truth" / name / "masks"
            masks.mkdir(parents=True)
            for label in (1, 2, 3):
                cv2.imwrite(str(masks / f"{label}.png"), (label_map == label) * np.uint8(255))
        else:
            write_label_map(folder / "truth" / (layout % name), label_map)
    return folder / "truth"


@pytest.mark.parametrize("layout", ["%s.png", "%s_labels.tif", "labels/%s.tif", "masks", "csv"])
def test_evaluate_reads_every_layout_of_the_truth(layout, predicted, tmp_path, capsys):
    assert run("evaluate", predicted, "--truth", write_truth(layout, tmp_path), "--json") == 0
    output = capsys.readouterr()
    assert output.err == ""
    report = json.loads(output.out)
    assert report["semantic"]["dice"] == pytest.approx((1 + 2 * 2 / (2 + 3)) / 2)
    assert report["semantic"]["recall"] == pytest.approx((1 + 2 / 3) / 2)
    assert report["instances"]["score"] == pytest.approx((1 + 2 / 3) / 2)
    assert (report["instances"]["true"], report["instances"]["predicted"]) == (6, 5)
    first = report["instances"]["thresholds"][0]
    assert (first["threshold"], first["ap"], first["tp"], first["fn"]) == (0.5, pytest.approx(5 / 6), 5, 1)
    assert [(row["image"], row["true"], row["predicted"]) for row in report["per_image"]] == [("a", 3, 3), ("b", 3, 2)]


def test_evaluate_prints_a_table_and_names_missing_images(predicted, tmp_path, capsys):
    truth = write_truth("%s.png", tmp_path)
    (truth / "a.png").rename(truth / "c.png")
    assert run("evaluate", predicted, "--truth", truth) == 1
    output = capsys.readouterr()
    assert "no prediction for c" in output.err
    assert "no truth for a" in output.err
    assert "score      0.6667" in output.out
    assert len([line for line in output.out.splitlines() if line.startswith("  0.")]) == 10
    (truth / "c.png").unlink()
    assert run("evaluate", predicted, "--truth", truth) == 0, "a prediction without a truth is no failure"


def test_an_empty_label_map_gives_plain_json(tmp_path, capsys):
    write_label_map(tmp_path / "out" / "a.png", np.zeros((60, 80), int))
    write_label_map(tmp_path / "truth" / "a.png", three_nuclei())
    assert run("evaluate", tmp_path / "out", "--truth", tmp_path / "truth", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["instances"]["score"] == 0
    assert report["instances"]["thresholds"][0]["matched_iou"] is None


def palette_png(path):
    image = Image.fromarray(three_nuclei().astype(np.uint8)).convert("P")
    image.putpalette([value for number in range(256) for value in (number, 255 - number, 9)])
    image.save(path)


TRUTHS = {
    "other names": (lambda folder: write_label_map(folder / "z.png", three_nuclei()), "names"),
    "other size": (lambda folder: write_label_map(folder / "a.png", three_nuclei()[:50]), "(50, 80)"),
    "two files": (lambda folder: [write_label_map(folder / f"a.{e}", three_nuclei()) for e in ("png", "tif")], "a.tif"),
    "empty": (lambda folder: None, "no label maps"),
    "palette": (lambda folder: palette_png(folder / "a.png"), "a.png"),
    "jpeg": (lambda folder: Image.fromarray(three_nuclei().astype(np.uint8)).save(folder / "a.png", "JPEG"), "a.png"),
    "postscript": (lambda folder: (folder / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "a.png"),
    "missing": (lambda folder: folder.rmdir(), "missing"),
}


@pytest.mark.parametrize("case", TRUTHS)
def test_a_truth_that_cannot_be_scored_is_refused(case, predicted, tmp_path, capsys):
    write, word = TRUTHS[case]
    (tmp_path / "truth").mkdir()
    write(tmp_path / "truth")
    assert run("evaluate", predicted, "--truth", tmp_path / "truth") == 1
    output = capsys.readouterr()
    assert word in output.err
    assert output.out == ""


def test_a_solution_of_images_that_are_too_large_is_refused(predicted, tmp_path, capsys):
    (tmp_path / "solution.csv").write_text("ImageId,EncodedPixels,Height,Width\na,1 1,1000000,1000000\n")
    assert run("evaluate", predicted, "--truth", tmp_path / "solution.csv") == 1
    assert "solution.csv, line 2" in capsys.readouterr().err


def test_a_mask_in_place_of_a_label_map_is_named(predicted, tmp_path, capsys):
    for name in "ab":
        write_label_map(tmp_path / "truth" / f"{name}.png", (three_nuclei() > 0) * 255)
    assert run("evaluate", predicted, "--truth", tmp_path / "truth") == 0
    assert capsys.readouterr().err.count("is it a mask?") == 2


def test_a_label_map_with_another_form_of_name_is_refused(predicted, tmp_path, capsys):
    truth = write_truth("%s_labels.png", tmp_path)
    write_image(truth / "a.png")  # the image itself may be in the folder
    assert run("evaluate", predicted, "--truth", truth) == 0
    (truth / "b_labels.png").rename(truth / "b.png")
    for words in ((predicted, "--truth", truth), (truth, "--truth", predicted)):
        assert run("evaluate", *words) == 1
        assert "b_labels" in capsys.readouterr().err
