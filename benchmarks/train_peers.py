"""Train StarDist and Cellpose on StarDist's subset of the data, with the processor time of our network, and score them.

    make peers
    build/peers/bin/python -m benchmarks.train_peers --predictions subset_zoom0.5_seed0

The first command makes an environment of its own, because the two programs are no dependencies of the course. It
trains our network (`benchmarks.train_on_stardist_subset`), then StarDist and Cellpose (`benchmarks.peers`), each with
the processor time of our network with the same seed. So train all three on one machine. The test images are scored
once, with our matching and with StarDist's. The second command trains nothing. It scores files of run lengths in
`results` with both programs, and writes `stardist_matching.json`.
"""

import argparse
import time
from functools import partial

import numpy as np
from stardist import matching as stardist_matching

from benchmarks import results_file
from benchmarks.peers import PEERS, packages, run_folder
from benchmarks.train_on_stardist_subset import (
    THRESHOLDS,
    average_precision,
    load_subset,
    read_predictions,
    write_predictions,
)


def score(label_maps: list[np.ndarray], predicted: list[np.ndarray]) -> dict:
    """Score label maps with our matching and with StarDist's."""
    theirs = stardist_matching.matching_dataset(label_maps, predicted, thresh=THRESHOLDS, show_progress=False)
    return {
        "iou_thresholds": THRESHOLDS,
        "ap": average_precision(label_maps, predicted),
        "ap_by_stardist": [float(row.accuracy) for row in theirs],
    }


def score_predictions(name: str) -> dict:
    """Score the run lengths of the test images in a file of the results."""
    records = load_subset()["test"]
    return score([record.label_map for record in records], read_predictions(name, records))


def train_and_score(program: str, seed: int, cpu_seconds: float) -> dict:
    """Train a program with one seed, score the test images, and write the predicted nuclei."""
    records = load_subset()
    train, load = PEERS[program]
    train_side, validation_side, (images, label_maps) = (
        ([record.image for record in records[split]], [record.label_map for record in records[split]])
        for split in ("train", "validation", "test")
    )
    folder, start = run_folder(program, seed), time.perf_counter()
    course = train(folder, train_side, validation_side, seed, cpu_seconds)
    seconds = round(time.perf_counter() - start)  # with the choice of the thresholds
    predict, parameters = load(folder)
    predicted = list(map(predict, images))
    write_predictions(folder.name, [record.id for record in records["test"]], predicted)
    settings = {"program": program, "packages": packages(), "seed": seed, "parameters": parameters, "seconds": seconds}
    return {**settings, **course, **score(label_maps, predicted)}


def main() -> None:
    """Train and score each program with each seed, or score run lengths."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--predictions", nargs="+", metavar="NAME", help="score these run lengths, and train nothing")
    args = parser.parse_args()
    if args.predictions:
        jobs = {name: partial(score_predictions, name) for name in args.predictions}
        results_file.add_missing("stardist_matching", jobs, data="stage1")
        return
    ours = results_file.read("stardist_subset")
    for seed in args.seeds:
        if not ours.get(f"seed {seed}", {}).get("cpu_seconds"):
            parser.error(
                f"seed {seed} of our network has no processor time: it is missing, or was interrupted and continued; "
                f"train it anew with `python -m benchmarks.train_on_stardist_subset --seeds {seed}`"
            )
    jobs = {
        f"{program}, seed {seed}": partial(train_and_score, program, seed, ours[f"seed {seed}"]["cpu_seconds"])
        for seed in args.seeds
        for program in args.programs
    }
    results_file.add_missing("peers", jobs, data="stage1")


if __name__ == "__main__":
    main()
