"""The TFDS builder `dsb2018`: `tfds.load("dsb2018/sample")`, "dsb2018/stage1" or "dsb2018/stage1_fixed"."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from nuclei_utils import datasets

_DESCRIPTIONS = {
    "sample": "Forty small images drawn by tools.draw_sample; comes with the package.",
    "stage1": "The stage-1 training images with their original labels.",
    "stage1_fixed": "The stage-1 training images with the community's corrected labels.",
}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Microscope images with a label map of their nuclei, in the splits of `data/splits`."""

    # a new sample, a new split or another reading of the labels is a new version: TFDS keeps what it prepared before
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name, description=description) for name, description in _DESCRIPTIONS.items()
    ]

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label_map": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
                    "id": tfds.features.Text(),
                    "image_type": tfds.features.ClassLabel(names=datasets.IMAGE_TYPES),
                }
            ),
            supervised_keys=("image", "labels"),
            homepage="https://bbbc.broadinstitute.org/BBBC038",
        )

    def _split_generators(self, dl_manager):
        # the images come from where `python -m nuclei_utils data` has put them, read as everywhere in the course
        return {split: self._generate_examples(split) for split in datasets.SPLITS}

    def _generate_examples(self, split):
        for record in datasets.load(self.builder_config.name, split):
            yield (
                record.id,
                {
                    "image": record.image,
                    "label_map": record.label_map.astype(np.uint16)[..., None],
                    "id": record.id,
                    "image_type": record.image_type,
                },
            )
