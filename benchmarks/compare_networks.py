"""Compare the networks that `benchmarks.train_networks` trained: intervals, paired tests, and costs.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.compare_networks

The Dice of each image is averaged over the seeds before networks are compared. Costs are times: run the command on a
machine that is not busy.
"""

import argparse

import joblib
import numpy as np

from benchmarks import results_file
from benchmarks.train_networks import fast_modes, result_file, run_folder
from nuclei_utils import datasets, models, statistics, training

ROUNDS = 3


def compare(runs: list[dict], groups: np.ndarray) -> dict:
    """Compare the mean Dice of the networks over the test images.

    Returns
    -------
    dict
        `mean_dice` with the interval of each network, and the table `pairs` of `statistics.compare_models`.
    """
    dice = {
        network: np.mean([run["test"]["dice"] for run in runs if run["network"] == network], axis=0)
        for network in training.TITLES
    }
    means = {}
    for network, values in dice.items():
        low, high = statistics.bootstrap_interval(values, groups)
        means[network] = {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}
    table = statistics.compare_models(dice, groups).reset_index()
    rounded = table.select_dtypes(float).map(lambda value: float(f"{value:.3g}"))
    return {"mean_dice": means, "pairs": table.assign(**rounded).to_dict("records")}


def costs(seed: int = 0) -> dict:
    """Measure the costs of each network, and of the U-Net++ in fast mode at each depth.

    The networks take turns, so that a busy moment of the machine slows all of them.
    """
    candidates = {network: training.load_run(run_folder(network, seed))[0] for network in training.TITLES}
    shallow = fast_modes(run_folder("unet_plus_plus", seed))
    candidates |= {f"depth {depth}": model for depth, model in enumerate(shallow, start=1)}
    rounds = [{name: models.model_cost(model) for name, model in candidates.items()} for _ in range(ROUNDS)]
    return {
        name: {key: round(float(np.median([cost[name][key] for cost in rounds])), 2) for key in rounds[0][name]}
        for name in candidates
    }


def main() -> None:
    """Compare the networks, and write the results."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    data, profile = datasets.current(), training.profile().name
    groups = datasets.split_table(data).set_index("id").loc[datasets.ids(split="test"), "group"].to_numpy()
    load = results_file.load_average()
    run = {
        "images": len(groups),
        "groups": len(set(groups)),
        **compare(list(results_file.read(result_file()).values()), groups),
        "load_average_before": load,
        "cores_used": joblib.cpu_count(),
        "costs": costs(),
    }
    print(*(f"{name}: {value}" for name, value in run.items()), sep="\n")
    results_file.add(f"evaluate_{data}_{profile}", "test images", run, data=data, profile=profile)


if __name__ == "__main__":
    main()
