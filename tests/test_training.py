import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from nuclei_utils import models, training
from tests.interruption import PullThePlug, break_off_while_saving


class Batches(keras.utils.PyDataset):
    """Two batches of noise, in which bright red is nucleus."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.images = rng.random((4, 16, 16, 3)).astype(np.float32)
        self.masks = (self.images[..., :1] > 0.5).astype(np.float32)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        chosen = slice(2 * index, 2 * index + 2)
        return self.images[chosen], self.masks[chosen]


def small_model(steps=20, learning_rate=1e-2):
    keras.utils.set_random_seed(0)
    model = training.compile_model(models.unet((16, 16, 3), filters=4, depth=1), steps, learning_rate)
    model.run_eagerly = True  # for a few tiny batches, compiling would take longer than training
    return model


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
    rate = small_model(steps=100, learning_rate=1e-3).optimizer._learning_rate
    values = [float(rate(step)) for step in (0, 5, 50, 100)]
    assert values[0] == pytest.approx(1e-4, rel=0.2)
    assert values[1] == pytest.approx(1e-3, rel=0.01)
    assert values[1] > values[2] > values[3] == pytest.approx(0, abs=1e-8)


def test_fit_learns_and_leaves_its_files(tmp_path):
    model, history = training.fit(small_model(), Batches(), Batches(), tmp_path, epochs=8, verbose=0)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert list(history["epoch"]) == list(range(8))
    assert {path.name for path in tmp_path.iterdir()} == {"best.keras", "finished", "history.csv", "tensorboard"}
    assert training.finished(tmp_path)
    # the weights of the best epoch, by the validation's Dice
    dice = model.evaluate(Batches(), verbose=0, return_dict=True)["dice"]
    assert dice == pytest.approx(history["val_dice"].max(), abs=1e-5)


def test_early_stop(tmp_path):
    _, history = training.fit(
        small_model(learning_rate=0.0), Batches(), Batches(), tmp_path, epochs=30, patience=2, verbose=0
    )
    assert len(history) < 30


def test_a_finished_training_is_replaced_and_foreign_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for epochs in (3, 2):
        _, history = training.fit(small_model(), Batches(), Batches(), tmp_path, epochs=epochs, verbose=0)
    assert len(history) == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path):
    _, straight = training.fit(small_model(), Batches(), Batches(), tmp_path / "straight", epochs=5, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        training.fit(small_model(), Batches(), Batches(), tmp_path / "broken", 5, extra=[PullThePlug(3)], verbose=0)
    assert not training.finished(tmp_path / "broken")
    _, resumed = training.fit(small_model(), Batches(), Batches(), tmp_path / "broken", epochs=5, verbose=0)
    assert list(resumed["epoch"]) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(resumed["val_loss"], straight["val_loss"], rtol=1e-3)


def test_the_same_model_can_be_trained_again_after_a_break(tmp_path):
    model = small_model()
    with pytest.raises(KeyboardInterrupt):
        training.fit(model, Batches(), Batches(), tmp_path, 4, extra=[PullThePlug(2)], verbose=0)
    for _ in range(2):  # the first goes on, the second is a new training, which starts at its first epoch
        _, history = training.fit(model, Batches(), Batches(), tmp_path, epochs=4, verbose=0)
        assert list(history["epoch"]) == [0, 1, 2, 3]


def test_a_backup_of_another_network_is_named(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        training.fit(small_model(), Batches(), Batches(), tmp_path, 4, extra=[PullThePlug(2)], verbose=0)
    other = training.compile_model(models.unet((16, 16, 3), filters=6, depth=1), steps=8)
    with pytest.raises(ValueError, match=r"another network that was broken off.*delete it to start anew") as caught:
        training.fit(other, Batches(), Batches(), tmp_path, 4, verbose=0)
    assert str(tmp_path / "backup") in str(caught.value)
    training.fit(small_model(), Batches(), Batches(), tmp_path, 4, verbose=0)
    assert f"going on after epoch 2 of the training that was broken off in {tmp_path}" in capsys.readouterr().out


def test_a_break_while_the_backup_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    break_off_while_saving(monkeypatch, lambda path: "epoch_0003" in path.name)
    with pytest.raises(KeyboardInterrupt):
        training.fit(small_model(), Batches(), Batches(), tmp_path, 5, verbose=0)
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["epoch_0002.keras"]
    monkeypatch.undo()
    _, history = training.fit(small_model(), Batches(), Batches(), tmp_path, 5, verbose=0)
    assert list(history["epoch"]) == list(range(5))


def test_a_break_while_the_best_model_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    best = count(1)
    break_off_while_saving(monkeypatch, lambda path: path.name == "best.keras" and next(best) == 2)
    with pytest.raises(KeyboardInterrupt):
        training.fit(small_model(), Batches(), Batches(), tmp_path, 10, verbose=0)
    before = (tmp_path / "best.keras").read_bytes()
    keras.models.load_model(tmp_path / "best.keras")
    monkeypatch.undo()
    model, history = training.fit(small_model(), Batches(), Batches(), tmp_path, 10, verbose=0)
    assert (tmp_path / "best.keras").read_bytes() != before
    dice = model.evaluate(Batches(), verbose=0, return_dict=True)["dice"]
    assert dice == pytest.approx(history["val_dice"].max(), abs=1e-5)


def test_a_training_that_diverges_from_the_start_is_named(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    nothing = tf.data.Dataset.from_tensors((np.full((4, 2), np.nan, "float32"), np.ones((4, 1), "float32")))
    with pytest.raises(ValueError, match="no epoch has a number for val_loss: the training diverged"):
        training.fit(model, nothing, nothing, tmp_path, 2, verbose=0, monitor="val_loss")
    assert not training.finished(tmp_path)


def test_the_best_epoch_before_a_break_is_not_overwritten(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        training.fit(small_model(), Batches(), Batches(), tmp_path, 6, extra=[PullThePlug(4)], verbose=0)
    log = training.read_history(tmp_path)
    log["val_dice"] = 2.0  # better than anything that can follow
    log.to_csv(tmp_path / "history.csv", index=False)
    before = (tmp_path / "best.keras").stat().st_mtime_ns
    training.fit(small_model(), Batches(), Batches(), tmp_path, epochs=6, verbose=0)
    assert (tmp_path / "best.keras").stat().st_mtime_ns == before


KILLED = """
import sys, time, keras
sys.path.insert(0, {root!r})
from tests.test_training import Batches, small_model
from nuclei_utils import training
class Slow(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.3)
training.fit(small_model(), Batches(), Batches(), {folder!r}, epochs=50, extra=[Slow()], verbose=0)
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
        time.sleep(0.1)
    process.kill()
    process.wait()
    done = len(training.read_history(tmp_path))
    _, history = training.fit(small_model(), Batches(), Batches(), tmp_path, epochs=done + 2, verbose=0)
    assert list(history["epoch"]) == list(range(done + 2))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_save_and_load_give_the_same_predictions(tmp_path, ending):
    model, _ = training.fit(small_model(), Batches(), Batches(), tmp_path, epochs=1, verbose=0)
    model.save(tmp_path / f"model{ending}")
    loaded = keras.models.load_model(tmp_path / f"model{ending}")  # in safe mode
    image = Batches()[0][0]
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


def test_the_best_epoch_has_the_highest_dice_or_the_lowest_loss():
    history = pd.DataFrame({"val_dice": [0.1, 0.9, 0.5], "val_loss": [3.0, 2.0, 1.0]})
    assert training.best_epoch(history) == 1
    assert training.best_epoch(history, "val_loss") == 2


def test_the_model_with_the_lowest_loss_is_kept(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(10.0), "mse")  # so large a step makes it worse with each epoch
    batches = tf.data.Dataset.from_tensors((np.ones((4, 2), "float32"), np.ones((4, 1), "float32")))
    _, history = training.fit(model, batches, batches, tmp_path, epochs=3, verbose=0, monitor="val_loss")
    assert history["val_loss"].idxmin() == 0
    assert model.evaluate(batches, verbose=0) == pytest.approx(history["val_loss"].min())


def test_a_training_without_a_single_number_is_named():
    history = pd.DataFrame({"val_loss": [float("nan")] * 2})
    with pytest.raises(ValueError, match="no epoch has a number for val_loss: the training diverged"):
        training.best_epoch(history, "val_loss")
