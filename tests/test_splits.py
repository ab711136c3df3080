"""Tests of `splits`: image types, near-duplicates, groups and grouped splits; and of the committed split tables."""

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from nuclei_utils import datasets, splits


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUCLEI_HOME", str(tmp_path_factory.mktemp("home")))
        return datasets.load("sample"), datasets.split_table("sample")


@pytest.fixture(scope="module")
def texture():
    """Return a smooth texture with noise, larger than the images of the tests."""
    rng = np.random.default_rng(0)
    scene = 60 + 250 * gaussian_filter(rng.normal(size=(400, 480)), 3) + rng.normal(0, 2, (400, 480))
    return np.repeat(scene.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


# Image types


def test_colour_features_of_uniform_images():
    black, white, purple = (np.full((8, 8, 3), colour, np.uint8) for colour in ((0, 0, 0), (255,) * 3, (120, 60, 160)))
    np.testing.assert_allclose(splits.colour_features(black), [0, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(splits.colour_features(white), [100, 0, 0, 0], atol=0.1)
    lightness, a, b, stain = splits.colour_features(purple)
    assert 30 < lightness < 50
    assert a > 20 > -20 > b
    assert stain == 20


@pytest.mark.parametrize("seed", [0, 1])
def test_image_types_of_the_sample_are_found(sample, seed):
    records, table = sample
    image_types = splits.find_image_types(records, seed=seed)["image_type"]
    assert set(image_types) <= set(datasets.IMAGE_TYPES)
    sizes = {"fluorescence_small": "fluorescence", "fluorescence_large": "fluorescence"}
    assert image_types.replace(sizes).tolist() == table["image_type"].replace(sizes).tolist()


def test_fluorescence_types_differ_in_the_size_of_nuclei():
    image, label_maps = np.zeros((64, 64, 3), np.uint8), np.zeros((3, 64, 64), np.int32)
    label_maps[0, :10, :10] = 1
    label_maps[1, :50, :50] = 3
    records = [datasets.Record(str(number), image, label_map, "") for number, label_map in enumerate(label_maps)]
    table = splits.find_image_types(records, clusters=1)
    assert table["image_type"].tolist() == ["fluorescence_small", "fluorescence_large", "fluorescence_small"]
    assert table["diameter"].to_numpy() == pytest.approx(np.sqrt(4 / np.pi * np.array([100, 2500, 0])))


# Near-duplicates


def test_neighbouring_tiles_are_found(texture):
    tiles = [texture[y : y + 100, x : x + 120] for y, x in ((0, 0), (0, 120), (100, 0), (300, 360))]
    pairs = splits.near_duplicates(tiles)
    assert pairs[["i", "j", "how"]].to_numpy().tolist() == [[0, 1, "edge"], [0, 2, "edge"]]
    assert splits.duplicate_groups(4, pairs) == ["g001", "g001", "g001", "g002"]


@pytest.mark.parametrize("shift", [(0, 0), (0, 90), (60, 40)])
def test_overlapping_images_are_found(texture, shift):
    y, x = shift
    first, second, other = texture[:200, :240], texture[y : y + 200, x : x + 240], texture[::-1][:200, 240:]
    pairs = splits.near_duplicates([first, (second * 0.5 + 20).astype(np.uint8), other])
    assert pairs.loc[pairs["how"] == "overlap", ["i", "j"]].to_numpy().tolist() == [[0, 1]]


def test_uniform_images_and_images_of_other_sizes_are_no_duplicates():
    images = [np.full((16, 16, 3), value, np.uint8) for value in (0, 0, 255)] + [np.zeros((8, 16, 3), np.uint8)]
    pairs = splits.similarities(images)
    assert pairs[["i", "j"]].drop_duplicates().to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert splits.near_duplicates(images).empty
    lone = splits.near_duplicates(images[2:])
    assert splits.duplicate_groups(2, lone) == ["g001", "g002"]


def test_groups_follow_chains():
    pairs = pd.DataFrame({"i": [1, 2], "j": [2, 4]})
    assert splits.duplicate_groups(5, pairs) == ["g001", "g002", "g002", "g003", "g002"]


def test_duplicates_of_the_sample_are_found_and_do_not_cross(sample):
    records, table = sample
    pairs = splits.near_duplicates([record.image for record in records])
    drawn = {tuple(sorted(rows)) for rows in table.groupby("group").indices.values() if len(rows) == 2}
    assert {tuple(pair) for pair in pairs[["i", "j"]].to_numpy()} == drawn
    assert splits.crossing_pairs(pairs, table).empty


# Splits


def test_grouped_split_keeps_groups_together_and_fractions_equal():
    image_types = np.repeat(["a", "b", "c", "d"], [280, 140, 12, 4])
    groups = [f"{image_type}{position // 4}" for position, image_type in enumerate(image_types)]
    split = splits.grouped_split(image_types, groups)
    counts = pd.crosstab(image_types, np.array(split))[[*datasets.SPLITS]]
    assert counts.to_numpy().tolist() == [[200, 40, 40], [100, 20, 20], [4, 4, 4], [4, 0, 0]]
    assert pd.Series(split).groupby(groups).nunique().max() == 1
    assert split == splits.grouped_split(image_types, groups)


@pytest.mark.parametrize(("file", "count", "largest_group"), [("sample.csv", 40, 2), ("stage1_train.csv", 670, 12)])
def test_committed_tables(file, count, largest_group):
    table = pd.read_csv(datasets.asset(f"splits/{file}"), dtype=str)
    assert table.columns.tolist() == ["id", "image_type", "group", "split"]
    assert table["id"].is_unique
    assert table["id"].is_monotonic_increasing
    assert len(table) == count
    assert (table.groupby("group")[["split", "image_type"]].nunique() == 1).all(axis=None)
    assert table["group"].value_counts().max() <= largest_group
    counts = pd.crosstab(table["image_type"], table["split"])
    assert set(counts.index) == set(datasets.IMAGE_TYPES)
    assert set(counts.columns) == set(datasets.SPLITS)
    assert (counts > 0).all(axis=None)
    assert counts["train"].sum() / count == pytest.approx(0.7, abs=0.06)
    assert counts["validation"].sum() == pytest.approx(counts["test"].sum(), abs=0.02 * count)
