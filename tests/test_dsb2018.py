"""Tests of the TFDS builder: the tests of TFDS on small data, and `tfds.load`."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nuclei_utils import datasets
from nuclei_utils.errors import NucleiError

try:
    import tensorflow_datasets as tfds

    from nuclei_utils import dsb2018
except (ImportError, AttributeError):  # Colab in 2026 has a version of protobuf that TFDS cannot use
    pytest.skip("TensorFlow Datasets cannot be imported", allow_module_level=True)

COUNTS = {"train": 3, "validation": 2, "test": 1}


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_mask(path, left, side, shape):
    mask = np.zeros(shape, np.uint8)
    mask[2 : 2 + side, left : left + side] = 255
    save(mask, path)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Write six images with two nuclei each. The corrections change id-1 and remove id-0, both of train."""
    home = tmp_path_factory.mktemp("home")
    train, fixes = home / "dsb2018" / "stage1_train", home / "dsb2018" / "stage1_train_fixes"
    rows = []
    for number, split in enumerate(split for split, count in COUNTS.items() for _ in range(count)):
        image_id, shape = f"id-{number}", (20 + number, 30)
        rows.append({"id": image_id, "image_type": datasets.IMAGE_TYPES[2], "group": image_id, "split": split})
        save(np.full((*shape, 3), number, np.uint8), train / image_id / "images" / f"{image_id}.png")
        save_mask(train / image_id / "masks" / "0.png", 2, 5, shape)
        save_mask(train / image_id / "masks" / "1.png", 12, 6, shape)
    save_mask(fixes / "id-1" / "masks" / "0.png", 2, 4, (21, 30))
    (fixes / "REMOVED.txt").write_text("id-0\n")
    with zipfile.ZipFile(home / "sample.zip", "w") as archive:
        for path in sorted(train.rglob("*.png")):
            archive.write(path, path.relative_to(train))
    (home / "splits").mkdir()
    for name in ("sample", "stage1_train"):
        pd.DataFrame(rows).to_csv(home / "splits" / f"{name}.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUCLEI_HOME", str(home))
        patch.setattr(datasets, "asset", lambda name: home / name)
        yield home


class BuilderTests(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = dsb2018.Builder
    SPLITS = COUNTS
    EXAMPLE_DIR = Path(__file__).parent  # nothing is downloaded


class TestOriginalMasks(BuilderTests):
    BUILDER_CONFIG_NAMES_TO_TEST = ("sample", "stage1")


class TestCorrectedMasks(BuilderTests):
    BUILDER_CONFIG_NAMES_TO_TEST = ("stage1_fixed",)
    SPLITS = COUNTS | {"train": 2}


del BuilderTests  # pytest would run the base class


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_examples_are_the_records(name, tmp_path):
    for split in datasets.SPLITS:
        examples = tfds.as_numpy(tfds.load(f"dsb2018/{name}", split=split, data_dir=tmp_path))
        examples = {example["id"].decode(): example for example in examples}
        records = datasets.load(name, split)
        assert sorted(examples) == [record.id for record in records]
        for record in records:
            example = examples[record.id]
            assert np.array_equal(example["image"], record.image)
            assert np.array_equal(example["label_map"][..., 0], record.label_map)
            assert datasets.IMAGE_TYPES[example["image_type"]] == record.image_type


def test_missing_real_data_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path / "home"))
    with pytest.raises(NucleiError, match="python -m nuclei_utils data"):
        tfds.load("dsb2018/stage1", data_dir=tmp_path)


def test_description_names_citation_and_home_page():
    info = dsb2018.Builder(config="sample", data_dir=tempfile.gettempdir()).info
    assert "2018 Data Science Bowl" in info.description
    assert "10.1038/s41592-019-0612-7" in info.citation
    assert info.homepage == "https://bbbc.broadinstitute.org/BBBC038"


def test_import_of_the_package_registers_the_builder(tmp_path):
    code = (
        "import tensorflow_datasets as tfds, nuclei_utils.dsb2018\n"
        "train, info = tfds.load('dsb2018/sample', split='train', with_info=True)\n"
        "print('\\nimages:', len(train), info.full_name)"
    )
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "tfds"), "NUCLEI_HOME": str(tmp_path)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "images: 26 dsb2018/sample/2.0.0" in process.stdout, process.stderr
