"""Tests of interrupted trainings: Ctrl-C, SIGKILL, power cuts, full disks, and two trainings in one folder.

The small trainings here and the functions that interrupt and damage them are used by other tests as well.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from nuclei_utils import checkpoints, training
from nuclei_utils.errors import NucleiError

DAMAGES = {
    "missing": None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
}
"""Contents of a file that was not on the disk at a power cut."""

EPOCHS, DONE = 5, 3
"""Epochs of a training, and epochs before its interruption."""


class Interrupt(keras.callbacks.Callback):
    """Interrupt a training in an epoch, counted over all calls of `fit` that use this callback."""

    def __init__(self, epoch):
        super().__init__()
        self.remaining = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.remaining == 0:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.remaining -= 1


def damage(path, how):
    """Damage a file in one of the ways of `DAMAGES`."""
    if DAMAGES[how] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


def batches():
    """Return one batch of noise in which a strong red is nucleus."""
    images = np.random.default_rng(0).random((4, 16, 16, 3)).astype(np.float32)
    masks = (images[..., :1] > 0.5).astype(np.float32)
    return tf.data.Dataset.from_tensors((images, masks))


def small_model(steps=20, learning_rate=0.05, filters=2):
    """Return a network of a few weights, the same network at each call."""
    keras.utils.set_random_seed(0)
    layers = keras.layers.Conv2D(filters, 1), keras.layers.Conv2D(1, 1, activation="sigmoid")
    model = training.compile_model(keras.Sequential([keras.Input((None, None, 3)), *layers]), steps, learning_rate)
    model.run_eagerly = True  # for a few small steps, compiling would take longer than training
    return model


def train(folder, epochs=EPOCHS, callbacks=()):
    """Train the small network; return it and its history."""
    return training.fit(small_model(), batches(), batches(), folder, epochs, callbacks=callbacks, verbose=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def full_history(finished):
    return training.read_history(finished)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        train(folder, callbacks=[Interrupt(DONE)])
    return folder


@pytest.fixture
def folder(interrupted, tmp_path):
    """Copy of the folder of an interrupted training."""
    return shutil.copytree(interrupted, tmp_path / "run")


def names(folder):
    return {path.name for path in folder.iterdir()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dice_of(model):
    return model.evaluate(batches(), verbose=0, return_dict=True)["dice"]


def set_dice(folder, values):
    """Change the validation Dice in the history of an interrupted training."""
    history = training.read_history(folder)
    history["val_dice"] = values
    history.to_csv(folder / "history.csv", index=False)


def test_finished_training_has_the_best_model(finished, full_history):
    assert full_history["loss"].iloc[-1] < full_history["loss"].iloc[0]
    assert list(full_history["epoch"]) == list(range(EPOCHS))
    assert names(finished) == {"best.keras", "finished", "history.csv", "tensorboard"}
    model = small_model()
    model.load_weights(finished / "best.keras")
    assert dice_of(model) == pytest.approx(full_history["val_dice"].max(), abs=1e-5)


def test_callback_alone_leaves_a_finished_training(tmp_path, finished, full_history):
    model = small_model()
    earlier = checkpoints.resume(model, tmp_path)
    assert earlier.empty
    model.fit(
        batches(),
        validation_data=batches(),
        epochs=EPOCHS,
        initial_epoch=len(earlier),
        callbacks=[checkpoints.Checkpoint(tmp_path, earlier)],
        shuffle=False,
        verbose=0,
    )
    history = checkpoints.finish(model, tmp_path)
    pd.testing.assert_frame_equal(history, full_history, rtol=1e-3)
    assert names(tmp_path) == names(finished) - {"tensorboard"}
    assert training.is_finished(tmp_path)


def test_finished_training_is_replaced_and_other_files_stay(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    assert len(train(folder, epochs=2)[1]) == 2
    checkpoints.clear(folder)
    assert names(folder) == {"notes.txt"}


def test_interrupted_training_resumes_with_the_same_result(folder, full_history, capsys):
    assert training.phases(folder)
    assert not training.is_finished(folder)
    _, history = train(folder)
    assert f"after epoch {DONE} " in capsys.readouterr().out
    pd.testing.assert_frame_equal(history, full_history, rtol=1e-3)


def test_same_model_can_be_trained_again_after_an_interruption(tmp_path):
    model = small_model()
    with pytest.raises(KeyboardInterrupt):
        training.fit(model, batches(), batches(), tmp_path, 3, callbacks=[Interrupt(2)], verbose=0)
    for _ in range(2):  # the first call resumes, the second call starts a new training
        _, history = training.fit(model, batches(), batches(), tmp_path, epochs=3, verbose=0)
        assert list(history["epoch"]) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_checkpoint_of_another_network_is_refused(folder):
    before = contents(folder)
    with pytest.raises(NucleiError, match="another network"):
        training.fit(small_model(filters=3), batches(), batches(), folder, EPOCHS, verbose=0)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["epoch_0002", "best", "history"])
def test_interruption_while_a_file_is_written_keeps_the_previous_file(tmp_path, monkeypatch, full_history, name):
    sync = os.fsync
    epochs = []

    class Count(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(epoch)

    def stop(descriptor):
        sync(descriptor)
        if epochs[-1:] == [1] and any(tmp_path.rglob(f".{name}-*")):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[Count()])
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "backup").glob("*.keras")] == ["epoch_0001.keras"]
    model, history = train(tmp_path)
    pd.testing.assert_frame_equal(history, full_history, rtol=1e-3)
    assert dice_of(model) == pytest.approx(full_history["val_dice"].max(), abs=1e-5)


# Damaged files


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["best.keras", "history.csv", "backup/history.csv"])
def test_damaged_file_beside_an_intact_checkpoint_costs_nothing(folder, full_history, name, how, capsys):
    damage(folder / name, how)
    model, history = train(folder)
    assert f"after epoch {DONE} " in capsys.readouterr().out
    pd.testing.assert_frame_equal(history, full_history, rtol=1e-3)
    assert dice_of(model) == pytest.approx(history["val_dice"].max(), abs=1e-5)
    assert names(folder) == {"best.keras", "finished", "history.csv", "tensorboard"}


@pytest.mark.parametrize("how", DAMAGES)
def test_training_with_a_damaged_checkpoint_resumes_after_its_best_epoch(folder, how, capsys):
    set_dice(folder, [0.1, 0.3, 0.2])
    damage(folder / "backup" / f"epoch_{DONE:04}.keras", how)
    with pytest.raises(KeyboardInterrupt):
        train(folder, callbacks=[Interrupt(1)])
    output = capsys.readouterr().out
    assert "after epoch 2 " in output
    assert how == "missing" or f"epoch_{DONE:04}.keras is damaged" in output
    _, history = train(folder)
    assert f"after epoch {DONE} " in capsys.readouterr().out
    assert list(history["epoch"]) == list(range(EPOCHS))


@pytest.mark.parametrize("how", DAMAGES)
def test_last_model_replaces_a_lost_best_model(folder, how, capsys):
    set_dice(folder, [2.0, 0.1, 0.2])  # no later epoch can be better than the first epoch
    damage(folder / "best.keras", how)
    model, history = train(folder)
    assert str(folder / "best.keras") in capsys.readouterr().out
    assert training.best_epoch(history) >= DONE - 1
    assert dice_of(model) == pytest.approx(history["val_dice"].max(), abs=1e-5)


def test_best_epoch_before_an_interruption_is_kept(folder):
    set_dice(folder, 2.0)  # no later epoch can be better
    before = (folder / "best.keras").read_bytes()
    train(folder)
    assert (folder / "best.keras").read_bytes() == before


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
@pytest.mark.parametrize("damaged", [["best.keras", f"backup/epoch_{DONE:04}.keras"], ["history.csv"]])
def test_training_without_an_intact_file_is_refused_and_not_changed(folder, damaged, how):
    if "history.csv" in damaged:
        (folder / "backup" / "history.csv").unlink()
    for name in damaged:
        content = (folder / name).read_bytes()
        # a history that is cut in its first line
        (folder / name).write_bytes(content[:9] if how == "cut" else DAMAGES[how](content))
    before = contents(folder)
    with pytest.raises(NucleiError) as caught:
        train(folder)
    assert all(str(folder / name) in str(caught.value) for name in damaged)
    assert contents(folder) == before


def test_model_without_a_history_is_not_replaced(folder):
    for name in ("history.csv", "backup/history.csv"):
        (folder / name).unlink()
    with pytest.raises(NucleiError, match=r"history\.csv"):
        train(folder)
    assert training.phases(folder)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["finished", "history.csv"])
def test_history_of_a_finished_training_has_a_copy(finished, full_history, tmp_path, name, how):
    folder = shutil.copytree(finished, tmp_path / "run")
    damage(folder / name, how)
    pd.testing.assert_frame_equal(training.read_history(folder), full_history)
    assert training.is_finished(folder) == ((name, how) != ("finished", "missing"))


def test_training_that_was_killed_at_its_end_resumes(finished, full_history, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "finished").unlink()
    _, history = train(folder)
    pd.testing.assert_frame_equal(history, full_history, rtol=1e-3)


@pytest.mark.parametrize(
    ("content", "epochs"),
    [
        (b"epoch,loss\n0,1.5\n1,0.5\n", 2),
        (b"epoch,loss\r\n0,1.5\r\n1,0.5\r\n", 2),
        (b"epoch,loss\n0,1.5\n1,0.", 1),
        (b"epoch,loss\n0,1.5\n\0\0\0\0\0\0\n", 1),
        (b"epoch,loss\n0,1.5\n\0\0\0\n2,0.5\n", 1),
    ],
)
def test_complete_lines_of_a_history_are_read(tmp_path, content, epochs):
    (tmp_path / "history.csv").write_bytes(content)
    history = training.read_history(tmp_path)
    assert list(history["epoch"]) == list(range(epochs))
    assert history["loss"].tolist() == [1.5, 0.5][:epochs]


@pytest.mark.parametrize(
    "content", [b"epoch,loss\n", b"epoch,lo", b"loss\n1.5\n", b"epoch,loss\n0,1\n0,1\n", b'"\n"\n']
)
def test_history_without_a_complete_epoch_is_refused(tmp_path, content):
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(NucleiError, match=r"history\.csv"):
        training.read_history(tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_overwritten_bytes_of_a_model_are_found(finished, tmp_path, seed):
    content = bytearray((finished / "best.keras").read_bytes())
    generator = random.Random(seed)
    start = generator.randrange(len(content))
    length = generator.randrange(1, 4096)
    content[start : start + length] = generator.randbytes(length)
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(NucleiError, match=r"model\.keras"):
        checkpoints.check_model_file(tmp_path / "model.keras")


def test_intact_model_passes_the_check(finished, tmp_path):
    checkpoints.check_model_file(finished / "best.keras")
    with pytest.raises(FileNotFoundError):
        checkpoints.check_model_file(tmp_path / "none.keras")


def test_diverged_training_is_named(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    nan = tf.data.Dataset.from_tensors((np.full((4, 2), np.nan, "float32"), np.ones((4, 1), "float32")))
    with pytest.raises(NucleiError, match="diverged"):
        training.fit(model, nan, nan, tmp_path, 2, verbose=0, monitor="val_loss")
    assert not training.is_finished(tmp_path)


# Two trainings, a full disk, a killed process


def test_second_training_in_the_same_folder_is_refused(tmp_path, full_history):
    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with pytest.raises(BlockingIOError, match=tmp_path.name):
                train(tmp_path)

    _, history = train(tmp_path, callbacks=[Second()])
    pd.testing.assert_frame_equal(history, full_history, rtol=1e-3)


def test_training_on_a_full_disk_can_be_resumed(tmp_path, full_history):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FillDisk(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))

    try:
        with pytest.raises(OSError) as caught:
            train(tmp_path, callbacks=[FillDisk()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value.filename) == str(tmp_path / "backup" / "epoch_0002.keras")
    _, history = train(tmp_path)
    pd.testing.assert_frame_equal(history, full_history, rtol=1e-3)


KILLED = """
import sys
sys.path.insert(0, {root!r})
from tests.test_checkpoints import batches, small_model
from nuclei_utils import training
training.fit(small_model(1000), batches(), batches(), {folder!r}, epochs=500, verbose=0)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_process_resumes_after_its_last_epoch(tmp_path):
    for minimum in (3, 6):  # the second process resumes before it is killed
        code = KILLED.format(root=str(Path(__file__).parents[1]), folder=str(tmp_path))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        history = tmp_path / "history.csv"
        while not (history.is_file() and len(history.read_bytes().splitlines()) > minimum):
            assert process.poll() is None, "the training ended before it was killed"
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.3))  # kill the process in a random step
        process.kill()
        process.wait()
    done = len(training.read_history(tmp_path))
    assert done >= minimum
    _, history = train(tmp_path, epochs=done + 2)
    assert list(history["epoch"]) == list(range(done + 2))
    assert names(tmp_path) == {"best.keras", "finished", "history.csv", "tensorboard"}
