"""What gives most for the compute? Trains variants of notebook 03's U-Net for equal arithmetic; scores on validation.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.tuning

Each variant changes one thing of one before it. All take as many multiplications as the first does in its steps, so
that smaller crops and narrower networks see more crops. Variants that the file of results has are not trained again.
"""

import argparse
import time

import keras

from benchmarks import results
from benchmarks.networks import score
from nuclei_utils import datasets, input_pipeline, losses, models, training

STEPS = 256  # of the first variant; with its crops about 5 minutes on two cores
FIRST = {
    "size": 256,
    "batch": 8,
    "filters": 16,
    "learning_rate": 1e-3,
    "schedule": True,
    "augment": "all",
    "ema": False,
}
VARIANTS = {
    "crops of 256": {},
    "crops of 128": {"size": 128, "batch": 16},
    "crops of 128, learning rate 3e-3": {"size": 128, "batch": 16, "learning_rate": 3e-3},
    "crops of 128, half the width": {"size": 128, "batch": 16, "filters": 8},
    "crops of 128, no augmentation": {"size": 128, "batch": 16, "augment": None},
    "crops of 128, flips alone": {"size": 128, "batch": 16, "augment": "flips"},
    "crops of 128, flips and colours": {"size": 128, "batch": 16, "augment": "flips and colours"},
    "crops of 128, flips and rotation": {"size": 128, "batch": 16, "augment": "flips and rotation"},
    "crops of 128, constant rate": {"size": 128, "batch": 16, "schedule": False},
    # Keras averages what is trained; the statistics of batch normalisation stay those of the last steps
    "crops of 128, constant rate, averaged weights": {"size": 128, "batch": 16, "schedule": False, "ema": True},
    "crops of 128, flips alone, constant rate, averaged weights": {
        "size": 128,
        "batch": 16,
        "augment": "flips",
        "schedule": False,
        "ema": True,
    },
}


def steps_of(settings):
    """Return how many steps cost what the first variant's do: arithmetic goes with pixels and with width squared."""
    cost = settings["batch"] * settings["size"] ** 2 * settings["filters"] ** 2
    return STEPS * FIRST["batch"] * FIRST["size"] ** 2 * FIRST["filters"] ** 2 // cost


def only(part, seed):
    """Make the function that applies one part of `input_pipeline.augmentation`, as strong as there."""
    if part == "colours":
        colours = input_pipeline.colour_augmentation(seed + 2)
        return lambda images, masks: (colours(images), masks)
    return input_pipeline.random_rotation(seed + 1)


def train(settings, seed):
    """Train one variant for its steps; the last weights count, no epoch is chosen."""
    keras.utils.set_random_seed(seed)
    crops = training.PROFILES["laptop"].crops
    whole, _, part = (settings["augment"] or "").partition(" and ")
    train = input_pipeline.training_batches(
        input_pipeline.read(split="train"), settings["size"], settings["batch"], whole or None, seed, crops
    )
    if part:
        train = train.map(only(part, seed))
    model = models.unet(filters=settings["filters"])
    steps = steps_of(settings)
    rate = training.warmup_cosine(settings["learning_rate"], steps)
    model.compile(
        keras.optimizers.Adam(
            rate if settings["schedule"] else settings["learning_rate"], use_ema=settings["ema"], ema_momentum=0.99
        ),
        losses.BinaryCrossentropyDice(),
        metrics=[losses.Dice()],
    )
    # at the end of `fit`, Keras puts the averaged weights in place
    model.fit(train.repeat(), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=2)
    return model


def main():
    """Train and score each variant with each seed that has no result yet; write after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    title = f"tuning_{datasets.current()}"
    for seed in arguments.seeds:
        for name in arguments.variants:
            key = f"{name}, seed {seed}"
            if key in results.runs(title):
                continue
            settings = {**FIRST, **VARIANTS[name]}
            print(f"\n{key}: {steps_of(settings)} steps", flush=True)
            start = time.process_time()
            model = train(settings, seed)
            seconds = round(time.process_time() - start)
            figures = {
                "variant": name,
                "seed": seed,
                **settings,
                "steps": steps_of(settings),
                "cpu_seconds": seconds,
                "validation": score(model, "validation"),
            }
            results.add(title, key, figures, data=datasets.current())
    print(f"\n{results.FOLDER / title}.json")


if __name__ == "__main__":
    main()
