"""Checkpoints of a training, so that a killed training resumes after its last complete epoch.

A checkpoint has the weights, the state of the optimizer and the history.
"""

import io
import itertools
import os
import shutil
import zipfile
import zlib
from pathlib import Path

import keras
import pandas as pd

from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, remove_partial_files

# Files of a training: best model, history, copy of the history of a finished training
BEST, _HISTORY, _FINISHED = "best.keras", "history.csv", "finished"
# Folders of a training: checkpoints, and first phase of a training, in which the pretrained encoder is frozen
_BACKUP, FROZEN = "backup", "frozen"


class Checkpoint(keras.callbacks.Callback):
    """Save history, best model and last model after each epoch.

    Each file is complete or absent, even if the process is killed. Keras' `BackupAndRestore(double_checkpoint=True)`
    writes the weights and the number of the epoch one after the other. A kill between these two files repeats an epoch.
    A kill inside the second file makes the training unreadable (tested with Keras 3.10 and 3.15).
    `BackupAndRestore` also saves neither the history nor the best model.

    Parameters
    ----------
    folder : path-like
        Folder of the training. The callback writes `best.keras`, `history.csv` (with a copy in `backup/`) and
        `backup/epoch_0001.keras`, which the next epoch replaces. Models are saved with the state of their optimizer.
    history : pandas.DataFrame, optional
        Epochs before an interruption.
    monitor : str
        Column of the history that defines the best epoch.
    """

    def __init__(self, folder: str | os.PathLike, history: pd.DataFrame | None = None, monitor: str = "val_dice"):
        super().__init__()
        self.folder, self.monitor = Path(folder), monitor
        self.rows = [] if history is None else history.to_dict("records")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write history, best model and checkpoint; remove the previous checkpoint."""
        self.rows.append({"epoch": epoch, **logs})
        history = pd.DataFrame(self.rows)
        _write_history(history, self.folder / _BACKUP / _HISTORY, self.folder / _HISTORY)
        checkpoint = self.folder / _BACKUP / f"epoch_{epoch + 1:04}.keras"
        with atomic_write(checkpoint) as temporary:
            self.model.save(temporary)
            if history[self.monitor].notna().any() and best_epoch(history, self.monitor) == len(history) - 1:
                with atomic_write(self.folder / BEST) as best:
                    shutil.copyfile(temporary, best)
        for path in _checkpoints(self.folder):
            if path != checkpoint:
                path.unlink()


def resume(model: keras.Model, folder: str | os.PathLike, monitor: str = "val_dice") -> pd.DataFrame:
    """Load the last checkpoint of an interrupted training into a model.

    The model is compiled. If the checkpoint is damaged, the best model is loaded. The function returns the history
    up to the checkpoint, which is empty for a new training. A finished training is removed.

    Raises
    ------
    errors.NucleiError
        If the checkpoint belongs to another network, or if all files are damaged.
    """
    folder, problems = Path(folder), []
    for name in (BEST, _HISTORY, _FINISHED):
        remove_partial_files(folder / name)
    if is_finished(folder):
        clear(folder)
    candidates = [*reversed(_checkpoints(folder)), folder / BEST]
    for path in filter(Path.exists, candidates):
        try:
            check_model_file(path)
            history = _history_until(path, monitor)
        except (NucleiError, FileNotFoundError) as error:
            problems.append(str(error))
            continue
        try:
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            model.load_weights(path)
        except ValueError as error:
            raise NucleiError(
                f"{path} belongs to an interrupted training of another network: delete {folder} to train from scratch"
            ) from error
        print(*problems, f"resuming after epoch {len(history)} of the interrupted training in {folder}", sep="\n")
        return _repair(model, folder, history, monitor)
    if problems:
        raise NucleiError(
            f"the training in {folder} cannot be resumed. {'. '.join(problems)}. Delete {folder} to train from scratch"
        )
    clear(folder)
    return pd.DataFrame()


def _history_until(path, monitor):
    """Return the history up to the epoch of a model file."""
    if path.name == BEST:
        history = read_history(path.parent)
        return history.iloc[: best_epoch(history, monitor) + 1].copy()
    history, epochs = read_history(path.parent.parent), _epoch(path)
    if len(history) < epochs:
        raise NucleiError(f"{path} is the model of epoch {epochs}, but {_HISTORY} has only {len(history)} epochs")
    return history.iloc[:epochs].copy()  # an epoch in the history without a checkpoint is trained again


def _repair(model, folder, history, monitor):
    """Write the history, and replace a damaged best model by the checkpoint."""
    try:
        check_model_file(folder / BEST)
        best_is_lost = False
    except (NucleiError, FileNotFoundError) as error:
        best_is_lost = history[monitor].notna().any()
        epochs = len(history)
        if best_is_lost and (best := best_epoch(history, monitor) + 1) < epochs:
            print(f"{error}. The model of epoch {best} is lost: the best epoch is now chosen from epoch {epochs} on")
            history.loc[: epochs - 2, monitor] = float("nan")
    _write_history(history, folder / _BACKUP / _HISTORY, folder / _HISTORY)
    if best_is_lost:
        with atomic_write(folder / BEST) as temporary:
            model.save(temporary)
    return history


def finish(model: keras.Model, folder: str | os.PathLike, monitor: str = "val_dice") -> pd.DataFrame:
    """Load the best weights, mark a training as finished, return the history."""
    folder = Path(folder)
    history = read_history(folder)
    best_epoch(history, monitor)  # raises an error if the training diverged
    model.load_weights(folder / BEST)
    _write_history(history, folder / _FINISHED)
    # last, because a training that is killed before this line is resumed
    shutil.rmtree(folder / _BACKUP, ignore_errors=True)
    return history


def clear(folder: str | os.PathLike) -> None:
    """Remove the files of a training, and no other files."""
    folder = Path(folder)
    # the model first: if the process is killed here, the remaining files are not taken for an interrupted training
    (folder / BEST).unlink(missing_ok=True)
    for name in (_BACKUP, "tensorboard", "predictions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (_HISTORY, _FINISHED):
        (folder / name).unlink(missing_ok=True)


def is_finished(folder: str | os.PathLike) -> bool:
    """Return True if a training has finished and its model exists."""
    return all((Path(folder) / name).is_file() for name in (_FINISHED, BEST))


def phases(folder: str | os.PathLike) -> list[Path]:
    """Return the folders of the started phases of a training, in order.

    A phase has started if an epoch is complete, even if its files are damaged.
    """
    return [phase for phase in (Path(folder) / FROZEN, Path(folder)) if _is_started(phase)]


def _is_started(folder):
    return bool(_checkpoints(folder)) or any((folder / name).exists() for name in (BEST, _FINISHED))


def check_model_file(path: str | os.PathLike) -> None:
    """Check the checksums of a `.keras` file; raise `NucleiError` (damaged) or FileNotFoundError."""
    try:
        with zipfile.ZipFile(path) as archive:
            problem = archive.testzip() and "its checksums are wrong"
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        problem = str(error)
    if problem:
        size = Path(path).stat().st_size
        raise NucleiError(f"{path} is damaged ({problem if size else 'the file is empty'})")


def best_epoch(history: pd.DataFrame, monitor: str | None = None) -> int:
    """Find the best epoch in a history, counted from 0.

    The function raises `NucleiError` if the training diverged.

    Parameters
    ----------
    monitor : str, optional
        Column that defines the best epoch: the minimum of a loss, the maximum of any other column. Default: `val_dice`
        if the history has this column, otherwise `val_loss`.

    Examples
    --------
    >>> import pandas as pd
    >>> best_epoch(pd.DataFrame({"val_loss": [3.0, 2.0, 1.0], "val_dice": [0.1, 0.9, 0.5]}))
    1
    """
    monitor = monitor or ("val_dice" if "val_dice" in history else "val_loss")
    values = history[monitor]
    if values.isna().all():
        raise NucleiError(f"the training diverged: {monitor} is never a number; try a lower learning rate")
    return int(values.idxmin() if monitor.endswith("loss") else values.idxmax())


def read_history(folder: str | os.PathLike) -> pd.DataFrame:
    """Read the history of a training, or an intact copy.

    The history has one row per epoch: `epoch`, the training metrics, and the validation metrics (`val_...`).

    Raises
    ------
    FileNotFoundError
        If no epoch is complete.
    errors.NucleiError
        If the history and its copies are damaged.
    """
    folder, histories, problems = Path(folder), [], []
    for path in filter(Path.is_file, (folder / _HISTORY, folder / _BACKUP / _HISTORY, folder / _FINISHED)):
        try:
            histories.append(_read_complete_rows(path))
        except NucleiError as error:
            problems.append(str(error))
    if histories:
        return max(histories, key=len)
    if problems:
        raise NucleiError(". ".join(problems))
    raise FileNotFoundError(
        f"no training has completed an epoch in {folder}: {folder / _HISTORY} is missing; train the network first"
    )


def _read_complete_rows(path):
    """Read the epochs of a history up to the first damaged line."""
    lines = path.read_bytes().splitlines(keepends=True)
    complete = list(itertools.takewhile(lambda line: line.endswith(b"\n") and b"\0" not in line, lines))
    if len(complete) < 2:
        raise NucleiError(f"{path} is damaged ({'no complete line' if lines else 'the file is empty'})")
    try:
        history = pd.read_csv(io.BytesIO(b"".join(complete)))
    except ValueError as error:
        raise NucleiError(f"{path} is damaged ({error})") from error
    if "epoch" not in history or list(history["epoch"]) != list(range(len(history))):
        raise NucleiError(f"{path} is damaged (expected one line for each epoch, from 0 on)")
    return history


def _write_history(history, *paths):
    for path in paths:
        with atomic_write(path) as temporary:
            history.to_csv(temporary, index=False)


def _checkpoints(folder):
    return sorted((folder / _BACKUP).glob("epoch_*.keras"), key=_epoch)


def _epoch(path):
    return int(path.stem.removeprefix("epoch_"))
