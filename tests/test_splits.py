"""Kinds of image, near-duplicates and the lists of ids."""

import re
import zipfile
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from nuclei_utils import datasets, splits
from nuclei_utils.errors import NucleiError
from tools import draw_sample, make_splits


def table(name):
    return pd.read_csv(datasets._asset(f"splits/{make_splits.LISTS[name]}"), dtype=str)


@pytest.fixture(scope="module")
def sample():
    return make_splits._read_all("sample")


@pytest.fixture(scope="module")
def texture():
    """A smooth scene with a camera's noise, larger than the images cut from it."""
    rng = np.random.default_rng(0)
    scene = 60 + 250 * gaussian_filter(rng.normal(size=(400, 480)), 3) + rng.normal(0, 2, (400, 480))
    return np.repeat(scene.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


# Kinds


def test_colour_features_of_plain_images():
    dark, white, purple = (np.full((8, 8, 3), colour, np.uint8) for colour in ((0, 0, 0), (255,) * 3, (120, 60, 160)))
    np.testing.assert_allclose(splits.colour_features(dark), [0, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(splits.colour_features(white), [100, 0, 0, 0], atol=0.1)
    lightness, a, b, stain = splits.colour_features(purple)
    assert 30 < lightness < 50
    assert a > 20 > -20 > b
    assert stain == 20


def test_nucleus_size():
    labels = np.zeros((20, 20), np.int32)
    labels[:4, :4], labels[10:14, 10:14], labels[0, 19] = 1, 3, 4
    assert splits.nucleus_size(labels) == pytest.approx(np.sqrt(4 / np.pi * 16))
    assert splits.nucleus_size(np.zeros((5, 5), np.int32)) == 0


def test_looks_are_found_whatever_the_seed(sample):
    truth = pd.Series(
        [image_type.split("_small")[0].split("_large")[0] for image_type in table("sample")["image_type"]]
    )
    for seed in range(2):
        found = splits.find_image_types(sample, seed=seed)["image_type"]
        assert (found.str.replace("_small|_large", "", regex=True) == truth).all()
        assert set(found) <= set(datasets.IMAGE_TYPES)


def test_fluorescence_is_parted_by_the_size_of_its_nuclei():
    image = np.zeros((64, 64, 3), np.uint8)
    small, large = np.zeros((2, 64, 64), np.int32)
    small[:10, :10], large[:50, :50] = 1, 1
    records = [datasets.Record("a", image, small, ""), datasets.Record("b", image, large, "")]
    found = splits.find_image_types(records, clusters=1)
    assert found["image_type"].tolist() == ["fluorescence_small", "fluorescence_large"]


# Near-duplicates


def test_neighbouring_tiles_are_found_by_their_edges(texture):
    tiles = [texture[y : y + 100, x : x + 120] for y, x in ((0, 0), (0, 120), (100, 0), (300, 360))]
    pairs = splits.near_duplicates(tiles)
    assert pairs[["i", "j", "how"]].to_numpy().tolist() == [[0, 1, "edge"], [0, 2, "edge"]]
    assert splits.duplicate_groups(4, pairs) == ["g001", "g001", "g001", "g002"]


@pytest.mark.parametrize("shift", [(0, 0), (0, 90), (60, 40)])
def test_overlapping_fields_are_found(texture, shift):
    y, x = shift
    first, second, other = texture[:200, :240], texture[y : y + 200, x : x + 240], texture[::-1][:200, 240:]
    pairs = splits.near_duplicates([first, second, other])
    assert pairs.loc[pairs["how"] == "overlap", ["i", "j"]].to_numpy().tolist() == [[0, 1]]


def test_brightness_does_not_hide_a_duplicate(texture):
    pairs = splits.near_duplicates([texture, (texture * 0.5 + 20).astype(np.uint8)])
    assert "overlap" in set(pairs["how"])


def test_plain_images_and_images_of_different_size_are_no_duplicates():
    plain = [np.full((16, 16, 3), value, np.uint8) for value in (0, 0, 255)]
    assert splits.near_duplicates(plain).empty
    lone = splits.near_duplicates([plain[0], np.zeros((8, 16, 3), np.uint8)])
    assert lone.empty
    assert splits.duplicate_groups(2, lone) == ["g001", "g002"]


def test_groups_follow_chains():
    pairs = pd.DataFrame({"i": [1, 2], "j": [2, 4]})
    assert splits.duplicate_groups(5, pairs) == ["g001", "g002", "g002", "g003", "g002"]


def test_twins_of_the_sample_are_found_blindly_and_do_not_cross(sample):
    listed = table("sample")
    pairs = splits.near_duplicates([record.image for record in sample])
    assert {tuple(pair) for pair in pairs[["i", "j"]].to_numpy()} == {
        tuple(sorted(rows)) for rows in listed.groupby("group").indices.values() if len(rows) == 2
    }
    assert splits.crossing_pairs(pairs, listed).empty


def test_crossing_is_seen():
    listed = pd.DataFrame({"split": ["train", "train", "test"]})
    pairs = pd.DataFrame({"i": [0, 1], "j": [1, 2]})
    found = splits.crossing_pairs(pairs, listed)
    assert found[["i", "j", "split_i", "split_j"]].to_numpy().tolist() == [[1, 2, "train", "test"]]


# The lists


def test_divide_keeps_groups_together_and_kinds_in_shares():
    image_types = np.repeat(["a", "b", "c", "d"], [280, 140, 12, 4])
    groups = [f"{image_type}{position // 4}" for position, image_type in enumerate(image_types)]
    split = splits.grouped_split(image_types, groups)
    counts = pd.crosstab(image_types, np.array(split))
    assert counts.loc["a", ["validation", "test"]].tolist() == [40, 40]
    assert counts.loc["b", ["validation", "test"]].tolist() == [20, 20]
    assert counts.loc["c"].tolist() == [4, 4, 4]
    assert counts.loc["d", "train"] == 4
    assert pd.Series(split).groupby(groups).nunique().max() == 1
    assert split == splits.grouped_split(image_types, groups)


def test_a_group_has_one_kind():
    image, labels = np.zeros((64, 64, 3), np.uint8), np.zeros((3, 64, 64), np.int32)
    labels[:2, :50, :50] = 1
    labels[2, :5, :5] = 1
    records = [datasets.Record(f"{number}", image, each, "") for number, each in enumerate(labels)]
    made = make_splits.make_table(
        records, pd.DataFrame({"i": [0, 1], "j": [1, 2]}), splits.find_image_types(records, 1)["image_type"]
    )
    assert made["image_type"].tolist() == ["fluorescence_large"] * 3
    assert made["group"].tolist() == ["g001"] * 3


@pytest.mark.parametrize(("name", "count"), [("sample", 40), ("stage1", 670)])
def test_committed_lists(name, count):
    listed = table(name)
    assert listed.columns.tolist() == ["id", "image_type", "group", "split"]
    assert listed["id"].is_unique
    assert listed["id"].is_monotonic_increasing
    assert len(listed) == count
    assert (listed.groupby("group")[["split", "image_type"]].nunique() == 1).all(axis=None), (
        "a group stands on two sides"
    )
    shares = pd.crosstab(listed["image_type"], listed["split"])
    assert set(shares.index) == set(datasets.IMAGE_TYPES)
    assert set(shares.columns) == set(datasets.SPLITS)
    assert (shares > 0).all(axis=None)
    assert shares["train"].sum() / count == pytest.approx(0.7, abs=0.06)
    assert shares["validation"].sum() == pytest.approx(shares["test"].sum(), abs=0.02 * count)


def test_no_group_of_the_real_list_swallows_a_kind():
    listed = table("stage1")
    assert listed["group"].value_counts().max() <= 12
    assert listed.groupby("image_type")["group"].nunique().min() >= 9


def test_the_sample_list_names_what_is_in_the_archive():
    with zipfile.ZipFile(datasets._asset("sample.zip")) as archive:
        packed = {name.split("/")[0] for name in archive.namelist()}
    assert packed == set(table("sample")["id"])
    drawn = pd.DataFrame(draw_sample.sample_table()).set_index("id")["image_type"]
    assert (drawn.loc[table("sample")["id"]].to_numpy() == table("sample")["image_type"]).all()


SHUFFLES_AS_NOW = tuple(map(int, re.findall(r"\d+", version("scikit-learn"))[:2])) >= (1, 8)
"""Whether scikit-learn deals out the groups as it did when the lists were made; before 1.8 it did otherwise."""


@pytest.mark.skipif(not SHUFFLES_AS_NOW, reason="scikit-learn before 1.8 shuffles otherwise")
@pytest.mark.parametrize("name", make_splits.LISTS)
def test_committed_lists_are_what_the_code_divides(name):
    listed = table(name)
    assert splits.grouped_split(listed["image_type"], listed["group"]) == listed["split"].tolist()


def test_command_writes_the_committed_list_and_finds_nothing_crossing(tmp_path, capsys):
    assert make_splits.main(["sample", "--folder", str(tmp_path)]) == 0
    written, committed = tmp_path / "sample.csv", datasets._asset("splits/sample.csv")
    if SHUFFLES_AS_NOW:
        assert written.read_bytes() == committed.read_bytes()
    kept = ["id", "image_type", "group"]
    pd.testing.assert_frame_equal(pd.read_csv(written)[kept], pd.read_csv(committed)[kept])
    assert make_splits.main(["sample", "--folder", str(tmp_path), "--check", str(tmp_path / "result.json")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "sample.csv"]
    assert '"near_duplicates_crossing": 0' in capsys.readouterr().out


@pytest.mark.parametrize("name", ["stage1_fixed", "stage2"])
def test_command_refuses_data_sets_without_a_list_of_their_own(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        make_splits.main(["sample", name, "--folder", str(tmp_path)])
    assert caught.value.code == 2
    assert f"there is no list of {name}: choose from sample, stage1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_command_fails_where_a_near_duplicate_crosses(tmp_path, sample, monkeypatch):
    monkeypatch.setattr(make_splits, "_read_all", lambda name: sample)
    listed = table("sample")
    twin = listed.index[listed["group"].duplicated()][0]
    listed.loc[twin, "split"] = "test" if listed.loc[twin, "split"] != "test" else "train"
    listed.to_csv(tmp_path / "sample.csv", index=False)
    assert make_splits.main(["sample", "--folder", str(tmp_path), "--check", str(tmp_path / "result.json")]) == 1


def test_check_refuses_a_list_of_other_images(tmp_path, sample, monkeypatch):
    monkeypatch.setattr(make_splits, "_read_all", lambda name: sample)
    table("sample")[1:].to_csv(tmp_path / "sample.csv", index=False)
    with pytest.raises(NucleiError, match="write it again"):
        make_splits.check_table("sample", tmp_path / "sample.csv")
