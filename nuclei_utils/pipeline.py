"""From TensorFlow Datasets to batches: read, cache, shuffle, normalise, crop, batch, augment, prefetch."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages say nothing that a reader needs

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from keras import layers

import nuclei_utils.dsb2018  # noqa: F401  registers the builder
from nuclei_utils import data, preprocess


def read(name=None, split="train"):
    """Read a data set through TensorFlow Datasets; it is prepared below `data.home()` on first use.

    Parameters
    ----------
    name : str, optional
        One of `data.NAMES`; `data.current()` if not given.
    split : str
        One of `data.SPLITS`, or TFDS' own notation, such as "train[:10]".

    Returns
    -------
    tf.data.Dataset
        Of dictionaries `image` uint8 (H, W, 3), `labels` uint16 (H, W, 1), `id` and `kind`, sizes as they are.
    """
    place = str(data.home() / "tfds")
    return tfds.load(f"dsb2018/{name or data.current()}", split=split, data_dir=place, shuffle_files=False)


def training_batches(examples, size=256, batch_size=8, augment=True, seed=0):
    """Turn examples into batches for training: every image once an epoch, as one random crop.

    Parameters
    ----------
    examples : tf.data.Dataset
        From `read`.
    size : int
        Height and width of the crops, pixels; smaller images are padded by reflection.
    batch_size : int
        Crops per batch; what is left over at the end of an epoch is dropped, so that all batches are alike.
    augment : bool
        Change images and masks at random (`augmentation`).
    seed : int
        Same seed, same order, crops and changes.

    Returns
    -------
    tf.data.Dataset
        Of (image float32 (batch, size, size, 3) in [0, 1], mask float32 (batch, size, size, 1) of 0 and 1).
    """
    count = max(int(examples.cardinality()), 1)
    batches = (
        examples.map(_image_and_mask, tf.data.AUTOTUNE)
        .cache()  # decoded images, 8 bits: decoding is done once
        .shuffle(count, seed=seed)
    )
    if augment:
        equalise = tf.random.Generator.from_seed(seed)
        batches = batches.map(lambda image, mask: (_maybe_clahe(image, equalise), mask))
    corners = tf.random.Generator.from_seed(seed + 1)
    batches = batches.map(_normalised, tf.data.AUTOTUNE).map(
        lambda image, mask: _random_crop(image, mask, size, corners)
    )
    batches = batches.batch(batch_size, drop_remainder=count >= batch_size)
    if augment:
        batches = batches.map(augmentation(seed))
    return batches.prefetch(tf.data.AUTOTUNE)


def validation_batches(examples, size=256, batch_size=8):
    """Turn examples into batches for validation: the middle of every image, always the same.

    Parameters and return value are those of `training_batches`; nothing is dropped, shuffled or augmented.
    """
    return (
        examples.map(_image_and_mask, tf.data.AUTOTUNE)
        .map(_normalised, tf.data.AUTOTUNE)
        .map(lambda image, mask: _middle_crop(image, mask, size))
        .batch(batch_size)
        .cache()
        .prefetch(tf.data.AUTOTUNE)
    )


def augmentation(seed=0, strength=1.0):
    """Make the function that changes a batch at random, image and mask together.

    Geometry (flips, rotation by any angle) moves both, masks by nearest neighbour; colour (hue, saturation,
    brightness, contrast, gamma) and Gaussian noise change the image alone. Keras' own layers, but for gamma, which
    Keras lacks. CLAHE works on whole images and comes before the crop.

    Parameters
    ----------
    seed : int
    strength : float
        1 is the course's choice, 0 leaves the colours as they are.

    Returns
    -------
    callable
        (images float32 (batch, H, W, 3) in [0, 1], masks float32 (batch, H, W, 1)) to the same.
    """
    together = [
        layers.RandomFlip("horizontal_and_vertical", seed=seed),
        layers.RandomRotation(0.5, fill_mode="reflect", seed=seed + 1),
        layers.RandomHue(0.1 * strength, value_range=(0, 1), seed=seed + 2),
        layers.RandomSaturation((0.5 - 0.2 * strength, 0.5 + 0.2 * strength), value_range=(0, 1), seed=seed + 3),
        layers.RandomContrast(0.2 * strength, value_range=(0, 1), seed=seed + 4),
        layers.RandomBrightness(0.1 * strength, value_range=(0, 1), seed=seed + 5),
    ]
    noise = layers.GaussianNoise(0.03 * strength, seed=seed + 6)
    exponents = tf.random.Generator.from_seed(seed + 7)

    def augment(images, masks):
        batch = {"images": images, "segmentation_masks": masks}
        for layer in together:
            batch = layer(batch, training=True)
        # gamma is drawn on a log scale: twice as dark is as likely as twice as bright
        spread = 0.4 * strength
        gamma = tf.exp(exponents.uniform((tf.shape(images)[0], 1, 1, 1), -spread, spread))
        images = noise(tf.clip_by_value(batch["images"], 0, 1) ** gamma, training=True)
        return tf.clip_by_value(images, 0, 1), batch["segmentation_masks"]

    return augment


def _image_and_mask(example):
    return example["image"], tf.cast(example["labels"] > 0, tf.uint8)


def _normalised(image, mask):
    normal = tf.numpy_function(preprocess.normalize, [image], tf.float32)
    return tf.ensure_shape(normal, (None, None, 3)), tf.cast(mask, tf.float32)


def _maybe_clahe(image, generator):
    def equalised():
        return tf.ensure_shape(tf.numpy_function(preprocess.clahe, [image], tf.uint8), (None, None, 3))

    return tf.cond(generator.uniform(()) < 0.2, equalised, lambda: image)


def _padded(image, mask, size):
    """Image and mask in one array, so that no later step can move them apart."""

    def pad(image, mask):
        return preprocess.pad_to(np.concatenate([image, mask], axis=-1), (size, size))

    return tf.ensure_shape(tf.numpy_function(pad, [image, mask], tf.float32), (None, None, 4))


def _random_crop(image, mask, size, generator):
    both = _padded(image, mask, size)
    free = tf.shape(both)[:2] - size
    top = generator.uniform((), 0, free[0] + 1, tf.int32)
    left = generator.uniform((), 0, free[1] + 1, tf.int32)
    return _window(both, top, left, size)


def _middle_crop(image, mask, size):
    both = _padded(image, mask, size)
    free = tf.shape(both)[:2] - size
    return _window(both, free[0] // 2, free[1] // 2, size)


def _window(both, top, left, size):
    window = tf.ensure_shape(both[top : top + size, left : left + size], (size, size, 4))
    return window[..., :3], window[..., 3:]
