"""Compare the networks that `benchmarks.networks` trained: paired tests, thresholds, calibration, costs.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.evaluate --seeds 0

These are the figures that notebooks 05 and 06 quote; they come out of the same functions. Of several seeds, the Dice of
each image is averaged before networks are compared; thresholds and what follows are those of the first. Costs are
times: run it on a machine that does nothing else.
"""

import argparse
import os
from functools import partial

import keras
import numpy as np
import pandas as pd

from benchmarks import networks, results
from nuclei_utils import data, evaluation, metrics, models, predict, recipes, training

ROUNDS = 5


def compare(test, groups, seeds):
    """Compare the mean Dice of the networks over test images, with intervals, pair by pair.

    Returns
    -------
    dict
        `mean_dice` with its interval for each network, and `pairs`.
    """
    truth, images = [record.labels for record in test], [record.image for record in test]
    dice = {}
    for name in recipes.TITLES:
        found = [predict.probabilities(recipes.load(networks.folder(name, seed))[0], images) for seed in seeds]
        dice[name] = np.mean([metrics.pixel_scores(truth, maps)["dice"] for maps in found], axis=0)
    table = evaluation.compare(dice, groups).reset_index()
    for column in table.columns:
        if table[column].dtype == float:
            table[column] = [float(f"{value:.3g}") for value in table[column]]
    intervals = {name: evaluation.bootstrap_interval(values, groups) for name, values in dice.items()}
    return {
        "mean_dice": {
            name: {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}
            for (name, values), (low, high) in zip(dice.items(), intervals.values(), strict=True)
        },
        "pairs": table.to_dict("records"),
    }


def threshold_and_calibration(model, validation, test, groups):
    """Choose a threshold on validation; say what it gains on test over 0.5, and how far probabilities are off."""
    found = predict.probabilities(model, [record.image for record in validation])
    sweep = evaluation.sweep([record.labels for record in validation], found)
    threshold = evaluation.best_threshold(sweep, "mean_dice")
    truth = [record.labels for record in test]
    found = predict.probabilities(model, [record.image for record in test])
    before, after = (metrics.pixel_scores(truth, found, level)["dice"].to_numpy() for level in (0.5, threshold))
    low, high = evaluation.bootstrap_interval(after - before, groups)
    error = evaluation.calibration_error(evaluation.calibration(truth, found))
    figures = {
        "threshold": threshold,
        "gain": (after - before).mean(),
        "low": low,
        "high": high,
        "calibration_error": error,
    }
    return {name: round(float(figure), 4) for name, figure in figures.items()}


def robustness(model, watched):
    """Score a network on one validation image of each kind, made worse on purpose."""
    images, labels = [record.image for record in watched], [record.labels for record in watched]
    table = evaluation.robustness(partial(predict.probabilities, model), images, labels)
    return table[["distortion", "strength", "dice", "mean_dice"]].round(4).to_dict("records")


def costs(seed):
    """Measure what each network costs, and each cut of the U-Net++, in turn: what disturbs the machine disturbs all."""
    candidates = {name: recipes.load(networks.folder(name, seed))[0] for name in recipes.TITLES}
    nested = keras.models.load_model(networks.folder("unet_plus_plus", seed) / "best.keras")
    for depth in range(1, len(nested.outputs) + 1):
        candidates[f"depth {depth}"] = models.fast_mode(nested, depth)
    rounds = [{name: evaluation.cost(model) for name, model in candidates.items()} for _ in range(ROUNDS)]
    return {
        name: {key: round(float(np.median([one[name][key] for one in rounds])), 2) for key in rounds[0][name]}
        for name in candidates
    }


def main():
    """Compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    seeds = parser.parse_args().seeds
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    measured = costs(seeds[0])
    validation, test, watched = data.load(split="validation"), data.load(split="test"), recipes.watched()
    groups = data.splits(data.current()).set_index("id").loc[[record.id for record in test], "group"].to_numpy()
    trained = {name: recipes.load(networks.folder(name, seeds[0]))[0] for name in recipes.TITLES}
    figures = {
        "data": data.current(),
        "profile": training.profile().name,
        "seeds": seeds,
        "images": len(test),
        "specimens": len(set(groups)),
        **compare(test, groups, seeds),
        "thresholds": {
            name: threshold_and_calibration(model, validation, test, groups) for name, model in trained.items()
        },
        "robustness_images": len(watched),
        "robustness": {name: robustness(model, watched) for name, model in trained.items()},
        "costs": measured,
        "load_average_before": load,
    }
    print(pd.DataFrame(figures["mean_dice"]).T, pd.DataFrame(figures["pairs"]).to_string(), sep="\n")
    print(f"wrote {results.write(f'evaluate_{data.current()}_{training.profile().name}', figures)}")


if __name__ == "__main__":
    main()
