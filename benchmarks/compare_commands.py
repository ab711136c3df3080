"""Time `nuclei-utils predict` and StarDist's command, from the start of each command to its end: `make peers`.

Both commands find the nuclei in the 65 images of stage 1 of the competition for which no labels are published. Our
command also measures the nuclei, draws overlays and predicts each image twice (consistency). StarDist's command writes
label maps only. It gets the images as grey TIFF files. The commands take turns, so that a busy moment of the machine
slows all of them.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import peers, results_file
from benchmarks.measure_memory import run_command, run_program
from benchmarks.score_included_network import stage1_test_paths
from nuclei_utils import io

ROUNDS = 3


def write_grey_images(images: list[np.ndarray], folder: Path) -> list[Path]:
    """Write images as StarDist's command reads them, and return their paths."""
    import tifffile

    paths = [folder / f"{number}.tif" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        tifffile.imwrite(path, peers.grey_image(image))
    return paths


def find_nuclei(source: Path, work: Path, precision: str) -> tuple[float, int]:
    """Run our command, and return its seconds and its peak memory."""
    return run_command("predict", source, "--out", work / precision, "--replace", "--precision", precision)


def main() -> None:
    """Time the commands in turns, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the trained StarDist")
    args = parser.parse_args()
    paths = stage1_test_paths()
    source, images = paths[0].parents[2], [io.read_image(path) for path in paths]
    megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    load_average, costs = results_file.load_average(), {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        program, model = Path(sys.executable).parent / "stardist-predict2d", peers.run_folder("StarDist", args.seed)
        theirs = program, "--model", model, "--outdir", work / "stardist", "--input", *write_grey_images(images, work)
        runs = {
            "ours": partial(find_nuclei, source, work, "int8"),
            "ours, float32": partial(find_nuclei, source, work, "float32"),
            "StarDist": partial(run_program, *theirs),
        }
        for _ in range(ROUNDS):
            for program_name, run in runs.items():
                costs.setdefault(program_name, []).append(run())
    rows = {}
    for program_name, measured in costs.items():
        seconds, peaks = zip(*measured, strict=True)
        rows[program_name] = {
            "seconds": [round(value, 2) for value in seconds],
            "megapixels_per_second": round(megapixels / float(np.median(seconds)), 3),
            "peak_mb": max(peaks),
        }
    result = {"packages": peers.packages(), "images": len(images), "megapixels": round(megapixels, 2)}
    results_file.add(
        "commands", "commands", {**result, "load_average_before": load_average, **rows}, data="stage1_test"
    )


if __name__ == "__main__":
    main()
