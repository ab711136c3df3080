"""Train StarDist on its subset of the data, with the processor time of our network, and score both with both programs.

    make peers

The command makes an environment of its own, because StarDist is no dependency of the course. Network, augmentation and
training follow StarDist's example notebooks (github.com/stardist/stardist, examples/2D): 32 rays, grid (2, 2), crops of
256 pixels, batches of 4, 100 steps an epoch. Two things differ. The training ends after the processor time of our
network. The learning rate is halved after 4 epochs without progress instead of 40, because there are about a tenth as
many epochs. StarDist's own function chooses the thresholds on the validation images. The test images are scored once.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from csbdeep.utils.tf import keras_import
from stardist import matching as stardist_matching
from stardist.models import Config2D, StarDist2D

from benchmarks import results_file
from benchmarks.measure_memory import peak_memory
from benchmarks.train_on_stardist_subset import (
    THRESHOLDS,
    average_precision,
    load_subset,
    read_predictions,
    run_folder,
    write_predictions,
)
from nuclei_utils import deploy, predict, preprocess, saving

EPOCHS, STEPS, PATIENCE = 400, 100, 4


class EndAfter(keras_import("callbacks", "Callback")):
    """End a training after a processor time in seconds."""

    def __init__(self, seconds: float):
        super().__init__()
        self.end = time.process_time() + seconds

    def on_epoch_end(self, epoch, logs=None):
        """Stop at the end of the epoch in which the time is over."""
        self.model.stop_training = time.process_time() > self.end


def augment(image: np.ndarray, label_map: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Flip and turn a crop, and change its intensity."""
    turns, is_flipped = random.integers(4), random.integers(2)
    image, label_map = (np.rot90(array, turns) for array in (image, label_map))
    if is_flipped:
        image, label_map = image[::-1], label_map[::-1]
    image = image * random.uniform(0.6, 2) + random.uniform(-0.2, 0.2)
    return image + random.normal(0, 0.02 * random.uniform(), image.shape), label_map


def grey_images(records: list) -> list[np.ndarray]:
    """Return normalised grey images, float32 (H, W): the images of the subset are grey."""
    return [preprocess.normalize(record.image).mean(axis=-1) for record in records]


def score(label_maps: list[np.ndarray], predicted: list[np.ndarray]) -> dict:
    """Score label maps with our matching and with StarDist's."""
    ours = average_precision(label_maps, predicted)
    theirs = stardist_matching.matching_dataset(label_maps, predicted, thresh=THRESHOLDS, show_progress=False)
    return {"ap": ours, "ap_by_stardist": [float(row.accuracy) for row in theirs]}


def timed_prediction(predict_image: Callable, images: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Return the label maps of images, and the megapixels per second. The first image is predicted once before."""
    predict_image(images[0])
    start = time.perf_counter()
    label_maps = [predict_image(image) for image in images]
    pixels = sum(label_map.size for label_map in label_maps)
    return label_maps, round(pixels / 1e6 / (time.perf_counter() - start), 3)


def train_and_score(seed: int, cpu_seconds: float) -> dict:
    """Train StarDist with one seed, and score it and our network of the same seed."""
    records = load_subset()
    images = {split: grey_images(side) for split, side in records.items()}
    label_maps = {split: [record.label_map for record in side] for split, side in records.items()}
    reduction = {"factor": 0.5, "patience": PATIENCE, "min_delta": 0}
    config = Config2D(
        n_rays=32, grid=(2, 2), train_epochs=EPOCHS, train_steps_per_epoch=STEPS, train_reduce_lr=reduction
    )
    model = StarDist2D(config, name=f"stardist_seed{seed}", basedir=str(Path("runs") / "benchmark"))
    start, start_cpu = time.perf_counter(), time.process_time()
    model.prepare_for_training()
    model.callbacks.append(EndAfter(cpu_seconds))
    history = model.train(
        images["train"],
        label_maps["train"],
        validation_data=(images["validation"], label_maps["validation"]),
        augmenter=partial(augment, random=np.random.default_rng(seed)),
        seed=seed,
    )
    times = {"seconds": round(time.perf_counter() - start), "cpu_seconds": round(time.process_time() - start_cpu)}
    thresholds = model.optimize_thresholds(images["validation"], label_maps["validation"])
    peak = peak_memory()
    predicted, speed = timed_prediction(
        lambda image: model.predict_instances(image)[0].astype(np.int32), images["test"]
    )
    network = deploy.freeze(saving.load_model(run_folder(seed) / "best.keras"))
    _, own_speed = timed_prediction(
        lambda image: predict.predict_labels(network, image), [record.image for record in records["test"]]
    )
    ids = [record.id for record in records["test"]]
    write_predictions(f"stardist_seed{seed}", ids, predicted)
    return {
        "seed": seed,
        "epochs": len(history.epoch),
        "parameters": model.keras_model.count_params(),
        **times,
        "thresholds": {name: float(value) for name, value in thresholds.items()},
        "peak_mb": peak,  # of the training
        "megapixels_per_second": {"stardist": speed, "ours": own_speed},
        "iou_thresholds": THRESHOLDS,
        "stardist": score(label_maps["test"], predicted),
        "ours": score(label_maps["test"], read_predictions(f"stardist_subset_seed{seed}", records["test"])),
    }


def main() -> None:
    """Train and score with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    ours = results_file.read("stardist_subset")
    jobs = {
        f"StarDist, seed {seed}": partial(train_and_score, seed, ours[f"seed {seed}"]["cpu_seconds"])
        for seed in args.seeds
    }
    results_file.add_missing("stardist_subset", jobs, data="stage1")


if __name__ == "__main__":
    main()
