import time
from functools import partial

import keras
import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, wilcoxon
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from nuclei_utils import datasets, distortions, metrics, models, predict, statistics

SHAPES = [(20, 30), (16, 16), (40, 25)]


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    return [rng.random(shape) > 0.8 for shape in SHAPES]


@pytest.fixture
def found(masks):
    """Probabilities that are good, not perfect, and of which many lie close to 0 and 1."""
    rng = np.random.default_rng(1)
    return [(1 / (1 + np.exp(-rng.normal(np.where(mask, 3, -5), 3)))).astype(np.float32) for mask in masks]


def pixels(masks, found):
    return np.concatenate([mask.ravel() for mask in masks]), np.concatenate([one.ravel() for one in found])


# What a model costs


def test_cost():
    model = models.unet((None, None, 3), filters=2, depth=1)
    found = models.model_cost(model, size=32, rounds=3)
    assert found["parameters"] == model.count_params()
    assert found["megabytes"] == pytest.approx(4 * model.count_params() / 1e6)
    assert 0 < found["milliseconds"] < 1000


def test_cost_is_the_median_of_predictions_after_the_first():
    naps = iter([0.6, 0.001, 0.3, 0.001])

    class Lazy(keras.Model):
        def call(self, x, training=None):
            time.sleep(next(naps))
            return x

    model = Lazy()
    model.built = True
    assert models.model_cost(model, size=8, rounds=3)["milliseconds"] < 80


# How sure is a mean, and a difference of means?


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(0).beta(8, 2, 60)
    ours = statistics.bootstrap_interval(values, resamples=20_000)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    assert ours == pytest.approx(theirs, abs=0.003)
    assert ours == statistics.bootstrap_interval(values, resamples=20_000), "the same twice"


def test_interval_of_a_level_and_of_a_single_image():
    values = np.random.default_rng(0).random(30)
    wide, narrow = (statistics.bootstrap_interval(values, level=level) for level in (0.95, 0.5))
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    assert statistics.bootstrap_interval([0.7]) == (0.7, 0.7)


def test_images_of_one_specimen_do_not_count_as_many():
    values = np.repeat([0.5, 0.7, 0.9, 0.6], 10)
    alone = statistics.bootstrap_interval(values)
    together = statistics.bootstrap_interval(values, groups=np.repeat(list("abcd"), 10))
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
    singles = statistics.bootstrap_interval(values, groups=np.arange(40))
    assert singles == alone, "groups of one are images"


def test_interval_needs_images_and_a_group_for_each():
    with pytest.raises(ValueError, match="no image"):
        statistics.bootstrap_interval([])
    with pytest.raises(ValueError, match="2 groups for 3 images"):
        statistics.bootstrap_interval([1, 2, 3], groups=["a", "b"])


def test_compare_a_pair():
    rng = np.random.default_rng(0)
    worse = rng.random(40)
    better = worse + rng.normal(0.02, 0.03, 40)
    better[0] = worse[0]
    table = statistics.compare_models({"A": better, "B": worse})
    (row,) = table.to_dict("records")
    assert list(table.index) == [("A", "B")]
    assert row["images"] == row["units"] == 40
    assert row["better"] == (better > worse).sum()
    assert row["better"] + row["worse"] == 39
    assert row["mean_difference"] == pytest.approx((better - worse).mean())
    assert 0 < row["low"] < row["mean_difference"] < row["high"]
    assert row["p"] == row["p_holm"] == pytest.approx(wilcoxon(better, worse).pvalue)


def test_compare_sees_a_difference_that_the_spread_over_images_would_hide():
    hard_and_easy = np.linspace(0.3, 0.95, 30)
    table = statistics.compare_models({"A": hard_and_easy + 0.01, "B": hard_and_easy})
    assert table["p"].item() < 1e-4


def test_compare_equal_scores():
    (row,) = statistics.compare_models({"A": [0.1, 0.5], "B": [0.1, 0.5]}).to_dict("records")
    assert (row["p"], row["p_holm"], row["low"], row["high"], row["better"], row["worse"]) == (1, 1, 0, 0, 0, 0)


def test_compare_specimens():
    rng = np.random.default_rng(0)
    shift = np.repeat(rng.normal(0.01, 0.03, 8), 10)  # what a specimen does to all its images
    scores = {"A": 0.8 + shift + rng.normal(0, 0.001, 80), "B": np.full(80, 0.8)}
    images = statistics.compare_models(scores)
    specimens = statistics.compare_models(scores, groups=np.repeat(np.arange(8), 10))
    assert specimens["units"].item() == 8
    assert specimens["mean_difference"].item() == images["mean_difference"].item()
    assert specimens["p"].item() > images["p"].item()
    assert specimens["low"].item() < images["low"].item()


def test_compare_several_corrects_for_it():
    rng = np.random.default_rng(0)
    table = statistics.compare_models({name: rng.random(12) for name in "ABC"})
    assert list(table.index) == [("A", "B"), ("A", "C"), ("B", "C")]
    assert (table["p_holm"] >= table["p"]).all()
    np.testing.assert_allclose(table["p_holm"], statistics.holm_correction(table["p"]))


def test_compare_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"same images, found {'A': 2, 'B': 3} scores"):
        statistics.compare_models({"A": [1, 2], "B": [1, 2, 3]})
    with pytest.raises(ValueError, match="two models or more, found 1"):
        statistics.compare_models({"A": [1, 2]})


def test_holm_as_in_the_textbook():
    np.testing.assert_allclose(statistics.holm_correction([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm_correction([0.6, 0.7]), [1, 1])


# One table for all models


def test_score_table(masks, found):
    blind = [np.zeros(mask.shape) for mask in masks]
    image_types = ["b", "a", "b"]
    costs = {"network": {"parameters": 7}, "nothing": {"parameters": 0}}
    table = statistics.score_table(masks, {"network": found, "nothing": blind}, image_types, costs=costs)
    assert list(table.index) == [
        (image_type, model) for image_type in ("a", "b", "all") for model in ("network", "nothing")
    ]
    every = table.loc["all"]
    expected = metrics.summarise(masks, found, image_types)
    pd.testing.assert_series_equal(every.loc["network", expected.columns], expected.loc["all"], check_names=False)
    assert table.loc[("b", "network"), "dice"] == expected.loc["b", "dice"]
    assert every.loc["network", "f1"] == every.loc["network", "dice"]
    assert every["parameters"].tolist() == [7, 0]
    dice = metrics.pixel_scores(masks, found)["dice"]
    assert tuple(every.loc["network", ["low_dice", "high_dice"]]) == statistics.bootstrap_interval(dice)
    assert (table["low_dice"] <= table["mean_dice"]).all()
    assert (table["mean_dice"] <= table["high_dice"]).all()


def test_score_table_with_specimens(masks, found):
    groups = ["x", "x", "y"]
    table = statistics.score_table(masks, {"network": found}, ["b", "a", "b"], groups)
    dice = metrics.pixel_scores(masks, found)["dice"]
    interval = tuple(table.loc[("all", "network"), ["low_dice", "high_dice"]])
    assert interval == statistics.bootstrap_interval(dice, groups)


# Curves over all thresholds


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9])
def test_sweep_counts_as_pixel_scores_does(masks, found, threshold):
    found[0][:2] = threshold  # on the threshold is not above it
    row = metrics.threshold_scores(masks, found, [0.1, threshold, 0.95] if threshold > 0.1 else [threshold, 0.95])
    row = row[row["threshold"] == threshold].iloc[0]
    each = metrics.pixel_scores(masks, found, threshold)
    assert row[list(metrics.COUNTS)].tolist() == each[list(metrics.COUNTS)].sum().tolist()
    assert row["mean_dice"] == pytest.approx(each["dice"].mean())
    assert row["dice"] == pytest.approx(2 * each["tp"].sum() / (2 * each["tp"] + each["fp"] + each["fn"]).sum())


def test_sweep_agrees_with_scikit_learn(masks, found):
    true, probability = pixels(masks, found)
    table = metrics.threshold_scores(masks, found, np.unique(np.append(probability, 0))[:-1])
    false_rate, true_rate, _ = roc_curve(true, probability, drop_intermediate=False)
    np.testing.assert_allclose(table["false_positive_rate"][::-1], false_rate[1:])
    np.testing.assert_allclose(table["recall"][::-1], true_rate[1:])
    precision, recall, _ = precision_recall_curve(true, probability)
    np.testing.assert_allclose(table["precision"], precision[:-1])
    np.testing.assert_allclose(table["recall"], recall[:-1])


def test_thresholds_are_fine_enough(masks, found):
    true, probability = pixels(masks, found)
    table = metrics.threshold_scores(masks, found)
    area = np.trapezoid([0, *table["recall"][::-1], 1], [0, *table["false_positive_rate"][::-1], 1])
    assert area == pytest.approx(roc_auc_score(true, probability), abs=1e-3)
    assert set(np.round(np.linspace(0, 1, 101), 7)) <= set(metrics.THRESHOLDS)


def test_sweep_of_masks_and_of_nothing():
    truth = [np.array([[1, 1, 0, 0]])]
    table = metrics.threshold_scores(truth, [np.array([[True, False, True, False]])], [0.5])
    assert table[list(metrics.COUNTS)].to_numpy().tolist() == [[1, 1, 1, 1]]
    nothing = metrics.threshold_scores([np.zeros((2, 2))], [np.zeros((2, 2))], [0.5])
    assert nothing[["dice", "mean_dice", "false_positive_rate"]].to_numpy().tolist() == [[1, 1, 0]]


def test_sweep_of_many_pixels_is_quick():
    rng = np.random.default_rng(0)
    found = [rng.random((1000, 1000), dtype=np.float32)] * 4
    start = time.process_time()
    metrics.threshold_scores([one > 0.5 for one in found], found)
    assert time.process_time() - start < 10  # a tenth of that when nothing else runs


def test_best_threshold():
    table = pd.DataFrame(
        {"threshold": [0.1, 0.2, 0.3, 0.4, 0.5], "dice": [0, 0.9, 0.9, 0.9, 0], "iou": [0, 0, 0, 0, 1]}
    )
    assert metrics.best_threshold(table) == 0.3
    assert metrics.best_threshold(table, "iou") == 0.5


# Are the probabilities right?


def test_calibration_agrees_with_scikit_learn(masks, found):
    found[0][:2] = 0.3  # on the edge of a range
    observed, predicted = calibration_curve(*pixels(masks, found), n_bins=7)
    table = metrics.calibration_table(masks, found, bins=7)
    assert table["pixels"].sum() == sum(mask.size for mask in masks)
    some = table[table["pixels"] > 0]
    np.testing.assert_allclose(some["observed"], observed)
    np.testing.assert_allclose(some["predicted"], predicted, rtol=1e-6)


def test_calibration_error():
    honest = metrics.calibration_table([np.array([[1, 1, 1, 0]])], [np.full((1, 4), 0.75)])
    assert metrics.calibration_error(honest) == pytest.approx(0)
    assert honest["pixels"].sum() == 4
    assert honest["observed"].isna().sum() == 9, "nothing is made up where there is no pixel"
    boastful = metrics.calibration_table([np.array([[1, 0, 0, 0]])], [np.full((1, 4), 0.95)])
    assert metrics.calibration_error(boastful) == pytest.approx(0.7)


# Where does it fail?


@pytest.fixture
def labels():
    labels = np.zeros((10, 20), np.int32)
    labels[1:3, 1:5] = 1
    labels[5:9, 1:5] = 4  # numbers may have gaps
    return labels


def test_nucleus_table(labels):
    found = (labels == 4) * 0.9
    found[1, 1:3] = 0.9
    table = metrics.nucleus_recall([labels, labels * 0, labels], [found, found, labels * 0])
    assert table.to_numpy().tolist() == [[0, 1, 8, 0.25], [0, 4, 16, 1], [2, 1, 8, 0], [2, 4, 16, 0]]


def test_image_table(labels):
    table = metrics.describe_images([labels, labels * 0], [labels > 0, labels > 0])
    assert table["nuclei"].tolist() == [2, 0]
    assert table["density"].tolist() == [100, 0]
    assert table["covered"].tolist() == [0.12, 0]
    assert table["median_area"].iloc[0] == 12
    assert np.isnan(table["median_area"].iloc[1])
    assert table["dice"].tolist() == [1, 0]


# Images made worse on purpose


@pytest.mark.parametrize("name", distortions.DISTORTIONS)
def test_distortions(name):
    distort, strengths = distortions.DISTORTIONS[name]
    image = datasets.load("sample", "test")[0].image
    before = image.copy()
    worse = [distort(image, strength) for strength in strengths]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(worse[0], image, "strength 0 does nothing")
    assert all(one.dtype == np.uint8 and one.shape == image.shape for one in worse)
    changes = [np.abs(one.astype(int) - image).mean() for one in worse]
    assert changes == sorted(set(changes)), "a larger strength changes more"
    np.testing.assert_array_equal(distort(image, strengths[-1]), worse[-1], "always the same")


def test_fade_loses_grey_levels_and_invert_none():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert len(np.unique(distortions.reduce_contrast(image, 0.9))) < 30
    assert len(np.unique(distortions.reduce_contrast(image, 1))) == 1
    np.testing.assert_array_equal(distortions.invert(distortions.invert(image)), image)


def test_robustness():
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:6, 2:6] = 200
    asked = []

    def bright(images):
        asked.append(len(images))
        return [one[..., 0] / 255 for one in images]

    chosen = {name: distortions.DISTORTIONS[name] for name in ("noise", "inversion")}
    table = distortions.robustness_table(bright, [image, image], [image[..., 0] > 0] * 2, chosen)
    assert table[["distortion", "strength"]].to_numpy().tolist() == [
        *[["noise", strength] for strength in (0, 8, 16, 32)],
        ["inversion", 0],
        ["inversion", 1],
    ]
    scores = table.set_index(["distortion", "strength"])[["dice", "mean_dice"]]
    assert scores.loc[("noise", 0)].tolist() == scores.loc[("inversion", 0)].tolist() == [1, 1]
    assert scores.loc[("inversion", 1)].tolist() == [0, 0]
    assert asked == [2] * 5, "the images as they are, once"


def test_robustness_of_a_network():
    model = models.unet((None, None, 3), filters=2, depth=1)
    records = datasets.load("sample", "test")[:2]
    table = distortions.robustness_table(
        partial(predict.predict_masks, model),
        [record.image for record in records],
        [record.label_map for record in records],
        {"inversion": distortions.DISTORTIONS["inversion"]},
    )
    assert table["dice"].between(0, 1).all()
    assert len(table) == 2
