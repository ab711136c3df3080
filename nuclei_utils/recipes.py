"""How the course trains its three networks: the same data, budget and loss for all, so that they can be compared."""

import os
from functools import partial
from pathlib import Path

import keras
import pandas as pd

from nuclei_utils import datasets, input_pipeline, models, predict, preprocess, training
from nuclei_utils.errors import NucleiError

SIZE = 128
"""Height and width of the crops that the networks are trained on, pixels."""


BATCH = 16
"""Crops in a batch."""


FILTERS = 16
"""Feature maps of the networks at full size."""


LEARNING_RATE = 1e-3
"""Highest learning rate of random weights."""


FINE_TUNING_RATE = 1e-4
"""Highest learning rate once pretrained weights are trained, so that they are changed and not forgotten."""


FINE_TUNED_BLOCKS = 10
"""Of MobileNetV2's 16 blocks, how many are fine-tuned: those from 1/16 of the image's size on."""


TITLES = {"unet": "U-Net", "mobilenet_unet": "U-Net on MobileNetV2", "unet_plus_plus": "U-Net++"}
"""The networks of the course, in its order, and what tables and figures call them."""


def batches(seed=0, share=1.0):
    """Read and batch what the course trains and validates on.

    Parameters
    ----------
    seed : int
        Of the order, the crops, the augmentation, and the choice of images.
    share : float
        Share of the training images to use, 0..1; of each image_type at least one.

    Returns
    -------
    train, validation : tf.data.Dataset
        As from `input_pipeline.training_batches` and `input_pipeline.validation_batches`.
    """
    profile = training.profile()
    examples = input_pipeline.read(split="train")
    if share < 1:
        examples = input_pipeline.select(examples, some_ids(share, seed))
    train = input_pipeline.training_batches(
        examples.take(profile.images), SIZE, BATCH, profile.augment, seed, min_crops=profile.crops
    )
    validation = input_pipeline.read(split="validation").take(profile.images)
    return train, input_pipeline.validation_batches(validation, 2 * SIZE, BATCH)


def some_ids(share, seed=0):
    """Choose a share of the training images at random, of each image_type at least one; a larger share holds the smaller.

    Parameters
    ----------
    share : float
        0..1.
    seed : int

    Returns
    -------
    list of str
        Ids.
    """
    table = datasets.split_table(datasets.current())
    table = table[table["split"] == "train"].sample(frac=1, random_state=seed)
    return [
        name
        for _, image_type in table.groupby("image_type")["id"]
        for name in image_type.iloc[: max(round(share * len(image_type)), 1)]
    ]


def folder(name):
    """Return where the notebooks leave a network with the data and profile at hand: below `runs/` where they run."""
    return Path("runs") / f"{name}_{datasets.current()}_{training.profile().name}"


def watched():
    """Return what is watched while a network learns: one validation image of each image_type, its middle 256 pixels.

    Returns
    -------
    list of datasets.Record
    """
    records = datasets.load(split="validation")
    first = [
        next(record for record in records if record.image_type == image_type)
        for image_type in sorted({r.image_type for r in records})
    ]
    middle = partial(preprocess.center_crop, size=(256, 256))
    return [record._replace(image=middle(record.image), label_map=middle(record.label_map)) for record in first]


def pretrained():
    """Look for ImageNet's weights of MobileNetV2, and say so where there are none.

    Returns
    -------
    "imagenet" or None
        What `build` takes as weights.

    Raises
    ------
    FileNotFoundError
        If `$NUCLEI_MOBILENET_WEIGHTS` names no file.
    errors.NucleiError
        If that file does not hold the weights of MobileNetV2.
    """
    try:
        models.mobilenet_encoder("imagenet")
    except ConnectionError as error:
        print(f"{error}.\nGoing on with a random encoder: this is not transfer learning.")
        return None
    except FileNotFoundError:
        raise
    except Exception as error:  # a file may hold anything
        path = os.environ.get(models.WEIGHTS)
        if path is None:
            raise
        reason, *_ = str(error).split("\n")
        raise NucleiError(
            f"{path}, which ${models.WEIGHTS} names, does not hold the weights of keras.applications.MobileNetV2 "
            f"(include_top=False): {reason}"
        ) from error
    return "imagenet"


def build(name, weights="imagenet", filters=None):
    """Build one of the networks of the course, not yet trained.

    Parameters
    ----------
    name : str
        One of `TITLES`, or "instance_unet".
    weights : "imagenet", path-like or None
        Of the encoder, where it is a MobileNetV2; that of `mobilenet_unet` is frozen if it is pretrained.
    filters : int, optional
        Feature maps at full size; `FILTERS` if not given.

    Returns
    -------
    keras.Model

    Raises
    ------
    ValueError
        If there is no network of this name.
    """
    filters = filters or FILTERS
    if name == "unet":
        return models.unet(filters=filters)
    if name == "mobilenet_unet":
        return models.mobilenet_unet(weights=weights, trainable=weights is None, filters=filters)
    if name == "unet_plus_plus":
        return models.unet_plus_plus(filters=filters)
    if name == "instance_unet":
        return models.instance_unet(weights=weights, filters=filters)
    raise ValueError(f"no network {name!r} in the course: choose one of {', '.join(TITLES)}, instance_unet")


def fit(name, model, crops, validation, folder, epochs, weights, patience=10, watch=(), verbose="auto"):
    """Train a network that finds masks, in one phase, or in two if its encoder is pretrained.

    A pretrained encoder rests for the first half of the epochs, while the decoder learns to read it. In the second
    half its upper blocks are fine-tuned at a low learning rate. A phase that came to its end is not done again. The
    best model is in the folder (`load`).

    Parameters
    ----------
    name : str
        One of `TITLES`.
    model : keras.Model
        From `build`.
    crops, validation : tf.data.Dataset
        As from `batches`.
    folder : path-like
        For its files, see `training.fit`; those of a first phase are in `frozen/` below.
    epochs : int
        Most epochs, both phases together.
    weights : as for `build`
        None if the encoder is not pretrained, or there is none.
    patience : int
        As for `training.fit`, in each phase.
    watch : sequence of uint8 array (H, W, 3)
        Images whose predictions are recorded before the training and after each epoch (`predict.PreviewRecorder`).
    verbose : "auto", 0, 1 or 2
    """
    place, frozen = Path(folder), Path(folder) / "frozen"

    def phase(place, epochs, learning_rate, before=0):
        if training.finished(place):
            return
        training.compile_model(model, epochs * len(crops), learning_rate, amsgrad=name == "unet_plus_plus")
        extra = [predict.PreviewRecorder(watch, place, before)] if len(watch) else []
        training.fit(model, crops, validation, place, epochs, patience, extra, verbose)

    rest = epochs // 2 if weights else 0
    if not rest:
        phase(place, epochs, LEARNING_RATE)
        return
    if not training.begun(place):  # a second phase that was begun brings all weights with it
        phase(frozen, rest, LEARNING_RATE)
        training.check_whole(frozen / training.BEST)
        model.load_weights(frozen / training.BEST)
    models.unfreeze_encoder(model, FINE_TUNED_BLOCKS)
    phase(place, epochs - rest, FINE_TUNING_RATE, before=len(training.read_history(frozen)))


def fit_instances(model, crops, validation, folder, epochs, learning_rate=training.INSTANCE_RATE, verbose="auto"):
    """Train a network that separates nuclei; the loss of all its outputs says which epoch is best.

    Parameters
    ----------
    model : keras.Model
        From `models.instance_unet`.
    crops, validation : tf.data.Dataset
        As from `input_pipeline.instance_batches`.
    folder : path-like
        For its files, see `training.fit`.
    epochs : int
        There is no early stop: the learning rate falls until the last, and the best is often near it.
    learning_rate : float
        Its highest value.
    verbose : "auto", 0, 1 or 2

    Returns
    -------
    model, history
        As from `training.fit`.
    """
    training.compile_instances(model, epochs * len(crops), learning_rate)
    return training.fit(model, crops, validation, folder, epochs, epochs, verbose=verbose, monitor="val_loss")


def train(name, folder, seed=0, watch=(), verbose="auto"):
    """Train one of the networks of the course at the size of the profile; a training that was killed goes on.

    Parameters
    ----------
    name, folder, watch, verbose
        As for `fit`.
    seed : int

    Returns
    -------
    model : keras.Model
        With the weights of the best epoch (of the last phase), as `load` gives it.
    history : pandas.DataFrame
        One row per epoch.

    Raises
    ------
    FileNotFoundError
        If a training that was begun with pretrained weights is to go on without them.
    """
    place, frozen = Path(folder), Path(folder) / "frozen"
    if training.finished(place):  # it is replaced, its first phase as well
        for part in (frozen, place):
            training.clear(part)
    keras.utils.set_random_seed(seed)
    crops, validation = batches(seed)
    weights = pretrained() if name == "mobilenet_unet" else None
    model = build(name, weights)

    if not weights and training.begun(frozen):
        raise FileNotFoundError(
            f"the training in {place} was begun with pretrained weights, which are not to be had now: name their file "
            f"in ${models.WEIGHTS} to go on, or delete {place} to start anew"
        )
    epochs = training.profile().epochs
    fit(name, model, crops, validation, place, epochs, weights, watch=watch, verbose=verbose)
    return load(place)


def train_instances(folder, seed=0, epochs=None, min_crops=None, verbose="auto"):
    """Train the network that separates nuclei (`models.instance_unet`), all of it, from ImageNet's weights.

    Parameters
    ----------
    folder : path-like
        For its files, see `training.fit`.
    seed : int
    epochs, min_crops : int, optional
        Epochs, and least number of crops of each image type in one; default those of the profile.
    verbose : "auto", 0, 1 or 2

    Returns
    -------
    model : keras.Model
        With the weights of the best epoch.
    history : pandas.DataFrame
        One row per epoch.
    """
    profile = training.profile()
    epochs = epochs or profile.epochs
    keras.utils.set_random_seed(seed)
    examples = [input_pipeline.read(split=split).take(profile.images) for split in ("train", "validation")]
    crops = input_pipeline.instance_batches(examples[0], SIZE, BATCH, seed, min_crops or profile.crops)
    middles = input_pipeline.instance_validation_batches(examples[1], SIZE, BATCH)
    model = build("instance_unet", pretrained())
    return fit_instances(model, crops, middles, folder, epochs, verbose=verbose)


def check_nuclei(records, use):
    """Check that there is a nucleus in at least one of some images.

    Parameters
    ----------
    records : sequence of datasets.Record
    use : str
        What the images are for: "train on" or "validate on".

    Raises
    ------
    errors.NucleiError
        If all labels are empty: nothing can be learned from them, and their Dice says nothing.
    """
    if not any(record.label_map.any() for record in records):
        raise NucleiError(
            f"none of the {len(records)} images to {use} has a nucleus in its labels (the first is "
            f"{records[0].id}): check the labels, add images, or choose others with another seed"
        )


def fine_tune(model, records, folder, epochs=10, min_crops=32, seed=0, verbose="auto"):
    """Train a network that separates nuclei further, on a handful of labelled images of one's own.

    A low learning rate changes what the network knows and does not overwrite it. The last fifth of the images, at
    least one, is kept for validation.

    Parameters
    ----------
    model : keras.Model
        From `models.instance_unet`, trained; it is changed.
    records : sequence of datasets.Record
        At least two, for example from `datasets.read_folder`.
    folder : path-like
        For its files, see `training.fit`.
    epochs : int
    min_crops : int
        Least number of crops in an epoch.
    seed : int
    verbose : "auto", 0, 1 or 2

    Returns
    -------
    model : keras.Model
        The same model, with the weights of the best epoch.
    history : pandas.DataFrame
        One row per epoch.

    Raises
    ------
    ValueError
        If there are fewer than two images, or no nucleus to train on or to validate on.
    """
    if len(records) < 2:
        raise ValueError(f"found {len(records)} labelled images, expected at least two: one is kept for validation")
    kept = max(len(records) // 5, 1)
    check_nuclei(records[:-kept], "train on")
    check_nuclei(records[-kept:], "validate on")
    keras.utils.set_random_seed(seed)
    crops = input_pipeline.instance_batches(input_pipeline.from_records(records[:-kept]), SIZE, BATCH, seed, min_crops)
    middles = input_pipeline.instance_validation_batches(input_pipeline.from_records(records[-kept:]), 2 * SIZE, BATCH)
    return fit_instances(model, crops, middles, folder, epochs, FINE_TUNING_RATE, verbose)


def load(folder):
    """Load a network that `train` left.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    model : keras.Model
        Of one output: of a network with several, their mean (`models.accurate_mode`).
    history : pandas.DataFrame
        One row per epoch, of both phases where there are two.

    Raises
    ------
    FileNotFoundError
        If no training came to its end there.
    errors.NucleiError
        If the model or the history is damaged.
    """
    if not training.finished(folder):
        raise FileNotFoundError(f"no finished training in {folder}: train it first (recipes.train)")
    parts = [training.read_history(part) for part in _phases(folder)]
    history = pd.concat(parts, ignore_index=True).assign(epoch=lambda table: range(len(table)))
    training.check_whole(Path(folder) / training.BEST)
    model = keras.models.load_model(Path(folder) / training.BEST)
    return models.accurate_mode(model) if len(model.outputs) > 1 else model, history


def recorded(folder):
    """Read what a network predicted for the watched images while it learned.

    Parameters
    ----------
    folder : path-like
        That was given to `train`.

    Returns
    -------
    list of list of float32 array (H, W) in [0, 1]
        Before training and after each epoch, one map for each image.
    """
    frames = {}
    for part in _phases(folder):
        frames.update(predict.read_previews(part))
    return [frames[epoch] for epoch in sorted(frames)]


def _phases(folder):
    return [part for part in (Path(folder) / "frozen", Path(folder)) if training.begun(part)]


def load_or_train(name):
    """Load a network that a notebook trained with the data and profile at hand, or train it where there is none.

    Parameters
    ----------
    name : str
        One of `TITLES`.

    Returns
    -------
    model, history
        As from `load`; what it predicted meanwhile is in `recorded(folder(name))`.
    """
    place = folder(name)
    if training.finished(place):
        print(f"{TITLES[name]}: loaded from {place}")
        return load(place)
    print(f"{TITLES[name]}: no trained one in {place}, so it is trained now")
    return train(name, place, watch=[record.image for record in watched()], verbose=2)
