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


def test_several_outputs_are_averaged():
    model = models.unet_plus_plus((16, 16, 3), filters=2, depth=2)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    (found,) = predict.probabilities(model, [image], multiple=16)
    (expected,) = predict.probabilities(models.accurate_mode(model), [image], multiple=16)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_recorder_keeps_what_was_predicted_before_a_break(tmp_path):
    images = [np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)]

    def record(model):
        recorder = predict.Recorder(images, tmp_path, first=3)
        recorder.set_model(model)
        recorder.on_train_begin()
        return recorder

    before, after = (models.unet((None, None, 3), filters=2, depth=2) for _ in range(2))
    record(before).on_epoch_end(0)
    record(after).on_epoch_end(1)  # the training goes on: its start is not recorded again
    frames = predict.recorded(tmp_path)
    assert list(frames) == [3, 4, 5]
    for epochs, model in {3: before, 4: before, 5: after}.items():
        np.testing.assert_allclose(frames[epochs], predict.probabilities(model, images), atol=1 / 255)
