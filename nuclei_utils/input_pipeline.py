"""Build the `tf.data` pipeline that feeds a training: read, normalise, cache, shuffle, crop, augment, batch."""

import hashlib
from collections.abc import Collection, Sequence
from functools import partial

import cv2
import numpy as np
import tensorflow as tf
from skimage.segmentation import relabel_sequential

from nuclei_utils import datasets, labels, preprocess
from nuclei_utils.errors import NucleiError


def read(name: str | None = None, split: str = "train", ids: Collection[str] | None = None) -> tf.data.Dataset:
    """Read one split of a data set as a `tf.data.Dataset`.

    The examples are those of `from_records`. The order is pseudo-random and always the same, as in TensorFlow Datasets
    (`tfds.load("dsb2018/sample")`).

    Parameters
    ----------
    name, split : str
        Names from `datasets.DATASETS` and `datasets.SPLITS`. The default data set is `datasets.current()`.
    ids : collection of str, optional
        Images that are read. The default is all images.
    """
    records = [record for record in datasets.load(name, split) if ids is None or record.id in ids]
    return from_records(sorted(records, key=lambda record: hashlib.md5(f"{split}{record.id}".encode()).digest()))


def from_records(records: Sequence[datasets.Record]) -> tf.data.Dataset:
    """Turn records into a `tf.data.Dataset` of examples.

    The order is that of the records. The arrays stay in memory.

    Returns
    -------
    tf.data.Dataset
        Dictionaries of `id`, `image` uint8 (H, W, 3), `image_type` int64 and `label_map` uint16 (H, W, 1). The image
        type is an index of `datasets.IMAGE_TYPES`, or `len(datasets.IMAGE_TYPES)` if it is unknown.

    Raises
    ------
    NucleiError
        If an image has more than 65,535 nuclei, the largest number of 16 bits.

    Examples
    --------
    >>> record = datasets.Record("a", np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.int32), "")
    >>> [example["label_map"].shape for example in from_records([record])]
    [TensorShape([4, 4, 1])]
    """
    examples = [_example(record) for record in records]
    if not examples:
        raise ValueError("found no records, expected at least one")
    signature = {
        "id": tf.TensorSpec((), tf.string),
        "image": tf.TensorSpec((None, None, 3), tf.uint8),
        "image_type": tf.TensorSpec((), tf.int64),
        "label_map": tf.TensorSpec((None, None, 1), tf.uint16),
    }
    dataset = tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(examples)))


def _example(record):
    label_map = relabel_sequential(record.label_map)[0]
    if (count := label_map.max(initial=0)) > 65535:
        raise NucleiError(f"{record.id}: found {count} nuclei, expected at most 65535: cut the image into tiles")
    return {
        "id": record.id,
        "image": record.image,
        "image_type": (*datasets.IMAGE_TYPES, "").index(record.image_type),
        "label_map": label_map.astype(np.uint16)[..., None],
    }


def training_batches(
    examples: tf.data.Dataset,
    size: int = 256,
    batch_size: int = 8,
    augment: str | None = "all",
    seed: int = 0,
    min_crops: int = 0,
    targets: str = "mask",
) -> tf.data.Dataset:
    """Return batches of random crops for training.

    Parameters
    ----------
    examples : tf.data.Dataset
        Examples as from `read`, without `repeat()`. Each image gives at least one crop in an epoch.
    size : int
        Height and width of the crops, in pixels. Smaller images are padded by reflection.
    batch_size : int
        Number of crops in a batch. The last batch of an epoch is dropped if it is smaller and not the only one.
    augment : "all", "flips" or None
        Random changes of the crops. "all" is CLAHE of some crops and `augment_pair`. "flips" flips half of the crops
        upside down, and half of the crops left to right.
        With `targets="instances"`, "all" is the only choice: rotation, zoom by up to 2, `random_colours`, and
        inversion of some crops.
    seed : int
        Random seed. The same seed gives the same sequence of epochs.
    min_crops : int
        Minimum number of crops of each image type in an epoch. Images of a rare type are used several times; otherwise
        the network can ignore the type.
    targets : "mask" or "instances"
        Targets of a network with one output, or of `models.instance_unet`.

    Returns
    -------
    tf.data.Dataset
        Pairs of images float32 (batch, size, size, 3) in [0, 1] and targets. The targets are masks float32
        (batch, size, size, 1) of 0 and 1, or a dictionary of such arrays: `mask`, `boundary` and `distance` in [0, 1].

    Examples
    --------
    >>> record = datasets.Record("a", np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), np.int32), "")
    >>> images, masks = next(iter(training_batches(from_records([record]), size=16)))
    >>> images.shape, masks.shape
    (TensorShape([1, 16, 16, 3]), TensorShape([1, 16, 16, 1]))
    """
    _check_choice("targets", targets, ("mask", "instances"))
    _check_choice("augment", augment, ("all", "flips", None) if targets == "mask" else ("all",))
    prepare = partial(_prepare_mask, size=size) if targets == "mask" else _prepare_instances
    crop = partial(_random_crop, size=size, augment=augment) if targets == "mask" else partial(_random_warp, size=size)
    # The cache holds the arrays that are equal in every epoch, in 8 or 16 bits to save memory.
    cached = examples.map(prepare, tf.data.AUTOTUNE).cache()
    repeated, count = _repeat_rare_types(cached, min_crops)
    # Each crop has its own random seeds, so that crops are made in parallel and an epoch can be repeated.
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    return (
        tf.data.Dataset.zip(repeated.shuffle(count, seed=seed), seeds)
        .map(lambda example, seed: crop(*example[:-1], seed), tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=count >= batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def validation_batches(
    examples: tf.data.Dataset, size: int = 256, batch_size: int = 8, targets: str = "mask"
) -> tf.data.Dataset:
    """Return batches of center crops for validation.

    Parameters and batches are as for `training_batches`. All images are used, in a fixed order.

    Examples
    --------
    >>> record = datasets.Record("a", np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), np.int32), "")
    >>> images, masks = next(iter(validation_batches(from_records([record]), size=16)))
    >>> images.shape, masks.shape
    (TensorShape([1, 16, 16, 3]), TensorShape([1, 16, 16, 1]))
    """
    _check_choice("targets", targets, ("mask", "instances"))
    crop = partial(_center_crop, size=size, targets=targets)
    return examples.map(crop, tf.data.AUTOTUNE).batch(batch_size).cache().prefetch(tf.data.AUTOTUNE)


def pad_batches(batches: tf.data.Dataset, multiple: int) -> tf.data.Dataset:
    """Pad batches to a multiple of a number of examples.

    A batch repeats its first examples. Several devices then get equal shares of each batch.

    Examples
    --------
    >>> [len(batch) for batch in pad_batches(tf.data.Dataset.range(7).batch(4), 2)]
    [4, 4]
    """

    def pad(*batch):
        size = tf.shape(tf.nest.flatten(batch)[0])[0]
        rows = tf.range(-(-size // multiple) * multiple) % size
        return tf.nest.map_structure(lambda array: tf.gather(array, rows), batch if len(batch) > 1 else batch[0])

    return batches.map(pad, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"found {name}={value!r}, expected {' or '.join(map(repr, choices))}")


def _repeat_rare_types(examples, min_crops):
    """Repeat images until each type has `min_crops` examples.

    The function returns the dataset and its length.
    """
    if examples.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("found examples that never end: remove .repeat(), or end the examples with .take(n)")
    images = np.bincount([int(image_type) for *_, image_type in examples])
    repeats = np.maximum(-(-min_crops // np.maximum(images, 1)), 1)
    count = int(images @ repeats)
    repeats = tf.constant(repeats, tf.int64)
    repeated = examples.flat_map(lambda *example: tf.data.Dataset.from_tensors(example).repeat(repeats[example[-1]]))
    return repeated.apply(tf.data.experimental.assert_cardinality(count)), count


def _random_flip(image, mask, seed):
    """Flip upside down with probability 1/2, and left to right with probability 1/2."""
    pair = tf.concat([image, mask], axis=-1)
    flips = tf.random.stateless_uniform((2,), seed) < 0.5
    pair = tf.cond(flips[0], lambda: tf.reverse(pair, (0,)), lambda: pair)
    pair = tf.cond(flips[1], lambda: tf.reverse(pair, (1,)), lambda: pair)
    return pair[..., :-1], pair[..., -1:]


def random_rotation(image: tf.Tensor, mask: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Rotate an image and its mask by a random angle.

    The parameters are those of `augment_pair`. The corners are filled by reflection. The mask keeps its values because
    it is rotated by nearest neighbour.

    Examples
    --------
    >>> _, mask = random_rotation(tf.zeros((5, 5, 3)), tf.ones((5, 5, 1)), seed=(0, 0))
    >>> bool(tf.reduce_all(mask == 1))
    True
    """
    angle = tf.random.stateless_uniform((), seed, 0, 2 * np.pi)
    cos, sin = tf.cos(angle), tf.sin(angle)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    x, y = (width - 1) / 2, (height - 1) / 2
    transform = tf.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, 0.0, 0.0])

    def rotate(array, interpolation):
        rotated = tf.raw_ops.ImageProjectiveTransformV3(
            images=array[None],
            transforms=transform[None],
            output_shape=tf.shape(array)[:2],
            interpolation=interpolation,
            fill_mode="REFLECT",
            fill_value=0.0,
        )
        return tf.ensure_shape(rotated[0], array.shape)

    return rotate(image, "BILINEAR"), rotate(mask, "NEAREST")


def random_colours(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Change the colours of an image at random.

    Hue, saturation, contrast, brightness, gamma and noise change. The parameters are those of `augment_pair`.

    Examples
    --------
    >>> image = tf.fill((32, 32, 3), 0.5)
    >>> bool(tf.reduce_all(random_colours(image, seed=(0, 0)) == random_colours(image, seed=(0, 0))))
    True
    """
    seeds = tf.random.split(seed, 7)

    def uniform(number, low, high):
        return tf.random.stateless_uniform((), seeds[number], low, high)

    saturation = uniform(1, 0.3, 0.7)
    image = tf.image.stateless_random_hue(image, 0.05, seeds[0])
    image = tf.image.adjust_saturation(image, saturation / (1 - saturation))
    image = tf.clip_by_value(tf.image.stateless_random_contrast(image, 1.0, 1.2, seeds[2]), 0, 1)
    image = tf.clip_by_value(tf.image.stateless_random_brightness(image, 0.1, seeds[3]), 0, 1)
    # The logarithm of gamma is uniform: twice as dark is as likely as twice as bright.
    gamma = tf.exp(uniform(4, -0.4, 0.4))
    image = tf.exp(gamma * tf.math.log(image))  # `image**gamma` takes three times as long
    noise = uniform(5, 0, 0.05) * tf.random.stateless_normal(tf.shape(image), seeds[6])
    return tf.clip_by_value(image + noise, 0, 1)


def augment_pair(image: tf.Tensor, mask: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Flip and rotate an image with its mask, and change colours.

    All changes are random. CLAHE is not included, because it needs images of 8 bits (`training_batches`).

    Parameters
    ----------
    image, mask : float32 tensors (H, W, 3) in [0, 1] and (H, W, 1) of 0 and 1
        The results have the same shapes and ranges.
    seed : int tensor (2,)
        Random seed. The same seed gives the same change.

    Examples
    --------
    >>> image, mask = augment_pair(tf.zeros((32, 32, 3)), tf.zeros((32, 32, 1)), seed=(0, 0))
    >>> image.shape, mask.shape
    (TensorShape([32, 32, 3]), TensorShape([32, 32, 1]))
    """
    flip, rotation, colours = tf.unstack(tf.random.split(seed, 3))
    image, mask = random_rotation(*_random_flip(image, mask, flip), rotation)
    return random_colours(image, colours), mask


def _eight_bits(image):
    return np.round(255 * image).astype(np.uint8)


def _prepare_mask(example, size):
    """Normalise and pad an image with its mask as a fourth channel."""

    def prepare(image, label_map):
        pair = np.concatenate([_eight_bits(preprocess.normalize(image)), (label_map > 0).astype(np.uint8)], axis=-1)
        return preprocess.pad_to(pair, (size, size))

    pair = tf.numpy_function(prepare, [example["image"], example["label_map"]], tf.uint8, stateful=False)
    return tf.ensure_shape(pair, (None, None, 4)), example["image_type"]


def _random_crop(pair, seed, size, augment):
    """Crop an image and its mask as one array; augment both."""
    seeds = tf.random.split(seed, 3)
    pair = tf.image.stateless_random_crop(pair, (size, size, 4), seeds[0])
    image, mask = pair[..., :3], tf.cast(pair[..., 3:], tf.float32)
    if augment == "all":
        equalise = tf.random.stateless_uniform((), seeds[1]) < 0.2
        clahe = partial(tf.numpy_function, preprocess.clahe, [image], tf.uint8, stateful=False)
        image = tf.cond(equalise, clahe, lambda: image)
    image = tf.cast(tf.ensure_shape(image, (size, size, 3)), tf.float32) / 255
    change = {"all": augment_pair, "flips": _random_flip, None: lambda image, mask, seed: (image, mask)}[augment]
    return change(image, mask, seeds[2])


def _prepare_instances(example):
    """Normalise an image, and stack its label map and distance (0..255)."""

    def prepare(image, label_map):
        distance = np.round(255 * labels.distance_map(label_map[..., 0]))
        return _eight_bits(preprocess.normalize(image)), np.dstack([label_map, distance]).astype(np.uint16)

    arrays = [example["image"], example["label_map"]]
    image, maps = tf.numpy_function(prepare, arrays, (tf.uint8, tf.uint16), stateful=False)
    return tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(maps, (None, None, 2)), example["image_type"]


def _random_warp(image, maps, seed, size):
    """Crop, rotate, mirror and zoom at random, and change the colours."""
    warp = partial(_warp, size=size)
    image, targets = tf.numpy_function(warp, [image, maps, seed], (tf.uint8, tf.float32), stateful=False)
    image = tf.cast(tf.ensure_shape(image, (size, size, 3)), tf.float32) / 255
    return random_colours(image, seed), _instance_targets(targets, size)


def _warp(image, maps, seed, size):
    random = np.random.default_rng(seed)
    zoom = 2.0 ** random.uniform(-1, 1)
    angle = random.uniform(0, 2 * np.pi)
    mirror = random.choice([-1, 1])
    radius = size / zoom / 2  # half the width of the crop, in pixels of the image
    centers = np.argwhere(maps[..., 1] == 255)
    if len(centers) and random.random() < 0.5:  # near the center of a nucleus, so that few crops are empty
        y, x = random.choice(centers) + random.uniform(-radius / 2, radius / 2, 2)
    else:
        y, x = (random.uniform(min(radius, side / 2), side - min(radius, side / 2)) for side in image.shape[:2])
    # The matrix maps pixels of the crop to pixels of the image.
    rotation = np.array([[mirror * np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), np.cos(angle)]]) / zoom
    matrix = np.column_stack([rotation, np.array([x, y]) - rotation @ [(size - 1) / 2, (size - 1) / 2]])
    image, maps = (
        cv2.warpAffine(
            array, matrix, (size, size), flags=cv2.WARP_INVERSE_MAP | method, borderMode=cv2.BORDER_REFLECT_101
        )
        for array, method in ((image, cv2.INTER_LINEAR), (maps, cv2.INTER_NEAREST))
    )
    if random.random() < 0.1:
        image = 255 - image
    return image, _stack_targets(maps[..., 0], maps[..., 1] / np.float32(255))


def _stack_targets(label_map, distance):
    return np.dstack([label_map > 0, labels.boundary_map(label_map), distance]).astype(np.float32)


def _instance_targets(targets, size):
    mask, boundary, distance = tf.split(tf.ensure_shape(targets, (size, size, 3)), 3, axis=-1)
    return {"mask": mask, "boundary": boundary, "distance": distance}


def _center_crop(example, size, targets):
    """Normalise an image, and crop the center with its targets."""

    def crop(image, label_map):
        image, label_map = preprocess.normalize(image), label_map[..., 0].astype(np.int32)
        arrays = [image, label_map] if targets == "mask" else [image, label_map, labels.distance_map(label_map)]
        image, label_map, *distance = (
            preprocess.center_crop(preprocess.pad_to(array, (size, size)), (size, size)) for array in arrays
        )
        return image, _stack_targets(label_map, *distance) if distance else np.float32(label_map[..., None] > 0)

    arrays = [example["image"], example["label_map"]]
    image, maps = tf.numpy_function(crop, arrays, (tf.float32, tf.float32), stateful=False)
    maps = tf.ensure_shape(maps, (size, size, 1)) if targets == "mask" else _instance_targets(maps, size)
    return tf.ensure_shape(image, (size, size, 3)), maps
