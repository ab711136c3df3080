"""Train the included network, which separates nuclei, on the real training images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.train_included_network

The command resumes a training that was interrupted. `benchmarks.score_included_network` tunes and scores the network,
and `tools.release_network` puts it into the package.
"""

import argparse
from pathlib import Path

from benchmarks import results_file
from benchmarks.train_networks import timed
from nuclei_utils import datasets, training

EPOCHS, MIN_CROPS = 70, 96


def run_folder(seed: int) -> Path:
    """Return the folder of the training."""
    return Path("runs") / "benchmark" / f"instance_unet_{datasets.current()}_{EPOCHS}_seed{seed}"


def main() -> None:
    """Train the network, and write the history and the time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    folder = run_folder(seed)
    options = {"seed": seed, "epochs": EPOCHS, "min_crops": MIN_CROPS, "verbose": 2}
    times = timed(folder, lambda: training.train("instance_unet", folder, **options))
    history = training.read_history(folder)
    run = {
        "seed": seed,
        "crop_size": training.CROP_SIZE,
        "batch_size": training.BATCH_SIZE,
        "min_crops": MIN_CROPS,
        "epochs": len(history),
        "best_epoch": training.best_epoch(history, "val_loss") + 1,
        **times,
        "history": history.round(4).to_dict("list"),
    }
    data = datasets.current()
    results_file.add(f"instances_{data}_seed{seed}", f"seed {seed}", run, data=data)


if __name__ == "__main__":
    main()
