"""Is the drawn sample like real images? Train a small U-Net on it alone, and test on real fluorescence images.

    python -m benchmarks.sample_realism --seed 0

Trains on all images of the sample, with no look at the real ones, and scores all fluorescence images of stage1_train.
"""

import argparse
import time

import keras

from benchmarks import results
from nuclei_utils import datasets, input_pipeline, metrics, models, predict, training

SIZE, BATCH, FILTERS, EPOCHS, CROPS = 128, 16, 16, 20, 96


def main():
    """Train on the sample, score on the real images, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    examples = input_pipeline.read("sample", "train+validation+test")
    batches = input_pipeline.training_batches(examples, SIZE, BATCH, seed=seed, min_crops=CROPS)
    model = models.unet((None, None, 3), filters=FILTERS)
    training.compile_model(model, steps=EPOCHS * int(batches.cardinality()))
    model.fit(batches, epochs=EPOCHS, verbose=2, shuffle=False)
    seconds = time.perf_counter() - start
    records = [record for record in datasets.load("stage1_fixed") if record.image_type.startswith("fluorescence")]
    found = predict.predict_masks(model, [record.image for record in records])
    table = metrics.summarise([r.label_map for r in records], found, [r.image_type for r in records])
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
