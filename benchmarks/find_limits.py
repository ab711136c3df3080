"""Find what limits the score of the included network: its outlines, its separation of nuclei, or new images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.find_limits

The validation images are scored three times: as predicted, with the true separation of the predicted mask, and with the
true mask and the predicted distance. Training images are scored too. All thresholds are those of the package.
"""

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from benchmarks import results_file
from benchmarks.score_included_network import predict_split, score
from nuclei_utils import datasets, deploy, models, segmentation

IMAGES = 20  # training images of each type


def separate_truly(maps: dict[str, np.ndarray], label_map: np.ndarray) -> np.ndarray:
    """Divide the predicted mask among the true nuclei. Components without a true nucleus stay as they are."""
    mask = maps["mask"] > segmentation.PROB_THRESH
    divided = watershed(-maps["distance"], np.where(mask, label_map, 0), mask=mask)
    others = ndimage.label(mask & (divided == 0))[0]
    return np.where(others > 0, others + label_map.max(), divided)


def separate_true_mask(maps: dict[str, np.ndarray], label_map: np.ndarray) -> np.ndarray:
    """Separate the nuclei of the true mask by the predicted distance."""
    return segmentation.watershed_from_distance(np.float32(label_map > 0), maps["distance"])


def some_training_images(seed: int = 0) -> list[datasets.Record]:
    """Draw training images, at most `IMAGES` of each type."""
    records, random = datasets.load(split="train"), np.random.default_rng(seed)
    drawn = []
    for image_type in datasets.IMAGE_TYPES:
        of_type = [record for record in records if record.image_type == image_type]
        numbers = random.choice(len(of_type), min(IMAGES, len(of_type)), replace=False)
        drawn += [of_type[number] for number in sorted(numbers)]
    return drawn


def main() -> None:
    """Score, and write the results."""
    network = deploy.freeze(models.included_network())
    for split, records in {"validation": datasets.load(split="validation"), "training": some_training_images()}.items():
        label_maps, image_types = [r.label_map for r in records], [r.image_type for r in records]
        maps, _ = predict_split(network, records, n_tta=1)
        ways = {"as predicted": lambda maps, _: segmentation.maps_to_labels(maps)}
        if split == "validation":
            ways |= {"true separation": separate_truly, "true mask": separate_true_mask}
        for way, function in ways.items():
            predicted = [function(*pair) for pair in zip(maps, label_maps, strict=True)]
            run = {"split": split, "way": way, "images": len(records)}
            run |= {"scores": score(label_maps, predicted, image_types)}
            results_file.add("limits_stage1_fixed", f"{split} images, {way}", run, data=datasets.current())


if __name__ == "__main__":
    main()
