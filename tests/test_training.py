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

from nuclei_utils import training
from nuclei_utils.errors import NucleiError
from tests.interruption import DAMAGES, PullThePlug, batches, damage, small_model, train

EPOCHS, DONE = 5, 3
"""Of the trainings here, and those before they are broken off."""


def test_profile_from_the_environment(monkeypatch):
    monkeypatch.delenv("NUCLEI_PROFILE", raising=False)
    assert training.profile().name == "laptop"
    monkeypatch.setenv("NUCLEI_PROFILE", "smoke")
    assert training.profile() == training.PROFILES["smoke"]
    monkeypatch.setenv("NUCLEI_PROFILE", "huge")
    with pytest.raises(ValueError, match="'huge': choose one of smoke, laptop, full"):
        training.profile()


def test_banner_is_one_line_that_says_what_runs(monkeypatch):
    monkeypatch.setenv("NUCLEI_DATA", "sample")
    monkeypatch.setenv("NUCLEI_PROFILE", "smoke")
    line = training.banner()
    assert "\n" not in line
    for part in (keras.__version__, "data: sample", "profile: smoke", "device: "):
        assert part in line


def test_learning_rate_warms_up_and_ends_at_zero():
    rate = training.warmup_cosine(1e-3, steps=100)
    values = [float(rate(step)) for step in (0, 5, 50, 100)]
    assert values[0] == pytest.approx(1e-4, rel=0.2)
    assert values[1] == pytest.approx(1e-3, rel=0.01)
    assert values[1] > values[2] > values[3] == pytest.approx(0, abs=1e-8)


# A training that nothing disturbs, and the same training broken off


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Folder of a finished training."""
    folder = tmp_path_factory.mktemp("straight")
    train(folder, EPOCHS)
    return folder


@pytest.fixture(scope="module")
def whole_history(straight):
    return training.read_history(straight)


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken_off")
    with pytest.raises(KeyboardInterrupt):
        train(folder, EPOCHS, extra=[PullThePlug(DONE)])
    return folder


@pytest.fixture
def folder(broken_off, tmp_path):
    """A copy of a training that was broken off."""
    return shutil.copytree(broken_off, tmp_path / "run")


def files(folder):
    return {path.name for path in folder.iterdir()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dice_of(model):
    return model.evaluate(batches(), verbose=0, return_dict=True)["dice"]


def test_fit_learns_and_leaves_its_files(straight, whole_history):
    assert whole_history["loss"].iloc[-1] < whole_history["loss"].iloc[0]
    assert list(whole_history["epoch"]) == list(range(EPOCHS))
    assert files(straight) == {"best.keras", "finished", "history.csv", "tensorboard"}
    assert training.finished(straight)
    # the weights of the best epoch, by the validation's Dice
    model = small_model()
    model.load_weights(straight / "best.keras")
    assert dice_of(model) == pytest.approx(whole_history["val_dice"].max(), abs=1e-5)


def test_early_stop(tmp_path):
    model = small_model(learning_rate=0.0)
    _, history = training.fit(model, batches(), batches(), tmp_path, epochs=30, patience=2, verbose=0)
    assert len(history) < 30


def test_a_finished_training_is_replaced_and_foreign_files_stay(straight, tmp_path):
    folder = shutil.copytree(straight, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    _, history = train(folder, epochs=2)
    assert len(history) == 2
    assert (folder / "notes.txt").read_text() == "mine"
    training.clear(folder)
    assert files(folder) == {"notes.txt"}


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(folder, whole_history, capsys):
    assert training.begun(folder)
    assert not training.finished(folder)
    _, history = train(folder, EPOCHS)
    assert f"after epoch {DONE} " in capsys.readouterr().out
    pd.testing.assert_frame_equal(history, whole_history, rtol=1e-3)


def test_the_same_model_can_be_trained_again_after_a_break(tmp_path):
    model = small_model()
    with pytest.raises(KeyboardInterrupt):
        training.fit(model, batches(), batches(), tmp_path, 3, extra=[PullThePlug(2)], verbose=0)
    for _ in range(2):  # the first goes on, the second is a new training, which starts at its first epoch
        _, history = training.fit(model, batches(), batches(), tmp_path, epochs=3, verbose=0)
        assert list(history["epoch"]) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_a_backup_of_another_network_is_named(folder):
    before = contents(folder)
    with pytest.raises(NucleiError, match="another network") as caught:
        training.fit(small_model(channels=3), batches(), batches(), folder, EPOCHS, verbose=0)
    assert str(folder / "backup") in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["epoch_0002", "best", "history"])
def test_a_break_while_a_file_is_written_leaves_the_file_before(tmp_path, monkeypatch, whole_history, name):
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
        train(tmp_path, EPOCHS, extra=[Count()])
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "backup").glob("*.keras")] == ["epoch_0001.keras"]
    model, history = train(tmp_path, EPOCHS)
    pd.testing.assert_frame_equal(history, whole_history, rtol=1e-3)
    assert dice_of(model) == pytest.approx(whole_history["val_dice"].max(), abs=1e-5)


# A power cut


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["best.keras", "history.csv", "backup/history.csv"])
def test_a_damaged_file_beside_a_whole_backup_costs_nothing(folder, whole_history, name, how, capsys):
    damage(folder / name, how)
    model, history = train(folder, EPOCHS)
    assert f"after epoch {DONE} " in capsys.readouterr().out
    pd.testing.assert_frame_equal(history, whole_history, rtol=1e-3)
    assert dice_of(model) == pytest.approx(history["val_dice"].max(), abs=1e-5)
    assert files(folder) == {"best.keras", "finished", "history.csv", "tensorboard"}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_training_with_a_damaged_backup_goes_on_after_its_best_epoch(folder, whole_history, how, capsys):
    log = training.read_history(folder)
    log["val_dice"] = [0.1, 0.3, 0.2]
    log.to_csv(folder / "history.csv", index=False)
    damage(folder / "backup" / f"epoch_{DONE:04}.keras", how)
    with pytest.raises(KeyboardInterrupt):
        train(folder, EPOCHS, extra=[PullThePlug(DONE)])
    output = capsys.readouterr().out
    assert "after epoch 2 " in output
    assert how == "missing" or f"epoch_{DONE:04}.keras is damaged" in output
    _, history = train(folder, EPOCHS)
    assert f"after epoch {DONE} " in capsys.readouterr().out
    assert list(history["epoch"]) == list(range(EPOCHS))


@pytest.mark.parametrize("how", DAMAGES)
def test_where_the_best_model_is_lost_the_last_takes_its_place(folder, how, capsys):
    log = training.read_history(folder)
    log["val_dice"] = [2.0, 0.1, 0.2]  # the first is better than anything that can follow
    log.to_csv(folder / "history.csv", index=False)
    damage(folder / "best.keras", how)
    model, history = train(folder, EPOCHS)
    assert str(folder / "best.keras") in capsys.readouterr().out
    assert training.best_epoch(history) >= DONE - 1
    assert dice_of(model) == pytest.approx(history["val_dice"].max(), abs=1e-5)


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
@pytest.mark.parametrize("names", [["best.keras", f"backup/epoch_{DONE:04}.keras"], ["history.csv"]])
def test_where_nothing_whole_is_left_the_files_are_named_and_stay(folder, names, how):
    if "history.csv" in names:
        (folder / "backup" / "history.csv").unlink()
    for name in names:
        content = (folder / name).read_bytes()
        # a history that is cut in its first line
        (folder / name).write_bytes(content[:9] if how == "cut" else DAMAGES[how](content))
    before = contents(folder)
    with pytest.raises(NucleiError) as caught:
        train(folder, EPOCHS)
    for name in names:
        assert f"{folder / name} is damaged" in str(caught.value)
    assert contents(folder) == before


def test_a_model_without_a_history_is_not_replaced(folder):
    for name in ("history.csv", "backup/history.csv"):
        (folder / name).unlink()
    with pytest.raises(NucleiError, match=r"history\.csv is missing"):
        train(folder, EPOCHS)
    assert training.begun(folder)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["finished", "history.csv"])
def test_a_finished_training_survives_a_damaged_file(straight, whole_history, tmp_path, name, how):
    folder = shutil.copytree(straight, tmp_path / "run")
    damage(folder / name, how)
    pd.testing.assert_frame_equal(training.read_history(folder), whole_history)
    if training.finished(folder):
        return
    assert (name, how) == ("finished", "missing")
    _, history = train(folder, EPOCHS)
    pd.testing.assert_frame_equal(history, whole_history, rtol=1e-3)


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
def test_the_whole_lines_of_a_history_are_read(tmp_path, content, epochs):
    (tmp_path / "history.csv").write_bytes(content)
    history = training.read_history(tmp_path)
    assert list(history["epoch"]) == list(range(epochs))
    assert history["loss"].tolist() == [1.5, 0.5][:epochs]


@pytest.mark.parametrize(
    "content", [b"epoch,loss\n", b"epoch,lo", b"loss\n1.5\n", b"epoch,loss\n0,1\n0,1\n", b'"\n"\n']
)
def test_a_history_without_a_whole_epoch_is_named(tmp_path, content):
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(NucleiError) as caught:
        training.read_history(tmp_path)
    assert str(tmp_path / "history.csv") in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_overwritten_models_are_no_traceback(straight, tmp_path, seed):
    content = bytearray((straight / "best.keras").read_bytes())
    chance = random.Random(seed)
    start = chance.randrange(len(content))
    length = chance.randrange(1, 4096)
    content[start : start + length] = chance.randbytes(length)
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(NucleiError, match=r"model\.keras is damaged"):
        training.check_whole(tmp_path / "model.keras")


def test_a_whole_model_passes(straight, tmp_path):
    training.check_whole(straight / "best.keras")
    with pytest.raises(FileNotFoundError):
        training.check_whole(tmp_path / "none.keras")


# Two trainings, and a full disk


def test_two_trainings_in_one_folder_do_not_mix(tmp_path, whole_history):
    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with pytest.raises(BlockingIOError) as caught:
                train(tmp_path, EPOCHS)
            assert str(tmp_path) in str(caught.value)

    _, history = train(tmp_path, EPOCHS, extra=[Second()])
    pd.testing.assert_frame_equal(history, whole_history, rtol=1e-3)


def test_a_full_disk_is_named_and_the_training_goes_on_later(tmp_path, whole_history):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))

    try:
        with pytest.raises(OSError) as caught:
            train(tmp_path, EPOCHS, extra=[Full()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value.filename) == str(tmp_path / "backup" / "epoch_0002.keras")
    _, history = train(tmp_path, EPOCHS)
    pd.testing.assert_frame_equal(history, whole_history, rtol=1e-3)


# A killed process

KILLED = """
import sys, time, keras
sys.path.insert(0, {root!r})
from tests.interruption import batches, small_model
from nuclei_utils import training
class Slow(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.05)
training.fit(small_model(1000), batches(), batches(), {folder!r}, epochs=500, extra=[Slow()], verbose=0)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_process_goes_on_where_it_stopped(tmp_path):
    code = KILLED.format(root=str(Path(__file__).parents[1]), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    log = tmp_path / "history.csv"
    deadline = time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "no third epoch within two minutes"
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = len(training.read_history(tmp_path))
    _, history = train(tmp_path, epochs=done + 2)
    assert list(history["epoch"]) == list(range(done + 2))
    assert files(tmp_path) == {"best.keras", "finished", "history.csv", "tensorboard"}


# Which epoch is best


def test_a_training_that_diverges_from_the_start_is_named(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    nothing = tf.data.Dataset.from_tensors((np.full((4, 2), np.nan, "float32"), np.ones((4, 1), "float32")))
    with pytest.raises(ValueError, match="no epoch has a number for val_loss: the training diverged"):
        training.fit(model, nothing, nothing, tmp_path, 2, verbose=0, monitor="val_loss")
    assert not training.finished(tmp_path)


def test_the_best_epoch_before_a_break_is_not_overwritten(folder):
    log = training.read_history(folder)
    log["val_dice"] = 2.0  # better than anything that can follow
    log.to_csv(folder / "history.csv", index=False)
    before = (folder / "best.keras").read_bytes()
    train(folder, EPOCHS)
    assert (folder / "best.keras").read_bytes() == before


def test_the_best_epoch_has_the_highest_dice_or_the_lowest_loss():
    history = pd.DataFrame({"val_dice": [0.1, 0.9, 0.5], "val_loss": [3.0, 2.0, 1.0]})
    assert training.best_epoch(history) == 1
    assert training.best_epoch(history, "val_loss") == 2


def test_the_model_with_the_lowest_loss_is_kept(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    # so large a step makes it worse with each epoch
    model.compile(keras.optimizers.SGD(10.0), "mse", run_eagerly=True)
    examples = tf.data.Dataset.from_tensors((np.ones((4, 2), "float32"), np.ones((4, 1), "float32")))
    _, history = training.fit(model, examples, examples, tmp_path, epochs=3, verbose=0, monitor="val_loss")
    assert history["val_loss"].idxmin() == 0
    assert model.evaluate(examples, verbose=0) == pytest.approx(history["val_loss"].min())


def test_a_training_without_a_single_number_is_named():
    history = pd.DataFrame({"val_loss": [float("nan")] * 2})
    with pytest.raises(ValueError, match="no epoch has a number for val_loss: the training diverged"):
        training.best_epoch(history, "val_loss")


# Compiled models


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_save_and_load_give_the_same_predictions(tmp_path, ending):
    model = small_model()
    model.save(tmp_path / f"model{ending}")
    loaded = keras.models.load_model(tmp_path / f"model{ending}")  # in safe mode
    image = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    np.testing.assert_allclose(loaded(image), model(image), atol=1e-6)
    assert loaded.loss.__class__.__name__ == "BinaryCrossentropyDice"


def test_instances_are_trained_on_three_targets():
    inputs = keras.Input((None, None, 3))
    maps = {
        n: keras.layers.Conv2D(1, 1, activation="sigmoid", name=n)(inputs) for n in ("mask", "boundary", "distance")
    }
    model = training.compile_instances(keras.Model(inputs, maps), steps=10)
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    targets = {name: (images[..., :1] > 0.5).astype("float32") for name in maps}
    logs = model.train_on_batch(images, targets, return_dict=True)
    assert {"mask_dice", "boundary_dice"} <= set(logs)
    assert logs["loss"] > 0
