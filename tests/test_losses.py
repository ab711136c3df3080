import keras
import numpy as np
import pytest

from nuclei_utils import losses, metrics

TRUTH = np.array([1, 1, 0, 0], np.float32).reshape(1, 2, 2, 1)


def loss(probabilities):
    return float(losses.BinaryCrossentropyDice()(TRUTH, np.array(probabilities, np.float32).reshape(1, 2, 2, 1)))


def test_loss_by_hand():
    assert loss([1, 1, 0, 0]) == pytest.approx(0, abs=1e-5)
    # The cross-entropy of 0.5 is log 2. Dice is 2 * 1 / (2 + 2).
    assert loss([0.5] * 4) == pytest.approx(np.log(2) + 0.5, abs=1e-4)
    assert loss([0, 0, 1, 1]) > 10


def test_better_probabilities_have_a_lower_loss():
    assert loss([0.9, 0.9, 0.1, 0.1]) < loss([0.6, 0.6, 0.4, 0.4]) < loss([0.4, 0.4, 0.6, 0.6])


def test_loss_of_a_batch_without_nuclei_is_finite():
    empty = np.zeros((2, 4, 4, 1), np.float32)
    assert np.isfinite(float(losses.BinaryCrossentropyDice()(empty, empty)))


def test_dice_metric_pools_batches():
    batches = [np.array([[0.9, 0.1, 0.9, 0.1]]), np.array([[0.9, 0.9, 0.1, 0.1]])]
    true = np.array([[1, 1, 0, 0]])
    metric = losses.Dice()
    assert float(metric.result()) == 1
    for batch in batches:
        metric.update_state(true, batch)
    assert float(metric.result()) == pytest.approx(6 / 8)
    assert float(metric.result()) == pytest.approx(metrics.dice(np.vstack([true, true]), np.vstack(batches)))
    metric.reset_state()
    assert float(metric.result()) == 1


def test_loss_and_metric_are_restored_from_their_configuration():
    restored = keras.losses.deserialize(keras.losses.serialize(losses.BinaryCrossentropyDice()))
    assert isinstance(restored, losses.BinaryCrossentropyDice)
    assert keras.metrics.deserialize(keras.metrics.serialize(losses.Dice(threshold=0.3))).threshold == 0.3
