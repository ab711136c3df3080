"""Divide a large image into blocks, and decide which nuclei of overlapping blocks stay.

Each block is predicted with a frame of context, so that neighbouring blocks see some nuclei twice. A block proposes
candidates: the nuclei whose bounding box has its middle in the block. A candidate stays if the nuclei of earlier blocks
cover less than half of it. The rule follows the order of the blocks, not the order in which they are computed, and
compares only candidates whose boxes overlap. A pixel belongs to the first nucleus that covers it.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

MULTIPLE = 32
"""Blocks begin and end at multiples of this number of pixels, which every network of the course takes."""

_TOLERANCE = 32  # pixels before its first pixel in which a block accepts the middle of a nucleus


class Span(NamedTuple):
    """Place of a block along one axis."""

    first: int
    last: int
    """The pixel after the last."""
    seen: slice
    """The block with its context."""


class Block(NamedTuple):
    """Place of a block in an image."""

    rows: Span
    columns: Span

    @property
    def inside(self) -> tuple[slice, slice]:
        """Return the rows and columns without context. Each pixel of an image is inside of one block."""
        return slice(self.rows.first, self.rows.last), slice(self.columns.first, self.columns.last)

    @property
    def seen(self) -> tuple[slice, slice]:
        """Return the rows and columns with context."""
        return self.rows.seen, self.columns.seen


class Candidates(NamedTuple):
    """Nuclei that a block proposes. They do not overlap."""

    boxes: np.ndarray
    """int (n, 4): top, left, bottom and right (the pixel after the last) in the image."""
    bits: np.ndarray
    """uint8: the masks within the boxes, one after the other, each packed into whole bytes."""

    def masks(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Unpack the masks of candidates, bool (height, width) of their boxes."""
        sizes = np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)
        starts = np.concatenate([[0], np.cumsum(-(sizes // -8))])
        for number in numbers:
            top, left, bottom, right = self.boxes[number]
            packed = self.bits[starts[number] : starts[number + 1]]
            yield np.unpackbits(packed, count=sizes[number]).reshape(bottom - top, right - left).view(bool)


def overlap(part: tuple[slice, slice], other: tuple[slice, slice]) -> bool:
    """Return whether two parts of an image have pixels in common.

    Examples
    --------
    >>> left, right = (slice(0, 5), slice(0, 8)), (slice(0, 5), slice(8, 9))
    >>> overlap(left, left), overlap(left, right)
    (True, False)
    """
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(part, other, strict=True))


def place_blocks(shape: tuple[int, int], block: int, context: int) -> list[Block]:
    """Place blocks in an image, row by row.

    If the last block of an axis would be no wider than the context, it is joined to the block before.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image.
    block, context : int
        Side of a block, and width of the frame around a block, pixels: multiples of 32.

    Examples
    --------
    >>> [block.inside for block in place_blocks((100, 64), block=64, context=32)]
    [(slice(0, 64, None), slice(0, 64, None)), (slice(64, 100, None), slice(0, 64, None))]
    """
    if block <= 0 or context < 0 or block % MULTIPLE or context % MULTIPLE:
        raise ValueError(f"block={block} and context={context} must be multiples of {MULTIPLE}")
    return [Block(*spans) for spans in itertools.product(*(_place(side, block, context) for side in shape))]


def _place(side, block, context):
    spans, first = [], 0
    while first < side:
        stop = min(first + block + context, side)
        last = side if stop == side else first + block
        spans.append(Span(first, last, slice(max(first - context, 0), stop)))
        first = last
    return spans


def find_candidates(label_map: np.ndarray, block: Block) -> Candidates:
    """Find the nuclei that a block proposes in the label map of the pixels that it sees.

    Examples
    --------
    >>> (block,) = place_blocks((2, 4), block=32, context=0)
    >>> find_candidates(np.array([[1, 1, 0, 2], [1, 0, 0, 2]]), block).boxes.tolist()
    [[0, 0, 2, 2], [0, 3, 2, 4]]
    """
    boxes, bits = [], []
    for label, box in enumerate(ndimage.find_objects(label_map), 1):
        place = [
            (side.start + span.seen.start, side.stop + span.seen.start) for side, span in zip(box, block, strict=True)
        ]
        # two blocks may see the outline of a nucleus at their border a little differently: each accepts its middle
        if all(
            span.first - _TOLERANCE <= (start + stop) / 2 < span.last
            for (start, stop), span in zip(place, block, strict=True)
        ):
            boxes.append([*next(zip(*place, strict=True)), *(stop for _, stop in place)])
            bits.append(np.packbits(label_map[box] == label))
    return Candidates(np.array(boxes, np.int64).reshape(-1, 4), np.concatenate([np.empty(0, np.uint8), *bits]))


def settle(blocks: Sequence[Block], candidates: Iterable[Candidates]) -> Iterator[np.ndarray]:
    """Decide which candidates stay, block by block.

    Only the candidates of the last rows of blocks are kept in memory.

    Parameters
    ----------
    blocks : sequence of Block
        From `place_blocks`.
    candidates : iterable of Candidates
        Those of each block, in the same order.

    Yields
    ------
    bool array
        Which candidates of a block stay.

    Examples
    --------
    >>> blocks = place_blocks((32, 96), block=32, context=32)
    >>> nucleus = Candidates(np.array([[0, 30, 1, 34]]), np.packbits([1, 1, 1, 1]))
    >>> list(settle(blocks, [nucleus, nucleus]))
    [array([ True]), array([False])]
    """
    earlier = []  # blocks that a later block may overlap, with the candidates that stay
    for block, proposed in zip(blocks, candidates, strict=True):
        earlier = [item for item in earlier if item[0].rows.seen.stop > block.rows.seen.start]
        covering = {}  # number of a candidate -> earlier nuclei whose boxes overlap
        for other, nuclei, stays in earlier:
            if overlap(other.seen, block.seen):
                for number, index in _overlapping(proposed.boxes, nuclei.boxes, stays):
                    covering.setdefault(number, []).append((nuclei, index))
        stays = np.ones(len(proposed.boxes), bool)
        for number, mask in zip(covering, proposed.masks(covering), strict=True):
            free = mask.copy()
            for nuclei, index in covering[number]:
                _paint(free, proposed.boxes[number][:2], nuclei, [index], [False], anywhere=True)
            stays[number] = 2 * np.count_nonzero(free) > np.count_nonzero(mask)
        earlier.append((block, proposed, stays))
        yield stays


def paint(label_map: np.ndarray, corner: tuple[int, int], candidates: Candidates, labels: np.ndarray) -> None:
    """Paint the nuclei of a block into a part of a label map, where earlier blocks have painted nothing.

    Parameters
    ----------
    label_map : int array (H, W)
        The part of the label map. It changes.
    corner : (int, int)
        First row and column of the part.
    candidates : Candidates
    labels : int array
        Label of each candidate. 0 leaves a candidate out.

    Examples
    --------
    >>> label_map, nucleus = np.array([[0, 5]]), Candidates(np.array([[7, 7, 8, 9]]), np.packbits([1, 1]))
    >>> paint(label_map, (7, 7), nucleus, np.array([6]))
    >>> label_map
    array([[6, 5]])
    """
    numbers = np.flatnonzero(labels)
    _paint(label_map, corner, candidates, numbers, np.asarray(labels)[numbers])


def _paint(target, corner, candidates, numbers, values, anywhere=False):
    top, left = corner
    boxes = candidates.boxes[numbers] - [top, left, top, left]
    is_inside = (boxes[:, 2:] > 0).all(axis=1) & (boxes[:, :2] < target.shape).all(axis=1)
    numbers, values, boxes = np.asarray(numbers)[is_inside], np.asarray(values)[is_inside], boxes[is_inside]
    for value, box, mask in zip(values, boxes.tolist(), candidates.masks(numbers), strict=True):
        rows, columns = (
            slice(max(start, 0), min(stop, side))
            for start, stop, side in zip(box[:2], box[2:], target.shape, strict=True)
        )
        part = mask[rows.start - box[0] : rows.stop - box[0], columns.start - box[1] : columns.stop - box[1]]
        place = target[rows, columns]
        place[part if anywhere else part & (place == 0)] = value


def _overlapping(boxes, others, stays):
    """Return the pairs of candidates and earlier nuclei whose boxes overlap."""
    indices = np.flatnonzero(stays)
    if not len(indices) or not len(boxes):
        return []
    # only the nuclei within the common frame can overlap
    top_left = np.maximum(boxes[:, :2].min(axis=0), others[indices, :2].min(axis=0))
    bottom_right = np.minimum(boxes[:, 2:].max(axis=0), others[indices, 2:].max(axis=0))
    numbers, indices = (
        chosen[(group[:, 2:] > top_left).all(axis=1) & (group[:, :2] < bottom_right).all(axis=1)]
        for chosen, group in ((np.arange(len(boxes)), boxes), (indices, others[indices]))
    )
    a, b = boxes[numbers, None], others[None, indices]
    pairs = np.argwhere((a[..., :2] < b[..., 2:]).all(axis=-1) & (b[..., :2] < a[..., 2:]).all(axis=-1))
    return list(zip(numbers[pairs[:, 0]].tolist(), indices[pairs[:, 1]].tolist(), strict=True))
