from itertools import pairwise

import keras
import numpy as np
import pytest

from nuclei_utils import losses, metrics, models


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


def block(channels, filters):
    """Parameters of two 3x3 convolutions without bias and their normalisations, counted by hand."""
    return 9 * channels * filters + 4 * filters + 9 * filters * filters + 4 * filters


def expected_parameters(filters, depth):
    """Sum over the nodes X(i, j) with i + j <= depth, without the heads."""
    total = 0
    for i in range(depth + 1):
        maps = filters * 2**i
        total += block(maps // 2 if i else 3, maps)
        for j in range(1, depth + 1 - i):
            total += 4 * (2 * maps) * maps + maps  # the transposed convolution has a bias
            total += block((j + 1) * maps, maps)
    return total


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.random((2, 16, 24, 3), np.float32)
    return images, (images[..., :1] > 0.7).astype(np.float32)


def compiled(model, **options):
    """Compile a model; eagerly unless told, since tracing a graph takes longer than these few small batches."""
    options = {"run_eagerly": True, **options}
    model.compile("adam", losses.BinaryCrossentropyDice(), metrics=[losses.Dice()], **options)
    return model


@pytest.fixture(scope="module")
def model():
    """A small U-Net++ that no test changes."""
    keras.utils.set_random_seed(0)
    return compiled(models.unet_plus_plus((None, None, 3), filters=2, depth=3))


def predict(model, images):
    """Return the output, or the list of outputs, of a model as arrays."""
    outputs = model(images, training=False)
    return [numbers(output) for output in outputs] if isinstance(outputs, list) else numbers(outputs)


def node_of(model):
    """Return for each node X(i, j) with j > 0 the layer that joins what comes in, found by height and order."""
    joins = [layer for layer in model.layers if isinstance(layer, keras.layers.Concatenate)]
    heights = sorted({layer.output.shape[1] for layer in joins}, reverse=True)
    rows = {i: [layer for layer in joins if layer.output.shape[1] == height] for i, height in enumerate(heights)}
    return {
        (i, j): layer
        for i, row in rows.items()
        for j, layer in enumerate(sorted(row, key=lambda layer: layer.output.shape[-1]), start=1)
    }


def source_of(tensor):
    return tensor._keras_history.operation


@pytest.mark.parametrize("depth", [2, 4])
def test_one_full_size_output_for_each_depth_shallowest_first(depth):
    model = models.unet_plus_plus((16, 32, 3), filters=2, depth=depth)
    assert [layer.name for layer in model.layers if layer.name.startswith("depth_")] == [
        f"depth_{j}" for j in range(1, depth + 1)
    ]
    outputs = predict(model, np.random.default_rng(0).random((2, 16, 32, 3), np.float32))
    assert len(outputs) == depth
    for found in outputs:
        assert found.shape == (2, 16, 32, 1)
        assert found.dtype == np.float32
        assert 0 <= found.min() < found.max() <= 1
    assert [source_of(tensor).name for tensor in model.outputs] == [f"depth_{j}" for j in range(1, depth + 1)]


@pytest.mark.parametrize(("filters", "depth"), [(2, 1), (4, 2), (16, 4)])
def test_parameters_counted_by_hand(filters, depth):
    model = models.unet_plus_plus((None, None, 3), filters=filters, depth=depth)
    assert model.count_params() == expected_parameters(filters, depth) + depth * (filters + 1)


def test_parameters_of_the_smallest_one():
    # X(0, 0): 3 maps in, 2 out; X(1, 0): 2 in, 4 out; a transposed convolution from 4 to 2; X(0, 1): 2 + 2 in, 2 out
    by_hand = (54 + 8 + 36 + 8) + (72 + 16 + 144 + 16) + (32 + 2) + (72 + 8 + 36 + 8) + (2 + 1)
    assert models.unet_plus_plus((None, None, 3), filters=2, depth=1).count_params() == by_hand


def test_without_deep_supervision_the_deepest_output_is_left_alone():
    supervised = models.unet_plus_plus((16, 16, 3), filters=2, depth=3)
    plain = models.unet_plus_plus((16, 16, 3), filters=2, depth=3, deep_supervision=False)
    assert len(plain.outputs) == 1
    assert plain(np.zeros((1, 16, 16, 3), np.float32)).shape == (1, 16, 16, 1)
    assert plain.count_params() == supervised.count_params() - 2 * 3  # two heads fewer
    assert not isinstance(plain, models.DeepSupervision)


def test_a_node_reads_all_nodes_before_it_and_the_one_below():
    filters, depth = 2, 4
    model = models.unet_plus_plus((32, 32, 3), filters=filters, depth=depth)
    joins = node_of(model)
    assert set(joins) == {(i, j) for i in range(depth) for j in range(1, depth + 1 - i)}
    for (i, j), join in joins.items():
        maps = filters * 2**i
        assert join.output.shape[1:] == (32 // 2**i, 32 // 2**i, (j + 1) * maps)
        *before, enlarged = join.input
        assert len(before) == j
        assert all(tensor.shape[-1] == maps for tensor in join.input)
        assert len({tensor._keras_history for tensor in before}) == j, "the same node twice"
        assert isinstance(source_of(enlarged), keras.layers.Conv2DTranspose)
        below = source_of(enlarged).input
        assert below.shape[1:] == (32 // 2 ** (i + 1), 32 // 2 ** (i + 1), 2 * maps)
        if j > 1:
            assert [tensor._keras_history for tensor in before[:-1]] == [
                tensor._keras_history for tensor in joins[i, j - 1].input[:-1]
            ], "each node keeps what the one before it read from its level, and adds that node"
            assert _comes_from(before[-1], joins[i, j - 1])
            assert _comes_from(below, joins[i + 1, j - 1])
        else:
            assert isinstance(source_of(source_of(before[0]).input), keras.layers.BatchNormalization)


def _comes_from(tensor, layer):
    """Whether a block's output (ReLU after a normalisation after a convolution, twice) starts at a layer."""
    for _ in range(6):
        tensor = source_of(tensor).input
    return source_of(tensor) is layer


@pytest.mark.parametrize("shape", [(24, 32, 3), (32, 24, 3), (None, 24, 3)])
def test_a_size_that_cannot_be_halved_is_refused(shape):
    with pytest.raises(ValueError, match=r"multiples of 16.*pad_to_multiple"):
        models.unet_plus_plus(shape, filters=2, depth=4)


def test_an_open_size_takes_crops_and_whole_images(model):
    for height, width in [(8, 8), (24, 40)]:
        outputs = model(np.zeros((1, height, width, 3), np.float32))
        assert {output.shape for output in outputs} == {(1, height, width, 1)}


# Deep supervision


def test_the_loss_is_the_mean_of_the_losses_of_the_outputs(model, batch):
    images, masks = batch
    loss = losses.BinaryCrossentropyDice()
    by_hand = [float(loss(masks, output)) for output in predict(model, images)]
    assert np.ptp(by_hand) > 0.001, "the outputs differ, or the test proves nothing"
    found = model.evaluate(images, masks, batch_size=2, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_the_metrics_are_those_of_the_mean_output(model, batch):
    images, masks = batch
    outputs = predict(model, images)
    by_hand = float(metrics.dice(masks, np.mean(outputs, axis=0)))
    assert 0 < by_hand < 1
    assert all(abs(by_hand - float(metrics.dice(masks, output))) > 0.001 for output in outputs)
    found = model.evaluate(images, masks, batch_size=1, verbose=0, return_dict=True)
    assert set(found) == {"loss", "dice"}
    assert found["dice"] == pytest.approx(by_hand, rel=1e-5)


def test_history_has_plain_names_and_the_loss_falls(batch):
    keras.utils.set_random_seed(0)
    model = compiled(models.unet_plus_plus((16, 24, 3), filters=4, depth=2), run_eagerly=False)  # as in a real training
    model.optimizer.learning_rate = 0.01
    history = model.fit(*batch, validation_data=batch, epochs=15, verbose=0).history
    assert set(history) == {"loss", "dice", "val_loss", "val_dice"}
    assert history["loss"][-1] < 0.7 * history["loss"][0]


def test_depth_one_has_one_output_and_trains(batch):
    model = compiled(models.unet_plus_plus((16, 24, 3), filters=2, depth=1))
    output = predict(model, batch[0])
    assert output.shape == batch[1].shape
    found = model.evaluate(*batch, batch_size=2, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(float(losses.BinaryCrossentropyDice()(batch[1], output)), rel=1e-5)
    model.train_on_batch(*batch)


def test_gradients_reach_every_layer(batch):
    model = compiled(models.unet_plus_plus((16, 24, 3), filters=4, depth=3))
    before = [numbers(weight).copy() for weight in model.trainable_weights]
    model.train_on_batch(*batch)
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert np.abs(numbers(weight) - old).max() > 0, weight.path


# Accurate and fast mode


def test_accurate_mode_is_the_mean_of_the_outputs(model, batch):
    accurate = models.accurate_mode(model)
    assert len(accurate.outputs) == 1
    np.testing.assert_allclose(predict(accurate, batch[0]), np.mean(predict(model, batch[0]), axis=0), atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_fast_mode_is_the_output_of_that_depth(model, batch, depth):
    fast = models.fast_mode(model, depth)
    assert len(fast.outputs) == 1
    np.testing.assert_allclose(predict(fast, batch[0]), predict(model, batch[0])[depth - 1], atol=1e-6)


def test_fast_mode_is_smaller_and_as_large_as_a_network_of_that_depth():
    model = models.unet_plus_plus((None, None, 3), filters=4, depth=4)
    sizes = [models.fast_mode(model, depth).count_params() for depth in (1, 2, 3, 4)]
    assert all(less < more for less, more in pairwise(sizes))
    for depth, size in enumerate(sizes, start=1):
        own = models.unet_plus_plus((None, None, 3), filters=4, depth=depth, deep_supervision=False)
        assert size == own.count_params() == expected_parameters(4, depth) + 5
    assert sizes[-1] == model.count_params() - 3 * 5


def test_fast_mode_needs_images_that_can_be_halved_to_its_own_depth_only(model):
    # depth 1 halves once: it takes what the full network cannot
    assert predict(models.fast_mode(model, 1), np.zeros((1, 6, 10, 3), np.float32)).shape == (1, 6, 10, 1)


def test_modes_share_the_weights_of_the_model(batch):
    model = models.unet_plus_plus((None, None, 3), filters=2, depth=3)
    accurate, fast = models.accurate_mode(model), models.fast_mode(model, 2)
    shared = {id(weight) for weight in model.weights}
    assert {id(weight) for weight in accurate.weights} == shared
    assert {id(weight) for weight in fast.weights} < shared
    before = predict(fast, batch[0])
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    after = predict(fast, batch[0])
    assert np.abs(after - before).max() > 0.001
    np.testing.assert_allclose(after, predict(model, batch[0])[1], atol=1e-6)


@pytest.mark.parametrize("depth", [-1, 0, 4])
def test_a_depth_that_is_not_there_is_refused(model, depth):
    with pytest.raises(ValueError, match=rf"depths 1 to 3, found depth {depth}"):
        models.fast_mode(model, depth)


# Files


def test_saved_and_loaded_it_predicts_the_same_and_trains_on(model, batch, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, models.DeepSupervision)
    for one, other in zip(predict(model, batch[0]), predict(loaded, batch[0]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    before, after = (one.evaluate(*batch, verbose=0, return_dict=True) for one in (model, loaded))
    assert after == pytest.approx(before, rel=1e-5)
    np.testing.assert_allclose(
        predict(models.fast_mode(loaded, 1), batch[0]), predict(models.fast_mode(model, 1), batch[0]), atol=1e-6
    )
    assert set(loaded.train_on_batch(*batch, return_dict=True)) == {"loss", "dice"}


def test_a_mode_can_be_saved_alone_and_the_shallower_is_the_smaller_file(model, batch, tmp_path):
    sizes = []
    for mode in (models.fast_mode(model, 1), models.fast_mode(model, 2), models.accurate_mode(model)):
        mode.save(tmp_path / "mode.keras")
        loaded = keras.models.load_model(tmp_path / "mode.keras")
        np.testing.assert_allclose(predict(loaded, batch[0]), predict(mode, batch[0]), atol=1e-6)
        sizes.append((tmp_path / "mode.keras").stat().st_size)
    assert sizes == sorted(sizes)
