"""Cross-validate on the tissue images: score each of them with a network that has not seen it.

    NUCLEI_DATA=stage1_fixed NUCLEI_PROFILE=laptop python -m benchmarks.cross_validate

Our split has two to twelve test images of each tissue type, which are too few for a score. Here, the tissue images are
divided into three folds (`tissue_folds.csv`), and near-duplicates are in one fold. For each fold, a network is trained
on the other two folds and on the fluorescence images for training and test. The epoch is chosen on the fluorescence
images for validation. The thresholds and the augmentation are those of the package. They were chosen on the validation
images, which include 18 of the tissue images. This script chooses nothing on an image that it scores.

The folds were drawn once with `StratifiedGroupKFold(3, shuffle=True, random_state=0)` of scikit-learn 1.9.1.
"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks import results_file
from benchmarks.score_included_network import score_records
from benchmarks.train_networks import timed
from nuclei_utils import datasets, deploy, training

FOLDS = Path(__file__).parent / "tissue_folds.csv"
TISSUE = ("purple_on_white", "purple_on_purple", "grey_tissue")


def divide(fold: int) -> pd.Series:
    """Return "train", "validation" or "scored" for each image id."""
    table, folds = datasets.split_table(datasets.current()).set_index("id"), pd.read_csv(FOLDS, index_col="id")["fold"]
    sides = table["split"].replace("test", "train").mask(table["image_type"].isin(TISSUE), "train")
    sides[folds.index[folds == fold]] = "scored"
    return sides


def train_and_score(file: str, fold: int) -> dict:
    """Train without the tissue images of a fold, and score these images."""
    sides, records = divide(fold), {"train": [], "validation": [], "scored": []}
    for record in datasets.load():
        records[sides[record.id]].append(record)
    folder = Path("runs") / "benchmark" / file / f"fold{fold}"
    options = {"weights": "imagenet", "records": (records["train"], records["validation"]), "verbose": 2}
    times = timed(folder, lambda: training.train("instance_unet", folder, **options))
    model, history = training.load_run(folder)
    return {
        "fold": fold,
        "seed": 0,
        "images": {side: len(members) for side, members in records.items()},
        "epochs": len(history),
        "best_epoch": training.best_epoch(history, "val_loss") + 1,
        "learning_rate": training.INSTANCE_RATE,
        **times,
        "ids": [record.id for record in records["scored"]],
        "scores": score_records(deploy.freeze(model), records["scored"]),
    }


def main() -> None:
    """Train and score for each fold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folds", nargs="+", type=int, choices=range(3), default=[0, 1, 2])
    args = parser.parse_args()
    data, profile = datasets.current(), training.profile().name
    file = f"cross_validation_{data}_{profile}"
    jobs = {f"fold {fold}": partial(train_and_score, file, fold) for fold in args.folds}
    results_file.add_missing(file, jobs, data=data, profile=profile)


if __name__ == "__main__":
    main()
