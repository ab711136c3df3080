"""Tests of `nuclei-utils train`: results, interruption and resuming, refusals."""

import shutil

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from nuclei_utils import cli, datasets, export, io, models, saving, training
from tests.test_checkpoints import DAMAGES, Interrupt, batches, damage, small_model

RESULTS = {"m.keras", "m_history.csv", "m_curves.png"}


def run(*words):
    return cli.main([str(word) for word in words])


def names(folder):
    return {path.name for path in folder.iterdir()}


def own_images(folder, count=5, nuclei=3):
    """Write labelled images (60, 80) of up to three bright squares."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        label_map = np.zeros((60, 80), np.int32)
        for label, left in enumerate((5, 30, 55)[:nuclei], start=1):
            label_map[10 + number : 26 + number, left : left + 16] = label
        cv2.imwrite(str(folder / "images" / f"cell{number}.png"), (label_map > 0) * np.uint8(200) + np.uint8(20))
        io.write_label_map(folder / "labels" / f"cell{number}.png", label_map)
    return folder


@pytest.fixture
def callbacks(monkeypatch):
    """Train a network of a few weights on a few pixels; return a list whose callbacks are added to the training."""
    monkeypatch.setattr(training, "batches", lambda *_, **__: (batches(), batches()))
    monkeypatch.setattr(training, "build", lambda *_: small_model())
    compile_model, fit = training.compile_model, training.fit

    def compile_eagerly(model, *args, **options):
        compile_model(model, *args, **options)
        model.run_eagerly = True  # for a few small steps, compiling would take longer than training
        return model

    added = []
    monkeypatch.setattr(training, "compile_model", compile_eagerly)
    monkeypatch.setattr(training, "fit", lambda *args, **options: fit(*args, **options | {"callbacks": added}))
    return added


@pytest.fixture(scope="session")
def mine(tmp_path_factory):
    return own_images(tmp_path_factory.mktemp("own") / "mine")


@pytest.fixture
def words(mine, tmp_path):
    return ["train", "--model", "unet", "--epochs", 2, "--data", mine, "--out", tmp_path / "m.keras"]


def interrupt(callbacks, words, epoch=1):
    """Start a training and interrupt it with Ctrl-C in an epoch, counted from 0."""
    callbacks.append(Interrupt(epoch))
    assert run(*words) == 1
    callbacks.clear()


def test_options_reach_the_network_and_its_batches(tmp_path, words, monkeypatch, capsys):
    options = {}

    def record_options(*_, **given):
        options.update(given)
        return batches(), batches()

    monkeypatch.setattr(training, "batches", record_options)
    assert run(*words, "--crop-size", 64, "--channel-width", 0.5, "--epochs", 1) == 0
    assert names(tmp_path) == RESULTS
    assert saving.load_model(tmp_path / "m.keras").layers[1].filters == 16
    assert (options["crop_size"], options["targets"]) == (64, "mask")
    assert [len(side) for side in options["records"]] == [4, 1]
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0]
    assert io.read_image(tmp_path / "m_curves.png").shape[0] > 100
    output = capsys.readouterr()
    assert output.out.startswith("trained on 4 images for 1 epochs, validated on 1 images\n")
    assert "val_dice" in output.err, "progress goes to stderr"


@pytest.mark.usefixtures("callbacks")
def test_corrected_outlines_are_labels(tmp_path, monkeypatch):
    folder = own_images(tmp_path / "mine", count=3)
    label_maps = [io.read_label_map(path) for path in sorted((folder / "labels").iterdir())]
    (folder / "labels" / "cell0.png").unlink()
    (folder / "labels" / "cell1.png").unlink()
    export.write_geojson(folder / "labels" / "cell0.geojson", label_maps[0])
    export.write_imagej_rois(folder / "labels" / "cell1_rois.zip", label_maps[1])
    used = []
    monkeypatch.setattr(training, "batches", lambda *_, records, **__: used.extend(records) or (batches(), batches()))
    assert run("train", "--model", "unet", "--epochs", 1, "--data", folder, "--out", tmp_path / "m.keras") == 0
    records = sorted((record for side in used for record in side), key=lambda record: record.id)
    for record, label_map in zip(records, label_maps, strict=True):
        np.testing.assert_array_equal(record.label_map, label_map)


def test_ctrl_c_saves_the_best_model_and_resume_continues(tmp_path, words, callbacks, capsys):
    interrupt(callbacks, words)
    error = capsys.readouterr().err
    assert "interrupted after 1 of 2 epochs" in error
    assert error.rstrip().endswith(f"--out {tmp_path / 'm.keras'} --resume")
    assert len(pd.read_csv(tmp_path / "m_history.csv")) == 1
    assert names(tmp_path) == {*RESULTS, "m.training"}
    keras.models.load_model(tmp_path / "m.keras")

    assert run(*words) == 1, "an interrupted training is not replaced"
    assert "--resume" in capsys.readouterr().err
    assert run(*words, "--resume", "--seed", 1) == 1
    assert "--seed" in capsys.readouterr().err

    assert run(*words, "--resume") == 0
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]
    assert names(tmp_path) == RESULTS


def test_ctrl_c_in_the_first_epoch_leaves_no_files(tmp_path, words, callbacks, capsys):
    interrupt(callbacks, words, epoch=0)
    assert "first epoch" in capsys.readouterr().err
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("callbacks")
def test_existing_model_and_other_folder_are_not_replaced(tmp_path, words, capsys):
    (tmp_path / "m.keras").write_text("hours of work")
    assert run(*words) == 1
    assert run(*words, "--resume") == 1
    assert capsys.readouterr().err.count("exists already") == 2
    assert (tmp_path / "m.keras").read_text() == "hours of work"
    (tmp_path / "m.keras").unlink()
    (tmp_path / "m.training").mkdir()
    (tmp_path / "m.training" / "notes.txt").touch()
    assert run(*words) == 1
    assert "m.training" in capsys.readouterr().err
    assert (tmp_path / "m.training" / "notes.txt").exists()


@pytest.mark.usefixtures("callbacks")
def test_files_of_a_process_that_was_killed_at_its_start_are_removed(tmp_path, words):
    (tmp_path / "m.training").mkdir()
    (tmp_path / "m.training" / ".settings-123-0a1b2c3d.json").write_text("{")
    (tmp_path / ".m.training").mkdir()
    (tmp_path / ".m.training.lock").touch()
    assert run(*words) == 0
    assert names(tmp_path) == RESULTS


@pytest.mark.usefixtures("callbacks")
def test_model_of_a_process_that_was_killed_at_its_end_is_written(tmp_path, words, monkeypatch):
    monkeypatch.setattr(saving, "load_model", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*words)
    monkeypatch.undo()
    assert names(tmp_path) == {"m.training"}
    assert run(*words, "--resume") == 0
    assert names(tmp_path) == RESULTS


def test_seed_draws_a_fifth_for_validation(tmp_path, words, monkeypatch):
    words[words.index("--data") + 1] = own_images(tmp_path / "mine", 10)
    sides = []

    def record_sides(*_, records, **__):
        sides.append([[record.id for record in side] for side in records])
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "batches", record_sides)
    for seed in (0, 0, 1, 2**32 - 1):
        assert run(*words, "--seed", seed) == 1
    assert [len(side) for side in sides[0]] == [8, 2]
    assert not set(sides[0][0]) & set(sides[0][1])
    assert sides[0] == sides[1] != sides[2]


# Damaged files, two processes, lack of memory


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture
def unfinished(tmp_path, words, callbacks, saved):
    """Folder of a training that was interrupted after the first of two epochs; it is trained once and then copied."""
    if not any(saved.iterdir()):
        interrupt(callbacks, words)
        shutil.copytree(tmp_path, saved, dirs_exist_ok=True)
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path / "m.training"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("settings.json", how) for how in DAMAGES),
        ("best.keras", "zeros"),
        ("backup/epoch_0001.keras", "missing"),
        ("backup/epoch_0001.keras", "zeros"),
        ("history.csv", "cut"),
    ],
)
@pytest.mark.filterwarnings("default")  # missing settings are a warning
def test_training_resumes_after_a_power_cut(tmp_path, words, unfinished, name, how, capsys):
    damage(unfinished / name, how)
    assert run(*words) == 1, "the intact files are not replaced"
    assert "--resume" in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    error = capsys.readouterr().err
    assert "after epoch 1" in error
    assert (str(unfinished / name) in error) == (name == "settings.json" or ("epoch" in name and how != "missing"))
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]
    keras.models.load_model(tmp_path / "m.keras")
    assert names(tmp_path) == RESULTS


def test_training_without_an_intact_model_is_refused_and_kept(words, unfinished, capsys):
    for path in unfinished.rglob("*.keras"):
        damage(path, "zeros")
    assert run(*words, "--resume") == 1
    assert str(unfinished / "best.keras") in capsys.readouterr().err
    assert training.phases(unfinished)


def test_second_training_of_the_same_model_is_refused(tmp_path, words, callbacks, capsys):
    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for more in ([], ["--resume"], ["--epochs", 1]):
                assert run(*words, *more) == 1

    callbacks.append(Second())
    assert run(*words) == 0
    assert capsys.readouterr().err.count("another process") == 6
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]
    assert names(tmp_path) == RESULTS


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 12.0 GiB")])
def test_lack_of_memory_is_named(words, monkeypatch, error, capsys):
    def read_folder(_path):
        raise error

    monkeypatch.setattr(datasets, "read_folder", read_folder)
    assert run(*words) == 1
    message = capsys.readouterr().err
    assert "memory" in message
    assert str(error) in message


# Wrong options and images


@pytest.mark.parametrize(
    ("option", "value"),
    [*(("--seed", seed) for seed in ("-1", "4294967296", "1.5", "x")), ("--model", "resnet"), ("--out", "m.h5")],
)
def test_wrong_value_of_an_option_is_wrong_usage(words, option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*words, f"{option}={value}")
    assert caught.value.code == 2
    assert repr(value) in capsys.readouterr().err


@pytest.mark.parametrize(("count", "nuclei", "message"), [(1, 3, "at least two"), (5, 0, "nucleus")])
def test_unsuitable_images_are_refused(tmp_path, words, count, nuclei, message, capsys):
    words[words.index("--data") + 1] = own_images(tmp_path / "bad", count, nuclei)
    assert run(*words) == 1
    assert message in capsys.readouterr().err
    assert names(tmp_path) == {"bad"}


@pytest.mark.parametrize("name", ["other.weights.h5", "."])
@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_unsuitable_weights_are_named(tmp_path, words, monkeypatch, name, capsys):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save_weights(tmp_path / "other.weights.h5")
    monkeypatch.setenv(models.WEIGHTS_VARIABLE, str(tmp_path / name))
    words[2] = "mobilenet_unet"
    assert run(*words) == 1
    assert models.WEIGHTS_VARIABLE in capsys.readouterr().err
    assert names(tmp_path) == {"other.weights.h5"}


@pytest.mark.usefixtures("callbacks")
@pytest.mark.parametrize("path", ["file/m.keras", "loop/m.keras"])
def test_unsuitable_folder_for_the_model_is_named(tmp_path, words, path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words[-1] = tmp_path / path
    assert run(*words) == 1
    assert str((tmp_path / path).parent) in capsys.readouterr().err


def test_folder_of_images_that_links_to_itself_is_named(tmp_path, words, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words[words.index("--data") + 1] = tmp_path / "loop"
    assert run(*words) == 1
    assert str(tmp_path / "loop") in capsys.readouterr().err
    assert names(tmp_path) == {"loop"}


def test_devices_precision_and_batch_size_reach_the_training(words, monkeypatch, capsys):
    given = {}

    def record(*_, **options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", record)
    assert run(*words, "--devices", "cpu", "--precision", "mixed_bfloat16", "--batch-size", 6) == 1
    assert (given["devices"], given["precision"], given["batch_size"]) == ("cpu", "mixed_bfloat16", 6)
    assert run(*words, "--crop-size", 256) == 1
    assert (given["devices"], given["precision"], given["batch_size"]) == ("auto", "float32", 8)
    capsys.readouterr()
    assert run(*words, "--devices", "gpu:99") == 1
    assert "gpu:99" in (error := capsys.readouterr().err)
    assert "cpu:0" in error


def test_resuming_with_another_batch_size_or_precision_is_refused(tmp_path, words, unfinished, capsys):
    for option, value in (("--batch-size", 4), ("--precision", "mixed_bfloat16")):
        assert run(*words, "--resume", option, value) == 1
        assert option in capsys.readouterr().err
    assert run(*words, "--resume", "--devices", "cpu") == 0, "other devices may continue a training"
    assert names(tmp_path) == RESULTS
