"""Match predicted nuclei to true nuclei, and score them."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from nuclei_utils import labels

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100
"""The IoU that a match must exceed, from lenient to strict, as in the competition: 0.50, 0.55 … 0.95."""


class LabelOverlap(NamedTuple):
    """How many pixels the nuclei of two label maps share; only pairs that share any are listed.

    Attributes
    ----------
    true, predicted : int array (N,), (M,)
        The labels that occur, ascending.
    true_areas, predicted_areas : int64 array (N,), (M,)
        Their pixels.
    rows, columns : int64 array (K,)
        For each pair that overlaps the positions (not the labels) of the two in `true` and `predicted`.
    pixels : int64 array (K,)
        The pixels that they share, 1 or more.
    """

    true: np.ndarray
    predicted: np.ndarray
    true_areas: np.ndarray
    predicted_areas: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    pixels: np.ndarray

    @property
    def ious(self):
        """Intersection over union of each pair, float64 array (K,) in (0, 1]."""
        return self.pixels / (self.true_areas[self.rows] + self.predicted_areas[self.columns] - self.pixels)

    @property
    def swapped(self):
        """The same overlaps with true and predicted nuclei exchanged: what is split on one side is merged there."""
        true = self.predicted, self.true, self.predicted_areas, self.true_areas
        return LabelOverlap(*true, self.columns, self.rows, self.pixels)


def label_overlap(true_labels, predicted_labels):
    """Count the pixels that true and predicted nuclei share, in one pass for all pairs.

    Parameters
    ----------
    true_labels, predicted_labels : int array (H, W)
        Label maps. The numbers may have gaps.

    Returns
    -------
    Overlaps

    Raises
    ------
    ValueError
        If these are no label maps, or their shapes differ.
    """
    true_labels, predicted_labels = labels.check_label_map(true_labels), labels.check_label_map(predicted_labels)
    if true_labels.shape != predicted_labels.shape:
        raise ValueError(
            f"label maps must show the same image, found the shapes {true_labels.shape} and {predicted_labels.shape}"
        )
    true_labels, predicted_labels = true_labels.ravel(), predicted_labels.ravel()
    # Along a row the same two labels come many times in a row: each run counts at once, which is what makes it quick.
    new = np.ones(true_labels.size, bool)
    new[1:] = (true_labels[1:] != true_labels[:-1]) | (predicted_labels[1:] != predicted_labels[:-1])
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=true_labels.size)
    true, rows = np.unique(true_labels[starts], return_inverse=True)
    predicted, columns = np.unique(predicted_labels[starts], return_inverse=True)
    pairs, runs = np.unique(rows * len(predicted) + columns, return_inverse=True)
    pixels = _sums(lengths, runs, len(pairs))
    true_areas, predicted_areas = _sums(lengths, rows, len(true)), _sums(lengths, columns, len(predicted))
    rows, columns = np.divmod(pairs, max(len(predicted), 1))
    # the background comes first where there is any
    first_true, first_predicted = np.searchsorted(true, 1), np.searchsorted(predicted, 1)
    kept = (rows >= first_true) & (columns >= first_predicted)
    return LabelOverlap(
        true[first_true:],
        predicted[first_predicted:],
        true_areas[first_true:],
        predicted_areas[first_predicted:],
        rows[kept] - first_true,
        columns[kept] - first_predicted,
        pixels[kept],
    )


def _sums(values, groups, count):
    return np.bincount(groups, values, count).astype(np.int64)  # exact in float64 up to 2**53 pixels


def iou_matrix(true_labels, predicted_labels):
    """Compute the intersection over union of every true nucleus with every predicted one.

    Easy to look at; for many nuclei `overlaps` says the same in far less memory.

    Parameters
    ----------
    true_labels, predicted_labels : int array (H, W)
        Label maps.

    Returns
    -------
    float64 array (N, M) in [0, 1]
        Row by row the true nuclei, column by column the predicted ones, in the order of the labels that occur.

    Raises
    ------
    ValueError
        As for `overlaps`.
    """
    shared = label_overlap(true_labels, predicted_labels)
    matrix = np.zeros((len(shared.true), len(shared.predicted)))
    matrix[shared.rows, shared.columns] = shared.ious
    return matrix


class Matching(NamedTuple):
    """Which predicted nuclei are true ones.

    Attributes
    ----------
    tp, fp, fn : int
        Nuclei found, nuclei predicted where there is none, and nuclei missed.
    pairs : int array (tp, 2)
        Labels of each true nucleus that was found and of the predicted one that found it, in the order of the first.
    ious : float64 array (tp,)
        Intersection over union of each pair.
    """

    tp: int
    fp: int
    fn: int
    pairs: np.ndarray
    ious: np.ndarray


def matching(true_labels, predicted_labels, threshold=0.5):
    """Match predicted nuclei to true ones: a pair matches if its intersection over union exceeds the threshold.

    Each nucleus is in one pair at most. From a threshold of 0.5 on it cannot be otherwise, since two that both cover
    more than half of a nucleus would overlap each other. Below, the pairs are chosen so that as many match as
    possible, and among such choices those of the largest total IoU.

    Parameters
    ----------
    true_labels, predicted_labels : int array (H, W)
        Label maps. The numbers may have gaps, and those of one map say nothing about those of the other.
    threshold : float
        0 <= threshold < 1. The IoU must be above it, as in the competition; in StarDist it may also be equal.

    Returns
    -------
    Match

    Raises
    ------
    ValueError
        As for `overlaps`, or if the threshold is none.
    """
    _check_thresholds([threshold])
    shared = label_overlap(true_labels, predicted_labels)
    ious = shared.ious
    chosen = _chosen(shared, ious, threshold)
    pairs = np.stack([shared.true[shared.rows[chosen]], shared.predicted[shared.columns[chosen]]], axis=1)
    found = len(chosen)
    return Matching(found, len(shared.predicted) - found, len(shared.true) - found, pairs, ious[chosen])


def _check_thresholds(thresholds):
    for threshold in thresholds:
        if not 0 <= threshold < 1:
            raise ValueError(f"the IoU threshold must be 0 or above and below 1, found {threshold}")


def _chosen(shared, ious, threshold):
    """Return which of the overlapping pairs match."""
    possible = np.flatnonzero(ious > threshold)
    if threshold >= 0.5 or not len(possible):
        return possible
    # Only nuclei that overlap, directly or through others, compete: each such group is a small problem by itself.
    count = len(shared.true)
    rows, columns = shared.rows[possible], shared.columns[possible]
    nodes = count + len(shared.predicted)
    graph = sparse.coo_array((np.ones(len(rows)), (rows, count + columns)), shape=(nodes, nodes))
    group = sparse.csgraph.connected_components(graph, directed=False)[1][rows]
    order = np.argsort(group, kind="stable")
    chosen = []
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(members) == 1:
            chosen.append(members)
            continue
        row_names, row = np.unique(rows[members], return_inverse=True)
        column_names, column = np.unique(columns[members], return_inverse=True)
        gain = np.zeros((len(row_names), len(column_names)))
        # one more pair outweighs whatever the IoU of all of them can add
        gain[row, column] = 1 + ious[possible[members]] / (min(gain.shape) + 1)
        best = np.zeros(gain.shape, bool)
        best[linear_sum_assignment(gain, maximize=True)] = True
        chosen.append(members[best[row, column]])
    return possible[np.sort(np.concatenate(chosen))]


def find_merges(true_labels, predicted_labels):
    """Find the predicted nuclei that are several true ones: each holds more than half of two or more of them.

    Parameters
    ----------
    true_labels, predicted_labels : int array (H, W)
        Label maps.

    Returns
    -------
    int array (K,)
        Labels in `predicted_labels`, ascending.

    Raises
    ------
    ValueError
        As for `overlaps`.
    """
    shared = label_overlap(true_labels, predicted_labels)
    return shared.predicted[_merging(shared)]


def find_splits(true_labels, predicted_labels):
    """Find the true nuclei that were cut up: each holds more than half of two or more predicted ones.

    Parameters
    ----------
    true_labels, predicted_labels : int array (H, W)
        Label maps.

    Returns
    -------
    int array (K,)
        Labels in `true_labels`, ascending.

    Raises
    ------
    ValueError
        As for `overlaps`.
    """
    return find_merges(predicted_labels, true_labels)


def _merging(shared):
    held = 2 * shared.pixels > shared.true_areas[shared.rows]
    return np.bincount(shared.columns[held], minlength=len(shared.predicted)) > 1


def average_precision(true, predicted, thresholds=IOU_THRESHOLDS):
    """Score what was found over all nuclei of all images, for each IoU threshold, as StarDist does.

    Every nucleus counts the same, so that images with many of them weigh more. What the field calls average precision
    is TP / (TP + FP + FN) here (Schmidt et al. 2018, doi:10.1007/978-3-030-00934-2_30), not the area under a curve.

    Parameters
    ----------
    true, predicted : sequence of int array (H, W)
        Label maps, one pair per image.
    thresholds : sequence of float
        IoU that a match must exceed, 0 <= threshold < 1.

    Returns
    -------
    pandas.DataFrame
        One row per threshold (index `threshold`): nuclei found `tp`, predicted where there is none `fp`, missed `fn`;
        `precision`, `recall`, `f1`, `ap`, all 1 where there is nothing to find and nothing was found; `matched_iou`,
        the mean over the pairs (nan without any); `panoptic_quality`, `f1` times `matched_iou` (Kirillov et al. 2019,
        doi:10.1109/CVPR.2019.00963).

    Raises
    ------
    ValueError
        As for `overlaps`; if the numbers of images differ, or a threshold is none.
    """
    _check_thresholds(thresholds)
    tp, total = np.zeros(len(thresholds), np.int64), np.zeros(len(thresholds))
    n_true = n_predicted = 0
    for shared in _each(true, predicted):
        found, ious = _tally(shared, thresholds)
        tp += found
        total += ious
        n_true += len(shared.true)
        n_predicted += len(shared.predicted)
    fp, fn = n_predicted - tp, n_true - tp
    return pd.DataFrame(
        {
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "precision": _share(tp, tp + fp, fn),
            "recall": _share(tp, tp + fn, fp),
            "f1": _share(2 * tp, 2 * tp + fp + fn),
            "ap": _share(tp, tp + fp + fn),
            "matched_iou": np.divide(total, tp, out=np.full(len(tp), np.nan), where=tp > 0),
            "panoptic_quality": _share(2 * total, 2 * tp + fp + fn),
        },
        index=pd.Index(np.asarray(thresholds, float), name="threshold"),
    )


def image_scores(true, predicted):
    """Score each image by itself, as the competition does, and count its nuclei and the commonest mistakes.

    Parameters
    ----------
    true, predicted : sequence of int array (H, W)
        Label maps, one pair per image.

    Returns
    -------
    pandas.DataFrame
        One row per image: `score`, the mean of TP / (TP + FP + FN) over `THRESHOLDS` (1 if there is nothing to find and
        nothing was found, 0 if only one of both); the numbers of nuclei `true` and `predicted`; `tp`, `fp`, `fn` at IoU
        0.5; how many predicted nuclei are `merges` and how many true ones have `splits`.

    Raises
    ------
    ValueError
        As for `overlaps`, or if the numbers of images differ.
    """
    rows = []
    for shared in _each(true, predicted):
        n_true, n_predicted = len(shared.true), len(shared.predicted)
        tp = _tally(shared, IOU_THRESHOLDS)[0]
        rows.append(
            {
                "score": float(_share(tp, n_true + n_predicted - tp).mean()),
                "true": n_true,
                "predicted": n_predicted,
                "tp": int(tp[0]),
                "fp": n_predicted - int(tp[0]),
                "fn": n_true - int(tp[0]),
                "merges": int(_merging(shared).sum()),
                "splits": int(_merging(shared.swapped).sum()),
            }
        )
    return pd.DataFrame(rows, columns=["score", "true", "predicted", "tp", "fp", "fn", "merges", "splits"])


def dsb2018_score(true, predicted):
    """Score as the competition did: TP / (TP + FP + FN), averaged over `THRESHOLDS` and then over images.

    Every image counts the same, however many nuclei it has (2018 Data Science Bowl, Caicedo et al. 2019,
    doi:10.1038/s41592-019-0612-7).

    Parameters
    ----------
    true, predicted : sequence of int array (H, W)
        Label maps, one pair per image, at least one.

    Returns
    -------
    float
        0..1.

    Raises
    ------
    ValueError
        As for `overlaps`; if there is no image, or the numbers of images differ.
    """
    scores = image_scores(true, predicted)["score"]
    if scores.empty:
        raise ValueError("there is no image to average over")
    return float(scores.mean())


def _each(true, predicted):
    """Count the overlaps image by image."""
    if len(true) != len(predicted):
        raise ValueError(f"found {len(true)} true and {len(predicted)} predicted label maps, expected pairs")
    return (label_overlap(*pair) for pair in zip(true, predicted, strict=True))


def _tally(shared, thresholds):
    """Return for each threshold how many pairs match, and the sum of their IoU."""
    ious = shared.ious
    matched = [ious[_chosen(shared, ious, threshold)] for threshold in thresholds]
    return np.array([len(one) for one in matched], np.int64), np.array([one.sum() for one in matched])


def _share(part, whole, elsewhere=0):
    """Divide; of nothing all is right, unless there is something `elsewhere`."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.where(elsewhere == 0, 1.0, 0.0))
