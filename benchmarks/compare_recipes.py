"""Compare recipes of the augmentation for the network that comes with the package.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.compare_recipes --recipes before stain --seeds 0
    NUCLEI_DATA=stage1_fixed python -m benchmarks.compare_recipes --leave-out purple_on_white --seeds 0

Without `--leave-out`, the trainings start from the included network. The scores are those of the validation images,
with thresholds that were chosen on these images.

With `--leave-out`, the trainings start from ImageNet's weights and see no image of one type. The scores of this type
say how a recipe serves images that are unlike the training images. The thresholds are those of the package.
"""

import argparse
from functools import partial
from pathlib import Path
from unittest import mock

import keras
import numpy as np

from benchmarks import results_file
from benchmarks.score_included_network import METHOD, predict_split, score, separate, tune
from benchmarks.train_included_network import MIN_CROPS
from benchmarks.train_networks import timed
from nuclei_utils import _instance_crops, datasets, models, segmentation, training
from tools import draw_sample

EPOCHS = {"included": 8, "imagenet": 22}
LEARNING_RATES = {"included": 5e-4, "imagenet": 1e-3}
LARGEST = 700_000  # pixels of an image that was left out of the training; a few larger ones would take most of the time
RECIPES = {  # values of the constants in `nuclei_utils._instance_crops`, and number of drawn images of each rare type
    "before": {"PASTE": 0, "OPTICS": 0, "STAIN": 0, "drawn": 0},
    "stain": {"PASTE": 0, "OPTICS": 0, "STAIN": 0.5, "drawn": 0},
    "paste and optics": {"PASTE": 0.3, "OPTICS": 0.15, "STAIN": 0, "drawn": 0},
    "stain, paste and optics": {"PASTE": 0.3, "OPTICS": 0.15, "STAIN": 0.5, "drawn": 0},
    "stain, drawn images": {"PASTE": 0, "OPTICS": 0, "STAIN": 0.5, "drawn": 20},
}
DRAWN_TYPES = ("purple_on_white", "purple_on_purple", "grey_tissue")


def draw_records(count: int) -> list[datasets.Record]:
    """Draw images of the rare types, unlike those of the sample."""
    records = []
    for image_type in DRAWN_TYPES:
        for number in range(count):
            image, masks = draw_sample.draw(image_type, (7, number))
            label_map = np.zeros(image.shape[:2], np.int32)
            for label, mask in enumerate(masks, start=1):
                label_map[mask] = label
            records.append(datasets.Record(f"drawn_{image_type}_{number}", image, label_map, image_type))
    return records


def score_records(model: keras.Model, records: list[datasets.Record], is_tuned: bool) -> dict:
    """Score images, with the thresholds of the package or with those that are best for these images."""
    label_maps, image_types = [r.label_map for r in records], [r.image_type for r in records]
    maps, _ = predict_split(model, records, n_tta=1)
    options = {"prob_thresh": segmentation.PROB_THRESH, "min_prominence": segmentation.MIN_PROMINENCE}
    options["min_size"] = segmentation.MIN_SIZE
    if is_tuned:
        options, _ = tune(METHOD, maps, label_maps, image_types)
    return {"thresholds": options, **score(label_maps, separate(METHOD, maps, **options), image_types)}


def train_and_score(recipe: str, seed: int, left_out: str | None) -> dict:
    """Train with one recipe and seed, and score."""
    start = "imagenet" if left_out else "included"
    epochs, name = EPOCHS[start], f"recipe {recipe}, {left_out or 'all'}, {EPOCHS[start]}, seed {seed}"
    folder = Path("runs") / "benchmark" / name.replace(",", "").replace(" ", "_")
    splits = {split: datasets.load(split=split) for split in ("train", "validation")}
    sides = [[r for r in records if r.image_type != left_out] for records in splits.values()]
    options = dict(RECIPES[recipe])
    sides[0] = sides[0] + draw_records(options.pop("drawn"))
    keras.utils.set_random_seed(seed)
    model = models.instance_unet(weights="imagenet" if left_out else None, fixed_statistics=True)
    if not left_out:
        model.set_weights(models.included_network().get_weights())
    crops, validation = training.batches(seed, targets="instances", records=sides, min_crops=MIN_CROPS)
    training.compile_model(model, epochs * len(crops), LEARNING_RATES[start])
    with mock.patch.multiple(_instance_crops, **options):
        times = timed(folder, lambda: training.fit(model, crops, validation, folder, epochs, epochs, verbose=2))
    history = training.read_history(folder)
    run = {
        "recipe": RECIPES[recipe],
        "start": start,
        "left_out": left_out,
        "seed": seed,
        "steps": epochs * len(crops),
        **times,
        "validation": score_records(model, sides[1], is_tuned=left_out is None),
    }
    if left_out:
        both = [r for records in splits.values() for r in records if r.image_type == left_out]
        kept = [r for r in both if r.label_map.size <= LARGEST]
        run |= {"left_out_images": len(kept), "left_out_scores": score_records(model, kept, is_tuned=False)}
    return run | {"history": history.round(4).to_dict("list")}


def main() -> None:
    """Train with each recipe and seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--leave-out", choices=datasets.IMAGE_TYPES, help="image type that the training does not see")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    where = f", without {args.leave_out}" if args.leave_out else ""
    jobs = {
        f"{recipe}{where}, seed {seed}": partial(train_and_score, recipe, seed, args.leave_out)
        for seed in args.seeds
        for recipe in args.recipes
    }
    results_file.add_missing(f"recipes_{datasets.current()}", jobs, data=datasets.current())


if __name__ == "__main__":
    main()
