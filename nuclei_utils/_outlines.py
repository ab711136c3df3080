"""Trace the outlines of nuclei, and paint outlines into a label map."""

import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from nuclei_utils.errors import LabelWarning
from nuclei_utils.labels import check_label_map


def trace_outlines(label_map: np.ndarray) -> Iterator[tuple[int, list[list[np.ndarray]]]]:
    """Trace the outer edges of the pixels of each nucleus.

    ImageJ and QuPath trace outlines in the same way. The outlines enclose exactly the area of the nucleus. Contours of
    OpenCV run through the centres of the outermost pixels, which makes a nucleus of 10 pixels across smaller by a
    fifth. Contours of scikit-image cut the corners.

    Yields
    ------
    label : int
    parts : list of list of int array (K, 2)
        Rings of each 4-connected part of the nucleus: the outer ring, then one ring for each hole. A ring lists its
        corners (x, y) without repeating the first. Outer rings turn counter-clockwise in the sense of GeoJSON
        (RFC 7946), holes clockwise.

    Examples
    --------
    >>> list(trace_outlines(np.array([[0, 7, 7]])))
    [(7, [[array([[3, 0],
           [3, 1],
           [1, 1],
           [1, 0]])]])]
    """
    label_map = check_label_map(label_map)
    for label, box in enumerate(ndimage.find_objects(label_map), start=1):
        if box is None:
            continue
        corner = box[1].start, box[0].start
        n_parts, parts = cv2.connectedComponents((label_map[box] == label).astype(np.uint8), connectivity=4)
        yield label, [[ring + corner for ring in _rings(parts == number)] for number in range(1, n_parts)]


def _rings(part: np.ndarray) -> list[np.ndarray]:
    # OpenCV lists the outermost pixels, not their edges. In a mask of twice the size, pixel x becomes 2x and 2x + 1. On
    # a left edge the outermost pixel is 2x, and the edge is at x. On a right edge it is 2x + 1, and the edge at x + 1.
    doubled = part.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer_first = np.argsort(hierarchy[0, :, 3], kind="stable")  # the parent, -1 for an outer ring
    return [_corners((contours[index][:, 0] + 1) // 2) for index in outer_first]


def _corners(points: np.ndarray) -> np.ndarray:
    """Remove superfluous points of a ring, and reverse the ring.

    Such points are repeated, or lie on a straight edge.
    """
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)].astype(np.int64)
    is_vertical = points[:, 0] == np.roll(points[:, 0], 1)  # the edge that leads to the point
    return points[is_vertical != np.roll(is_vertical, -1)][::-1]


def paint_outlines(
    nuclei: Sequence[tuple[int, Sequence[Sequence[np.ndarray]]]], shape: tuple[int, int]
) -> tuple[np.ndarray, dict[tuple[int, int], int], list[int]]:
    """Paint nuclei into a label map.

    A pixel belongs to a polygon if its centre lies inside an odd number of rings. Each nucleus takes memory for its
    bounding box only.

    Parameters
    ----------
    nuclei : sequence of (label, parts)
        As from `trace_outlines`, with rings of float or int. Labels differ.
    shape : tuple of int
        (height, width) of the label map. Outlines may leave it.

    Returns
    -------
    label_map : int32 array (H, W)
        Smaller nuclei lie on top.
    overlaps : dict of (int, int) to int
        Number of pixels that the first nucleus took from the second.
    empty : list of int
        Labels of the nuclei without a visible pixel.

    Examples
    --------
    >>> triangle = np.array([[0, 0], [3, 0], [0, 3]])
    >>> paint_outlines([(5, [[triangle]])], (2, 4))[0].tolist()
    [[5, 5, 0, 0], [5, 0, 0, 0]]
    """
    masks = []
    for label, parts in nuclei:
        rings = [np.asarray(ring, float) for part in parts for ring in part if len(ring)]
        points = np.concatenate([np.zeros((0, 2)), *rings])
        limits = shape[1], shape[0]
        left, top = np.clip(np.floor(points.min(0, initial=np.inf)), 0, limits).astype(int)
        right, bottom = np.clip(np.ceil(points.max(0, initial=-np.inf)), 0, limits).astype(int)
        box = slice(top, max(bottom, top)), slice(left, max(right, left))
        mask = np.zeros((box[0].stop - top, box[1].stop - left), bool)
        for part in parts:
            mask |= _inside([np.asarray(ring, float) - (left, top) for ring in part if len(ring)], mask.shape)
        masks.append((label, box, mask, np.count_nonzero(mask)))
    label_map, overlaps = np.zeros(shape, np.int32), {}
    for label, box, mask, _ in sorted(masks, key=lambda nucleus: -nucleus[3]):
        below, pixels = np.unique(label_map[box][mask], return_counts=True)
        overlaps |= {(label, other): n for other, n in zip(below.tolist(), pixels.tolist(), strict=True) if other}
        label_map[box][mask] = label
    empty = [label for label, box, mask, _ in masks if not (label_map[box][mask] == label).any()]
    return label_map, overlaps, empty


def _inside(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels, bool (H, W), whose centres lie inside an odd number of rings.

    Each edge of a ring changes inside and outside for all pixels on its right.
    """
    changes = np.zeros((shape[0], shape[1] + 1), np.uint8)
    for ring in rings:
        (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, axis=0).T
        # the rows whose centres, at half numbers, lie between the ends of the edge
        first = np.clip(np.ceil(np.minimum(y, next_y) - 0.5), 0, shape[0]).astype(int)
        last = np.clip(np.ceil(np.maximum(y, next_y) - 0.5), 0, shape[0]).astype(int)
        edges = np.repeat(np.arange(len(ring)), last - first)
        rows = np.arange(len(edges)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edges]
        slope = (next_x - x)[edges] / (next_y - y)[edges]
        crossing = x[edges] + (rows + 0.5 - y[edges]) * slope
        columns = np.clip(np.ceil(crossing - 0.5), 0, shape[1]).astype(int)
        np.bitwise_xor.at(changes, (rows, columns), 1)
    return np.bitwise_xor.accumulate(changes[:, :-1], axis=1).astype(bool)


def check_ring(points: Sequence) -> np.ndarray:
    """Return a ring as float array (K, 2).

    Other values raise `ValueError`.
    """
    ring = np.asarray(points, float)
    if ring.ndim != 2 or ring.shape[1] != 2 or not (np.abs(ring) < 1e9).all():  # or nan
        raise ValueError(f"expected an outline of pairs x, y, found {np.shape(points)}")
    return ring


def paint_named_outlines(
    path: Path, nuclei: Sequence[tuple[str, str | None, Sequence]], shape: tuple[int, int]
) -> np.ndarray:
    """Paint the nuclei of a file into a label map.

    The label map is int32 (H, W). Each nucleus is (description for messages, name, polygons). A name that is a whole
    number becomes the label. Nuclei with other names, and further nuclei of the same name, get new numbers above. A
    `LabelWarning` says if outlines overlap or enclose no pixel.
    """
    labels = [int(name) if name and re.fullmatch("[1-9][0-9]{0,8}", name) else None for _, name, _ in nuclei]
    next_label = count(max(filter(None, labels), default=0) + 1)
    numbered, descriptions = {}, {}
    for label, (description, _, polygons) in zip(labels, nuclei, strict=True):
        label = next(next_label) if label is None or label in numbered else label
        numbered[label], descriptions[label] = polygons, description
    label_map, overlaps, empty = paint_outlines(list(numbered.items()), shape)
    if overlaps:
        above, below = max(overlaps, key=overlaps.get)
        pixels = f"{sum(overlaps.values())} pixels were given to the smaller nucleus"
        where = f"the largest overlap is that of {descriptions[above]} on {descriptions[below]}"
        advice = "correct the outlines, and remove outlines of regions"
        warnings.warn(f"{path}: outlines overlap, {pixels}, {where}: {advice}", LabelWarning, stacklevel=3)
    if empty:
        names = ", ".join(descriptions[label] for label in empty[:3]) + (" and others" if len(empty) > 3 else "")
        what = f"{len(empty)} outlines enclose no visible pixel of an image of {tuple(shape)} and are left out"
        warnings.warn(f"{path}: {what}: {names}", LabelWarning, stacklevel=3)
    return label_map
