"""Train the three-output network on StarDist's subset of the data, and score it as StarDist was scored.

    python -m benchmarks.train_on_stardist_subset --seeds 0 1
    python -m benchmarks.train_on_stardist_subset --pack runs/gpu/subset.npz
    python -m benchmarks.train_on_stardist_subset --weights runs/gpu/subset_zoom0.5_seed0.weights.h5

The first command trains on the processor. The second command packs the images for
`benchmarks.train_included_network`, which trains on a GPU, and the third command scores the weights from there.

The subset has 447 training and 50 test images in fluorescence, with the original labels. StarDist kept 67 of the
training images for validation, and so do we: the thresholds are chosen on them, and after a training on the processor
also the epoch. The test images are scored once for each training. The ids are in `stardist_subset.csv`. The list of
training images was reconstructed and may be wrong in up to three ids. The predicted nuclei are written as run lengths,
so that others can score them.

Table to compare with: Schmidt et al. 2018, arXiv 1806.03535, table 1.
"""

import argparse
import itertools
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from benchmarks import results_file
from benchmarks.score_included_network import METHOD, N_TTA, predict_split, separate, tune
from benchmarks.train_included_network import read_course, read_network, write_packed
from benchmarks.train_networks import timed
from nuclei_utils import datasets, deploy, export, matching, saving, training

IDS = Path(__file__).parent / "stardist_subset.csv"
EPOCHS = 40
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SCORED = ("validation", "test")


def load_subset() -> dict[str, list[datasets.Record]]:
    """Return the images of each split."""
    splits = pd.read_csv(IDS, index_col="id")["split"]
    records = {record.id: record for record in datasets.load("stage1")}
    return {split: [records[image_id] for image_id in ids.index] for split, ids in splits.groupby(splits)}


def write_predictions(name: str, ids: list[str], label_maps: list[np.ndarray]) -> None:
    """Write label maps as run lengths, in the format of the competition."""
    table = export.submission_table(dict(zip(ids, label_maps, strict=True)))
    export.write_table(results_file.FOLDER / f"{name}.csv", table)


def read_predictions(name: str, records: list[datasets.Record]) -> list[np.ndarray]:
    """Read the label maps of images from run lengths."""
    shapes = {record.id: record.label_map.shape for record in records}
    label_maps = export.read_submission(results_file.FOLDER / f"{name}.csv", shapes)
    return [label_maps[record.id] for record in records]


def run_folder(seed: int) -> Path:
    """Return the folder of the training."""
    name = f"stardist_subset_{EPOCHS}_rate{training.INSTANCE_RATE:g}_seed{seed}"
    return Path("runs") / "benchmark" / name


def train(seed: int) -> tuple[dict, keras.Model]:
    """Train with one seed on the processor. Return the course of the training, and the model of the best epoch."""
    records, folder = load_subset(), run_folder(seed)
    sides = records["train"], records["validation"]
    options = {"seed": seed, "epochs": EPOCHS, "min_crops": 1, "records": sides, "verbose": 2}
    times = timed(folder, lambda: training.train("instance_unet", folder, **options))
    history = training.read_history(folder)
    course = {
        "seed": seed,
        "epochs": len(history),
        "learning_rate": training.INSTANCE_RATE,
        "best_epoch": training.best_epoch(history, "val_loss") + 1,
        **times,
        "history": history.round(4).to_dict("list"),
    }
    return course, saving.load_model(folder / "best.keras")


def score(name: str, course: dict, model: keras.Model) -> dict:
    """Choose the thresholds on the validation images, score the test images, and write the predicted nuclei."""
    records, network = load_subset(), deploy.freeze(model)
    maps, seconds, label_maps = {}, {}, {split: [record.label_map for record in records[split]] for split in SCORED}
    for split, n_tta in itertools.product(SCORED, (1, N_TTA)):
        maps[split, n_tta], seconds[split, n_tta] = predict_split(network, records[split], n_tta)
    image_types = ["fluorescence"] * len(records["validation"])  # the mean over one type is the mean over images
    tuned, _ = tune(METHOD, maps["validation", 1], label_maps["validation"], image_types)
    ap = {}
    for (split, n_tta), side in maps.items():
        predicted = separate(METHOD, side, **tuned)
        ap[f"{split}, n_tta {n_tta}"] = average_precision(label_maps[split], predicted)
        if split == "test":
            ids = [record.id for record in records["test"]]
            write_predictions(name if n_tta == 1 else f"{name}_n_tta_{n_tta}", ids, predicted)
    return {
        "images": {split: len(side) for split, side in records.items()},
        "thresholds": tuned,
        "seconds_per_image": {f"{split}, n_tta {n_tta}": round(value, 3) for (split, n_tta), value in seconds.items()},
        "iou_thresholds": THRESHOLDS,
        "ap": {name: np.round(values, 4).tolist() for name, values in ap.items()},
        **course,
    }


def average_precision(label_maps: list[np.ndarray], predicted: list[np.ndarray]) -> list[float]:
    """Return the AP at each of `THRESHOLDS` as StarDist counts it: a match has an IoU of the threshold or more."""
    # `matching` counts as the competition does: above the threshold
    return matching.average_precision(label_maps, predicted, np.nextafter(THRESHOLDS, 0))["ap"].tolist()


def main() -> None:
    """Train and score with each seed, or score weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pack", type=Path, metavar="FILE", help="pack the images for a training on a GPU, and end")
    parser.add_argument("--weights", nargs="+", type=Path, help="score these weights, and train nothing")
    args = parser.parse_args()
    if args.pack:
        records = load_subset()
        write_packed(args.pack, {split: records[split] for split in ("train", "validation")})
        return
    if args.weights:
        names = {path.name.removesuffix(".weights.h5"): path for path in args.weights}
        jobs = {
            name: lambda name=name, path=path: score(name, read_course(path), read_network(path))
            for name, path in names.items()
        }
    else:
        jobs = {
            f"seed {seed}": lambda seed=seed: score(f"stardist_subset_seed{seed}", *train(seed)) for seed in args.seeds
        }
    results_file.add_missing("stardist_subset", jobs, data="stage1")


if __name__ == "__main__":
    main()
