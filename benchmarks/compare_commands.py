"""Time `nuclei-utils predict` and StarDist's command, from the start of each command to its end: `make peers`.

Both commands find the nuclei in the 65 images of stage 1 of the competition for which no labels are published. Our
command also measures the nuclei, draws overlays and predicts each image twice (consistency). StarDist's command writes
label maps only. It gets the images as grey TIFF files. The commands take turns, so that a busy moment of the machine
slows all of them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import peers, results_file
from nuclei_utils import datasets, io

ROUNDS = 3


def write_grey_images(images: list[np.ndarray], folder: Path) -> list[Path]:
    """Write images as StarDist's command reads them, and return their paths."""
    import tifffile

    paths = [folder / f"{number}.tif" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        tifffile.imwrite(path, peers.grey_image(image))
    return paths


def run(words: list) -> tuple[float, int]:
    """Run a command, and return its seconds and its peak memory in 10**6 bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return seconds, round(usage.ru_maxrss * 1024 / 1e6)  # Linux counts in 1024 bytes


def main() -> None:
    """Time the commands in turns, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the trained StarDist")
    args = parser.parse_args()
    source = datasets.home() / "dsb2018" / "stage1_test"
    images = [io.read_image(path) for path in sorted(source.glob("*/images/*.png"))]
    load_average, costs = results_file.load_average(), {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        ours = [sys.executable, "-m", "nuclei_utils", "predict", source, "--replace", "--out"]
        stardist = [
            Path(sys.executable).parent / "stardist-predict2d",
            "--model",
            peers.run_folder("StarDist", args.seed),
        ]
        commands = {
            "ours": [*ours, work / "int8", "--precision", "int8"],
            "ours, float32": [*ours, work / "float32", "--precision", "float32"],
            "StarDist": [*stardist, "--outdir", work / "stardist", "--input", *write_grey_images(images, work)],
        }
        for _ in tqdm(range(ROUNDS), "rounds"):
            for program, words in commands.items():
                costs.setdefault(program, []).append(run(words))
    megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    rows = {}
    for program, runs in costs.items():
        seconds, peaks = zip(*runs, strict=True)
        rows[program] = {
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
