"""Score predicted masks pixel by pixel: Dice and IoU, threshold curves, calibration, tables of where a model fails.

Scores of nuclei, such as average precision, are in `matching`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

Arrays = Sequence[ArrayLike]

COUNTS = ["tp", "fp", "fn", "tn"]  # true and false positives and negatives, in pixels
# 0.00, 0.01 … 1.00, and finer steps near 0 and 1, where most probabilities of a network lie
THRESHOLDS = np.unique(np.round(np.r_[np.linspace(0, 1, 101), 1 / (1 + np.exp(np.linspace(-14, 14, 113)))], 7))


def dice(y_true: ArrayLike, y_pred: ArrayLike, threshold: float = 0.5) -> float:
    """Compute the Dice coefficient of two masks, in [0, 1].

    The coefficient is `2 |A and B| / (|A| + |B|)`. Dice (1945, doi:10.2307/1932409) equals the F1 score of the pixels.
    Dice is 1 if both masks are empty.

    Parameters
    ----------
    y_true : array, any shape
        True mask. Pixels above 0 are nucleus.
    y_pred : array, same shape
        Predicted mask, or probabilities in [0, 1]. Pixels above `threshold` are predicted nucleus.

    Examples
    --------
    >>> dice([1, 1, 0, 0], [0.9, 0.2, 0.8, 0.1])
    0.5
    """
    return float(pixel_scores([y_true], [y_pred], threshold)["dice"].iloc[0])


def iou(y_true: ArrayLike, y_pred: ArrayLike, threshold: float = 0.5) -> float:
    """Compute the intersection over union of two masks, in [0, 1].

    The Jaccard index is `|A and B| / |A or B|`. IoU equals `dice / (2 - dice)`. The parameters are those of `dice`.

    Examples
    --------
    >>> iou([1, 1, 0, 0], [0.9, 0.2, 0.2, 0.1])
    0.5
    """
    return float(pixel_scores([y_true], [y_pred], threshold)["iou"].iloc[0])


def pixel_scores(masks: Arrays, probabilities: Arrays, threshold: float = 0.5) -> pd.DataFrame:
    """Score the predicted mask of each image.

    Parameters
    ----------
    masks : sequence of array (H, W)
        True masks or label maps. Pixels above 0 are nucleus.
    probabilities : sequence of array (H, W)
        Probabilities of nucleus in [0, 1], or predicted masks. Pixels above `threshold` are predicted nucleus.

    Returns
    -------
    pandas.DataFrame
        One row per image: the pixel counts `tp`, `fp`, `fn`, `tn`; and `accuracy`, `precision`, `recall`, `dice` (equal
        to F1) and `iou`, each in [0, 1]. The last four are 1 if there is no true and no predicted nucleus.

    Examples
    --------
    >>> pixel_scores([np.eye(2)], [np.ones((2, 2))])[["tp", "fp", "fn", "tn", "precision"]].to_numpy().tolist()
    [[2.0, 2.0, 0.0, 0.0, 0.5]]
    """
    counts = pd.DataFrame(_count_pixels(masks, probabilities, [threshold])[:, 0], columns=COUNTS)
    return counts.join(_scores_from_counts(counts))


def _scores_from_counts(counts: pd.DataFrame) -> pd.DataFrame:
    """Compute the scores of `pixel_scores` from the columns `COUNTS`."""
    tp, fp, fn, tn = (counts[name] for name in COUNTS)

    def ratio(numerator: pd.Series, denominator: pd.Series) -> pd.Series:
        return (numerator / denominator.clip(lower=1)).where(fp + fn > 0, 1.0)

    return pd.DataFrame(
        {
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "precision": ratio(tp, tp + fp),
            "recall": ratio(tp, tp + fn),
            "dice": ratio(2 * tp, 2 * tp + fp + fn),
            "iou": ratio(tp, tp + fp + fn),
        }
    )


def threshold_scores(masks: Arrays, probabilities: Arrays, thresholds: ArrayLike = THRESHOLDS) -> pd.DataFrame:
    """Score a model at many thresholds, in one pass over the pixels.

    Parameters
    ----------
    masks, probabilities
        As for `pixel_scores`.
    thresholds : sequence of float, ascending

    Returns
    -------
    pandas.DataFrame
        One row per threshold: `threshold`; the counts and scores of `pixel_scores` over all pixels; the mean over
        images `mean_dice`; and `false_positive_rate`, the fraction of the background that is predicted nucleus.

    Examples
    --------
    >>> table = threshold_scores([[1, 1, 0, 0]], [[0.9, 0.2, 0.8, 0.1]], thresholds=[0.1, 0.5])
    >>> table[["threshold", "recall", "false_positive_rate"]].to_numpy().tolist()
    [[0.1, 1.0, 0.5], [0.5, 0.5, 0.5]]
    """
    by_image = _count_pixels(masks, probabilities, thresholds)
    image_dice = _scores_from_counts(pd.DataFrame(by_image.reshape(-1, 4), columns=COUNTS))["dice"].to_numpy()
    counts = pd.DataFrame(by_image.sum(axis=0), columns=COUNTS)
    table = counts.join(_scores_from_counts(counts))
    table["mean_dice"] = image_dice.reshape(by_image.shape[:2]).mean(axis=0)
    table["false_positive_rate"] = counts["fp"] / (counts["fp"] + counts["tn"]).clip(lower=1)
    table.insert(0, "threshold", np.asarray(thresholds, float))
    return table


def _count_pixels(masks: Arrays, probabilities: Arrays, thresholds: ArrayLike) -> np.ndarray:
    """Count tp, fp, fn and tn of each image and threshold.

    The counts are an int64 array (images, thresholds, 4).
    """
    # tens of millions of pixels take seconds and little memory; `sklearn.metrics.roc_curve` needs a gigabyte
    counts = np.zeros((len(masks), len(thresholds), 4), np.int64)
    for row, (is_nucleus, probability) in zip(counts, _pairs(masks, probabilities), strict=True):
        thresholds_below = np.searchsorted(np.asarray(thresholds, probability.dtype), probability)
        sides = thresholds_below[is_nucleus], thresholds_below[~is_nucleus]
        negatives = np.cumsum([np.bincount(side, minlength=len(thresholds) + 1) for side in sides], axis=1)
        fn, tn = negatives[:, :-1]
        tp, fp = negatives[:, -1:] - negatives[:, :-1]
        row[:] = np.stack([tp, fp, fn, tn], axis=1)
    return counts


def _pairs(masks: Arrays, probabilities: Arrays) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the mask and the probabilities of each image.

    NaN becomes -inf, which is below every threshold.
    """
    for mask, probability in zip(masks, probabilities, strict=True):
        yield np.asarray(mask) > 0, np.fmax(np.asarray(probability), -np.inf)


def best_threshold(table: pd.DataFrame, column: str = "dice") -> float:
    """Choose the threshold with the highest score on validation images.

    Never choose a threshold on test images.

    Parameters
    ----------
    table : pandas.DataFrame
        From `threshold_scores`. If several thresholds reach the highest score, the middle one is chosen.
    column : str
        Score to maximise: "dice" over all pixels, "mean_dice" over images, or another column.

    Examples
    --------
    >>> best_threshold(threshold_scores([[1, 1, 0, 0]], [[0.9, 0.7, 0.4, 0.1]], thresholds=[0.2, 0.5, 0.8]))
    0.5
    """
    best = table.loc[table[column] >= table[column].max() - 1e-12, "threshold"]
    return float(best.iloc[(len(best) - 1) // 2])


def _auc(masks: Arrays, probabilities: Arrays) -> float:
    """Compute the area under the ROC curve over all pixels.

    The method is that of `keras.metrics.AUC(num_thresholds=1000)`.
    """
    thresholds = np.r_[-1, np.arange(1, 1000) / 999]  # the curve starts where every pixel is predicted nucleus
    tp, fp, fn, tn = _count_pixels(masks, probabilities, thresholds).sum(axis=0)[::-1].T
    return float(np.trapezoid(tp / np.maximum(tp + fn, 1), fp / np.maximum(fp + tn, 1)))


def calibration_table(masks: Arrays, probabilities: Arrays, bins: int = 10) -> pd.DataFrame:
    """Compare predicted probabilities with observed frequencies.

    A model is calibrated if about 80 % of the pixels with a probability of 0.8 are nucleus.

    Parameters
    ----------
    masks, probabilities
        As for `pixel_scores`.
    bins : int
        Number of bins of equal width, as in `sklearn.calibration.calibration_curve`.

    Returns
    -------
    pandas.DataFrame
        One row per bin from `low` to `high`: number of `pixels`, their mean probability `predicted`, and the fraction
        of nucleus among them, `observed`. The last two are NaN for a bin without pixels.

    Examples
    --------
    >>> table = calibration_table([[1, 1, 0, 0]], [[0.9, 0.7, 0.8, 0.2]], bins=2)
    >>> table[["pixels", "predicted", "observed"]].round(2).to_numpy().tolist()
    [[1.0, 0.2, 0.0], [3.0, 0.8, 0.67]]
    """
    edges = np.linspace(0, 1, bins + 1)
    pixels, predicted, observed = np.zeros((3, bins))
    for is_nucleus, probability in _pairs(masks, probabilities):
        index = np.searchsorted(edges[1:-1], probability.ravel())
        pixels += np.bincount(index, minlength=bins)
        predicted += np.bincount(index, probability.ravel(), bins)
        observed += np.bincount(index, is_nucleus.ravel(), bins)
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "pixels": pixels.astype(np.int64)})
    divisor = np.where(pixels > 0, pixels, np.nan)
    return table.assign(predicted=predicted / divisor, observed=observed / divisor)


def calibration_error(table: pd.DataFrame) -> float:
    """Compute the expected calibration error of a `calibration_table` (arXiv 1706.04599, eq. 3).

    The error is the mean gap between `predicted` and `observed` over the pixels, in [0, 1]. Easy background pixels make
    the error small.

    Examples
    --------
    >>> round(calibration_error(calibration_table([[1, 1, 0, 0]], [[1.0, 0.8, 0.2, 0.0]])), 2)
    0.1
    """
    gap = (table["predicted"] - table["observed"]).abs()
    return float((gap * table["pixels"]).sum() / table["pixels"].sum())


def summarise(masks: Arrays, probabilities: Arrays, image_types: Sequence[str], threshold: float = 0.5) -> pd.DataFrame:
    """Score predicted masks by image type and over all images.

    Parameters
    ----------
    masks, probabilities, threshold
        As for `pixel_scores`.
    image_types : sequence of str
        Type of each image.

    Returns
    -------
    pandas.DataFrame
        One row per image type and a last row "all": number of `images`; `dice`, `iou`, `accuracy`, `precision` and
        `recall` over all pixels; `auc`, the area under the ROC curve over all pixels; the means over images `mean_dice`
        and `mean_iou`; and their standard deviations `std_dice` and `std_iou`. An `auc` of 0.5 is a random guess. An
        `auc` of 0 means that all pixels are nucleus, or none.

    Examples
    --------
    >>> summarise([np.eye(2), np.eye(2)], [np.eye(2), np.ones((2, 2))], ["a", "b"])["dice"].round(2).to_dict()
    {'a': 1.0, 'b': 0.67, 'all': 0.8}
    """
    images = pixel_scores(masks, probabilities, threshold).assign(image_type=image_types)
    images = pd.concat([images.sort_values("image_type", kind="stable"), images.assign(image_type="all")])
    groups = images.groupby("image_type", sort=False)
    table = _scores_from_counts(groups[COUNTS].sum()).assign(images=groups.size())
    members = [images.index[rows] for rows in map(groups.indices.get, table.index)]
    table["auc"] = [_auc([masks[i] for i in rows], [probabilities[i] for i in rows]) for rows in members]
    table[["mean_dice", "mean_iou"]] = groups[["dice", "iou"]].mean()
    table[["std_dice", "std_iou"]] = groups[["dice", "iou"]].std(ddof=0)
    columns = ["images", "dice", "iou", "accuracy", "precision", "recall", "auc"]
    return table[[*columns, "mean_dice", "mean_iou", "std_dice", "std_iou"]]


def describe_images(label_maps: Arrays, probabilities: Arrays, threshold: float = 0.5) -> pd.DataFrame:
    """Describe each image next to its scores.

    The table helps to find properties that difficult images have in common.

    Parameters
    ----------
    label_maps, probabilities, threshold
        As for `nucleus_recall`.

    Returns
    -------
    pandas.DataFrame
        One row per image: number of `nuclei`; `density`, nuclei per 10,000 pixels; `covered`, the fraction of the
        image that is nucleus; `median_area` of the nuclei in pixels (NaN without nuclei); and the columns of
        `pixel_scores`.

    Examples
    --------
    >>> describe_images([np.diag([1, 2])], [np.eye(2)])[["nuclei", "covered", "median_area"]].to_numpy().tolist()
    [[2.0, 0.5, 1.0]]
    """
    scores = pixel_scores(label_maps, probabilities, threshold)
    pixels = scores[COUNTS].sum(axis=1)
    areas = nucleus_recall(label_maps, probabilities, threshold).groupby("image")["area"]
    nuclei = areas.size().reindex(scores.index, fill_value=0)
    description = {
        "nuclei": nuclei,
        "density": 1e4 * nuclei / pixels,
        "covered": (scores["tp"] + scores["fn"]) / pixels,
        "median_area": areas.median(),
    }
    return pd.DataFrame(description, index=scores.index).join(scores)


def nucleus_recall(label_maps: Arrays, probabilities: Arrays, threshold: float = 0.5) -> pd.DataFrame:
    """Measure which fraction of each nucleus was predicted.

    Parameters
    ----------
    label_maps : sequence of int array (H, W)
        True label maps.
    probabilities, threshold
        As for `pixel_scores`.

    Returns
    -------
    pandas.DataFrame
        One row per nucleus: position of the `image` in the sequence, `label`, `area` in pixels, and `recall`. The
        recall is the fraction of the nucleus that was predicted nucleus, in [0, 1].

    Examples
    --------
    >>> nucleus_recall([[1, 1, 0, 2]], [[0.9, 0.2, 0.8, 0.1]]).to_numpy().tolist()
    [[0.0, 1.0, 2.0, 0.5], [0.0, 2.0, 1.0, 0.0]]
    """
    tables = []
    for image, (label_map, probability) in enumerate(zip(label_maps, probabilities, strict=True)):
        areas = np.bincount(np.ravel(label_map))
        hits = np.bincount(np.ravel(label_map), np.ravel(probability) > threshold)
        table = pd.DataFrame({"image": image, "label": range(len(areas)), "area": areas, "recall": hits})
        tables.append(table[(table["label"] > 0) & (table["area"] > 0)])
    table = pd.concat(tables, ignore_index=True)
    return table.assign(recall=table["recall"] / table["area"])
