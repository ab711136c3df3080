"""Continue the training of the included network with one change at a time.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.compare_recipes --seeds 0 1

Each training starts from the included network. It takes as many steps as the others, with as many pixels in a batch.
The weights after the last step are scored on the validation images, with the thresholds of the package. No epoch is
chosen, and the test images are not used.
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

from benchmarks import results_file
from benchmarks.score_included_network import METHOD, predict_split, score, separate
from nuclei_utils import datasets, deploy, labels, models, training
from tools.draw_sample import draw

STEPS, EPOCHS, RATE = 200, 4, 5e-4  # the losses are printed after each epoch; the rate is the peak of the schedule
CROP_SIZE, BATCH_SIZE = 192, 7  # the crops are as large as in the training of the included network
DRAWN = 16  # drawn images of each type
MAX_HIDDEN = 0.25  # fraction of a nucleus that a pasted nucleus may hide

Records = list[datasets.Record]


class Recipe(NamedTuple):
    """Change of the training. The defaults change nothing."""

    border_weight: float = 1.0  # weight of a pixel at a border of a nucleus; other pixels have 1
    add_records: Callable[[Records, int], Records] = lambda records, seed: records


def add_pasted_and_drawn(records: Records, seed: int) -> Records:
    """Add copies with pasted nuclei, and drawn tissue images."""
    return records + paste_in_some(records, seed) + draw_tissue(seed)


def draw_tissue(seed: int) -> Records:
    """Draw tissue images, which are rare among the real images."""
    drawn = []
    for image_type in ("purple_on_white", "purple_on_purple", "grey_tissue"):
        for number in range(DRAWN):
            image, masks = draw(image_type, [seed, number])
            label_map, _ = labels.merge_masks(masks)
            drawn.append(datasets.Record(f"drawn {image_type} {number}", image, label_map, image_type))
    return drawn


def paste_in_some(records: Records, seed: int) -> Records:
    """Copy a third of the images of each type, and paste nuclei beside other nuclei in the copies."""
    random = np.random.default_rng(seed)
    pasted = []
    for image_type in datasets.IMAGE_TYPES:
        of_type = [record for record in records if record.image_type == image_type]
        for number in random.choice(len(of_type), math.ceil(len(of_type) / 3), replace=False):
            pasted.append(paste_nuclei(of_type[number], random))
    return pasted


def paste_nuclei(record: datasets.Record, random: np.random.Generator) -> datasets.Record:
    """Copy an image, and paste turned copies of up to half of its nuclei so that they touch other nuclei."""
    image, label_map = record.image.astype(np.float32), record.label_map.copy()
    boxes, areas = ndimage.find_objects(label_map), np.bincount(label_map.ravel())
    numbers = np.unique(label_map[label_map > 0])
    for source, neighbour in random.choice(numbers, (math.ceil(len(numbers) / 2), 2)) if len(numbers) else ():
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
        hidden = np.bincount(label_map[window][mask], minlength=len(areas))[: len(areas)]
        near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if (hidden[1:] > MAX_HIDDEN * areas[1:]).any() or not label_map[window][near].any():
            continue
        alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)[..., None]
        image[window] += alpha * (patch * random.uniform(0.85, 1.15) - image[window])
        label_map[window][mask] = label_map.max() + 1
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return record._replace(id=f"{record.id} pasted", image=image, label_map=label_map)


RECIPES = {
    "no change": Recipe(),
    "borders weigh four times as much": Recipe(border_weight=4.0),
    "pasted nuclei and drawn tissue": Recipe(add_records=add_pasted_and_drawn),
}


def add_weights(border_weight: float, images: tf.Tensor, targets: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict]:
    """Add the weight of each pixel to each target, as a second channel."""
    weights = 1 + (border_weight - 1) * targets["boundary"]
    return images, {name: tf.concat([target, weights], axis=-1) for name, target in targets.items()}


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


def train(recipe: Recipe, seed: int) -> keras.Model:
    """Continue the training of a copy of the included network."""
    model = keras.models.clone_model(models.included_network())
    model.set_weights(models.included_network().get_weights())
    records = recipe.add_records(datasets.load(split="train"), seed)
    crops, _ = training.batches(
        seed,
        targets="instances",
        records=(records, datasets.load(split="validation")),
        crop_size=CROP_SIZE,
        batch_size=BATCH_SIZE,
    )
    crops = crops.repeat().map(partial(add_weights, recipe.border_weight))
    optimizer = keras.optimizers.Adam(training.warmup_cosine(RATE, STEPS))
    model.compile(optimizer, {"mask": mask_loss, "boundary": mask_loss, "distance": distance_loss})
    keras.utils.set_random_seed(seed)
    model.fit(crops, epochs=EPOCHS, steps_per_epoch=STEPS // EPOCHS, verbose=2)
    return model


def score_validation(model: keras.Model) -> dict:
    """Score a network on the validation images, with the thresholds of the package."""
    records = datasets.load(split="validation")
    maps, _ = predict_split(deploy.freeze(model), records, n_tta=1)
    label_maps, image_types = [r.label_map for r in records], [r.image_type for r in records]
    scores = score(label_maps, separate(METHOD, maps), image_types)
    print(scores["score"], scores["type_mean"], flush=True)
    return {"validation": scores}


def train_and_score(name: str, seed: int) -> dict:
    """Train with a recipe and a seed, and score the network on the validation images."""
    recipe, start, start_cpu = RECIPES[name], time.perf_counter(), time.process_time()
    model = train(recipe, seed)
    return {
        "recipe": name,
        "seed": seed,
        "steps": STEPS,
        "rate": RATE,
        "crop_size": CROP_SIZE,
        "batch_size": BATCH_SIZE,
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time() - start_cpu),
        "cores_used": joblib.cpu_count(),
        **score_validation(model),
    }


def main() -> None:
    """Score the included network, and train and score each recipe with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    data, profile = datasets.current(), training.profile().name
    jobs = {"included network": lambda: score_validation(models.included_network())}
    jobs |= {
        f"{recipe}, seed {seed}": partial(train_and_score, recipe, seed)
        for seed in args.seeds
        for recipe in args.recipes
    }
    results_file.add_missing(f"continued_{data}", jobs, data=data, profile=profile)


if __name__ == "__main__":
    main()
