"""Which model is better, by how much, and where does it fail? Tables, intervals, tests, curves and disturbances."""

import time
from itertools import combinations

import cv2
import numpy as np
import pandas as pd
from keras import ops
from scipy.special import expit
from scipy.stats import wilcoxon

from nuclei_utils import metrics, models

THRESHOLDS = np.unique(np.round(np.concatenate([np.linspace(0, 1, 101), expit(np.linspace(-14, 14, 113))]), 7))
"""Thresholds for curves: 0.00, 0.01 … 1.00, and finer and finer towards both ends, where networks that are sure of
themselves put most of their probabilities."""


# What a model costs


def cost(model, size=256, rounds=7):
    """Measure what a model costs: parameters, memory for them, and time for one image.

    Parameters
    ----------
    model : keras.Model
        Takes (1, size, size, 3).
    size : int
        Height and width of the image, pixels.
    rounds : int
        How many predictions are timed, after one that is not; the median counts, which a busy moment does not move.

    Returns
    -------
    dict
        `parameters`, all of them; `megabytes` that their values take (10**6 bytes); `milliseconds` for one prediction
        of one image as `predict.probabilities` makes it, from an array to an array.
    """
    image = np.random.default_rng(0).random((1, size, size, 3), dtype=np.float32)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        ops.convert_to_numpy(model(image, training=False))
        seconds.append(time.perf_counter() - start)
    return {
        "parameters": model.count_params(),
        "megabytes": models.megabytes(model),
        "milliseconds": 1000 * float(np.median(seconds[1:])),  # the first one also sets things up
    }


# How sure is a mean, and a difference of means?


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


def compare(scores, groups=None, level=0.95, resamples=10_000, seed=0):
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
    return table.assign(p_holm=holm(table["p"]))


def holm(p_values):
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


# One table for all models


def score_table(masks, predictions, kinds, groups=None, costs=None, threshold=0.5):
    """Score models on the same images, over all images and by kind: one table for all of them.

    Parameters
    ----------
    masks : sequence of array (H, W)
        True masks or label maps.
    predictions : dict of str to sequence of array (H, W)
        Each model's probabilities of nucleus in [0, 1], one map per image.
    kinds : sequence of str
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
        One row per kind and model (index `kind`, `model`), the kind "all" last: `table.loc["all"]` has one row per
        model. The columns of `metrics.summarise`; `low_dice` and `high_dice`, the 95 % interval of `mean_dice`, and the
        same for IoU; `f1`, another name for `dice`; and the columns of `cost`.
    """
    kinds = np.asarray(kinds)
    tables = {}
    for model, probabilities in predictions.items():
        table = metrics.summarise(masks, probabilities, kinds, threshold)
        images = metrics.pixel_scores(masks, probabilities, threshold)
        for kind in table.index:
            chosen = (kinds == kind) | (kind == "all")
            some = None if groups is None else np.asarray(groups)[chosen]
            for score in ("dice", "iou"):
                table.loc[kind, [f"low_{score}", f"high_{score}"]] = bootstrap_interval(images.loc[chosen, score], some)
        tables[model] = table.assign(f1=table["dice"])
    table = pd.concat(tables, names=["model"]).swaplevel()
    order = list(next(iter(tables.values())).index)
    table = table.loc[[(kind, model) for kind in order for model in predictions]]
    return table if costs is None else table.join(pd.DataFrame.from_dict(costs, orient="index").rename_axis("model"))


# Curves over all thresholds


def sweep(masks, probabilities, thresholds=THRESHOLDS):
    """Score a model at many thresholds, in one pass over the pixels: what curves are drawn from.

    Nothing is sorted and nothing is left out, so that tens of millions of pixels take seconds and no memory to speak
    of, where `sklearn.metrics.roc_curve` needs a gigabyte.

    Parameters
    ----------
    masks, probabilities : as for `metrics.pixel_scores`
    thresholds : sequence of float
        Rising.

    Returns
    -------
    pandas.DataFrame
        One row per threshold: `threshold`; the counts and scores of `metrics.pixel_scores` over all pixels; the mean
        over images `mean_dice`; and `false_positive_rate`, the share of the background that is called nucleus (the
        share of the nuclei that is found is `recall`).
    """
    above = {True: [], False: []}  # for nucleus and background: per image, pixels above each threshold
    for mask, probability in zip(masks, probabilities, strict=True):
        true, probability = np.asarray(mask) > 0, np.asarray(probability)
        if probability.dtype.kind != "f":
            probability = probability.astype(np.float32)
        edges = np.asarray(thresholds, probability.dtype)
        for side, counts in above.items():
            # how many thresholds lie below each pixel's probability: it is nucleus for those
            passed = np.searchsorted(edges, probability[true == side])
            found = np.bincount(passed, minlength=len(edges) + 1)
            counts.append([found.sum(), *(found.sum() - found.cumsum()[:-1])])
    inside, outside = np.array(above[True]), np.array(above[False])
    tp, fp = inside[:, 1:], outside[:, 1:]
    fn, tn = inside[:, :1] - tp, outside[:, :1] - fp
    counts = pd.DataFrame(
        {"tp": tp.sum(axis=0), "fp": fp.sum(axis=0), "fn": fn.sum(axis=0), "tn": tn.sum(axis=0)}, dtype=np.int64
    )
    mean_dice = np.where(tp + fp + fn > 0, 2 * tp / np.maximum(2 * tp + fp + fn, 1), 1.0).mean(axis=0)
    rate = counts["fp"] / (counts["fp"] + counts["tn"]).clip(lower=1)
    table = counts.join(metrics.scores(counts)).assign(mean_dice=mean_dice, false_positive_rate=rate)
    table.insert(0, "threshold", np.asarray(thresholds, float))
    return table


def best_threshold(table, column="dice"):
    """Return the threshold with the highest score; choose it on validation images, never on those of the test.

    Parameters
    ----------
    table : pandas.DataFrame
        From `sweep`.
    column : str
        The score: "dice" over all pixels, "mean_dice" over images, …

    Returns
    -------
    float
        Of several that are best, the one in the middle.
    """
    best = table.loc[table[column] >= table[column].max() - 1e-12, "threshold"]
    return float(best.iloc[(len(best) - 1) // 2])


def average_precision(table):
    """Return the area below the precision-recall curve, as `sklearn.metrics.average_precision_score` defines it.

    Parameters
    ----------
    table : pandas.DataFrame
        From `sweep`.

    Returns
    -------
    float in [0, 1]
        Chance gives the share of nucleus pixels.
    """
    table = table[::-1]
    found = table["tp"] + table["fp"] > 0  # where nothing is found, there is no precision
    positives = table["tp"] + table["fn"]
    recall = np.append((table["tp"] / positives.clip(lower=1))[found], 1.0)
    chance = (positives / (positives + table["fp"] + table["tn"])).iloc[0]
    precision = np.append((table["tp"] / (table["tp"] + table["fp"]).clip(lower=1))[found], chance)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


# Are the probabilities right?


def calibration(masks, probabilities, bins=10):
    """Compare what a model promises with what comes true: of pixels at 0.8, about 80 % should be nucleus.

    Parameters
    ----------
    masks, probabilities : as for `metrics.pixel_scores`
    bins : int
        Ranges of equal width that pixels are sorted into by their probability, as in
        `sklearn.calibration.calibration_curve`.

    Returns
    -------
    pandas.DataFrame
        One row per range `low` to `high`: number of `pixels`, their mean probability `predicted`, and the share of
        them that is nucleus, `observed`; the last two are NaN where there is no pixel.
    """
    edges = np.linspace(0, 1, bins + 1)
    pixels, promised, true = np.zeros((3, bins))
    for mask, probability in zip(masks, probabilities, strict=True):
        probability = np.ravel(probability)
        number = np.searchsorted(edges[1:-1], probability)
        pixels += np.bincount(number, minlength=bins)
        promised += np.bincount(number, probability, bins)
        true += np.bincount(number, np.ravel(mask) > 0, bins)
    some = np.where(pixels > 0, pixels, np.nan)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "pixels": pixels.astype(np.int64),
            "predicted": promised / some,
            "observed": true / some,
        }
    )


def calibration_error(table):
    """Return the expected calibration error: the mean gap between promise and truth (arXiv 1706.04599, eq. 3).

    Parameters
    ----------
    table : pandas.DataFrame
        From `calibration`.

    Returns
    -------
    float in [0, 1]
        0: promises are kept. Every pixel counts the same, so easy background makes it small.
    """
    gap = (table["predicted"] - table["observed"]).abs()
    return float((gap * table["pixels"]).sum() / table["pixels"].sum())


# Where does it fail?


def image_table(labels, probabilities, threshold=0.5):
    """Describe each image beside its score, to see what the bad ones have in common.

    Parameters
    ----------
    labels : sequence of int array (H, W)
        True label maps.
    probabilities, threshold : as for `metrics.pixel_scores`

    Returns
    -------
    pandas.DataFrame
        One row per image: number of `nuclei`; `density`, nuclei per 10,000 pixels; `covered`, share of the pixels
        that is nucleus; `median_area` of its nuclei in pixels (NaN without any); and the columns of
        `metrics.pixel_scores`.
    """
    rows = []
    for label_map in labels:
        areas = np.bincount(np.ravel(label_map))[1:]
        areas = areas[areas > 0]
        rows.append(
            {
                "nuclei": len(areas),
                "density": 1e4 * len(areas) / np.size(label_map),
                "covered": areas.sum() / np.size(label_map),
                "median_area": np.median(areas) if len(areas) else np.nan,
            }
        )
    return pd.DataFrame(rows).join(metrics.pixel_scores(labels, probabilities, threshold))


def nucleus_table(labels, probabilities, threshold=0.5):
    """Measure how much of each nucleus was found.

    Parameters
    ----------
    labels : sequence of int array (H, W)
        True label maps.
    probabilities, threshold : as for `metrics.pixel_scores`

    Returns
    -------
    pandas.DataFrame
        One row per nucleus: number of its `image`, its `label`, its `area` in pixels, and `found`, the share of its
        pixels that was predicted nucleus, in [0, 1].
    """
    parts = []
    for image, (label_map, probability) in enumerate(zip(labels, probabilities, strict=True)):
        areas = np.bincount(np.ravel(label_map))
        hits = np.bincount(np.ravel(label_map), np.ravel(probability) > threshold)
        numbers = np.flatnonzero(areas[1:]) + 1
        found = hits[numbers] / areas[numbers]
        parts.append(pd.DataFrame({"image": image, "label": numbers, "area": areas[numbers], "found": found}))
    return pd.concat(parts, ignore_index=True)


# Images made worse on purpose


def blur(image, sigma):
    """Blur an image as a microscope out of focus does, about: a Gaussian of `sigma` pixels.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
    sigma : float
        0 leaves the image as it is.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) if sigma else image.copy()


def noise(image, deviation):
    """Add Gaussian noise of a standard deviation in grey levels, as in a dim image; always the same.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
    deviation : float
        0 leaves the image as it is.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    grains = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(np.round(image + grains), 0, 255).astype(np.uint8)


def fade(image, share):
    """Take contrast away: every value moves towards the image's mean, and grey levels are lost for good.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
    share : float
        Of the contrast to take away, 0..1.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    mean = image.mean()
    return np.round(mean + (1 - share) * (image - mean)).astype(np.uint8)


def invert(image, share=1):
    """Turn bright into dark.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
    share : 0 or 1
        0 leaves the image as it is.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    return 255 - image if share else image.copy()


DISTORTIONS = {
    "blur": (blur, (0, 1, 2, 4)),
    "noise": (noise, (0, 8, 16, 32)),
    "contrast": (fade, (0, 0.8, 0.9, 0.95)),
    "inversion": (invert, (0, 1)),
}
"""What can be done to an image on purpose, by name: the function, and the strengths to try; 0 does nothing."""


def robustness(predict, images, masks, distortions=DISTORTIONS, threshold=0.5):
    """Score a model on images that were made worse on purpose.

    Parameters
    ----------
    predict : callable
        Takes a list of uint8 images (H, W, 3), returns their probabilities of nucleus, such as
        `functools.partial(predict.probabilities, model)`.
    images : sequence of uint8 array (H, W, 3)
    masks : sequence of array (H, W)
        True masks or label maps.
    distortions : dict of str to (callable, sequence of float)
        As `DISTORTIONS`.
    threshold : float

    Returns
    -------
    pandas.DataFrame
        One row per `distortion` and `strength`: the scores of `metrics.scores` over all pixels, and `mean_dice` over
        images.
    """
    known, rows = {}, []
    for name, (distort, strengths) in distortions.items():
        for strength in strengths:
            key = (name, strength) if strength else "as it is"  # needs to be predicted only once
            if key not in known:
                worse = [distort(image, strength) for image in images]
                table = metrics.pixel_scores(masks, predict(worse), threshold)
                pooled = metrics.scores(table[list(metrics.COUNTS)].sum().to_frame().T).iloc[0]
                known[key] = {**pooled, "mean_dice": table["dice"].mean()}
            rows.append({"distortion": name, "strength": strength, **known[key]})
    return pd.DataFrame(rows)
