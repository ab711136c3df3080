"""Is the drawn sample like real images? Train a small U-Net on it alone, and test on real fluorescence images.

    python -m benchmarks.sample_realism --seed 0

Trains on all images of the sample, with no look at the real ones, and scores all fluorescence images of stage1_train.
"""

import argparse
import time

import keras

from benchmarks import results
from nuclei_utils import data, metrics, models, pipeline, predict, training

SIZE, BATCH, FILTERS, EPOCHS, CROPS = 128, 16, 16, 20, 96


def main():
    """Train on the sample, score on the real images, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    examples = pipeline.read("sample", "train+validation+test")
    batches = pipeline.training_batches(examples, SIZE, BATCH, seed=seed, at_least=CROPS)
    model = models.unet((None, None, 3), filters=FILTERS)
    training.compile_model(model, steps=EPOCHS * int(batches.cardinality()))
    model.fit(batches, epochs=EPOCHS, verbose=2, shuffle=False)
    seconds = time.perf_counter() - start
    records = [record for record in data.load("stage1_fixed") if record.kind.startswith("fluorescence")]
    found = predict.probabilities(model, [record.image for record in records])
    table = metrics.summarise([r.labels for r in records], found, [r.kind for r in records])
    print(table.round(3).to_string())
    path = results.write(
        f"sample_realism_seed{seed}",
        {
            "trained_on": "sample, all images",
            "tested_on": "stage1_fixed, all fluorescence images",
            "seed": seed,
            "crop": SIZE,
            "steps": EPOCHS * int(batches.cardinality()),
            "seconds": round(seconds),
            "test": table.round(4).to_dict("index"),
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
