"""Compare the networks that `benchmarks.networks` trained: intervals and paired tests over images, and what each costs.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.evaluate

These are the figures that notebooks 05 and 06 quote; they come out of the same functions. Of several seeds, the Dice of
each image is averaged before networks are compared. Costs are times: run it on a machine that does nothing else.
"""

import argparse
import os

import joblib
import numpy as np

from benchmarks import networks, results
from nuclei_utils import datasets, models, recipes, statistics, training

ROUNDS = 3


def compare(title, groups):
    """Compare the mean Dice of the networks over the test images, with intervals, and pair by pair.

    Returns
    -------
    dict
        `mean_dice` with its interval for each network, and `pairs`.
    """
    runs = results.runs(title).values()
    dice = {
        name: np.mean([run["test"]["dice"] for run in runs if run["network"] == name], axis=0)
        for name in recipes.TITLES
    }
    means = {}
    for name, values in dice.items():
        low, high = statistics.bootstrap_interval(values, groups)
        means[name] = {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}
    table = statistics.compare_models(dice, groups).reset_index()
    numbers = table.select_dtypes(float).map(lambda value: float(f"{value:.3g}"))
    return {"mean_dice": means, "pairs": table.assign(**numbers).to_dict("records")}


def costs(seed=0):
    """Measure what each network costs, and each cut of the U-Net++, in turn: what disturbs one disturbs all."""
    candidates = {name: recipes.load(networks.folder(name, seed))[0] for name in recipes.TITLES}
    cuts = networks.fast_modes(networks.folder("unet_plus_plus", seed))
    candidates |= {f"depth {number}": cut for number, cut in enumerate(cuts, start=1)}
    rounds = [{name: models.model_cost(model) for name, model in candidates.items()} for _ in range(ROUNDS)]
    return {
        name: {key: round(float(np.median([one[name][key] for one in rounds])), 2) for key in rounds[0][name]}
        for name in candidates
    }


def main():
    """Compare, and write."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    run = f"{datasets.current()}_{training.profile().name}"
    groups = (
        datasets.split_table(datasets.current()).set_index("id").loc[datasets.ids(split="test"), "group"].to_numpy()
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    figures = {
        "data": datasets.current(),
        "profile": training.profile().name,
        "images": len(groups),
        "groups": len(set(groups)),
        **compare(f"networks_{run}", groups),
        "load_average_before": load,
        "cores_used": joblib.cpu_count(),
        "costs": costs(),
    }
    print(*(f"{name}: {value}" for name, value in figures.items()), sep="\n")
    print(f"wrote {results.write(f'evaluate_{run}', figures)}")


if __name__ == "__main__":
    main()
