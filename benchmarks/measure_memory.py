"""Measure the memory and time to find the nuclei in an image of 10,000 x 10,000 pixels.

    python -m benchmarks.measure_memory

The image is a drawn image of the sample, repeated. The memory is that of the whole process: TensorFlow, the network,
the image and the label map.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

from benchmarks import results_file
from nuclei_utils import models, predict
from tools import draw_sample

MEGABYTE = 10**6


def main() -> None:
    """Measure in a new process, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=10_000, help="height and width of the image, pixels")
    parser.add_argument("--block", type=int, default=predict.BLOCK, help="height and width of a block, pixels")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args.side, args.block)
        return
    # The peak memory of a process includes everything since its start, so the measurement needs a process of its own.
    command = [sys.executable, "-m", "benchmarks.measure_memory", "--child", *sys.argv[1:]]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    run = json.loads(child.stdout.splitlines()[-1])
    print(*(f"{name}: {value}" for name, value in run.items()), sep="\n")
    results_file.add("memory", f"{args.side} x {args.side} pixels", run)


def large_image(side: int) -> np.ndarray:
    """Return a drawn image of the sample, repeated up to a height and width in pixels."""
    drawn = draw_sample.draw("fluorescence_small", size=(512, 512))[0]
    index = np.arange(side) % len(drawn)
    return drawn[np.ix_(index, index)]


def measure(side: int, block: int) -> None:
    """Find the nuclei of a large image, and print the results as JSON."""
    image = large_image(side)
    model = models.included_network()
    before, start = peak_memory(), time.perf_counter()
    label_map = predict.predict_labels(model, image, progress=True, block=block)
    seconds = time.perf_counter() - start
    run = {
        "side": side,
        "block": block,
        "context": predict.CONTEXT,
        "nuclei": int(label_map.max()),
        "peak_mb": peak_memory(),
        "before_prediction_mb": before,  # Python, TensorFlow, the network and the image
        "image_mb": round(image.nbytes / MEGABYTE),
        "label_map_mb": round(label_map.nbytes / MEGABYTE),
        "seconds": round(seconds, 1),
        "megapixels_per_second": round(side**2 / 1e6 / seconds, 3),
    }
    print(json.dumps(run))


def peak_memory(usage=None) -> int:
    """Return the peak memory of this process, or that in a `struct_rusage`, megabytes (10**6 bytes)."""
    import resource  # Windows has no such module

    peak = (usage or resource.getrusage(resource.RUSAGE_SELF)).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / MEGABYTE)  # bytes on macOS, kilobytes on Linux


def run_command(*words) -> tuple[float, int]:
    """Run `python -m nuclei_utils`; the results are those of `run_program`."""
    return run_program(sys.executable, "-m", "nuclei_utils", *words)


def run_program(program: str | os.PathLike, *words) -> tuple[float, int]:
    """Run a program in a process of its own.

    Returns
    -------
    seconds : float
    peak : int
        Peak memory of the process, or of its largest child, megabytes.
    """
    start = time.perf_counter()
    child = os.spawnv(os.P_NOWAIT, program, [str(program), *map(str, words)])
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{program} failed, see its message above")
    return time.perf_counter() - start, peak_memory(usage)


if __name__ == "__main__":
    main()
