import hashlib
import urllib.error
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

from nuclei_utils import datasets, exported, models, predict, preprocess
from nuclei_utils.errors import NucleiError


@pytest.fixture(autouse=True)
def seed():
    """Draw the same weights each time: with a few seeds, a small network is dead from the start."""
    keras.utils.set_random_seed(0)


def random_images(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def arrays(model):
    """Return copies of the weights of a model by their path."""
    return {weight.path: keras.ops.convert_to_numpy(weight).copy() for weight in model.weights}


def changed_weights(model):
    """Train on one batch, and return the paths of the weights that changed."""
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy", run_eagerly=True)
    before = arrays(model)
    model.train_on_batch(random_images(4, 64, 64, 3), random_images(4, 64, 64, 1).round())
    return {path for path, array in arrays(model).items() if not np.array_equal(array, before[path])}


def assert_probabilities(tensor, shape):
    array = keras.ops.convert_to_numpy(tensor)
    assert array.shape == shape
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1


# U-Net


@pytest.mark.parametrize("filters", [2, 4])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_unet_returns_one_probability_per_pixel_at_any_size(filters, depth, residual):
    model = models.unet(filters=filters, depth=depth, residual=residual, dropout=0.1)
    for size in [(16, 24), (8, 8)]:
        assert_probabilities(model(random_images(2, *size, 3)), (2, *size, 1))


def test_unet_has_the_parameters_of_the_classic_unet():
    # 32 to 512 maps: 9ab weights of a convolution, 4b of a normalisation, 4ab + b of a transposed convolution
    blocks = [(3, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 256), (256, 128), (128, 64), (64, 32)]
    expected = sum(9 * a * b + 9 * b * b + 8 * b for a, b in blocks)
    expected += sum(4 * a * b + b for a, b in [(512, 256), (256, 128), (128, 64), (64, 32)]) + 33
    assert models.unet((None, None, 3), filters=32, depth=4).count_params() == expected


def test_unet_has_a_skip_connection_at_every_level():
    model = models.unet((16, 16, 3), filters=2, depth=3)
    joins = [layer for layer in model.layers if isinstance(layer, layers.Concatenate)]
    assert [join.output.shape[1:] for join in joins] == [(4, 4, 16), (8, 8, 8), (16, 16, 4)]


@pytest.mark.parametrize(
    ("build", "shape", "multiple"),
    [
        (lambda shape: models.unet(shape, filters=2, depth=4), (30, 32, 3), 16),
        (lambda shape: models.unet(shape, filters=2, depth=4), (None, 30, 3), 16),
        (lambda shape: models.unet_plus_plus(shape, filters=2, depth=4), (32, 24, 3), 16),
        (lambda shape: models.mobilenet_unet(shape, weights=None), (48, 64, 3), 32),
        (lambda shape: models.mobilenet_unet(shape, weights=None), (None, 250, 3), 32),
        (lambda shape: models.instance_unet(shape, weights=None), (40, 64, 3), 16),
    ],
)
def test_a_size_that_does_not_fit_is_refused(build, shape, multiple):
    with pytest.raises(ValueError, match=rf"{shape[0]} x {shape[1]}.*multiples of {multiple}.*pad_to_multiple"):
        build(shape)


def test_dropout_acts_in_training_only():
    model = models.unet((16, 16, 3), filters=4, depth=2, dropout=0.5)
    image = random_images(1, 16, 16, 3)
    for training in (False, True):
        first, second = (ops.convert_to_numpy(model(image, training=training)) for _ in range(2))
        assert np.array_equal(first, second) == (not training)


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.unet((64, 64, 3), filters=4, depth=2, residual=True),
        lambda: models.unet_plus_plus((64, 64, 3), filters=4, depth=3),
    ],
)
def test_a_training_step_changes_every_weight(build):
    model = build()
    assert changed_weights(model) == arrays(model).keys()


# MobileNetV2 encoder


@pytest.fixture(scope="module")
def mobilenet():
    """Return the MobileNetV2 of Keras with random weights, so that nothing is downloaded."""
    network = keras.applications.MobileNetV2((None, None, 3), include_top=False, weights=None)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):  # as if trained: feature maps neither vanish nor explode
            scale, offset, mean, variance = layer.get_weights()
            layer.set_weights([scale, offset, rng.normal(mean, 0.1), rng.uniform(0.1, 0.2, variance.shape)])
    return network


@pytest.fixture(scope="module")
def weights_file(mobilenet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    mobilenet.save_weights(path)
    return path


@pytest.fixture(scope="module")
def network(weights_file):
    return models.mobilenet_unet(weights=weights_file, filters=2)


def same_features(encoder, mobilenet):
    """Return True if an encoder computes the same feature maps as the whole MobileNetV2."""
    images = 2 * random_images(1, 64, 64, 3) - 1
    expected = keras.Model(mobilenet.input, mobilenet.get_layer(models.BOTTLENECK_LAYER).output)(images)
    return np.allclose(*map(ops.convert_to_numpy, (encoder(images)[-1], expected)), atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_mobilenet_unet_returns_one_probability_per_pixel(network, size):
    assert_probabilities(network(random_images(2, *size, 3)), (2, *size, 1))


def test_images_of_other_sizes_are_padded_for_the_prediction(network):
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    (predicted,) = predict.predict_masks(network, [image])
    padded = preprocess.pad_to_multiple(preprocess.normalize(image), 32)
    expected = ops.convert_to_numpy(network(padded[None]))[0, :45, :70, 0]
    np.testing.assert_allclose(predicted, expected, atol=1e-6)


def test_the_encoder_receives_images_in_the_range_of_its_training(network):
    pixels = np.arange(256, dtype=np.float32)
    (rescaling,) = (layer for layer in network.layers if isinstance(layer, layers.Rescaling))
    expected = keras.applications.mobilenet_v2.preprocess_input(pixels.copy())
    np.testing.assert_allclose(rescaling(pixels / 255), expected, atol=1e-6)


def test_feature_maps_of_the_encoder_halve_at_each_level():
    outputs = models.mobilenet_encoder(None)(random_images(1, 64, 96, 3))
    expected = [(32, 48, 96), (16, 24, 144), (8, 12, 192), (4, 6, 576), (2, 3, 320)]
    assert [tuple(output.shape[1:]) for output in outputs] == expected


def test_weights_come_from_a_file_or_the_environment_variable(network, weights_file, mobilenet, monkeypatch):
    assert same_features(network.get_layer("mobilenet_v2"), mobilenet)
    monkeypatch.setenv(models.WEIGHTS_VARIABLE, str(weights_file))
    assert same_features(models.mobilenet_encoder("imagenet"), mobilenet)
    assert not same_features(models.mobilenet_encoder(None), mobilenet), "None is random, whatever the variable says"


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_missing_file_of_weights_is_named(tmp_path, monkeypatch, by_variable):
    missing = tmp_path / "missing.weights.h5"
    monkeypatch.setenv(models.WEIGHTS_VARIABLE, str(missing))
    with pytest.raises(FileNotFoundError, match=r"missing\.weights\.h5"):
        models.mobilenet_unet(weights="imagenet" if by_variable else missing)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("content", [b"no HDF5", b"", None])
def test_file_of_other_weights_is_named(tmp_path, content):
    path = tmp_path / "unet.weights.h5"
    models.unet((16, 16, 3), filters=2, depth=2).save_weights(path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NucleiError, match=r"unet\.weights\.h5"):
        models.mobilenet_unet(weights=path)


def test_without_internet_the_error_names_the_environment_variable(monkeypatch):
    def no_internet(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.delenv(models.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    monkeypatch.setattr("os.path.exists", lambda path: False)  # no copy of an earlier download
    monkeypatch.setattr("urllib.request.urlopen", no_internet)
    with pytest.raises(ConnectionError, match=rf"Name or service not known.*{models.WEIGHTS_VARIABLE}"):
        models.mobilenet_unet()


def test_other_errors_are_passed_on(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(keras.applications, "MobileNetV2", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        models.mobilenet_encoder(None)


STATISTICS = ("moving_mean", "moving_variance")


def encoder_paths(model):
    return {weight.path for weight in model.get_layer("mobilenet_v2").weights}


def block_number(path):
    """Return the block of a weight. The layers before block 1 count as block 0."""
    name = path.split("/")[-2]
    return int(name.split("_")[1]) if name.startswith("block_") else 0


@pytest.mark.parametrize("trainable", [False, 0, 2, 16, True])
def test_a_training_step_changes_the_unfrozen_blocks_but_no_statistics(network, trainable):
    models.unfreeze_encoder(network, trainable)
    changed, encoder = changed_weights(network), encoder_paths(network)
    assert changed - encoder == arrays(network).keys() - encoder, "the whole decoder learns"
    assert not any(path.endswith(STATISTICS) for path in changed & encoder)
    first = 17 - trainable if trainable is not True else 0
    assert {block_number(path) for path in changed & encoder} == (set(range(first, 17)) if trainable else set())
    if trainable:
        assert any(path.endswith("gamma") for path in changed & encoder), "scale and offset are trained"


@pytest.mark.parametrize("blocks", [-1, 17])
def test_a_wrong_number_of_blocks_is_refused(network, blocks):
    with pytest.raises(ValueError, match=f"trainable={blocks}"):
        models.unfreeze_encoder(network, blocks)


def test_a_random_encoder_trains_its_statistics():
    model = models.mobilenet_unet(weights=None, filters=2)
    statistics = {path for path in encoder_paths(model) if path.endswith(STATISTICS)}
    assert len(statistics) == 2 * 51
    assert statistics <= changed_weights(model)


def test_trainable_can_be_chosen_at_building(weights_file):
    model = models.mobilenet_unet(weights=weights_file, trainable=3, filters=2)
    trained = {block_number(weight.path) for weight in model.get_layer("mobilenet_v2").trainable_weights}
    assert trained == {14, 15, 16}


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")  # other blocks are trained afterwards
def test_a_loaded_mobilenet_unet_keeps_its_statistics_in_training(network, tmp_path):
    models.unfreeze_encoder(network, False)
    images = random_images(1, 64, 64, 3)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (loaded(images), network(images))), atol=1e-6)
    models.unfreeze_encoder(loaded, True)
    changed = changed_weights(loaded) & encoder_paths(loaded)
    assert not any(path.endswith(STATISTICS) for path in changed)
    assert any(path.endswith("gamma") for path in changed)


# Three outputs, and the included network


def test_instance_unet_returns_three_maps_and_is_small():
    model = models.instance_unet(weights=None)
    outputs = model(random_images(1, 48, 32, 3))
    assert set(outputs) == {"mask", "boundary", "distance"}
    for output in outputs.values():
        assert_probabilities(output, (1, 48, 32, 1))
    assert models.weight_megabytes(model) < 5


def test_the_model_card_describes_the_included_network():
    path = Path(__file__).parent.parent / "docs" / "included_network.md"
    if not path.is_file():
        pytest.skip("the tests run without the repository")
    for name in exported.INCLUDED.values():
        content = datasets.asset(name).read_bytes()
        assert hashlib.sha256(content).hexdigest() in path.read_text(encoding="utf-8")


def test_the_included_network_is_loaded_once_and_predicts():
    model = models.included_network()
    assert models.included_network() is model
    rows, columns = np.indices((64, 64))
    disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 12**2
    image = np.repeat(disc[None, ..., None], 3, axis=-1).astype(np.float32)
    mask = keras.ops.convert_to_numpy(model(image, training=False)["mask"])[0, ..., 0]
    assert mask[disc].mean() > 0.9
    assert mask[~disc].mean() < 0.1


# Costs


def test_multiplications_of_a_known_network():
    inputs = keras.Input((8, 6, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)  # 48 pixels, 9 * 3 * 4 weights
    x = layers.Conv2DTranspose(2, 2, strides=2)(x)  # 48 pixels, 2 * 2 * 4 * 2 weights
    assert models.count_multiplications(keras.Model(inputs, x)) == 48 * 108 + 48 * 32


def test_model_cost_reports_parameters_memory_and_time():
    model = models.unet_plus_plus(filters=2, depth=2)
    cost = models.model_cost(model, size=32, repeats=2)
    assert cost["parameters"] == model.count_params()
    assert cost["megabytes"] == pytest.approx(4 * model.count_params() / 1e6)
    assert cost["milliseconds"] > 0
