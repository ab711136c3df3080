"""Train the U-Net of notebook 03 and score it on whole validation and test images: the figures that 03 quotes.

    NUCLEI_DATA=stage1_fixed NUCLEI_PROFILE=laptop python -m benchmarks.unet_from_scratch --seed 0

A run that was broken off goes on where it stopped. What it leaves: `runs/…` (model, logs) and one file below
`benchmarks/results`.
"""

import argparse
import os
import time
from pathlib import Path

import keras
import numpy as np

from benchmarks import results
from nuclei_utils import data, metrics, models, pipeline, predict, training

SIZE, BATCH, FILTERS = 256, 8, 16


def train(seed, folder):
    """Train as notebook 03 does.

    Returns
    -------
    model : keras.Model
    history : pandas.DataFrame
    """
    keras.utils.set_random_seed(seed)
    profile = training.profile()
    examples = pipeline.read(split="train").take(profile.images)
    train = pipeline.training_batches(examples, SIZE, BATCH, seed=seed, at_least=profile.crops)
    validation = pipeline.validation_batches(pipeline.read(split="validation").take(profile.images), SIZE, BATCH)
    model = models.unet((None, None, 3), filters=FILTERS)
    training.compile_model(model, steps=profile.epochs * int(train.cardinality()))
    return training.fit(model, train, validation, folder, profile.epochs, verbose=2)


def score(model, split):
    """Score a model on the whole images of a split, by kind."""
    records = data.load(split=split)
    found = predict.probabilities(model, [record.image for record in records])
    table = metrics.summarise([record.labels for record in records], found, [record.kind for record in records])
    print(f"\n{split}\n{table.round(3).to_string()}")
    return table.round(4).to_dict("index")


def main():
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    name = f"unet_from_scratch_{data.current()}_{training.profile().name}_seed{seed}"
    start, start_cpu = time.perf_counter(), time.process_time()
    model, history = train(seed, Path("runs") / name)
    seconds, seconds_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    path = results.write(
        name,
        {
            "data": data.current(),
            "profile": training.profile().name,
            "seed": seed,
            "network": {"name": model.name, "filters": FILTERS, "depth": 4, "parameters": model.count_params()},
            "training": {
                "crop": SIZE,
                "batch": BATCH,
                "epochs": len(history),
                "best_epoch": int(history["epoch"][np.argmax(history["val_dice"])]) + 1,
                "seconds": round(seconds),
                "cpu_seconds": round(seconds_cpu),
                "load_average_at_end": round(os.getloadavg()[2], 1),
            },
            "validation": score(model, "validation"),
            "test": score(model, "test"),
            "history": history.round(4).to_dict("list"),
        },
    )
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
