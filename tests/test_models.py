import keras
import numpy as np
import pytest

from nuclei_utils import models


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
