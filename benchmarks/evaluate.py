"""Compare the networks that `benchmarks.networks` trained: paired tests, thresholds, calibration, disturbed images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.evaluate --seed 0

These are the figures that notebook 06 quotes; they come out of the same functions.
"""

import argparse
from functools import partial

import pandas as pd

from benchmarks import networks, results
from nuclei_utils import data, evaluation, metrics, predict, recipes, training


def predictions(seed, split):
    """Let each network predict the whole images of a split.

    Returns
    -------
    records : list of data.Record
    found : dict of str to list of float32 array (H, W)
        For each network its probabilities.
    """
    records = data.load(split=split)
    images = [record.image for record in records]
    models = {name: recipes.load(networks.folder(name, seed))[0] for name in recipes.TITLES}
    return records, {name: predict.probabilities(model, images) for name, model in models.items()}


def effect_of_threshold(truth, found, threshold, groups):
    """Return what a threshold chosen elsewhere changes in the mean Dice, against 0.5, with its interval."""
    before, after = (metrics.pixel_scores(truth, found, level)["dice"].to_numpy() for level in (0.5, threshold))
    low, high = evaluation.bootstrap_interval(after - before, groups)
    figures = {"threshold": threshold, "gain": (after - before).mean(), "low": low, "high": high}
    return {name: round(float(figure), 4) for name, figure in figures.items()}


def robustness(seed):
    """Score each network on one validation image of each kind, made worse on purpose."""
    watched = recipes.watched()
    tables = []
    for name in recipes.TITLES:
        model = recipes.load(networks.folder(name, seed))[0]
        table = evaluation.robustness(
            partial(predict.probabilities, model),
            [record.image for record in watched],
            [record.labels for record in watched],
        )
        tables.append(table.assign(network=name))
    return pd.concat(tables)[["network", "distortion", "strength", "dice", "mean_dice"]]


def main():
    """Compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    validation, found_validation = predictions(seed, "validation")
    test, found = predictions(seed, "test")
    truth = [record.labels for record in test]
    groups = data.splits(data.current()).set_index("id").loc[[record.id for record in test], "group"].to_numpy()
    dice = {name: metrics.pixel_scores(truth, maps)["dice"].to_numpy() for name, maps in found.items()}
    table = evaluation.score_table(truth, found, [record.kind for record in test], groups)
    thresholds = {
        name: evaluation.best_threshold(evaluation.sweep([r.labels for r in validation], maps), "mean_dice")
        for name, maps in found_validation.items()
    }
    figures = {
        "data": data.current(),
        "profile": training.profile().name,
        "seed": seed,
        "images": len(test),
        "specimens": len(set(groups)),
        "mean_dice": table.loc["all", ["mean_dice", "low_dice", "high_dice"]].round(4).to_dict("index"),
        "pairs": evaluation.compare(dice, groups).round(5).reset_index().to_dict("records"),
        "thresholds": {
            name: effect_of_threshold(truth, maps, thresholds[name], groups) for name, maps in found.items()
        },
        "calibration_error": {
            name: round(evaluation.calibration_error(evaluation.calibration(truth, maps)), 4)
            for name, maps in found.items()
        },
        "robustness": robustness(seed).round(4).to_dict("records"),
    }
    print(table.loc["all"].round(3).to_string(), figures["pairs"], figures["thresholds"], sep="\n")
    print(f"wrote {results.write('evaluate', figures)}")


if __name__ == "__main__":
    main()
