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
from nuclei_utils import data, export, instances, models, predict
from nuclei_utils.files import written_whole

SHIPPED = results.FOLDER.parent.parent / "data" / "instance_unet.weights.h5"
SUBMISSION = results.FOLDER.parent / "submission.csv"
VIEWS = 8
MASK_THRESHOLDS, SMALLEST = (0.5, 0.6, 0.7), (15, 25, 35)
GRIDS = {
    "components": {},
    "split_by_shape": {},
    "split_by_boundary": {"marker_threshold": (0.2, 0.35, 0.5, 0.65)},
    "split_by_distance": {"rise": (0.15, 0.2, 0.25, 0.3)},
}
"""What is tuned for each way to separate nuclei, besides the threshold of the mask and the smallest nucleus."""


def ship(model):
    """Write the weights of the network as the package ships them: `predict.default_model` reads them."""
    shipped = models.instance_unet(weights=None, fixed_statistics=True)
    shipped.set_weights(model.get_weights())
    with written_whole(SHIPPED) as aside:
        shipped.save_weights(aside)


def maps_of(model, images, views):
    """Predict the maps of images; return them and the seconds it took."""
    start = time.perf_counter()
    found = [predict.maps(model, image, views=views) for image in tqdm(images, f"{views} views")]
    return found, time.perf_counter() - start


def split(way, maps, mask_threshold, smallest, **others):
    """Separate the nuclei of some images in one way."""
    if way in ("components", "split_by_shape"):
        method = getattr(instances, way)
        return [method(one["mask"] > mask_threshold, smallest=smallest) for one in maps]
    if way == "split_by_boundary":
        return [
            instances.split_by_boundary(one["mask"], one["boundary"], mask_threshold, smallest=smallest, **others)
            for one in maps
        ]
    return [instances.separate(one, mask_threshold, smallest=smallest, **others) for one in maps]


def tune(way, maps, truth):
    """Return the thresholds with the best mean score of the competition, and the table of all that were tried."""
    grid = {"mask_threshold": MASK_THRESHOLDS, "smallest": SMALLEST, **GRIDS[way]}
    tried = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    scores = [instances.kaggle_score(truth, split(way, maps, **thresholds)) for thresholds in tqdm(tried, way)]
    return tried[int(np.argmax(scores))], pd.DataFrame(tried).assign(score=scores)


def scored(truth, found, kinds):
    """Score label maps: over all images, by kind, and over all nuclei for each IoU threshold."""
    images = instances.image_scores(truth, found).assign(kind=kinds)
    pooled = instances.average_precision(truth, found)
    counts = ["true", "predicted", "tp", "fp", "fn", "merges", "splits"]
    by_kind = images.groupby("kind").agg(
        images=("score", "size"), score=("score", "mean"), **{c: (c, "sum") for c in counts}
    )
    return {
        "score": round(images["score"].mean(), 4),
        "ap": {f"{threshold:.2f}": round(value, 4) for threshold, value in pooled["ap"].items()},
        **{name: int(images[name].sum()) for name in counts},
        "kinds": by_kind.round(4).to_dict("index"),
        "images": images["score"].round(4).to_list(),
    }


def main():
    """Tune on validation, score on both splits, write results, network and submission."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    model = keras.models.load_model(trained.folder(seed) / "best.keras", compile=False)
    records = {name: data.load(split=name) for name in ("validation", "test")}
    truth = {name: [record.labels for record in some] for name, some in records.items()}
    maps, seconds = {}, {}
    for name, some in records.items():
        for views in (1, VIEWS):
            maps[name, views], seconds[name, views] = maps_of(model, [record.image for record in some], views)
    tuned, tables = {}, {}
    for way in GRIDS:
        tuned[way], tables[way] = tune(way, maps["validation", 1], truth["validation"])
    rungs = {way: (way, 1, tuned[way]) for way in GRIDS}
    rungs[f"split_by_distance, {VIEWS} views"] = ("split_by_distance", VIEWS, tuned["split_by_distance"])
    figures = {
        name: {
            title: scored(truth[name], split(way, maps[name, views], **thresholds), [r.kind for r in records[name]])
            for title, (way, views, thresholds) in rungs.items()
        }
        for name in records
    }
    path = results.write(
        f"separate_{data.current()}_seed{seed}",
        {
            "data": data.current(),
            "seed": seed,
            "images": {name: len(some) for name, some in records.items()},
            "parameters": model.count_params(),
            "thresholds": tuned,
            "seconds_per_image": {
                f"{name}, {views} views": round(value / len(records[name]), 3)
                for (name, views), value in seconds.items()
            },
            "cores_used": joblib.cpu_count(),
            **figures,
            "tried": {way: table.round(4).to_dict("list") for way, table in tables.items()},
        },
    )
    print(path)
    for name in figures:
        print(name, {title: one["score"] for title, one in figures[name].items()})
    if (data.current(), seed) == ("stage1_fixed", 0):  # the one whose figures the README quotes
        ship(model)
        submit(model, tuned["split_by_distance"])


def submit(model, thresholds):
    """Predict the stage-1 test images, and write their nuclei as the competition wanted them."""
    folders = sorted(path for path in (data.home() / "dsb2018" / "stage1_test").iterdir() if path.is_dir())
    found = {}
    for folder in tqdm(folders, "stage 1 test"):
        (path,) = (folder / "images").iterdir()
        maps = predict.maps(model, data.read_image(path), views=VIEWS)
        found[folder.name] = instances.separate(maps, **thresholds)
    export.write_submission(SUBMISSION, export.submission(found))
    print(f"{SUBMISSION}: {sum(int(labels.max()) for labels in found.values())} nuclei in {len(found)} images")


if __name__ == "__main__":
    main()
