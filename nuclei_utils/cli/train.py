"""The command `train`: train a network on the images of the course or on your own; resume after an interruption."""

import argparse
import contextlib
import json
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import nuclei_utils as nu
from nuclei_utils.cli.arguments import number, positive_integer
from nuclei_utils.errors import NucleiError, first_line
from nuclei_utils.files import atomic_write, file_lock, remove_partial_files

HELP = "train a network on the images of the course or on your own"

EXAMPLES = """\
examples:
  python -m nuclei_utils train --model unet --epochs 20 --out unet.keras
      train a U-Net on the images of the course (from 'data', otherwise the drawn sample)
  python -m nuclei_utils train --model instance_unet --epochs 60 --data mine --out mine.keras
      train the network that separates touching nuclei, on your own images
  python -m nuclei_utils train --model instance_unet --epochs 60 --data mine --out mine.keras --resume
      resume this training after Ctrl-C or a crash
  python -m nuclei_utils train --model instance_unet --data mine --out mine.keras --devices gpu:0,1 --batch-size 32
      train on two GPUs, which share each batch
  python -m nuclei_utils predict photos --model mine.keras --out result
      use the network

--data DIR has one of two layouts. --seed draws a fifth of the images for validation; the network never trains on them.
  images/NAME.png (or .tif, .jpg)  and  labels/NAME.png (or .tif): 0 background, 1..N one number for each nucleus;
                                        or outlines, labels/NAME.geojson of QuPath, labels/NAME_rois.zip of ImageJ
  NAME/images/NAME.png             and  NAME/masks/*.png: one black and white image for each nucleus
You can use label maps and outlines that 'predict' wrote and that you corrected: one file of labels for each image.

Feature maps at full size for --channel-width 0.5 / 1 / 2:
  unet, unet_plus_plus             16 / 32 / 64
  mobilenet_unet, instance_unet     8 / 16 / 32 in the decoder. The encoder is MobileNetV2 with ImageNet's weights,
                                   which are downloaded once (14 MB). Without internet, set NUCLEI_MOBILENET_WEIGHTS
                                   to the path of their file.

--devices auto is the first GPU, or the CPU without a GPU. Several GPUs share each batch, so give them larger batches
with --batch-size. With the TensorFlow backend of Keras, each GPU computes batch normalisation and the Dice loss from
its share of a batch. With the JAX backend (KERAS_BACKEND=jax), the numbers are those of one device. An interrupted
training can be resumed on other devices. The command uses one machine: Keras 3 does not support TensorFlow's
MultiWorkerMirroredStrategy (keras-team/keras#20585). For several machines, write a script for the JAX backend with
jax.distributed.initialize and keras.distribution.DataParallel.

Output files for --out mine.keras: mine.keras, the best epoch by the Dice of the validation images (instance_unet: by
the loss of all outputs); mine_history.csv; mine_curves.png. The folder mine.training exists until the training has
finished. Ctrl-C saves the best epoch so far in the same three files; the exit status is then 1. The command never
replaces an existing model. It continues an unfinished training only with --resume.
"""

_BATCH_SIZES = {64: 16, 128: 16, 256: 8}  # crops per batch for each crop size, for 4 GB of memory
_SETTINGS = "settings.json"  # the options that started a training, in its folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add description, examples and options of the command to a parser."""
    parser.description = "Train a network to find nuclei, on the images of the course or on your own labelled images."
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--model",
        type=_network,
        required=True,
        metavar="NETWORK",
        help="unet, mobilenet_unet, unet_plus_plus, or instance_unet, which learns to separate touching nuclei",
    )
    parser.add_argument("--out", type=_model_file, required=True, metavar="MODEL.keras", help="file for the network")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of your own labelled images, see below (default: the images of the course)",
    )
    parser.add_argument(
        "--crop-size",
        type=int,
        choices=tuple(_BATCH_SIZES),
        default=128,
        help="height and width of the training crops in pixels (default: 128); predictions work at any size",
    )
    parser.add_argument(
        "--channel-width",
        type=float,
        choices=(0.5, 1, 2),
        default=1,
        help="factor for the number of feature maps (default: 1), see below",
    )
    parser.add_argument(
        "--epochs",
        type=positive_integer,
        default=20,
        metavar="N",
        help="number of passes through the images (default: 20); the best epoch is saved",
    )
    parser.add_argument(
        "--seed",
        type=number(int, lambda value: 0 <= value < 2**32, f"a whole number from 0 to {2**32 - 1}"),
        default=0,
        metavar="N",
        help="random seed for weights, crops and validation images, 0 to 4294967295 (default: 0)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        metavar="N",
        help="number of crops in a batch, of all devices together (default: 16; 8 for crops of 256 pixels)",
    )
    parser.add_argument(
        "--devices",
        default="auto",
        metavar="auto|cpu|gpu|gpu:0,1",
        help="train on the CPU, a GPU, or GPUs by number (default: auto), see below",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        default="float32",
        help="mixed precision needs less time and memory on a GPU: mixed_bfloat16 from compute capability 8.0 on, "
        "mixed_float16 from 7.0 on (default: float32); the saved network computes in float32",
    )
    parser.add_argument("--resume", action="store_true", help="resume an interrupted training")
    parser.set_defaults(interrupted="the same command with --resume continues the training")


def _network(text):
    if text not in nu.training.NETWORKS:  # loads Keras, which --help does not need
        raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(nu.training.NETWORKS)}")
    return text


def _model_file(text):
    path = Path(text)
    if path.suffix != ".keras":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .keras")
    return path


def run(args: argparse.Namespace) -> int:
    """Train a network with the options of the command line.

    The exit status is 0 if the training has finished, and 1 if it was interrupted.

    Parameters
    ----------
    args : argparse.Namespace
        Options of `add_arguments`, and `words`: the command line as a list of str.
    """
    folder = args.out.with_suffix(".training")
    message = f"another process is training {args.out}: wait until it has finished, or use another --out"
    with file_lock(args.out.with_name(f".{folder.name}.lock"), message):
        try:
            return _train(args, folder)
        except Exception as error:
            if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":  # TensorFlow's
                raise
            raise NucleiError(
                f"out of memory or disk space ({first_line(error)}). Use fewer or smaller images in --data, a smaller "
                f"--crop-size or --batch-size, or --channel-width 0.5; or free space on the disk of {folder}"
            ) from error


def _train(args, folder):
    _check_output(args.out, folder, args.resume)
    nu.devices.find_devices(args.devices)  # before the images are read
    with contextlib.redirect_stdout(sys.stderr):  # for the progress bars of Keras
        if args.data is None:
            train, validation = (nu.datasets.load(split=split) for split in ("train", "validation"))
        else:
            train, validation = nu.splits.hold_out(nu.datasets.read_folder(args.data), args.seed)
        network = nu.training.NETWORKS[args.model]
        weights = nu.training.imagenet_weights() if network.has_encoder else None
        _check_settings(args, folder, weights, train, validation)
        try:
            if not nu.training.is_finished(folder):  # else the process was killed before it wrote the model
                nu.training.train(
                    args.model,
                    folder,
                    epochs=args.epochs,
                    seed=args.seed,
                    weights=weights,
                    filters=round(network.filters * args.channel_width),
                    patience=args.epochs,  # no early stop: the best epoch is often near the last
                    verbose=1 if sys.stderr.isatty() else 2,
                    records=(train, validation),
                    crop_size=args.crop_size,
                    batch_size=_batch_size(args),
                    devices=args.devices,
                    precision=args.precision,
                    min_crops=48,  # so that a few images are used several times
                    augment="all",
                )
        except KeyboardInterrupt:
            return _stop(args, folder)
    history = _write_results(args, folder)
    _remove(folder)
    best = history.loc[nu.training.best_epoch(history)]
    dice = best["val_mask_dice" if "val_mask_dice" in best else "val_dice"]
    print(f"trained on {len(train)} images for {len(history)} epochs, validated on {len(validation)} images")
    print(f"best epoch: {best['epoch'] + 1:.0f}, validation Dice {dice:.3f}")
    print(*_output_files(args.out), sep="\n")
    return 0


def _batch_size(args):
    return args.batch_size or _BATCH_SIZES[args.crop_size]


def _check_output(out, folder, resume):
    """Refuse to replace a model or a training.

    The files of a training that stopped in its first epoch are removed.
    """
    if nu.training.phases(folder):
        if not resume:
            raise NucleiError(
                f"{folder} has an interrupted training: continue with --resume, or delete the folder (and {out}, its "
                "best model so far) to train from scratch"
            )
        return
    if out.exists():
        reason = "its training has finished" if resume else "it would be replaced"
        raise NucleiError(f"{out} exists already, and {reason}: use another --out, or delete the file")
    settings = folder / _SETTINGS
    remove_partial_files(settings)
    if folder.exists() and not settings.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise NucleiError(f"{folder} exists already, and is no training of this command: use another --out")
    _remove(folder)
    if resume:
        print(f"there is no training to resume in {folder}: a new training starts", file=sys.stderr)


def _remove(folder):
    """Remove the folder of a training in one step.

    A killed process leaves no incomplete folder with this name.
    """
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}")
        shutil.rmtree(hidden, ignore_errors=True)  # from a process that was killed here
        shutil.rmtree(folder.rename(hidden))


def _check_settings(args, folder, weights, train, validation):
    """Save the settings of a new training, or refuse other settings."""
    settings = {
        "--model": args.model,
        "--crop-size": args.crop_size,
        "--channel-width": args.channel_width,
        "--epochs": args.epochs,
        "--seed": args.seed,
        "--batch-size": _batch_size(args),
        "--precision": args.precision,
        "weights of the encoder": weights,
        "images to train on": [record.id for record in train],
        "images to validate on": [record.id for record in validation],
    }
    path = folder / _SETTINGS
    try:
        saved = json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        if nu.training.phases(folder):
            state = "missing" if isinstance(error, FileNotFoundError) else "damaged"
            warnings.warn(f"{path} is {state}: the options cannot be compared with the first run", stacklevel=2)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1))
        return
    for name, value in settings.items():
        if saved.get(name, value) != value:  # an older version did not save every option
            difference = f"{saved[name]}, not {value}" if name.startswith("--") else "they have changed since"
            raise NucleiError(
                f"the training in {folder} started with other {name}: {difference}. Use the same, or another --out"
            )


def _stop(args, folder):
    """Save the best model so far, and print how to resume."""
    if nu.training.phases(folder):
        history = _write_results(args, folder)
        words = [*args.words, *([] if args.resume else ["--resume"])]
        message = (
            f"interrupted after {len(history)} of {args.epochs} epochs; the best model so far is in {args.out}. "
            f"Resume with: python -m nuclei_utils {shlex.join(words)}"
        )
    else:
        _remove(folder)
        message = "interrupted in the first epoch: there is no model to save"
    print(f"nuclei-utils train: {message}", file=sys.stderr)
    return 1


def _write_results(args, folder):
    """Write best model, history and learning curves; return the history."""
    import matplotlib.pyplot as plt

    model, history = nu.training.load_run(folder, finished=False)
    model_file, history_file, curves_file = _output_files(args.out)
    with atomic_write(model_file) as temporary:
        model.save(temporary)  # without the state of the optimizer, which is twice as large as the network
    with atomic_write(history_file) as temporary:
        history.to_csv(temporary, index=False)
    names = ("loss", "mask_dice", "boundary_dice") if "mask_dice" in history else ("loss", "dice", "iou")
    fig = nu.plots.learning_curves(history, names, title=args.out.stem)
    with atomic_write(curves_file) as temporary:
        fig.savefig(temporary, dpi=120)
    plt.close(fig)
    return history


def _output_files(out):
    return out, out.with_name(f"{out.stem}_history.csv"), out.with_name(f"{out.stem}_curves.png")
