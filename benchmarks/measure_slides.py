"""Measure the time and memory to find the nuclei in slides of several sizes.

    python -m benchmarks.measure_slides --sides 10000 20000 40000

A slide is a drawn image of the sample, repeated, in an OME-TIFF file of tiles. The command `predict` runs in a process
of its own. The memory is that of its largest process: the libraries, the network and a block. `--steps` measures the
parts of the work in this process instead: the constants of docs/scale.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from benchmarks import results_file
from benchmarks.measure_memory import MEGABYTE, run_command
from nuclei_utils import blocks, cluster, predict, slides
from nuclei_utils.cli import predict_images
from tools import draw_sample

TILE = 512
NETWORK = predict_images.Network(None, "int8", "")
"""The included network, as the command uses it without a GPU."""


def main() -> None:
    """Measure each size, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000], help="heights and widths, pixels")
    parser.add_argument("--workers", type=int, default=0, help="processes of the command; 0: one, without Dask")
    parser.add_argument("--label-format", choices=("zarr", "tif"), default="zarr")
    parser.add_argument("--steps", action="store_true", help="measure the parts of the work")
    parser.add_argument("--folder", type=Path, help="folder for the slides and results (default: a temporary folder)")
    args = parser.parse_args()
    for side in args.sides:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / "slide.ome.tif"
            write_slide(path, side)
            if args.steps:
                name, run = f"steps, {side} x {side} pixels", measure_steps(path, Path(folder))
            else:
                who = f"{args.workers} workers" if args.workers else "one process"
                name = f"{side} x {side} pixels, {who}, {args.label_format}"
                run = measure(path, Path(folder) / "out", side, args.workers, args.label_format)
        print(*(f"{key}: {value}" for key, value in run.items()), sep="\n")
        results_file.add("slides", name, run)


def write_slide(path: Path, side: int) -> None:
    """Write a grey slide with nuclei, tile by tile."""
    drawn = np.ascontiguousarray(draw_sample.draw("fluorescence_small", size=(TILE, TILE))[0][..., 0])
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        options = {"photometric": "minisblack", "compression": "zlib", "metadata": {"axes": "YX"}}
        file.write(repeat(drawn, side), shape=(side, side), dtype=np.uint8, tile=(TILE, TILE), **options)


def repeat(drawn: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Yield the tiles of a slide."""
    for _ in range((-(-side // TILE)) ** 2):
        yield drawn


def measure(path: Path, out: Path, side: int, workers: int, label_format: str) -> dict:
    """Run the command in a process of its own. Return time, speed and memory."""
    words = ["predict", path, "--out", out, "--slide-pixels", 1_000_000, "--label-format", label_format]
    words += ["--precision", NETWORK.precision]
    words += ["--workers", workers] if workers else []
    seconds, peak = run_command(*words)
    return {
        "side": side,
        "workers": workers,
        "label_format": label_format,
        "precision": NETWORK.precision,
        "block": predict.BLOCK,
        "context": predict.CONTEXT,
        "nuclei": len(pd.read_csv(out / "nuclei.csv", usecols=["label"])),
        "slide_mb": round(path.stat().st_size / MEGABYTE),
        "labels_mb": round(sum(file.stat().st_size for file in out.rglob("*labels*/**/*")) / MEGABYTE),
        "peak_mb": peak,
        "seconds": round(seconds, 1),
        "megapixels_per_second": round(side**2 / 1e6 / seconds, 3),
        "load_average": results_file.load_average(),
    }


def measure_steps(path: Path, folder: Path) -> dict:
    """Measure the parts of the work in this process, seconds for each block."""
    slide = slides.find_slide(path, 0)
    job = slides.Job(slide, folder / "work", partial(predict_images.load, NETWORK), "slide")
    job.folder.mkdir()
    job.load_model()
    numbers = range(len(job.places))
    times = {"survey": timed(job._survey, None)}
    times["read"] = timed(lambda: [read(slide, place) for place in job.places])
    times["find_block"] = timed(lambda: [job.find_block(number) for number in numbers])
    times["settle"] = timed(job._settle)
    slides._label_images.create(job.folder / "labels.zarr", slide.shape, job.block, None)
    times["finish_block"] = timed(lambda: [job.finish_block(number) for number in numbers])
    rows = range(slides._label_images.n_chunk_rows(slide.shape, job.block, level=1))
    times["shrink"] = timed(lambda: [job.shrink((1, row)) for row in rows])
    times["tables"] = timed(lambda: [len(rows) for parts in (job.rows(), job.codes()) for rows in parts])
    run = {"side": slide.shape[0], "precision": NETWORK.precision, "block": job.block, "context": job.context}
    run |= {"blocks": len(numbers), "nuclei": job._settle()}
    run |= {f"{name}_seconds_per_block": round(seconds / len(numbers), 4) for name, seconds in times.items()}
    run["found_bytes_per_block"] = round(sum(job._found(n).stat().st_size for n in numbers) / len(numbers))
    with cluster.connect(workers=1) as client:
        count = 1000
        seconds = timed(lambda: list(cluster.run_tasks(nothing, range(count), client)))
    return run | {"dask_seconds_per_task": round(seconds / count, 5), "load_average": results_file.load_average()}


def timed(function: Callable, *arguments) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def read(slide: slides.Slide, place: blocks.Block) -> np.ndarray:
    """Open a slide and read a block with its context."""
    with slide.open() as planes:
        return planes.read_image(*place.seen)


def nothing(_number: int) -> None:
    """Do nothing, as a task."""


if __name__ == "__main__":
    main()
