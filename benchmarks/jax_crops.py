"""Cut, augment and label random crops on a GPU, and the depthwise convolution that a GPU trains fast.

The crops are for `benchmarks.train_included_network`, which says how they differ from those of the package.
"""

import functools
import math

import jax
import numpy as np
from jax import numpy as jnp

MAPS = ("mask", "boundary", "distance")


def to_gpu(data_sets: list[dict[str, np.ndarray]]) -> list[dict[str, jax.Array]]:
    """Move the training images of data sets from `train_included_network.pack` to the GPU, with tables to draw crops.

    Each array is filled up to its length in the largest data set, so that one compiled function serves all of them.
    """
    tables = [_with_tables(arrays) for arrays in data_sets]
    lengths = {name: max(len(arrays[name]) for arrays in tables) for name in tables[0]}
    return [
        {name: jnp.asarray(_fill_up(values, lengths[name])) for name, values in arrays.items()} for arrays in tables
    ]


def _with_tables(arrays):
    shapes, distances = arrays["train_shapes"], arrays["train_distances"]
    offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])
    places = np.flatnonzero(distances == 255)  # the middle of each nucleus
    _, types, counts = np.unique(arrays["train_image_types"], return_inverse=True, return_counts=True)
    bounds = np.cumsum(counts[types] ** -0.5)  # a type is drawn in proportion to the square root of its images
    return {
        "shapes": shapes,
        "offsets": offsets.astype(np.int32),
        "bounds": (bounds / bounds[-1]).astype(np.float32),  # image i is drawn by a number between bounds i - 1 and i
        "places": places.astype(np.int32),
        "first_places": np.searchsorted(places, offsets).astype(np.int32),
        "images": np.column_stack([arrays["train_images"], distances]),
        "label_maps": arrays["train_label_maps"],
    }


def _fill_up(values, length):
    return np.pad(values, [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1), mode="edge")


def _reflect(index, side):
    """Reflect indices outside of 0..side-1 at the middle of the first and last pixel."""
    period = jnp.maximum(2 * (side - 1), 1)
    index = jnp.abs(index) % period
    return jnp.minimum(index, period - index)


def random_crops(data, key, count, size, zoom):
    """Cut random crops, rotated, mirrored and zoomed by `2**-zoom` to `2**zoom`.

    Returns images (count, size, size, 3) in [0, 1], label maps and distances (count, size, size).
    """
    keys = jax.random.split(key, 8)
    number = jnp.searchsorted(data["bounds"], jax.random.uniform(keys[0], (count,)))
    number = jnp.minimum(number, len(data["bounds"]) - 1)
    height, width = data["shapes"][number].T
    offset, first = data["offsets"][number], data["first_places"][number]
    centers = data["first_places"][number + 1] - first
    scale = 2.0 ** jax.random.uniform(keys[1], (count,), minval=-zoom, maxval=zoom)
    angle = jax.random.uniform(keys[2], (count,), maxval=2 * math.pi)
    mirror = jax.random.rademacher(keys[3], (count,), jnp.float32)
    radius = size / scale / 2

    def anywhere(key, side):
        margin = jnp.minimum(radius, side / 2)
        return margin + jax.random.uniform(key, (count,)) * (side - 2 * margin)

    random_y, random_x = anywhere(keys[4], height), anywhere(keys[5], width)
    place = data["places"][first + (jax.random.uniform(keys[6], (count,)) * centers).astype(jnp.int32)] - offset
    is_near, shift_y, shift_x = jax.random.uniform(keys[7], (3, count))
    is_near = (is_near < 0.5) & (centers > 0)
    y = jnp.where(is_near, place // width + (shift_y - 0.5) * radius, random_y)
    x = jnp.where(is_near, place % width + (shift_x - 0.5) * radius, random_x)
    # each crop's coordinates (count, size, size) in its image
    rows, columns = jnp.meshgrid(*2 * [jnp.arange(size) - (size - 1) / 2], indexing="ij")
    cos, sin, mirror, y, x, scale, height, width, offset = (
        values[:, None, None] for values in (jnp.cos(angle), jnp.sin(angle), mirror, y, x, scale, height, width, offset)
    )
    across = x + (mirror * cos * columns - sin * rows) / scale
    down = y + (mirror * sin * columns + cos * rows) / scale

    def pixel(row, column):
        return offset + _reflect(row, height) * width + _reflect(column, width)

    top, left = jnp.floor(down).astype(jnp.int32), jnp.floor(across).astype(jnp.int32)
    images = 0
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - jnp.abs(down - top - row)) * (1 - jnp.abs(across - left - column))
        images += weight[..., None] * data["images"][pixel(top + row, left + column)][..., :3]
    nearest = pixel(jnp.round(down).astype(jnp.int32), jnp.round(across).astype(jnp.int32))
    return images / 255, data["label_maps"][nearest].astype(jnp.int32), data["images"][nearest][..., 3] / 255


def random_colours(images, key):
    """Change the colours of each image at random, as `input_pipeline.random_colours` does, and blur some images."""
    count = len(images)
    keys = jax.random.split(key, 10)

    def uniform(number, low, high):
        return jax.random.uniform(keys[number], (count, 1, 1, 1), minval=low, maxval=high)

    images = jnp.where(uniform(0, 0, 1) < 0.1, 1 - images, images)
    # a rotation around the grey axis changes the hue, a stretch from the grey axis changes the saturation
    angle = 2 * math.pi * uniform(1, -0.05, 0.05)
    grey = images @ jnp.array([0.299, 0.587, 0.114])[:, None]
    colour = images - grey
    turned = (jnp.roll(colour, 1, axis=-1) - jnp.roll(colour, -1, axis=-1)) / math.sqrt(3)
    mean = images.mean(axis=-1, keepdims=True) - grey
    colour = jnp.cos(angle) * colour + jnp.sin(angle) * turned + (1 - jnp.cos(angle)) * mean
    strength = uniform(2, 0.3, 0.7)
    images = grey + strength / (1 - strength) * colour
    average = images.mean(axis=(1, 2), keepdims=True)
    images = jnp.clip(average + uniform(3, 0.75, 1.25) * (images - average), 0, 1)
    images = jnp.clip(images + uniform(4, -0.1, 0.1), 0, 1)
    images = images ** jnp.exp(uniform(5, -0.4, 0.4))
    # a Gaussian of 7 pixels
    sigma = uniform(6, 0.4, 1.5)
    window = jnp.exp(-(jnp.arange(-3, 4) ** 2) / (2 * sigma**2))
    window /= window.sum(axis=-1, keepdims=True)
    blurred = images
    for axis in (1, 2):
        edges = [(3, 3) if side == axis else (0, 0) for side in range(4)]
        padded = jnp.pad(blurred, edges, mode="reflect")
        parts = [jax.lax.slice_in_dim(padded, i, i + images.shape[axis], axis=axis) for i in range(7)]
        blurred = sum(window[..., i : i + 1] * part for i, part in enumerate(parts))
    images = jnp.where(uniform(7, 0, 1) < 0.2, blurred, images)
    noise = uniform(8, 0, 0.05) * jax.random.normal(keys[9], images.shape)
    return jnp.clip(images + noise, 0, 1)


def targets_of(label_maps, distances):
    """Return the three targets (batch, H, W, 1): mask, boundary (as `labels.boundary_map`) and distance."""
    padded = jnp.pad(label_maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbours = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    boundary = functools.reduce(jnp.logical_or, [label_maps != neighbour for neighbour in neighbours])
    maps = label_maps > 0, boundary, distances
    return {name: values.astype(jnp.float32)[..., None] for name, values in zip(MAPS, maps, strict=True)}


def shifted_depthwise(self, inputs):
    """Compute a 3x3 depthwise convolution as a sum of nine shifted products, which JAX trains faster on a GPU."""
    stride = self.strides[0]
    if stride == 1:
        inputs = jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = ((side - 3) // stride + 1 for side in inputs.shape[1:3])
    kernel = jnp.asarray(self.kernel)[..., 0]
    parts = [
        inputs[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride] * kernel[i, j]
        for i in range(3)
        for j in range(3)
    ]
    return sum(parts)
