"""Train a network (branch `train` replaces this file)."""

import argparse
from pathlib import Path

HELP = "train a network on the images of the course or on your own"
MODELS = ("unet", "mobilenet_unet", "unet_plus_plus", "instance_unet")

TRAIN_EXAMPLES = """\
examples:
  python -m nuclei_utils train --model unet --epochs 20 --out unet.keras
      train a U-Net on the images of the course (those of 'data', else the drawn sample)
  python -m nuclei_utils train --model instance_unet --epochs 60 --data mine --out mine.keras
      train the network that separates touching nuclei on images of your own
  python -m nuclei_utils train --model instance_unet --epochs 60 --data mine --out mine.keras --resume
      go on with that training after Ctrl-C, or after the machine went down
  python -m nuclei_utils predict photos --model mine.keras --out result
      use it

DIR of --data has one of two layouts; a fifth of its images, chosen by --seed, are validated on and not trained on:
  images/NAME.png (or .tif, .jpg)  and  labels/NAME.png (or .tif): 0 background, 1..N one nucleus each
  NAME/images/NAME.png             and  NAME/masks/*.png: one black and white picture for each nucleus
Labels that 'predict' wrote (NAME_labels.png) and you corrected serve as they are.

Feature maps at full size, --channels 0.5 / 1 / 2:
  unet, unet_plus_plus             16 / 32 / 64
  mobilenet_unet, instance_unet     8 / 16 / 32 in the decoder; the encoder is MobileNetV2 with ImageNet's weights,
                                   fetched once (14 MB); without internet, name their file in NUCLEI_MOBILENET_WEIGHTS

Written, for --out mine.keras: mine.keras, the best epoch by the Dice of the validation images (instance_unet: by their
loss, which counts all outputs); mine_history.csv; mine_curves.png. The folder mine.training is there until the training
has come to its end. Ctrl-C keeps the best so far in the same three files, and the exit status is 1. Nothing is
replaced: neither a model that is there already, nor, without --resume, an unfinished training.
"""


def add_arguments(parser):
    """Add the options."""
    parser.description = "Train a network to find nuclei, on the images of the course or on your own labelled images."
    parser.epilog = TRAIN_EXAMPLES
    parser.add_argument(
        "--model",
        choices=MODELS,
        required=True,
        help="the network: the course's three, or instance_unet, which learns to separate nuclei that touch",
    )
    parser.add_argument("--out", type=_model_file, required=True, metavar="MODEL.keras", help="where the model goes")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="labelled images of your own, see below (default: the images of the course, with its own validation)",
    )
    parser.add_argument(
        "--size",
        type=int,
        choices=(64, 128, 256),
        default=128,
        help="height and width of the crops that are trained on, pixels (default: 128); images to predict may have any",
    )
    parser.add_argument(
        "--channels",
        type=float,
        choices=(0.5, 1, 2),
        default=1,
        help="width of the network: half, whole or double (default: 1), see below",
    )
    parser.add_argument(
        "--epochs",
        type=_whole_number,
        default=20,
        metavar="N",
        help="how often the images are gone through (default: 20); the best epoch is kept",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of the weights, the crops and the choice for validation, 0 to 4294967295 (default: 0)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the training that was broken off")
    parser.set_defaults(interrupted="the same command with --resume goes on from what is there")


def _model_file(text):
    path = Path(text)
    if path.suffix != ".keras":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .keras")
    return path


def _whole_number(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def _seed(text):
    if not text.isdecimal() or int(text) >= 2**32:  # what NumPy takes
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to {2**32 - 1}")
    return int(text)


def run(args):
    """Train."""
    from nuclei_utils.commands import train

    return train.run(args)
