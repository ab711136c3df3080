import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score, roc_auc_score

from nuclei_utils import losses, metrics

TRUTH = np.array([[1, 1, 0, 0]])
CASES = [  # prediction, Dice, IoU
    ([[1, 1, 0, 0]], 1, 1),
    ([[0, 1, 1, 0]], 1 / 2, 1 / 3),
    ([[1, 1, 1, 1]], 2 / 3, 1 / 2),
    ([[0, 0, 0, 0]], 0, 0),
    ([[0, 0, 1, 1]], 0, 0),
]


@pytest.mark.parametrize(("guess", "dice", "iou"), CASES)
def test_known_cases(guess, dice, iou):
    assert float(metrics.dice(TRUTH, np.array(guess))) == pytest.approx(dice)
    assert float(metrics.iou(TRUTH, np.array(guess))) == pytest.approx(iou)
    # the same as bool, as they come out of `labels > 0`
    assert float(metrics.dice(TRUTH > 0, np.array(guess) > 0)) == pytest.approx(dice)


def test_two_empty_masks_agree():
    assert float(metrics.dice(np.zeros((2, 2)), np.zeros((2, 2)))) == 1
    assert float(metrics.iou(np.zeros((2, 2)), np.zeros((2, 2)))) == 1


def test_probabilities_are_cut_at_the_threshold():
    sure = np.array([[0.99, 0.6, 0.4, 0.01]])
    assert float(metrics.dice(TRUTH, sure)) == 1
    assert float(metrics.dice(TRUTH, sure, threshold=0.7)) == pytest.approx(2 / 3)


masks = arrays(np.int64, (4, 5), elements=st.integers(0, 1))


@given(masks, masks)
def test_dice_and_iou_tell_the_same_story(a, b):
    dice, iou = float(metrics.dice(a, b)), float(metrics.iou(a, b))
    assert 0 <= iou <= dice <= 1
    assert dice == pytest.approx(2 * iou / (1 + iou), abs=1e-6)
    assert dice == pytest.approx(float(metrics.dice(b, a)), abs=1e-6)


def test_streaming_dice_pools_batches():
    metric = losses.Dice()
    assert float(metric.result()) == 1
    metric.update_state(TRUTH, np.array([[0.9, 0.1, 0.9, 0.1]]))
    metric.update_state(TRUTH, np.array([[0.9, 0.9, 0.1, 0.1]]))
    assert float(metric.result()) == pytest.approx(6 / 8)
    metric.reset_state()
    assert float(metric.result()) == 1


def test_streaming_dice_comes_back_from_its_configuration():
    again = keras.metrics.deserialize(keras.metrics.serialize(losses.Dice(threshold=0.3)))
    assert again.threshold == 0.3


def test_pixel_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 20, 30))
    found = rng.random((2, 20, 30))
    table = metrics.pixel_scores(labels, found, threshold=0.4)
    for index, row in table.iterrows():
        true, predicted = labels[index].ravel() > 0, found[index].ravel() > 0.4
        assert row["dice"] == pytest.approx(f1_score(true, predicted))
        assert row["iou"] == pytest.approx(jaccard_score(true, predicted))
        assert row["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        assert row["precision"] == pytest.approx(precision_score(true, predicted))
        assert row["recall"] == pytest.approx(recall_score(true, predicted))
        assert row[list(metrics.COUNTS)].sum() == 600


def test_auc_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    true = rng.random((1, 50, 50)) > 0.7
    found = np.clip(true * 0.2 + rng.random((1, 50, 50)) * 0.8, 0, 1)
    assert metrics.auc(true, found) == pytest.approx(roc_auc_score(true.ravel(), found.ravel()), abs=1e-3)


def test_summary_over_all_pixels_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    shapes = [(20, 30), (16, 16), (31, 9)]  # pixels are pooled, so a large image counts for more
    labels = [rng.integers(0, 3, shape) for shape in shapes]
    found = [np.clip((one > 0) * 0.3 + 0.7 * rng.random(one.shape), 0, 1) for one in labels]
    row = metrics.summarise(labels, found, ["a", "b", "a"], threshold=0.4).loc["all"]
    true = np.concatenate([one.ravel() > 0 for one in labels])
    probability = np.concatenate([one.ravel() for one in found])
    predicted = probability > 0.4
    assert row["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert row["precision"] == pytest.approx(precision_score(true, predicted))
    assert row["recall"] == pytest.approx(recall_score(true, predicted))
    assert row["dice"] == pytest.approx(f1_score(true, predicted))
    assert row["iou"] == pytest.approx(jaccard_score(true, predicted))
    assert row["auc"] == pytest.approx(roc_auc_score(true, probability), abs=1e-3)


def test_nothing_to_find():
    nothing, something = np.zeros((1, 3, 3)), np.eye(3)[None]
    assert metrics.pixel_scores(nothing, nothing)[["dice", "iou", "precision", "recall"]].to_numpy().tolist() == [
        [1] * 4
    ]
    assert metrics.pixel_scores(nothing, something)["dice"].item() == 0
    assert metrics.pixel_scores(something, nothing)[["dice", "precision", "recall"]].to_numpy().tolist() == [[0] * 3]


def test_summary_by_kind():
    truth = [np.eye(4), np.eye(4), np.ones((2, 2))]
    found = [np.eye(4), np.zeros((4, 4)), np.ones((2, 2))]
    table = metrics.summarise(truth, found, ["a", "a", "b"])
    assert list(table.index) == ["a", "b", "all"]
    assert table["images"].tolist() == [2, 1, 3]
    assert table.loc["a", "dice"] == pytest.approx(2 / 3)  # over pixels: 4 found, 4 missed
    assert table.loc["a", "mean_dice"] == pytest.approx(1 / 2)  # over images: 1 and 0
    assert table.loc["all", "std_dice"] == pytest.approx(np.std([1, 0, 1]))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="shorter"):
        metrics.pixel_scores([TRUTH], [])
