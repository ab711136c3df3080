import shutil

import keras
import numpy as np
import pandas as pd
import pytest

from nuclei_utils import datasets, models, recipes, training
from nuclei_utils.errors import NucleiError
from tests.interruption import batches, damage, small_model, train


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Networks and crops so small that training takes seconds; the way through the code stays the same."""
    monkeypatch.setattr(recipes, "SIZE", 32)
    monkeypatch.setattr(recipes, "BATCH", 16)
    monkeypatch.setattr(recipes, "FILTERS", 2)
    monkeypatch.setenv("NUCLEI_DATA", "sample")
    monkeypatch.setenv("NUCLEI_PROFILE", "smoke")
    monkeypatch.chdir(tmp_path)
    compile_model = training.compile_model

    def eager(model, *arguments, **words):
        compile_model(model, *arguments, **words)
        model.run_eagerly = True  # for a few tiny batches, compiling would take longer than training
        return model

    monkeypatch.setattr(training, "compile_model", eager)


@pytest.fixture
def no_download(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no internet")

    monkeypatch.setattr(models, "mobilenet_encoder", fail)


def test_a_network_is_trained_once_and_then_loaded(capsys):
    model, history = recipes.load_or_train("unet")
    assert "is trained now" in capsys.readouterr().out
    again, same = recipes.load_or_train("unet")
    assert "loaded from" in capsys.readouterr().out
    assert list(history["epoch"]) == list(same["epoch"]) == [0, 1]
    image = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    np.testing.assert_allclose(model(image), again(image), atol=1e-6)
    # what is watched is recorded before training and after each epoch
    frames = recipes.recorded(recipes.folder("unet"))
    watched = recipes.watched()
    assert len(frames) == 1 + training.profile().epochs
    for frame in frames:
        assert [one.shape for one in frame] == [record.label_map.shape for record in watched]
    assert np.abs(frames[0][0] - frames[-1][0]).max() > 0


def test_one_image_of_each_kind_is_watched():
    watched = recipes.watched()
    assert [record.image_type for record in watched] == sorted(datasets.IMAGE_TYPES)
    whole = {record.id: record for record in datasets.load(split="validation")}
    for record in watched:
        assert max(record.label_map.shape) <= 256
        assert record.image.shape[:2] == record.label_map.shape
        assert set(np.unique(record.label_map)) <= set(np.unique(whole[record.id].label_map))


def test_unet_plus_plus_comes_back_in_its_accurate_mode():
    model, _ = recipes.train("unet_plus_plus", "here")
    assert [output.shape for output in model.outputs] == [(None, None, None, 1)]


def test_a_pretrained_encoder_rests_and_is_then_fine_tuned(tmp_path, monkeypatch):
    random = models.mobilenet_encoder(None)
    encoder = models.FixedStatistics(random.inputs, random.outputs, name="mobilenet_v2")
    monkeypatch.setattr(models, "mobilenet_encoder", lambda weights: encoder)  # stands for ImageNet's
    before = {weight.path: np.array(weight) for weight in encoder.weights}
    phases = []
    real = training.fit

    def fit(model, train, validation, folder, *arguments, **words):
        phases.append({weight.path for weight in encoder.trainable_weights})
        return real(model, train, validation, folder, *arguments, **words)

    monkeypatch.setattr(training, "fit", fit)
    images = [recipes.watched()[0].image[:64, :64]]
    model, history = recipes.train("mobilenet_unet", tmp_path / "run", watch=images)
    assert [bool(phase) for phase in phases] == [False, True]
    assert list(history["epoch"]) == [0, 1]
    assert len(recipes.recorded(tmp_path / "run")) == 3
    after = {weight.path: np.array(weight) for weight in model.get_layer("mobilenet_v2").weights}
    moved = {path for path, value in before.items() if np.abs(after[path] - value).max() > 0}
    assert moved
    assert moved <= phases[1]


@pytest.mark.usefixtures("no_download")
def test_without_pretrained_weights_it_says_so(capsys):
    assert recipes.pretrained() is None
    assert "no internet.\nGoing on with a random encoder: this is not transfer learning." in capsys.readouterr().out


@pytest.mark.usefixtures("no_download")
def test_a_training_begun_with_pretrained_weights_does_not_go_on_without(tmp_path, monkeypatch):
    place = tmp_path / "run" / "frozen"
    place.mkdir(parents=True)
    (place / "best.keras").touch()
    monkeypatch.setattr(recipes, "build", lambda *_: None)
    with pytest.raises(FileNotFoundError, match=r"begun with pretrained weights.*NUCLEI_MOBILENET_WEIGHTS"):
        recipes.train("mobilenet_unet", tmp_path / "run")


# Two phases, one after the other


class Kill(keras.callbacks.Callback):
    """Break off in one of the epochs of all phases."""

    def __init__(self, epoch):
        super().__init__()
        self.left = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.left == 0:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.left -= 1


@pytest.fixture
def two_phases(monkeypatch, tmp_path):
    """Return a function that trains in two phases of two epochs each, broken off in an epoch if one is named."""
    monkeypatch.setattr(models, "unfreeze_encoder", lambda model, blocks: None)
    plain = training.callbacks

    def run(folder=tmp_path / "run", kill=None):
        extra = [] if kill is None else [Kill(kill)]
        monkeypatch.setattr(training, "callbacks", lambda *arguments: [*extra, *plain(*arguments)])
        recipes.fit("mobilenet_unet", small_model(), batches(), batches(), folder, 4, "imagenet", verbose=0)
        return recipes.load(folder)[1]

    return run


UNDISTURBED = []  # the history of a training, once it was made


@pytest.fixture
def undisturbed(two_phases, tmp_path):
    """History of a training in two phases that nothing disturbs."""
    if not UNDISTURBED:
        UNDISTURBED.append(two_phases(tmp_path / "straight"))
    return UNDISTURBED[0]


@pytest.mark.parametrize("epoch", range(4))
def test_two_phases_go_on_as_if_nothing_had_happened(two_phases, undisturbed, epoch):
    with pytest.raises(KeyboardInterrupt):
        two_phases(kill=epoch)
    pd.testing.assert_frame_equal(two_phases(), undisturbed, rtol=1e-3)


@pytest.mark.parametrize("how", ["missing", "zeros"])
@pytest.mark.parametrize("name", ["best.keras", "finished", "history.csv"])
def test_a_second_phase_that_has_a_backup_needs_no_model_of_the_first(two_phases, undisturbed, tmp_path, name, how):
    with pytest.raises(KeyboardInterrupt):
        two_phases(kill=3)
    damage(tmp_path / "run" / "frozen" / name, how)
    pd.testing.assert_frame_equal(two_phases(), undisturbed, rtol=1e-3)


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
def test_a_second_phase_without_a_backup_needs_the_model_of_the_first(two_phases, tmp_path, how):
    with pytest.raises(KeyboardInterrupt):
        two_phases(kill=2)
    damage(tmp_path / "run" / "frozen" / "best.keras", how)
    with pytest.raises(NucleiError) as caught:
        two_phases()
    assert str(tmp_path / "run" / "frozen" / "best.keras") in str(caught.value)


# Damaged and unsuitable files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a finished training of a few weights."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, epochs=2)
    return folder


@pytest.mark.parametrize("how", ["empty", "cut", "zeros"])
def test_a_damaged_network_is_named(trained, tmp_path, how):
    folder = shutil.copytree(trained, tmp_path / "run")
    damage(folder / "best.keras", how)
    with pytest.raises(NucleiError) as caught:
        recipes.load(folder)
    assert str(folder / "best.keras") in str(caught.value)


def test_a_network_without_its_file_is_not_taken_for_trained(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "best.keras").unlink()
    with pytest.raises(FileNotFoundError, match="no finished training"):
        recipes.load(folder)
    assert list(train(folder, epochs=1)[1]["epoch"]) == [0]


def test_a_finished_training_is_replaced_with_its_first_phase(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(trained, folder / "frozen")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "batches", stop)
    with pytest.raises(KeyboardInterrupt):
        recipes.train("unet", folder)
    assert not training.begun(folder)
    assert not training.begun(folder / "frozen")


def test_images_without_a_nucleus_are_refused(tmp_path):
    records = recipes.watched()
    empty = [record._replace(label_map=np.zeros_like(record.label_map)) for record in records]
    recipes.check_nuclei([*empty, records[0]], "train on")
    for wrong in (empty, [*empty, records[0]], [*records, empty[0]]):
        with pytest.raises(NucleiError, match="nucleus"):
            recipes.fine_tune(None, wrong[-3:], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_of_other_weights_is_named(tmp_path, monkeypatch):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save_weights(tmp_path / "other.weights.h5")
    monkeypatch.setenv(models.WEIGHTS, str(tmp_path / "other.weights.h5"))
    with pytest.raises(NucleiError) as caught:
        recipes.pretrained()
    assert str(tmp_path / "other.weights.h5") in str(caught.value)


def test_random_encoders_are_trained_and_pretrained_ones_rest(monkeypatch):
    random = recipes.build("mobilenet_unet", weights=None).get_layer("mobilenet_v2")
    assert random.trainable_weights
    fixed = models.FixedStatistics(random.inputs, random.outputs, name="mobilenet_v2")
    monkeypatch.setattr(models, "mobilenet_encoder", lambda weights: fixed)
    assert not recipes.build("mobilenet_unet").get_layer("mobilenet_v2").trainable_weights


def test_where_nothing_was_trained_nothing_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished training in .*train it first"):
        recipes.load(tmp_path)


def test_networks_are_as_wide_as_asked():
    assert recipes.build("unet").layers[1].filters == 2
    assert recipes.build("unet_plus_plus", filters=4).layers[1].filters == 4
    assert recipes.build("instance_unet", None, 4).output.keys() == {"mask", "boundary", "distance"}


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"no network 'resnet'.*choose one of unet, mobilenet_unet, unet_plus_plus"):
        recipes.build("resnet")


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_a_share_of_the_images_has_every_kind(share):
    table = datasets.split_table("sample").set_index("id")
    chosen = table.loc[recipes.some_ids(share)]
    assert set(chosen["split"]) == {"train"}
    whole = table[table["split"] == "train"]["image_type"].value_counts()
    assert chosen["image_type"].value_counts().to_dict() == {k: max(round(share * n), 1) for k, n in whole.items()}


def test_a_larger_share_holds_the_smaller():
    assert set(recipes.some_ids(0.05)) < set(recipes.some_ids(0.5)) < set(recipes.some_ids(1))
    assert set(recipes.some_ids(0.5, seed=1)) != set(recipes.some_ids(0.5))


def test_a_share_gives_crops_of_its_images_alone(monkeypatch):
    seen = []
    batches = recipes.input_pipeline.training_batches

    def watch(examples, *arguments, **words):
        seen.extend(example["id"].numpy().decode() for example in examples)
        return batches(examples, *arguments, **words)

    monkeypatch.setattr(recipes.input_pipeline, "training_batches", watch)
    recipes.batches(share=0.05)
    assert sorted(seen) == sorted(recipes.some_ids(0.05))
