import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from nuclei_utils import metrics

SHAPES = [(20, 30), (16, 16), (40, 25)]  # pixels are pooled, so a large image weighs more
SKLEARN = {
    "accuracy": sklearn_metrics.accuracy_score,
    "precision": sklearn_metrics.precision_score,
    "recall": sklearn_metrics.recall_score,
    "dice": sklearn_metrics.f1_score,
    "iou": sklearn_metrics.jaccard_score,
}


@pytest.fixture
def label_maps():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 4, shape) * (rng.random(shape) > 0.7) for shape in SHAPES]


@pytest.fixture
def maps(label_maps):
    """Good but not perfect probabilities, many of them close to 0 and 1."""
    rng = np.random.default_rng(1)
    logits = [rng.normal(np.where(label_map > 0, 3, -5), 3) for label_map in label_maps]
    return [(1 / (1 + np.exp(-logit))).astype(np.float32) for logit in logits]


def pooled_pixels(label_maps, maps):
    return np.concatenate([m.ravel() > 0 for m in label_maps]), np.concatenate([m.ravel() for m in maps])


@pytest.mark.parametrize(
    ("true", "predicted", "dice", "iou"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1, 1),
        ([1, 1, 0, 0], [False, True, True, False], 1 / 2, 1 / 3),
        ([2, 7, 0, 0], [0.99, 0.6, 0.51, 0.9], 2 / 3, 1 / 2),
        ([1, 1, 0, 0], [0.5, 0.1, 0.1, 0.0], 0, 0),
        ([0, 0], [0, 0], 1, 1),
    ],
)
def test_dice_and_iou_by_hand(true, predicted, dice, iou):
    assert metrics.dice(true, np.array(predicted)) == pytest.approx(dice)
    assert metrics.iou(true, np.array(predicted)) == pytest.approx(iou)


binary_masks = arrays(np.int64, (4, 5), elements=st.integers(0, 1))


@given(binary_masks, binary_masks)
def test_dice_is_symmetric_and_follows_from_iou(a, b):
    dice, iou = metrics.dice(a, b), metrics.iou(a, b)
    assert 0 <= iou <= dice <= 1
    assert dice == metrics.dice(b, a) == pytest.approx(2 * iou / (1 + iou))


def test_scores_agree_with_scikit_learn(label_maps, maps):
    images = metrics.pixel_scores(label_maps, maps, threshold=0.4)
    assert images[metrics.COUNTS].sum(axis=1).tolist() == [np.prod(shape) for shape in SHAPES]
    pooled = metrics.summarise(label_maps, maps, ["b", "a", "b"], threshold=0.4).loc["all"]
    for name, score in SKLEARN.items():
        expected = [score(t.ravel() > 0, p.ravel() > 0.4) for t, p in zip(label_maps, maps, strict=True)]
        assert images[name].tolist() == pytest.approx(expected)
        true, probability = pooled_pixels(label_maps, maps)
        assert pooled[name] == pytest.approx(score(true, probability > 0.4))


@pytest.mark.parametrize(("true", "score"), [(np.zeros((3, 3)), 1), (np.eye(3), 0)])
def test_pixel_scores_without_predicted_nuclei(true, score):
    for predicted in (np.zeros((3, 3)), np.full((3, 3), np.nan)):
        assert (metrics.pixel_scores([true], [predicted])[["dice", "iou", "precision", "recall"]] == score).all(
            axis=None
        )


def test_pixel_scores_need_as_many_maps_as_masks():
    with pytest.raises(ValueError, match="shorter"):
        metrics.pixel_scores([np.eye(2)], [])


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9])
def test_threshold_scores_count_like_pixel_scores(label_maps, maps, threshold):
    maps[0][:2] = threshold  # a probability equal to the threshold is background
    table = metrics.threshold_scores(label_maps, maps, sorted({0.1, threshold, 0.95})).set_index("threshold")
    images = metrics.pixel_scores(label_maps, maps, threshold)
    assert table.loc[threshold, metrics.COUNTS].tolist() == images[metrics.COUNTS].sum().tolist()
    assert table.loc[threshold, "mean_dice"] == pytest.approx(images["dice"].mean())


def test_threshold_scores_agree_with_scikit_learn(label_maps, maps):
    true, probability = pooled_pixels(label_maps, maps)
    table = metrics.threshold_scores(label_maps, maps, np.unique(np.append(probability, 0))[:-1])
    false_positive_rate, recall, _ = sklearn_metrics.roc_curve(true, probability, drop_intermediate=False)
    np.testing.assert_allclose(table["false_positive_rate"][::-1], false_positive_rate[1:])
    np.testing.assert_allclose(table["recall"][::-1], recall[1:])
    precision, _, _ = sklearn_metrics.precision_recall_curve(true, probability)
    np.testing.assert_allclose(table["precision"], precision[:-1])


def test_default_thresholds_are_fine_enough_for_the_area_under_the_curve(label_maps, maps):
    table = metrics.threshold_scores(label_maps, maps)
    area = np.trapezoid([0, *table["recall"][::-1], 1], [0, *table["false_positive_rate"][::-1], 1])
    assert area == pytest.approx(sklearn_metrics.roc_auc_score(*pooled_pixels(label_maps, maps)), abs=1e-3)
    assert set(np.round(np.linspace(0, 1, 101), 7)) <= set(metrics.THRESHOLDS)


def test_best_threshold_is_the_middle_of_the_best():
    table = pd.DataFrame(
        {"threshold": [0.1, 0.2, 0.3, 0.4, 0.5], "dice": [0, 0.9, 0.9, 0.9, 0], "iou": [0, 0, 0, 0, 1]}
    )
    assert metrics.best_threshold(table) == 0.3
    assert metrics.best_threshold(table, "iou") == 0.5


def test_auc_agrees_with_keras_and_scikit_learn(label_maps, maps):
    true, probability = pooled_pixels(label_maps, maps)
    streaming = keras.metrics.AUC(num_thresholds=1000)
    streaming.update_state(true, probability)
    auc = metrics.summarise(label_maps, maps, ["a", "a", "a"]).loc["all", "auc"]
    assert auc == pytest.approx(float(streaming.result()), abs=1e-6)
    assert auc == pytest.approx(sklearn_metrics.roc_auc_score(true, probability), abs=1e-3)


def test_calibration_table_agrees_with_scikit_learn(label_maps, maps):
    maps[0][:2] = 0.3  # the edge of a bin
    observed, predicted = calibration_curve(*pooled_pixels(label_maps, maps), n_bins=7)
    table = metrics.calibration_table(label_maps, maps, bins=7)
    assert table["pixels"].sum() == sum(np.prod(shape) for shape in SHAPES)
    table = table[table["pixels"] > 0]
    np.testing.assert_allclose(table["observed"], observed)
    np.testing.assert_allclose(table["predicted"], predicted, rtol=1e-6)


@pytest.mark.parametrize(
    ("true", "probability", "error"), [([[1, 1, 1, 0]], 0.75, 0), ([[1, 0, 0, 0]], 0.95, 0.7)], ids=["right", "sure"]
)
def test_calibration_error(true, probability, error):
    table = metrics.calibration_table([true], [np.full((1, 4), probability)])
    assert metrics.calibration_error(table) == pytest.approx(error)
    assert table["observed"].isna().sum() == 9, "a bin without pixels has no frequency"


def test_summary_by_image_type():
    true = [np.eye(4), np.ones((2, 2)), np.eye(4)]
    table = metrics.summarise(true, [np.eye(4), np.ones((2, 2)), np.zeros((4, 4))], ["b", "a", "b"])
    assert list(table.index) == ["a", "b", "all"]
    assert table["images"].tolist() == [1, 2, 3]
    assert table.loc["b", "dice"] == pytest.approx(2 / 3)  # over pixels: 4 of 8 nucleus pixels predicted
    assert table.loc["b", "mean_dice"] == pytest.approx(1 / 2)  # over images: 1 and 0
    assert table.loc["all", "std_dice"] == pytest.approx(np.std([1, 1, 0]))
    assert table["auc"].tolist() == [0, 0.75, pytest.approx(10 / 12)]


@pytest.fixture
def two_nuclei():
    label_map = np.zeros((10, 20), np.int32)
    label_map[1:3, 1:5] = 1
    label_map[5:9, 1:5] = 4  # labels may have gaps
    return label_map


def test_nucleus_recall(two_nuclei):
    predicted = (two_nuclei == 4) * 0.9
    predicted[1, 1:3] = 0.9
    table = metrics.nucleus_recall([two_nuclei, two_nuclei * 0, two_nuclei], [predicted, predicted, two_nuclei * 0])
    assert table.to_numpy().tolist() == [[0, 1, 8, 0.25], [0, 4, 16, 1], [2, 1, 8, 0], [2, 4, 16, 0]]


def test_describe_images(two_nuclei):
    table = metrics.describe_images([two_nuclei, two_nuclei * 0], [two_nuclei > 0, two_nuclei > 0])
    description = table[["nuclei", "density", "covered", "median_area", "dice"]]
    np.testing.assert_array_equal(description, [[2, 100, 0.12, 12, 1], [0, 0, 0, np.nan, 0]])
