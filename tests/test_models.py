import urllib.error

import keras
import numpy as np
import pytest

from nuclei_utils import models, predict, preprocess


@pytest.fixture(autouse=True)
def seed():
    """Draw the same weights each time: a few draws give a small network that is dead from the start."""
    keras.utils.set_random_seed(0)


@pytest.mark.parametrize("filters", [2, 4])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_one_probability_per_pixel(filters, depth, residual):
    model = models.unet((16, 24, 3), filters=filters, depth=depth, residual=residual, dropout=0.1)
    found = keras.ops.convert_to_numpy(model(np.random.default_rng(0).random((2, 16, 24, 3), np.float32)))
    assert found.shape == (2, 16, 24, 1)
    assert found.dtype == np.float32
    assert 0 <= found.min() < found.max() <= 1


def test_parameters_of_the_classic_unet():
    # 32..512 maps: the sums of 9ab convolution weights, 4b normalisation numbers, 4ab + b transposed convolutions
    blocks = [(3, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 256), (256, 128), (128, 64), (64, 32)]
    expected = sum(9 * a * b + 9 * b * b + 8 * b for a, b in blocks)
    expected += sum(4 * a * b + b for a, b in [(512, 256), (256, 128), (128, 64), (64, 32)]) + 33
    assert models.unet((None, None, 3), filters=32, depth=4).count_params() == expected


def test_an_open_size_takes_crops_and_whole_images():
    model = models.unet((None, None, 3), filters=2, depth=2)
    for height, width in [(8, 8), (12, 20)]:
        assert model(np.zeros((1, height, width, 3), np.float32)).shape == (1, height, width, 1)


@pytest.mark.parametrize("shape", [(30, 32, 3), (32, 30, 3), (None, 30, 3)])
def test_a_size_that_cannot_be_halved_is_refused(shape):
    with pytest.raises(ValueError, match=r"multiples of 16.*pad_to_multiple"):
        models.unet(shape, filters=2, depth=4)


def test_every_level_has_its_skip():
    model = models.unet((16, 16, 3), filters=2, depth=3)
    joins = [layer for layer in model.layers if isinstance(layer, keras.layers.Concatenate)]
    assert [join.output.shape[1:] for join in joins] == [(4, 4, 16), (8, 8, 8), (16, 16, 4)]


def test_dropout_and_normalisation_rest_in_prediction():
    model = models.unet((16, 16, 3), filters=4, depth=2, dropout=0.5)
    image = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(model(image, training=False), model(image, training=False))
    assert np.abs(model(image, training=True) - model(image, training=True)).max() > 0


def test_gradients_reach_every_layer():
    model = models.unet((16, 16, 3), filters=4, depth=2, residual=True)
    before = [weight.numpy().copy() for weight in model.trainable_weights]
    model.compile("adam", "binary_crossentropy")
    rng = np.random.default_rng(0)
    model.train_on_batch(rng.random((2, 16, 16, 3), np.float32), rng.integers(0, 2, (2, 16, 16, 1)))
    for old, weight in zip(before, model.trainable_weights, strict=True):
        # a bias before a normalisation has no effect, hence no gradient
        assert np.abs(weight.numpy() - old).max() > 0, weight.path


# MobileNetV2 as encoder


@pytest.fixture(scope="module")
def mobilenet():
    """Keras' own MobileNetV2. Its weights are random, so that no download is needed."""
    network = keras.applications.MobileNetV2((None, None, 3), include_top=False, weights=None)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # as if trained: maps neither fade nor grow
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


def arrays(model):
    """Return copies of the model's weights by their path."""
    return {weight.path: keras.ops.convert_to_numpy(weight).copy() for weight in model.weights}


def moved_by_a_step(model):
    """Train on one batch, and return the paths of the weights that it moved."""
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy", run_eagerly=True)
    before, rng = arrays(model), np.random.default_rng(0)
    model.train_on_batch(rng.random((4, 64, 64, 3), np.float32), rng.integers(0, 2, (4, 64, 64, 1)))
    return {path for path, array in arrays(model).items() if not np.array_equal(array, before[path])}


def random_images(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_mobilenet_unet_takes_any_multiple_of_32(network, size):
    found = keras.ops.convert_to_numpy(network(random_images(2, *size, 3)))
    assert found.shape == (2, *size, 1)
    assert found.dtype == np.float32
    assert 0 <= found.min() < found.max() <= 1


@pytest.mark.parametrize("shape", [(48, 64, 3), (64, 48, 3), (None, 250, 3)])
def test_mobilenet_unet_refuses_other_sizes(shape):
    with pytest.raises(ValueError, match=r"multiples of 32, found .* x .*pad_to_multiple"):
        models.mobilenet_unet(shape, weights=None)


def test_other_sizes_are_padded_and_cut_back(network):
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    (found,) = predict.predict_masks(network, [image])
    assert found.shape == (45, 70)
    padded = preprocess.pad_to_multiple(preprocess.normalize(image), 32)
    assert padded.shape == (64, 96, 3)
    np.testing.assert_allclose(found, network(padded[None])[0, :45, :70, 0], atol=1e-6)


def test_images_are_scaled_inside_as_the_encoder_was_trained(network):
    (scaling,) = (layer for layer in network.layers if isinstance(layer, keras.layers.Rescaling))
    np.testing.assert_allclose(scaling(np.array([0.0, 0.5, 1.0])), [-1, 0, 1])
    pixels = np.arange(256, dtype=np.float32)
    expected = keras.applications.mobilenet_v2.preprocess_input(pixels.copy())
    np.testing.assert_allclose(scaling(pixels / 255), expected, atol=1e-6)
    # and it is this that the encoder gets
    (encoder_input,) = network.get_layer("mobilenet_v2")._inbound_nodes[-1].input_tensors
    assert encoder_input is scaling.output


def test_feature_maps_of_the_encoder_halve_step_by_step():
    outputs = models.mobilenet_encoder(None)(random_images(1, 64, 96, 3))
    assert [tuple(output.shape) for output in outputs] == [
        (1, 32, 48, 96),
        (1, 16, 24, 144),
        (1, 8, 12, 192),
        (1, 4, 6, 576),
        (1, 2, 3, 320),
    ]


def same_features(encoder, mobilenet):
    """Return whether an encoder has the weights of a whole network, judged by what comes out of it."""
    images = 2 * random_images(1, 64, 64, 3) - 1
    expected = keras.Model(mobilenet.input, mobilenet.get_layer(models.BOTTOM).output)(images)
    return np.allclose(encoder(images)[-1], expected, atol=1e-4)


def test_a_file_of_weights_is_loaded(network, mobilenet):
    assert same_features(network.get_layer("mobilenet_v2"), mobilenet)
    assert not same_features(models.mobilenet_encoder(None), mobilenet)


def test_the_environment_variable_stands_for_the_download(weights_file, mobilenet, monkeypatch):
    monkeypatch.setenv(models.WEIGHTS, str(weights_file))
    assert same_features(models.mobilenet_encoder("imagenet"), mobilenet)
    assert not same_features(models.mobilenet_encoder(None), mobilenet), "random weights were asked for"


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_file_that_is_not_there(tmp_path, monkeypatch, by_variable):
    missing = tmp_path / "missing.weights.h5"
    monkeypatch.setenv(models.WEIGHTS, str(missing))
    with pytest.raises(FileNotFoundError, match=rf"missing\.weights\.h5.*{models.WEIGHTS}"):
        models.mobilenet_unet(weights="imagenet" if by_variable else missing)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_a_file_of_another_network(tmp_path):
    models.unet((16, 16, 3), filters=2, depth=2).save_weights(tmp_path / "unet.weights.h5")
    with pytest.raises(ValueError):
        models.mobilenet_unet(weights=tmp_path / "unet.weights.h5")


def test_without_internet_it_says_what_to_do(tmp_path, monkeypatch):
    def no_internet(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.delenv(models.WEIGHTS, raising=False)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # no copy of an earlier download
    monkeypatch.setattr("urllib.request.urlopen", no_internet)  # what Keras' get_file calls in the end
    with pytest.raises(ConnectionError, match=rf"Name or service not known.*{models.WEIGHTS}.*weights=None"):
        models.mobilenet_unet()


def test_other_errors_are_not_taken_for_a_missing_connection(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(keras.applications, "MobileNetV2", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        models.mobilenet_encoder(None)


def encoder_paths(model):
    return {weight.path for weight in model.get_layer("mobilenet_v2").weights}


STATISTICS = ("moving_mean", "moving_variance")


@pytest.mark.parametrize("trainable", [False, 0, 2, 16, True])
def test_what_a_step_moves_in_a_pretrained_encoder(network, trainable):
    models.unfreeze_encoder(network, trainable)
    moved = moved_by_a_step(network)
    encoder = encoder_paths(network)
    assert moved - encoder == arrays(network).keys() - encoder, "the decoder learns, and its statistics follow"
    assert not any(path.endswith(STATISTICS) for path in moved & encoder), "the normalisation keeps its statistics"
    # what comes before the numbered blocks counts as block 0
    first = 17 - trainable if trainable is not True else 0
    numbers = {_block(path) for path in moved & encoder}
    assert numbers == set(range(first, 17)) if trainable else not numbers


def _block(path):
    name = path.split("/")[-2]
    return int(name.split("_")[1]) if name.startswith("block_") else 0


@pytest.mark.parametrize("blocks", [-1, 17])
def test_blocks_that_mobilenet_does_not_have(network, blocks):
    with pytest.raises(ValueError, match=f"16 blocks, of which {blocks}"):
        models.unfreeze_encoder(network, blocks)


def test_a_random_encoder_trains_its_normalisation_as_well():
    model = models.mobilenet_unet(weights=None, filters=2)
    statistics = {path for path in encoder_paths(model) if path.endswith(STATISTICS)}
    assert len(statistics) == 2 * 51
    assert statistics <= moved_by_a_step(model)


def test_trainable_is_chosen_when_it_is_built(weights_file):
    model = models.mobilenet_unet(weights=weights_file, trainable=3, filters=2)
    trained = {_block(weight.path) for weight in model.get_layer("mobilenet_v2").trainable_weights}
    assert trained == {14, 15, 16}


@pytest.mark.filterwarnings(
    "ignore:Skipping variable loading for optimizer"
)  # another part of the encoder is trained now
def test_a_mobilenet_unet_is_saved_with_all_that_matters(network, tmp_path):
    models.unfreeze_encoder(network, False)
    images = random_images(1, 64, 64, 3)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(loaded(images), network(images), atol=1e-6)
    models.unfreeze_encoder(loaded, True)
    moved = moved_by_a_step(loaded)
    assert not any(path.endswith(STATISTICS) for path in moved & encoder_paths(loaded)), "inference mode is saved too"


def test_instance_unet_gives_three_maps_of_the_size_of_the_image():
    model = models.instance_unet(weights=None)
    found = model(np.random.default_rng(0).random((1, 48, 32, 3), np.float32))
    assert set(found) == {"mask", "boundary", "distance"}
    for one in found.values():
        assert one.shape == (1, 48, 32, 1)
        assert 0 <= np.min(one) <= np.max(one) <= 1
    assert model.count_params() * 4 < 5e6, "it has to fit into the package: 5 MB of float32"


def test_instance_unet_names_a_size_that_does_not_fit():
    with pytest.raises(ValueError, match=r"multiples of 16, found 40 x 64"):
        models.instance_unet((40, 64, 3), weights=None)


def test_multiplications_of_a_known_network():
    inputs = keras.Input((8, 6, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)  # 48 pixels, 9 * 3 * 4 weights
    x = keras.layers.Conv2DTranspose(2, 2, strides=2)(x)  # each of 48 pixels becomes four: 2 * 2 * 4 * 2 weights
    assert models.count_multiplications(keras.Model(inputs, x)) == 48 * 108 + 48 * 32


def test_model_cost_counts_parameters_and_measures_time():
    model = models.unet((None, None, 3), filters=2, depth=1)
    cost = models.model_cost(model, size=32, rounds=3)
    assert cost["parameters"] == model.count_params()
    assert cost["megabytes"] == pytest.approx(4 * model.count_params() / 1e6)
    assert cost["milliseconds"] > 0
