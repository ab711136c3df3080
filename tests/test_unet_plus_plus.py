from itertools import pairwise

import keras
import numpy as np
import pytest
from keras import layers

from nuclei_utils import losses, metrics, models


def block_parameters(channels, filters):
    """Return the parameters of two 3x3 convolutions without bias and of their normalisations."""
    return 9 * channels * filters + 4 * filters + 9 * filters * filters + 4 * filters


def expected_parameters(filters, depth):
    """Return the sum over the blocks X(i, j) with i + j <= depth, without the heads."""
    total = 0
    for i in range(depth + 1):
        maps = filters * 2**i
        total += block_parameters(maps // 2 if i else 3, maps)
        for j in range(1, depth + 1 - i):
            total += 4 * (2 * maps) * maps + maps  # the transposed convolution has a bias
            total += block_parameters((j + 1) * maps, maps)
    return total


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).random((2, 16, 24, 3), np.float32)
    return images, (images[..., :1] > 0.7).astype(np.float32)


def compiled(model, run_eagerly=True):
    """Compile a model. Eager steps are quicker for a few small batches."""
    model.compile("adam", losses.BinaryCrossentropyDice(), metrics=[losses.Dice()], run_eagerly=run_eagerly)
    return model


@pytest.fixture(scope="module")
def model():
    """Return a small U-Net++ that no test changes."""
    keras.utils.set_random_seed(0)
    return compiled(models.unet_plus_plus((None, None, 3), filters=2, depth=3))


def predict(model, images):
    """Return the output of a model as an array, or its outputs as a list of arrays."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images, training=False))


def evaluate(model, batch):
    return model.evaluate(*batch, batch_size=2, verbose=0, return_dict=True)


# Structure


@pytest.mark.parametrize("depth", [2, 4])
def test_each_depth_has_one_full_size_output(depth):
    model = models.unet_plus_plus((16, 32, 3), filters=2, depth=depth)
    outputs = predict(model, np.random.default_rng(0).random((2, 16, 32, 3), np.float32))
    assert len(outputs) == depth
    for output in outputs:
        assert output.shape == (2, 16, 32, 1)
        assert output.dtype == np.float32
        assert 0 <= output.min() < output.max() <= 1


@pytest.mark.parametrize(("filters", "depth"), [(2, 1), (4, 2), (16, 4)])
def test_the_number_of_parameters_is_that_of_the_paper(filters, depth):
    model = models.unet_plus_plus((None, None, 3), filters=filters, depth=depth)
    assert model.count_params() == expected_parameters(filters, depth) + depth * (filters + 1)
    plain = models.unet_plus_plus((None, None, 3), filters=filters, depth=depth, deep_supervision=False)
    assert len(plain.outputs) == 1
    assert plain.count_params() == expected_parameters(filters, depth) + filters + 1


def test_a_block_reads_all_earlier_blocks_of_its_level_and_the_block_below():
    depth, size, filters = 3, 16, 2
    model = models.unet_plus_plus((size, size, 3), filters=filters, depth=depth)
    producer = {id(layer.output): layer for layer in model.layers}
    joins = {}  # the concatenation at the start of X(i, j), for j > 0
    for layer in model.layers:
        if isinstance(layer, layers.Concatenate):
            joins[int(np.log2(size / layer.output.shape[1])), len(layer.input) - 1] = layer
    assert set(joins) == {(i, j) for i in range(depth) for j in range(1, depth + 1 - i)}

    def start_of_block(tensor):
        """Walk back through two times convolution, normalisation and ReLU."""
        for _ in range(6):
            tensor = producer[id(tensor)].input
        return producer[id(tensor)]

    for (i, j), join in joins.items():
        *earlier, enlarged = join.input
        below = producer[id(enlarged)].input
        assert isinstance(producer[id(enlarged)], layers.Conv2DTranspose)
        assert {tensor.shape[-1] for tensor in join.input} == {filters * 2**i}
        assert below.shape[1:] == (size // 2 ** (i + 1), size // 2 ** (i + 1), filters * 2 ** (i + 1))
        if j > 1:
            assert start_of_block(below) is joins[i + 1, j - 1]
        for step, tensor in enumerate(earlier[1:], start=1):
            assert start_of_block(tensor) is joins[i, step]


def test_images_of_any_size_are_accepted(model):
    for height, width in [(8, 8), (24, 40)]:
        assert {output.shape for output in predict(model, np.zeros((1, height, width, 3)))} == {(1, height, width, 1)}


# Deep supervision


def test_the_loss_is_the_mean_of_the_losses_of_the_outputs(model, batch):
    images, masks = batch
    expected = [float(losses.BinaryCrossentropyDice()(masks, output)) for output in predict(model, images)]
    assert np.ptp(expected) > 0.001, "equal outputs would prove nothing"
    assert evaluate(model, batch)["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_metrics_are_those_of_the_mean_output(model, batch):
    images, masks = batch
    outputs = predict(model, images)
    expected = float(metrics.dice(masks, np.mean(outputs, axis=0)))
    assert all(abs(expected - float(metrics.dice(masks, output))) > 0.0001 for output in outputs)
    assert evaluate(model, batch).keys() == {"loss", "dice"}
    assert evaluate(model, batch)["dice"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_falls_in_training(batch):
    keras.utils.set_random_seed(0)
    model = compiled(models.unet_plus_plus((16, 24, 3), filters=4, depth=2), run_eagerly=False)
    model.optimizer.learning_rate = 0.01
    history = model.fit(*batch, validation_data=batch, epochs=15, verbose=0).history
    assert set(history) == {"loss", "dice", "val_loss", "val_dice"}
    assert history["loss"][-1] < 0.7 * history["loss"][0]


def test_a_network_of_depth_one_has_one_output_and_trains(batch):
    model = compiled(models.unet_plus_plus((16, 24, 3), filters=2, depth=1))
    loss = losses.BinaryCrossentropyDice()(batch[1], predict(model, batch[0]))
    assert evaluate(model, batch)["loss"] == pytest.approx(float(loss), rel=1e-5)
    model.train_on_batch(*batch)


# Accurate mode and fast mode


def test_accurate_mode_is_the_mean_of_the_outputs(model, batch):
    accurate = predict(models.accurate_mode(model), batch[0])
    np.testing.assert_allclose(accurate, np.mean(predict(model, batch[0]), axis=0), atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_fast_mode_is_the_output_of_its_depth(model, batch, depth):
    fast = predict(models.fast_mode(model, depth), batch[0])
    np.testing.assert_allclose(fast, predict(model, batch[0])[depth - 1], atol=1e-6)


def test_fast_mode_has_the_size_of_a_network_of_its_depth():
    model = models.unet_plus_plus((None, None, 3), filters=4, depth=4)
    sizes = [models.fast_mode(model, depth).count_params() for depth in (1, 2, 3, 4)]
    assert sizes == [expected_parameters(4, depth) + 5 for depth in (1, 2, 3, 4)]
    assert all(smaller < larger for smaller, larger in pairwise(sizes))


def test_fast_mode_accepts_images_that_the_whole_network_cannot_halve(model):
    assert predict(models.fast_mode(model, 1), np.zeros((1, 6, 10, 3))).shape == (1, 6, 10, 1)


def test_modes_share_the_weights_of_the_model(batch):
    model = models.unet_plus_plus((None, None, 3), filters=2, depth=3)
    accurate, fast = models.accurate_mode(model), models.fast_mode(model, 2)
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    outputs = predict(model, batch[0])
    np.testing.assert_allclose(predict(fast, batch[0]), outputs[1], atol=1e-6)
    np.testing.assert_allclose(predict(accurate, batch[0]), np.mean(outputs, axis=0), atol=1e-6)


@pytest.mark.parametrize("depth", [-1, 0, 4])
def test_fast_mode_refuses_a_missing_depth(model, depth):
    with pytest.raises(ValueError, match=rf"depth {depth}, expected 1 to 3"):
        models.fast_mode(model, depth)


# Files


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")  # it has made no step yet
def test_a_loaded_network_predicts_the_same_and_trains(model, batch, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predict(loaded, batch[0]), predict(model, batch[0]), atol=1e-6)
    assert evaluate(loaded, batch) == pytest.approx(evaluate(model, batch), rel=1e-5)
    assert set(loaded.train_on_batch(*batch, return_dict=True)) == {"loss", "dice"}


def test_a_mode_can_be_saved_alone(model, batch, tmp_path):
    sizes = []
    for mode in (models.fast_mode(model, 1), models.fast_mode(model, 2), models.accurate_mode(model)):
        mode.save(tmp_path / "mode.keras")
        loaded = keras.models.load_model(tmp_path / "mode.keras")
        np.testing.assert_allclose(predict(loaded, batch[0]), predict(mode, batch[0]), atol=1e-6)
        sizes.append((tmp_path / "mode.keras").stat().st_size)
    assert sizes == sorted(sizes)
