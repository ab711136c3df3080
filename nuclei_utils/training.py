"""Train the networks of the course with one function, `train`.

This module has the profiles (how much is trained), the list of networks (`NETWORKS`), the learning-rate schedule, the
compilation with losses and metrics, `fit`, fine-tuning on your own images, and preview images.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd
from keras.callbacks import Callback

from nuclei_utils import checkpoints, datasets, input_pipeline, losses, models, predict, preprocess, saving, splits
from nuclei_utils.checkpoints import best_epoch, is_finished, phases, read_history  # noqa: F401
from nuclei_utils.devices import in_float32, use_devices
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, file_lock


class Profile(NamedTuple):
    """Amount of training.

    A profile never changes the code path or the shape of an array.
    """

    name: str
    epochs: int  # maximum number of epochs
    images: int  # maximum number of images of each split
    crops: int  # minimum number of crops of each image type in an epoch
    augment: str  # augmentation of the training images (`input_pipeline.training_batches`)


PROFILES = {
    "smoke": Profile("smoke", epochs=2, images=16, crops=1, augment="flips"),  # for tests: seconds per notebook
    "laptop": Profile("laptop", epochs=20, images=10_000, crops=48, augment="flips"),  # 8 to 19 minutes on two cores
    "full": Profile("full", epochs=100, images=10_000, crops=48, augment="all"),  # up to five times as long
}


class _Network(NamedTuple):
    title: str
    filters: int  # feature maps at full size for channel width 1
    has_encoder: bool = False


# Networks by the name of their function in `models`
NETWORKS = {
    "unet": _Network("U-Net", filters=32),
    "mobilenet_unet": _Network("U-Net on MobileNetV2", filters=16, has_encoder=True),
    "unet_plus_plus": _Network("U-Net++", filters=32),
    "instance_unet": _Network("U-Net with three outputs", filters=16, has_encoder=True),
}
# Titles of the networks for masks, which the course compares
TITLES = {name: NETWORKS[name].title for name in ("unet", "mobilenet_unet", "unet_plus_plus")}

CROP_SIZE, BATCH_SIZE, FILTERS = 128, 16, 16  # pixels, crops per batch, feature maps at full size
LEARNING_RATE = 1e-3  # peak of the schedule
INSTANCE_RATE = 2e-3  # peak for three outputs; after a short training with 5e-4, their losses are far from the minimum
FINE_TUNING_RATE = 1e-4  # for pretrained weights, which should change only a little
FINE_TUNED_BLOCKS = 10  # of MobileNetV2's 16 blocks: the blocks from 1/16 of the image size on


def profile() -> Profile:
    """Return the profile in use.

    The environment variable `NUCLEI_PROFILE` names the profile. The default is "laptop".
    """
    name = os.environ.get("NUCLEI_PROFILE") or "laptop"
    if name not in PROFILES:
        raise ValueError(f"NUCLEI_PROFILE is {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def warmup_cosine(learning_rate: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return a learning-rate schedule: linear warm-up, then cosine decay.

    The warm-up takes 1/20 of the steps. The decay ends at 0 (arXiv 1608.03983).

    Parameters
    ----------
    learning_rate, steps : float, int
        Peak of the schedule, and number of batches in the whole training.

    Examples
    --------
    >>> schedule = warmup_cosine(1e-3, steps=100)
    >>> [round(float(schedule(step)), 5) for step in (0, 5, 50, 100)]
    [0.0001, 0.001, 0.00054, 0.0]
    """
    warmup = max(steps // 20, 1)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 10, max(steps - warmup, 1), warmup_target=learning_rate, warmup_steps=warmup
    )


def _has_named_outputs(model):
    return len(model.outputs) > 1 and isinstance(model.output, dict)


def compile_model(
    model: keras.Model, steps: int, learning_rate: float | None = None, amsgrad: bool = False
) -> keras.Model:
    """Compile a network with Adam and the losses of the course.

    The learning-rate schedule is `warmup_cosine`. The function returns the network. The loss of a mask is cross-entropy
    + Dice. A network with a dictionary of outputs (`models.instance_unet`) has three losses with equal weights:
    cross-entropy + Dice for `mask` and `boundary`, mean absolute error for `distance`. Choose the trainable weights
    before you compile (`models.unfreeze_encoder`).

    Parameters
    ----------
    steps : int
        Number of batches in the whole training.
    learning_rate : float, optional
        Peak learning rate. Default: `LEARNING_RATE`, or `INSTANCE_RATE` for three outputs.
    amsgrad : bool
        Use AMSGrad (arXiv 1904.09237).
    """
    mask_loss = losses.BinaryCrossentropyDice()
    if _has_named_outputs(model):
        learning_rate = learning_rate or INSTANCE_RATE
        loss = {"mask": mask_loss, "boundary": mask_loss, "distance": keras.losses.MeanAbsoluteError()}
        metrics = {"mask": [losses.Dice()], "boundary": [losses.Dice()]}
    else:
        loss = mask_loss
        metrics = [
            keras.metrics.BinaryAccuracy(name="accuracy"),
            # Keras' default includes the IoU of the background, which is always high
            keras.metrics.BinaryIoU(target_class_ids=[1], threshold=0.5, name="iou"),
            losses.Dice(),
        ]
    schedule = warmup_cosine(learning_rate or LEARNING_RATE, steps)
    model.compile(keras.optimizers.Adam(schedule, amsgrad=amsgrad), loss, metrics=metrics)
    # TensorFlow would trace the first training step twice if that step created the variables of the optimizer
    model.optimizer.build(model.trainable_variables)
    return model


def fit(
    model: keras.Model,
    train: Any,
    validation: Any,
    folder: str | os.PathLike,
    epochs: int,
    patience: int = 10,
    callbacks: Sequence[Callback] = (),
    verbose: str | int = "auto",
    monitor: str | None = None,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train a compiled model with early stopping, TensorBoard and checkpoints.

    An interrupted training is resumed. The model has the weights of the best epoch afterwards. The history has one row
    per epoch. A resumed training starts again with the first random crops. Its result is therefore similar to that of
    an uninterrupted training, but not equal.

    Parameters
    ----------
    train, validation : tf.data.Dataset
        Batches of (image, target).
    folder : path-like
        Folder for the files of the training. A finished training in this folder is replaced.
    epochs, patience : int
        Maximum number of epochs, including the epochs before an interruption, and number of epochs without improvement
        before the training stops.
    monitor : str, optional
        Column of the history that defines the best epoch. Default: `val_loss` for a dictionary of outputs, otherwise
        `val_dice`.

    Raises
    ------
    errors.NucleiError
        If the training diverged, or the interrupted training is damaged or belongs to another network.
    """
    folder = Path(folder)
    monitor = monitor or ("val_loss" if _has_named_outputs(model) else "val_dice")
    mode = "min" if monitor.endswith("loss") else "max"
    message = f"another process trains in {folder}: wait until it has finished, or use another folder"
    with file_lock(folder / ".lock", message):
        history = checkpoints.resume(model, folder, monitor)
        model.fit(
            train,
            validation_data=validation,
            initial_epoch=len(history),
            epochs=epochs,
            callbacks=[
                *callbacks,
                keras.callbacks.EarlyStopping(monitor, patience=patience, mode=mode),
                keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
                # the checkpoint comes last, because an epoch with a checkpoint is not trained again
                checkpoints.Checkpoint(folder, history, monitor),
            ],
            shuffle=False,  # the input pipeline shuffles
            verbose=verbose,
        )
        history = checkpoints.finish(model, folder, monitor)
    return model, history


def some_ids(fraction: float, seed: int = 0) -> list[str]:
    """Draw the ids of a random fraction of the training images.

    `0 <= fraction <= 1`. Each image type keeps at least one image. With the same seed, a larger fraction contains each
    smaller fraction.
    """
    table = datasets.split_table(datasets.current())
    table = table[table["split"] == "train"].sample(frac=1, random_state=seed)
    return [
        image_id
        for _, ids in table.groupby("image_type")["id"]
        for image_id in ids.iloc[: max(round(fraction * len(ids)), 1)]
    ]


def batches(
    seed: int = 0,
    fraction: float = 1.0,
    *,
    targets: str = "mask",
    records: tuple[Sequence[datasets.Record], Sequence[datasets.Record]] | None = None,
    crop_size: int = CROP_SIZE,
    batch_size: int = BATCH_SIZE,
    min_crops: int | None = None,
    augment: str | None = None,
) -> tuple[Any, Any]:
    """Return the batches (image, target) for training and validation.

    The batches come from `input_pipeline`.

    Parameters
    ----------
    seed, fraction
        Random seed of order, crops, augmentation and choice of images, and the fraction of the images (`some_ids`).
    records : (train, validation), optional
        Labelled images. Default: the current data set, with at most as many images as the profile allows.
    crop_size : int
        Height and width of the training crops, pixels. Validation uses centre crops of twice this size, at most 256.
    targets, batch_size, min_crops, augment
        As for `input_pipeline.training_batches`. The profile has the defaults of `min_crops` and `augment`.
    """
    current = profile()
    if records is not None:
        train, validation = map(input_pipeline.from_records, records)
    else:
        ids = some_ids(fraction, seed) if fraction < 1 else None
        train = input_pipeline.read(split="train", ids=ids).take(current.images)
        validation = input_pipeline.read(split="validation").take(current.images)
    augment = "all" if targets == "instances" else augment or current.augment
    min_crops = min_crops or current.crops
    return (
        input_pipeline.training_batches(train, crop_size, batch_size, augment, seed, min_crops, targets),
        input_pipeline.validation_batches(validation, min(2 * crop_size, 256), batch_size, targets),
    )


def imagenet_weights() -> str | None:
    """Return "imagenet" if these weights of MobileNetV2 are available.

    Otherwise the function prints the reason, and returns None.
    """
    try:
        models.mobilenet_encoder("imagenet")
    except ConnectionError as error:
        print(f"{error}.\nThe encoder starts from random weights: this is not transfer learning.")
        return None
    return "imagenet"


def build(name: str, weights: str | os.PathLike | None = "imagenet", filters: int = FILTERS) -> keras.Model:
    """Build one of `NETWORKS`.

    `filters` is the number of feature maps at full size. `weights` are as for `models.mobilenet_unet`. The pretrained
    encoder of `mobilenet_unet` is frozen.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r} in the course: choose one of {', '.join(NETWORKS)}")
    options = {"weights": weights} if NETWORKS[name].has_encoder else {}
    if name == "mobilenet_unet":
        options["trainable"] = weights is None
    return getattr(models, name)(filters=filters, **options)


def train(
    name: str,
    folder: str | os.PathLike,
    *,
    epochs: int | None = None,
    seed: int = 0,
    weights: str | os.PathLike | None = "auto",
    filters: int = FILTERS,
    patience: int | None = None,
    previews: Sequence[np.ndarray] = (),
    verbose: str | int = "auto",
    devices: str = "auto",
    precision: str = "float32",
    **batch_options,
) -> tuple[keras.Model, pd.DataFrame]:
    """Build and train a network, or resume an interrupted training.

    The function returns the same as `load_run`. The pretrained encoder of `mobilenet_unet` is frozen for the first half
    of the epochs, while the decoder learns. In the second half, the upper blocks of the encoder are fine-tuned at a low
    learning rate.

    Parameters
    ----------
    name, filters, folder, verbose
        As for `build` and `fit`. The subfolder `frozen` belongs to the first phase.
    epochs, patience : int, optional
        Maximum number of epochs of both phases together (default: the value of the profile), and patience of a phase
        (default: 10 for masks; `epochs` for three outputs, because their best epoch is often near the end).
    weights : "auto", "imagenet", path-like or None
        Weights of the encoder. "auto": ImageNet's weights if they are available, otherwise random weights.
    previews : sequence of uint8 array (H, W, 3)
        Images whose predictions are recorded (`PreviewRecorder`).
    devices, precision
        As for `devices.use_devices`, with the same errors. A resumed training may use other devices.
    **batch_options
        Options of `batches`. `batch_size` is that of all devices together, and a multiple of their number.
    """
    folder, frozen = Path(folder), Path(folder) / checkpoints.FROZEN
    with use_devices(devices, precision) as device_count:
        batch_size = batch_options.get("batch_size", BATCH_SIZE)
        if batch_size % device_count:
            raise NucleiError(f"found a batch size of {batch_size}, expected a multiple of the {device_count} devices")
        if is_finished(folder):
            checkpoints.clear(frozen)
            checkpoints.clear(folder)
        keras.utils.set_random_seed(seed)
        targets = "instances" if name == "instance_unet" else "mask"
        crops, validation = batches(seed, targets=targets, **batch_options)
        if device_count > 1:  # the last batch may be smaller
            crops, validation = (input_pipeline.pad_batches(side, device_count) for side in (crops, validation))
        if weights == "auto":
            weights = imagenet_weights() if NETWORKS[name].has_encoder else None
        model = build(name, weights, filters)
        if weights is None and frozen in phases(folder):
            raise FileNotFoundError(
                f"the training in {folder} started with pretrained weights, which are missing now: name their file in "
                f"${models.WEIGHTS_VARIABLE}, or delete {folder} to train from scratch"
            )
        epochs = epochs or profile().epochs
        patience = patience or (10 if targets == "mask" else epochs)

        def fit_phase(folder, epochs, learning_rate=None, first_epoch=0):
            compile_model(model, epochs * len(crops), learning_rate, amsgrad=name == "unet_plus_plus")
            recorders = [PreviewRecorder(previews, folder, first_epoch)] if len(previews) else []
            fit(model, crops, validation, folder, epochs, patience, callbacks=recorders, verbose=verbose)

        frozen_epochs = epochs // 2 if name == "mobilenet_unet" and weights else 0
        if frozen_epochs:
            if folder not in phases(folder):  # the checkpoint of a second phase has all weights
                if not is_finished(frozen):
                    fit_phase(frozen, frozen_epochs)
                checkpoints.check_model_file(frozen / checkpoints.BEST)
                model.load_weights(frozen / checkpoints.BEST)
            models.unfreeze_encoder(model, FINE_TUNED_BLOCKS)
            fit_phase(folder, epochs - frozen_epochs, FINE_TUNING_RATE, first_epoch=len(read_history(frozen)))
        else:
            fit_phase(folder, epochs)
    return load_run(folder)


def fine_tune(
    model: keras.Model,
    records: Sequence[datasets.Record],
    folder: str | os.PathLike,
    epochs: int = 10,
    min_crops: int = 32,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    *,
    learning_rate: float = FINE_TUNING_RATE,
    crop_size: int = CROP_SIZE,
    batch_size: int = BATCH_SIZE,
    verbose: str | int = "auto",
) -> tuple[keras.Model, pd.DataFrame]:
    """Fine-tune a copy of a trained network on a few labelled images.

    The network itself does not change. All layers that are trainable learn, at a low learning rate. The function
    returns the same as `load_run`: the copy with the weights of its best epoch, not compiled, and the history.

    Parameters
    ----------
    records, seed, groups
        At least two labelled images, for example from `datasets.read_folder`; `splits.hold_out` draws a fifth of them
        for validation.
    min_crops : int
        Minimum number of random crops in an epoch. Few images are used several times in an epoch, at other places. An
        epoch has about `min_crops / batch_size` steps.
    learning_rate : float
        Peak of the learning-rate schedule (`warmup_cosine`).
    crop_size, batch_size : int
        As for `batches`.
    """
    sides = splits.hold_out(records, seed, groups)
    keras.utils.set_random_seed(seed)
    targets = "instances" if _has_named_outputs(model) else "mask"
    crops, validation = batches(
        seed, targets=targets, records=sides, min_crops=min_crops, crop_size=crop_size, batch_size=batch_size
    )
    learner, fresh_state = _compiled_copy(model, epochs * len(crops), learning_rate)
    learner.set_weights(model.get_weights())
    for variable, value in zip(learner.optimizer.variables, fresh_state, strict=True):
        variable.assign(value)
    fit(learner, crops, validation, folder, epochs, patience=epochs, verbose=verbose)
    return load_run(folder)


@functools.lru_cache(maxsize=1)
def _compiled_copy(model, steps, learning_rate):
    """Return a compiled copy of a network, and the initial state of its optimizer.

    The last copy is kept: TensorFlow needs ten seconds to trace the first training step, and none for the next
    training with the same number of steps.
    """
    learner = compile_model(keras.models.clone_model(model), steps, learning_rate)
    return learner, [np.array(variable) for variable in learner.optimizer.variables]


def run_folder(name: str) -> Path:
    """Return the folder of a network's training in the notebooks.

    The folder is below `runs/`. Its name has the data set and the profile.
    """
    return Path("runs") / f"{name}_{datasets.current()}_{profile().name}"


def load_run(folder: str | os.PathLike, finished: bool = True) -> tuple[keras.Model, pd.DataFrame]:
    """Load the network and the history of a training from its folder.

    The network is not compiled, and computes in float32. A U-Net++ predicts the mean of its outputs
    (`models.accurate_mode`). The history has one row per epoch, of both phases if there are two.

    Parameters
    ----------
    finished : bool
        Expect a finished training, and load the best model of its last phase. If False, load the best model of all
        phases, even if the training is not finished.

    Raises
    ------
    FileNotFoundError
        If the folder has no finished training, or no model.
    """
    folder = Path(folder)
    if finished and not is_finished(folder):
        raise FileNotFoundError(f"no finished training in {folder}: train the network first (training.train)")
    histories = {phase: read_history(phase) for phase in phases(folder)}
    candidates = [folder] if finished else [phase for phase in histories if (phase / checkpoints.BEST).is_file()]
    if not candidates:
        raise FileNotFoundError(f"no model in {folder}: resume the training")
    # only a network for masks has two phases
    best = max(candidates, key=lambda phase: histories[phase].get("val_dice", pd.Series([0.0])).max())
    model = in_float32(saving.load_model(best / checkpoints.BEST))
    if isinstance(model, models.DeepSupervision):
        model = models.accurate_mode(model)
    history = pd.concat(histories.values(), ignore_index=True)
    return model, history.assign(epoch=range(len(history)))


def load_or_train(name: str) -> tuple[keras.Model, pd.DataFrame]:
    """Load a network from its `run_folder`, or train it there.

    A training records the predictions for `preview_records`. The function returns the same as `load_run`.
    """
    folder, title = run_folder(name), NETWORKS[name].title
    if is_finished(folder):
        print(f"{title}: loaded from {folder}")
        return load_run(folder)
    print(f"{title}: no finished training in {folder}, training now")
    return train(name, folder, previews=[record.image for record in preview_records()], verbose=2)


def preview_records() -> list[datasets.Record]:
    """Return one validation image of each image type.

    The images are cropped to the central 256 x 256 pixels.
    """
    records = {record.image_type: record for record in reversed(datasets.load(split="validation"))}
    return [
        record._replace(
            image=preprocess.center_crop(record.image, (256, 256)),
            label_map=preprocess.center_crop(record.label_map, (256, 256)),
        )
        for _, record in sorted(records.items())
    ]


class PreviewRecorder(Callback):
    """Save the predictions for preview images after each epoch.

    The images are uint8 (H, W, 3). The first file has the predictions before the training. The files
    `predictions/epoch_000.npz` in the folder of the training survive an interruption. `fit` removes them when a new
    training starts. `first_epoch` is the number of epochs of an earlier phase.
    """

    def __init__(self, images: Sequence[np.ndarray], folder: str | os.PathLike, first_epoch: int = 0):
        super().__init__()
        self.images, self.folder, self.first_epoch = images, Path(folder) / "predictions", first_epoch

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Save the predictions before the training, unless they are saved."""
        if not self._path(0).exists():
            self._save(0)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Save the predictions after an epoch."""
        self._save(epoch + 1)

    def _path(self, epochs):
        return self.folder / f"epoch_{self.first_epoch + epochs:03d}.npz"

    def _save(self, epochs):
        masks = predict.predict_masks(self.model, self.images)
        with atomic_write(self._path(epochs)) as temporary, temporary.open("wb") as file:
            # 256 levels look the same, and need a quarter of the space
            np.savez_compressed(file, *[np.round(255 * mask).astype(np.uint8) for mask in masks])


def read_previews(folder: str | os.PathLike) -> list[list[np.ndarray]]:
    """Read the predictions of `PreviewRecorder`.

    Each epoch has a list of probability maps, float32 (H, W) in [0, 1]. The first list is the state before the
    training.
    """
    states = {}
    for phase in phases(folder):
        for path in (phase / "predictions").glob("epoch_*.npz"):
            with np.load(path) as file:
                states[int(path.stem.removeprefix("epoch_"))] = [np.float32(mask) / 255 for mask in file.values()]
    return [states[epochs] for epochs in sorted(states)]
