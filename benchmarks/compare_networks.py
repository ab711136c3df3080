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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    text = "keep the costs of the last run: their measurement needs the trained networks of seed 0"
    parser.add_argument("--keep-costs", action="store_true", help=text)
    args = parser.parse_args()
    data, profile = datasets.current(), training.profile().name
    file, name = f"evaluate_{data}_{profile}", "test images"
    groups = datasets.split_table(data).set_index("id").loc[datasets.ids(split="test"), "group"].to_numpy()
    if args.keep_costs:
        measured = {key: results_file.read(file)[name][key] for key in ("load_average_before", "cores_used", "costs")}
    else:
        load = results_file.load_average()
        measured = {"load_average_before": load, "cores_used": joblib.cpu_count(), "costs": costs()}
    comparison = compare(list(results_file.read(result_file()).values()), groups)
    run = {"images": len(groups), "groups": len(set(groups)), **comparison, **measured}
    print(*(f"{key}: {value}" for key, value in run.items()), sep="\n")
    results_file.add(file, name, run, data=data, profile=profile)


if __name__ == "__main__":
    main()
