"""Match predicted nuclei to true nuclei by IoU, and score label maps over IoU thresholds.

All functions take label maps, int arrays (H, W), or sequences with the label map of each image. The labels may have
gaps, and equal labels in two maps need not be the same nucleus. An array that is not a label map raises a
`ValueError`, and so do pairs of unequal shape.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from nuclei_utils.labels import check_label_map

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100  # 0.50, 0.55, ..., 0.95, as in the 2018 Data Science Bowl


class LabelOverlap(NamedTuple):
    """Areas and shared pixels of the nuclei of two label maps.

    Attributes
    ----------
    true, predicted : int array (N,), (M,)
        Labels, ascending.
    true_areas, predicted_areas : int64 array (N,), (M,)
        Pixels of each nucleus.
    rows, columns : int array (K,)
        Indices into `true` and `predicted` of each pair that overlaps.
    pixels : int64 array (K,)
        Pixels that each pair shares, at least 1.
    """

    true: np.ndarray
    predicted: np.ndarray
    true_areas: np.ndarray
    predicted_areas: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    pixels: np.ndarray

    @property
    def ious(self) -> np.ndarray:
        """Return the intersection over union of each pair.

        The values are float64 (K,) in (0, 1].
        """
        return self.pixels / (self.true_areas[self.rows] + self.predicted_areas[self.columns] - self.pixels)

    @property
    def merges(self) -> np.ndarray:
        """Return the labels of predicted nuclei that merge true nuclei.

        Each of these nuclei holds more than half of two or more true nuclei.
        """
        held = self.columns[2 * self.pixels > self.true_areas[self.rows]]
        return self.predicted[np.bincount(held, minlength=len(self.predicted)) > 1]

    @property
    def splits(self) -> np.ndarray:
        """Return the labels of true nuclei that are split.

        Each of these nuclei holds more than half of two or more predicted nuclei.
        """
        held = self.rows[2 * self.pixels > self.predicted_areas[self.columns]]
        return self.true[np.bincount(held, minlength=len(self.true)) > 1]


def label_overlap(true_label_map: np.ndarray, predicted_label_map: np.ndarray) -> LabelOverlap:
    """Count the pixels that true and predicted nuclei share.

    Examples
    --------
    >>> overlap = label_overlap([[0, 1, 1, 1, 2]], [[0, 0, 5, 5, 5]])
    >>> overlap.true[overlap.rows], overlap.predicted[overlap.columns], overlap.pixels
    (array([1, 2]), array([5, 5]), array([2, 1]))
    """
    true_label_map, predicted_label_map = check_label_map(true_label_map), check_label_map(predicted_label_map)
    if true_label_map.shape != predicted_label_map.shape:
        shapes = f"{true_label_map.shape} and {predicted_label_map.shape}"
        raise ValueError(f"label maps must show the same image, found the shapes {shapes}")
    true_label_map, predicted_label_map = true_label_map.ravel(), predicted_label_map.ravel()
    # Count runs of equal pairs of labels. `skimage.metrics.contingency_table` counts pixels, in four times the memory.
    is_start = np.ones(true_label_map.size, bool)
    is_start[1:] = (np.diff(true_label_map) != 0) | (np.diff(predicted_label_map) != 0)
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=true_label_map.size)
    rows, true = pd.factorize(true_label_map[starts], sort=True)
    columns, predicted = pd.factorize(predicted_label_map[starts], sort=True)
    table = sparse.coo_array((lengths, (rows, columns)), shape=(len(true), len(predicted))).tocsr()
    true_areas, predicted_areas = table.sum(axis=1), table.sum(axis=0)
    is_true, is_predicted = true > 0, predicted > 0
    nuclei = table[is_true][:, is_predicted].tocoo()
    return LabelOverlap(
        true[is_true],
        predicted[is_predicted],
        true_areas[is_true],
        predicted_areas[is_predicted],
        nuclei.row,
        nuclei.col,
        nuclei.data,
    )


def iou_matrix(true_label_map: np.ndarray, predicted_label_map: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of each true with each predicted nucleus.

    Rows of the float64 array (N, M) are true nuclei, columns are predicted nuclei, both in the order of their labels.
    For many nuclei, `label_overlap` holds the same values in far less memory.

    Examples
    --------
    >>> iou_matrix([[0, 1, 1, 2, 2]], [[0, 5, 5, 5, 5]])
    array([[0.5],
           [0.5]])
    """
    overlap = label_overlap(true_label_map, predicted_label_map)
    matrix = np.zeros((len(overlap.true), len(overlap.predicted)))
    matrix[overlap.rows, overlap.columns] = overlap.ious
    return matrix


class Matching(NamedTuple):
    """Pairs of true and predicted nuclei that match, and their numbers.

    Attributes
    ----------
    tp, fp, fn : int
        Matched pairs, predicted nuclei without a match, true nuclei without a match.
    pairs : int array (tp, 2)
        True and predicted label of each pair, in the order of the true labels.
    ious : float64 array (tp,)
        Intersection over union of each pair.
    """

    tp: int
    fp: int
    fn: int
    pairs: np.ndarray
    ious: np.ndarray


def matching(true_label_map: np.ndarray, predicted_label_map: np.ndarray, threshold: float = 0.5) -> Matching:
    """Match predicted nuclei to true nuclei by their intersection over union (IoU).

    Each nucleus is in at most one pair. At `threshold >= 0.5` the matching is unique. Below 0.5, the matching has as
    many pairs as possible, and the largest sum of IoU among the matchings with that many pairs.

    Parameters
    ----------
    true_label_map, predicted_label_map : int array (H, W)
    threshold : float
        `0 <= threshold < 1`. A pair matches if its IoU is above the threshold, as in the 2018 Data Science Bowl.

    Examples
    --------
    >>> result = matching([[1, 1, 1, 0, 2]], [[5, 5, 0, 6, 0]])
    >>> result.tp, result.fp, result.fn, result.pairs.tolist()
    (1, 1, 1, [[1, 5]])
    """
    overlap = label_overlap(true_label_map, predicted_label_map)
    indices = _matched(overlap, threshold)
    pairs = np.stack([overlap.true[overlap.rows[indices]], overlap.predicted[overlap.columns[indices]]], axis=1)
    tp = len(indices)
    return Matching(tp, len(overlap.predicted) - tp, len(overlap.true) - tp, pairs, overlap.ious[indices])


def _matched(overlap: LabelOverlap, threshold: float) -> np.ndarray:
    """Return the indices of the overlapping pairs that match."""
    if not 0 <= threshold < 1:
        raise ValueError(f"the IoU threshold must be 0 or above and below 1, found {threshold}")
    ious = overlap.ious
    candidates = np.flatnonzero(ious > threshold)
    if threshold >= 0.5 or not len(candidates):
        return candidates
    rows, columns = overlap.rows[candidates], overlap.columns[candidates]
    # Each true nucleus may match a dummy of weight 1 instead. A pair weighs 2, and all IoU together add less than 1.
    count, dummies = len(overlap.true), np.arange(len(overlap.true))
    weights = np.concatenate([2 + ious[candidates] / (count + 1), np.ones(count)])
    starts, ends = np.concatenate([rows, dummies]), np.concatenate([columns, len(overlap.predicted) + dummies])
    edges = starts.astype(np.int32), ends.astype(np.int32)  # SciPy 1.13 accepts no other type
    graph = sparse.csr_array((weights, edges), shape=(count, len(overlap.predicted) + count))
    partners = sparse.csgraph.min_weight_full_bipartite_matching(graph, maximize=True)[1]
    return candidates[partners[rows] == columns]


def find_merges(true_label_map: np.ndarray, predicted_label_map: np.ndarray) -> np.ndarray:
    """Find the predicted nuclei that merge several true nuclei.

    Each of these nuclei holds more than half of two or more true nuclei. Their labels are an int array (K,), ascending.

    Examples
    --------
    >>> find_merges([[1, 1, 2, 2]], [[5, 5, 5, 5]]).tolist()
    [5]
    """
    return label_overlap(true_label_map, predicted_label_map).merges


def find_splits(true_label_map: np.ndarray, predicted_label_map: np.ndarray) -> np.ndarray:
    """Find the true nuclei that are split into several predicted nuclei.

    Each of these nuclei holds more than half of two or more predicted nuclei. The labels are an int array (K,),
    ascending.

    Examples
    --------
    >>> find_splits([[5, 5, 5, 5]], [[1, 1, 2, 2]]).tolist()
    [5]
    """
    return label_overlap(true_label_map, predicted_label_map).splits


def average_precision(
    true_label_maps: Sequence[np.ndarray],
    predicted_label_maps: Sequence[np.ndarray],
    thresholds: Sequence[float] = IOU_THRESHOLDS,
) -> pd.DataFrame:
    """Score the nuclei of all images together, for each IoU threshold.

    Each nucleus counts the same, as in StarDist. Average precision is TP / (TP + FP + FN) here, not the area under a
    curve (Schmidt et al. 2018, doi:10.1007/978-3-030-00934-2_30).

    Parameters
    ----------
    true_label_maps, predicted_label_maps : sequence of int array (H, W)
    thresholds : sequence of float
        `0 <= threshold < 1`. A pair matches if its IoU is above the threshold.

    Returns
    -------
    pandas.DataFrame
        One row per threshold (index `threshold`). The columns are `tp`, `fp` and `fn`; `precision`, `recall`, `f1` and
        `ap`, which are 1 if there is no nucleus to find and none is predicted; `matched_iou`, the mean IoU of the pairs
        (nan without pairs); `panoptic_quality`, `f1` times `matched_iou` (Kirillov et al. 2019,
        doi:10.1109/CVPR.2019.00963).

    Examples
    --------
    >>> table = average_precision([[[1, 1, 1, 0, 2]]], [[[5, 5, 0, 6, 0]]], [0.5])
    >>> table.loc[0.5, ["tp", "fp", "fn", "f1"]].tolist()
    [1.0, 1.0, 1.0, 0.5]
    """
    tp, total_iou = np.zeros(len(thresholds), np.int64), np.zeros(len(thresholds))
    n_true = n_predicted = 0
    for overlap in _overlaps(true_label_maps, predicted_label_maps):
        matched = [overlap.ious[_matched(overlap, threshold)] for threshold in thresholds]
        tp += [len(ious) for ious in matched]
        total_iou += [ious.sum() for ious in matched]
        n_true += len(overlap.true)
        n_predicted += len(overlap.predicted)
    fp, fn = n_predicted - tp, n_true - tp
    return pd.DataFrame(
        {
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "precision": _ratio(tp, tp + fp, fn),
            "recall": _ratio(tp, tp + fn, fp),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "ap": _ratio(tp, tp + fp + fn),
            "matched_iou": np.divide(total_iou, tp, out=np.full(len(tp), np.nan), where=tp > 0),
            "panoptic_quality": _ratio(2 * total_iou, 2 * tp + fp + fn),
        },
        index=pd.Index(np.asarray(thresholds, float), name="threshold"),
    )


def _overlaps(true: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> Iterator[LabelOverlap]:
    """Count the overlaps image by image."""
    if len(true) != len(predicted):
        raise ValueError(f"found {len(true)} true and {len(predicted)} predicted label maps, expected pairs")
    return map(label_overlap, true, predicted)


def _ratio(numerator, denominator, errors=0) -> np.ndarray:
    """Divide; 0 / 0 is 1, or 0 if there are errors elsewhere."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.where(errors == 0, 1.0, 0.0))


def image_scores(true_label_maps: Sequence[np.ndarray], predicted_label_maps: Sequence[np.ndarray]) -> pd.DataFrame:
    """Score each image, and count its nuclei and errors.

    Returns
    -------
    pandas.DataFrame
        One row per image. The columns are `score`, the mean of TP / (TP + FP + FN) over `IOU_THRESHOLDS` (1 if both
        label maps are empty); `true` and `predicted`, the numbers of nuclei; `tp`, `fp` and `fn` at IoU 0.5; `merges`
        and `splits`, the numbers that `find_merges` and `find_splits` find.

    Examples
    --------
    >>> image_scores([[[1, 1, 2, 2]]], [[[5, 5, 5, 5]]])[["score", "fp", "fn", "merges"]].iloc[0].tolist()
    [0.0, 1.0, 2.0, 1.0]
    """
    rows = []
    for overlap in _overlaps(true_label_maps, predicted_label_maps):
        n_true, n_predicted = len(overlap.true), len(overlap.predicted)
        tp = np.array([len(_matched(overlap, threshold)) for threshold in IOU_THRESHOLDS])
        score = float(_ratio(tp, n_true + n_predicted - tp).mean())
        errors = n_predicted - int(tp[0]), n_true - int(tp[0]), len(overlap.merges), len(overlap.splits)
        rows.append((score, n_true, n_predicted, int(tp[0]), *errors))
    return pd.DataFrame(rows, columns=["score", "true", "predicted", "tp", "fp", "fn", "merges", "splits"])


def dsb2018_score(true_label_maps: Sequence[np.ndarray], predicted_label_maps: Sequence[np.ndarray]) -> float:
    """Compute the score of the 2018 Data Science Bowl.

    The score is the mean of `image_scores`, in [0, 1]. Each image counts the same, whatever the number of its nuclei
    (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7). Without images, there is no score but a `ValueError`.

    Examples
    --------
    >>> dsb2018_score([[[1, 1, 1, 1]]], [[[5, 5, 5, 0]]])
    0.5
    """
    scores = image_scores(true_label_maps, predicted_label_maps)["score"]
    if scores.empty:
        raise ValueError("found no image, expected at least one")
    return float(scores.mean())
