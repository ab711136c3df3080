"""Tests of profiles, schedule, compilation, `train`, `fine_tune`, and preview images."""

import shutil

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from nuclei_utils import datasets, models, predict, splits, training
from nuclei_utils.errors import NucleiError
from tests.test_checkpoints import Interrupt, batches, damage, small_model, train


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Run in an empty folder with the smoke profile, and without compiled training steps, which take long to build."""
    monkeypatch.setenv("NUCLEI_DATA", "sample")
    monkeypatch.setenv("NUCLEI_PROFILE", "smoke")
    monkeypatch.chdir(tmp_path)
    compile_model = training.compile_model

    def compile_eagerly(model, *args, **options):
        compile_model(model, *args, **options)
        model.run_eagerly = True
        return model

    monkeypatch.setattr(training, "compile_model", compile_eagerly)


SMALL = {"filters": 2, "crop_size": 32}


@pytest.fixture
def no_download(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no internet")

    monkeypatch.setattr(models, "mobilenet_encoder", fail)


@pytest.fixture
def pretrained(monkeypatch):
    """Let a random encoder, which is returned, stand for the encoder with ImageNet's weights."""
    random = models.mobilenet_encoder(None, fixed_statistics=True)
    monkeypatch.setattr(models, "mobilenet_encoder", lambda *_: random)
    return random


def test_profile_comes_from_the_environment(monkeypatch):
    assert training.profile() == training.PROFILES["smoke"]
    monkeypatch.delenv("NUCLEI_PROFILE")
    assert training.profile().name == "laptop"
    monkeypatch.setenv("NUCLEI_PROFILE", "huge")
    with pytest.raises(ValueError, match="huge"):
        training.profile()


# Compile and fit


def test_three_outputs_have_three_losses():
    inputs = keras.Input((None, None, 3))
    outputs = {
        name: keras.layers.Conv2D(1, 1, activation="sigmoid", name=name)(inputs)
        for name in ("mask", "boundary", "distance")
    }
    model = training.compile_model(keras.Model(inputs, outputs), steps=10)
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    targets = {name: (images[..., :1] > 0.5).astype("float32") for name in outputs}
    logs = model.train_on_batch(images, targets, return_dict=True)
    assert {"mask_dice", "boundary_dice"} <= set(logs)
    assert logs["loss"] > 0
    data = tf.data.Dataset.from_tensors((images, targets))
    _, history = training.fit(model, data, data, "run", epochs=2, verbose=0)
    assert {"val_loss", "val_mask_dice", "val_boundary_dice"} <= set(history)


def test_deep_supervision_has_the_metrics_of_the_mean():
    model = training.compile_model(models.unet_plus_plus(filters=2, depth=2), steps=10, amsgrad=True)
    logs = model.train_on_batch(*next(iter(batches())), return_dict=True)
    assert set(logs) == {"loss", "accuracy", "iou", "dice"}


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_compiled_model_is_the_same_after_loading(tmp_path, ending):
    model = small_model()
    model.save(tmp_path / f"model{ending}")
    loaded = keras.models.load_model(tmp_path / f"model{ending}")  # in safe mode
    image = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    np.testing.assert_allclose(loaded(image), model(image), atol=1e-6)
    assert loaded.loss.__class__.__name__ == "BinaryCrossentropyDice"


def test_training_stops_early():
    model = small_model(learning_rate=0.0)
    _, history = training.fit(model, batches(), batches(), "run", epochs=30, patience=2, verbose=0)
    assert len(history) < 30


def test_model_with_the_lowest_loss_is_kept():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    # the steps are so large that each epoch is worse than the epoch before
    model.compile(keras.optimizers.SGD(10.0), "mse", run_eagerly=True)
    examples = tf.data.Dataset.from_tensors((np.ones((4, 2), "float32"), np.ones((4, 1), "float32")))
    _, history = training.fit(model, examples, examples, "run", epochs=3, verbose=0, monitor="val_loss")
    assert training.best_epoch(history) == 0
    assert model.evaluate(examples, verbose=0) == pytest.approx(history["val_loss"].min())


# Build and train


def test_network_is_trained_once_and_then_loaded(monkeypatch, capsys):
    monkeypatch.setattr(training, "build", lambda *_: small_model())
    model, history = training.load_or_train("unet")
    assert "training now" in capsys.readouterr().out
    loaded, same_history = training.load_or_train("unet")
    assert "loaded" in capsys.readouterr().out
    pd.testing.assert_frame_equal(history, same_history)
    assert list(history["epoch"]) == [0, 1]
    image = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    np.testing.assert_allclose(model(image), loaded(image), atol=1e-6)
    states = training.read_previews(training.run_folder("unet"))
    assert len(states) == 1 + training.profile().epochs
    for masks in states:
        assert [mask.shape for mask in masks] == [record.label_map.shape for record in training.preview_records()]
    assert np.abs(states[0][0] - states[-1][0]).max() > 0


def test_preview_has_the_centre_of_one_image_of_each_type():
    previews = training.preview_records()
    assert [record.image_type for record in previews] == sorted(datasets.IMAGE_TYPES)
    originals = {record.id: record for record in datasets.load(split="validation")}
    for record in previews:
        assert max(record.label_map.shape) <= 256
        assert record.image.shape[:2] == record.label_map.shape
        assert set(np.unique(record.label_map)) <= set(np.unique(originals[record.id].label_map))


def test_preview_before_an_interruption_is_not_replaced():
    images = [training.preview_records()[0].image[:32, :48]]
    recorder = training.PreviewRecorder(images, "run")
    with pytest.raises(KeyboardInterrupt):
        train("run", 4, callbacks=[recorder, Interrupt(2)])
    before = training.read_previews("run")
    train("run", 4, callbacks=[recorder])
    states = training.read_previews("run")
    assert (len(before), len(states)) == (3, 5)
    np.testing.assert_array_equal(states[:3], before)
    np.testing.assert_allclose(states[0], predict.predict_masks(small_model(), images), atol=1 / 255)


def test_unet_plus_plus_predicts_the_mean_of_its_outputs_after_loading():
    model, _ = training.train("unet_plus_plus", "run", verbose=0, **SMALL)
    assert [output.shape for output in model.outputs] == [(None, None, None, 1)]


def test_three_outputs_are_trained_for_all_epochs(pretrained):
    model, history = training.train("instance_unet", "run", weights=None, epochs=1, verbose=0, **SMALL)
    assert model.output.keys() == {"mask", "boundary", "distance"}
    assert "val_mask_dice" in history


def test_pretrained_encoder_is_frozen_and_then_fine_tuned(pretrained):
    before = {weight.path: np.array(weight) for weight in pretrained.weights}
    images = [training.preview_records()[0].image[:64, :64]]
    model, history = training.train("mobilenet_unet", "run", previews=images, verbose=0, **SMALL)
    assert list(history["epoch"]) == [0, 1]
    assert len(training.read_previews("run")) == 3

    def changed(model):
        weights = {weight.path: np.array(weight) for weight in model.get_layer("mobilenet_v2").weights}
        return {path for path, value in before.items() if np.abs(weights[path] - value).max() > 0}

    assert not changed(training.load_run("run/frozen")[0])
    blocks = [f"block_{number}_" for number in range(17 - training.FINE_TUNED_BLOCKS, 17)]
    assert changed(model)
    assert all(any(block in path for block in [*blocks, "Conv_1"]) for path in changed(model))


def test_random_encoder_is_trained_and_pretrained_encoder_is_frozen(pretrained):
    assert not training.build("mobilenet_unet").get_layer("mobilenet_v2").trainable_weights
    assert training.build("mobilenet_unet", weights=None).get_layer("mobilenet_v2").trainable_weights


def test_unknown_network_is_refused():
    with pytest.raises(ValueError, match="resnet"):
        training.build("resnet")


@pytest.mark.usefixtures("no_download")
def test_missing_pretrained_weights_are_reported(capsys):
    assert training.imagenet_weights() is None
    assert "not transfer learning" in capsys.readouterr().out


def test_training_with_pretrained_weights_does_not_resume_without_them(tmp_path):
    train(tmp_path / "run" / "frozen", epochs=1)
    with pytest.raises(FileNotFoundError, match="pretrained weights"):
        training.train("mobilenet_unet", tmp_path / "run", weights=None, **SMALL)


# Two phases


@pytest.fixture
def two_phases(monkeypatch, tmp_path):
    """Return a function that trains in two phases of two epochs each, and that can be interrupted in an epoch."""
    monkeypatch.setattr(models, "unfreeze_encoder", lambda *_: None)
    monkeypatch.setattr(training, "build", lambda *_: small_model())
    monkeypatch.setattr(training, "batches", lambda *_, **__: (batches(), batches()))
    fit = training.fit

    def run(folder=tmp_path / "run", interrupt=None):
        added = [] if interrupt is None else [Interrupt(interrupt)]
        monkeypatch.setattr(training, "fit", lambda *args, **options: fit(*args, **options | {"callbacks": added}))
        return training.train("mobilenet_unet", folder, epochs=4, weights="imagenet", verbose=0)[1]

    return run


UNINTERRUPTED = []


@pytest.fixture
def uninterrupted(two_phases, tmp_path):
    """History of an uninterrupted training in two phases."""
    if not UNINTERRUPTED:
        UNINTERRUPTED.append(two_phases(tmp_path / "uninterrupted"))
    return UNINTERRUPTED[0]


@pytest.mark.parametrize("epoch", range(4))
def test_two_phases_resume_with_the_same_result(two_phases, uninterrupted, epoch):
    with pytest.raises(KeyboardInterrupt):
        two_phases(interrupt=epoch)
    pd.testing.assert_frame_equal(two_phases(), uninterrupted, rtol=1e-3)


@pytest.mark.parametrize("how", ["missing", "zeros"])
@pytest.mark.parametrize("name", ["best.keras", "finished", "history.csv"])
def test_second_phase_with_a_checkpoint_resumes_without_files_of_the_first(
    two_phases, uninterrupted, tmp_path, name, how
):
    with pytest.raises(KeyboardInterrupt):
        two_phases(interrupt=3)
    damage(tmp_path / "run" / "frozen" / name, how)
    pd.testing.assert_frame_equal(two_phases(), uninterrupted, rtol=1e-3)


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
def test_second_phase_without_a_checkpoint_needs_the_model_of_the_first(two_phases, tmp_path, how):
    with pytest.raises(KeyboardInterrupt):
        two_phases(interrupt=2)
    damage(tmp_path / "run" / "frozen" / "best.keras", how)
    with pytest.raises(NucleiError, match=r"best\.keras"):
        two_phases()


# Load


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(folder, epochs=2)
    return folder


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
def test_damaged_network_is_named(trained, tmp_path, how):
    folder = shutil.copytree(trained, tmp_path / "run")
    damage(folder / "best.keras", how)
    with pytest.raises(NucleiError, match=r"best\.keras"):
        training.load_run(folder)


def test_training_without_a_model_is_not_finished(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "best.keras").unlink()
    for missing in (folder, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no finished training"):
            training.load_run(missing)
    assert list(train(folder, epochs=1)[1]["epoch"]) == [0]


def test_finished_training_is_replaced_with_its_first_phase(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(trained, folder / "frozen")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "batches", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train("unet", folder)
    assert training.phases(folder) == []


# Images


def own_records(count=10):
    """Return records of one nucleus each."""
    label_map = np.zeros((40, 40), np.int32)
    label_map[10:30, 10:30] = 1
    image = np.repeat(np.uint8(200 * label_map)[..., None], 3, axis=2)
    return [datasets.Record(f"image{number}", image, label_map, "") for number in range(count)]


def test_fine_tuning_keeps_a_random_fifth_for_validation(monkeypatch):
    sides = []

    def record_sides(*_, records, **__):
        sides.extend(records)
        return batches(), batches()

    monkeypatch.setattr(training, "batches", record_sides)
    _, history = training.fine_tune(small_model(), own_records(), "run", epochs=2, verbose=0)
    assert len(history) == 2
    assert [len(side) for side in sides] == [8, 2]
    assert [record.id for record in sides[1]] != ["image8", "image9"]


def test_fine_tuning_takes_the_options_and_leaves_the_network_unchanged():
    model = small_model()
    before = model.get_weights()
    options = {"learning_rate": 1e-2, "crop_size": 32, "batch_size": 4, "min_crops": 12}
    tuned, history = training.fine_tune(model, own_records(), "run", epochs=2, verbose=0, **options)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert any((old != new).any() for old, new in zip(before, tuned.get_weights(), strict=True))
    learner, _ = training._compiled_copy(model, 8, 1e-2)  # 8 training images twice are 16 crops, 4 batches in an epoch
    steps = int(learner.optimizer.iterations)  # at the end of the best epoch
    assert steps in (4, 8)
    assert float(learner.optimizer.learning_rate) == pytest.approx(float(training.warmup_cosine(1e-2, 8)(steps)))
    assert len(history) == 2


def test_the_default_rate_depends_on_the_outputs():
    for build, rate in ((models.unet, training.LEARNING_RATE), (models.instance_unet, training.INSTANCE_RATE)):
        options = {"weights": None} if build is models.instance_unet else {"depth": 1}
        model = training.compile_model(build(filters=2, **options), steps=20)
        assert float(model.optimizer.learning_rate) == pytest.approx(rate / 10)  # the warm-up starts there


def test_second_fine_tuning_starts_afresh():
    model, options = small_model(), {"epochs": 2, "verbose": 0, "min_crops": 12, "crop_size": 32, "batch_size": 4}
    first, history = training.fine_tune(model, own_records(), "run", **options)
    other, _ = training.fine_tune(model, own_records(), "other", seed=1, **options)
    again, history_again = training.fine_tune(model, own_records(), "again", **options)
    pd.testing.assert_frame_equal(history, history_again)
    for old, new in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert other is not first


def test_fine_tuned_copy_of_the_included_network_starts_with_its_weights():
    model = models.included_network()
    tuned, _ = training.fine_tune(
        model, own_records(2), "run", epochs=1, min_crops=1, crop_size=32, batch_size=1, learning_rate=1e-12, verbose=0
    )
    assert tuned is not model
    # the statistics of the decoder's batch normalisation change with the first batch
    for old, new in zip(model.trainable_weights, tuned.trainable_weights, strict=True):
        np.testing.assert_allclose(old, new, atol=1e-6)


@pytest.mark.parametrize("empty", [{0, 1, 2}, {0, 1}, {0, 2}, {1, 2}])
def test_images_without_a_nucleus_are_refused(empty):
    records = [
        record._replace(label_map=np.zeros_like(record.label_map)) if number in empty else record
        for number, record in enumerate(own_records(3))
    ]
    with pytest.raises(NucleiError, match="nucleus"):
        training.fine_tune(small_model(), records, "run")
    with pytest.raises(NucleiError, match="at least two"):
        training.fine_tune(small_model(), records[:1], "run")


def test_images_of_a_group_stay_together():
    groups = list("aabbccddee")
    for seed in range(5):
        train_records, validation = splits.hold_out(own_records(), seed, groups)
        assert len(validation) == 2
        held_out = {groups[int(record.id[-1])] for record in validation}
        assert not held_out & {groups[int(record.id[-1])] for record in train_records}


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 1.0])
def test_fraction_of_the_images_has_each_image_type(fraction):
    table = datasets.split_table("sample").set_index("id")
    chosen = table.loc[training.some_ids(fraction)]
    assert set(chosen["split"]) == {"train"}
    counts = table[table["split"] == "train"]["image_type"].value_counts()
    expected = {image_type: max(round(fraction * count), 1) for image_type, count in counts.items()}
    assert chosen["image_type"].value_counts().to_dict() == expected


def test_larger_fraction_contains_the_smaller_fraction():
    assert set(training.some_ids(0.05)) < set(training.some_ids(0.5)) < set(training.some_ids(1))
    assert set(training.some_ids(0.5, seed=1)) != set(training.some_ids(0.5))


def test_fraction_has_fewer_crops():
    few, _ = training.batches(fraction=0.05, crop_size=32, batch_size=1)
    assert len(few) == len(training.some_ids(0.05))
