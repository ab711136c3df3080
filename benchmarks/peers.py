"""Train StarDist and Cellpose on grey images, and load what was trained.

Both need packages that are no dependencies of the course: `make peers` installs them. Networks, augmentation and
training follow the examples of the two programs. A training ends after a given processor time.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from nuclei_utils import matching, preprocess

Predict = Callable[[np.ndarray], np.ndarray]
"""Function from an RGB image, whose three channels are equal, to a label map, int32 (H, W)."""
Side = tuple[list[np.ndarray], list[np.ndarray]]
"""RGB images of a split, and their label maps."""


def packages() -> dict[str, str]:
    """Return the versions of the programs."""
    return {name: version(name) for name in ("stardist", "tf_keras", "cellpose", "torch")}


def run_folder(program: str, seed: int) -> Path:
    """Return the folder of a trained program."""
    return Path("runs") / "benchmark" / f"{program.lower()}_seed{seed}"


def grey_image(image: np.ndarray) -> np.ndarray:
    """Return a normalised grey image, float32 (H, W)."""
    return preprocess.normalize(image).mean(axis=-1)


# StarDist


def train_stardist(folder: Path, train: Side, validation: Side, seed: int, cpu_seconds: float) -> dict:
    """Train StarDist as its example notebook does (github.com/stardist/stardist, examples/2D).

    32 rays, grid (2, 2), batches of 4 crops of 256 pixels, 100 steps an epoch. The learning rate is halved after 4
    epochs without progress instead of 40, because there are about a tenth as many epochs. StarDist's own function
    chooses the thresholds on the validation images.
    """
    from csbdeep.utils.tf import keras_import
    from stardist.models import Config2D, StarDist2D

    class EndAfter(keras_import("callbacks", "Callback")):
        """End the training after the epoch in which the processor time is over."""

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = time.process_time() > end

    keras_import("utils", "set_random_seed")(seed)  # StarDist's own seed does not reach the first weights
    sides = {"train": train, "validation": validation}
    images = {split: list(map(grey_image, side[0])) for split, side in sides.items()}
    reduction = {"factor": 0.5, "patience": 4, "min_delta": 0}
    config = Config2D(n_rays=32, grid=(2, 2), train_epochs=400, train_steps_per_epoch=100, train_reduce_lr=reduction)
    model = StarDist2D(config, name=folder.name, basedir=str(folder.parent))
    end = time.process_time() + cpu_seconds
    model.prepare_for_training()
    model.callbacks.append(EndAfter())
    history = model.train(
        images["train"],
        train[1],
        validation_data=(images["validation"], validation[1]),
        augmenter=partial(_augment, random=np.random.default_rng(seed)),
        seed=seed,
    )
    used = time.process_time() - end + cpu_seconds
    thresholds = model.optimize_thresholds(images["validation"], validation[1])
    return {
        "epochs": len(history.epoch),
        "cpu_seconds": round(used),
        "thresholds": {name: float(value) for name, value in thresholds.items()},
    }


def _augment(image, label_map, random):
    """Flip and turn a crop, and change its intensity."""
    turns, is_flipped = random.integers(4), random.integers(2)
    image, label_map = (np.rot90(array, turns) for array in (image, label_map))
    if is_flipped:
        image, label_map = image[::-1], label_map[::-1]
    image = image * random.uniform(0.6, 2) + random.uniform(-0.2, 0.2)
    return image + random.normal(0, 0.02 * random.uniform(), image.shape), label_map


def load_stardist(folder: Path) -> tuple[Predict, int]:
    """Load a trained StarDist with its thresholds; return its prediction and its number of parameters."""
    from stardist.models import StarDist2D

    model = StarDist2D(None, name=folder.name, basedir=str(folder.parent))

    def predict(image):
        return model.predict_instances(grey_image(image))[0].astype(np.int32)

    return predict, model.keras_model.count_params()


# Cellpose

DIAMETER = 17
"""Diameter of nuclei for which Cellpose is made, pixels. Images of this diameter keep their size."""
CELLPROB_THRESHOLDS = (-1, 0, 1)
THRESHOLD_FILE = "thresholds.json"


def train_cellpose(folder: Path, train: Side, validation: Side, seed: int, cpu_seconds: float) -> dict:
    """Train Cellpose 3 from random weights, much as its documentation does.

    SGD with a rate of 0.1 and a weight decay of 0.0001, and batches of 8 crops of 224 pixels
    (cellpose.readthedocs.io/en/v3.1.1.1/train.html). Two things differ. Images keep their size, as for the other two
    programs: Cellpose would resize each image to one diameter of its nuclei. An epoch is one batch, so that the
    schedule of the learning rate fits into the time: it ends with small rates only after more than 100 epochs. A short
    training measures how many epochs fit. `cellprob_threshold` is chosen on the validation images. The seed changes the
    first weights: Cellpose draws the same batches for every seed.
    """
    import torch
    from cellpose.models import CellposeModel
    from cellpose.train import train_seg

    def run(epochs):
        torch.manual_seed(seed)
        model = CellposeModel(pretrained_model=False, diam_mean=DIAMETER)
        start = time.process_time()
        _, losses, _ = train_seg(
            model.net,
            list(map(grey_image, train[0])),
            train[1],
            channels=[0, 0],
            rescale=False,
            scale_range=0.5,
            SGD=True,
            learning_rate=0.1,
            weight_decay=1e-4,
            n_epochs=epochs,
            nimg_per_epoch=8,
            min_train_masks=1,
            save_path=folder,
            model_name="network",
        )
        return losses, time.process_time() - start

    folder.mkdir(parents=True, exist_ok=True)
    (_, short), (_, long) = run(1), run(6)  # the images are prepared once, however many epochs follow
    epochs = 1 + int((cpu_seconds - short) / (long - short) * 5)
    losses, used = run(epochs)
    scores = {}
    for threshold in CELLPROB_THRESHOLDS:
        thresholds = {"cellprob_threshold": threshold}
        (folder / THRESHOLD_FILE).write_text(json.dumps(thresholds), encoding="utf-8")
        predicted = list(map(load_cellpose(folder)[0], validation[0]))
        scores[threshold] = float(matching.average_precision(validation[1], predicted)["ap"].mean())
    thresholds = {"cellprob_threshold": max(scores, key=scores.get)}
    (folder / THRESHOLD_FILE).write_text(json.dumps(thresholds), encoding="utf-8")
    return {
        "epochs": epochs,
        "cpu_seconds": round(used),
        "last_losses": [round(float(loss), 3) for loss in losses[-5:]],
        "thresholds": thresholds,
        "validation_scores": scores,
    }


def load_cellpose(folder: Path) -> tuple[Predict, int]:
    """Load a trained Cellpose with its threshold; return its prediction and its number of parameters."""
    from cellpose.models import CellposeModel

    model = CellposeModel(pretrained_model=str(folder / "models" / "network"))
    options = json.loads((folder / THRESHOLD_FILE).read_text(encoding="utf-8"))

    def predict(image):
        return model.eval(grey_image(image), channels=[0, 0], diameter=DIAMETER, **options)[0].astype(np.int32)

    return predict, sum(values.numel() for values in model.net.parameters())


PEERS = {"StarDist": (train_stardist, load_stardist), "Cellpose": (train_cellpose, load_cellpose)}
"""Functions that train each program and load the result."""
