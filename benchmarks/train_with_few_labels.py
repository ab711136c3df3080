"""Train the U-Net on MobileNetV2 with 5, 20 and 100 % of the training images, and with three kinds of encoder.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.train_with_few_labels

The encoder has random weights, or is pretrained and frozen, or is pretrained and fine-tuned in the second half. Each
run has the same number of steps and uses all validation images. The command skips runs that the result file has.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path

import keras
import pandas as pd

from benchmarks import results_file
from benchmarks.train_networks import score
from nuclei_utils import datasets, models, training

EPOCHS, STEPS = 4, 20  # steps per epoch, for each fraction
ENCODERS = ("random", "frozen", "fine-tuned")
FRACTIONS = (1.0, 0.2, 0.05)


def train(encoder: str, fraction: float, seed: int, folder: Path) -> tuple[keras.Model, pd.DataFrame]:
    """Train one network for `EPOCHS * STEPS` steps; return the network and its history."""
    keras.utils.set_random_seed(seed)
    train_batches, validation_batches = training.batches(seed, fraction)
    train_batches = train_batches.repeat().take(STEPS)
    random = encoder == "random"
    model = models.mobilenet_unet(weights=None if random else "imagenet", trainable=random, filters=training.FILTERS)
    phases = [(EPOCHS, training.LEARNING_RATE, random)]
    if encoder == "fine-tuned":
        half = EPOCHS // 2
        phases = [(half, training.LEARNING_RATE, False), (half, training.FINE_TUNING_RATE, training.FINE_TUNED_BLOCKS)]
    histories = []
    for number, (epochs, learning_rate, trainable) in enumerate(phases):
        models.unfreeze_encoder(model, trainable)
        training.compile_model(model, epochs * STEPS, learning_rate)
        phase_folder = folder / str(number)
        _, history = training.fit(model, train_batches, validation_batches, phase_folder, epochs, verbose=2)
        histories.append(history)
    return model, pd.concat(histories)


def train_and_score(file: str, encoder: str, fraction: float, seed: int) -> dict:
    """Train and score one network."""
    folder = Path("runs") / "benchmark" / file / f"{encoder}_{fraction}_seed{seed}"
    model, history = train(encoder, fraction, seed, folder)
    return {
        "encoder": encoder,
        "fraction": fraction,
        "seed": seed,
        "images": len(training.some_ids(fraction, seed)),
        "steps": EPOCHS * STEPS,
        "crop_size": training.CROP_SIZE,
        "batch_size": training.BATCH_SIZE,
        "augment": training.profile().augment,
        "val_dice": history["val_dice"].round(4).to_list(),
        "test": score(model, "test"),
    }


def main() -> None:
    """Train and score each network with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0].replace("%", "%%"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    args = parser.parse_args()
    data, profile = datasets.current(), training.profile().name
    file = f"transfer_{data}_{profile}"
    jobs = {
        f"{encoder}, {fraction:.0%}, seed {seed}": partial(train_and_score, file, encoder, fraction, seed)
        for seed, fraction, encoder in itertools.product(args.seeds, args.fractions, args.encoders)
    }
    results_file.add_missing(file, jobs, data=data, profile=profile)


if __name__ == "__main__":
    main()
