"""Tests of `nuclei-utils train`: what it writes, how it is interrupted and goes on, and what it refuses."""

import shutil

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from nuclei_utils import cli, datasets, io, models, recipes, training
from nuclei_utils.commands import predict as predicting
from nuclei_utils.commands import train as learning
from tests.interruption import DAMAGES, PullThePlug, batches, damage, small_model


def run(*words):
    return cli.main([str(word) for word in words])


def own_images(folder, count=5, nuclei=3):
    """Write labelled images (60, 80) of three bright squares, or fewer."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        labels = np.zeros((60, 80), np.int32)
        for label, left in enumerate((5, 30, 55)[:nuclei], start=1):
            labels[10 + number : 26 + number, left : left + 16] = label
        cv2.imwrite(str(folder / "images" / f"cell{number}.png"), (labels > 0) * np.uint8(200) + np.uint8(20))
        io.write_label_map(folder / "labels" / f"cell{number}.png", labels)
    return folder


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
def extra(monkeypatch, eager):
    """Train a network of a few weights on a few pixels; return a list of callbacks, which are added to its own."""
    monkeypatch.setattr(learning, "_batches", lambda *_: (batches(), batches()))
    monkeypatch.setattr(recipes, "build", lambda *_: small_model())
    plain = training.callbacks
    added = []
    monkeypatch.setattr(training, "callbacks", lambda *arguments: [*added, *plain(*arguments)])
    return added


@pytest.fixture(scope="session")
def mine(tmp_path_factory):
    return own_images(tmp_path_factory.mktemp("own") / "mine")


@pytest.fixture
def words(mine, tmp_path):
    return ["train", "--model", "unet", "--epochs", 2, "--data", mine, "--out", tmp_path / "m.keras"]


def stop(extra, words, epoch=1):
    """Begin a training and break it off with Ctrl-C in an epoch, counted from 0."""
    extra.append(PullThePlug(epoch))
    assert run(*words) == 1
    extra.clear()


def names(folder):
    return {path.name for path in folder.iterdir()}


RESULTS = {"m.keras", "m_history.csv", "m_curves.png"}


@pytest.mark.usefixtures("eager")
def test_train_writes_a_model_its_history_and_its_curves(tmp_path, words, monkeypatch, capsys):
    monkeypatch.setattr(learning, "CROPS", 4)
    monkeypatch.setattr(learning, "BATCH", {64: 4})
    monkeypatch.setattr(learning, "FILTERS", {"unet": 4})
    assert run(*words, "--size", 64, "--channels", 0.5, "--epochs", 1) == 0
    assert names(tmp_path) == RESULTS
    assert predicting.load_model(tmp_path / "m.keras").layers[1].filters == 2
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0]
    assert io.read_image(tmp_path / "m_curves.png").shape[0] > 100
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "trained on 4 images for 1 epochs, validated on 1 images"
    assert "val_dice" in output.err, "progress goes to stderr"


def test_ctrl_c_keeps_the_best_so_far_and_resume_goes_on(tmp_path, words, extra, capsys):
    stop(extra, words)
    error = capsys.readouterr().err
    assert f"interrupted after 1 of 2 epochs; the best so far is in {tmp_path / 'm.keras'}" in error
    assert error.rstrip().endswith(f"--out {tmp_path / 'm.keras'} --resume")
    assert len(pd.read_csv(tmp_path / "m_history.csv")) == 1
    assert names(tmp_path) == {*RESULTS, "m.training"}
    keras.models.load_model(tmp_path / "m.keras")

    assert run(*words) == 1, "it is not thrown away"
    assert "go on with --resume" in capsys.readouterr().err
    assert run(*words, "--resume", "--seed", 1) == 1
    assert "was begun with other --seed: 0, not 1" in capsys.readouterr().err

    assert run(*words, "--resume") == 0
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]
    assert names(tmp_path) == RESULTS


def test_ctrl_c_in_the_first_epoch_leaves_nothing(tmp_path, words, extra, capsys):
    stop(extra, words, epoch=0)
    assert "nothing to keep" in capsys.readouterr().err
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("extra")
def test_train_replaces_no_model_and_no_foreign_folder(tmp_path, words, capsys):
    (tmp_path / "m.keras").write_text("hours of work")
    assert run(*words) == 1
    assert run(*words, "--resume") == 1
    assert capsys.readouterr().err.count("is there already") == 2
    assert (tmp_path / "m.keras").read_text() == "hours of work"
    (tmp_path / "m.keras").unlink()
    (tmp_path / "m.training").mkdir()
    (tmp_path / "m.training" / "notes.txt").touch()
    assert run(*words) == 1
    assert "is in the way" in capsys.readouterr().err
    assert (tmp_path / "m.training" / "notes.txt").exists()


@pytest.mark.usefixtures("extra")
def test_what_a_process_left_that_was_killed_at_its_begin_is_removed(tmp_path, words):
    (tmp_path / "m.training").mkdir()
    (tmp_path / "m.training" / ".settings-123-0a1b2c3d.json").write_text("{")
    (tmp_path / ".m.training").mkdir()
    (tmp_path / ".m.training.lock").touch()
    assert run(*words) == 0
    assert names(tmp_path) == RESULTS


@pytest.mark.usefixtures("extra")
def test_a_pretrained_encoder_rests_in_the_first_half(tmp_path, words, monkeypatch):
    monkeypatch.setattr(recipes, "pretrained", lambda: "imagenet")
    thawed = []
    monkeypatch.setattr(models, "unfreeze_encoder", lambda model, blocks: thawed.append(blocks))
    words[2] = "mobilenet_unet"
    assert run(*words) == 0
    assert thawed == [recipes.FINE_TUNED_BLOCKS]
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]


def test_a_fifth_is_validated_on_and_the_seed_chooses_it(tmp_path):
    mine = own_images(tmp_path / "mine", 10)
    sides = [learning._records(mine, seed) for seed in (0, 0, 1, 2**32 - 1)]
    names = [[[record.id for record in side] for side in both] for both in sides]
    assert [len(side) for side in names[0]] == [8, 2]
    assert not set(names[0][0]) & set(names[0][1])
    assert names[0] == names[1] != names[2]


# Faults


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """A folder that keeps a training which was broken off, once it was made."""
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture
def unfinished(tmp_path, words, extra, stopped):
    """The folder of a training that was broken off after one of two epochs."""
    if not any(stopped.iterdir()):
        stop(extra, words)
        shutil.copytree(tmp_path, stopped, dirs_exist_ok=True)
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
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
def test_a_training_goes_on_after_a_power_cut(tmp_path, words, unfinished, name, how, capsys):
    damage(unfinished / name, how)
    assert run(*words) == 1, "what is whole is not thrown away"
    assert "go on with --resume" in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    error = capsys.readouterr().err
    assert "another network" not in error
    assert "going on after epoch 1" in error
    assert (str(unfinished / name) in error) == (name == "settings.json" or ("epoch" in name and how != "missing"))
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]
    keras.models.load_model(tmp_path / "m.keras")
    assert names(tmp_path) == RESULTS


def test_where_nothing_whole_is_left_a_training_is_refused_and_stays(words, unfinished, capsys):
    for path in unfinished.rglob("*.keras"):
        damage(path, "zeros")
    assert run(*words, "--resume") == 1
    message = capsys.readouterr().err
    assert f"{unfinished / 'best.keras'} is damaged" in message
    assert training.begun(unfinished)


def test_a_second_train_of_one_model_is_refused(tmp_path, words, extra, capsys):
    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for more in ([], ["--resume"], ["--epochs", 1]):
                assert run(*words, *more) == 1

    extra.append(Second())
    assert run(*words) == 0
    assert capsys.readouterr().err.count(f"another process is training {tmp_path / 'm.keras'}") == 6
    assert pd.read_csv(tmp_path / "m_history.csv")["epoch"].tolist() == [0, 1]
    assert names(tmp_path) == RESULTS


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "x"])
def test_a_seed_that_no_generator_takes_is_wrong_usage(words, seed, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*words, f"--seed={seed}")
    assert caught.value.code == 2
    assert repr(seed) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "nuclei", "message"), [(1, 3, "at least two are needed"), (5, 0, "found no nucleus")]
)
def test_images_that_teach_nothing_are_refused(tmp_path, words, count, nuclei, message, capsys):
    words[words.index("--data") + 1] = own_images(tmp_path / "bad", count, nuclei)
    assert run(*words) == 1
    assert message in capsys.readouterr().err
    assert names(tmp_path) == {"bad"}


def test_validation_images_without_a_nucleus_are_refused(tmp_path, words, capsys):
    mine = own_images(tmp_path / "bad", 5)
    held_out = learning._records(mine, 0)[1][0].id
    io.write_label_map(mine / "labels" / f"{held_out}.png", np.zeros((60, 80), np.int32))
    words[words.index("--data") + 1] = mine
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert held_out in error
    assert "validate on" in error


@pytest.mark.parametrize("content", [b"no HDF5", b"", None])
def test_a_file_of_other_weights_is_named(tmp_path, words, monkeypatch, content, capsys):
    path = tmp_path / "weights.h5"
    if content is None:
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save_weights(tmp_path / "a.weights.h5")
        (tmp_path / "a.weights.h5").rename(path)
    else:
        path.write_bytes(content)
    monkeypatch.setenv(models.WEIGHTS, str(path))
    words[2] = "mobilenet_unet"
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert models.WEIGHTS in error
    assert not (tmp_path / "m.training").exists()


def test_a_folder_in_place_of_weights_is_named(tmp_path, words, monkeypatch, capsys):
    monkeypatch.setenv(models.WEIGHTS, str(tmp_path))
    words[2] = "mobilenet_unet"
    assert run(*words) == 1
    assert models.WEIGHTS in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 12.0 GiB")])
def test_too_little_memory_is_named(words, monkeypatch, error, capsys):
    def read_folder(_path):
        raise error

    monkeypatch.setattr(datasets, "read_folder", read_folder)
    assert run(*words) == 1
    message = capsys.readouterr().err
    assert "memory" in message
    assert str(error) in message


@pytest.mark.usefixtures("extra")
def test_a_full_disk_is_named_and_the_training_goes_on_later(tmp_path, words, monkeypatch, capsys):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        assert run(*words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "m.training" / "backup" / "epoch_0001.keras") in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    assert names(tmp_path) == RESULTS


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("place", ["file/m.keras", "loop/m.keras"])
def test_a_place_that_cannot_hold_a_model_is_named(tmp_path, words, place, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words[-1] = tmp_path / place
    assert run(*words) == 1
    assert str((tmp_path / place).parent) in capsys.readouterr().err


def test_data_that_is_a_link_to_itself_is_named(tmp_path, words, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words[words.index("--data") + 1] = tmp_path / "loop"
    assert run(*words) == 1
    assert str(tmp_path / "loop") in capsys.readouterr().err
    assert names(tmp_path) == {"loop"}
