"""Train a network on labelled images from the shell; a training that was broken off goes on."""

import contextlib
import json
import shlex
import shutil
import sys
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf

from nuclei_utils import datasets, input_pipeline, models, plots, recipes, training
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, file_lock, remove_partial_files

FILTERS = {"unet": 32, "mobilenet_unet": 16, "unet_plus_plus": 32, "instance_unet": 16}
"""Feature maps of each network at full size with `--channels 1`."""
PRETRAINED = ("mobilenet_unet", "instance_unet")
"""Networks whose encoder has ImageNet's weights."""
CROPS = 48
"""Least number of crops in an epoch, and of each kind of image: a handful of images is gone through several times."""
BATCH = {64: 16, 128: 16, 256: 8}
"""Crops in a batch, by their size: what four gigabytes of memory are enough for."""
VALIDATED = 256
"""Largest height and width, pixels, of the middle of an image that is validated."""
SETTINGS = "settings.json"
"""File in the folder of a training: the options that the training was begun with."""
SHARE = 0.2
"""Share of one's own images that are validated on, and not trained on."""


def run(arguments):
    """Train as the options say.

    Parameters
    ----------
    arguments : argparse.Namespace
        `model`, `size`, `channels`, `epochs`, `data`, `out`, `seed`, `resume`, and `words`, the command as it was
        typed.

    Returns
    -------
    int
        0 where the training came to its end, 1 where it was interrupted.

    Raises
    ------
    errors.NucleiError
        If there is a model or an unfinished training already, the training to go on with was begun in another way,
        the images cannot be read or hold no nucleus, or the memory is not enough.
    BlockingIOError
        If another process trains the same model.
    OSError
        If a file cannot be written.
    """
    out, folder = arguments.out, arguments.out.with_suffix(".training")
    busy = f"another process is training {out}: wait for its end, or name another model with --out"
    with file_lock(out.with_name(f".{folder.name}.lock"), busy):
        try:
            return _train(arguments, out, folder)
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            reason, *_ = str(error).split("\n")
            raise NucleiError(
                f"out of memory or disk space ({reason}). Use fewer or smaller images in --data, a "
                f"smaller --size or --channels 0.5, or make space on the disk of {folder}"
            ) from error


def _train(arguments, out, folder):
    _check_places(out, folder, arguments.resume)
    with contextlib.redirect_stdout(sys.stderr):  # where Keras shows its progress
        train, validation = _records(arguments.data, arguments.seed)
        recipes.check_nuclei(train, "train on")
        recipes.check_nuclei(validation, "validate on")
        weights = recipes.pretrained() if arguments.model in PRETRAINED else None
        _check_settings(folder, _settings(arguments, weights, train, validation))
        try:
            _fit(arguments, weights, train, validation, folder)
        except KeyboardInterrupt:
            return _interrupted(arguments, folder)
    history = _write(arguments.model, out, folder)
    _remove(folder)
    best = history.loc[training.best_epoch(history, _monitor(arguments.model))]
    print(f"trained on {len(train)} images for {len(history)} epochs, validated on {len(validation)} images")
    print(f"best epoch: {best['epoch'] + 1:.0f}, validation Dice {best['val_dice']:.3f}")
    print(*_files(out), sep="\n")
    return 0


def _check_places(out, folder, resume):
    """Refuse to lose a model or a training; remove what a training left that was stopped in its first epoch."""
    if _parts(folder):
        if not resume:
            raise NucleiError(
                f"{folder} holds a training that was broken off: go on with --resume, or delete it (and {out}, its "
                "best so far) to start anew"
            )
        return
    if out.exists():
        why = "its training came to its end" if resume else "it would be replaced"
        raise NucleiError(f"{out} is there already, and {why}: name another model with --out, or delete it")
    settings = folder / SETTINGS
    remove_partial_files(settings)
    if folder.exists() and not settings.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise NucleiError(f"{folder} is in the way, and no training of this command: name another model with --out")
    _remove(folder)
    if resume:
        print(f"there is nothing to go on with in {folder}: a new training begins", file=sys.stderr)


def _remove(folder):
    """Remove a training at once: a process that is killed meanwhile leaves no part of the folder under its name."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}")
        shutil.rmtree(hidden, ignore_errors=True)  # of a process that was killed here
        shutil.rmtree(folder.rename(hidden))


def _records(path, seed):
    """Read the images to train on and those to validate on."""
    if path is None:
        return datasets.load(split="train"), datasets.load(split="validation")
    records = datasets.read_folder(path)
    if len(records) < 2:
        raise NucleiError(f"{path} holds {len(records)} image: at least two are needed, one of them for validation")
    order = np.random.default_rng(seed).permutation(len(records))
    held_out = set(order[: max(round(SHARE * len(records)), 1)])
    sides = ([], [])
    for number, record in enumerate(records):
        sides[number in held_out].append(record)
    return sides


def _settings(arguments, weights, train, validation):
    return {
        "--model": arguments.model,
        "--size": arguments.size,
        "--channels": arguments.channels,
        "--epochs": arguments.epochs,
        "--seed": arguments.seed,
        "weights of the encoder": weights,
        "images to train on": [record.id for record in train],
        "images to validate on": [record.id for record in validation],
    }


def _check_settings(folder, settings):
    """Keep the settings of a new training; refuse to go on with others."""
    path = folder / SETTINGS
    try:
        before = json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        if _parts(folder):
            state = "missing" if isinstance(error, FileNotFoundError) else "damaged"
            warnings.warn(
                f"{path} is {state}, so that the options of this command cannot be compared with those of before",
                stacklevel=2,
            )
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(settings, indent=1))
        return
    for name, value in settings.items():
        if before.get(name) != value:
            found = f"{before.get(name)}, not {value}" if name.startswith("--") else "not those of now"
            raise NucleiError(f"the training in {folder} was begun with other {name}: {found}. Use the same")


def _fit(arguments, weights, train, validation, folder):
    """Train as the course does, but for as long as was asked."""
    keras.utils.set_random_seed(arguments.seed)
    name, epochs = arguments.model, arguments.epochs
    crops, checks = _batches(arguments, train, validation)
    model = recipes.build(name, weights, round(FILTERS[name] * arguments.channels))
    verbose = 1 if sys.stderr.isatty() else 2
    if name != "instance_unet":
        # no early stop: the learning rate falls until the last epoch, and the best is often near it
        recipes.fit(name, model, crops, checks, folder, epochs, weights, patience=epochs, verbose=verbose)
    elif not training.finished(folder):
        recipes.fit_instances(model, crops, checks, folder, epochs, verbose=verbose)


def _batches(arguments, train, validation):
    size, batch = arguments.size, BATCH[arguments.size]
    examples, checks = input_pipeline.from_records(train), input_pipeline.from_records(validation)
    options = {"size": size, "batch_size": batch, "seed": arguments.seed, "min_crops": CROPS}
    if arguments.model == "instance_unet":
        make, make_checks = input_pipeline.instance_batches, input_pipeline.instance_validation_batches
    else:
        make, make_checks = input_pipeline.training_batches, input_pipeline.validation_batches
    return make(examples, **options), make_checks(checks, min(2 * size, VALIDATED), batch)


def _monitor(name):
    """Name of the column that says which epoch is best: three outputs are judged by the loss of all of them."""
    return "val_loss" if name == "instance_unet" else "val_dice"


def _dice(name):
    """Name of the column with the Dice of the mask."""
    return "mask_dice" if name == "instance_unet" else "dice"


def _parts(folder):
    """Folders of the phases that have left an epoch, in their order."""
    return [part for part in (folder / "frozen", folder) if training.begun(part)]


def _interrupted(arguments, folder):
    """Keep the best so far, and say how to go on."""
    if _parts(folder):
        history = _write(arguments.model, arguments.out, folder)
        words = [*arguments.words, *([] if arguments.resume else ["--resume"])]
        message = (
            f"interrupted after {len(history)} of {arguments.epochs} epochs; the best so far is in {arguments.out}. "
            f"To go on: python -m nuclei_utils {shlex.join(words)}"
        )
    else:
        _remove(folder)
        message = "interrupted in the first epoch, so that there is nothing to keep"
    print(f"nuclei-utils train: {message}", file=sys.stderr)
    return 1


def _write(name, out, folder):
    """Write the best model so far, the history and its picture; return the history, the mask's Dice as `val_dice`."""
    column = _dice(name)
    histories = {part: training.read_history(part) for part in _parts(folder)}
    parts = [part for part in histories if (part / training.BEST).is_file()]
    if not parts:
        raise NucleiError(f"{folder} has no whole model yet: go on with --resume")
    best = max(parts, key=lambda part: histories[part][f"val_{column}"].max()) / training.BEST
    training.check_whole(best)
    # without the optimizer's memory, which is twice as large as the network
    model = keras.models.load_model(best, compile=False)
    if isinstance(model, models.DeepSupervision):
        model = models.accurate_mode(model)
    history = pd.concat(histories.values(), ignore_index=True)
    history["epoch"] = range(len(history))
    model_file, history_file, curves_file = _files(out)
    with atomic_write(model_file) as aside:
        model.save(aside)
    with atomic_write(history_file) as aside:
        history.to_csv(aside, index=False)
    names = ("loss", "mask_dice", "boundary_dice") if name == "instance_unet" else ("loss", "dice", "iou")
    figure = plots.learning_curves(history, names, title=out.stem)
    with atomic_write(curves_file) as aside:
        figure.savefig(aside, dpi=120)
    plt.close(figure)
    return history.rename(columns={f"val_{column}": "val_dice"})


def _files(out):
    return out, out.with_name(f"{out.stem}_history.csv"), out.with_name(f"{out.stem}_curves.png")
