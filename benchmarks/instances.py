"""Train the network that the package ships, which separates nuclei, on the real training images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.instances

Stop it at any time; it goes on from the last whole epoch. `benchmarks.separate` tunes, scores and ships what it leaves.
"""

import argparse
from pathlib import Path

from benchmarks import results
from benchmarks.networks import timed
from nuclei_utils import datasets, recipes, training

EPOCHS, CROPS = 70, 96


def folder(seed=0):
    """Return where the network of a seed is trained."""
    return Path("runs") / "benchmark" / f"instance_unet_{datasets.current()}_{EPOCHS}_seed{seed}"


def main():
    """Train, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    place = folder(seed)
    took = timed(place, lambda: recipes.train_instances(place, seed, EPOCHS, CROPS, verbose=2))
    history = training.read_history(place)
    figures = {
        "data": datasets.current(),
        "seed": seed,
        "crop": recipes.SIZE,
        "batch": recipes.BATCH,
        "crops_per_type": CROPS,
        "epochs": len(history),
        "best_epoch": training.best_epoch(history, "val_loss") + 1,
        **took,
        "history": history.round(4).to_dict("list"),
    }
    print(results.write(f"instances_{datasets.current()}_seed{seed}", figures))


if __name__ == "__main__":
    main()
