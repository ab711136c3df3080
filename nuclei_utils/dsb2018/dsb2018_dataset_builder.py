"""TFDS builder `dsb2018`: `tfds.load("dsb2018/sample")`, "dsb2018/stage1" or "dsb2018/stage1_fixed"."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from nuclei_utils import datasets

_DESCRIPTIONS = {
    "sample": "Forty small drawn images, which come with the package.",
    "stage1": "Stage-1 training images with the original masks.",
    "stage1_fixed": "Stage-1 training images with the corrected masks of the community.",
}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Adapter of `datasets.load` for TFDS: microscopy images with label maps of the nuclei."""

    # TFDS keeps prepared data. Other images, label maps or splits therefore need a new version.
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {"2.0.0": "Features `label_map` and `image_type` in place of `labels` and `kind`."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name, description=description) for name, description in _DESCRIPTIONS.items()
    ]

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label_map": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
            "id": tfds.features.Text(),
            "image_type": tfds.features.ClassLabel(names=datasets.IMAGE_TYPES),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label_map"),
            homepage="https://bbbc.broadinstitute.org/BBBC038",
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in datasets.SPLITS}

    def _generate_examples(self, split):
        for record in datasets.load(self.builder_config.name, split):
            label_map = record.label_map.astype(np.uint16)[..., None]
            yield record.id, record._asdict() | {"label_map": label_map}
