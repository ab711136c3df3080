"""Continue the training of the included network with one change at a time.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.continue_training --seeds 0 1

Each training starts from the included network, and takes 200 steps of 7 crops of 192 x 192 pixels, or of 16 crops of
128 x 128 pixels. The weights after the last step are scored on the validation images, with the thresholds of the
package. No epoch is chosen, and the test images are not used.

Compare the changes with "no change", not with the included network. The weights of that network are averages over many
steps, and it was chosen on the validation images.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import joblib
import keras
import numpy as np
import tensorflow as tf
from keras import ops
from scipy import ndimage
from skimage.segmentation import clear_border

from benchmarks import results_file
from benchmarks.cross_validate import TISSUE
from benchmarks.score_included_network import score_records
from nuclei_utils import datasets, deploy, input_pipeline, labels, losses, models, training
from tools.draw_sample import draw

STEPS, EPOCHS, RATE = 200, 4, 5e-4  # the losses are printed after each epoch; the rate is the peak of the schedule
MIN_CROPS = 48  # of each image type in an epoch
MAX_HIDDEN = 0.25  # fraction of a nucleus that pasted nuclei may hide

Records = list[datasets.Record]


class Change(NamedTuple):
    """Change of the training. The defaults change nothing."""

    border_weight: float = 1.0  # of a pixel at a border of a nucleus, for mask and distance; other pixels have 1
    change_records: Callable[[Records, int], Records] = lambda records, seed: records
    augmentation: Callable[[int], list[keras.layers.Layer]] = lambda seed: []  # after that of the package
    crop_size: int = 192  # pixels, as in the training of the included network
    batch_size: int = 7


def paste_in_some(records: Records, seed: int) -> Records:
    """Paste nuclei into a third of the images of each type."""
    chosen, random = set(training.some_ids(1 / 3, seed)), np.random.default_rng(seed)
    return [paste_nuclei(record, random) if record.id in chosen else record for record in records]


def paste_nuclei(record: datasets.Record, random: np.random.Generator) -> datasets.Record:
    """Paste rotated copies of nuclei beside other nuclei. The number of copies is half the number of nuclei or less."""
    image, label_map = record.image.astype(np.float32), record.label_map.copy()
    boxes, areas = ndimage.find_objects(label_map), np.bincount(label_map.ravel())
    numbers, whole = np.unique(label_map)[1:], np.unique(clear_border(label_map))[1:]
    for _ in range(math.ceil(len(numbers) / 2) if len(whole) else 0):
        source, neighbour = random.choice(whole), random.choice(numbers)
        rows, columns = boxes[source - 1]
        mask, patch = record.label_map[rows, columns] == source, record.image[rows, columns]
        turns = random.integers(4)
        mask, patch = np.rot90(mask, turns), np.rot90(patch, turns)
        step = random.uniform(0.8, 1.05) * (np.sqrt(areas[source] / np.pi) + np.sqrt(areas[neighbour] / np.pi))
        angle, center = random.uniform(0, 2 * np.pi), [(side.start + side.stop) / 2 for side in boxes[neighbour - 1]]
        top = round(center[0] - mask.shape[0] / 2 + step * np.sin(angle))
        left = round(center[1] - mask.shape[1] / 2 + step * np.cos(angle))
        window = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        if top < 0 or left < 0 or label_map[window].shape != mask.shape:
            continue
        visible = np.bincount(label_map.ravel(), minlength=len(areas))
        visible -= np.bincount(label_map[window][mask], minlength=len(areas))
        near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if (visible < (1 - MAX_HIDDEN) * areas)[1:].any() or not label_map[window][near].any():
            continue
        alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)[..., None]
        image[window] += alpha * (patch * random.uniform(0.85, 1.15) - image[window])
        label_map[window][mask] = len(areas)
        areas = np.append(areas, mask.sum())
    return record._replace(image=np.clip(np.round(image), 0, 255).astype(np.uint8), label_map=label_map)


def draw_tissue(records: Records, seed: int) -> Records:
    """Add drawn tissue images, as many as the repeats of the real ones, so that the number of crops stays equal."""
    drawn = []
    for image_type in TISSUE:
        count = sum(record.image_type == image_type for record in records)
        for number in range(count * (math.ceil(MIN_CROPS / count) - 1)):
            image, masks = draw(image_type, [seed, number])
            drawn.append(datasets.Record(f"drawn {number}", image, labels.merge_masks(masks)[0], image_type))
    return records + drawn


def colours_and_blur(seed: int) -> list[keras.layers.Layer]:
    """Return layers that change hue, saturation, contrast and brightness, and blur images."""
    return [
        keras.layers.RandomColorJitter((0, 1), 0.15, 0.4, (0.3, 0.7), 0.2, seed=seed),
        keras.layers.RandomGaussianBlur(0.5, kernel_size=7, sigma=(0.5, 2.0), value_range=(0, 1), seed=seed),
    ]


CHANGES = {
    "no change": Change(),
    "borders weigh four times as much": Change(border_weight=4.0),
    "pasted nuclei and drawn tissue": Change(
        change_records=lambda records, seed: draw_tissue(paste_in_some(records, seed), seed)
    ),
    "stronger colours and blur": Change(augmentation=colours_and_blur),
    "crops of 128 pixels": Change(crop_size=128, batch_size=16),
}


def add_weights(border_weight: float, images: tf.Tensor, targets: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict]:
    """Append the weight of each pixel to the targets of mask and distance."""
    weights = 1 + (border_weight - 1) * targets["boundary"]
    weighted = {name: tf.concat([targets[name], weights], axis=-1) for name in ("mask", "distance")}
    return images, targets | weighted


def weighted_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return the mean of the values of pixels (batch, H, W) with weights (batch, H, W, 1)."""
    return ops.sum(values * weights[..., 0]) / ops.sum(weights)


def mask_loss(targets: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    """Return cross-entropy, in which each pixel has its weight, + Dice loss."""
    masks, weights = ops.split(targets, 2, axis=-1)
    cross_entropy = weighted_mean(keras.losses.binary_crossentropy(masks, predicted), weights)
    return cross_entropy + keras.losses.dice(masks, predicted)


def distance_loss(targets: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    """Return the mean absolute error, in which each pixel has its weight."""
    distances, weights = ops.split(targets, 2, axis=-1)
    return weighted_mean(keras.losses.mean_absolute_error(distances, predicted), weights)


def train(change: Change, seed: int) -> keras.Model:
    """Continue the training of a copy of the included network."""
    keras.utils.set_random_seed(seed)
    network = models.included_network()
    model, trained = (keras.models.clone_model(network) for _ in range(2))  # Keras cannot copy the losses below
    model.set_weights(network.get_weights())
    records = change.change_records(datasets.load(split="train"), seed)
    crops = input_pipeline.training_batches(
        input_pipeline.from_records(records), change.crop_size, change.batch_size, "all", seed, MIN_CROPS, "instances"
    )
    for layer in change.augmentation(seed):
        crops = crops.map(lambda images, targets, layer=layer: (layer(images, training=True), targets))
    crops = crops.repeat().map(partial(add_weights, change.border_weight))
    loss = {"mask": mask_loss, "boundary": losses.BinaryCrossentropyDice(), "distance": distance_loss}
    model.compile(keras.optimizers.Adam(training.warmup_cosine(RATE, STEPS)), loss)
    model.fit(crops, epochs=EPOCHS, steps_per_epoch=STEPS // EPOCHS, shuffle=False, verbose=2)
    trained.set_weights(model.get_weights())
    return trained


def score_validation(model: keras.Model) -> dict:
    """Score a network on the validation images."""
    scores = score_records(deploy.freeze(model), datasets.load(split="validation"))
    print(scores["score"], scores["type_mean"], flush=True)
    return {"validation": scores}


def train_and_score(name: str, seed: int) -> dict:
    """Train with a change and a seed, and score the network on the validation images."""
    start, start_cpu = time.perf_counter(), time.process_time()
    model = train(CHANGES[name], seed)
    return {
        "change": name,
        "seed": seed,
        "steps": STEPS,
        "rate": RATE,
        "crop_size": CHANGES[name].crop_size,
        "batch_size": CHANGES[name].batch_size,
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time() - start_cpu),
        "cores_used": joblib.cpu_count(),
        **score_validation(model),
    }


def main() -> None:
    """Score the included network, and train and score with each change and each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    data = datasets.current()
    jobs = {"included network": lambda: score_validation(models.included_network())}
    jobs |= {
        f"{change}, seed {seed}": partial(train_and_score, change, seed)
        for seed in args.seeds
        for change in args.changes
    }
    results_file.add_missing(f"continued_{data}", jobs, data=data)


if __name__ == "__main__":
    main()
