"""Tests of `tools/make_splits.py`, which writes and checks the split tables."""

import re
import zipfile
from importlib.metadata import version

import pandas as pd
import pytest

from nuclei_utils import datasets, splits
from nuclei_utils.errors import NucleiError
from tools import draw_sample, make_splits

# scikit-learn before 1.8 shuffles groups in another way than for the committed tables.
IS_SAME_SHUFFLE = tuple(map(int, re.findall(r"\d+", version("scikit-learn"))[:2])) >= (1, 8)


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path_factory.mktemp("home")))


def committed_table(name):
    return pd.read_csv(datasets.asset(f"splits/{make_splits.FILES[name]}"), dtype=str)


@pytest.mark.skipif(not IS_SAME_SHUFFLE, reason="scikit-learn before 1.8 shuffles in another way")
@pytest.mark.parametrize("name", make_splits.FILES)
def test_committed_splits_are_those_of_the_code(name):
    table = committed_table(name)
    assert splits.grouped_split(table["image_type"], table["group"]) == table["split"].tolist()


def test_committed_table_lists_the_images_of_the_archive():
    with zipfile.ZipFile(datasets.asset("sample.zip")) as archive:
        archived = {name.split("/")[0] for name in archive.namelist()}
    table = committed_table("sample").set_index("id")
    assert archived == set(table.index)
    assert table["image_type"].to_dict() == {row["id"]: row["image_type"] for row in draw_sample.sample_table()}


def test_command_writes_and_checks_the_committed_table(tmp_path, capsys):
    assert make_splits.main(["sample", "--folder", str(tmp_path)]) == 0
    table, committed = pd.read_csv(tmp_path / "sample.csv", dtype=str), committed_table("sample")
    if IS_SAME_SHUFFLE:
        assert (tmp_path / "sample.csv").read_bytes() == datasets.asset("splits/sample.csv").read_bytes()
    pd.testing.assert_frame_equal(table.drop(columns="split"), committed.drop(columns="split"))
    assert make_splits.main(["sample", "--folder", str(tmp_path), "--check", str(tmp_path / "result.json")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "sample.csv"]
    assert '"near_duplicates_crossing": 0' in capsys.readouterr().out


def test_all_images_of_a_group_get_one_image_type(monkeypatch):
    types = ["grey_tissue", "purple_on_white", "grey_tissue", "purple_on_white"]
    records = [datasets.Record(image_id, None, None, "") for image_id in "abcd"]
    monkeypatch.setattr(make_splits, "_read_records", lambda name: records)
    monkeypatch.setattr(splits, "find_image_types", lambda records: pd.DataFrame({"image_type": types}))
    monkeypatch.setattr(splits, "near_duplicates", lambda images: pd.DataFrame({"i": [0, 1], "j": [1, 2]}))
    table = make_splits.make_table("stage1")
    assert table["image_type"].tolist() == ["grey_tissue"] * 3 + ["purple_on_white"]
    assert table["group"].tolist() == ["g001"] * 3 + ["g002"]


@pytest.mark.parametrize("name", ["stage1_fixed", "stage2"])
def test_command_refuses_data_sets_without_a_table(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        make_splits.main(["sample", name, "--folder", str(tmp_path)])
    assert caught.value.code == 2
    assert name in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_check_fails_if_near_duplicates_cross(tmp_path):
    table = committed_table("sample")
    duplicate = table.index[table["group"].duplicated()][0]
    table.loc[duplicate, "split"] = "test" if table.loc[duplicate, "split"] != "test" else "train"
    table.to_csv(tmp_path / "sample.csv", index=False)
    assert make_splits.main(["sample", "--folder", str(tmp_path), "--check", str(tmp_path / "result.json")]) == 1
    table[1:].to_csv(tmp_path / "sample.csv", index=False)
    with pytest.raises(NucleiError, match=r"sample\.csv"):
        make_splits.main(["sample", "--folder", str(tmp_path), "--check", str(tmp_path / "result.json")])
