"""Tune and score the network that `benchmarks.train_included_network` trained.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.score_included_network --submission benchmarks/submission.csv

Validation images choose the thresholds. The test images are scored once. The submission has the predicted nuclei of the
images of the competition's first stage. The truth of these images is not in this repository.
"""

import argparse
import itertools
import time
from pathlib import Path

import joblib
import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks import results_file
from benchmarks.train_included_network import run_folder
from nuclei_utils import datasets, export, io, matching, predict, saving, segmentation

N_TTA = 8
METHOD = "watershed_from_distance"  # of the package
PROB_THRESHOLDS, MIN_SIZES = (0.5, 0.6, 0.7), (15, 25, 35)
GRIDS = {
    "components": {},
    "watershed_from_mask": {},
    "watershed_from_boundary": {"marker_thresh": (0.2, 0.35, 0.5, 0.65)},
    "watershed_from_distance": {"min_prominence": (0.15, 0.2, 0.25, 0.3)},
}
"""Values to try for each method, in addition to `prob_thresh` and `min_size`."""


def predict_split(model: keras.Model, records: list, n_tta: int) -> tuple[list[dict], float]:
    """Predict the maps of all images; return the maps and the seconds per image."""
    start = time.perf_counter()
    maps = [predict.predict_maps(model, record.image, n_tta=n_tta) for record in tqdm(records, f"n_tta={n_tta}")]
    return maps, (time.perf_counter() - start) / len(records)


def separate(method: str, maps: list[dict], prob_thresh: float, **options) -> list[np.ndarray]:
    """Convert the maps of all images to label maps by one method."""
    if method == "watershed_from_distance":
        return [segmentation.maps_to_labels(m, prob_thresh=prob_thresh, **options) for m in maps]
    function = getattr(segmentation, method)
    if method == "watershed_from_boundary":
        return [function(m["mask"], m["boundary"], prob_thresh=prob_thresh, **options) for m in maps]
    return [function(m["mask"] > prob_thresh, **options) for m in maps]


def tune(
    method: str, maps: list[dict], label_maps: list[np.ndarray], image_types: list[str]
) -> tuple[dict, pd.DataFrame]:
    """Return the options with the best `type_mean`, and the table of all options."""
    grid = {"prob_thresh": PROB_THRESHOLDS, "min_size": MIN_SIZES, **GRIDS[method]}
    options = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    scores = [
        type_mean(matching.image_scores(label_maps, separate(method, maps, **option))["score"], image_types)
        for option in tqdm(options, method)
    ]
    return options[int(np.argmax(scores))], pd.DataFrame(options).assign(score=scores)


def type_mean(scores: pd.Series, image_types: list[str]) -> float:
    """Return the mean of the scores of images over image types: each type counts the same, however rare it is."""
    return float(scores.groupby(np.asarray(image_types)).mean().mean())


def score(label_maps: list[np.ndarray], predicted: list[np.ndarray], image_types: list[str]) -> dict:
    """Score label maps: over all images, by image type, and over all nuclei for each IoU threshold."""
    images = matching.image_scores(label_maps, predicted).assign(image_type=image_types)
    pooled = matching.average_precision(label_maps, predicted)
    counts = ["true", "predicted", "tp", "fp", "fn", "merges", "splits"]
    groups = images.groupby("image_type")
    by_type = groups[counts].sum()
    by_type.insert(0, "images", groups.size())
    by_type.insert(1, "score", groups["score"].mean().round(4))
    return {
        "score": round(images["score"].mean(), 4),
        "type_mean": round(type_mean(images["score"], image_types), 4),
        "ap": {f"{threshold:.2f}": round(value, 4) for threshold, value in pooled["ap"].items()},
        **images[counts].sum().to_dict(),
        "image_types": by_type.to_dict("index"),
        "images": images["score"].round(4).to_list(),
    }


def write_submission(path: Path, model: keras.Model, options: dict) -> None:
    """Predict the nuclei of the stage-1 test images, and write them in the format of the competition."""
    folders = sorted(path for path in (datasets.home() / "dsb2018" / "stage1_test").iterdir() if path.is_dir())
    label_maps = {}
    for folder in tqdm(folders, "stage 1 test"):
        (image_path,) = (folder / "images").iterdir()
        maps = predict.predict_maps(model, io.read_image(image_path), n_tta=N_TTA)
        label_maps[folder.name] = segmentation.maps_to_labels(maps, **options)
    export.write_table(path, export.submission_table(label_maps))
    print(f"{path}: {sum(int(m.max()) for m in label_maps.values())} nuclei in {len(label_maps)} images")


def main() -> None:
    """Tune on validation images, score both splits, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--submission", type=Path, help="CSV file for the nuclei of the stage-1 test images")
    args = parser.parse_args()
    model = saving.load_model(run_folder(args.seed) / "best.keras")
    records = {split: datasets.load(split=split) for split in ("validation", "test")}
    label_maps = {split: [record.label_map for record in records[split]] for split in records}
    image_types = {split: [record.image_type for record in records[split]] for split in records}
    maps, seconds = {}, {}
    for split, n_tta in itertools.product(records, (1, N_TTA)):
        maps[split, n_tta], seconds[split, n_tta] = predict_split(model, records[split], n_tta)
    tuned, tables = {}, {}
    for method in GRIDS:
        tuned[method], tables[method] = tune(
            method, maps["validation", 1], label_maps["validation"], image_types["validation"]
        )
    rows = {method: (method, 1) for method in GRIDS}
    rows[f"{METHOD}, n_tta {N_TTA}"] = (METHOD, N_TTA)
    scores = {split: {} for split in records}
    for split, (name, (method, n_tta)) in itertools.product(records, rows.items()):
        predicted = separate(method, maps[split, n_tta], **tuned[method])
        scores[split][name] = score(label_maps[split], predicted, image_types[split])
        print(split, name, scores[split][name]["score"])
    run = {
        "seed": args.seed,
        "images": {split: len(records[split]) for split in records},
        "parameters": model.count_params(),
        "thresholds": tuned,
        "seconds_per_image": {f"{split}, n_tta {n_tta}": round(value, 3) for (split, n_tta), value in seconds.items()},
        "cores_used": joblib.cpu_count(),
        **scores,
        "tried": {method: table.round(4).to_dict("list") for method, table in tables.items()},
    }
    data = datasets.current()
    results_file.add(f"separate_{data}_seed{args.seed}", f"seed {args.seed}", run, data=data)
    if args.submission:
        write_submission(args.submission, model, tuned[METHOD])


if __name__ == "__main__":
    main()
