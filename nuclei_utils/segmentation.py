"""Turn masks and probability maps into label maps: connected components and watersheds."""

import cv2
import numpy as np
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import relabel_sequential, watershed

PROB_THRESH = 0.6
"""Pixels whose probability of nucleus is above it belong to a nucleus."""


MIN_PROMINENCE = 0.25
"""How far a peak of the predicted distance rises above the saddle to a higher one, to mark a nucleus of its own
(`split_by_distance`)."""


MARKER_THRESH = 0.5
"""Pixels whose probability of nucleus exceeds that of boundary by more mark the middle of a nucleus
(`split_by_boundary`)."""


MIN_SIZE = 25
"""Area of the min_size nucleus, pixels: what is smaller is taken for dirt."""


FILL_ROUNDS, FILL_STEPS = 32, 8
"""How often `_levelled` looks whether its fill goes on, and the steps between two looks."""


def components(mask, min_size=0):
    """Take each connected piece of a mask for one nucleus: the simplest way to count, blind to nuclei that touch.

    Parameters
    ----------
    mask : array (H, W)
        Anything but zero is nucleus.
    min_size : int
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
    return _finished(_pieces(_checked(mask) != 0, min_size))


def watershed_from_mask(mask, min_prominence=1.0, min_size=0):
    """Cut a mask where it is narrow: watershed of the distance to the background.

    Two nuclei that touch have a waist between them. The distance to the background has a peak in each of the two and
    a saddle at the waist; each peak becomes a marker from which one nucleus grows (Vincent and Soille 1991,
    doi:10.1109/34.87344).

    Parameters
    ----------
    mask : array (H, W)
        Anything but zero is nucleus.
    min_prominence : float
        How far a peak must min_prominence above the saddle to a higher one in order to count, pixels above 0. Lower peaks come
        from ragged outlines (h-maxima, Soille 2003, doi:10.1007/978-3-662-05088-0).
    min_size : int
        As for `grow`.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If the mask has not two axes, or `min_prominence` is not above 0.
    """
    mask = _checked(mask) != 0
    # the edge of the image is no background: a nucleus that is cut off goes on outside
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return watershed_from_markers(_peaks(depth, min_prominence), mask, -depth, min_size)


def _peaks(landscape, min_prominence):
    """Mark the peaks that min_prominence by more than this above the saddle to a higher one (h-maxima)."""
    if not min_prominence > 0:
        raise ValueError(f"min_prominence must be above 0, found {min_prominence}")
    return local_maxima(_levelled(landscape, np.float32(min_prominence)), connectivity=1)


def _levelled(landscape, min_prominence):
    """Cut peaks off and fill from there: the grayscale reconstruction of a landscape that is 0 or above.

    The fill spreads by one pixel a step. Nuclei are small, so that this takes far fewer operations than sorting all
    pixels, which `skimage.morphology.reconstruction` does. Large regions are left to that function.
    """
    # a peak that is lower than the min_prominence is not above the background: 0 is the same as any value below
    levelled = np.maximum(landscape - min_prominence, 0)
    for _ in range(FILL_ROUNDS):
        before = levelled
        for _ in range(FILL_STEPS):
            levelled = np.minimum(cv2.dilate(levelled, _CROSS.astype(np.uint8)), landscape)
        if np.array_equal(levelled, before):
            return levelled
    return reconstruction(levelled, landscape, footprint=_CROSS)


def watershed_from_boundary(
    mask_probability,
    boundary_probability,
    prob_thresh=PROB_THRESH,
    marker_thresh=MARKER_THRESH,
    min_size=MIN_SIZE,
):
    """Cut a mask where a network sees a boundary: what is nucleus and not boundary marks the nuclei.

    The idea of the contour-aware networks (Chen et al. 2016, doi:10.1109/CVPR.2016.273), and with a watershed behind
    it that of the best entries to the 2018 Data Science Bowl (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7).

    Parameters
    ----------
    mask_probability, boundary_probability : float array (H, W) in [0, 1]
        How likely each pixel is nucleus, and on a border (`labels.boundary_map`).
    prob_thresh : float
        Nuclei grow to where the probability of nucleus is above it.
    marker_thresh : float
        Pixels where the probability of nucleus exceeds that of boundary by more than this are markers, -1..1. A
        higher one cuts more.
    min_size : int
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
    core = mask_probability - boundary_probability > marker_thresh
    return watershed_from_markers(core, mask_probability > prob_thresh, boundary_probability, min_size)


def watershed_from_distance(
    mask_probability, distance, prob_thresh=PROB_THRESH, min_prominence=MIN_PROMINENCE, min_size=MIN_SIZE
):
    """Cut a mask where a network sees a valley between nuclei: its peaks of distance mark the nuclei.

    As `split_by_shape`, but the landscape is learned: the network has seen the image, and knows the nuclei where the
    outline shows no waist (Naylor et al. 2019, doi:10.1109/TMI.2018.2865709).

    Parameters
    ----------
    mask_probability : float array (H, W) in [0, 1]
        How likely each pixel is nucleus.
    distance : float array (H, W) in [0, 1]
        Predicted depth inside the own nucleus, 1 in its middle (`labels.distance_map`).
    prob_thresh : float
        Nuclei grow to where the probability of nucleus is above it.
    min_prominence : float
        How far a peak of the distance must min_prominence above the saddle to a higher one in order to count, above 0. A lower
        one cuts more.
    min_size : int
        As for `grow`.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If the maps have not the same two axes, or `min_prominence` is not above 0.
    """
    mask_probability, distance = _checked(mask_probability, distance)
    mask = mask_probability > prob_thresh
    landscape = np.where(mask, distance, 0).astype(np.float32)
    return watershed_from_markers(_peaks(landscape, min_prominence), mask, -landscape, min_size)


def maps_to_labels(maps, prob_thresh=PROB_THRESH, min_prominence=MIN_PROMINENCE, min_size=MIN_SIZE):
    """Separate nuclei by the best that a network's maps allow: by its distance, or else by the shape of its mask.

    Parameters
    ----------
    maps : dict of str to float array (H, W) in [0, 1]
        What `predict.predict_maps` gives: "mask", and "distance" if the network has learned it.
    prob_thresh : float
        Nuclei grow to where the probability of nucleus is above it.
    min_prominence : float
        As for `split_by_distance`; without "distance" there is nothing to which it applies.
    min_size : int
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
        return watershed_from_distance(maps["mask"], maps["distance"], prob_thresh, min_prominence, min_size)
    return watershed_from_mask(_checked(maps["mask"]) > prob_thresh, min_size=min_size)


def watershed_from_markers(markers, mask, relief, min_size=0):
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
    min_size : int
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
    pieces = _pieces(mask != 0, min_size)
    seeds = _cover(_pieces((markers != 0) & (pieces > 0)), pieces)
    grown = watershed(relief, seeds, mask=pieces > 0, connectivity=1)
    small = np.bincount(grown.ravel()) < min_size
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


def _pieces(mask, min_size=0):
    """Give each connected piece of a mask its number; those of fewer pixels than `min_size` are left out."""
    pieces = ndimage.label(mask, _CROSS)[0]
    pieces[np.bincount(pieces.ravel())[pieces] < min_size] = 0
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
