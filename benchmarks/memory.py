"""How much memory and time does a large image take? Finds the nuclei of one of 10,000 x 10,000 pixels.

    python -m benchmarks.memory

The image is drawn as those of the sample are, once, and repeated. The figures are those of a process of its own,
TensorFlow, the image and the label map included.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from benchmarks import results
from nuclei_utils import predict
from tools import draw_sample

MEGABYTE = 10**6


def main():
    """Measure in a child process, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=10_000, help="height and width of the image, pixels")
    parser.add_argument("--tile", type=int, help="height and width of a tile, pixels")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments.side, arguments.tile)
        return
    # a process knows its peak only since it began: a fresh one has nothing else in it
    command = [sys.executable, "-m", "benchmarks.memory", "--child", *sys.argv[1:]]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(child.stdout.splitlines()[-1])
    print(*(f"{name}: {value}" for name, value in figures.items()), sep="\n")
    print(f"wrote {results.write('memory', figures)}")


def measure(side, tile):
    """Find the nuclei of a large image, and print the figures as JSON."""
    one = draw_sample.draw("fluorescence_small", size=(512, 512))[0]
    image = np.empty((side, side, 3), np.uint8)
    for top in range(0, side, len(one)):
        for left in range(0, side, len(one)):
            part = image[top : top + len(one), left : left + len(one)]
            part[:] = one[: part.shape[0], : part.shape[1]]
    model = predict.default_model()
    before, start = peak(), time.perf_counter()
    found = predict.predict_labels(model, image, progress=True, **({"tile": tile} if tile else {}))
    seconds = time.perf_counter() - start
    figures = {
        "side": side,
        "tile": tile or predict.TILE,
        "overlap": predict.OVERLAP,
        "block": predict.BLOCK,
        "margin": predict.CONTEXT,
        "nuclei": int(found.max()),
        "peak_mb": peak(),
        "before_prediction_mb": before,  # Python, TensorFlow, the network and the image
        "image_mb": round(image.nbytes / MEGABYTE),
        "labels_mb": round(found.nbytes / MEGABYTE),
        "seconds": round(seconds, 1),
        "megapixels_per_second": round(side**2 / 1e6 / seconds, 3),
    }
    print(json.dumps(figures))


def peak():
    """Return the most memory that this process has had so far, megabytes (10**6 bytes)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * (1 if sys.platform == "darwin" else 1024) / MEGABYTE)  # macOS counts bytes, Linux kilobytes


if __name__ == "__main__":
    main()
