"""Tests of the command line: exit statuses, what goes to stdout and what to stderr."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

from nuclei_utils import cli, data, download, export, models, predict, recipes, training
from nuclei_utils.commands import predict as predicting
from nuclei_utils.commands import train as learning
from tests.interruption import PullThePlug


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


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["data", "--nonsense"],
        ["data", "--source"],
        ["train", "--model", "resnet", "--out", "a.keras"],
        ["train", "--model", "unet", "--out", "a.h5"],
        ["train", "--model", "unet", "--out", "a.keras", "--epochs", "0"],
        ["train", "--model", "unet", "--out", "a.keras", "--size", "100"],
        ["predict", "--out", "result"],
        ["predict", "a.png"],
        ["predict", "a.png", "--out", "result", "--pixel-size", "-1"],
        ["predict", "a.png", "--out", "result", "--pixel-size", "nan"],
        ["predict", "a.png", "--out", "result", "--views", "3"],
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


def own_images(folder, count=5):
    for number in range(count):
        labels = three_nuclei(number)
        write_picture(folder / "images" / f"cell{number}.png", labels)
        export_labels(folder / "labels" / f"cell{number}.png", labels)
    return folder


def export_labels(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    export.write_labels(path, labels)


def run(*words):
    return cli.main([str(word) for word in words])


# train


@pytest.fixture
def eager(monkeypatch):
    """For a few tiny batches, compiling would take longer than training."""
    compile_model = training.compile_model

    def compile_eagerly(model, *arguments, **words):
        compile_model(model, *arguments, **words)
        model.run_eagerly = True
        return model

    monkeypatch.setattr(training, "compile_model", compile_eagerly)


@pytest.fixture
def quick(monkeypatch, eager):
    """Train a tiny network on a few pixels; return what makes a training stop as Ctrl-C does."""
    masks = tf.cast(tf.random.stateless_uniform((4, 16, 16, 1), (0, 0)) > 0.5, tf.float32)
    batches = tf.data.Dataset.from_tensors((tf.repeat(masks, 3, axis=-1), masks))
    monkeypatch.setattr(learning, "_batches", lambda *_: (batches, batches))
    monkeypatch.setattr(recipes, "build", lambda *_: models.unet(filters=2, depth=1))
    plain = training.callbacks
    epochs = []

    def callbacks(*arguments):
        return [*plain(*arguments), *(PullThePlug(epoch) for epoch in epochs)]

    monkeypatch.setattr(training, "callbacks", callbacks)
    return epochs


def train_words(tmp_path, *more):
    if not (tmp_path / "mine").exists():
        own_images(tmp_path / "mine")
    return [
        "train",
        "--model",
        "unet",
        "--epochs",
        2,
        "--data",
        tmp_path / "mine",
        "--out",
        tmp_path / "m.keras",
        *more,
    ]


@pytest.mark.usefixtures("eager")
def test_train_writes_a_model_its_history_and_its_curves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning, "CROPS", 4)
    monkeypatch.setattr(learning, "BATCH", {64: 4})
    monkeypatch.setattr(learning, "FILTERS", {"unet": 4})
    words = ["--size", 64, "--channels", 0.5, "--epochs", 1, "--data", own_images(tmp_path / "mine")]
    assert run("train", "--model", "unet", *words, "--out", tmp_path / "m.keras") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "m.keras", "m_history.csv", "m_curves.png"}
    assert predicting.load_model(tmp_path / "m.keras").layers[1].filters == 2
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0]
    assert data.read_image(tmp_path / "m_curves.png").shape[0] > 100
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "trained on 4 images for 1 epochs, validated on 1 images"
    assert "val_dice" in output.err, "progress goes to stderr"


def test_ctrl_c_keeps_the_best_so_far_and_resume_goes_on(tmp_path, quick, capsys):
    quick.append(1)
    assert run(*train_words(tmp_path)) == 1
    error = capsys.readouterr().err
    assert f"interrupted after 1 of 2 epochs; the best so far is in {tmp_path / 'm.keras'}" in error
    assert error.rstrip().endswith(f"--out {tmp_path / 'm.keras'} --resume")
    assert len(pd.read_csv(tmp_path / "m_history.csv")) == 1
    assert (tmp_path / "m_curves.png").is_file()
    predicting.load_model(tmp_path / "m.keras")

    assert run(*train_words(tmp_path)) == 1, "it is not thrown away"
    assert "broken off after 1 epochs: go on with --resume" in capsys.readouterr().err
    assert run(*train_words(tmp_path, "--resume", "--seed", 1)) == 1
    assert "was begun with other --seed: 0, not 1" in capsys.readouterr().err

    quick.clear()
    assert run(*train_words(tmp_path, "--resume")) == 0
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]
    assert not (tmp_path / "m.training").exists()


def test_ctrl_c_in_the_first_epoch_leaves_nothing(tmp_path, quick, capsys):
    quick.append(0)
    assert run(*train_words(tmp_path)) == 1
    assert "nothing to keep" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


@pytest.mark.usefixtures("quick")
def test_train_replaces_no_model_and_no_foreign_folder(tmp_path, capsys):
    (tmp_path / "m.keras").write_text("hours of work")
    assert run(*train_words(tmp_path)) == 1
    assert run(*train_words(tmp_path, "--resume")) == 1
    assert capsys.readouterr().err.count("is there already") == 2
    assert (tmp_path / "m.keras").read_text() == "hours of work"
    (tmp_path / "m.keras").unlink()
    (tmp_path / "m.training").mkdir()
    (tmp_path / "m.training" / "notes.txt").touch()
    assert run(*train_words(tmp_path)) == 1
    assert "is in the way" in capsys.readouterr().err
    assert (tmp_path / "m.training" / "notes.txt").exists()


@pytest.mark.usefixtures("quick")
def test_a_pretrained_encoder_rests_in_the_first_half(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "pretrained", lambda: "imagenet")
    thawed = []
    monkeypatch.setattr(models, "train_encoder", lambda model, blocks: thawed.append(blocks))
    words = train_words(tmp_path)
    words[2] = "mobilenet_unet"
    assert run(*words) == 0
    assert thawed == [recipes.FINE_TUNED_BLOCKS]
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]


def test_a_fifth_is_validated_on_and_the_seed_chooses_it(tmp_path):
    sides = [learning._records(own_images(tmp_path / "mine", 10), seed) for seed in (0, 0, 1)]
    names = [[[record.id for record in side] for side in both] for both in sides]
    assert [len(side) for side in names[0]] == [8, 2]
    assert not set(names[0][0]) & set(names[0][1])
    assert names[0] == names[1] != names[2]
    with pytest.raises(data.DataError, match="at least two are needed"):
        learning._records(own_images(tmp_path / "one", 1), 0)


# predict


@pytest.fixture
def finder(monkeypatch):
    """Bright is nucleus, and the options that were asked for are kept; no network is needed."""
    asked = []

    def labels(model, image, **options):
        asked.append((model, options))
        return cv2.connectedComponents((image[..., 0] > 128).astype(np.uint8))[1]

    monkeypatch.setattr(predict, "default_model", lambda: "the default")
    monkeypatch.setattr(predict, "labels", labels)
    monkeypatch.setattr(predict, "agreement", lambda *_, **__: 0.9)
    return asked


def test_predict_writes_labels_masks_overlays_and_tables(tmp_path, finder, capsys):
    write_picture(tmp_path / "in" / "a.png", three_nuclei())
    write_picture(tmp_path / "in" / "b.tif", three_nuclei(20))
    (tmp_path / "in" / "notes.txt").touch()
    out = tmp_path / "deep" / "out"
    words = ["--pixel-size", 0.5, "--format", "geojson", "--format", "rois", "--views", 4]
    assert run("predict", tmp_path / "in", tmp_path / "in" / "a.png", "--out", out, *words) == 0
    each = ("_labels.png", "_mask.png", "_overlay.png", ".geojson", "_rois.zip")
    assert {path.name for path in out.iterdir()} == {
        "nuclei.csv",
        "submission.csv",
        *(f"{name}{ending}" for name in "ab" for ending in each),
    }
    assert np.array_equal(export.read_labels(out / "b_labels.png"), three_nuclei(20))
    assert np.array_equal(data.read_mask(out / "a_mask.png"), three_nuclei() > 0)
    assert data.read_image(out / "a_overlay.png").shape == (60, 80, 3)
    table = pd.read_csv(out / "nuclei.csv")
    assert table["image"].tolist() == ["a"] * 3 + ["b"] * 3
    assert table["area"].tolist() == [16 * 16 * 0.5**2] * 6
    assert pd.read_csv(out / "submission.csv")["ImageId"].tolist() == ["a"] * 3 + ["b"] * 3
    assert [(model, options["views"]) for model, options in finder] == [("the default", 4)] * 2
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        "a  3 nuclei  agreement 0.90",
        "b  3 nuclei  agreement 0.90",
        f"2 of 2 images, 6 nuclei: {out}",
    ]
    assert output.err == ""


@pytest.mark.usefixtures("finder")
def test_one_broken_image_does_not_stop_the_rest(tmp_path, capsys):
    broken = write_picture(tmp_path / "in" / "a.png", three_nuclei())
    broken.write_bytes(broken.read_bytes()[:-20])
    write_picture(tmp_path / "in" / "b.png", three_nuclei())
    (tmp_path / "empty").mkdir()
    words = [tmp_path / "in", tmp_path / "missing.png", tmp_path / "empty", "--out", tmp_path / "out"]
    assert run("predict", *words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for name, line in zip(("empty", "in/a.png", "missing.png"), lines, strict=True):
        assert line.startswith(f"nuclei-utils predict: {tmp_path / name}")
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].unique().tolist() == ["b"]


@pytest.mark.usefixtures("finder")
def test_ctrl_c_keeps_the_table_of_what_is_done(tmp_path, monkeypatch, capsys):
    for name in "ab":
        write_picture(tmp_path / "in" / f"{name}.png", three_nuclei())
    read = data.read_image

    def interrupted(path):
        if path.stem == "b":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(data, "read_image", interrupted)
    assert run("predict", tmp_path / "in", "--out", tmp_path / "out") == 1
    assert "the tables hold the images that were done" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "out" / "nuclei.csv")) == 3


def test_names_that_would_collide_are_refused_before_any_work(tmp_path, finder, capsys):
    one = write_picture(tmp_path / "x" / "cell.png", three_nuclei())
    two = write_picture(tmp_path / "y" / "Cell.tif", three_nuclei())
    assert run("predict", one, two, "--out", tmp_path / "out") == 1
    assert f"{one} and {two} would give results of one name" in capsys.readouterr().err
    assert run("predict", tmp_path / "x", "--out", tmp_path / "x") == 1
    assert "is to be read and written" in capsys.readouterr().err
    mask = write_picture(tmp_path / "x" / "cell_mask.png", three_nuclei())
    assert run("predict", one, mask, "--out", tmp_path / "x") == 1
    assert f"{mask} is one of the images, and would be overwritten" in capsys.readouterr().err
    assert finder == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("finder")
def test_the_layout_of_the_competition_is_read(tmp_path, capsys):
    for name in ("0a", "0b"):
        write_picture(tmp_path / "in" / name / "images" / f"{name}.png", three_nuclei())
    assert run("predict", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].unique().tolist() == ["0a", "0b"]


@pytest.mark.usefixtures("finder")
def test_an_image_without_nuclei_and_one_not_to_be_trusted_are_named(tmp_path, monkeypatch, capsys):
    write_picture(tmp_path / "in" / "black.png", np.zeros((60, 80), int))
    write_picture(tmp_path / "in" / "odd.png", three_nuclei())
    monkeypatch.setattr(predict, "agreement", lambda model, image, labels, **_: 0.2 if labels.any() else np.nan)
    assert run("predict", tmp_path / "in", "--out", tmp_path / "out") == 0
    black, odd = capsys.readouterr().err.splitlines()
    assert "black: no nucleus was found" in black
    assert "odd: do not trust this result" in odd
    assert len(pd.read_csv(tmp_path / "out" / "nuclei.csv")) == 3
    submission = pd.read_csv(tmp_path / "out" / "submission.csv")
    assert submission["ImageId"].tolist() == ["black", "odd", "odd", "odd"]
    assert submission["EncodedPixels"].isna().tolist() == [True, False, False, False]


@pytest.mark.usefixtures("finder")
def test_more_nuclei_than_16_bits_number_go_into_a_tiff(tmp_path, monkeypatch):
    image = write_picture(tmp_path / "a.png", three_nuclei())
    assert run("predict", image, "--out", tmp_path / "out") == 0
    monkeypatch.setattr(predict, "labels", lambda *_, **__: three_nuclei() * 30_000)
    monkeypatch.setattr(export, "nuclei_table", lambda *_: pd.DataFrame({"label": [1]}))
    assert run("predict", image, "--out", tmp_path / "out") == 0
    assert export.read_labels(tmp_path / "out" / "a_labels.tif").max() == 90_000
    assert not (tmp_path / "out" / "a_labels.png").exists(), "that of the first run is another answer"


def test_only_safe_models_of_the_right_shape_are_loaded(tmp_path):
    keras.Sequential([keras.Input((None, None, 3)), keras.layers.Lambda(lambda x: x[..., :1])]).save(
        tmp_path / "lambda.keras"
    )
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(tmp_path / "dense.keras")
    (tmp_path / "broken.keras").write_bytes(b"PK")
    shutil.copy(tmp_path / "dense.keras", tmp_path / "old.h5")
    for name, message in {
        "lambda.keras": "in safe mode",
        "dense.keras": "expected one from colour images",
        "broken.keras": "cannot be loaded",
        "old.h5": r"expected \.keras",
        "none.keras": "is missing",
    }.items():
        with pytest.raises(data.DataError, match=message) as caught:
            predicting.load_model(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    models.unet(filters=2, depth=1).save(tmp_path / "good.keras")
    assert predicting.load_model(tmp_path / "good.keras").name == "unet"


def test_predict_with_a_model_of_ones_own(tmp_path):
    models.unet(filters=2, depth=1).save(tmp_path / "m.keras")
    image = write_picture(tmp_path / "a.png", three_nuclei())
    assert run("predict", image, "--model", tmp_path / "m.keras", "--out", tmp_path / "out") == 0
    assert export.read_labels(tmp_path / "out" / "a_labels.png").shape == (60, 80)


# evaluate


@pytest.fixture
def results(tmp_path):
    """Predictions of two images beside masks and overlays; in one of them a nucleus is missing."""
    found = {"a": three_nuclei(), "b": np.where(three_nuclei() == 2, 0, three_nuclei())}
    for name, labels in found.items():
        export_labels(tmp_path / "out" / f"{name}_labels.png", labels)
        export.write_mask(tmp_path / "out" / f"{name}_mask.png", labels)
        export.write_overlay(tmp_path / "out" / f"{name}_overlay.png", picture(labels), labels)
    return tmp_path / "out"


def write_truth(kind, tmp_path):
    place = tmp_path / "truth"
    for name in "ab":
        if kind == "masks":
            write_masks(place / name / "masks", three_nuclei())
        elif kind != "csv":
            export_labels(place / (kind % name), three_nuclei())
    if kind == "csv":
        place = tmp_path / "solution.csv"
        rows = export.submission({name: three_nuclei() for name in "ab"})
        rows.assign(Height=60, Width=80, Usage="Public").to_csv(place, index=False)
    return place


@pytest.mark.parametrize("kind", ["%s.png", "%s_labels.tif", "labels/%s.tif", "masks", "csv"])
def test_evaluate_reads_every_kind_of_truth(kind, results, tmp_path, capsys):
    assert run("evaluate", results, "--truth", write_truth(kind, tmp_path), "--json") == 0
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
        (lambda path, labels: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "is no image"),
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
