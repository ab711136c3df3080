"""Tests of the command line: exit statuses, what goes to stdout and what to stderr."""

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


@pytest.mark.parametrize("error", [NucleiError("x.zip: broken"), OSError("x.zip: broken")])
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


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["data", "--nonsense"],
        ["data", "--source"],
        ["data", "--dest", "~no-such-user/dsb2018"],
        ["train", "--model", "resnet", "--out", "a.keras"],
        ["train", "--model", "unet", "--out", "a.h5"],
        ["train", "--model", "unet", "--out", "a.keras", "--epochs", "0"],
        ["train", "--model", "unet", "--out", "a.keras", "--size", "100"],
        ["predict", "--out", "result"],
        ["predict", "a.png"],
        ["predict", "a.png", "--out", "result", "--pixel-size", "-1"],
        ["predict", "a.png", "--out", "result", "--pixel-size", "nan"],
        ["predict", "a.png", "--out", "result", "--tta", "3"],
        ["predict", "a.png", "--out", "result", "--max-pixels", "0"],
        ["evaluate", "result"],
    ],
)
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
        (["train", "--help"], "train --model instance_unet --epochs 60 --data mine --out mine.keras --resume"),
        (["predict", "--help"], "predict photo.png --out result"),
        (["evaluate", "--help"], "evaluate result --truth stage1_solution.csv"),
    ],
)
def test_help_teaches(words, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["data"], ["train"], ["predict"], ["evaluate"]])
def test_help_is_quick_and_loads_no_heavy_package(command):
    code = (
        "import sys, nuclei_utils.cli as c\n"
        "try: c.main([*sys.argv[1:], '--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "argparse" in loaded
    assert not {"tensorflow", "keras", "numpy", "pandas", "skimage", "matplotlib", "scipy", "cv2", "PIL"} & loaded


def test_the_module_runs_and_fails_with_a_status(tmp_path):
    command = [sys.executable, "-m", "nuclei_utils", "data", "--source", tmp_path, "--dest", tmp_path / "dest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"nuclei-utils data: {tmp_path}: lacks stage1_train.zip, stage1_test.zip")
    assert "Traceback" not in done.stderr


# What the commands below work on


def three_nuclei(shift=0):
    """A label map (60, 80) of three squares."""
    labels = np.zeros((60, 80), np.int32)
    for number, left in enumerate((5, 30, 55), start=1):
        labels[10 + shift : 26 + shift, left : left + 16] = number
    return labels


def picture(labels):
    """Bright nuclei on dark ground."""
    return np.repeat((labels > 0)[..., None] * np.uint8(200) + np.uint8(20), 3, axis=2)


def write_picture(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(labels))
    return path


def write_masks(folder, labels):
    folder.mkdir(parents=True)
    for number in range(1, labels.max() + 1):
        cv2.imwrite(str(folder / f"{number}.png"), (labels == number) * np.uint8(255))


def export_labels(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_label_map(path, labels)


def run(*words):
    return cli.main([str(word) for word in words])


# evaluate


@pytest.fixture
def results(tmp_path):
    """Predictions of two images beside masks and overlays; in one of them a nucleus is missing."""
    found = {"a": three_nuclei(), "b": np.where(three_nuclei() == 2, 0, three_nuclei())}
    for name, labels in found.items():
        export_labels(tmp_path / "out" / f"{name}_labels.png", labels)
        io.write_mask(tmp_path / "out" / f"{name}_mask.png", labels)
        export.write_overlay(tmp_path / "out" / f"{name}_overlay.png", picture(labels), labels)
    return tmp_path / "out"


def write_truth(image_type, tmp_path):
    place = tmp_path / "truth"
    for name in "ab":
        if image_type == "masks":
            write_masks(place / name / "masks", three_nuclei())
        elif image_type != "csv":
            export_labels(place / (image_type % name), three_nuclei())
    if image_type == "csv":
        place = tmp_path / "solution.csv"
        rows = export.submission_table({name: three_nuclei() for name in "ab"})
        rows.assign(Height=60, Width=80, Usage="Public").to_csv(place, index=False)
    return place


@pytest.mark.parametrize("image_type", ["%s.png", "%s_labels.tif", "labels/%s.tif", "masks", "csv"])
def test_evaluate_reads_every_kind_of_truth(image_type, results, tmp_path, capsys):
    assert run("evaluate", results, "--truth", write_truth(image_type, tmp_path), "--json") == 0
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


def test_evaluate_prints_a_table_and_names_what_is_missing(results, tmp_path, capsys):
    truth = write_truth("%s.png", tmp_path)
    (truth / "a.png").rename(truth / "c.png")
    assert run("evaluate", results, "--truth", truth) == 1
    output = capsys.readouterr()
    assert "no prediction for c; the scores are those of the 1 others" in output.err
    assert "no truth for a; left out" in output.err
    assert "score      0.6667" in output.out
    assert len([line for line in output.out.splitlines() if line.startswith("  0.")]) == 10
    (truth / "c.png").unlink()
    assert run("evaluate", results, "--truth", truth) == 0, "what is too much is no failure"


def test_nothing_found_is_plain_json(tmp_path, capsys):
    export_labels(tmp_path / "out" / "a.png", np.zeros((60, 80), int))
    export_labels(tmp_path / "truth" / "a.png", three_nuclei())
    assert run("evaluate", tmp_path / "out", "--truth", tmp_path / "truth", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["instances"]["score"] == 0
    assert report["instances"]["thresholds"][0]["matched_iou"] is None


def test_what_cannot_be_evaluated_says_why(results, tmp_path, capsys):
    export_labels(tmp_path / "other" / "z.png", three_nuclei())
    export_labels(tmp_path / "small" / "a.png", three_nuclei()[:50])
    export_labels(tmp_path / "twice" / "a.png", three_nuclei())
    export_labels(tmp_path / "twice" / "a.tif", three_nuclei())
    (tmp_path / "empty").mkdir()
    for name, message in {
        "other": "the names must agree",
        "small": "a: the predicted label map is (60, 80), the true one (50, 80)",
        "twice": "a.png and a.tif are of one image",
        "empty": "holds no label maps",
        "missing": "is missing",
    }.items():
        assert run("evaluate", results, "--truth", tmp_path / name) == 1
        output = capsys.readouterr()
        assert message in output.err
        assert output.out == ""


def test_a_mask_in_place_of_a_label_map_is_named(results, tmp_path, capsys):
    for name in "ab":
        export_labels(tmp_path / "truth" / f"{name}.png", (three_nuclei() > 0) * 255)
    assert run("evaluate", results, "--truth", tmp_path / "truth") == 0
    assert capsys.readouterr().err.count("is it a mask?") == 2


def test_a_label_map_that_is_named_in_another_way_is_not_left_out(results, tmp_path, capsys):
    truth = write_truth("%s_labels.png", tmp_path)
    write_picture(truth / "a.png", three_nuclei())  # the image itself is no obstacle
    assert run("evaluate", results, "--truth", truth) == 0
    (truth / "b_labels.png").rename(truth / "b.png")
    for words in ((results, "--truth", truth), (truth, "--truth", results)):
        assert run("evaluate", *words) == 1
        assert "found b.png, but no b_labels" in capsys.readouterr().err


def palette_png(path, labels):
    picture = Image.fromarray(labels.astype(np.uint8), "L").convert("P")
    picture.putpalette([value for number in range(256) for value in (number, 255 - number, 9)])
    picture.save(path)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (palette_png, "palette"),
        (lambda path, labels: Image.fromarray(labels.astype(np.uint8)).save(path, "JPEG"), "JPEG"),
        (lambda path, labels: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not a PNG"),
    ],
    ids=["palette", "jpeg", "postscript"],
)
def test_label_maps_that_would_be_misread_are_refused(save, message, results, tmp_path, capsys):
    truth = write_truth("%s.png", tmp_path)
    save(truth / "a.png", three_nuclei())
    assert run("evaluate", results, "--truth", truth) == 1
    error = capsys.readouterr().err
    assert "a.png" in error
    assert message in error


def test_a_solution_of_images_that_fit_into_no_memory_is_refused(results, tmp_path, capsys):
    (tmp_path / "solution.csv").write_text("ImageId,EncodedPixels,Height,Width\na,1 1,1000000,1000000\n")
    assert run("evaluate", results, "--truth", tmp_path / "solution.csv") == 1
    assert "solution.csv, line 2" in capsys.readouterr().err
