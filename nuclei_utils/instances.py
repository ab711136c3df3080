"""From masks to nuclei: separate those that touch, match them to the true ones, and score what was found.

A label map is an integer array `(H, W)`: 0 is background, any other number is one nucleus. Nuclei that this module
separates are numbered 1..N, are each one piece, and have no holes.

Two pixels belong to one piece if they share a side (4-connectivity). Two nuclei that touch at the corner of a pixel
only are far more common than a nucleus that narrows to such a corner.
"""

from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import relabel_sequential, watershed

from nuclei_utils.labels import checked

MASK_THRESHOLD = 0.6
"""Pixels whose probability of nucleus is above it belong to a nucleus."""
RISE = 0.25
"""How far a peak of the predicted distance rises above the saddle to a higher one, to mark a nucleus of its own
(`split_by_distance`)."""
MARKER_THRESHOLD = 0.5
"""Pixels whose probability of nucleus exceeds that of boundary by more mark the middle of a nucleus
(`split_by_boundary`)."""
SMALLEST = 25
"""Area of the smallest nucleus, pixels: what is smaller is taken for dirt."""
FILL_ROUNDS, FILL_STEPS = 32, 8
"""How often `_levelled` looks whether its fill goes on, and the steps between two looks."""

THRESHOLDS = np.arange(50, 100, 5) / 100
"""The IoU that a match must exceed, from lenient to strict, as in the competition: 0.50, 0.55 … 0.95."""


# From a mask to nuclei


def components(mask, smallest=0):
    """Take each connected piece of a mask for one nucleus: the simplest way to count, blind to nuclei that touch.

    Parameters
    ----------
    mask : array (H, W)
        Anything but zero is nucleus.
    smallest : int
        Pieces of fewer pixels are left out.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If the mask has not two axes.
    """
    return _finished(_pieces(_checked(mask) != 0, smallest))


def split_by_shape(mask, rise=1.0, smallest=0):
    """Cut a mask where it is narrow: watershed of the distance to the background.

    Two nuclei that touch have a waist between them. The distance to the background has a peak in each of the two and
    a saddle at the waist; each peak becomes a marker from which one nucleus grows (Vincent and Soille 1991,
    doi:10.1109/34.87344).

    Parameters
    ----------
    mask : array (H, W)
        Anything but zero is nucleus.
    rise : float
        How far a peak must rise above the saddle to a higher one in order to count, pixels above 0. Lower peaks come
        from ragged outlines (h-maxima, Soille 2003, doi:10.1007/978-3-662-05088-0).
    smallest : int
        As for `grow`.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If the mask has not two axes, or `rise` is not above 0.
    """
    mask = _checked(mask) != 0
    # the edge of the image is no background: a nucleus that is cut off goes on outside
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return grow(_peaks(depth, rise), mask, -depth, smallest)


def _peaks(landscape, rise):
    """Mark the peaks that rise by more than this above the saddle to a higher one (h-maxima)."""
    if not rise > 0:
        raise ValueError(f"rise must be above 0, found {rise}")
    return local_maxima(_levelled(landscape, np.float32(rise)), connectivity=1)


def _levelled(landscape, rise):
    """Cut peaks off and fill from there: the grayscale reconstruction of a landscape that is 0 or above.

    The fill spreads by one pixel a step. Nuclei are small, so that this takes far fewer operations than sorting all
    pixels, which `skimage.morphology.reconstruction` does. Large regions are left to that function.
    """
    # a peak that is lower than the rise is not above the background: 0 is the same as any value below
    levelled = np.maximum(landscape - rise, 0)
    for _ in range(FILL_ROUNDS):
        before = levelled
        for _ in range(FILL_STEPS):
            levelled = np.minimum(cv2.dilate(levelled, _CROSS.astype(np.uint8)), landscape)
        if np.array_equal(levelled, before):
            return levelled
    return reconstruction(levelled, landscape, footprint=_CROSS)


# From a network's maps to nuclei


def split_by_boundary(
    mask_probability,
    boundary_probability,
    mask_threshold=MASK_THRESHOLD,
    marker_threshold=MARKER_THRESHOLD,
    smallest=SMALLEST,
):
    """Cut a mask where a network sees a boundary: what is nucleus and not boundary marks the nuclei.

    The idea of the contour-aware networks (Chen et al. 2016, doi:10.1109/CVPR.2016.273), and with a watershed behind
    it that of the best entries to the 2018 Data Science Bowl (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7).

    Parameters
    ----------
    mask_probability, boundary_probability : float array (H, W) in [0, 1]
        How likely each pixel is nucleus, and on a border (`labels.boundary`).
    mask_threshold : float
        Nuclei grow to where the probability of nucleus is above it.
    marker_threshold : float
        Pixels where the probability of nucleus exceeds that of boundary by more than this are markers, -1..1. A
        higher one cuts more.
    smallest : int
        As for `grow`.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If the maps have not the same two axes.
    """
    mask_probability, boundary_probability = _checked(mask_probability, boundary_probability)
    core = mask_probability - boundary_probability > marker_threshold
    return grow(core, mask_probability > mask_threshold, boundary_probability, smallest)


def split_by_distance(mask_probability, distance, mask_threshold=MASK_THRESHOLD, rise=RISE, smallest=SMALLEST):
    """Cut a mask where a network sees a valley between nuclei: its peaks of distance mark the nuclei.

    As `split_by_shape`, but the landscape is learned: the network has seen the image, and knows the nuclei where the
    outline shows no waist (Naylor et al. 2019, doi:10.1109/TMI.2018.2865709).

    Parameters
    ----------
    mask_probability : float array (H, W) in [0, 1]
        How likely each pixel is nucleus.
    distance : float array (H, W) in [0, 1]
        Predicted depth inside the own nucleus, 1 in its middle (`labels.distance`).
    mask_threshold : float
        Nuclei grow to where the probability of nucleus is above it.
    rise : float
        How far a peak of the distance must rise above the saddle to a higher one in order to count, above 0. A lower
        one cuts more.
    smallest : int
        As for `grow`.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If the maps have not the same two axes, or `rise` is not above 0.
    """
    mask_probability, distance = _checked(mask_probability, distance)
    mask = mask_probability > mask_threshold
    landscape = np.where(mask, distance, 0).astype(np.float32)
    return grow(_peaks(landscape, rise), mask, -landscape, smallest)


def separate(maps, mask_threshold=MASK_THRESHOLD, rise=RISE, smallest=SMALLEST):
    """Separate nuclei by the best that a network's maps allow: by its distance, or else by the shape of its mask.

    Parameters
    ----------
    maps : dict of str to float array (H, W) in [0, 1]
        What `predict.maps` gives: "mask", and "distance" if the network has learned it.
    mask_threshold : float
        Nuclei grow to where the probability of nucleus is above it.
    rise : float
        As for `split_by_distance`; without "distance" there is nothing to which it applies.
    smallest : int
        As for `grow`.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If there is no "mask", or the maps have not the same two axes.
    """
    if "mask" not in maps:
        raise ValueError(f'found the maps {sorted(maps)}, expected "mask" among them')
    if "distance" in maps:
        return split_by_distance(maps["mask"], maps["distance"], mask_threshold, rise, smallest)
    return split_by_shape(_checked(maps["mask"]) > mask_threshold, smallest=smallest)


def grow(markers, mask, relief, smallest=0):
    """Grow markers into nuclei until they meet or reach the edge of the mask: the watershed with markers.

    The relief is flooded from the markers; where two floods meet, there is the border (Meyer and Beucher 1990,
    doi:10.1016/1047-3203(90)90014-M). A piece of the mask without a marker is one nucleus by itself.

    Parameters
    ----------
    markers : array (H, W)
        Anything but zero is marker; each connected piece of them within the mask becomes one nucleus.
    mask : array (H, W)
        Anything but zero is nucleus.
    relief : float array (H, W)
        Low in the middle of nuclei, high between them.
    smallest : int
        Pieces of the mask of fewer pixels are left out. A nucleus of fewer pixels next to a larger one is no nucleus
        of its own: its marker is dropped, and the neighbours grow into its place.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If the arrays have not the same two axes.
    """
    markers, mask, relief = _checked(markers, mask, relief)
    pieces = _pieces(mask != 0, smallest)
    seeds = _cover(_pieces((markers != 0) & (pieces > 0)), pieces)
    grown = watershed(relief, seeds, mask=pieces > 0, connectivity=1)
    small = np.bincount(grown.ravel()) < smallest
    small[0] = False
    if small.any():
        affected = np.zeros(pieces.max() + 1, bool)
        affected[pieces[small[grown]]] = True
        affected = affected[pieces]
        seeds = _cover(np.where(small[seeds], 0, seeds), pieces)
        grown[affected] = watershed(relief, seeds, mask=affected, connectivity=1)[affected]
    return _finished(grown)


_CROSS = ndimage.generate_binary_structure(2, 1)
_SQUARE = ndimage.generate_binary_structure(2, 2)


def _checked(*maps):
    """Return the maps as arrays (a single one by itself) after a look at their shapes."""
    maps = [np.asarray(one) for one in maps]
    if maps[0].ndim != 2 or len({one.shape for one in maps}) > 1:
        raise ValueError(f"maps must all have one shape (H, W), found {[one.shape for one in maps]}")
    return maps[0] if len(maps) == 1 else maps


def _pieces(mask, smallest=0):
    """Give each connected piece of a mask its number; those of fewer pixels than `smallest` are left out."""
    pieces = ndimage.label(mask, _CROSS)[0]
    pieces[np.bincount(pieces.ravel())[pieces] < smallest] = 0
    return pieces


def _cover(seeds, pieces):
    """Add each piece that holds no seed as a seed of its own."""
    bare = np.ones(pieces.max() + 1, bool)
    bare[pieces[seeds > 0]] = False
    bare[0] = False
    return np.where(bare[pieces], pieces + seeds.max(), seeds)


def _finished(labels):
    """Fill the holes of each nucleus, and number the nuclei 1..N.

    A hole is background that one nucleus alone encloses; a gap between several nuclei stays open.
    """
    gaps = ndimage.label(labels == 0, _SQUARE)[0]
    outside = np.unique(np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]]))
    enclosed = np.ones(gaps.max() + 1, bool)
    enclosed[outside] = False
    enclosed[0] = False
    y, x = np.nonzero(enclosed[gaps])  # none of them at the edge of the image: all have eight neighbours
    own = gaps[y, x]
    lowest, highest = np.full(len(enclosed), np.iinfo(np.int32).max), np.zeros(len(enclosed), np.int32)
    for down, right in np.argwhere(_SQUARE) - 1:
        around = labels[y + down, x + right]
        nucleus = around > 0
        np.minimum.at(lowest, own[nucleus], around[nucleus])
        np.maximum.at(highest, own[nucleus], around[nucleus])
    filled = labels.copy()
    filled[y, x] = np.where(lowest == highest, highest, 0)[own]
    return relabel_sequential(filled)[0].astype(np.int32)


# Which nucleus is which?


class Overlaps(NamedTuple):
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
        return Overlaps(*true, self.columns, self.rows, self.pixels)


def overlaps(true_labels, predicted_labels):
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
    true_labels, predicted_labels = checked(true_labels), checked(predicted_labels)
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
    return Overlaps(
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
    shared = overlaps(true_labels, predicted_labels)
    matrix = np.zeros((len(shared.true), len(shared.predicted)))
    matrix[shared.rows, shared.columns] = shared.ious
    return matrix


class Match(NamedTuple):
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


def match(true_labels, predicted_labels, threshold=0.5):
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
    shared = overlaps(true_labels, predicted_labels)
    ious = shared.ious
    chosen = _chosen(shared, ious, threshold)
    pairs = np.stack([shared.true[shared.rows[chosen]], shared.predicted[shared.columns[chosen]]], axis=1)
    found = len(chosen)
    return Match(found, len(shared.predicted) - found, len(shared.true) - found, pairs, ious[chosen])


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


# Merged and split nuclei


def merges(true_labels, predicted_labels):
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
    shared = overlaps(true_labels, predicted_labels)
    return shared.predicted[_merging(shared)]


def splits(true_labels, predicted_labels):
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
    return merges(predicted_labels, true_labels)


def _merging(shared):
    held = 2 * shared.pixels > shared.true_areas[shared.rows]
    return np.bincount(shared.columns[held], minlength=len(shared.predicted)) > 1


# Scores of many images


def average_precision(true, predicted, thresholds=THRESHOLDS):
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
        tp = _tally(shared, THRESHOLDS)[0]
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


def kaggle_score(true, predicted):
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
    return (overlaps(*pair) for pair in zip(true, predicted, strict=True))


def _tally(shared, thresholds):
    """Return for each threshold how many pairs match, and the sum of their IoU."""
    ious = shared.ious
    matched = [ious[_chosen(shared, ious, threshold)] for threshold in thresholds]
    return np.array([len(one) for one in matched], np.int64), np.array([one.sum() for one in matched])


def _share(part, whole, elsewhere=0):
    """Divide; of nothing all is right, unless there is something `elsewhere`."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.where(elsewhere == 0, 1.0, 0.0))
