"""Train the three networks of the course with several seeds, and score them on validation and test images.

`mobilenet_unet_random` is the U-Net on MobileNetV2 whose encoder starts from random weights: same network, same number
of steps, no pretraining. Nothing is frozen, so that all steps have the learning-rate schedule of the other networks.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.train_networks --seeds 0 1 2        # or: make benchmark

The command skips runs that the result file has, and resumes a training that was interrupted. Models and logs are in
`runs/benchmark/`.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import joblib
import keras

from benchmarks import results_file
from nuclei_utils import datasets, metrics, models, predict, saving, training

RANDOM = "mobilenet_unet_random"
NETWORKS = (*training.TITLES, RANDOM)


def result_file() -> str:
    """Return the name of the result file of the current data and profile."""
    return f"networks_{datasets.current()}_{training.profile().name}"


def run_folder(network: str, seed: int) -> Path:
    """Return the folder of a training."""
    return Path("runs") / "benchmark" / f"{network}_{datasets.current()}_{training.profile().name}_seed{seed}"


def score(model: keras.Model, split: str) -> dict:
    """Score a network on the whole images of a split.

    Returns
    -------
    dict
        `image_types` with the table of `metrics.summarise`, and `dice` of each image in the order of `datasets.ids`.
    """
    records = datasets.load(split=split)
    label_maps = [record.label_map for record in records]
    maps = predict.predict_masks(model, [record.image for record in records])
    table = metrics.summarise(label_maps, maps, [record.image_type for record in records])
    print(f"\n{split}\n{table.round(3).to_string()}", flush=True)
    return {
        "image_types": table.round(4).to_dict("index"),
        "dice": metrics.pixel_scores(label_maps, maps)["dice"].round(4).to_list(),
    }


def timed(folder: Path, train) -> dict:
    """Train if the folder has no finished training, and return the time; None for a training that was resumed."""
    resumed = folder.exists()
    start, start_cpu = time.perf_counter(), time.process_time()
    if not training.is_finished(folder):
        train()
    return {
        "seconds": None if resumed else round(time.perf_counter() - start),
        "cpu_seconds": None if resumed else round(time.process_time() - start_cpu),
        "cores_used": joblib.cpu_count(),
    }


def train_and_score(network: str, seed: int) -> dict:
    """Train and score one network."""
    folder = run_folder(network, seed)
    name, options = ("mobilenet_unet", {"weights": None}) if network == RANDOM else (network, {})
    times = timed(folder, lambda: training.train(name, folder, seed=seed, verbose=2, **options))
    model, history = training.load_run(folder)
    last_phase = training.read_history(folder)
    run = {
        "network": network,
        "seed": seed,
        "training": {
            "crop_size": training.CROP_SIZE,
            "batch_size": training.BATCH_SIZE,
            "augment": training.profile().augment,
            "epochs": len(history),
            "best_epoch": len(history) - len(last_phase) + training.best_epoch(last_phase) + 1,
            **times,
        },
        "validation": score(model, "validation"),
        "test": score(model, "test"),
        "history": history.round(4).to_dict("list"),
    }
    if network == "unet_plus_plus":
        run["fast_mode"] = [{"test": score(model, "test")} for model in fast_modes(folder)]
    return run


def fast_modes(folder: Path) -> list[keras.Model]:
    """Load a trained U-Net++ in fast mode at each depth, the shallowest first."""
    model = saving.load_model(folder / "best.keras")
    return [models.fast_mode(model, depth) for depth in range(1, len(model.outputs) + 1)]


def main() -> None:
    """Train and score each network with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(training.TITLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    if "mobilenet_unet" in args.networks:
        models.mobilenet_encoder("imagenet")  # fail now if the pretrained weights are missing
    jobs = {
        f"{network}, seed {seed}": partial(train_and_score, network, seed)
        for seed in args.seeds
        for network in args.networks
    }
    results_file.add_missing(result_file(), jobs, data=datasets.current(), profile=training.profile().name)


if __name__ == "__main__":
    main()
