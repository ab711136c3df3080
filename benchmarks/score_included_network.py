"""Score networks from `benchmarks.train_included_network`, and compare ways to separate nuclei with the best of them.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.score_included_network runs/gpu/fixed_*.weights.h5

`--submission benchmarks/submission.csv` also predicts the images of the competition's first stage. The truth of these
images is not in this repository.

All networks are scored with the thresholds of the package. The best is the one with the highest mean over image types
on the validation images. With the best network, each way to separate nuclei gets thresholds that are chosen on the
validation images. The test images are scored once.
"""

import argparse
import itertools
import time
from functools import partial
from pathlib import Path

import joblib
import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks import results_file
from benchmarks.train_included_network import read_course, read_network
from nuclei_utils import datasets, deploy, download, export, io, matching, predict, segmentation
from nuclei_utils.errors import NucleiError

N_TTA = 8
METHOD = "maps_to_labels"  # of the package
PROB_THRESHOLDS = (0.4, 0.5, 0.6)
GRIDS = {
    "components": {},
    "watershed_from_mask": {},
    "watershed_from_boundary": {"marker_thresh": (0.2, 0.35, 0.5, 0.65)},
    "watershed_from_distance": {"min_prominence": (0.15, 0.2, 0.25)},
    METHOD: {"min_prominence": (0.15, 0.2, 0.25), "min_confidence": (0, 0.6, 0.7, 0.8)},
}
"""Values to try for each method, in addition to `prob_thresh`."""


def predict_split(model: keras.Model, records: list, n_tta: int) -> tuple[list[dict], float]:
    """Predict the maps of all images; return the maps and the seconds per image."""
    start = time.perf_counter()
    maps = [predict.predict_maps(model, record.image, n_tta=n_tta) for record in tqdm(records, f"n_tta={n_tta}")]
    return maps, (time.perf_counter() - start) / len(records)


def separate(
    method: str, maps: list[dict], prob_thresh: float = segmentation.PROB_THRESH, **options
) -> list[np.ndarray]:
    """Convert the maps of all images to label maps by one method. The other defaults are those of the package, too."""
    if method == METHOD:
        return [segmentation.maps_to_labels(m, prob_thresh, **options) for m in maps]
    function, options = getattr(segmentation, method), {"min_size": segmentation.MIN_SIZE, **options}
    if method == "watershed_from_boundary":
        return [function(m["mask"], m["boundary"], prob_thresh, **options) for m in maps]
    if method == "watershed_from_distance":
        return [function(m["mask"], m["distance"], prob_thresh, **options) for m in maps]
    return [function(m["mask"] > prob_thresh, **options) for m in maps]


def tune(
    method: str, maps: list[dict], label_maps: list[np.ndarray], image_types: list[str]
) -> tuple[dict, pd.DataFrame]:
    """Return the options with the best `type_mean`, and the table of all options."""
    grid = {"prob_thresh": PROB_THRESHOLDS, **GRIDS[method]}
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


def score_records(model: keras.Model, records: list[datasets.Record]) -> dict:
    """Predict images once, and score them with the thresholds of the package."""
    maps, _ = predict_split(model, records, n_tta=1)
    return score([r.label_map for r in records], separate(METHOD, maps), [r.image_type for r in records])


def stage1_test_paths() -> list[Path]:
    """Return the paths of the stage-1 test images, `ID/images/ID.png`."""
    folder = datasets.home() / "dsb2018" / download.TEST
    paths = sorted(folder.glob("*/images/*.png"))
    if not paths:
        raise NucleiError(f"{folder} has no images: fetch them with `make data`")
    return paths


def write_submission(path: Path, model: keras.Model) -> None:
    """Predict the nuclei of the stage-1 test images, and write them in the format of the competition."""
    label_maps = {}
    for image_path in tqdm(stage1_test_paths(), "stage 1 test"):
        maps = predict.predict_maps(model, io.read_image(image_path), n_tta=N_TTA)
        label_maps[image_path.stem] = segmentation.maps_to_labels(maps)
    export.write_table(path, export.submission_table(label_maps))
    print(f"{path}: {sum(int(m.max()) for m in label_maps.values())} nuclei in {len(label_maps)} images")


def load_splits() -> dict[str, tuple[list, list[np.ndarray], list[str]]]:
    """Return the records, label maps and image types of the validation and test images."""
    records = {split: datasets.load(split=split) for split in ("validation", "test")}
    return {
        split: (side, [record.label_map for record in side], [record.image_type for record in side])
        for split, side in records.items()
    }


def score_network(path: Path) -> dict:
    """Score a network with the thresholds of the package."""
    network, scores = deploy.freeze(read_network(path)), {}
    for split, (records, *_) in load_splits().items():
        scores[split] = score_records(network, records)
        print(split, scores[split]["score"], scores[split]["type_mean"])
    return {**scores, **read_course(path)}


def compare_methods(path: Path) -> dict:
    """Choose the thresholds of each method on the validation images, and score both splits."""
    network, splits, maps, seconds = deploy.freeze(read_network(path)), load_splits(), {}, {}
    for (split, (records, *_)), n_tta in itertools.product(splits.items(), (1, N_TTA)):
        maps[split, n_tta], seconds[split, n_tta] = predict_split(network, records, n_tta)
    tuned, tables = {}, {}
    for method in GRIDS:
        tuned[method], tables[method] = tune(method, maps["validation", 1], *splits["validation"][1:])
    best = tuned | {METHOD: {}}  # the package's own thresholds, which are rounded
    rows = {method: (method, 1) for method in GRIDS} | {f"{METHOD}, n_tta {N_TTA}": (METHOD, N_TTA)}
    scores = {split: {} for split in splits}
    for (split, (_, label_maps, image_types)), (name, (method, n_tta)) in itertools.product(
        splits.items(), rows.items()
    ):
        scores[split][name] = score(label_maps, separate(method, maps[split, n_tta], **best[method]), image_types)
        print(split, name, scores[split][name]["score"])
    names = ("PROB_THRESH", "MIN_PROMINENCE", "MIN_SIZE", "MIN_CONFIDENCE")
    return {
        "network": path.name,
        "images": {split: len(records) for split, (records, *_) in splits.items()},
        "thresholds": tuned,
        "thresholds_of_the_package": {name.lower(): getattr(segmentation, name) for name in names},
        "seconds_per_image": {f"{split}, n_tta {n_tta}": round(value, 3) for (split, n_tta), value in seconds.items()},
        "cores_used": joblib.cpu_count(),
        **scores,
        "tried": {method: table.round(4).to_dict("list") for method, table in tables.items()},
    }


def main() -> None:
    """Score the networks, compare the methods with the best network, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--submission", type=Path, help="CSV file for the nuclei of the stage-1 test images")
    args = parser.parse_args()
    data, paths = datasets.current(), {path.name.removesuffix(".weights.h5"): path for path in args.weights}
    networks = f"included_network_{data}"
    results_file.add_missing(networks, {name: partial(score_network, path) for name, path in paths.items()}, data=data)
    runs = results_file.read(networks)
    best = max(paths, key=lambda name: runs[name]["validation"]["type_mean"])
    results_file.add_missing(f"separate_{data}", {best: partial(compare_methods, paths[best])}, data=data)
    if args.submission:
        write_submission(args.submission, deploy.freeze(read_network(paths[best])))


if __name__ == "__main__":
    main()
