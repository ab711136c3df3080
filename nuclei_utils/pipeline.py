"""From TensorFlow Datasets to batches: read, normalise, cache, shuffle, crop, batch, augment, prefetch."""

import contextlib
import hashlib
import io
import sys
from functools import partial

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from keras import layers

from nuclei_utils import data, preprocess
from nuclei_utils.files import remove_older

CLAHE_SHARE = 0.2
"""Share of the training crops whose local contrast is evened out."""


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
    name = name or data.current()
    place = _prepared_folder(name)  # once: it looks at every file of the data set
    builder = tfds.builder(f"dsb2018/{name}", data_dir=place)
    if not builder.data_path.exists():
        print(f"preparing {name} for TensorFlow Datasets, once", file=sys.stderr)
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints where on this machine the files are
                builder.download_and_prepare()
        except FileExistsError:  # another notebook was quicker, and its copy is as good
            builder = tfds.builder(f"dsb2018/{name}", data_dir=place)
        remove_older(place)
    return builder.as_dataset(split=split, shuffle_files=False)


def _prepared_folder(name):
    """Where a data set is prepared: another folder for other files or another split, so that none is stale."""
    state = f"{data.state(name)}\n{data.splits(name).to_csv()}"
    return data.home() / "tfds" / f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"


def only(examples, ids):
    """Keep the examples of some images.

    Parameters
    ----------
    examples : tf.data.Dataset
        From `read`.
    ids : sequence of str

    Returns
    -------
    tf.data.Dataset
    """
    return examples.filter(lambda example: tf.reduce_any(example["id"] == tf.constant(ids)))


def training_batches(examples, size=256, batch_size=8, augment=True, seed=0, at_least=0):
    """Turn examples into batches for training: every image once an epoch or more often, each time as a random crop.

    Parameters
    ----------
    examples : tf.data.Dataset
        From `read`.
    size : int
        Height and width of the crops, pixels; smaller images are padded by reflection.
    batch_size : int
        Crops per batch; what is left over at the end of an epoch is dropped, so that all batches are alike.
    augment : bool
        Change images and masks at random (CLAHE of some crops, then `augmentation`).
    seed : int
        Same seed, same order, crops and changes, epoch for epoch.
    at_least : int
        Least number of crops of each kind of image in an epoch. The images of a rare kind are gone through several
        times; otherwise the network does well to ignore the kind.

    Returns
    -------
    tf.data.Dataset
        Of (image float32 (batch, size, size, 3) in [0, 1], mask float32 (batch, size, size, 1) of 0 and 1).

    Raises
    ------
    ValueError
        If the examples never end.
    """
    cached = (
        examples.map(_image_mask_and_kind, tf.data.AUTOTUNE)
        .map(_normalised, tf.data.AUTOTUNE)
        .map(_as_8_bits, tf.data.AUTOTUNE)
        .cache()  # what is the same in every epoch is done once, and kept in a quarter of the memory
    )
    rounds, count = _rounds(cached, at_least)
    crops = (
        cached.flat_map(lambda *example: tf.data.Dataset.from_tensors(example).repeat(rounds[example[-1]]))
        .apply(tf.data.experimental.assert_cardinality(count))
        .shuffle(count, seed=seed)
    )
    # random numbers come from a stream beside the examples: cores can share the work, and it can still be repeated
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(3)
    batches = (
        tf.data.Dataset.zip(crops, draws)
        .map(lambda example, draw: _random_crop(*example[:2], draw, size, augment), tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=count >= batch_size)
    )
    if augment:
        batches = batches.map(augmentation(seed))
    return batches.prefetch(tf.data.AUTOTUNE)


def _rounds(examples, at_least):
    """How often the images of each kind are gone through in an epoch, and how many crops that makes."""
    if examples.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("these examples never end: leave out .repeat(), or end them with .take(n)")
    images = np.bincount([int(kind) for _, _, kind in examples], minlength=len(data.KINDS))
    rounds = np.maximum(-(-at_least // np.maximum(images, 1)), 1)
    return tf.constant(rounds, tf.int64), int(images @ rounds)


def validation_batches(examples, size=256, batch_size=8):
    """Turn examples into batches for validation: the middle of every image, always the same.

    Parameters and return value are those of `training_batches`; nothing is dropped, shuffled or augmented.
    """
    return (
        examples.map(_image_mask_and_kind, tf.data.AUTOTUNE)
        .map(_normalised, tf.data.AUTOTUNE)
        .map(lambda image, mask, _: _middle_crop(image, mask, size), tf.data.AUTOTUNE)
        .batch(batch_size)
        .cache()
        .prefetch(tf.data.AUTOTUNE)
    )


def augmentation(seed=0):
    """Make the function that changes a batch at random, image and mask together.

    Geometry (flips, rotation by any angle) moves both, masks by nearest neighbour; colour (hue, saturation,
    brightness, contrast, gamma) and Gaussian noise change the image alone. Keras' own layers, but for gamma, which
    Keras lacks, and noise: `keras.layers.GaussianNoise` belongs inside a network, and runs in `tf.data` on the
    TensorFlow backend only. CLAHE works on 8-bit crops and comes before (`training_batches`).

    Parameters
    ----------
    seed : int

    Returns
    -------
    callable
        (images float32 (batch, H, W, 3) in [0, 1], masks float32 (batch, H, W, 1)) to the same.
    """
    together = [
        layers.RandomFlip("horizontal_and_vertical", seed=seed),
        layers.RandomRotation(0.5, fill_mode="reflect", seed=seed + 1),
    ]
    colours = [
        layers.RandomHue(0.1, value_range=(0, 1), seed=seed + 2),
        layers.RandomSaturation((0.3, 0.7), value_range=(0, 1), seed=seed + 3),
        layers.RandomContrast(0.2, value_range=(0, 1), seed=seed + 4),
        layers.RandomBrightness(0.1, value_range=(0, 1), seed=seed + 5),
    ]
    with tf.device("CPU"):  # where tf.data runs, GPU or not
        random = tf.random.Generator.from_seed(seed + 6)

    def augment(images, masks):
        batch = {"images": images, "segmentation_masks": masks}
        for layer in together:
            batch = layer(batch, training=True)
        images, masks = batch["images"], batch["segmentation_masks"]
        for layer in colours:
            images = layer(images, training=True)
        each = (tf.shape(images)[0], 1, 1, 1)
        # gamma is drawn on a log scale: twice as dark is as likely as twice as bright
        gamma = tf.exp(random.uniform(each, -0.4, 0.4))
        noise = random.uniform(each, 0, 0.05) * random.normal(tf.shape(images))
        return tf.clip_by_value(tf.clip_by_value(images, 0, 1) ** gamma + noise, 0, 1), masks

    return augment


def _image_mask_and_kind(example):
    return example["image"], tf.cast(example["labels"] > 0, tf.float32), example["kind"]


def _normalised(image, mask, kind):
    normal = tf.numpy_function(preprocess.normalize, [image], tf.float32, stateful=False)
    return tf.ensure_shape(normal, (None, None, 3)), mask, kind


def _as_8_bits(image, mask, kind):
    return tf.cast(tf.round(255 * image), tf.uint8), tf.cast(mask, tf.uint8), kind


def _random_crop(image, mask, draw, size, augment):
    return _window(partial(_cut_at_random, size=size, augment=augment), image, mask, size, draw)


def _middle_crop(image, mask, size):
    return _window(partial(_cut_middle, size=size), image, mask, size)


def _window(cut, image, mask, size, *arguments):
    """Cut image and mask as one array, so that no step can move them apart; 8-bit images become [0, 1]."""
    scale = 255 if image.dtype == tf.uint8 else 1
    both = tf.concat([image, mask], axis=-1)
    both = tf.numpy_function(cut, [both, *arguments], both.dtype, stateful=False)
    both = tf.cast(tf.ensure_shape(both, (size, size, 4)), tf.float32)
    return both[..., :3] / scale, both[..., 3:]


def _cut_at_random(both, draw, size, augment):
    both = preprocess.pad_to(both, (size, size))
    top, left = (int(number) % (length - size + 1) for number, length in zip(draw[:2], both.shape[:2], strict=True))
    both = preprocess.crop(both, top, left, (size, size))
    if augment and draw[2] < CLAHE_SHARE * 2**32:
        both = np.concatenate([preprocess.clahe(both[..., :3]), both[..., 3:]], axis=-1)
    return both


def _cut_middle(both, size):
    both = preprocess.pad_to(both, (size, size))
    return preprocess.crop(both, (both.shape[0] - size) // 2, (both.shape[1] - size) // 2, (size, size))
