"""How much is trained, and what goes with it: profiles, callbacks, logs, and a training that can be resumed."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import pandas as pd

from nuclei_utils import __version__, data, losses, metrics
from nuclei_utils.files import written_whole

INSTANCE_RATE = 5e-4
"""Highest learning rate of the network that separates nuclei, whose pretrained encoder is trained from the start."""
FINISHED = "finished"
"""Empty file that a training leaves when it comes to its end."""


@dataclass(frozen=True)
class Profile:
    """How much is trained; it never changes a shape or the path through the code.

    Attributes
    ----------
    name : str
    epochs : int
        Most epochs a training may take.
    images : int
        Most images that are used, of each split.
    crops : int
        Least number of crops of each kind of image in an epoch (`pipeline.training_batches`).
    augment : str
        How much training images are changed at random (`pipeline.training_batches`): little in short trainings.
    """

    name: str
    epochs: int
    images: int
    crops: int
    augment: str


PROFILES = {
    "smoke": Profile("smoke", epochs=2, images=16, crops=1, augment="flips"),  # tests: seconds per notebook
    "laptop": Profile("laptop", epochs=20, images=10_000, crops=48, augment="flips"),  # 8 to 19 minutes of two cores
    "full": Profile("full", epochs=100, images=10_000, crops=48, augment="all"),  # hours, or a GPU
}


def profile():
    """Return the profile that `$NUCLEI_PROFILE` names; "laptop" where it is not set.

    Raises
    ------
    ValueError
        If it names none of `PROFILES`.
    """
    name = os.environ.get("NUCLEI_PROFILE") or "laptop"
    if name not in PROFILES:
        raise ValueError(f"NUCLEI_PROFILE is {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def banner():
    """Return one line that says what a notebook runs on: versions, device, data, profile."""
    backend = keras.backend.backend()
    device = keras.distribution.list_devices()[0]
    return (
        f"nuclei_utils {__version__}, Keras {keras.__version__} on {backend} {sys.modules[backend].__version__}, "
        f"Python {platform.python_version()} | device: {device} | "
        f"data: {data.current()} | profile: {profile().name}"
    )


def warm_up_and_cosine(learning_rate, steps):
    """Make the schedule of the course: a short rise to the highest learning rate, then half a cosine down to 0.

    Parameters
    ----------
    learning_rate : float
        Its highest value, after the first twentieth of the steps (SGDR, arXiv 1608.03983).
    steps : int
        Batches in the whole training; the learning rate reaches 0 with the last.

    Returns
    -------
    keras.optimizers.schedules.LearningRateSchedule
    """
    warmup = max(steps // 20, 1)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 10, max(steps - warmup, 1), warmup_target=learning_rate, warmup_steps=warmup
    )


def compile_model(model, steps, learning_rate=1e-3, amsgrad=False):
    """Compile a model as the course trains it: Adam, a warm-up and a cosine down to 0, cross-entropy + Dice.

    Parameters
    ----------
    model : keras.Model
        Gives one probability per pixel.
    steps, learning_rate
        As for `warm_up_and_cosine`.
    amsgrad : bool
        Adam never forgets its largest gradients (AMSGrad, arXiv 1904.09237).

    Returns
    -------
    keras.Model
        The same model.
    """
    model.compile(
        optimizer=keras.optimizers.Adam(warm_up_and_cosine(learning_rate, steps), amsgrad=amsgrad),
        loss=losses.BinaryCrossentropyDice(),
        metrics=[
            keras.metrics.BinaryAccuracy(name="accuracy"),
            # the default averages in the background, which is always easy
            keras.metrics.BinaryIoU(target_class_ids=[1], threshold=0.5, name="iou"),
            metrics.Dice(),
        ],
    )
    return model


def compile_instances(model, steps, learning_rate=INSTANCE_RATE):
    """Compile a model of three outputs (`models.instance_unet`) as the course trains it.

    Mask and boundary have cross-entropy + Dice, the distance its mean absolute error; all count alike.

    Parameters
    ----------
    model : keras.Model
    steps, learning_rate
        As for `warm_up_and_cosine`.

    Returns
    -------
    keras.Model
        The same model; its history has `mask_dice` and `boundary_dice`.
    """
    model.compile(
        optimizer=keras.optimizers.Adam(warm_up_and_cosine(learning_rate, steps)),
        loss={
            "mask": losses.BinaryCrossentropyDice(),
            "boundary": losses.BinaryCrossentropyDice(),
            "distance": keras.losses.MeanAbsoluteError(),
        },
        metrics={"mask": [metrics.Dice()], "boundary": [metrics.Dice()]},
    )
    return model


def callbacks(folder, patience=10, best=None, monitor="val_dice"):
    """Make what watches over a training: the best model kept, an early stop, logs, and a backup to go on from.

    Parameters
    ----------
    folder : path-like
        Where `best.keras`, `history.csv`, `tensorboard/` and `backup/` go.
    patience : int
        Epochs without a better value before the training stops.
    best : float, optional
        Best value so far, where a training is resumed.
    monitor : str
        Column of the history that says which epoch is best: of a loss the lowest, of anything else the highest.

    Returns
    -------
    list of keras.callbacks.Callback
    """
    folder = Path(folder)
    watch = {"monitor": monitor, "mode": _mode(monitor)}
    backup = Backup(folder)
    return [
        keras.callbacks.ModelCheckpoint(backup.best, save_best_only=True, initial_value_threshold=best, **watch),
        keras.callbacks.EarlyStopping(patience=patience, **watch),
        keras.callbacks.CSVLogger(folder / "history.csv", append=True),
        keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
        backup,
    ]


class Backup(keras.callbacks.Callback):
    """Keep the model and its optimizer after each epoch, whole or not at all, so that a killed training can go on.

    Keras' own `BackupAndRestore` and `ModelCheckpoint` write over what they kept before: a process that is killed
    meanwhile leaves half a file. So the best model is written to `best`, here, and moved when it is whole.

    Parameters
    ----------
    folder : path-like
        Of the training. The best model becomes its `best.keras`; `backup/epoch_0001.keras` and its followers replace
        each other.

    Attributes
    ----------
    best : pathlib.Path
        Where `ModelCheckpoint`, which must come before, writes the best model.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        self.best = self.folder / "backup" / "best.keras"

    def on_train_begin(self, logs=None):
        """Remove what a killed training was about to write."""
        self.best.unlink(missing_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        """Move the best model to its place, write the backup of the epoch, then remove the one before."""
        if self.best.is_file():
            self.best.replace(self.folder / self.best.name)
        older = _backups(self.folder)
        with written_whole(self.best.with_name(f"epoch_{epoch + 1:04}.keras")) as aside:
            self.model.save(aside)
        for path in older:
            path.unlink()


def _backups(folder):
    return sorted((folder / "backup").glob("epoch_*.keras"))


def fit(model, train, validation, folder, epochs, patience=10, extra=(), verbose="auto", monitor="val_dice"):
    """Train a compiled model; a training that was killed goes on after its last whole epoch.

    Parameters
    ----------
    model : keras.Model
        Compiled, with the metric that is monitored.
    train, validation : tf.data.Dataset
        Batches of (image, mask), or of what else the model learns.
    folder : path-like
        Where the training leaves its files (see `callbacks`). What a finished training left there is replaced; a
        killed training's backup is taken up.
    epochs : int
        Most epochs in all, those before a break included.
    patience : int
        Epochs without a better value of `monitor` before the training stops.
    extra : sequence of keras.callbacks.Callback
    verbose : "auto", 0, 1 or 2
        As for `keras.Model.fit`.
    monitor : str
        As for `callbacks`.

    Returns
    -------
    model : keras.Model
        With the weights of the best epoch.
    history : pandas.DataFrame
        One row per epoch, of all parts of a training that was broken off.

    Raises
    ------
    ValueError
        If the backup of a training that was broken off is of another network.
    data.DataError
        If no epoch has a value of `monitor` that is a number: the training diverged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backups = [] if finished(folder) or not (folder / "history.csv").is_file() else _backups(folder)
    done, best = 0, None
    if backups:
        done, best = _go_on(model, backups[-1], monitor)
    else:
        for name in ("tensorboard", "backup", "predictions"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("history.csv", "best.keras", FINISHED):  # without a backup, what is left is not taken up
            (folder / name).unlink(missing_ok=True)
    # what is extra comes first: once the backup is made, the epoch is not done again
    watchers = [*extra, *callbacks(folder, patience, best, monitor)]
    model.fit(
        train,
        validation_data=validation,
        initial_epoch=done,
        epochs=epochs,
        callbacks=watchers,
        shuffle=False,  # the pipeline does
        verbose=verbose,
    )
    history = read_history(folder)
    best_epoch(history, monitor)  # says so if there is none
    # it may lie before a break, which EarlyStopping's own memory does not reach
    model.load_weights(folder / "best.keras")
    (folder / FINISHED).touch()
    # not before: what is killed until here goes on
    shutil.rmtree(folder / "backup", ignore_errors=True)
    return model, history


def _go_on(model, backup, monitor):
    """Give a model the state of a backup; return how many epochs are done, and the best value of these."""
    folder, done = backup.parent.parent, int(backup.stem.removeprefix("epoch_"))
    try:
        model.optimizer.build(model.trainable_variables)
        model.load_weights(backup)
    except ValueError as error:
        raise ValueError(
            f"{backup.parent} was left by a training of another network that was broken off, and does not fit this "
            "one: delete it to start anew"
        ) from error
    print(f"going on after epoch {done} of the training that was broken off in {folder}")
    history = read_history(folder).iloc[:done]  # an epoch that was logged, but not kept, is done again
    return done, history.loc[best_epoch(history, monitor), monitor]


def best_epoch(history, monitor="val_dice"):
    """Find the best epoch of a training.

    Parameters
    ----------
    history : pandas.DataFrame
        From `fit` or `read_history`.
    monitor : str
        As for `callbacks`.

    Returns
    -------
    int
        Its row in the history, from 0.

    Raises
    ------
    data.DataError
        If no epoch has a value that is a number: the training diverged.
    """
    values = history[monitor]
    if values.isna().all():
        raise data.DataError(
            f"no epoch has a number for {monitor}: the training diverged; a lower learning rate may help"
        )
    return int(values.idxmin() if _mode(monitor) == "min" else values.idxmax())


def _mode(monitor):
    return "min" if monitor.endswith("loss") else "max"


def finished(folder):
    """Return whether a training in a folder came to its end and left a model.

    Parameters
    ----------
    folder : path-like
        The folder that was given to `fit`.

    Returns
    -------
    bool
    """
    return (Path(folder) / FINISHED).is_file()


def read_history(folder):
    """Read the log of a training.

    Parameters
    ----------
    folder : path-like
        The folder that was given to `fit`.

    Returns
    -------
    pandas.DataFrame
        One row per epoch: `epoch`, and each metric for training and (`val_…`) validation.
    """
    history = pd.read_csv(Path(folder) / "history.csv")
    # an epoch that was logged but not yet backed up when the training was killed is there twice
    return history.drop_duplicates("epoch", keep="last").reset_index(drop=True)
