"""Score every tissue image with a network that has not seen it: cross-validation of the rare image types.

    NUCLEI_DATA=stage1_fixed NUCLEI_PROFILE=laptop python -m benchmarks.cross_validate

Our split has two to twelve test images of each tissue type, which are too few for a score. Here, the tissue images are
divided into three folds, and near-duplicates stay together. For each fold, a network is trained on the other two folds
and on the fluorescence images for training and test. The fluorescence images for validation choose the epoch. The
thresholds are those of the package. So nothing is chosen on a tissue image that is scored.
"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks import results_file
from benchmarks.score_included_network import predict_split, score
from benchmarks.train_networks import timed
from nuclei_utils import datasets, deploy, segmentation, training

FOLDS = 3
TISSUE = ("purple_on_white", "purple_on_purple", "grey_tissue")


def divide(fold: int) -> pd.Series:
    """Return "train", "validation" or "fold" for each image id. Near-duplicates of tissue stay together."""
    table = datasets.split_table(datasets.current()).set_index("id")
    is_tissue = table["image_type"].isin(TISSUE)
    tissue, sides = (
        table[is_tissue],
        table["split"].where(table["split"] == "validation", "train").mask(is_tissue, "train"),
    )
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    rows = [test for _, test in splitter.split(tissue, tissue["image_type"], tissue["group"])]
    sides[tissue.index[rows[fold]]] = "fold"
    return sides


def load_fold(fold: int) -> dict[str, list[datasets.Record]]:
    """Return the images for training and validation, and the tissue images of the fold."""
    sides, records = divide(fold), {"train": [], "validation": [], "fold": []}
    for record in datasets.load():
        records[sides[record.id]].append(record)
    return records


def train_and_score(file: str, fold: int, seed: int) -> dict:
    """Train with one seed, and score the tissue images of a fold."""
    records, folder = load_fold(fold), Path("runs") / "benchmark" / file / f"fold{fold}_seed{seed}"
    sides = records["train"], records["validation"]
    times = timed(folder, lambda: training.train("instance_unet", folder, seed=seed, records=sides, verbose=2))
    model, history = training.load_run(folder)
    maps, _ = predict_split(deploy.freeze(model), records["fold"], n_tta=1)
    predicted = [segmentation.maps_to_labels(image_maps) for image_maps in maps]
    return {
        "fold": fold,
        "seed": seed,
        "images": {side: len(members) for side, members in records.items()},
        "epochs": len(history),
        "best_epoch": training.best_epoch(history, "val_loss") + 1,
        "learning_rate": training.INSTANCE_RATE,
        **times,
        "ids": [record.id for record in records["fold"]],
        "scores": score([r.label_map for r in records["fold"]], predicted, [r.image_type for r in records["fold"]]),
    }


def main() -> None:
    """Train and score each fold with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folds", nargs="+", type=int, choices=range(FOLDS), default=list(range(FOLDS)))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    data, profile = datasets.current(), training.profile().name
    file = f"cross_validation_{data}_{profile}"
    jobs = {
        f"fold {fold}, seed {seed}": partial(train_and_score, file, fold, seed)
        for seed in args.seeds
        for fold in args.folds
    }
    results_file.add_missing(file, jobs, data=data, profile=profile)


if __name__ == "__main__":
    main()
