import keras
import numpy as np
import pytest

from nuclei_utils import losses

TRUTH = np.array([1, 1, 0, 0], np.float32).reshape(1, 2, 2, 1)


def loss(guess):
    return float(losses.BinaryCrossentropyDice()(TRUTH, np.array(guess, np.float32).reshape(1, 2, 2, 1)))


def test_perfect_and_opposite():
    assert loss([1, 1, 0, 0]) == pytest.approx(0, abs=1e-5)
    assert loss([0, 0, 1, 1]) > 10


def test_value_by_hand():
    # cross-entropy log 2 for one half everywhere; Dice 2 * 1 / (2 + 2)
    assert loss([0.5] * 4) == pytest.approx(np.log(2) + 0.5, abs=1e-4)


def test_better_is_lower():
    assert loss([0.9, 0.9, 0.1, 0.1]) < loss([0.6, 0.6, 0.4, 0.4]) < loss([0.4, 0.4, 0.6, 0.6])


def test_a_batch_without_nuclei_is_finite():
    empty = np.zeros((2, 4, 4, 1), np.float32)
    assert np.isfinite(float(losses.BinaryCrossentropyDice()(empty, empty)))


def test_it_comes_back_from_its_configuration():
    again = keras.losses.deserialize(keras.losses.serialize(losses.BinaryCrossentropyDice()))
    assert isinstance(again, losses.BinaryCrossentropyDice)
