"""Train variants of the U-Net of notebook 04 with the same compute budget, and score them on validation images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.tune_unet

Each variant differs from the first variant in a few settings. All variants take the same number of multiplications, so
a variant with smaller crops or fewer filters sees more crops. The command skips runs that the result file has.
"""

import argparse
import itertools
import time
from functools import partial

import keras
import tensorflow as tf

from benchmarks import results_file
from benchmarks.train_networks import score
from nuclei_utils import datasets, input_pipeline, losses, models, training

STEPS = 256  # of the first variant: about 5 minutes on two cores
FIRST = {
    "crop_size": 256,
    "batch_size": 8,
    "filters": 16,
    "learning_rate": 1e-3,
    "schedule": True,
    "flips": True,
    "rotation": True,
    "colours": True,
    "ema": False,
}
SMALL = {"crop_size": 128, "batch_size": 16}
FLIPS_ALONE = {"rotation": False, "colours": False}
VARIANTS = {
    "crops of 256": {},
    "crops of 128": SMALL,
    "crops of 128, learning rate 3e-3": SMALL | {"learning_rate": 3e-3},
    "crops of 128, half the width": SMALL | {"filters": 8},
    "crops of 128, no augmentation": SMALL | FLIPS_ALONE | {"flips": False},
    "crops of 128, flips alone": SMALL | FLIPS_ALONE,
    "crops of 128, flips and colours": SMALL | {"rotation": False},
    "crops of 128, flips and rotation": SMALL | {"colours": False},
    "crops of 128, constant rate": SMALL | {"schedule": False},
    # Keras averages the trained weights. The statistics of batch normalisation are those of the last steps.
    "crops of 128, constant rate, averaged weights": SMALL | {"schedule": False, "ema": True},
    "crops of 128, flips alone, constant rate, averaged weights": SMALL
    | FLIPS_ALONE
    | {"schedule": False, "ema": True},
}


def steps_of(settings: dict) -> int:
    """Return the steps for equal arithmetic, which grows with the pixels and with the square of the filters."""

    def arithmetic(settings):
        return settings["batch_size"] * settings["crop_size"] ** 2 * settings["filters"] ** 2

    return STEPS * arithmetic(FIRST) // arithmetic(settings)


def training_batches(settings: dict, seed: int):
    """Return the batches with the augmentation of the settings."""
    flips, rotation, colours = settings["flips"], settings["rotation"], settings["colours"]
    augment = "all" if flips and rotation and colours else "flips" if flips else None
    batches = input_pipeline.training_batches(
        input_pipeline.read(split="train"),
        settings["crop_size"],
        settings["batch_size"],
        augment,
        seed,
        training.PROFILES["laptop"].crops,
    )
    if augment == "all" or not (rotation or colours):
        return batches
    seeds = tf.data.Dataset.random(seed=seed + 1, rerandomize_each_iteration=True).batch(2)

    def change(pair, seed):
        image, mask = input_pipeline.random_rotation(*pair, seed) if rotation else pair
        return input_pipeline.random_colours(image, seed) if colours else image, mask

    crops = tf.data.Dataset.zip(batches.unbatch(), seeds).map(change, tf.data.AUTOTUNE)
    return crops.batch(settings["batch_size"], drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def train(settings: dict, seed: int) -> keras.Model:
    """Train one variant, and return the network with the weights of the last step."""
    keras.utils.set_random_seed(seed)
    batches = training_batches(settings, seed)
    model = models.unet(filters=settings["filters"])
    steps, learning_rate = steps_of(settings), settings["learning_rate"]
    if settings["schedule"]:
        learning_rate = training.warmup_cosine(learning_rate, steps)
    optimizer = keras.optimizers.Adam(learning_rate, use_ema=settings["ema"], ema_momentum=0.99)
    model.compile(optimizer, losses.BinaryCrossentropyDice(), metrics=[losses.Dice()])
    # At the end of `fit`, Keras replaces the weights by the averaged weights.
    model.fit(batches.repeat(), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=2)
    return model


def train_and_score(variant: str, seed: int) -> dict:
    """Train and score one variant."""
    settings = FIRST | VARIANTS[variant]
    start = time.process_time()
    model = train(settings, seed)
    return {
        "variant": variant,
        "seed": seed,
        **settings,
        "steps": steps_of(settings),
        "cpu_seconds": round(time.process_time() - start),
        "validation": score(model, "validation"),
    }


def main() -> None:
    """Train and score each variant with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    data = datasets.current()
    jobs = {
        f"{variant}, seed {seed}": partial(train_and_score, variant, seed)
        for seed, variant in itertools.product(args.seeds, args.variants)
    }
    results_file.add_missing(f"tuning_{data}", jobs, data=data)


if __name__ == "__main__":
    main()
