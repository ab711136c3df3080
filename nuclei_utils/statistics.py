"""Confidence intervals and paired tests for the scores of models."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, wilcoxon

from nuclei_utils import metrics


def bootstrap_interval(values: ArrayLike, groups: Sequence | None = None, resamples: int = 2000) -> tuple[float, float]:
    """Estimate the 95 % confidence interval of a mean over images.

    The result is (low, high). The percentile bootstrap (Efron 1979, doi:10.1214/aos/1176344552) draws as many images
    with replacement as there are, and averages their scores, many times. The interval covers other images, not other
    trainings.

    Parameters
    ----------
    values : sequence of float
        One score per image, at least one.
    groups : sequence, optional
        Group of near-duplicates of each image. Whole groups are drawn, because near-duplicates are not independent.
    resamples : int
        Number of draws.

    Examples
    --------
    >>> [round(limit, 3) for limit in bootstrap_interval([0.7, 0.8, 0.9, 0.8])]
    [0.725, 0.875]
    """
    values = np.asarray(values, float)
    index = _group_index(len(values), groups)
    sums, counts = np.bincount(index, values), np.bincount(index)
    if len(counts) == 1:  # SciPy needs two
        return float(values.mean()), float(values.mean())

    def mean(drawn: np.ndarray, axis: int) -> np.ndarray:
        return sums[drawn].sum(axis=axis) / counts[drawn].sum(axis=axis)

    groups_to_draw = (np.arange(len(counts)),)
    rng = np.random.default_rng(0)  # SciPy before 1.15 calls the argument `random_state`
    result = bootstrap(groups_to_draw, mean, n_resamples=resamples, method="percentile", random_state=rng)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _group_index(images: int, groups: Sequence | None) -> np.ndarray:
    """Return the number of the group of each image. Without groups, each image is a group."""
    if not images:
        raise ValueError("found no image, expected at least one")
    if groups is None:
        return np.arange(images)
    if len(groups) != images:
        raise ValueError(f"found {len(groups)} groups for {images} images: give the group of each image")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def compare_models(scores: Mapping[str, ArrayLike], groups: Sequence | None = None) -> pd.DataFrame:
    """Compare models in pairs on the same images.

    The test uses the difference on each image, so it does not matter that some images are harder than others.
    Wilcoxon's signed-rank test (1945, doi:10.2307/3001968) gives the p-value.

    Parameters
    ----------
    scores : dict of str to sequence of float
        One score per image for each model, with the images in the same order.
    groups : sequence, optional
        Group of near-duplicates of each image. The test takes the mean difference of each group.

    Returns
    -------
    pandas.DataFrame
        One row per pair (index `first`, `second`): number of `images` and of `units` (groups, or images without
        groups); the `mean_difference` over images (first - second) with its 95 % interval from `low` to `high`; the
        numbers of images on which `first` is `better` and `worse`; the two-sided p-value `p`, 1 if all scores are
        equal; and `p_holm`, corrected for the number of pairs (Holm 1979, www.jstor.org/stable/4615733).

    Examples
    --------
    >>> table = compare_models({"A": [0.8, 0.9, 0.75], "B": [0.7, 0.7, 0.7]})
    >>> table[["better", "worse", "mean_difference"]].round(2).to_dict("records")
    [{'better': 3, 'worse': 0, 'mean_difference': 0.12}]
    """
    scores = {name: np.asarray(values, float) for name, values in scores.items()}
    lengths = {name: len(values) for name, values in scores.items()}
    if len(scores) < 2:
        raise ValueError(f"a comparison needs the scores of two models or more, found {len(scores)}")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the models must be scored on the same images, found {lengths} scores")
    rows = []
    for first, second in combinations(scores, 2):
        difference = scores[first] - scores[second]
        index = _group_index(len(difference), groups)
        units = np.bincount(index, difference) / np.bincount(index)
        low, high = bootstrap_interval(difference, groups, resamples=10_000)
        rows.append(
            {
                "first": first,
                "second": second,
                "images": len(difference),
                "units": len(units),
                "mean_difference": difference.mean(),
                "low": low,
                "high": high,
                "better": int((difference > 0).sum()),
                "worse": int((difference < 0).sum()),
                "p": float(wilcoxon(units).pvalue) if units.any() else 1.0,
            }
        )
    table = pd.DataFrame(rows).set_index(["first", "second"])
    ascending = table["p"].sort_values()
    return table.assign(p_holm=(ascending * np.arange(len(ascending), 0, -1)).cummax().clip(upper=1))


def score_table(
    masks: metrics.Arrays,
    predictions: Mapping[str, metrics.Arrays],
    image_types: Sequence[str],
    groups: Sequence | None = None,
    costs: Mapping[str, Mapping] | None = None,
) -> pd.DataFrame:
    """Score several models on the same images, by image type.

    Parameters
    ----------
    masks, image_types
        As for `metrics.summarise`.
    predictions : dict of str to sequence of array (H, W)
        Probabilities of nucleus in [0, 1] from each model, one map per image. The threshold is 0.5.
    groups : sequence, optional
        Group of near-duplicates of each image, for `bootstrap_interval`.
    costs : dict of str to dict, optional
        Costs of each model, from `models.model_cost`.

    Returns
    -------
    pandas.DataFrame
        One row per image type and model (index `image_type`, `model`), with the image type "all" last. The columns of
        `metrics.summarise`; the 95 % intervals `low_dice` to `high_dice` and `low_iou` to `high_iou` of the means over
        images; `f1`, which equals `dice`; and the columns of `costs`.

    Examples
    --------
    >>> masks = [np.eye(2), np.eye(2)]
    >>> table = score_table(masks, {"perfect": masks, "full": [np.ones((2, 2))] * 2}, ["a", "b"])
    >>> table.loc["all", "dice"].round(2).to_dict()
    {'perfect': 1.0, 'full': 0.67}
    """
    image_types = np.asarray(image_types)
    groups = np.arange(len(image_types)) if groups is None else np.asarray(groups)
    tables = {}
    for model, probabilities in predictions.items():
        table = metrics.summarise(masks, probabilities, image_types)
        images = metrics.pixel_scores(masks, probabilities)
        for image_type in table.index:
            chosen = (image_types == image_type) | (image_type == "all")
            for score in ("dice", "iou"):
                interval = bootstrap_interval(images.loc[chosen, score], groups[chosen])
                table.loc[image_type, [f"low_{score}", f"high_{score}"]] = interval
        tables[model] = table.assign(f1=table["dice"], **(costs or {}).get(model, {}))
    table = pd.concat(tables, names=["model"]).swaplevel()
    order = tables[model].index
    return table.loc[[(image_type, model) for image_type in order for model in predictions]]
