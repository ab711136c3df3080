"""What gives most for the compute? Trains variants of notebook 03's U-Net for equal arithmetic; scores on validation.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.tuning

Each variant changes one thing of the first. All take as many multiplications as the first does in its steps, so that
smaller crops and narrower networks see more crops. Variants that the file of results has are not trained again.
"""

import time

import keras

from benchmarks import results
from benchmarks.networks import score
from nuclei_utils import data, losses, metrics, models, pipeline, training

STEPS = 256  # of the first variant; with its crops about 5 minutes on two cores
FIRST = {"size": 256, "batch": 8, "filters": 16, "learning_rate": 1e-3, "schedule": True, "augment": True, "ema": False}
VARIANTS = {
    "crops of 256": {},
    "crops of 128": {"size": 128, "batch": 16},
    "crops of 128, learning rate 3e-3": {"size": 128, "batch": 16, "learning_rate": 3e-3},
    "crops of 128, half the width": {"size": 128, "batch": 16, "filters": 8},
    "crops of 128, no augmentation": {"size": 128, "batch": 16, "augment": False},
    "crops of 128, constant rate": {"size": 128, "batch": 16, "schedule": False},
    # Keras averages what is trained; the statistics of batch normalisation stay those of the last steps
    "crops of 128, constant rate, averaged weights": {"size": 128, "batch": 16, "schedule": False, "ema": True},
    "crops of 128, batches of 8": {"size": 128},
}


def steps_of(settings):
    """Return how many steps cost what the first variant's do: arithmetic goes with pixels and with width squared."""
    cost = settings["batch"] * settings["size"] ** 2 * settings["filters"] ** 2
    return STEPS * FIRST["batch"] * FIRST["size"] ** 2 * FIRST["filters"] ** 2 // cost


def train(settings, seed):
    """Train one variant for its steps; the last weights count, no epoch is chosen."""
    keras.utils.set_random_seed(seed)
    crops = training.PROFILES["laptop"].crops
    train = pipeline.training_batches(
        pipeline.read(split="train"), settings["size"], settings["batch"], settings["augment"], seed, crops
    )
    model = models.unet(filters=settings["filters"])
    steps = steps_of(settings)
    rate = training.warm_up_and_cosine(settings["learning_rate"], steps)
    model.compile(
        keras.optimizers.Adam(
            rate if settings["schedule"] else settings["learning_rate"], use_ema=settings["ema"], ema_momentum=0.99
        ),
        losses.BinaryCrossentropyDice(),
        metrics=[metrics.Dice()],
    )
    # at the end of `fit`, Keras puts the averaged weights in place
    model.fit(train.repeat(), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=2)
    return model


def main(seed=0):
    """Train and score each variant that has no result yet; write after each."""
    title = f"tuning_{data.current()}"
    for name, changes in VARIANTS.items():
        if name in results.runs(title):
            continue
        settings = {**FIRST, **changes}
        print(f"\n{name}: {steps_of(settings)} steps", flush=True)
        start = time.process_time()
        model = train(settings, seed)
        seconds = round(time.process_time() - start)
        figures = {
            **settings,
            "steps": steps_of(settings),
            "cpu_seconds": seconds,
            "validation": score(model, "validation"),
        }
        results.add(title, name, figures, data=data.current(), seed=seed)
    print(f"\n{results.FOLDER / title}.json")


if __name__ == "__main__":
    main()
