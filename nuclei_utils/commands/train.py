"""Train a network on labelled images from the shell; a training that was broken off goes on."""

import contextlib
import json
import shlex
import shutil
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from nuclei_utils import data, models, pipeline, plots, recipes, training
from nuclei_utils.data import DataError
from nuclei_utils.files import written_whole

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
    data.DataError
        If there is a model or an unfinished training already, the training to go on with was begun in another way,
        or the images cannot be read.
    """
    out, folder = arguments.out, arguments.out.with_suffix(".training")
    _check_places(out, folder, arguments.resume)
    with contextlib.redirect_stdout(sys.stderr):  # where Keras shows its progress
        train, validation = _records(arguments.data, arguments.seed)
        weights = recipes.pretrained() if arguments.model in PRETRAINED else None
        _check_settings(folder, _settings(arguments, weights, train, validation))
        try:
            _fit(arguments, weights, train, validation, folder)
        except KeyboardInterrupt:
            return _interrupted(arguments, folder)
    history = _write(arguments.model, out, folder)
    shutil.rmtree(folder)
    best = history.loc[training.best_epoch(history, _monitor(arguments.model))]
    print(f"trained on {len(train)} images for {len(history)} epochs, validated on {len(validation)} images")
    print(f"best epoch: {best['epoch'] + 1:.0f}, validation Dice {best['val_dice']:.3f}")
    print(*_files(out), sep="\n")
    return 0


def _check_places(out, folder, resume):
    """Refuse to lose a model or a training; remove what a training left that was stopped in its first epoch."""
    if folder.exists() and not (folder / "settings.json").is_file():
        raise DataError(f"{folder} is in the way, and no training of this command: name another model with --out")
    done = _epochs(folder)
    if done and not resume:
        raise DataError(
            f"{folder} holds a training that was broken off after {done} epochs: go on with --resume, or delete it "
            f"(and {out}, its best so far) to start anew"
        )
    if done:
        return
    if out.exists():
        why = "its training came to its end" if resume else "it would be replaced"
        raise DataError(f"{out} is there already, and {why}: name another model with --out, or delete it")
    shutil.rmtree(folder, ignore_errors=True)
    if resume:
        print(f"there is nothing to go on with in {folder}: a new training begins", file=sys.stderr)


def _records(path, seed):
    """Read the images to train on and those to validate on."""
    if path is None:
        return data.load(split="train"), data.load(split="validation")
    records = data.read_folder(path)
    if len(records) < 2:
        raise DataError(f"{path} holds {len(records)} image: at least two are needed, one of them for validation")
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
    path = folder / "settings.json"
    if not path.is_file():
        with written_whole(path) as aside:
            aside.write_text(json.dumps(settings, indent=1))
        return
    before = json.loads(path.read_text())
    for name, value in settings.items():
        if before.get(name) != value:
            found = f"{before.get(name)}, not {value}" if name.startswith("--") else "not those of now"
            raise DataError(f"the training in {folder} was begun with other {name}: {found}. Use the same")


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
    examples, checks = pipeline.from_records(train), pipeline.from_records(validation)
    options = {"size": size, "batch_size": batch, "seed": arguments.seed, "at_least": CROPS}
    if arguments.model == "instance_unet":
        make, make_checks = pipeline.instance_batches, pipeline.instance_validation_batches
    else:
        make, make_checks = pipeline.training_batches, pipeline.validation_batches
    return make(examples, **options), make_checks(checks, min(2 * size, VALIDATED), batch)


def _monitor(name):
    """Name of the column that says which epoch is best: three outputs are judged by the loss of all of them."""
    return "val_loss" if name == "instance_unet" else "val_dice"


def _dice(name):
    """Name of the column with the Dice of the mask."""
    return "mask_dice" if name == "instance_unet" else "dice"


def _parts(folder):
    """Folders of the phases that have finished an epoch, in their order."""
    logs = [folder / "frozen" / "history.csv", folder / "history.csv"]
    return [log.parent for log in logs if log.is_file() and log.stat().st_size]


def _epochs(folder):
    return sum(len(training.read_history(part)) for part in _parts(folder))


def _interrupted(arguments, folder):
    """Keep the best so far, and say how to go on."""
    done = _epochs(folder)
    if done:
        _write(arguments.model, arguments.out, folder)
        words = [*arguments.words, *([] if arguments.resume else ["--resume"])]
        message = (
            f"interrupted after {done} of {arguments.epochs} epochs; the best so far is in {arguments.out}. "
            f"To go on: python -m nuclei_utils {shlex.join(words)}"
        )
    else:
        shutil.rmtree(folder)
        message = "interrupted in the first epoch, so that there is nothing to keep"
    print(f"nuclei-utils train: {message}", file=sys.stderr)
    return 1


def _write(name, out, folder):
    """Write the best model so far, the history and its picture; return the history, the mask's Dice as `val_dice`."""
    column = _dice(name)
    parts = [part for part in _parts(folder) if (part / "best.keras").is_file()]
    if not parts:
        raise DataError(f"{folder} has no whole model yet: go on with --resume")
    best = max(parts, key=lambda part: training.read_history(part)[f"val_{column}"].max())
    # without the optimizer's memory, which is twice as large as the network
    model = keras.models.load_model(best / "best.keras", compile=False)
    if isinstance(model, models.DeepSupervision):
        model = models.accurate_mode(model)
    history = pd.concat([training.read_history(part) for part in _parts(folder)], ignore_index=True)
    history["epoch"] = range(len(history))
    model_file, history_file, curves_file = _files(out)
    with written_whole(model_file) as aside:
        model.save(aside)
    with written_whole(history_file) as aside:
        history.to_csv(aside, index=False)
    names = ("loss", "mask_dice", "boundary_dice") if name == "instance_unet" else ("loss", "dice", "iou")
    figure = plots.learning_curves(history, names, title=out.stem)
    with written_whole(curves_file) as aside:
        figure.savefig(aside, dpi=120)
    plt.close(figure)
    return history.rename(columns={f"val_{column}": "val_dice"})


def _files(out):
    return out, out.with_name(f"{out.stem}_history.csv"), out.with_name(f"{out.stem}_curves.png")
