"""Compare the drawn sample with real images: train a small U-Net on the sample alone, and test it on real images.

    python -m benchmarks.compare_sample --seed 0

The training uses all images of the sample. The test uses all fluorescence images of stage1_train.
"""

import argparse
import time

import keras

from benchmarks import results_file
from nuclei_utils import datasets, input_pipeline, metrics, models, predict, training

SIZE, BATCH, FILTERS, EPOCHS, MIN_CROPS = 128, 16, 16, 20, 96


def main() -> None:
    """Train on the sample, score the real images, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    examples = input_pipeline.from_records(datasets.load("sample"))
    batches = input_pipeline.training_batches(examples, SIZE, BATCH, seed=seed, min_crops=MIN_CROPS)
    steps = EPOCHS * int(batches.cardinality())
    model = models.unet((None, None, 3), filters=FILTERS)
    training.compile_model(model, steps=steps)
    model.fit(batches, epochs=EPOCHS, verbose=2, shuffle=False)
    seconds = time.perf_counter() - start
    records = [record for record in datasets.load("stage1_fixed") if record.image_type.startswith("fluorescence")]
    maps = predict.predict_masks(model, [record.image for record in records])
    table = metrics.summarise([r.label_map for r in records], maps, [r.image_type for r in records])
    print(table.round(3).to_string())
    run = {
        "trained_on": "sample, all images",
        "tested_on": "stage1_fixed, all fluorescence images",
        "seed": seed,
        "crop_size": SIZE,
        "steps": steps,
        "seconds": round(seconds),
        "test": table.round(4).to_dict("index"),
    }
    results_file.add(f"sample_realism_seed{seed}", f"seed {seed}", run)


if __name__ == "__main__":
    main()
