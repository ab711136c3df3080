import keras
import numpy as np
import pytest

from nuclei_utils import models, predict, preprocess


@pytest.fixture
def red():
    """A model that gives back the red channel."""
    image = keras.Input((None, None, 3))
    return keras.Model(image, image[..., :1])


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (5, 70)])
def test_images_come_back_in_their_own_size_without_a_trace_of_padding(red, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (found,) = predict.probabilities(red, [image])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, preprocess.normalize(image)[..., 0], atol=1e-6)


def test_images_of_different_sizes_in_their_order(red):
    images = [np.full((size, size, 3), size, np.uint8) for size in (20, 40, 30)]
    assert [found.shape for found in predict.probabilities(red, images)] == [(20, 20), (40, 40), (30, 30)]
    assert predict.probabilities(red, []) == []


def test_a_unet_takes_any_size():
    model = models.unet((None, None, 3), filters=2, depth=4)
    (found,) = predict.probabilities(model, [np.random.default_rng(0).integers(0, 256, (50, 37, 3), dtype=np.uint8)])
    assert found.shape == (50, 37)
    assert 0 <= found.min() <= found.max() <= 1
