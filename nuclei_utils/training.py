"""How much is trained, and what goes with it: profiles, callbacks, logs, and a training that can be resumed."""

import io
import itertools
import os
import platform
import shutil
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import keras
import pandas as pd

from nuclei_utils import __version__, datasets, losses
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, file_lock, remove_partial_files

INSTANCE_RATE = 5e-4
"""Highest learning rate of the network that separates nuclei, whose pretrained encoder is trained from the start."""


BEST, HISTORY, BACKUP = "best.keras", "history.csv", "backup"
"""Files and folder of a training (`callbacks`)."""


FINISHED = "finished"
"""File that a training leaves when it comes to its end: a second copy of its history."""


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
        Least number of crops of each kind of image in an epoch (`input_pipeline.training_batches`).
    augment : str
        How much training images are changed at random (`input_pipeline.training_batches`): little in short trainings.
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
        f"data: {datasets.current()} | profile: {profile().name}"
    )


def warmup_cosine(learning_rate, steps):
    """Make the schedule of the course: a short min_prominence to the highest learning rate, then half a cosine down to 0.

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

    The optimizer takes the weights that are trainable now. Choose them before (`models.unfreeze_encoder`).

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
        optimizer=keras.optimizers.Adam(warmup_cosine(learning_rate, steps), amsgrad=amsgrad),
        loss=losses.BinaryCrossentropyDice(),
        metrics=[
            keras.metrics.BinaryAccuracy(name="accuracy"),
            # the default averages in the background, which is always easy
            keras.metrics.BinaryIoU(target_class_ids=[1], threshold=0.5, name="iou"),
            losses.Dice(),
        ],
    )
    _build_optimizer(model)
    return model


def compile_instances(model, steps, learning_rate=INSTANCE_RATE):
    """Compile a model of three outputs (`models.instance_unet`) as the course trains it.

    Mask and boundary have cross-entropy + Dice, the distance its mean absolute error; all count alike. The optimizer
    takes the weights that are trainable now.

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
        optimizer=keras.optimizers.Adam(warmup_cosine(learning_rate, steps)),
        loss={
            "mask": losses.BinaryCrossentropyDice(),
            "boundary": losses.BinaryCrossentropyDice(),
            "distance": keras.losses.MeanAbsoluteError(),
        },
        metrics={"mask": [losses.Dice()], "boundary": [losses.Dice()]},
    )
    _build_optimizer(model)
    return model


def _build_optimizer(model):
    """Make the optimizer's variables now. If the first training step makes them, TensorFlow traces that step twice."""
    model.optimizer.build(model.trainable_variables)


def callbacks(folder, patience=10, history=None, monitor="val_dice"):
    """Make what watches over a training: an early stop, logs, the best model kept, and a backup to go on from.

    Parameters
    ----------
    folder : path-like
        Where `best.keras`, `history.csv`, `tensorboard/` and `backup/` go.
    patience : int
        Epochs without a better value before the training stops.
    history : pandas.DataFrame, optional
        Of the epochs before a break, if a training is resumed.
    monitor : str
        Column of the history that says which epoch is best: of a loss the lowest, of anything else the highest.

    Returns
    -------
    list of keras.callbacks.Callback
    """
    folder = Path(folder)
    return [
        keras.callbacks.EarlyStopping(patience=patience, monitor=monitor, mode=_mode(monitor)),
        keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
        Backup(folder, history, monitor),
    ]


class Backup(keras.callbacks.Callback):
    """Keep the history, the best model and the last model after each epoch, so that a killed training can go on.

    Each file is whole or not there. Keras' own `ModelCheckpoint`, `CSVLogger` and `BackupAndRestore` write over the
    files that they wrote before: a process that is killed meanwhile leaves half a file.

    Parameters
    ----------
    folder : path-like
        Of the training. It gets `best.keras`, `history.csv` with a copy in `backup/`, and `backup/epoch_0001.keras`,
        which the next epoch replaces. Models are saved with the memory of their optimizer.
    history, monitor
        As for `callbacks`.
    """

    def __init__(self, folder, history=None, monitor="val_dice"):
        super().__init__()
        self.folder, self.monitor = Path(folder), monitor
        self.rows = [] if history is None else history.to_dict("records")

    def on_epoch_end(self, epoch, logs=None):
        """Write the history, the model if it is the best so far, and the backup; then remove the backup before."""
        self.rows.append({"epoch": epoch, **logs})
        history = pd.DataFrame(self.rows)
        for path in (self.folder / BACKUP / HISTORY, self.folder / HISTORY):
            _write_history(path, history)
        backup = self.folder / BACKUP / f"epoch_{epoch + 1:04}.keras"
        with atomic_write(backup) as aside:
            self.model.save(aside)
            if history[self.monitor].notna().any() and best_epoch(history, self.monitor) == len(history) - 1:
                with atomic_write(self.folder / BEST) as best:
                    shutil.copyfile(aside, best)
        for other in _backups(self.folder):
            if other != backup:
                other.unlink()


def _write_history(path, history):
    with atomic_write(path) as aside:
        history.to_csv(aside, index=False)


def _backups(folder):
    return sorted((folder / BACKUP).glob("epoch_*.keras"), key=_epoch)


def _epoch(path):
    return int(path.stem.removeprefix("epoch_"))


def fit(model, train, validation, folder, epochs, patience=10, extra=(), verbose="auto", monitor="val_dice"):
    """Train a compiled model; a training that was killed goes on after its last whole epoch.

    After a break, random crops and changes begin again with those of the first epoch. The result is therefore close to
    that of a training without a break, and not equal.

    Parameters
    ----------
    model : keras.Model
        Compiled, with the metric that is monitored.
    train, validation : tf.data.Dataset
        Batches of (image, mask), or of what else the model learns.
    folder : path-like
        Where the training leaves its files (see `callbacks`). What a finished training left there is replaced; a
        killed training's backup is taken up. If the backup is damaged, the training goes on after its best epoch.
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
    errors.NucleiError
        If no epoch has a value of `monitor` that is a number: the training diverged. If a training was broken off in
        the folder, and its files are of another network or all damaged.
    BlockingIOError
        If another training is at work in the folder.
    OSError
        If a file cannot be written. The training can go on later.
    """
    folder = Path(folder)
    with file_lock(
        folder / ".lock", f"another training is at work in {folder}: wait for its end, or use another folder"
    ):
        for name in (BEST, HISTORY, FINISHED):
            remove_partial_files(folder / name)
        history = None if finished(folder) else _resume(model, folder, monitor)
        if history is None:
            clear(folder)
        model.fit(
            train,
            validation_data=validation,
            initial_epoch=0 if history is None else len(history),
            epochs=epochs,
            # what is extra comes first: once the backup is made, the epoch is not done again
            callbacks=[*extra, *callbacks(folder, patience, history, monitor)],
            shuffle=False,  # the pipeline does
            verbose=verbose,
        )
        history = read_history(folder)
        best_epoch(history, monitor)  # says so if there is none
        # it may lie before a break, which EarlyStopping's own memory does not reach
        model.load_weights(folder / BEST)
        _write_history(folder / FINISHED, history)
        # not before: what is killed until here goes on
        shutil.rmtree(folder / BACKUP, ignore_errors=True)
    return model, history


def clear(folder):
    """Remove what a training left in a folder, and nothing else.

    Parameters
    ----------
    folder : path-like
        The folder that was given to `fit`.
    """
    folder = Path(folder)
    # the model first: if the process is killed here, nothing takes the rest for a training that can go on
    (folder / BEST).unlink(missing_ok=True)
    for name in (BACKUP, "tensorboard", "predictions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (HISTORY, FINISHED):
        (folder / name).unlink(missing_ok=True)


def _resume(model, folder, monitor):
    """Give a model the last whole state of a training that was broken off; return the history until then, or None."""
    problems = []
    for path in [*reversed(_backups(folder)), folder / BEST]:
        if not path.exists():
            continue
        try:
            check_whole(path)
            history = _history_until(path, monitor)
        except (NucleiError, FileNotFoundError) as error:
            problems.append(str(error))
            continue
        try:
            model.optimizer.build(model.trainable_variables)
            model.load_weights(path)
        except ValueError as error:
            raise NucleiError(
                f"{path} was left by a training of another network that was broken off, and does not fit this one: "
                f"delete {folder} to start anew"
            ) from error
        for problem in problems:
            print(problem)
        print(f"going on after epoch {len(history)} of the training that was broken off in {folder}")
        _mend(model, folder, history, monitor)
        return history
    if problems:
        raise NucleiError(
            f"the training in {folder} cannot go on. {'. '.join(problems)}. Delete {folder} to start anew"
        )
    return None


def _history_until(path, monitor):
    """Return the history until the epoch whose model a file holds."""
    if path.name == BEST:
        history = read_history(path.parent)
        return history.iloc[: best_epoch(history, monitor) + 1].copy()
    history, done = read_history(path.parent.parent), _epoch(path)
    if len(history) < done:
        raise NucleiError(f"{path} is of epoch {done}, but {HISTORY} holds {len(history)} whole epochs")
    return history.iloc[:done].copy()  # an epoch that was logged, but not kept, is done again


def _mend(model, folder, history, monitor):
    """Write what is damaged, or is ahead of the state that a training goes on from."""
    best_is_lost = False
    try:
        check_whole(folder / BEST)
    except (NucleiError, FileNotFoundError) as error:
        best_is_lost = history[monitor].notna().any()
        done = len(history)
        if best_is_lost and (best := best_epoch(history, monitor) + 1) < done:
            print(f"{error}. The model of epoch {best} is lost: the best epoch is now chosen from epoch {done} on")
            history.loc[: done - 2, monitor] = float("nan")
    for path in (folder / BACKUP / HISTORY, folder / HISTORY):
        _write_history(path, history)
    if best_is_lost:
        with atomic_write(folder / BEST) as aside:
            model.save(aside)


def check_whole(path):
    """Check that a `.keras` file is whole: the file is an archive with checksums.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    errors.NucleiError
        If the file is empty, cut or overwritten.
    FileNotFoundError
        If there is no file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            problem = archive.testzip() and "its checksums are wrong"
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        problem = str(error)
    if problem:
        size = Path(path).stat().st_size
        raise NucleiError(f"{path} is damaged ({problem if size else 'the file is empty'})")


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
    errors.NucleiError
        If no epoch has a value that is a number: the training diverged.
    """
    values = history[monitor]
    if values.isna().all():
        raise NucleiError(f"no epoch has a number for {monitor}: the training diverged; a lower learning rate may help")
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
    return all((Path(folder) / name).is_file() for name in (FINISHED, BEST))


def begun(folder):
    """Return whether a training in a folder left an epoch, finished or not, whole or damaged.

    Parameters
    ----------
    folder : path-like
        The folder that was given to `fit`.

    Returns
    -------
    bool
    """
    return bool(_backups(Path(folder))) or any((Path(folder) / name).exists() for name in (BEST, FINISHED))


def read_history(folder):
    """Read the log of a training.

    Parameters
    ----------
    folder : path-like
        The folder that was given to `fit`.

    Returns
    -------
    pandas.DataFrame
        One row per epoch: `epoch`, and each metric for training and (`val_…`) validation. If `history.csv` is
        damaged, its copy is read, or what is whole of both.

    Raises
    ------
    FileNotFoundError
        If no epoch is done.
    errors.NucleiError
        If the history and its copy are damaged.
    """
    folder, found, problems = Path(folder), [], []
    for path in (folder / HISTORY, folder / BACKUP / HISTORY, folder / FINISHED):
        if path.is_file():
            try:
                found.append(_whole_rows(path))
            except NucleiError as error:
                problems.append(str(error))
    if found:
        return max(found, key=len)
    if problems:
        raise NucleiError(". ".join(problems))
    raise FileNotFoundError(f"no training has finished an epoch in {folder}: {folder / HISTORY} is missing")


def _whole_rows(path):
    """Read the epochs of a history up to the first line that is cut or overwritten."""
    lines = path.read_bytes().splitlines(keepends=True)
    whole = list(itertools.takewhile(lambda line: line.endswith(b"\n") and b"\0" not in line, lines))
    if len(whole) < 2:
        raise NucleiError(f"{path} is damaged ({'no whole line' if lines else 'the file is empty'})")
    try:
        history = pd.read_csv(io.BytesIO(b"".join(whole)))
    except ValueError as error:
        raise NucleiError(f"{path} is damaged ({error})") from error
    if "epoch" not in history or list(history["epoch"]) != list(range(len(history))):
        raise NucleiError(f"{path} is damaged (expected one line for each epoch, from 0 on)")
    return history
