import importlib
import json

import numpy as np
import pytest

from benchmarks import train_included_network
from nuclei_utils import datasets, labels, preprocess


def records():
    return datasets.load("sample", "validation")[:3]


def test_packed_images_hold_all_pixels():
    arrays = train_included_network.pack({"train": records()})
    shapes = arrays["train_shapes"]
    ends = np.cumsum(shapes.prod(axis=1))
    for record, shape, end in zip(records(), shapes, ends, strict=True):
        part = slice(end - shape.prod(), end)
        image = arrays["train_images"][part].reshape(*shape, 3)
        np.testing.assert_allclose(image / 255, preprocess.normalize(record.image), atol=0.5 / 255 + 1e-6)
        label_map = arrays["train_label_maps"][part].reshape(shape)
        np.testing.assert_array_equal(label_map, record.label_map)
        distance = arrays["train_distances"][part].reshape(shape)
        np.testing.assert_allclose(distance / 255, labels.distance_map(record.label_map), atol=0.5 / 255 + 1e-6)
    assert arrays["train_image_types"].tolist() == [record.image_type for record in records()]


def test_course_of_a_training_is_read_from_the_folder_of_its_weights(tmp_path):
    history = [{"step": 50, "loss": 2.0}, {"step": 100, "loss": 1.0, "val_loss": 1.1}]
    record = {"hardware": "a GPU", "trainings": {"a": {"seed": 3, "history": history}, "b": {"seed": 4, "history": []}}}
    (tmp_path / "history.json").write_text(json.dumps(record))
    course = train_included_network.read_course(tmp_path / "a.weights.h5")
    assert course == {"training": {"hardware": "a GPU", "seed": 3, "history": history[1:]}}


class TestOnJax:
    """What the GPU computes."""

    @pytest.fixture
    def jax(self):
        return pytest.importorskip("jax")

    @pytest.fixture
    def jax_crops(self, jax):
        return importlib.import_module("benchmarks.jax_crops")

    @pytest.fixture
    def crops(self, jax, jax_crops):
        (data,) = jax_crops.to_gpu([train_included_network.pack({"train": records()})])
        return jax_crops.random_crops(data, jax.random.key(0), 12, 64, 0.0)

    def test_crops_are_parts_of_the_images(self, crops):
        images, label_maps, distances = map(np.asarray, crops)
        assert (images.shape, label_maps.shape, distances.shape) == ((12, 64, 64, 3), (12, 64, 64), (12, 64, 64))
        assert 0 <= images.min() < images.max() <= 1 + 1e-6
        inside = distances > 0.5
        assert inside.any()
        assert (label_maps[inside] > 0).all(), "the distance and the labels are of the same pixels"

    def test_image_and_labels_of_a_crop_are_of_the_same_place(self, jax, jax_crops):
        image = np.zeros((40, 50, 3), np.uint8)
        image[10:30, 15:40] = 200
        record = datasets.Record("a", image, (image[..., 0] > 0).astype(np.int32), "")
        (data,) = jax_crops.to_gpu([train_included_network.pack({"train": [record]})])
        images, label_maps, _ = map(np.asarray, jax_crops.random_crops(data, jax.random.key(0), 8, 32, 1.0))
        assert ((images[..., 0] > 0.5) == (label_maps > 0)).mean() > 0.99
        assert 0.1 < (label_maps > 0).mean() < 0.9

    def test_targets_are_those_of_the_package(self, jax_crops, crops):
        _, label_maps, distances = crops
        targets = jax_crops.targets_of(label_maps, distances)
        for number, label_map in enumerate(np.asarray(label_maps)):
            np.testing.assert_array_equal(targets["mask"][number, ..., 0], label_map > 0)
            np.testing.assert_array_equal(targets["boundary"][number, ..., 0], labels.boundary_map(label_map))
        np.testing.assert_array_equal(targets["distance"][..., 0], distances)

    def test_colours_stay_in_range_and_grey_stays_grey(self, jax, jax_crops):
        grey = np.repeat(np.random.default_rng(0).random((20, 32, 32, 1), np.float32), 3, axis=-1)
        key = jax.random.key(1)
        changed = np.asarray(jax_crops.random_colours(grey, key))
        assert 0 <= changed.min() < changed.max() <= 1
        # noise alone adds colour
        assert np.abs(changed - changed.mean(axis=-1, keepdims=True)).mean() < 0.05
        assert np.abs(changed - grey).mean(axis=(1, 2, 3)).min() > 0.005
