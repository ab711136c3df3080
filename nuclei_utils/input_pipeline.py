"""From TensorFlow Datasets to batches: read, normalise, cache, shuffle, crop, batch, augment, prefetch."""

import contextlib
import functools
import hashlib
import importlib
import io
import logging
import sys
from functools import partial

import cv2
import numpy as np
import tensorflow as tf
from keras import layers
from skimage.segmentation import relabel_sequential

from nuclei_utils import datasets, labels, preprocess
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import remove_older

CLAHE_SHARE = 0.2
"""Share of the training crops whose local contrast is evened out."""


INVERTED_SHARE = 0.1
"""Share of the crops for instances whose light and dark are exchanged."""


ZOOM = 2.0
"""Most that a crop for instances is enlarged, and reduced."""


def read(name=None, split="train"):
    """Read a data set through TensorFlow Datasets; it is prepared below `datasets.home()` on first use.

    Where TensorFlow Datasets cannot be imported, the same examples are read from the images and masks themselves, in
    the same order, and a line on stderr says so once. (Google Colab had such a pair of libraries in the summer of 2026:
    tensorflow-metadata 1.21 needs a newer protobuf than TensorFlow 2.20 allows.)

    Parameters
    ----------
    name : str, optional
        One of `datasets.DATASETS`; `datasets.current()` if not given.
    split : str
        One of `datasets.SPLITS`.

    Returns
    -------
    tf.data.Dataset
        Of dictionaries `image` uint8 (H, W, 3), `labels` uint16 (H, W, 1), `id` and `image_type`, sizes as they are.

    Raises
    ------
    errors.NucleiError
        If the data set or the split is unknown, or the images have not been fetched yet.
    """
    name = name or datasets.current()
    datasets.ids(name, split)  # refuses an unknown split
    tfds = _tensorflow_datasets()
    if tfds is None:
        # TFDS mixes the examples of a split in this way
        return from_records(
            sorted(datasets.load(name, split), key=lambda r: hashlib.md5(f"{split}{r.id}".encode()).digest())
        )
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


@functools.cache
def _tensorflow_datasets():
    """Import TensorFlow Datasets; where that fails, say so once and return None."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # TFDS logs a long traceback, and leaves a module without functions
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError:
        tfds = None
    finally:
        logging.disable(before)
    if hasattr(tfds, "builder"):
        return tfds
    print(
        "TensorFlow Datasets cannot be imported here (`python -c 'import tensorflow_datasets'` says why). "
        "The images are read without it; nothing else changes.",
        file=sys.stderr,
    )
    return None


def _prepared_folder(name):
    """Where a data set is prepared: another folder for other files or another split, so that none is stale."""
    state = f"{datasets._fingerprint(name)}\n{datasets.split_table(name).to_csv()}"
    return datasets.home() / "tfds" / f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"


def from_records(records):
    """Turn records, such as those of a folder of one's own (`datasets.read_folder`), into examples as `read` gives them.

    Parameters
    ----------
    records : sequence of datasets.Record
        They stay in memory.

    Returns
    -------
    tf.data.Dataset
        Of dictionaries as from `read`, in the same order. Where the image type is not known, its number is
        `len(datasets.IMAGE_TYPES)`: for `training_batches` all such images are of one image_type.

    Raises
    ------
    ValueError
        If there is no record.
    errors.NucleiError
        If an image has more nuclei than 16 bits can number.
    """
    records = list(records)
    if not records:
        raise ValueError("there is no record to make an example of")
    records = [record._replace(label_map=relabel_sequential(record.label_map)[0]) for record in records]
    for record in records:
        if record.label_map.max(initial=0) > np.iinfo(np.uint16).max:
            raise NucleiError(
                f"{record.id}: {record.label_map.max()} nuclei are too many for 16 bits: cut the image up"
            )
    image_types = {image_type: number for number, image_type in enumerate((*datasets.IMAGE_TYPES, ""))}

    def generate():
        for record in records:
            label_map = record.label_map.astype(np.uint16)[..., None]
            yield {
                "id": record.id,
                "image": record.image,
                "image_type": image_types[record.image_type],
                "label_map": label_map,
            }

    signature = {
        "id": tf.TensorSpec((), tf.string),
        "image": tf.TensorSpec((None, None, 3), tf.uint8),
        "image_type": tf.TensorSpec((), tf.int64),
        "label_map": tf.TensorSpec((None, None, 1), tf.uint16),
    }
    examples = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return examples.apply(tf.data.experimental.assert_cardinality(len(records)))


def select(examples, ids):
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


def training_batches(examples, size=256, batch_size=8, augment="all", seed=0, min_crops=0):
    """Turn examples into batches for training: every image once an epoch or more often, each time as a random crop.

    Parameters
    ----------
    examples : tf.data.Dataset
        From `read`.
    size : int
        Height and width of the crops, pixels; smaller images are padded by reflection.
    batch_size : int
        Crops per batch; what is left over at the end of an epoch is dropped, so that all batches are alike.
    augment : "all", "flips" or None
        Change images and masks at random: CLAHE of some crops, then `augmentation`; or `flips` alone.
    seed : int
        Same seed, same order, crops and changes, epoch for epoch.
    min_crops : int
        Least number of crops of each image type in an epoch. The images of a rare image_type are gone through several
        times; otherwise the network does well to ignore the image_type.

    Returns
    -------
    tf.data.Dataset
        Of (image float32 (batch, size, size, 3) in [0, 1], mask float32 (batch, size, size, 1) of 0 and 1).

    Raises
    ------
    ValueError
        If the examples never end, or `augment` is something else.
    """
    changes = {"all": augmentation, "flips": random_flip}
    if augment is not None and augment not in changes:
        raise ValueError(f'augment is {augment!r}: choose "all", "flips" or None')
    cached = (
        examples.map(_image_mask_and_kind, tf.data.AUTOTUNE)
        .map(_normalised, tf.data.AUTOTUNE)
        .map(_as_8_bits, tf.data.AUTOTUNE)
        .cache()  # what is the same in every epoch is done once, and kept in a quarter of the memory
    )
    rounds, count = _rounds(cached, min_crops)
    crops = _repeated(cached, rounds, count).shuffle(count, seed=seed)
    # random numbers come from a stream beside the examples: cores can share the work, and it can still be repeated
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(3)
    batches = (
        tf.data.Dataset.zip(crops, draws)
        .map(lambda example, draw: _random_crop(*example[:2], draw, size, augment == "all"), tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=count >= batch_size)
    )
    if augment:
        batches = batches.map(changes[augment](seed))
    return batches.prefetch(tf.data.AUTOTUNE)


def _rounds(examples, min_crops):
    """How often the images of each image_type are gone through in an epoch, and how many crops that makes."""
    if examples.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("these examples never end: leave out .repeat(), or end them with .take(n)")
    images = np.bincount([int(image_type) for _, _, image_type in examples], minlength=len(datasets.IMAGE_TYPES))
    rounds = np.maximum(-(-min_crops // np.maximum(images, 1)), 1)
    return tf.constant(rounds, tf.int64), int(images @ rounds)


def _repeated(examples, rounds, count):
    """Go through the images of each image_type as often as `_rounds` says."""
    repeated = examples.flat_map(lambda *example: tf.data.Dataset.from_tensors(example).repeat(rounds[example[-1]]))
    return repeated.apply(tf.data.experimental.assert_cardinality(count))


def instance_batches(examples, size=128, batch_size=16, seed=0, min_crops=0):
    """Turn examples into batches for a network that separates nuclei: each crop turned, mirrored and zoomed at random.

    Nuclei of the reader's images may have any size, so every crop is zoomed by up to `ZOOM` either way; some are
    inverted, so that a network learns bright nuclei on dark ground and dark ones on bright.

    Parameters
    ----------
    examples, batch_size, seed, min_crops
        As for `training_batches`.
    size : int
        Height and width of the crops, pixels; what lies outside an image is filled by reflection.

    Returns
    -------
    tf.data.Dataset
        Of (image float32 (batch, size, size, 3) in [0, 1], targets): the dictionary of `mask`, `boundary` and
        `distance`, float32 (batch, size, size, 1), that `models.instance_unet` learns.
    """
    cached = examples.map(_image_labels_and_distance, tf.data.AUTOTUNE).cache()
    rounds, count = _rounds(cached, min_crops)
    crops = _repeated(cached, rounds, count).shuffle(count, seed=seed)
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    batches = (
        tf.data.Dataset.zip(crops, draws)
        .map(lambda example, draw: _turned_crop(*example[:2], draw, size), tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=count >= batch_size)
    )
    colours = colour_augmentation(seed)
    return batches.map(lambda images, targets: (colours(images), targets)).prefetch(tf.data.AUTOTUNE)


def instance_validation_batches(examples, size=256, batch_size=8):
    """Turn examples into batches for the validation of a network that separates nuclei: the middle of every image.

    Parameters and return value are those of `instance_batches`; nothing is dropped, shuffled or augmented.
    """
    return (
        examples.map(_image_labels_and_distance, tf.data.AUTOTUNE)
        .map(lambda image, both, _: _middle_of_instances(image, both, size), tf.data.AUTOTUNE)
        .batch(batch_size)
        .cache()
        .prefetch(tf.data.AUTOTUNE)
    )


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


def random_flip(seed=0):
    """Make the function that mirrors a batch at random, image and mask together: no pixel changes its value.

    Parameters and return value are those of `augmentation`.
    """
    return _together(layers.RandomFlip("horizontal_and_vertical", seed=seed))


def random_rotation(seed=0):
    """Make the function that turns a batch at random by any angle, image and mask together.

    Masks stay masks of 0 and 1. Parameters and return value are those of `augmentation`.
    """
    return _together(layers.RandomRotation(0.5, fill_mode="reflect", seed=seed))


def augmentation(seed=0):
    """Make the function that changes a batch at random, image and mask together.

    Geometry (`flips`, `rotation`) moves both; colour and noise (`colour_augmentation`) change the image alone. CLAHE
    works on 8-bit crops and comes before (`training_batches`).

    Parameters
    ----------
    seed : int

    Returns
    -------
    callable
        (images float32 (batch, H, W, 3) in [0, 1], masks float32 (batch, H, W, 1)) to the same.
    """
    flip, turn, colours = random_flip(seed), random_rotation(seed + 1), colour_augmentation(seed + 2)

    def augment(images, masks):
        images, masks = turn(*flip(images, masks))
        return colours(images), masks

    return augment


def _together(layer):
    """Make the function that applies one of Keras' layers to images and masks alike."""

    def change(images, masks):
        batch = layer({"images": images, "segmentation_masks": masks}, training=True)
        # Keras 3.13 turns masks by interpolation, other versions by nearest neighbour
        return batch["images"], tf.round(batch["segmentation_masks"])

    return change


def colour_augmentation(seed=0):
    """Make the function that changes the colours of a batch at random: hue, saturation, brightness, contrast, noise.

    Keras' own layers, but for gamma, which Keras lacks, and noise: `keras.layers.GaussianNoise` belongs inside a
    network, and runs in `tf.data` on the TensorFlow backend only.

    Parameters
    ----------
    seed : int

    Returns
    -------
    callable
        Images float32 (batch, H, W, 3) in [0, 1] to the same.
    """
    colours = [
        layers.RandomHue(0.1, value_range=(0, 1), seed=seed),
        layers.RandomSaturation((0.3, 0.7), value_range=(0, 1), seed=seed + 1),
        layers.RandomContrast(0.2, value_range=(0, 1), seed=seed + 2),
        layers.RandomBrightness(0.1, value_range=(0, 1), seed=seed + 3),
    ]
    with tf.device("CPU"):  # where tf.data runs, GPU or not
        random = tf.random.Generator.from_seed(seed + 4)

    def augment(images):
        for layer in colours:
            images = layer(images, training=True)
        each = (tf.shape(images)[0], 1, 1, 1)
        # gamma is drawn on a log scale: twice as dark is as likely as twice as bright
        gamma = tf.exp(random.uniform(each, -0.4, 0.4))
        noise = random.uniform(each, 0, 0.05) * random.normal(tf.shape(images))
        return tf.clip_by_value(tf.clip_by_value(images, 0, 1) ** gamma + noise, 0, 1)

    return augment


def _image_mask_and_kind(example):
    return example["image"], tf.cast(example["label_map"] > 0, tf.float32), example["image_type"]


def _normalised(image, mask, image_type):
    normal = tf.numpy_function(preprocess.normalize, [image], tf.float32, stateful=False)
    return tf.ensure_shape(normal, (None, None, 3)), mask, image_type


def _as_8_bits(image, mask, image_type):
    return tf.cast(tf.round(255 * image), tf.uint8), tf.cast(mask, tf.uint8), image_type


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


def _image_labels_and_distance(example):
    arrays = tf.numpy_function(
        _prepared_instances, [example["image"], example["label_map"][..., 0]], (tf.uint8, tf.int32), stateful=False
    )
    image, both = arrays
    return tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(both, (None, None, 2)), example["image_type"]


def _prepared_instances(image, label_map):
    """Normalise an image, and put its label map and its map of distances (0..255) into one array."""
    depth = np.round(255 * labels.distance_map(label_map))
    normal = np.round(255 * preprocess.normalize(image)).astype(np.uint8)
    return normal, np.stack([label_map, depth], axis=-1).astype(np.int32)


def _turned_crop(image, both, draw, size):
    cut = partial(_cut_turned, size=size)
    return _instances(tf.numpy_function(cut, [image, both, draw], (tf.uint8, tf.int32)), size)


def _middle_of_instances(image, both, size):
    cut = partial(_cut_both_middles, size=size)
    return _instances(tf.numpy_function(cut, [image, both], (tf.uint8, tf.int32), stateful=False), size)


def _instances(crops, size):
    """Make the dictionary of targets of a crop."""
    image, both = crops
    boundary = tf.numpy_function(labels.boundary_map, [both[..., 0]], tf.bool, stateful=False)
    targets = {
        "mask": tf.cast(both[..., :1] > 0, tf.float32),
        "boundary": tf.cast(tf.ensure_shape(boundary, (size, size))[..., None], tf.float32),
        "distance": tf.cast(both[..., 1:], tf.float32) / 255,
    }
    targets = {name: tf.ensure_shape(target, (size, size, 1)) for name, target in targets.items()}
    return tf.cast(tf.ensure_shape(image, (size, size, 3)), tf.float32) / 255, targets


def _cut_turned(image, both, draw, size):
    """Cut a square out of an image at any place, angle and zoom, mirrored or not, and sometimes inverted."""
    random = np.random.default_rng(draw)
    zoom = ZOOM ** random.uniform(-1, 1)
    angle = random.uniform(0, 2 * np.pi)
    mirror = random.choice([-1, 1])
    reach = size / zoom / 2
    deepest = np.argwhere(both[..., 1] == 255)
    if len(deepest) and random.random() < 0.5:  # near the middle of a nucleus, so that few crops are empty
        y, x = random.choice(deepest) + random.uniform(-reach / 2, reach / 2, 2)
    else:  # anywhere
        y, x = (random.uniform(min(reach, side / 2), side - min(reach, side / 2)) for side in image.shape[:2])
    # from pixels of the crop to pixels of the image
    turn = np.array([[mirror * np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), np.cos(angle)]]) / zoom
    matrix = np.column_stack([turn, np.array([x, y]) - turn @ [(size - 1) / 2, (size - 1) / 2]])
    options = {"dsize": (size, size), "borderMode": cv2.BORDER_REFLECT_101}
    crop = cv2.warpAffine(image, matrix, flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR, **options)
    # labels by nearest neighbour; OpenCV turns 16-bit integers, not 32-bit ones
    turned = cv2.warpAffine(both.astype(np.uint16), matrix, flags=cv2.WARP_INVERSE_MAP | cv2.INTER_NEAREST, **options)
    if random.random() < INVERTED_SHARE:
        crop = 255 - crop
    return crop, turned.astype(np.int32)


def _cut_both_middles(image, both, size):
    return _cut_middle(image, size), _cut_middle(both, size)


def _cut_at_random(both, draw, size, augment):
    both = preprocess.pad_to(both, (size, size))
    top, left = (int(number) % (length - size + 1) for number, length in zip(draw[:2], both.shape[:2], strict=True))
    both = preprocess.crop(both, top, left, (size, size))
    if augment and draw[2] < CLAHE_SHARE * 2**32:
        both = np.concatenate([preprocess.clahe(both[..., :3]), both[..., 3:]], axis=-1)
    return both


def _cut_middle(both, size):
    return preprocess.center_crop(preprocess.pad_to(both, (size, size)), (size, size))
