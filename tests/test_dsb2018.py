"""The TFDS builder: TFDS' own tests, over dummy data drawn here, and `tfds.load` as a newcomer calls it."""

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nuclei_utils import datasets, input_pipeline
from nuclei_utils.errors import NucleiError

tfds = input_pipeline._tensorflow_datasets()
if tfds is None:  # as on Colab in the summer of 2026: test_pipeline.py tests the reading without it
    pytest.skip("TensorFlow Datasets cannot be imported", allow_module_level=True)

dsb2018 = importlib.import_module("nuclei_utils.dsb2018")  # needs TensorFlow Datasets

COUNTS = {"train": 3, "validation": 2, "test": 1}
REMOVED = "id-0"  # by the corrections, from the training images


def draw_image(folder, number):
    """Draw image number `number`, with two nuclei, in the layout of the real archive; each has a size of its own."""
    shape = (20 + number, 30)
    pixels = np.full((*shape, 4), 255, np.uint8)
    pixels[..., :3] = number
    place = folder / f"id-{number}"
    (place / "images").mkdir(parents=True)
    Image.fromarray(pixels).save(place / "images" / f"id-{number}.png")
    draw_masks(place, shape, [5, 6])


def draw_masks(place, shape, sides):
    (place / "masks").mkdir(parents=True)
    for nucleus, side in enumerate(sides):
        mask = np.zeros(shape, np.uint8)
        mask[2 : 2 + side, 2 + 10 * nucleus : 2 + 10 * nucleus + side] = 255
        Image.fromarray(mask).save(place / "masks" / f"mask-{nucleus}.png")


def draw_dummy_data(place):
    """Draw a small data set for all three configurations: the sample's archive, and the real data with corrections."""
    real = place / "dsb2018" / "stage1_train"
    for number in range(sum(COUNTS.values())):
        draw_image(real, number)
    with zipfile.ZipFile(place / "sample.zip", "w") as archive:
        for path in sorted(real.rglob("*.png")):
            archive.write(path, path.relative_to(real))
    fixes = place / "dsb2018" / "stage1_train_fixes"
    draw_masks(fixes / "id-1", (21, 30), [4])
    (fixes / "REMOVED.txt").write_text(f"{REMOVED}\n")
    sides = [split for split, count in COUNTS.items() for _ in range(count)]
    table = pd.DataFrame({"id": [f"id-{i}" for i in range(len(sides))], "image_type": datasets.IMAGE_TYPES[2]})
    table = table.assign(group=table["id"], split=sides)
    (place / "splits").mkdir()
    for name in ("sample", "stage1_train"):
        table.to_csv(place / "splits" / f"{name}.csv", index=False)


@contextlib.contextmanager
def dummy_data():
    """Let the package find the dummy data in place of its own."""
    place = Path(tempfile.mkdtemp())
    try:
        draw_dummy_data(place)
        with (
            mock.patch.dict(os.environ, {"NUCLEI_HOME": str(place)}),
            mock.patch.object(datasets, "_asset", lambda name: place / name),
        ):
            yield place
    finally:
        shutil.rmtree(place)


class OverDummyData(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = dsb2018.Builder
    SPLITS = COUNTS
    EXAMPLE_DIR = Path(__file__).parent  # nothing is downloaded, so nothing is looked for there

    @classmethod
    def setUpClass(cls):
        cls._dummy = contextlib.ExitStack()
        cls._dummy.enter_context(dummy_data())
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls._dummy.close()


class TestOriginalLabels(OverDummyData):
    BUILDER_CONFIG_NAMES_TO_TEST = ("sample", "stage1")


class TestCorrectedLabels(OverDummyData):
    BUILDER_CONFIG_NAMES_TO_TEST = ("stage1_fixed",)
    SPLITS = COUNTS | {"train": COUNTS["train"] - 1}


del OverDummyData  # is no test itself


@pytest.fixture
def home():
    with dummy_data() as place:
        yield place


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_examples_are_the_records(home, name):
    records = {record.id: record for record in datasets.load(name)}
    examples = [example for split in datasets.SPLITS for example in tfds.as_numpy(input_pipeline.read(name, split))]
    assert sorted(example["id"].decode() for example in examples) == sorted(records)
    for example in examples:
        record = records[example["id"].decode()]
        assert np.array_equal(example["image"], record.image)
        assert np.array_equal(example["label_map"][..., 0], record.label_map)
        assert datasets.IMAGE_TYPES[example["image_type"]] == record.image_type


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_without_tfds_the_examples_are_the_same_in_the_same_order(home, name, monkeypatch):
    with_tfds = {split: list(input_pipeline.read(name, split).as_numpy_iterator()) for split in datasets.SPLITS}
    monkeypatch.setattr(input_pipeline, "_tensorflow_datasets", lambda: None)
    for split, expected in with_tfds.items():
        found = list(input_pipeline.read(name, split).as_numpy_iterator())
        assert [list(example) for example in found] == [list(example) for example in expected]
        for one, other in zip(found, expected, strict=True):
            assert all(np.array_equal(one[key], other[key]) for key in one)


def test_corrected_labels_are_used_and_removed_images_left_out(home):
    nuclei = {}
    for name in ("stage1", "stage1_fixed"):
        examples = tfds.as_numpy(input_pipeline.read(name, "train"))
        nuclei[name] = {example["id"].decode(): example["label_map"].max() for example in examples}
    assert nuclei["stage1"] == {"id-0": 2, "id-1": 2, "id-2": 2}
    assert nuclei["stage1_fixed"] == {"id-1": 1, "id-2": 2}


def test_missing_real_data_say_what_to_do(home):
    shutil.rmtree(home / "dsb2018")
    with pytest.raises(NucleiError, match="python -m nuclei_utils data"):
        input_pipeline.read("stage1", "train")


def test_description_names_citation_and_home():
    info = dsb2018.Builder(config="sample", data_dir=tempfile.gettempdir()).info
    assert "2018 Data Science Bowl" in info.description
    assert "10.1038/s41592-019-0612-7" in info.citation
    assert info.homepage == "https://bbbc.broadinstitute.org/BBBC038"
    assert info.features["image_type"].names == list(datasets.IMAGE_TYPES)


@pytest.mark.parametrize("first", ["nuclei_utils", "tensorflow_datasets"])
def test_importing_the_package_is_enough(first, tmp_path):
    second = {"nuclei_utils": "tensorflow_datasets", "tensorflow_datasets": "nuclei_utils"}[first]
    code = (
        f"import {first}\nimport {second}\n"
        "import tensorflow_datasets as tfds\n"
        "train, info = tfds.load('dsb2018/sample', split='train', with_info=True)\n"
        "print('\\nimages:', len(train), info.full_name)"
    )
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "tfds"), "NUCLEI_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    count = len(datasets.ids("sample", "train"))
    assert f"images: {count} dsb2018/sample/1.0.0" in done.stdout, done.stderr


# What TFDS prepares


def test_read_prints_nothing_that_a_notebook_would_keep(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path))
    assert len(input_pipeline.read("sample", "test")) == len(datasets.ids("sample", "test"))
    assert capsys.readouterr().out == ""


def test_another_notebook_may_prepare_the_same_data_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path))
    prepare = dsb2018.Builder.download_and_prepare

    def overtaken(builder):
        prepare(builder)  # the other one is done first, and TFDS finds its folder taken
        raise FileExistsError

    monkeypatch.setattr(dsb2018.Builder, "download_and_prepare", overtaken)
    assert len(input_pipeline.read("sample", "test")) == len(datasets.ids("sample", "test"))


def test_another_split_is_prepared_anew(monkeypatch):
    before = input_pipeline._prepared_folder("sample")
    table = datasets.split_table("sample")
    monkeypatch.setattr(datasets, "split_table", lambda name: table.assign(split=table["split"].iloc[::-1].to_numpy()))
    assert input_pipeline._prepared_folder("sample") != before


def test_changed_masks_are_prepared_anew_and_what_was_prepared_before_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path))
    input_pipeline.read("sample", "test")
    (before,) = (tmp_path / "tfds").iterdir()
    os.utime(next(datasets.folder("sample").glob("*/masks/*.png")), ns=(0, 0))
    input_pipeline.read("sample", "test")
    (after,) = (tmp_path / "tfds").iterdir()
    assert before != after
    assert before.name.startswith("sample-")
