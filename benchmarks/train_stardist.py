"""Train StarDist on its subset of the data, with the processor time of our network, and score both with both programs.

    make peers
    build/peers/bin/python -m benchmarks.train_stardist --costs
    build/peers/bin/python -m benchmarks.train_stardist --predictions subset_zoom0.5_seed0

The first command makes an environment of its own, because StarDist is no dependency of the course. The second command
measures the speed and the memory of both programs, each in a process of its own (`peer_costs.json`). The third command
scores files of run lengths in `results` with both programs (`stardist_matching.json`).

Network, augmentation and
training follow StarDist's example notebooks (github.com/stardist/stardist, examples/2D): 32 rays, grid (2, 2), crops of
256 pixels, batches of 4, 100 steps an epoch. Two things differ. The training ends after the processor time of our
network. The learning rate is halved after 4 epochs without progress instead of 40, because there are about a tenth as
many epochs. StarDist's own function chooses the thresholds on the validation images. The test images are scored once.
"""

import argparse
import multiprocessing
import time
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
    write_predictions,
)
from nuclei_utils import models, predict, preprocess
from tools import draw_sample

EPOCHS, STEPS, PATIENCE = 400, 100, 4
RUNS = Path("runs") / "benchmark"
LARGE = 2048
"""Height and width of the large image whose prediction is timed, pixels."""


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


def grey_image(image: np.ndarray) -> np.ndarray:
    """Return a normalised grey image, float32 (H, W), of a grey RGB image."""
    return preprocess.normalize(image).mean(axis=-1)


def score(label_maps: list[np.ndarray], predicted: list[np.ndarray]) -> dict:
    """Score label maps with our matching and with StarDist's."""
    ours = average_precision(label_maps, predicted)
    theirs = stardist_matching.matching_dataset(label_maps, predicted, thresh=THRESHOLDS, show_progress=False)
    return {"ap": ours, "ap_by_stardist": [float(row.accuracy) for row in theirs]}


def score_predictions(name: str) -> dict:
    """Score the run lengths of the test images in a file of the results."""
    records = load_subset()["test"]
    label_maps = [record.label_map for record in records]
    return {"iou_thresholds": THRESHOLDS, **score(label_maps, read_predictions(name, records))}


def load_stardist(seed: int) -> StarDist2D:
    """Load the trained StarDist with its thresholds."""
    return StarDist2D(None, name=f"stardist_seed{seed}", basedir=str(RUNS))


def predict_with_stardist(model: StarDist2D, image: np.ndarray) -> np.ndarray:
    """Predict the nuclei of a grey RGB image."""
    return model.predict_instances(grey_image(image))[0].astype(np.int32)


def measure_costs(program: str, seed: int) -> dict:
    """Measure the megapixels per second and the peak memory of a program, in this process."""
    if program == "ours":
        model = models.included_network()
        predict_image, parameters = partial(predict.predict_labels, model), model.count_params()
    else:
        model = load_stardist(seed)
        predict_image, parameters = partial(predict_with_stardist, model), model.keras_model.count_params()
    drawn = draw_sample.draw("fluorescence_small", size=(512, 512))[0]
    index = np.arange(LARGE) % len(drawn)
    kinds = {"test images": [record.image for record in load_subset()["test"]], "large": [drawn[np.ix_(index, index)]]}
    costs = {"parameters": parameters, "megapixels_per_second": {}, "peak_mb": {}}
    for kind, images in kinds.items():
        predict_image(images[0])  # TensorFlow compiles
        start = time.perf_counter()
        pixels = sum(predict_image(image).size for image in images)
        costs["megapixels_per_second"][kind] = round(pixels / 1e6 / (time.perf_counter() - start), 3)
        costs["peak_mb"][kind] = peak_memory()
    return costs


def compare_costs(seed: int) -> dict:
    """Measure both programs, each in a process of its own."""
    costs = {}
    for program in ("ours", "StarDist"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            costs[program] = pool.apply(measure_costs, (program, seed))
    return costs


def train_and_score(seed: int, cpu_seconds: float) -> dict:
    """Train StarDist with one seed, and score it and our network of the same seed."""
    records = load_subset()
    images = {split: [grey_image(record.image) for record in side] for split, side in records.items()}
    label_maps = {split: [record.label_map for record in side] for split, side in records.items()}
    reduction = {"factor": 0.5, "patience": PATIENCE, "min_delta": 0}
    config = Config2D(
        n_rays=32, grid=(2, 2), train_epochs=EPOCHS, train_steps_per_epoch=STEPS, train_reduce_lr=reduction
    )
    model = StarDist2D(config, name=f"stardist_seed{seed}", basedir=str(RUNS))
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
    predicted = [predict_with_stardist(model, record.image) for record in records["test"]]
    ids = [record.id for record in records["test"]]
    write_predictions(f"stardist_seed{seed}", ids, predicted)
    return {
        "seed": seed,
        "epochs": len(history.epoch),
        **times,
        "thresholds": {name: float(value) for name, value in thresholds.items()},
        "iou_thresholds": THRESHOLDS,
        "stardist": score(label_maps["test"], predicted),
        "ours": score(label_maps["test"], read_predictions(f"stardist_subset_seed{seed}", records["test"])),
    }


def main() -> None:
    """Train and score with each seed, or measure the costs, or score run lengths."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--predictions", nargs="+", metavar="NAME", help="score these run lengths, and train nothing")
    parser.add_argument("--costs", action="store_true", help="measure speed and memory, and train nothing")
    args = parser.parse_args()
    if args.costs:
        results_file.add("peer_costs", "costs", compare_costs(args.seeds[0]), data="stage1")
        return
    if args.predictions:
        results_file.add_missing(
            "stardist_matching", {name: partial(score_predictions, name) for name in args.predictions}, data="stage1"
        )
        return
    ours = results_file.read("stardist_subset")
    jobs = {
        f"StarDist, seed {seed}": partial(train_and_score, seed, ours[f"seed {seed}"]["cpu_seconds"])
        for seed in args.seeds
    }
    results_file.add_missing("stardist_subset", jobs, data="stage1")


if __name__ == "__main__":
    main()
