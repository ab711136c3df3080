"""Tune, score and ship the network that `benchmarks.instances` trained, and predict the competition's stage-1 test.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.separate

Thresholds are chosen on the validation images; the test images are scored once. The weights of the network go to
`data/instance_unet.weights.h5`, which the package ships, and the nuclei of the stage-1 test images, whose truth is not
to be had here, to `benchmarks/submission.csv`.
"""

import argparse
import itertools
import time

import joblib
import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks import instances as trained
from benchmarks import results
from nuclei_utils import datasets, export, io, matching, models, predict, segmentation
from nuclei_utils.files import atomic_write

SHIPPED = results.FOLDER.parent.parent / "data" / "instance_unet.weights.h5"
SUBMISSION = results.FOLDER.parent / "submission.csv"
VIEWS = 8
MASK_THRESHOLDS, SMALLEST = (0.5, 0.6, 0.7), (15, 25, 35)
GRIDS = {
    "components": {},
    "watershed_from_mask": {},
    "watershed_from_boundary": {"marker_thresh": (0.2, 0.35, 0.5, 0.65)},
    "watershed_from_distance": {"min_prominence": (0.15, 0.2, 0.25, 0.3)},
}
"""What is tuned for each way to separate nuclei, besides the threshold of the mask and the min_size nucleus."""


def ship(model):
    """Write the weights of the network as the package ships them: `predict.default_model` reads them."""
    shipped = models.instance_unet(weights=None, fixed_statistics=True)
    shipped.set_weights(model.get_weights())
    with atomic_write(SHIPPED) as aside:
        shipped.save_weights(aside)


def maps_of(model, images, n_tta):
    """Predict the maps of images; return them and the seconds it took."""
    start = time.perf_counter()
    found = [predict.predict_maps(model, image, n_tta=n_tta) for image in tqdm(images, f"{n_tta} views")]
    return found, time.perf_counter() - start


def split(way, maps, prob_thresh, min_size, **others):
    """Separate the nuclei of some images in one way."""
    if way in ("components", "watershed_from_mask"):
        method = getattr(segmentation, way)
        return [method(one["mask"] > prob_thresh, min_size=min_size) for one in maps]
    if way == "watershed_from_boundary":
        return [
            segmentation.watershed_from_boundary(one["mask"], one["boundary"], prob_thresh, min_size=min_size, **others)
            for one in maps
        ]
    return [segmentation.maps_to_labels(one, prob_thresh, min_size=min_size, **others) for one in maps]


def tune(way, maps, truth):
    """Return the thresholds with the best mean score of the competition, and the table of all that were tried."""
    grid = {"prob_thresh": MASK_THRESHOLDS, "min_size": SMALLEST, **GRIDS[way]}
    tried = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    scores = [matching.dsb2018_score(truth, split(way, maps, **thresholds)) for thresholds in tqdm(tried, way)]
    return tried[int(np.argmax(scores))], pd.DataFrame(tried).assign(score=scores)


def scored(truth, found, image_types):
    """Score label maps: over all images, by image_type, and over all nuclei for each IoU threshold."""
    images = matching.image_scores(truth, found).assign(image_type=image_types)
    pooled = matching.average_precision(truth, found)
    counts = ["true", "predicted", "tp", "fp", "fn", "merges", "splits"]
    by_kind = images.groupby("image_type").agg(
        images=("score", "size"), score=("score", "mean"), **{c: (c, "sum") for c in counts}
    )
    return {
        "score": round(images["score"].mean(), 4),
        "ap": {f"{threshold:.2f}": round(value, 4) for threshold, value in pooled["ap"].items()},
        **{name: int(images[name].sum()) for name in counts},
        "image_types": by_kind.round(4).to_dict("index"),
        "images": images["score"].round(4).to_list(),
    }


def main():
    """Tune on validation, score on both splits, write results, network and submission."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    model = keras.models.load_model(trained.folder(seed) / "best.keras", compile=False)
    records = {name: datasets.load(split=name) for name in ("validation", "test")}
    truth = {name: [record.label_map for record in some] for name, some in records.items()}
    maps, seconds = {}, {}
    for name, some in records.items():
        for n_tta in (1, VIEWS):
            maps[name, n_tta], seconds[name, n_tta] = maps_of(model, [record.image for record in some], n_tta)
    tuned, tables = {}, {}
    for way in GRIDS:
        tuned[way], tables[way] = tune(way, maps["validation", 1], truth["validation"])
    rungs = {way: (way, 1, tuned[way]) for way in GRIDS}
    rungs[f"watershed_from_distance, {VIEWS} views"] = (
        "watershed_from_distance",
        VIEWS,
        tuned["watershed_from_distance"],
    )
    figures = {
        name: {
            title: scored(
                truth[name], split(way, maps[name, n_tta], **thresholds), [r.image_type for r in records[name]]
            )
            for title, (way, n_tta, thresholds) in rungs.items()
        }
        for name in records
    }
    path = results.write(
        f"separate_{datasets.current()}_seed{seed}",
        {
            "data": datasets.current(),
            "seed": seed,
            "images": {name: len(some) for name, some in records.items()},
            "parameters": model.count_params(),
            "thresholds": tuned,
            "seconds_per_image": {
                f"{name}, {n_tta} views": round(value / len(records[name]), 3)
                for (name, n_tta), value in seconds.items()
            },
            "cores_used": joblib.cpu_count(),
            **figures,
            "tried": {way: table.round(4).to_dict("list") for way, table in tables.items()},
        },
    )
    print(path)
    for name in figures:
        print(name, {title: one["score"] for title, one in figures[name].items()})
    if (datasets.current(), seed) == ("stage1_fixed", 0):  # the one whose figures the README quotes
        ship(model)
        submit(model, tuned["watershed_from_distance"])


def submit(model, thresholds):
    """Predict the stage-1 test images, and write their nuclei as the competition wanted them."""
    folders = sorted(path for path in (datasets.home() / "dsb2018" / "stage1_test").iterdir() if path.is_dir())
    found = {}
    for folder in tqdm(folders, "stage 1 test"):
        (path,) = (folder / "images").iterdir()
        maps = predict.predict_maps(model, io.read_image(path), n_tta=VIEWS)
        found[folder.name] = segmentation.maps_to_labels(maps, **thresholds)
    export.write_submission(SUBMISSION, export.submission_table(found))
    print(f"{SUBMISSION}: {sum(int(labels.max()) for labels in found.values())} nuclei in {len(found)} images")


if __name__ == "__main__":
    main()
