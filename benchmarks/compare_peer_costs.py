"""Compare the speed and the memory of our network, StarDist and Cellpose: `make peers`.

Each program is measured in a process of its own. The images are the 50 test images of StarDist's subset, and one drawn
image of 2,048 x 2,048 pixels. The network and its weights are loaded before the time starts, and one image of each size
is predicted once before.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks import peers, results_file

SIDE = 2048
"""Height and width of the drawn image, pixels."""
ROUNDS, ENOUGH = 3, 60
"""Number of timed predictions of each image, and the seconds after which no further round starts."""


def load_ours() -> tuple[Callable, int]:
    """Return the prediction of the included network and its number of parameters."""
    from nuclei_utils import models, predict

    network = models.included_network()
    return partial(predict.predict_labels, network), network.count_params()


def test_images() -> dict[str, list[np.ndarray]]:
    """Return the images to measure with."""
    from benchmarks.measure_memory import large_image
    from benchmarks.train_on_stardist_subset import load_subset

    return {"test images": [record.image for record in load_subset()["test"]], "large": [large_image(SIDE)]}


def measure(load: Callable, images: dict[str, list[np.ndarray]]) -> dict:
    """Measure the megapixels per second and the peak memory of this process."""
    from benchmarks.measure_memory import peak_memory

    predict, parameters = load()
    costs = {"parameters": parameters, "rounds": {}, "megapixels_per_second": {}, "peak_mb": {}}
    for kind, side in images.items():
        for image in {image.shape: image for image in side}.values():  # each size is set up once
            predict(image)
        pixels, seconds = sum(image.shape[0] * image.shape[1] for image in side), []
        while len(seconds) < ROUNDS and sum(seconds) < ENOUGH:
            start = time.perf_counter()
            for image in side:
                predict(image)
            seconds.append(time.perf_counter() - start)
        costs["rounds"][kind] = len(seconds)
        costs["megapixels_per_second"][kind] = round(pixels / 1e6 / float(np.median(seconds)), 3)
        costs["peak_mb"][kind] = peak_memory()
    return costs


def in_new_process(function: Callable, *arguments):
    """Call a function in a process of its own, so that its memory is not that of another program."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Measure all programs, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the trained programs")
    args = parser.parse_args()
    loaders = {"ours": load_ours}
    for program, (_, load) in peers.PEERS.items():
        loaders[program] = partial(load, peers.run_folder(program, args.seed))
    images, load_average = in_new_process(test_images), results_file.load_average()
    costs = {program: in_new_process(measure, load, images) for program, load in loaders.items()}
    run = {"packages": peers.packages(), "load_average_before": load_average, **costs}
    results_file.add("peer_costs", "costs", run, data="stage1")


if __name__ == "__main__":
    main()
