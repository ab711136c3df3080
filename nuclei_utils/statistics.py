"""Confidence intervals and paired tests for the scores of models."""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from nuclei_utils import metrics


def bootstrap_interval(values, groups=None, level=0.95, resamples=2000, seed=0):
    """Estimate how far the mean over images could have come out otherwise, with other images of the same sort.

    Images are drawn with replacement from those at hand, as many as there are, and averaged; again and again. The
    interval holds the middle of these means (percentile bootstrap, Efron 1979, doi:10.1214/aos/1176344552). It says
    nothing about another training of the same network.

    Parameters
    ----------
    values : sequence of float
        One score per image.
    groups : sequence, optional
        The group of near-duplicates that each image belongs to. With groups, whole groups are drawn, so the interval
        is not too narrow, provided that images of different groups are independent.
    level : float
        Share of the means that lie inside, 0..1.
    resamples : int
    seed : int

    Returns
    -------
    low, high : float

    Raises
    ------
    ValueError
        If there is no value, or not one group for each.
    """
    means = _resampled_means(np.asarray(values, float), groups, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(values, groups, resamples, seed):
    member = _members(len(values), groups)
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    return sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)


def _members(images, groups):
    """Return the number of the group that each image belongs to; without groups each image is one."""
    if not images:
        raise ValueError("there is no image to average over")
    if groups is None:
        return np.arange(images)
    if len(groups) != images:
        raise ValueError(f"found {len(groups)} groups for {images} images: name the group of each image")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def compare_models(scores, groups=None, level=0.95, resamples=10_000, seed=0):
    """Test pair by pair whether one model is better than another on the same images by more than chance.

    The differences are taken image by image, so that it does not matter that some images are harder than others.
    Wilcoxon's signed-rank test (1945, doi:10.2307/3001968) gives the probability of differences at least as lopsided
    as these if neither model were better; Holm's correction (1979, www.jstor.org/stable/4615733) raises it where
    several pairs are compared, because one of many comparisons is soon small by chance.

    Parameters
    ----------
    scores : dict of str to sequence of float
        For each model one score per image, the same images in the same order.
    groups : sequence, optional
        The group of near-duplicates that each image belongs to; a group's images then count as one in the test (the
        mean of their differences), and are drawn together for the interval (`bootstrap_interval`).
    level, resamples, seed
        As for `bootstrap_interval`.

    Returns
    -------
    pandas.DataFrame
        One row per pair (index `first`, `second`): number of `images` and of `units` (groups; images without groups),
        `mean_difference` over images (first - second) with its interval `low`, `high`, on how many images `first` is
        `better` and on how many it is `worse`, and the two-sided `p` and `p_holm`, both 1 where no score differs.

    Raises
    ------
    ValueError
        If there are not two models, or the numbers of scores differ.
    """
    scores = {name: np.asarray(values, float) for name, values in scores.items()}
    lengths = {name: len(values) for name, values in scores.items()}
    if len(scores) < 2:
        raise ValueError(f"comparing takes the scores of two models or more, found {len(scores)}")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the models must be scored on the same images, found {lengths} scores")
    rows = []
    for first, second in combinations(scores, 2):
        difference = scores[first] - scores[second]
        member = _members(len(difference), groups)
        units = np.bincount(member, difference) / np.bincount(member)
        low, high = bootstrap_interval(difference, groups, level, resamples, seed)
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
    return table.assign(p_holm=holm_correction(table["p"]))


def holm_correction(p_values):
    """Correct p-values for the number of comparisons (Holm 1979, www.jstor.org/stable/4615733).

    Parameters
    ----------
    p_values : sequence of float

    Returns
    -------
    float array
        In the same order. Below 0.05 in all comparisons together at most once in twenty times by chance.
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)
    raised = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(raised, 1)
    return corrected


def score_table(masks, predictions, image_types, groups=None, costs=None, threshold=0.5):
    """Score models on the same images, over all images and by image_type: one table for all of them.

    Parameters
    ----------
    masks : sequence of array (H, W)
        True masks or label maps.
    predictions : dict of str to sequence of array (H, W)
        Each model's probabilities of nucleus in [0, 1], one map per image.
    image_types : sequence of str
        Kind of each image.
    groups : sequence, optional
        Group of near-duplicates of each image, for the interval (`bootstrap_interval`).
    costs : dict of str to dict, optional
        What each model costs, from `cost`.
    threshold : float
        A pixel is predicted nucleus where its probability is larger.

    Returns
    -------
    pandas.DataFrame
        One row per image_type and model (index `image_type`, `model`), the image_type "all" last: `table.loc["all"]` has one row per
        model. The columns of `metrics.summarise`; `low_dice` and `high_dice`, the 95 % interval of `mean_dice`, and the
        same for IoU; `f1`, another name for `dice`; and the columns of `cost`.
    """
    image_types = np.asarray(image_types)
    tables = {}
    for model, probabilities in predictions.items():
        table = metrics.summarise(masks, probabilities, image_types, threshold)
        images = metrics.pixel_scores(masks, probabilities, threshold)
        for image_type in table.index:
            chosen = (image_types == image_type) | (image_type == "all")
            some = None if groups is None else np.asarray(groups)[chosen]
            for score in ("dice", "iou"):
                table.loc[image_type, [f"low_{score}", f"high_{score}"]] = bootstrap_interval(
                    images.loc[chosen, score], some
                )
        tables[model] = table.assign(f1=table["dice"])
    table = pd.concat(tables, names=["model"]).swaplevel()
    order = list(next(iter(tables.values())).index)
    table = table.loc[[(image_type, model) for image_type in order for model in predictions]]
    return table if costs is None else table.join(pd.DataFrame.from_dict(costs, orient="index").rename_axis("model"))
