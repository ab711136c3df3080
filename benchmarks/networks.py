"""Train the three networks of the course with several seeds and score them on whole validation and test images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.networks --seeds 0 1 2        # or: make benchmark

It can be stopped at any time, and two processes may train different networks: what is in the file of results is not
done again, and a training that was broken off goes on after its last epoch (how long it took is not known then). What
it leaves: `runs/benchmark/…` (models, logs) and one file below `benchmarks/results`.
"""

import argparse
import time
from pathlib import Path

import joblib
import keras

from benchmarks import results
from nuclei_utils import datasets, metrics, models, predict, recipes, training


def folder(name, seed):
    """Return where the training of a network with a seed leaves its files."""
    return Path("runs") / "benchmark" / f"{name}_{datasets.current()}_{training.profile().name}_seed{seed}"


def score(model, split):
    """Score a model on the whole images of a split.

    Returns
    -------
    dict
        `image_types`: the table of `metrics.summarise`; `dice`: of each image, in the order of `datasets.ids`.
    """
    records = datasets.load(split=split)
    truth = [record.label_map for record in records]
    found = predict.predict_masks(model, [record.image for record in records])
    table = metrics.summarise(truth, found, [record.image_type for record in records])
    print(f"\n{split}\n{table.round(3).to_string()}", flush=True)
    return {
        "image_types": table.round(4).to_dict("index"),
        "dice": metrics.pixel_scores(truth, found)["dice"].round(4).to_list(),
    }


def timed(place, train):
    """Train, unless that came to its end before.

    Returns
    -------
    dict
        What it took; no times where the training was broken off, and this process has not seen all of it.
    """
    broken_off = place.exists()
    start, start_cpu = time.perf_counter(), time.process_time()
    if not training.finished(place):
        train()
    return {
        "seconds": None if broken_off else round(time.perf_counter() - start),
        "cpu_seconds": None if broken_off else round(time.process_time() - start_cpu),
        "cores_used": joblib.cpu_count(),
    }


def run(name, seed, place):
    """Train one network and score it."""
    took = timed(place, lambda: recipes.train(name, place, seed, verbose=2))
    model, history = recipes.load(place)
    last_phase = training.read_history(place)
    figures = {
        "network": name,
        "seed": seed,
        "training": {
            "crop": recipes.SIZE,
            "batch": recipes.BATCH,
            "augment": training.profile().augment,
            "epochs": len(history),
            "best_epoch": len(history) - len(last_phase) + training.best_epoch(last_phase) + 1,
            **took,
        },
        "validation": score(model, "validation"),
        "test": score(model, "test"),
        "history": history.round(4).to_dict("list"),
    }
    if name == "unet_plus_plus":
        figures["fast"] = [{"test": score(cut, "test")} for cut in fast_modes(place)]
    return figures


def fast_modes(place):
    """Load a U-Net++ that was trained, cut at each depth, the shallowest first."""
    whole = keras.models.load_model(place / "best.keras")
    return [models.fast_mode(whole, depth) for depth in range(1, len(whole.outputs) + 1)]


def main():
    """Train and score each network with each seed that has no result yet; write after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=recipes.TITLES, default=list(recipes.TITLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    if "mobilenet_unet" in arguments.networks:
        models.mobilenet_encoder("imagenet")  # without weights this is no transfer learning: say so before, not after
    title = f"networks_{datasets.current()}_{training.profile().name}"
    for seed in arguments.seeds:
        for name in arguments.networks:
            key = f"{name}, seed {seed}"
            if key not in results.runs(title):
                print(f"\n{key}", flush=True)
                figures = run(name, seed, folder(name, seed))
                results.add(title, key, figures, data=datasets.current(), profile=training.profile().name)
    print(f"\n{results.FOLDER / title}.json")


if __name__ == "__main__":
    main()
