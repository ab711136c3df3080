"""Which model is better, by how much, and where does it fail? Tables, intervals, tests, curves and disturbances."""

import keras
import numpy as np
import pandas as pd
from keras import ops
from scipy.special import expit

THRESHOLDS = np.unique(np.round(np.concatenate([np.linspace(0, 1, 101), expit(np.linspace(-14, 14, 113))]), 7))
"""Thresholds for curves: 0.00, 0.01 … 1.00, and finer and finer towards both ends, where networks that are sure of
themselves put most of their probabilities."""


def threshold_scores(masks, probabilities, thresholds=THRESHOLDS):
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
    table = counts.join(scores_from_counts(counts)).assign(mean_dice=mean_dice, false_positive_rate=rate)
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


def calibration_table(masks, probabilities, bins=10):
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


def describe_images(labels, probabilities, threshold=0.5):
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
    return pd.DataFrame(rows).join(pixel_scores(labels, probabilities, threshold))


def nucleus_recall(labels, probabilities, threshold=0.5):
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


def dice(y_true, y_pred, threshold=0.5):
    """Dice coefficient `2 |A and B| / (|A| + |B|)` of two masks (Dice 1945, doi:10.2307/1932409); equal to F1.

    Parameters
    ----------
    y_true : array or tensor, any shape
        Mask, 0 or 1.
    y_pred : array or tensor, same shape
        Mask or probabilities in [0, 1].
    threshold : float
        A pixel is nucleus where `y_pred` is larger.

    Returns
    -------
    scalar tensor in [0, 1]
        1 for two empty masks: they agree.
    """
    intersection, total = _overlap(y_true, y_pred, threshold)
    return ops.where(total > 0, 2 * intersection / ops.maximum(total, 1), 1.0)


def iou(y_true, y_pred, threshold=0.5):
    """Intersection over union `|A and B| / |A or B|` of two masks (Jaccard index); `Dice / (2 - Dice)`.

    Parameters and return value are those of `dice`.
    """
    intersection, total = _overlap(y_true, y_pred, threshold)
    return ops.where(total > 0, intersection / ops.maximum(total - intersection, 1), 1.0)


def _overlap(y_true, y_pred, threshold):
    y_true = ops.cast(y_true, "float32")
    y_pred = ops.cast(ops.cast(y_pred, "float32") > threshold, "float32")
    return ops.sum(y_true * y_pred), ops.sum(y_true) + ops.sum(y_pred)


COUNTS = ("tp", "fp", "fn", "tn")


def pixel_scores(masks, probabilities, threshold=0.5):
    """Score predicted masks, one row per image.

    Parameters
    ----------
    masks : sequence of array (H, W)
        True masks or label maps; anything but zero is nucleus.
    probabilities : sequence of array (H, W)
        Probabilities of nucleus in [0, 1].
    threshold : float
        A pixel is predicted nucleus where its probability is larger.

    Returns
    -------
    pandas.DataFrame
        The counts `tp`, `fp`, `fn`, `tn` in pixels, and what `scores` makes of them.
    """
    rows = []
    for mask, probability in zip(masks, probabilities, strict=True):
        true, predicted = np.asarray(mask) > 0, np.asarray(probability) > threshold
        tp, fp, fn = (true & predicted).sum(), (~true & predicted).sum(), (true & ~predicted).sum()
        rows.append({"tp": tp, "fp": fp, "fn": fn, "tn": true.size - tp - fp - fn})
    counts = pd.DataFrame(rows, columns=COUNTS)
    return counts.join(scores_from_counts(counts))


def scores_from_counts(counts):
    """Turn counts of pixels into scores.

    Parameters
    ----------
    counts : pandas.DataFrame
        Columns `tp`, `fp`, `fn`, `tn`: true and false positives and negatives, in pixels.

    Returns
    -------
    pandas.DataFrame
        `accuracy`, `precision`, `recall`, `dice` (equal to F1) and `iou`, each in [0, 1]. Where there is nothing to
        find and nothing was found, the last four are 1.
    """
    tp, fp, fn, tn = (counts[name] for name in COUNTS)
    perfect = (fp == 0) & (fn == 0)

    def share(part, whole):
        return (part / whole.clip(lower=1)).where(~perfect, 1.0)

    return pd.DataFrame(
        {
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "precision": share(tp, tp + fp),
            "recall": share(tp, tp + fn),
            "dice": share(2 * tp, 2 * tp + fp + fn),
            "iou": share(tp, tp + fp + fn),
        }
    )


def auc(masks, probabilities):
    """Area under the ROC curve over all pixels of all images, from 1000 thresholds (`keras.metrics.AUC`).

    Parameters
    ----------
    masks, probabilities : as for `pixel_scores`

    Returns
    -------
    float in [0, 1]
        0.5 is chance.
    """
    metric = keras.metrics.AUC(num_thresholds=1000)
    for mask, probability in zip(masks, probabilities, strict=True):
        metric.update_state(np.asarray(mask).ravel() > 0, np.asarray(probability).ravel())
    return float(metric.result())


def summarise(masks, probabilities, image_types, threshold=0.5):
    """Score predicted masks over all images and by image type: the table at the end of a training.

    Parameters
    ----------
    masks, probabilities, threshold : as for `pixel_scores`
    image_types : sequence of str
        Kind of each image.

    Returns
    -------
    pandas.DataFrame
        One row per image_type and a last row "all": number of `images`; `dice`, `iou`, `accuracy`, `precision`, `recall`
        and `auc` over all pixels; `mean_dice` and `mean_iou`, averaged over images, with the spread over images
        `std_dice` and `std_iou`.
    """
    table = pixel_scores(masks, probabilities, threshold)
    image_types = np.asarray(image_types)
    rows = []
    for image_type in [*sorted(set(image_types)), "all"]:
        chosen = np.flatnonzero((image_types == image_type) | (image_type == "all"))
        some = table.iloc[chosen]
        row = scores_from_counts(some[list(COUNTS)].sum().to_frame().T).assign(
            image_type=image_type,
            images=len(some),
            auc=auc([masks[i] for i in chosen], [probabilities[i] for i in chosen]),
            mean_dice=some["dice"].mean(),
            mean_iou=some["iou"].mean(),
            std_dice=some["dice"].std(ddof=0),
            std_iou=some["iou"].std(ddof=0),
        )
        rows.append(row)
    pixels, images = ["dice", "iou", "accuracy", "precision", "recall", "auc"], ["mean_dice", "mean_iou"]
    return pd.concat(rows).set_index("image_type")[["images", *pixels, *images, "std_dice", "std_iou"]]
