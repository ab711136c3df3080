import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from nuclei_utils import metrics, statistics


def test_interval_is_that_of_the_means_of_random_draws():
    values = np.random.default_rng(0).beta(8, 2, 60)
    drawn = np.random.default_rng(0).integers(60, size=(2000, 60))
    expected = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose(statistics.bootstrap_interval(values), expected)


def test_interval_of_a_single_image_is_its_score():
    assert statistics.bootstrap_interval([0.7]) == (0.7, 0.7)
    assert statistics.bootstrap_interval([0.7, 0.9], groups=["a", "a"]) == pytest.approx((0.8, 0.8))


def test_interval_is_wider_if_groups_are_drawn():
    values = np.repeat([0.5, 0.7, 0.9, 0.6], 10)
    images = statistics.bootstrap_interval(values)
    groups = statistics.bootstrap_interval(values, groups=np.repeat(list("abcd"), 10))
    assert groups[1] - groups[0] > 2 * (images[1] - images[0])
    assert statistics.bootstrap_interval(values, groups=np.arange(40)) == images, "groups of one image"


@pytest.mark.parametrize(
    ("values", "groups", "reason"), [([], None, "no image"), ([1, 2, 3], ["a", "b"], "2 groups for 3 images")]
)
def test_interval_needs_images_and_the_group_of_each(values, groups, reason):
    with pytest.raises(ValueError, match=reason):
        statistics.bootstrap_interval(values, groups)


def test_compare_two_models():
    rng = np.random.default_rng(0)
    worse = rng.random(40)
    better = worse + rng.normal(0.02, 0.03, 40)
    better[0] = worse[0]
    table = statistics.compare_models({"A": better, "B": worse})
    (row,) = table.to_dict("records")
    assert list(table.index) == [("A", "B")]
    assert row["images"] == row["units"] == 40
    assert (row["better"], row["worse"]) == ((better > worse).sum(), (better < worse).sum())
    assert row["mean_difference"] == pytest.approx((better - worse).mean())
    assert 0 < row["low"] < row["mean_difference"] < row["high"]
    assert row["p"] == row["p_holm"] == pytest.approx(wilcoxon(better, worse).pvalue)


def test_compare_finds_a_small_difference_on_images_of_varied_difficulty():
    scores = np.linspace(0.3, 0.95, 30)
    assert statistics.compare_models({"A": scores + 0.01, "B": scores})["p"].item() < 1e-4


def test_compare_equal_scores():
    (row,) = statistics.compare_models({"A": [0.1, 0.5], "B": [0.1, 0.5]}).to_dict("records")
    assert [row[name] for name in ("p", "p_holm", "low", "high", "better", "worse")] == [1, 1, 0, 0, 0, 0]


def test_compare_with_groups_is_less_certain():
    rng = np.random.default_rng(0)
    group_effect = np.repeat(rng.normal(0.01, 0.03, 8), 10)
    scores = {"A": 0.8 + group_effect + rng.normal(0, 0.001, 80), "B": np.full(80, 0.8)}
    images = statistics.compare_models(scores).iloc[0]
    groups = statistics.compare_models(scores, groups=np.repeat(np.arange(8), 10)).iloc[0]
    assert groups["units"] == 8
    assert groups["mean_difference"] == images["mean_difference"]
    assert groups["p"] > images["p"]
    assert groups["low"] < images["low"]


def test_compare_three_models_corrects_p():
    rng = np.random.default_rng(0)
    table = statistics.compare_models({name: rng.random(12) for name in "ABC"})
    assert list(table.index) == [("A", "B"), ("A", "C"), ("B", "C")]
    assert (table["p_holm"] >= table["p"]).all()
    low, middle, high = table["p"].sort_values().index
    expected = np.maximum.accumulate([3 * table["p"][low], 2 * table["p"][middle], table["p"][high]])
    np.testing.assert_allclose(table["p_holm"][[low, middle, high]], np.minimum(expected, 1))


@pytest.mark.parametrize("scores", [{"A": [1, 2], "B": [1, 2, 3]}, {"A": [1, 2]}])
def test_compare_refuses_one_model_and_unequal_numbers_of_images(scores):
    with pytest.raises(ValueError, match="found"):
        statistics.compare_models(scores)


@pytest.mark.parametrize("groups", [None, ["x", "x", "y"]])
def test_score_table(groups):
    rng = np.random.default_rng(0)
    masks = [rng.random(shape) > 0.8 for shape in [(20, 30), (16, 16), (40, 25)]]
    maps = [np.clip(0.4 * mask + 0.6 * rng.random(mask.shape), 0, 1) for mask in masks]
    empty = [np.zeros(mask.shape) for mask in masks]
    costs = {"network": {"parameters": 7}, "nothing": {"parameters": 0}}
    table = statistics.score_table(masks, {"network": maps, "nothing": empty}, ["b", "a", "b"], groups, costs)
    assert list(table.index) == [
        (image_type, model) for image_type in ("a", "b", "all") for model in ("network", "nothing")
    ]
    row, expected = table.loc[("all", "network")], metrics.summarise(masks, maps, ["b", "a", "b"])
    pd.testing.assert_series_equal(row[expected.columns], expected.loc["all"], check_names=False)
    assert table.loc[("b", "network"), "dice"] == expected.loc["b", "dice"]
    assert table.loc["all", "parameters"].tolist() == [7, 0]
    images = metrics.pixel_scores(masks, maps)
    for score in ("dice", "iou"):
        interval = statistics.bootstrap_interval(images[score], groups)
        assert (row[f"low_{score}"], row[f"high_{score}"]) == interval
        assert table[f"mean_{score}"].between(table[f"low_{score}"] - 1e-9, table[f"high_{score}"] + 1e-9).all()
    assert row["f1"] == row["dice"]
