"""Convert masks and probability maps to label maps: connected components and watersheds.

All functions return an int32 label map (H, W), in which nuclei are numbered 1..N and have no holes. An input that is
not of shape (H, W), or inputs of different shapes, raise a `ValueError`.
"""

from collections.abc import Mapping

import cv2
import numpy as np
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import relabel_sequential, watershed

# defaults of the parameters with these names
PROB_THRESH = 0.5
MIN_PROMINENCE = 0.2
MIN_SIZE = 25  # pixels
MIN_CONFIDENCE = 0.8

_MAX_STEPS = 256  # steps after which `_reconstruct` calls scikit-image
_CROSS, _SQUARE = (ndimage.generate_binary_structure(2, connectivity).astype(np.uint8) for connectivity in (1, 2))


def components(mask: np.ndarray, min_size: int = 0) -> np.ndarray:
    """Label the connected components of a mask. Touching nuclei become one nucleus.

    Parameters
    ----------
    mask : array (H, W)
        Nonzero pixels are nucleus.
    min_size : int
        Minimum area of a component, pixels. Smaller components are left out.

    Examples
    --------
    >>> components(np.array([[1, 1, 0, 1]])).tolist()
    [[1, 1, 0, 2]]
    """
    (mask,) = _check_maps(mask)
    return _fill_holes(_label_components(mask != 0, min_size))


def watershed_from_mask(mask: np.ndarray, min_prominence: float = 1.0, min_size: int = 0) -> np.ndarray:
    """Split the nuclei of a mask at narrow places.

    The method is a watershed of the distance to the background. Two touching nuclei have a waist between them. The
    distance to the background has a peak in each nucleus and a saddle at the waist. Each peak becomes the marker of a
    nucleus (Vincent and Soille 1991, doi:10.1109/34.87344).

    Parameters
    ----------
    mask : array (H, W)
        Nonzero pixels are nucleus.
    min_prominence : float
        Height of a peak above the saddle to a higher peak, in pixels, above 0. Lower peaks come from ragged outlines
        (h-maxima, Soille 2003, doi:10.1007/978-3-662-05088-0).
    min_size : int
        As for `maps_to_labels`.

    Examples
    --------
    >>> mask = np.ones((7, 14))
    >>> mask[[0, 1, 2, 4, 5, 6], 6:8] = 0
    >>> int(watershed_from_mask(mask).max())
    2
    """
    (mask,) = _check_maps(mask)
    # the edge of the image is not background, because a nucleus that is cut off continues outside
    depth = cv2.distanceTransform((mask != 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return _watershed_from_markers(_peaks(depth, min_prominence), mask, -depth, min_size)


def watershed_from_boundary(
    mask_probability: np.ndarray,
    boundary_probability: np.ndarray,
    prob_thresh: float = PROB_THRESH,
    marker_thresh: float = 0.5,
    min_size: int = MIN_SIZE,
) -> np.ndarray:
    """Split the nuclei of a predicted mask along the predicted boundary.

    The markers are the pixels that are nucleus but not boundary, as in contour-aware networks (Chen et al. 2016,
    doi:10.1109/CVPR.2016.273). A component of the mask without a marker is one nucleus. The best entries to the 2018
    Data Science Bowl added a watershed (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7).

    Parameters
    ----------
    mask_probability, boundary_probability : float array (H, W) in [0, 1]
        Probability of each pixel to be nucleus, and to be on a border (`labels.boundary_map`).
    marker_thresh : float
        Threshold of `mask_probability - boundary_probability`, -1..1. Pixels above are markers. A higher threshold
        splits more.
    prob_thresh, min_size
        As for `maps_to_labels`.

    Examples
    --------
    >>> boundary = np.array([[0, 0, 0.9, 0, 0]])
    >>> watershed_from_boundary(np.ones((1, 5)), boundary, min_size=0).tolist()
    [[1, 1, 2, 2, 2]]
    """
    mask_probability, boundary_probability = _check_maps(mask_probability, boundary_probability)
    markers = mask_probability - boundary_probability > marker_thresh
    return _watershed_from_markers(markers, mask_probability > prob_thresh, boundary_probability, min_size)


def watershed_from_distance(
    mask_probability: np.ndarray,
    distance: np.ndarray,
    prob_thresh: float = PROB_THRESH,
    min_prominence: float = MIN_PROMINENCE,
    min_size: int = MIN_SIZE,
) -> np.ndarray:
    """Split the nuclei of a mask along valleys of the distance.

    The function works as `watershed_from_mask`, but a network has learned the distance from the image. The network can
    separate nuclei without a waist between them (Naylor et al. 2019, doi:10.1109/TMI.2018.2865709).

    Parameters
    ----------
    mask_probability : float array (H, W) in [0, 1]
        Probability of each pixel to be nucleus.
    distance : float array (H, W) in [0, 1]
        Predicted depth inside the nucleus, 1 in the middle (`labels.distance_map`).
    min_prominence : float
        Height of a peak of the distance above the saddle to a higher peak, above 0. A lower prominence splits more.
    prob_thresh, min_size
        As for `maps_to_labels`.

    Examples
    --------
    >>> distance = np.array([[0.5, 1, 0.5, 0.5, 1, 0.5]])
    >>> watershed_from_distance(np.ones((1, 6)), distance, min_size=0).tolist()
    [[1, 1, 1, 2, 2, 2]]
    """
    mask_probability, distance = _check_maps(mask_probability, distance)
    mask = mask_probability > prob_thresh
    depth = np.where(mask, distance, 0).astype(np.float32)
    return _watershed_from_markers(_peaks(depth, min_prominence), mask, -depth, min_size)


def maps_to_labels(
    maps: Mapping[str, np.ndarray],
    prob_thresh: float = PROB_THRESH,
    min_prominence: float = MIN_PROMINENCE,
    min_size: int = MIN_SIZE,
    min_confidence: float | None = None,
) -> np.ndarray:
    """Convert the maps of a network to a label map.

    If the network predicts the distance, the distance separates the nuclei. Nuclei of low confidence are left out.

    Parameters
    ----------
    maps : dict of str to float array (H, W) in [0, 1]
        "mask" and, if the network predicts it, "distance" (`predict.predict_maps`).
    prob_thresh : float
        Threshold of the mask. Pixels above belong to a nucleus.
    min_prominence : float
        As for `watershed_from_distance`. Without "distance", `watershed_from_mask` is called with its own default.
    min_size : int
        Minimum area of a nucleus, pixels. Smaller components of the mask are left out. A smaller nucleus that
        touches others loses its marker, and its neighbours grow into its pixels.
    min_confidence : float, optional
        Minimum of the mean probability of a nucleus, 0..1, over its pixels with a probability above 0.5. 0 leaves out
        no nucleus. Default: 0.8 (`MIN_CONFIDENCE`), or 0 without "distance".

    Examples
    --------
    >>> maps_to_labels({"mask": np.array([[0.9, 0.9, 0.1, 0.9]])}, min_size=0).tolist()
    [[1, 1, 0, 2]]
    """
    if "mask" not in maps:
        raise ValueError(f'found the maps {sorted(maps)}, expected "mask" among them')
    if "distance" in maps:
        label_map = watershed_from_distance(maps["mask"], maps["distance"], prob_thresh, min_prominence, min_size)
    else:
        label_map = watershed_from_mask(np.asarray(maps["mask"]) > prob_thresh, min_size=min_size)
    if min_confidence is None:
        min_confidence = MIN_CONFIDENCE if "distance" in maps else 0
    return _leave_out_uncertain(label_map, maps["mask"], min_confidence)


def _leave_out_uncertain(label_map: np.ndarray, mask_probability: np.ndarray, min_confidence: float) -> np.ndarray:
    """Leave out the nuclei whose mean probability is below a minimum, and number the others 1..N."""
    is_likely = np.asarray(mask_probability) > 0.5  # so that a low threshold of the mask lowers no mean
    nuclei, count = label_map[is_likely], label_map.max(initial=0) + 1
    sums = np.bincount(nuclei, np.asarray(mask_probability)[is_likely], count)
    is_uncertain = sums / np.maximum(np.bincount(nuclei, minlength=count), 1) < min_confidence
    is_uncertain[0] = False
    if not is_uncertain.any():
        return label_map
    return relabel_sequential(np.where(is_uncertain[label_map], 0, label_map))[0]


def _watershed_from_markers(markers: np.ndarray, mask: np.ndarray, relief: np.ndarray, min_size: int) -> np.ndarray:
    """Flood a relief from markers, and fill the holes.

    Reference: Meyer and Beucher 1990, doi:10.1016/1047-3203(90)90014-M.
    """
    pieces = _label_components(mask != 0, min_size)
    seeds = _seed_all(_label_components((markers != 0) & (pieces > 0)), pieces)
    label_map = watershed(relief, seeds, mask=pieces > 0, connectivity=1)
    is_small = np.bincount(label_map.ravel()) < min_size
    is_small[0] = False
    if is_small.any():
        seeds = _seed_all(np.where(is_small[seeds], 0, seeds), pieces)
        affected = np.isin(pieces, pieces[is_small[label_map]])
        label_map[affected] = watershed(relief, seeds, mask=affected, connectivity=1)[affected]
    return _fill_holes(label_map)


def _check_maps(*maps: np.ndarray) -> list[np.ndarray]:
    maps = [np.asarray(array) for array in maps]
    if maps[0].ndim != 2 or len({array.shape for array in maps}) > 1:
        raise ValueError(f"maps must all have one shape (H, W), found {[array.shape for array in maps]}")
    return maps


def _label_components(mask: np.ndarray, min_size: int = 0) -> np.ndarray:
    """Label the components of a mask.

    A component that is too small leaves a gap in the numbers.
    """
    pieces = ndimage.label(mask, _CROSS)[0]
    pieces[np.bincount(pieces.ravel())[pieces] < min_size] = 0
    return pieces


def _seed_all(seeds: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """Turn each component of the mask without a seed into a seed."""
    is_bare = np.ones(pieces.max() + 1, bool)
    is_bare[pieces[seeds > 0]] = False
    is_bare[0] = False
    return np.where(is_bare[pieces], pieces + seeds.max(), seeds)


def _peaks(depth: np.ndarray, min_prominence: float) -> np.ndarray:
    """Mark the peaks whose prominence is above a minimum (h-maxima)."""
    if not min_prominence > 0:
        raise ValueError(f"min_prominence must be above 0, found {min_prominence}")
    # depth is 0 or above, so that a seed of 0 has the same effect as a lower seed
    seeds = np.maximum(depth - np.float32(min_prominence), 0)
    return local_maxima(_reconstruct(seeds, depth), connectivity=1)


def _reconstruct(seeds: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Dilate seeds under a limit until nothing changes: `skimage.morphology.reconstruction`."""
    # nuclei are small, so that a few dilations take far less time than the sort of all pixels in scikit-image
    for _ in range(_MAX_STEPS):
        grown = np.minimum(cv2.dilate(seeds, _CROSS), depth)
        if np.array_equal(grown, seeds):
            return seeds
        seeds = grown
    return reconstruction(seeds, depth, footprint=_CROSS)


def _fill_holes(label_map: np.ndarray) -> np.ndarray:
    """Fill background that one nucleus alone encloses, and number the nuclei 1..N."""
    padded = np.pad(label_map, 1, constant_values=-1)  # background at the edge of the image has -1 as a neighbour
    gaps = ndimage.label(padded == 0, _SQUARE)[0]
    for number, box in enumerate(ndimage.find_objects(gaps), start=1):
        box = tuple(slice(side.start - 1, side.stop + 1) for side in box)
        gap = gaps[box] == number
        neighbours = padded[box][cv2.dilate(gap.astype(np.uint8), _SQUARE) > gap]
        if 0 < neighbours.min() == neighbours.max():
            padded[box][gap] = neighbours[0]
    return relabel_sequential(padded[1:-1, 1:-1])[0].astype(np.int32)
