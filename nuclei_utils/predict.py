"""Predict probability maps and label maps for images of any size: tiles, blocks, test-time augmentation.

`predict_maps` is for images that fit into memory. `predict_labels` works block by block. (The command is in
`cli/predict.py`.)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from skimage.segmentation import relabel_sequential
from tqdm import tqdm

from nuclei_utils import blocks, io, matching, preprocess, segmentation
from nuclei_utils.errors import NucleiError
from nuclei_utils.exported import Frozen

if TYPE_CHECKING:
    import keras

BLOCK = 768
"""Height and width of a block, in which nuclei are separated at once, pixels."""

CONTEXT = 128
"""Width of the frame around a block that is predicted too, pixels.

With less than 96 pixels, nuclei of the validation images change: `benchmarks/results/contexts.json`.
"""

MIN_CONSISTENCY = 0.5
"""Value of `tta_consistency` below which a result must not be trusted."""

DIAMETER = 19.6
"""Median diameter of the nuclei that the included network knows, pixels (of the circle of equal area).

The value is that of the 28,986 nuclei of the real training images: `diameter` in
`benchmarks/results/explore_stage1_fixed.json`.
"""

DIAMETER_RANGE = (9.0, 52.0)
"""Diameters that are usual in the training images, pixels.

From the same file (`diameter_by_type`): a quarter of the nuclei of grey tissue, the image type with the smallest
nuclei, is smaller than 9 pixels. A quarter of the large nuclei in fluorescence is larger than 52 pixels.
"""

# quarter turns and mirroring of each copy for test-time augmentation; the first four copies keep the shape of the image
_TTA_COPIES = ((0, False), (0, True), (2, False), (2, True), (1, False), (1, True), (3, False), (3, True))


def predict_masks(model: keras.Model | Frozen, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Predict the probability of nucleus for several images.

    The results are float32 arrays (H, W) in [0, 1]. Network and images are as for `predict_maps`. The sizes of the
    images may differ.

    Examples
    --------
    >>> import keras
    >>> inputs = keras.Input((None, None, 3))
    >>> red = keras.Model(inputs, inputs[..., :1])
    >>> [mask.shape for mask in predict_masks(red, [np.zeros((20, 30, 3), np.uint8)])]
    [(20, 30)]
    """
    progress = tqdm(images, "predicting", unit="image", leave=False, disable=len(images) < 10)
    return [predict_maps(model, image)["mask"] for image in progress]


def predict_maps(
    model: keras.Model | Frozen,
    image: np.ndarray,
    tile: int = 768,
    overlap: int = 128,
    n_tta: int = 1,
    intensity_range: tuple[float, float] | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Predict all maps of an image that fits into memory.

    The image is normalised and padded by reflection. A side longer than one and a half tiles is cut into tiles. The
    tiles overlap and fade into each other along a raised cosine. With the default overlap, tiles change the maps of the
    included network by less than 0.001 on average and by less than 0.1 anywhere (0.2 in 8 bits).

    Parameters
    ----------
    model : keras.Model or exported.Frozen
        Network from (batch, H, W, 3) in [0, 1] to (batch, H, W, 1). If its height and width are fixed, tiles have this
        size. A list of outputs (U-Net++ with deep supervision) is averaged. A dictionary gives one map for each name.
    image : uint8 array (H, W, 3)
        RGB image.
    tile, overlap : int
        Side of a tile, and overlap of neighbouring tiles, pixels: multiples of 32, `0 <= overlap <= tile / 2`.
    n_tta : {1, 4, 8}
        Test-time augmentation: number of copies whose maps are averaged. 4 copies are mirrored, 8 are also turned by
        90 degrees.
    intensity_range : tuple of float, optional
        Dark and bright end of the normalisation (`preprocess.intensity_range`), by default those of this image. Set
        it if the image is a part of a larger image.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    dict of str to float32 array (H, W) in [0, 1]
        "mask", the probability of nucleus; from `models.instance_unet` also "boundary" and "distance".

    Raises
    ------
    errors.NucleiError
        If the network cannot take the size of the image, returns a map of another size, or returns NaN or infinity.
    MemoryError
        If TensorFlow cannot allocate the memory.

    Examples
    --------
    >>> import keras
    >>> inputs = keras.Input((None, None, 3))
    >>> red = keras.Model(inputs, inputs[..., :1])
    >>> predict_maps(red, np.zeros((20, 30, 3), np.uint8))["mask"].shape
    (20, 30)
    """
    _check_image(image)
    if n_tta not in (1, 4, 8):
        raise ValueError(f"n_tta must be 1, 4 or 8, found {n_tta}")
    if tile <= 0 or tile % blocks.MULTIPLE or overlap % blocks.MULTIPLE or not 0 <= 2 * overlap <= tile:
        raise ValueError(f"tile={tile} and overlap={overlap} must be multiples of 32, the overlap at most half a tile")
    dark, bright = intensity_range or preprocess.intensity_range(image)
    padded = preprocess.pad_to_multiple(preprocess.rescale_intensity(image, dark, bright), blocks.MULTIPLE)
    sizes = [
        fixed or (side if side <= 1.5 * tile else tile)
        for fixed, side in zip(model.input_shape[1:3], padded.shape[:2], strict=True)
    ]
    padded = preprocess.pad_to(padded, sizes)
    tiles = list(itertools.product(*map(_place_tiles, padded.shape[:2], sizes, (overlap, overlap))))
    maps = {}
    for (rows, down), (columns, across) in tqdm(tiles, "predicting", unit="tile", leave=False, disable=not progress):
        for name, values in _predict_tile(model, padded[rows, columns], n_tta).items():
            if name not in maps:
                maps[name] = np.zeros(padded.shape[:2], np.float32)
            maps[name][rows, columns] += down[:, None] * across * values
    height, width = image.shape[:2]
    # the weights add up to 1 apart from rounding
    return {name: np.clip(values[:height, :width], 0, 1) for name, values in maps.items()}


def predict_labels(
    model: keras.Model | Frozen,
    image: np.ndarray,
    block: int = BLOCK,
    context: int = CONTEXT,
    n_tta: int = 1,
    progress: bool = False,
    diameter: float | None = None,
    **options: float,
) -> np.ndarray:
    """Find the nuclei in an image of any size.

    The image is processed block by block: `predict_maps` and `segmentation.maps_to_labels` see a block and its
    context. Each block proposes the nuclei whose bounding box has its middle in the block (`blocks`). The context must
    be at least as wide as a nucleus and its neighbours. Beyond the image, its label map and the packed masks of the
    nuclei, memory does not grow with the image.

    Parameters
    ----------
    model, image, n_tta, progress
        As for `predict_maps`, and so are the errors.
    block, context : int
        Side of a block, and width of the frame around a block that is predicted too, pixels: multiples of 32. A
        smaller block needs less memory and more time.
    diameter : float, optional
        Usual diameter of a nucleus in the image, pixels. The image is resized so that such a nucleus has the diameter
        `DIAMETER`, and the label map is resized back by nearest neighbour. `min_size` is in pixels of the
        image. Set the diameter if the nuclei are much smaller or larger than those of the training images.
    **options
        `prob_thresh`, `min_prominence`, `min_size` and `min_confidence` of `segmentation.maps_to_labels`.

    Returns
    -------
    int32 array (H, W)

    Examples
    --------
    >>> import keras
    >>> inputs = keras.Input((None, None, 3))
    >>> red = keras.Model(inputs, inputs[..., :1])
    >>> predict_labels(red, np.pad(np.full((10, 10, 3), 255, np.uint8), ((5, 5), (5, 5), (0, 0)))).max()
    np.int32(1)
    """
    _check_image(image)
    if diameter is not None:
        return _predict_resized(
            model, image, diameter, block=block, context=context, n_tta=n_tta, progress=progress, **options
        )
    places = blocks.place_blocks(image.shape[:2], block, context)
    intensity_range = preprocess.intensity_range(image)
    candidates = [
        predict_block(model, image[place.seen], place, intensity_range, n_tta, **options)
        for place in tqdm(places, "predicting", unit="block", leave=False, disable=not progress)
    ]
    label_map, count = np.zeros(image.shape[:2], np.int32), 0
    for nuclei, stays in zip(candidates, blocks.settle(places, candidates), strict=True):
        blocks.paint(label_map, (0, 0), nuclei, np.where(stays, count + np.cumsum(stays), 0))
        count += np.count_nonzero(stays)
    return label_map


def predict_block(
    model: keras.Model | Frozen,
    image: np.ndarray,
    block: blocks.Block,
    intensity_range: tuple[float, float],
    n_tta: int = 1,
    **options: float,
) -> blocks.Candidates:
    """Find the nuclei that a block of a large image proposes.

    Parameters
    ----------
    model, n_tta, **options
        As for `predict_labels`.
    image : uint8 array (H, W, 3)
        The part of the image that the block sees.
    block : blocks.Block
        Place of the block.
    intensity_range : (float, float)
        Of the whole image (`preprocess.intensity_range`).

    Examples
    --------
    >>> import keras
    >>> inputs = keras.Input((None, None, 3))
    >>> red = keras.Model(inputs, inputs[..., :1])
    >>> (block,) = blocks.place_blocks((10, 10), BLOCK, CONTEXT)
    >>> predict_block(red, np.full((10, 10, 3), 255, np.uint8), block, (0, 255)).boxes.tolist()
    [[0, 0, 10, 10]]
    """
    maps = predict_maps(model, image, n_tta=n_tta, intensity_range=intensity_range)
    return blocks.find_candidates(segmentation.maps_to_labels(maps, **options), block)


def _predict_resized(model, image, diameter, min_size=segmentation.MIN_SIZE, **options):
    """Find the nuclei in an image that is resized to the nuclei that the network knows."""
    if not 0 < diameter < math.inf:
        raise ValueError(f"found diameter={diameter}, expected a length above 0 in pixels")
    size = image.shape[:2]
    scale = DIAMETER / diameter
    resized_size = tuple(max(round(scale * side), 1) for side in size)
    if math.prod(resized_size) > max(io.MAX_PIXELS, math.prod(size)):
        raise NucleiError(
            f"nuclei of {diameter:g} pixels need an image of {resized_size} (height, width), expected at most "
            f"{io.MAX_PIXELS:,} pixels: give a larger diameter, or cut the image"
        )
    resized = preprocess.resize(image, resized_size)
    label_map = predict_labels(model, resized, min_size=round(scale**2 * min_size), **options)
    # a nucleus of a few pixels can vanish when the label map shrinks
    return relabel_sequential(preprocess.resize_label_map(label_map, size))[0].astype(np.int32)


def median_diameter(label_map: np.ndarray) -> float:
    """Return the median diameter of the nuclei in a label map, in pixels.

    The diameter is that of the circle of equal area. Without a nucleus, the result is NaN.

    Examples
    --------
    >>> round(median_diameter(np.array([[1, 1, 0], [1, 1, 2]])), 2)
    1.69
    """
    areas = np.bincount(label_map.ravel())[1:]
    areas = areas[areas > 0]
    return float(np.median(2 * np.sqrt(areas / np.pi))) if areas.size else math.nan


def tta_consistency(
    model: keras.Model | Frozen, image: np.ndarray, label_map: np.ndarray | None = None, **options: float
) -> float:
    """Measure how well two predictions for an image agree.

    The second prediction is for the mirrored, smaller image. The measure needs no true labels. On images unlike the
    training images, the two results often differ. A high value is no proof, because a network can make the same error
    twice.

    Parameters
    ----------
    model, image
        As for `predict_maps`. Only the middle 1024 pixels of a longer side of the image are used.
    label_map : int array (H, W), optional
        Result of `predict_labels` for the image with the same options, which saves a prediction.
    **options
        Options of `predict_labels`.

    Returns
    -------
    float
        Mean of the best IoU of each nucleus with a nucleus of the other label map, in [0, 1]. The mean is over the
        nuclei of both label maps, and NaN if both are empty.

    Examples
    --------
    >>> import keras
    >>> inputs = keras.Input((None, None, 3))
    >>> red = keras.Model(inputs, inputs[..., :1])
    >>> tta_consistency(red, np.pad(np.full((32, 32, 3), 255, np.uint8), ((16, 16), (16, 16), (0, 0))))
    1.0
    """
    _check_image(image)
    if label_map is not None and label_map.shape != image.shape[:2]:
        raise ValueError(f"found a label map of {label_map.shape}, expected {image.shape[:2]} as the image")
    image = preprocess.center_crop(image, (1024, 1024))
    size = image.shape[:2]
    label_map = (
        predict_labels(model, image, **options) if label_map is None else preprocess.center_crop(label_map, size)
    )
    smaller = tuple(max(1, round(0.75 * side)) for side in size)
    mirrored = preprocess.resize(np.ascontiguousarray(image[:, ::-1]), smaller)
    other_label_map = preprocess.resize_label_map(predict_labels(model, mirrored, **options), size)[:, ::-1]
    overlap = matching.label_overlap(label_map, other_label_map)
    best, other_best = np.zeros(len(overlap.true)), np.zeros(len(overlap.predicted))
    np.maximum.at(best, overlap.rows, overlap.ious)
    np.maximum.at(other_best, overlap.columns, overlap.ious)
    ious = np.concatenate([best, other_best])
    return float(ious.mean()) if ious.size else float("nan")


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected uint8 (H, W, 3), found {image.dtype} {image.shape}: read images with io.read_image")


def _place_tiles(side: int, size: int, overlap: int) -> list[tuple[slice, np.ndarray]]:
    """Place tiles along one axis. Return their slices, and weights that add up to 1 at each pixel."""
    fade = min(overlap, size // 2)
    # tiles start at multiples of 32, where the network halves tile and image alike; the last tile ends with the image
    starts = [*range(0, side - size, size - fade), side - size]
    ramp = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / max(fade, 1)) ** 2
    weights = np.concatenate([ramp, np.ones(size - 2 * fade), ramp[::-1]])
    total = np.zeros(side)
    slices = [slice(start, start + size) for start in starts]
    for tile in slices:
        total[tile] += weights
    return [(tile, (weights / total[tile]).astype(np.float32)) for tile in slices]


def _predict_tile(model: keras.Model | Frozen, tile: np.ndarray, n_tta: int) -> dict[str, np.ndarray]:
    """Predict the maps of a normalised tile (H, W, 3).

    The maps are the mean over `n_tta` mirrored and turned copies.
    """
    total = {}
    for turns, mirrored in _TTA_COPIES[:n_tta]:
        copy = np.rot90(tile, turns)
        copy = np.ascontiguousarray(copy[:, ::-1] if mirrored else copy)
        for name, values in _run_network(model, copy).items():
            values = np.rot90(values[:, ::-1] if mirrored else values, -turns)
            total[name] = total.get(name, 0) + values
    return {name: values / np.float32(n_tta) for name, values in total.items()}


def _run_network(model: keras.Model | Frozen, tile: np.ndarray) -> dict[str, np.ndarray]:
    """Run a network on a normalised tile (H, W, 3). Return its maps (H, W) by name."""
    output = _compiled(model)(tile[None])
    if isinstance(output, list):  # deep supervision
        output = np.mean([_to_numpy(values) for values in output], axis=0)
    if not isinstance(output, dict):
        output = {"mask": output}
    maps = {name: _to_numpy(values) for name, values in output.items()}
    for name, values in maps.items():
        if values.shape != (1, *tile.shape[:2], 1):
            raise NucleiError(
                f"the network {model.name!r} returns the map {name!r} of shape {values.shape}, expected "
                f"{(1, *tile.shape[:2], 1)}: use a network with one value for each pixel"
            )
        if not np.isfinite(values).all():
            raise NucleiError(
                f"the network {model.name!r} returns NaN or infinity in the map {name!r}: use another network"
            )
    return {name: values[0, ..., 0] for name, values in maps.items()}


def _compiled(model):
    if isinstance(model, Frozen):
        return model

    import keras

    if keras.backend.backend() != "tensorflow":
        return functools.partial(model, training=False)

    from nuclei_utils import deploy

    return deploy.compile_network(model)


def _to_numpy(values):
    if isinstance(values, np.ndarray):
        return values

    from keras import ops

    return ops.convert_to_numpy(values)
