"""From images of any size to probabilities and label maps: whole or in tiles; and a record of how a network learns."""

import functools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from scipy import ndimage
from tqdm import tqdm

from nuclei_utils import datasets, deploy, matching, models, preprocess, segmentation
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write

MULTIPLE = 32
"""Heights and widths that every network of the course takes are multiples of it."""


TILE = 512
"""Height and width of a tile, pixels. A side of up to one and a half tiles is not cut: two tiles would cost more."""


OVERLAP = 128
"""How far neighbouring tiles overlap, pixels."""


BLOCK = 512
"""Height and width of the part of an image in which nuclei are separated at once, pixels."""


CONTEXT = 192
"""How far the network's maps are looked at beyond a block, pixels."""


SEPARATE_BY = ("mask", "distance")
"""The maps that `segmentation.maps_to_labels` looks at: of a large image, `labels` keeps no others."""


ZOOM = 0.75
"""To what share of its size `agreement` shrinks an image."""


LARGEST_CHECK = 1024
"""Height and width of the middle part of a larger image that `agreement` looks at, pixels."""


VIEWS = ((0, False), (0, True), (2, False), (2, True), (1, False), (1, True), (3, False), (3, True))
"""Quarter turns, and whether mirrored as well: the first four keep the shape of an image that is not square."""


def predict_masks(model, images, multiple=MULTIPLE):
    """Predict the probability of nucleus for each pixel of whole images.

    Each image is normalised, padded by reflection to a size that the network takes, and cut back afterwards. For
    images that do not fit into memory as a whole there is `maps`.

    Parameters
    ----------
    model : keras.Model or Frozen
        Takes (batch, H, W, 3) in [0, 1], gives (batch, H, W, 1); its input shape leaves H and W open, or is that of
        the padded images. Of several outputs for the same mask (U-Net++) the mean is taken, of a dictionary of
        outputs (`models.instance_unet`) that of the name "mask".
    images : sequence of uint8 array (H, W, 3)
        RGB, of any sizes.
    multiple : int
        Height and width that the network sees are multiples of it.

    Returns
    -------
    list of float32 array (H, W) in [0, 1]

    Raises
    ------
    errors.NucleiError
        If the network cannot take the size of an image, or gives a map of another size, or values that are not
        numbers.
    MemoryError
        If TensorFlow cannot allocate the memory for an image.
    """
    found = []
    for image in tqdm(images, "predicting", unit="image", leave=False, disable=len(images) < 10):
        height, width = image.shape[:2]
        padded = preprocess.pad_to_multiple(preprocess.normalize(image), multiple)
        found.append(_run(model, padded[None])["mask"][0, :height, :width])
    return found


def predict_maps(model, image, tile=TILE, overlap=OVERLAP, n_tta=1, batch=1, progress=False):
    """Predict all maps of one image of any size: in tiles if it is larger than one.

    Neighbouring tiles overlap, and fade into each other along a raised cosine, so that no seam is left. An image of up
    to one and a half tiles along each side goes through as a whole. The result is that of the whole image but for what
    a network sees beyond the overlap: by default, the maps of the network that comes with the package differ by less
    than 0.001 on average and 0.1 anywhere (a test measures it).

    Parameters
    ----------
    model : keras.Model or Frozen
        As for `probabilities`. If it takes one size only, that is the size of the tiles.
    image : uint8 array (H, W, 3)
        RGB.
    tile : int
        Height and width of a tile, pixels, a multiple of 32.
    overlap : int
        Of neighbouring tiles, pixels, a multiple of 32, at most half a tile.
    n_tta : 1, 4 or 8
        Predict so many n_tta of the image, and take the mean: as it is; and mirrored both ways; and turned by 90
        degrees as well. It takes so many times longer.
    batch : int
        Tiles that go through the network at once. More need more memory, and are quicker on a GPU only.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    dict of str to float32 array (H, W) in [0, 1]
        "mask", the probability of nucleus; from `models.instance_unet` also "boundary" and "distance".

    Raises
    ------
    ValueError
        If the image is no uint8 array (H, W, 3), or tile, overlap or n_tta are none of those above.
    errors.NucleiError, MemoryError
        As for `probabilities`.
    """
    whole = {}
    bottom = 0
    for band in _bands(
        model, image, preprocess.intensity_range(_checked(image)), tile, overlap, n_tta, batch, progress
    ):
        for name, rows in band.items():
            if name not in whole:
                whole[name] = np.empty(image.shape[:2], np.float32)
            whole[name][bottom : bottom + len(rows)] = rows
        bottom += len(rows)
    return whole


def predict_labels(
    model,
    image,
    tile=TILE,
    overlap=OVERLAP,
    n_tta=1,
    batch=1,
    progress=False,
    block=BLOCK,
    margin=CONTEXT,
    **thresholds,
):
    """Find the nuclei of one image of any size: `maps`, and from them `segmentation.maps_to_labels`.

    A large image is never held as a whole but for the image itself and its label map: the maps are made from top to
    bottom, nuclei are separated block by block in maps that reach a margin beyond the block, and each nucleus is kept
    by the block in which the middle of its bounding box lies. The result is that of the whole image, but for the order
    of the labels, where nuclei are no larger than two thirds of the margin: a nucleus that a block keeps, and all that
    touch it, then lie within the margin.

    Parameters
    ----------
    model, image, tile, overlap, n_tta, batch, progress
        As for `maps`.
    block : int
        Height and width of a block, pixels. Memory grows with it, time with the share of the margins.
    margin : int
        Pixels, at most half a block.
    thresholds
        As for `segmentation.maps_to_labels`.

    Returns
    -------
    int32 array (H, W)
        Label map.

    Raises
    ------
    ValueError, errors.NucleiError, MemoryError
        As for `maps`; ValueError also if the margin is more than half a block.
    """
    if not 0 <= 2 * margin <= block:
        raise ValueError(f"a margin lies between 0 and half a block, found {margin} for a block of {block} pixels")
    ends = preprocess.intensity_range(_checked(image))
    bands = _bands(model, image, ends, tile, overlap, n_tta, batch, progress, SEPARATE_BY)
    return _separated(bands, image.shape[:2], block, margin, thresholds)


def tta_consistency(model, image, found=None, **settings):
    """Measure how far a network agrees with itself: on the image, and on the same image mirrored and made smaller.

    It needs no truth. A network is sure of what is like the images it learned from, and finds the same nuclei again
    when the image is changed in a way that changes no nucleus; of an unlike image it makes one thing now and another
    then. High agreement is no proof: a network can be wrong twice in the same way.

    Parameters
    ----------
    model : keras.Model or Frozen
        As for `labels`.
    image : uint8 array (H, W, 3)
        RGB. Of an image larger than `LARGEST_CHECK` its middle is looked at.
    found : int array (H, W), optional
        Label map that `labels` gave for the image with the same settings, where it is there already.
    settings
        As for `labels`.

    Returns
    -------
    float
        0..1: the IoU of each nucleus with the one of the other label map that fits it best, as mean over the nuclei
        of both. nan if there is none in either.

    Raises
    ------
    ValueError, errors.NucleiError, MemoryError
        As for `labels`; ValueError also if the label map has not the shape of the image.
    """
    if found is not None and found.shape != image.shape[:2]:
        raise ValueError(
            f"the label map {found.shape} is not of this image, which is {image.shape[:2]} (height, width)"
        )
    part = preprocess.center_crop(_checked(image), (LARGEST_CHECK, LARGEST_CHECK))
    size = part.shape[:2]
    found = predict_labels(model, part, **settings) if found is None else preprocess.center_crop(found, size)
    smaller = tuple(max(1, round(ZOOM * side)) for side in size)
    view = preprocess.resize(np.ascontiguousarray(part[:, ::-1]), smaller)
    again = preprocess.resize_label_map(predict_labels(model, view, **settings), size)[:, ::-1]
    shared = matching.label_overlap(found, again)
    best, best_again = np.zeros(len(shared.true)), np.zeros(len(shared.predicted))
    np.maximum.at(best, shared.rows, shared.ious)
    np.maximum.at(best_again, shared.columns, shared.ious)
    every = np.concatenate([best, best_again])
    return float(every.mean()) if every.size else float("nan")


@functools.cache
def default_model():
    """Load the network that comes with the package: `models.instance_unet`, trained on the real images.

    Returns
    -------
    keras.Model
        For `maps`, `labels`, `agreement`; the same one at each call.

    Raises
    ------
    errors.NucleiError
        If the file is missing.
    """
    # built here, not loaded whole: a file of weights alone is read by every supported Keras
    model = models.instance_unet(weights=None, fixed_statistics=True)
    model.load_weights(datasets.asset("instance_unet.weights.h5"))
    return model


def _checked(image):
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"expected an image (H, W, 3) of uint8, found {image.shape} of {image.dtype}: read it by io.read_image"
        )
    return image


def _bands(model, image, ends, tile, overlap, n_tta, batch, progress, wanted=None):
    """Yield the maps of an image (or those wanted) from top to bottom: rows by name, which hold until the next step."""
    if n_tta not in (1, 4, 8):
        raise ValueError(f"n_tta are 1, 4 (mirrored) or 8 (turned as well), found {n_tta}")
    if tile <= 0 or tile % MULTIPLE or overlap % MULTIPLE or not 0 <= 2 * overlap <= tile:
        raise ValueError(
            f"tile and overlap are multiples of {MULTIPLE}, the overlap at most half a tile; found {tile} and {overlap}"
        )
    height, width = image.shape[:2]
    padded = [-(-side // MULTIPLE) * MULTIPLE for side in (height, width)]
    # a network may take one size only
    longest = tile + tile // 2
    size = [
        fixed or (side if side <= longest else tile) for fixed, side in zip(model.input_shape[1:3], padded, strict=True)
    ]
    fades = [min(overlap, length // 2) for length in size]
    tops, lefts = (_starts(*axis) for axis in zip(padded, size, fades, strict=True))
    down, across = (_weights(*axis) for axis in zip((tops, lefts), size, fades, strict=True))
    canvas = {}
    with tqdm(total=len(tops) * len(lefts), desc="predicting", unit="tile", leave=False, disable=not progress) as bar:
        for row, top in enumerate(tops):
            for first in range(0, len(lefts), batch):
                columns = range(first, min(first + batch, len(lefts)))
                tiles = np.stack([_cut(image, ends, top, lefts[column], size) for column in columns])
                for name, found in _mean_over_views(model, tiles, n_tta).items():
                    if wanted and name not in wanted:
                        continue
                    if name not in canvas:
                        canvas[name] = np.zeros((size[0], lefts[-1] + size[1]), np.float32)
                    for column, one in zip(columns, found, strict=True):
                        part = canvas[name][:, lefts[column] : lefts[column] + size[1]]
                        part += down[row][:, None] * across[column] * one
                bar.update(len(columns))
            # rows above the next tiles are finished
            ready = tops[row + 1] - top if row + 1 < len(tops) else height - top
            finished = {name: rows[:ready, :width] for name, rows in canvas.items()}
            for rows in finished.values():
                np.clip(rows, 0, 1, out=rows)  # the weights' sum is 1 but for rounding
            yield finished
            for rows in canvas.values():
                rows[:-ready] = rows[ready:]
                rows[-ready:] = 0


def _starts(side, length, fade):
    """Place tiles along one axis; the last ends where the image ends.

    A network that halves the image gives the same for a tile as for the whole only where it halves both alike: tiles
    start at multiples of 32.
    """
    last = max(side - length, 0)
    return [*range(0, last, length - fade), last]


def _weights(starts, length, fade):
    """Weigh the pixels of each tile along one axis, so that the weights of all tiles add up to 1 everywhere."""
    # never 0: at the edge of the image there is one tile only
    ramp = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / max(fade, 1)) ** 2
    window = np.concatenate([ramp, np.ones(length - 2 * fade), ramp[::-1]])
    total = np.zeros(starts[-1] + length)
    for start in starts:
        total[start : start + length] += window
    return [(window / total[start : start + length]).astype(np.float32) for start in starts]


def _cut(image, ends, top, left, size):
    """Cut one tile out of an image, stretched, and padded where the image ends."""
    part = image[top : top + size[0], left : left + size[1]]
    return preprocess.pad_to(preprocess.rescale_intensity(part, *ends), size)


def _mean_over_views(model, tiles, n_tta):
    total = {}
    for turns, mirrored in VIEWS[:n_tta]:
        view = np.rot90(tiles, turns, axes=(1, 2))
        found = _run(model, np.ascontiguousarray(view[:, :, ::-1] if mirrored else view))
        for name, one in found.items():
            back = np.rot90(one[:, :, ::-1] if mirrored else one, -turns, axes=(1, 2))
            total[name] = total[name] + back if name in total else back
    return {name: one / np.float32(n_tta) for name, one in total.items()}


class Frozen(NamedTuple):
    """A network that is compiled for images of any size, with the weights that it had at that time (`freeze`).

    Attributes
    ----------
    name : str
    input_shape : tuple of int or None
        (batch, H, W, 3).
    function : callable
        Maps a float32 array (batch, H, W, 3) to what the network gives for it.
    """

    name: str
    input_shape: tuple
    function: Callable


def freeze(model):
    """Compile a network for many predictions with the same weights.

    TensorFlow computes a frozen network faster: it knows the weights, and merges batch normalisation into the
    convolutions. Changes to the weights of the model do not reach the frozen network.

    Parameters
    ----------
    model : keras.Model
        As for `probabilities`.

    Returns
    -------
    Frozen
        For `probabilities`, `maps`, `labels` and `agreement`. Their results are those of the model but for rounding.
    """
    return Frozen(model.name, model.input_shape, _compiled(model, frozen=True))


def _run(model, batch):
    """Return the maps that a network gives for a batch (N, H, W, 3): arrays (N, H, W) by name."""
    output = (model.function if isinstance(model, Frozen) else _function(model))(batch)
    if isinstance(output, list):  # deep supervision
        output = ops.mean(ops.stack(output), axis=0)
    if not isinstance(output, dict):
        output = {"mask": output}
    maps = {name: ops.convert_to_numpy(one) for name, one in output.items()}
    for name, one in maps.items():
        if one.shape != (*batch.shape[:3], 1):
            raise NucleiError(
                f"the network {model.name!r} gives the map {name!r} of shape {one.shape} for images of shape "
                f"{batch.shape}, expected {(*batch.shape[:3], 1)}: use a network that gives one value for each pixel"
            )
        if not np.isfinite(one).all():
            raise NucleiError(
                f"the network {model.name!r} gives values that are not numbers (NaN or infinity) in the map {name!r}: "
                "its training failed, or its file is damaged; use another network"
            )
    return {name: one[..., 0] for name, one in maps.items()}


@functools.lru_cache(maxsize=4)
def _function(model):
    """Return a model as a compiled function; the function follows changes of the weights."""
    return _compiled(model)


def _compiled(model, frozen=False):
    call = functools.partial(model, training=False)
    if keras.backend.backend() != "tensorflow":
        return call

    import tensorflow as tf

    network = deploy.with_open_sizes(model)
    groups = network.trainable_variables, network.non_trainable_variables
    # values of NumPy become constants of the compiled function
    weights = [[ops.convert_to_numpy(one) for one in group] for group in groups] if frozen else None

    def predict(batch):
        return network.stateless_call(*weights, batch, training=False)[0] if frozen else network(batch, training=False)

    compiled = tf.function(predict, input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.float32)])
    try:
        compiled.get_concrete_function()
    except (TypeError, ValueError, NotImplementedError):  # a layer must know the size beforehand
        compiled = call

    def run(batch):
        try:
            return compiled(batch)
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(error.message) from error
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            reason = str(error).strip().split("\n")[0]
            raise NucleiError(
                f"the network {model.name!r} fails on images of {batch.shape[1]} x {batch.shape[2]} pixels: {reason}"
            ) from error

    return run


def _separated(bands, shape, block, margin, thresholds):
    """Separate nuclei block by block, in maps that come from top to bottom."""
    found = np.zeros(shape, np.int32)
    count = 0
    rows, columns = (_blocks(side, block, margin) for side in shape)
    with closing(bands):
        for down, window in zip(rows, _windows(bands, rows), strict=True):
            for across in columns:
                part = {name: one[:, across.start : across.stop] for name, one in window.items()}
                count = _keep(segmentation.maps_to_labels(part, **thresholds), down, across, found, count)
    return found


class _Block(NamedTuple):
    """A block along one axis: what it is responsible for, and what it sees, from and to which pixel."""

    start: int
    first: int
    last: int
    stop: int


def _blocks(side, block, margin):
    blocks, first = [], 0
    while not blocks or first < side:
        stop = min(first + block + margin, side)
        last = side if stop == side else first + block  # no block of a margin's width at the end
        blocks.append(_Block(max(first - margin, 0), first, last, stop))
        first = last
    return blocks


def _windows(bands, blocks):
    """Yield the maps that each row of blocks sees; they hold until the next step."""
    height = max(block.stop - block.start for block in blocks)
    window, begin, end = {}, 0, 0  # of the rows of the image, those that are in the window
    band, rest = {}, 0
    for block in blocks:
        for one in window.values():
            one[: end - block.start] = one[block.start - begin : end - begin]
        begin = block.start
        while end < block.stop:
            if not rest:
                band = next(bands)
                rest = len(band["mask"])
            taken = min(rest, block.stop - end)
            for name, one in band.items():
                if name not in window:
                    window[name] = np.empty((height, one.shape[1]), np.float32)
                window[name][end - begin : end - begin + taken] = one[len(one) - rest :][:taken]
            end, rest = end + taken, rest - taken
        yield {name: one[: block.stop - block.start] for name, one in window.items()}


def _keep(part, down, across, found, count):
    """Take over the nuclei of which a block is responsible for the middle; return how many there are by now."""
    for label, box in enumerate(ndimage.find_objects(part), 1):
        rows, columns = (
            slice(own.start + of.start, own.stop + of.start) for own, of in zip(box, (down, across), strict=True)
        )
        middle = (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2
        if down.first <= middle[0] < down.last and across.first <= middle[1] < across.last:
            own, target = part[box] == label, found[rows, columns]
            free = own & (target == 0)
            # a nucleus larger than the margin may look different to two blocks: it belongs to the first then
            if 2 * np.count_nonzero(free) > np.count_nonzero(own):
                count += 1
                target[free] = count
    return count


class PreviewRecorder(keras.callbacks.Callback):
    """Keep what a network predicts for a few images, before training and after each epoch: what a film is made of.

    The files `predictions/epoch_NNN.npz` survive a training that is killed. `training.fit` clears them for a new one.

    Parameters
    ----------
    images : sequence of uint8 array (H, W, 3)
    folder : path-like
        The folder of the training.
    first : int
        Epochs that the network was trained before.
    """

    def __init__(self, images, folder, first=0):
        super().__init__()
        self.images, self.folder, self.first = images, Path(folder) / "predictions", first

    def on_train_begin(self, logs=None):
        """Record the state before training; that of a training which goes on is there already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._path(0).exists():
            self._record(0)

    def on_epoch_end(self, epoch, logs=None):
        """Record the state after an epoch."""
        self._record(epoch + 1)

    def _path(self, epochs):
        return self.folder / f"epoch_{self.first + epochs:03d}.npz"

    def _record(self, epochs):
        found = predict_masks(self.model, self.images)
        with atomic_write(self._path(epochs)) as aside, aside.open("wb") as file:
            # 8 bits are finer than the eye, and a quarter of the size
            np.savez_compressed(file, *[np.round(255 * one).astype(np.uint8) for one in found])


def read_previews(folder):
    """Read what `Recorder` kept.

    Parameters
    ----------
    folder : path-like
        The folder of the training.

    Returns
    -------
    dict of int to list of float32 array (H, W) in [0, 1]
        For the number of epochs trained, from 0, one map for each image.
    """
    frames = {}
    for path in sorted((Path(folder) / "predictions").glob("epoch_*.npz")):
        with np.load(path) as file:
            frames[int(path.stem.removeprefix("epoch_"))] = [file[name].astype(np.float32) / 255 for name in file.files]
    return frames
