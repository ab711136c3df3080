"""Make, check and encode label maps: merge masks, boundaries, distances, touching nuclei, run-length coding.

A label map is an integer array `(H, W)`. 0 is background, and each number from 1 up is one nucleus. A mask is
`label_map > 0`.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import ndimage
from skimage.segmentation import find_boundaries, relabel_sequential


def check_label_map(label_map: np.ndarray) -> np.ndarray:
    """Check a label map, and return it as an array.

    An invalid label map raises `ValueError`.

    Examples
    --------
    >>> check_label_map([[0, 1], [2, 2]]).shape
    (2, 2)
    """
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or label_map.dtype.kind not in "iu":
        raise ValueError(
            f"expected a label map, integers (H, W), found {label_map.dtype} {label_map.shape}: convert a mask with "
            "`segmentation.components`, probability maps with `segmentation.maps_to_labels`"
        )
    if label_map.min(initial=0) < 0:
        raise ValueError(f"expected a label map, labels of 0 (background) or above, found {label_map.min()}")
    return label_map


def looks_like_mask(label_map: np.ndarray) -> bool:
    """Return True if a label map looks like a mask.

    Such a label map has one label but several components.

    Examples
    --------
    >>> looks_like_mask([[1, 0, 1]]), looks_like_mask([[1, 0, 2]])
    (True, False)
    """
    label_map = np.asarray(label_map)
    mask = label_map > 0
    has_one_label = mask.any() and label_map[mask].min() == label_map.max()
    return bool(has_one_label and cv2.connectedComponents(mask.astype(np.uint8))[0] > 2)  # background counts as well


def merge_masks(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merge masks into a label map.

    The masks (H, W) have one shape, and there is at least one mask. Each mask gets a label. If masks overlap, the
    smaller mask stays on top, so that a large nucleus does not hide a small one.

    Returns
    -------
    label_map : int32 array (H, W)
        Nuclei numbered 1..N in the order of `masks`. A mask without a visible pixel gets no number.
    hidden : int64 array (len(masks),)
        Number of pixels of each mask that lie under smaller masks.

    Examples
    --------
    >>> merge_masks([[[1, 1, 1, 0]], [[0, 0, 1, 1]]])
    (array([[1, 1, 2, 2]], dtype=int32), array([1, 0]))
    """
    masks = [np.asarray(mask) for mask in masks]
    if not masks:
        raise ValueError("no masks to merge: expected at least one array (H, W)")
    shapes = {mask.shape for mask in masks}
    if len(shapes) > 1 or masks[0].ndim != 2:
        raise ValueError(f"masks must all have one shape (H, W), found {sorted(shapes)}")
    pixels = [np.flatnonzero(mask) for mask in masks]  # indices, because a nucleus is much smaller than its mask
    areas = np.array([len(indices) for indices in pixels])
    merged = np.zeros(masks[0].size, np.int32)
    for index in np.argsort(-areas, kind="stable"):
        merged[pixels[index]] = index + 1
    visible = np.bincount(merged, minlength=len(masks) + 1)[1:]
    return relabel_sequential(merged.reshape(masks[0].shape))[0], areas - visible


def boundary_map(label_map: np.ndarray) -> np.ndarray:
    """Mark the borders of nuclei in a bool array (H, W).

    The pixels on both sides of a border are marked. Borders to the background and to other nuclei are two pixels thick.
    The edge of the image is not a border, because a nucleus that is cut off continues outside.

    Examples
    --------
    >>> boundary_map([[0, 0, 1, 1, 1, 2, 2]]).astype(int)
    array([[0, 1, 1, 0, 1, 1, 0]])
    """
    return find_boundaries(np.asarray(label_map), mode="thick")


def distance_map(label_map: np.ndarray) -> np.ndarray:
    """Compute the relative depth of each pixel inside its nucleus.

    The depth is float32 (H, W) in [0, 1]. The background is 0, the deepest pixel of each nucleus 1. Each nucleus has
    its own scale, so that small and large nuclei have equally clear peaks. Between touching nuclei lies a valley, which
    a network can learn (Naylor et al. 2019, doi:10.1109/TMI.2018.2865709; their distances are not scaled).

    Examples
    --------
    >>> distance_map([[0, 1, 1, 1, 0, 2, 0]]).tolist()
    [[0.0, 0.5, 1.0, 0.5, 0.0, 1.0, 0.0]]
    """
    label_map = np.asarray(label_map)
    inside = (label_map > 0) & ~find_boundaries(label_map, mode="inner")
    # the outermost pixels of a nucleus have depth 1, the next ones 2; the edge of the image counts as inside
    depth = (cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) + 1) * (label_map > 0)
    deepest = ndimage.maximum(depth, label_map, np.arange(label_map.max() + 1))
    return (depth / np.maximum(deepest, 1)[label_map]).astype(np.float32)


def touching_pairs(label_map: np.ndarray) -> np.ndarray:
    """List the pairs of nuclei that touch, also at a corner.

    The result, int (K, 2), is sorted and has the lower label of each pair first.

    Examples
    --------
    >>> touching_pairs([[3, 3, 1], [0, 2, 0]]).tolist()
    [[1, 2], [1, 3], [2, 3]]
    """
    label_map = np.asarray(label_map)
    neighbours = [
        (label_map[:, :-1], label_map[:, 1:]),
        (label_map[:-1], label_map[1:]),
        (label_map[:-1, :-1], label_map[1:, 1:]),
        (label_map[:-1, 1:], label_map[1:, :-1]),
    ]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in neighbours])
    pairs = pairs[(pairs > 0).all(axis=1) & (pairs[:, 0] != pairs[:, 1])]
    return np.unique(np.sort(pairs, axis=1), axis=0)


def encode_label_map(
    label_map: np.ndarray, corner: tuple[int, int] = (0, 0), height: int | None = None
) -> dict[int, str]:
    """Encode each nucleus of a label map as run lengths.

    The strings are those of the Kaggle competition, by label. A string is "start length start length ...". Pixels are
    counted from 1, down the columns, then from left to right. For a part of a larger image, `corner` is its first row
    and column, and `height` the height of the larger image.

    Examples
    --------
    >>> encode_label_map([[1, 0, 7], [1, 7, 7]])
    {1: '1 2', 7: '4 3'}
    """
    label_map = np.asarray(label_map)
    is_start = np.ones(label_map.shape, bool)  # of a run down the columns
    is_start[1:] = label_map[1:] != label_map[:-1]
    if height in (None, label_map.shape[0]):  # a run may go on in the next column
        is_start[:1, 1:] = label_map[:1, 1:] != label_map[-1:, :-1]
    columns, rows = np.nonzero(is_start.T)
    lengths = np.diff(columns * label_map.shape[0] + rows, append=label_map.size)
    starts = (columns + corner[1]) * (height or label_map.shape[0]) + rows + corner[0] + 1
    runs = np.stack([starts, lengths], axis=1)
    labels = label_map[rows, columns]
    order = np.argsort(labels, kind="stable")
    numbers, firsts = np.unique(labels[order], return_index=True)
    codes = [" ".join(map(str, group.ravel().tolist())) for group in np.split(runs[order], firsts[1:])]
    return {label: code for label, code in zip(numbers.tolist(), codes, strict=True) if label}


def decode_rle(code: str, shape: tuple[int, int]) -> np.ndarray:
    """Decode a run-length string into a mask, bool (height, width).

    The string is as from `encode_label_map`. The function raises `ValueError` if the code is not pairs of positive
    integers or leaves the image.

    Examples
    --------
    >>> decode_rle("1 2 5 1", (2, 3)).astype(int)
    array([[1, 0, 1],
           [1, 0, 0]])
    """
    try:
        numbers = np.array(code.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"run-length code must be whole numbers with spaces between them ({error})") from error
    if len(numbers) % 2:
        raise ValueError(f"run-length code has {len(numbers)} numbers, expected pairs of start and length")
    starts, lengths = numbers[::2], numbers[1::2]
    size = shape[0] * shape[1]
    if (numbers < 1).any() or (lengths > size - starts + 1).any():
        raise ValueError(f"run-length code leaves the image: its pixels must lie in 1..{size} for shape {tuple(shape)}")
    mask = np.zeros(size, bool)
    for start, length in zip(starts - 1, lengths, strict=True):
        mask[start : start + length] = True
    return mask.reshape(shape, order="F")
