"""Train the included network further with several recipes, and compare them on validation images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.compare_recipes --recipes before "paste and optics" --seeds 0 1

All trainings start from the included network and have the same number of steps. They differ in the augmentation.
Validation images choose the thresholds. The score is the mean over image types, each type counting the same.
"""

import argparse
from functools import partial
from pathlib import Path
from unittest import mock

import keras

from benchmarks import results_file
from benchmarks.score_included_network import METHOD, predict_split, score, separate, tune
from benchmarks.train_included_network import MIN_CROPS
from benchmarks.train_networks import timed
from nuclei_utils import _instance_crops, datasets, models, training

EPOCHS = 8
RECIPES = {  # values of the constants in `nuclei_utils._instance_crops`
    "before": {"PASTE": 0, "OPTICS": 0},
    "paste": {"PASTE": 0.3, "OPTICS": 0},
    "optics": {"PASTE": 0, "OPTICS": 0.15},
    "paste and optics": {"PASTE": 0.3, "OPTICS": 0.15},
}


def score_validation(model: keras.Model) -> dict:
    """Choose the thresholds on the validation images, and score these images."""
    records = datasets.load(split="validation")
    label_maps, image_types = [r.label_map for r in records], [r.image_type for r in records]
    maps, _ = predict_split(model, records, n_tta=1)
    options, _ = tune(METHOD, maps, label_maps, image_types)
    return {"thresholds": options, **score(label_maps, separate(METHOD, maps, **options), image_types)}


def train_and_score(recipe: str, seed: int, epochs: int) -> dict:
    """Train with one recipe and seed, and score the validation images."""
    folder = Path("runs") / "benchmark" / f"recipe_{recipe.replace(' ', '_')}_{epochs}_seed{seed}"
    keras.utils.set_random_seed(seed)
    model = models.instance_unet(weights=None, fixed_statistics=True)
    model.set_weights(models.included_network().get_weights())
    crops, validation = training.batches(seed, targets="instances", min_crops=MIN_CROPS)
    training.compile_model(model, epochs * len(crops))
    with mock.patch.multiple(_instance_crops, **RECIPES[recipe]):
        times = timed(folder, lambda: training.fit(model, crops, validation, folder, epochs, epochs, verbose=2))
    history = training.read_history(folder)
    return {
        "recipe": RECIPES[recipe],
        "seed": seed,
        "epochs": epochs,
        "steps": epochs * len(crops),
        **times,
        "validation": score_validation(model),
        "history": history.round(4).to_dict("list"),
    }


def main() -> None:
    """Train with each recipe and seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    jobs = {
        f"{recipe}, seed {seed}": partial(train_and_score, recipe, seed, args.epochs)
        for seed in args.seeds
        for recipe in args.recipes
    }
    untrained = {"included network": lambda: {"validation": score_validation(models.included_network())}}
    results_file.add_missing(f"recipes_{datasets.current()}", untrained | jobs, data=datasets.current())


if __name__ == "__main__":
    main()
