"""What do pretrained weights buy, and with how many labels? Trains notebook 04's network for equal steps; writes Dice.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.transfer

Compared are a random encoder, a pretrained one that stays frozen, and one that is fine-tuned in the second half, on 5,
20 and 100 % of the training images. All validation images are used. What the file of results has is not done again.
"""

import argparse
from pathlib import Path

import keras

from benchmarks import results
from benchmarks.networks import score
from nuclei_utils import datasets, models, recipes, training

EPOCHS, STEPS = 4, 20  # of each run, whatever its share
ENCODERS = ("random", "frozen", "fine-tuned")
SHARES = (1.0, 0.2, 0.05)


def train(encoder, share, seed, place):
    """Train one network for `EPOCHS * STEPS` steps.

    Returns
    -------
    model : keras.Model
    histories : list of pandas.DataFrame
        One for each phase.
    """
    keras.utils.set_random_seed(seed)
    train, validation = recipes.batches(seed, share)
    train = train.repeat().take(STEPS)
    random = encoder == "random"
    model = models.mobilenet_unet(weights=None if random else "imagenet", trainable=random, filters=recipes.FILTERS)
    phases = [(EPOCHS, recipes.LEARNING_RATE, random)]
    if encoder == "fine-tuned":
        half = EPOCHS // 2
        phases = [(half, recipes.LEARNING_RATE, False), (half, recipes.FINE_TUNING_RATE, recipes.FINE_TUNED_BLOCKS)]
    histories = []
    for number, (epochs, rate, trainable) in enumerate(phases):
        models.unfreeze_encoder(model, trainable)
        training.compile_model(model, epochs * STEPS, rate)
        _, history = training.fit(model, train, validation, place / str(number), epochs, verbose=2)
        histories.append(history)
    return model, histories


def main():
    """Train and score what has no result yet; write after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    arguments = parser.parse_args()
    title = f"transfer_{datasets.current()}_{training.profile().name}"
    for seed in arguments.seeds:
        for share in arguments.shares:
            for encoder in arguments.encoders:
                key = f"{encoder}, {share:.0%}, seed {seed}"
                if key in results.runs(title):
                    continue
                print(f"\n{key}", flush=True)
                place = Path("runs") / "benchmark" / title / f"{encoder}_{share}_seed{seed}"
                model, histories = train(encoder, share, seed, place)
                figures = {
                    "encoder": encoder,
                    "share": share,
                    "seed": seed,
                    "images": len(recipes.some_ids(share, seed)),
                    "steps": EPOCHS * STEPS,
                    "crop": recipes.SIZE,
                    "batch": recipes.BATCH,
                    "augment": training.profile().augment,
                    "val_dice": [round(value, 4) for history in histories for value in history["val_dice"]],
                    "test": score(model, "test"),
                }
                results.add(title, key, figures, data=datasets.current(), profile=training.profile().name)
    print(f"\n{results.FOLDER / title}.json")


if __name__ == "__main__":
    main()
