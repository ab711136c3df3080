"""Label maps: merge masks into one, split it again, boundaries and distances, touching nuclei, run-length coding.

A label map is an integer array `(H, W)`: 0 is background, 1..N are one nucleus each. A mask is `labels > 0`.
"""

import cv2
import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.measure import regionprops
from skimage.segmentation import find_boundaries, relabel_sequential


def check_label_map(labels):
    """Return a label map as an array, after a look at whether it is one.

    Parameters
    ----------
    labels : int array (H, W)

    Returns
    -------
    int array (H, W)

    Raises
    ------
    ValueError
        If it has not two axes, or anything but whole numbers from 0 up.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"expected a label map, whole numbers (H, W), found {labels.dtype} {labels.shape}: "
            "`segmentation.components` makes one of a mask, `segmentation.maps_to_labels` of probabilities"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(f"expected a label map, labels of 0 (background) or above, found {labels.min()}")
    return labels


def merge_masks(masks):
    """Merge one mask per nucleus into a label map.

    Where masks overlap the smaller one stays on top, so that a small nucleus is not lost under a large one.

    Parameters
    ----------
    masks : sequence of array (H, W)
        One mask per nucleus, anything but zero is nucleus. At least one.

    Returns
    -------
    labels : int32 array (H, W)
        Label map. Nuclei are numbered 1..N in the order of `masks`; a mask of which nothing is visible
        (empty, or wholly under others) gets no number.
    hidden : int64 array (len(masks),)
        For each mask, how many of its pixels lie under smaller masks. 0 everywhere means no overlap.

    Raises
    ------
    ValueError
        If there is no mask, or the masks differ in shape.
    """
    masks = [np.asarray(mask) for mask in masks]
    if not masks:
        raise ValueError("no masks to merge: expected at least one array (H, W)")
    shapes = {mask.shape for mask in masks}
    if len(shapes) > 1 or masks[0].ndim != 2:
        raise ValueError(f"masks must all have one shape (H, W), found {sorted(shapes)}")
    pixels = [np.flatnonzero(mask) for mask in masks]  # a nucleus is small: its pixels are quicker than its mask
    areas = np.array([len(own) for own in pixels])
    raw = np.zeros(masks[0].size, np.int32)
    for index in np.argsort(-areas, kind="stable"):
        raw[pixels[index]] = index + 1
    visible = np.bincount(raw, minlength=len(masks) + 1)[1:]
    return relabel_sequential(raw.reshape(masks[0].shape))[0], areas - visible


def split_labels(labels):
    """Split a label map into one mask per nucleus: the inverse of `merge_masks` where nothing overlaps.

    Parameters
    ----------
    labels : int array (H, W)
        Label map.

    Returns
    -------
    bool array (N, H, W)
        Masks in the order of the labels that occur.
    """
    labels = np.asarray(labels)
    numbers = np.unique(labels)
    return labels[None] == numbers[numbers > 0][:, None, None]


def boundary_map(labels):
    """Mark where a nucleus ends: the pixels on both sides of every border, to the background and to neighbours.

    Parameters
    ----------
    labels : int array (H, W)
        Label map.

    Returns
    -------
    bool array (H, W)
        Two pixels thick. The edge of the image is no border: a nucleus that is cut off goes on outside.
    """
    return find_boundaries(np.asarray(labels), mode="thick")


def distance_map(labels):
    """Measure how deep inside its own nucleus each pixel lies: 0 outside, 1 at the deepest pixel of each nucleus.

    Every nucleus has its own scale, so that a small one has as clear a peak as a large one; between nuclei that touch
    lies a valley. A network learns this map in order to separate them (Naylor et al. 2019,
    doi:10.1109/TMI.2018.2865709, where distances keep their scale).

    Parameters
    ----------
    labels : int array (H, W)
        Label map.

    Returns
    -------
    float32 array (H, W) in [0, 1]
    """
    labels = np.asarray(labels)
    inside = (labels > 0) & ~find_boundaries(labels, mode="inner")
    # the outermost pixels of a nucleus have depth 1, those next to them 2; the edge of the image counts as inside
    depth = (cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) + 1) * (labels > 0)
    deepest = ndimage.maximum(depth, labels, np.arange(labels.max() + 1))
    return (depth / np.maximum(deepest, 1)[labels]).astype(np.float32)


def touching_pairs(labels):
    """List the pairs of nuclei that share a border (left-right, up-down or diagonal neighbours).

    Parameters
    ----------
    labels : int array (H, W)
        Label map.

    Returns
    -------
    int array (K, 2)
        Each touching pair once, the lower label first, sorted.
    """
    labels = np.asarray(labels)
    neighbours = [
        (labels[:, :-1], labels[:, 1:]),
        (labels[:-1], labels[1:]),
        (labels[:-1, :-1], labels[1:, 1:]),
        (labels[:-1, 1:], labels[1:, :-1]),
    ]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in neighbours])
    pairs = pairs[(pairs > 0).all(axis=1) & (pairs[:, 0] != pairs[:, 1])]
    return np.unique(np.sort(pairs, axis=1), axis=0)


def measure(labels):
    """Measure each nucleus: size, shape, and the two marks of a label error, holes and loose parts.

    Parameters
    ----------
    labels : int array (H, W)
        Label map.

    Returns
    -------
    pandas.DataFrame
        One row per nucleus with the columns `label`, `area` (pixels), `diameter` (of the circle of equal area,
        pixels), `eccentricity` (0 circle .. 1 line), `solidity` (area over convex area, 0..1), `holes` (pixels of
        background enclosed) and `parts` (connected pieces; 1 for a whole nucleus).
    """
    labels = np.asarray(labels)
    rows = [
        {
            "label": region.label,
            "area": int(region.area),
            "diameter": region.equivalent_diameter_area,
            "eccentricity": region.eccentricity,
            "solidity": region.solidity,
            # a small nucleus that lies on top of a large one is no hole in it
            "holes": np.count_nonzero(region.image_filled & (labels[region.slice] == 0)),
            "parts": connected_components(region.image).max(),
        }
        for region in regionprops(labels)
    ]
    return pd.DataFrame(rows, columns=["label", "area", "diameter", "eccentricity", "solidity", "holes", "parts"])


def encode_rle(mask):
    """Encode a mask as the run-length string of the Kaggle competition.

    Parameters
    ----------
    mask : array (H, W)
        Anything but zero is nucleus.

    Returns
    -------
    str
        "start length start length …"; pixels are counted from 1, down the columns, left to right. "" for an
        empty mask.
    """
    return encode_label_map((np.asarray(mask) != 0).astype(np.uint8)).get(1, "")


def encode_label_map(labels):
    """Encode each nucleus of a label map as the run-length string of the Kaggle competition, all in one pass.

    Parameters
    ----------
    labels : int array (H, W)
        Label map.

    Returns
    -------
    dict of int to str
        By label, in their order, what `encode_rle` gives for the nucleus' mask.
    """
    labels = np.asarray(labels)
    first = np.ones(labels.shape, bool)  # the first pixel of a run, going down the columns
    first[1:] = labels[1:] != labels[:-1]
    first[:1, 1:] = labels[:1, 1:] != labels[-1:, :-1]
    columns, rows = np.nonzero(first.T)
    starts = columns * labels.shape[0] + rows + 1
    runs = np.stack([starts, np.diff(starts, append=labels.size + 1)], axis=1)
    owners = labels[rows, columns]
    order = np.argsort(owners, kind="stable")
    numbers, begins = np.unique(owners[order], return_index=True)
    codes = (" ".join(map(str, own.ravel().tolist())) for own in np.split(runs[order], begins[1:]))
    return {label: code for label, code in zip(numbers.tolist(), codes, strict=True) if label}


def decode_rle(text, shape):
    """Decode a run-length string of the Kaggle competition into a mask: the inverse of `encode_rle`.

    Parameters
    ----------
    text : str
        "start length start length …", 1-based, down the columns.
    shape : tuple of int
        (H, W) of the image.

    Returns
    -------
    bool array (H, W)

    Raises
    ------
    ValueError
        If the text holds anything but numbers, they do not come in pairs, are not positive, or run past the end of
        the image.
    """
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"run-length code must be whole numbers with spaces between them ({error})") from error
    if len(numbers) % 2:
        raise ValueError(f"run-length code has {len(numbers)} numbers, expected pairs of start and length")
    starts, lengths = numbers[::2], numbers[1::2]
    size = shape[0] * shape[1]
    if (numbers < 1).any() or (lengths > size - starts + 1).any():
        raise ValueError(f"run-length code leaves the image: its pixels must lie in 1..{size} for shape {tuple(shape)}")
    mask = np.zeros(size, bool)
    for start, length in zip(starts, lengths, strict=True):
        mask[start - 1 : start - 1 + length] = True
    return mask.reshape(shape, order="F")


def looks_like_mask(labels):
    """Return whether a label map is a mask by mistake: several separate pieces, and one number for all of them.

    Parameters
    ----------
    labels : int array (H, W)

    Returns
    -------
    bool
    """
    labels = np.asarray(labels)
    inside = labels > 0
    one_number = inside.any() and labels[inside].min() == labels.max()
    return bool(one_number and cv2.connectedComponents(inside.astype(np.uint8))[0] > 2)  # one of them is background
