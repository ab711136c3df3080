import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nuclei_utils import datasets, io, labels
from nuclei_utils.errors import LabelWarning, NucleiError
from tools import draw_sample

ARCHIVE = Path(__file__).parents[1] / "data" / "sample.zip"
SIZE = (20, 30)

_RNG = np.random.default_rng(0)
GREY = _RNG.integers(0, 256, SIZE).astype(np.uint8)
COLOUR = _RNG.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
RGBA = np.dstack([COLOUR, GREY])


def square(*corners, value=255):
    mask = np.zeros(SIZE, np.uint8)
    mask[slice(*corners[0::2]), slice(*corners[1::2])] = value
    return mask


def pillow(array):
    return Image.fromarray(array).save


NUCLEUS = square(5, 5, 9, 12)


# How a folder is read


@pytest.fixture
def field(tmp_path):
    """Return a function that lays out one image's folder from masks by file name, as the competition does."""

    def lay_out(masks, images=("a1.png",), name="a1"):
        place = tmp_path / name
        (place / "images").mkdir(parents=True)
        (place / "masks").mkdir()
        for image in images:
            pillow(RGBA)(place / "images" / image)
        for file, mask in masks.items():
            Image.fromarray(mask).save(place / "masks" / file)
        return place

    return lay_out


def test_record_holds_image_labels_id_and_kind(field):
    place = field({"2.png": square(0, 0, 3, 3), "1.png": square(10, 10, 15, 15, value=1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = datasets.read_record(place, image_type="grey_tissue")
    assert (record.id, record.image_type) == ("a1", "grey_tissue")
    np.testing.assert_array_equal(record.image, COLOUR)
    assert record.label_map.dtype == np.int32
    assert record.label_map[12, 12] == 1, "masks are numbered in the order of their names"
    assert record.label_map[1, 1] == 2
    assert datasets.read_record(str(place)).image_type == ""


def test_overlap_warns_by_name_and_loses_nothing(field):
    place = field({"large.png": square(0, 0, 10, 10), "small.png": square(8, 8, 12, 12)})
    with pytest.warns(LabelWarning, match=r"large\.png: 4 pixels given to a smaller mask") as caught:
        record = datasets.read_record(place)
    assert len(caught) == 1
    assert str(place / "masks" / "large.png") in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning points at the line that asked"
    assert np.bincount(record.label_map.ravel())[1:].tolist() == [96, 16]


def test_empty_mask_warns_by_name(field):
    place = field({"empty.png": square(0, 0, 0, 0), "full.png": NUCLEUS})
    with pytest.warns(LabelWarning, match=r"empty\.png: empty mask, left out"):
        assert datasets.read_record(place).label_map.max() == 1


def test_mask_under_its_twin_warns_by_name(field):
    place = field({"a.png": NUCLEUS, "b.png": NUCLEUS})
    with pytest.warns(LabelWarning, match=r"a\.png: wholly under other masks, left out"):
        assert datasets.read_record(place).label_map.max() == 1


def test_hidden_files_and_notes_are_no_masks(field):
    place = field({"a.png": NUCLEUS, "B.PNG": square(15, 15, 18, 18)})
    for hidden in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini", "notes.txt"):
        (place / "masks" / hidden).write_bytes(b"\0\5\x16\7")
        (place / "images" / hidden).write_bytes(b"\0\5\x16\7")
    assert datasets.read_record(place).label_map.max() == 2


def test_masks_may_lie_elsewhere(field, tmp_path):
    place = field({"a.png": NUCLEUS})
    place.joinpath("masks").rename(tmp_path / "better masks")
    assert datasets.read_record(place, tmp_path / "better masks").label_map.max() == 1


def test_folder_without_masks_is_refused(field):
    place = field({})
    with pytest.raises(NucleiError, match=r"masks holds no masks: expected one PNG per nucleus") as caught:
        datasets.read_record(place)
    assert str(place / "masks") in str(caught.value)
    (place / "masks").rmdir()
    with pytest.raises(NucleiError, match=r"masks is missing: expected <id>/images") as caught:
        datasets.read_record(place)
    assert str(place / "masks") in str(caught.value)


def test_exactly_one_image_is_needed(field, tmp_path):
    two = field({"a.png": NUCLEUS}, images=("a.png", "b.tif"), name="two")
    with pytest.raises(NucleiError, match=r"found 2 images \(a\.png, b\.tif\), expected exactly one: move") as caught:
        datasets.read_record(two)
    assert str(two / "images") in str(caught.value)
    none = field({"a.png": NUCLEUS}, images=(), name="none")
    with pytest.raises(NucleiError, match=r"holds no image: expected exactly one, such as none\.png") as caught:
        datasets.read_record(none)
    assert str(none / "images") in str(caught.value)
    with pytest.raises(NucleiError, match=r"nowhere.*is missing"):
        datasets.read_record(tmp_path / "nowhere")


def test_wrong_size_and_broken_mask_are_refused_by_name(field):
    place = field({"a.png": NUCLEUS, "b.png": NUCLEUS[:7]})
    with pytest.raises(NucleiError, match=r"b\.png: the mask is \(7, 30\), its image \(20, 30\)"):
        datasets.read_record(place)
    content = (place / "masks" / "a.png").read_bytes()
    (place / "masks" / "b.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(NucleiError, match=r"b\.png cannot be read .*: fetch or export it again"):
        datasets.read_record(place)


# Where the data live


@pytest.fixture
def no_environment(monkeypatch):
    for name in ("NUCLEI_HOME", "NUCLEI_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_environment")
def test_home_is_the_variable_the_repository_or_the_working_directory(monkeypatch, tmp_path):
    assert datasets.home() == ARCHIVE.parent
    monkeypatch.chdir(tmp_path)
    assert datasets.home() == ARCHIVE.parent
    monkeypatch.setattr(datasets, "_REPOSITORY", None)
    assert datasets.home() == tmp_path / "data"
    monkeypatch.setenv("NUCLEI_HOME", "some where")
    assert datasets.home() == tmp_path / "some where"
    monkeypatch.setenv("NUCLEI_HOME", "~/nuclei")
    assert datasets.home() == Path.home() / "nuclei"
    monkeypatch.setenv("NUCLEI_HOME", "")
    assert datasets.home() == tmp_path / "data"


def test_an_unknown_user_is_named(monkeypatch):
    monkeypatch.setenv("NUCLEI_HOME", "~nosuchuser/nuclei")
    with pytest.raises(NucleiError, match="~nosuchuser"):
        datasets.home()


@pytest.mark.usefixtures("no_environment")
def test_current_is_the_best_that_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path))
    assert datasets.current() == "sample"
    (tmp_path / "dsb2018" / "stage1_train_fixes").mkdir(parents=True)
    assert datasets.current() == "sample", "fixes are of no use without the images"
    (tmp_path / "dsb2018" / "stage1_train.partial").mkdir()
    assert datasets.current() == "sample"
    (tmp_path / "dsb2018" / "stage1_train").mkdir()
    assert datasets.current() == "stage1_fixed"
    (tmp_path / "dsb2018" / "stage1_train_fixes").rmdir()
    assert datasets.current() == "stage1"
    monkeypatch.setenv("NUCLEI_DATA", "sample")
    assert datasets.current() == "sample"
    monkeypatch.setenv("NUCLEI_DATA", "stage2")
    with pytest.raises(NucleiError, match="no data set 'stage2': choose one of sample, stage1, stage1_fixed"):
        datasets.current()


def test_unknown_names_and_missing_data_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path))
    for ask in (datasets.folder, datasets.split_table, datasets.ids, datasets.load, datasets.label_problems):
        with pytest.raises(NucleiError, match="choose one of sample, stage1, stage1_fixed"):
            ask("stage2")
    for ask in (datasets.folder, datasets.load, datasets.label_problems):
        with pytest.raises(NucleiError, match=r"stage1_train is missing: fetch .* `python -m nuclei_utils data"):
            ask("stage1")
    with pytest.raises(NucleiError, match="no split 'dev': choose one of train, validation, test"):
        datasets.ids("sample", split="dev")
    with pytest.raises(NucleiError, match="no split ''"):
        datasets.ids("sample", split="")
    monkeypatch.setattr(datasets, "_REPOSITORY", tmp_path)
    with pytest.raises(NucleiError, match=r"sample\.zip is missing: .* install nuclei_utils again"):
        datasets.folder("sample")
    assert list(tmp_path.iterdir()) == []


def test_package_works_alone_in_an_empty_folder(tmp_path):
    """As installed: no repository around it, its files in `assets`, and the data go to `./data`.

    A `pyproject.toml` beside it is another project's, which has a copy of the package.
    """
    package = tmp_path / "site" / "nuclei_utils"
    package.mkdir(parents=True)
    for name in ("__init__.py", "datasets.py", "errors.py", "files.py", "io.py", "labels.py"):
        shutil.copy(Path(datasets.__file__).with_name(name), package)
    (tmp_path / "site" / "pyproject.toml").touch()
    (tmp_path / "site" / "data").mkdir()
    shutil.copytree(ARCHIVE.parent / "splits", package / "assets" / "splits")
    shutil.copy(ARCHIVE, package / "assets")
    (tmp_path / "work").mkdir()
    code = "from nuclei_utils import datasets; print(datasets.current()); print(datasets.folder('sample'))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUCLEI_")}
    environment["PYTHONPATH"] = str(package.parent)
    lines = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "work", env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert lines[0] == "sample"
    assert Path(lines[1]).parent == tmp_path / "work" / "data"
    assert len(list(Path(lines[1]).iterdir())) == 40


# The sample


@pytest.fixture(scope="session")
def sample_home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def sample(sample_home, monkeypatch):
    """Let the data live in a folder of the tests, where the sample is unpacked and merged once."""
    monkeypatch.setenv("NUCLEI_HOME", str(sample_home))
    monkeypatch.setenv("NUCLEI_DATA", "sample")
    return sample_home


def test_sample_is_unpacked_once_by_its_fingerprint(sample, monkeypatch):
    place = datasets.folder("sample")
    assert place.parent == sample
    assert re.fullmatch(r"sample-[0-9a-f]{8}", place.name)
    with zipfile.ZipFile(ARCHIVE) as file:
        assert sum(path.is_file() for path in place.rglob("*")) == len(file.namelist())
    monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda *_: pytest.fail("unpacked twice"))
    assert datasets.folder("sample") == place


@pytest.fixture
def small_archive(tmp_path, monkeypatch):
    """Stand in for the package's own sample: one file, in a repository of the tests."""
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / "sample.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a1/images/a1.png", b"image")
    monkeypatch.setattr(datasets, "_REPOSITORY", tmp_path)
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path / "home"))
    return archive


def test_newer_sample_gets_a_folder_of_its_own(small_archive):
    old = datasets.folder("sample")
    with zipfile.ZipFile(small_archive, "a") as file:
        file.writestr("a2/images/a2.png", b"image")
    assert datasets.folder("sample") != old
    assert len(list(datasets.folder("sample").iterdir())) == 2
    assert not old.exists(), "what nothing reads any more is cleared away"


def test_interrupted_unpacking_leaves_nothing_that_looks_whole(small_archive, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            datasets.folder("sample")
    assert not [path for path in (tmp_path / "home").iterdir() if not path.name.startswith(".")]
    assert (datasets.folder("sample") / "a1" / "images" / "a1.png").read_bytes() == b"image"


def test_two_notebooks_may_unpack_at_once(small_archive, tmp_path, monkeypatch):
    extract = zipfile.ZipFile.extractall

    def other_was_quicker(file, aside):
        extract(file, aside)
        if not list((tmp_path / "home").glob("sample-*")):
            shutil.copytree(aside, tmp_path / "home" / f"sample-{digest}")

    digest = datasets.hashlib.sha256(small_archive.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(zipfile.ZipFile, "extractall", other_was_quicker)
    assert datasets.folder("sample").name == f"sample-{digest}"
    assert [path.name for path in (tmp_path / "home").iterdir()] == [f"sample-{digest}"], "no copy is left behind"


@pytest.mark.usefixtures("sample")
def test_load_reads_what_the_table_lists():
    table = datasets.split_table("sample")
    assert table.columns.tolist() == ["id", "image_type", "group", "split"]
    assert set(table["image_type"]) == set(datasets.IMAGE_TYPES)
    records = datasets.load()
    assert [record.id for record in records] == sorted(table["id"]) == datasets.ids()
    image_types = table.set_index("id")["image_type"]
    for record in records:
        assert record.image.dtype == np.uint8
        assert record.image.shape == (*record.label_map.shape, 3)
        assert record.label_map.dtype == np.int32
        assert record.label_map.max() == len(np.unique(record.label_map)) - 1 > 0
        assert record.image_type == image_types[record.id]
    sides = {split: {record.id for record in datasets.load("sample", split)} for split in datasets.SPLITS}
    assert {split: len(side) for split, side in sides.items()} == table["split"].value_counts().to_dict()
    assert set().union(*sides.values()) == set(table["id"])


@pytest.mark.usefixtures("sample")
def test_load_and_read_record_agree():
    record = datasets.load("sample", "test")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelWarning)
        alone = datasets.read_record(datasets.folder("sample") / record.id)
    np.testing.assert_array_equal(alone.image, record.image)
    np.testing.assert_array_equal(alone.label_map, record.label_map)


@pytest.mark.usefixtures("sample")
def test_problems_lists_the_deliberate_overlaps():
    table = datasets.label_problems()
    assert table.columns.tolist() == ["id", "file", "problem", "pixels"]
    drawn = draw_sample.sample_table(seed=0)
    deliberate = {row["id"] for row in drawn if row["error"] == "overlap"}
    assert deliberate
    assert deliberate <= set(table["id"])
    for row in table.itertuples():
        assert (datasets.folder("sample") / row.id / "masks" / row.file).is_file()
    overlaps = table[table["problem"].str.contains("given to a smaller mask|wholly under")]
    assert (overlaps["pixels"] > 0).all()
    # each mask with hidden pixels is listed, and nothing else: counted here in another way
    for image_id in sorted(deliberate)[:2]:
        masks = [io.read_mask(path) for path in sorted((datasets.folder("sample") / image_id / "masks").iterdir())]
        _, hidden = labels.merge_masks(masks)
        assert table[table["id"] == image_id]["pixels"].sum() == hidden.sum() == np.sum(masks) - np.any(masks, 0).sum()


# The cache and the real set, on a small one laid out as the real one is


@pytest.fixture
def real(tmp_path, monkeypatch):
    """Lay out three images as the real set is, with corrections for one and the removal of another."""
    home, repository = tmp_path / "home", tmp_path / "repository"
    train, fixes = home / "dsb2018" / "stage1_train", home / "dsb2018" / "stage1_train_fixes"
    for image_id in ("a", "b", "c"):
        (train / image_id / "images").mkdir(parents=True)
        (train / image_id / "masks").mkdir()
        pillow(RGBA)(train / image_id / "images" / f"{image_id}.png")
        pillow(square(0, 0, 10, 10))(train / image_id / "masks" / "1.png")
        pillow(square(9, 9, 12, 12))(train / image_id / "masks" / "2.png")
    (fixes / "b" / "masks").mkdir(parents=True)
    pillow(square(9, 9, 15, 15))(fixes / "b" / "masks" / "only.png")
    (fixes / "REMOVED.txt").write_text("c\n")
    (repository / "data" / "splits").mkdir(parents=True)
    table = {
        "id": list("abc"),
        "image_type": "grey_tissue",
        "group": ["g1", "g2", "g3"],
        "split": list(datasets.SPLITS),
    }
    pd.DataFrame(table).to_csv(repository / "data" / "splits" / "stage1_train.csv", index=False)
    monkeypatch.setattr(datasets, "_REPOSITORY", repository)
    monkeypatch.setenv("NUCLEI_HOME", str(home))
    monkeypatch.delenv("NUCLEI_DATA", raising=False)
    return home


@pytest.fixture
def merges(monkeypatch):
    """Count how often a folder of masks is really merged."""
    calls, merge = [], datasets._merge_folder

    def counted(masks_folder, shape):
        calls.append(masks_folder)
        return merge(masks_folder, shape)

    monkeypatch.setattr(datasets, "_merge_folder", counted)
    return calls


def test_corrected_labels_lie_over_the_real_ones(real):
    assert datasets.current() == "stage1_fixed"
    plain, fixed = datasets.load("stage1"), datasets.load()
    assert [record.id for record in plain] == ["a", "b", "c"]
    assert [record.id for record in fixed] == ["a", "b"], "images that the correction removes are left out"
    assert [record.label_map.max() for record in plain] == [2, 2, 2]
    assert [record.label_map.max() for record in fixed] == [2, 1]
    np.testing.assert_array_equal(fixed[1].label_map > 0, square(9, 9, 15, 15) > 0)
    np.testing.assert_array_equal(fixed[1].image, COLOUR)
    assert datasets.ids("stage1_fixed", "test") == []
    assert datasets.load("stage1_fixed", "test") == []
    assert datasets.label_problems("stage1")[["id", "file", "pixels"]].to_numpy().tolist() == [
        [i, "1.png", 1] for i in "abc"
    ]
    assert datasets.label_problems("stage1_fixed")["id"].tolist() == ["a"]


def test_incomplete_corrections_say_what_to_do(real):
    fixes = real / "dsb2018" / "stage1_train_fixes"
    (fixes / "REMOVED.txt").unlink()
    with pytest.raises(NucleiError, match=r"REMOVED\.txt is missing: fetch"):
        datasets.load("stage1_fixed")
    shutil.rmtree(fixes)
    with pytest.raises(NucleiError, match="stage1_train_fixes is missing: fetch"):
        datasets.load("stage1_fixed")


def test_missing_image_of_the_list_is_refused_by_name(real):
    shutil.rmtree(real / "dsb2018" / "stage1_train" / "a")
    with pytest.raises(NucleiError, match=re.escape(str(Path("stage1_train") / "a"))):
        datasets.load("stage1")


def test_cache_is_used_the_second_time_and_made_anew_after_a_change(real, merges):
    first = datasets.load("stage1")
    assert len(merges) == 3
    second = datasets.load("stage1")
    assert len(merges) == 3, "the second time nothing is merged"
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.label_map, other.label_map)
    masks = real / "dsb2018" / "stage1_train" / "a" / "masks"
    changed = masks / "2.png"
    size = changed.stat()
    os.utime(changed, ns=(size.st_atime_ns, size.st_mtime_ns + 10**9))
    datasets.load("stage1")
    assert len(merges) == 6, "another time of change"
    pillow(square(17, 17, 19, 19))(masks / "3.png")
    assert datasets.load("stage1")[0].label_map.max() == 3
    changed.unlink()
    assert datasets.load("stage1")[0].label_map.max() == 2
    assert len(list((real / "cache").iterdir())) == 1, "caches of earlier states are cleared away"


def test_state_changes_with_any_image_or_mask_and_with_nothing_else(real):
    train, fixes = real / "dsb2018" / "stage1_train", real / "dsb2018" / "stage1_train_fixes"
    stage1, fixed = datasets.state("stage1"), datasets.state("stage1_fixed")
    assert stage1 != fixed
    datasets.load("stage1")
    assert datasets.state("stage1") == stage1
    pillow(square(9, 9, 14, 14))(fixes / "b" / "masks" / "only.png")
    os.utime(fixes / "b" / "masks" / "only.png", ns=(0, 0))
    assert datasets.state("stage1") == stage1
    assert datasets.state("stage1_fixed") != fixed
    os.utime(train / "a" / "images" / "a.png", ns=(0, 0))
    assert datasets.state("stage1") != stage1
    shutil.rmtree(train / "a" / "images")
    with pytest.raises(NucleiError, match=r"images is missing: expected"):
        datasets.state("stage1")


def test_masks_folders_prefer_the_corrected_ones(real):
    train, fixes = real / "dsb2018" / "stage1_train", real / "dsb2018" / "stage1_train_fixes"
    assert datasets.masks_folders("stage1") == {image_id: train / image_id / "masks" for image_id in "abc"}
    assert datasets.masks_folders("stage1_fixed") == {"a": train / "a" / "masks", "b": fixes / "b" / "masks"}
    assert datasets.folder("stage1_fixed") == datasets.folder("stage1") == train


def test_a_split_reads_only_its_own_label_maps(real, monkeypatch):
    datasets.load("stage1")
    read, asked = np.lib.npyio.NpzFile.__getitem__, []
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda file, key: asked.append(key) or read(file, key))
    assert [record.id for record in datasets.load("stage1", "validation")] == ["b"]
    assert set(asked) & {"a", "b", "c"} == {"b"}
    asked.clear()
    assert len(datasets.label_problems("stage1")) == 3
    assert not set(asked) & {"a", "b", "c"}


def test_caches_of_two_data_sets_live_side_by_side(real, merges):
    for _ in range(2):
        datasets.load("stage1")
        datasets.load("stage1_fixed")
    assert len(merges) == 3 + 2


def test_no_problem_gives_an_empty_table(real):
    for image_id in ("a", "b", "c"):
        (real / "dsb2018" / "stage1_train" / image_id / "masks" / "2.png").unlink()
    for _ in range(2):
        table = datasets.label_problems("stage1")
        assert len(table) == 0
        assert table.columns.tolist() == ["id", "file", "problem", "pixels"]


def test_interrupted_cache_leaves_nothing_that_looks_whole(real, merges, monkeypatch):
    def interrupted(path, **arrays):
        Path(path).write_bytes(b"PK half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets.np, "savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            datasets.load("stage1")
    assert not list((real / "cache").iterdir())
    assert [record.label_map.max() for record in datasets.load("stage1")] == [2, 2, 2]
    assert len(merges) == 6


def test_broken_mask_stops_load_by_name_and_is_not_cached(real):
    broken = real / "dsb2018" / "stage1_train" / "b" / "masks" / "2.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:-20])
    with pytest.raises(NucleiError, match=re.escape(str(broken))):
        datasets.load("stage1")
    assert not (real / "cache").exists()
    broken.write_bytes(content)
    assert len(datasets.load("stage1")) == 3


@pytest.mark.parametrize("damage", ["half", "nothing", "zeros", "text", "middle"])
def test_a_damaged_cache_is_named_and_made_again(real, merges, damage):
    first = datasets.load("stage1")
    (cache,) = (real / "cache").iterdir()
    content = cache.read_bytes()
    middle = bytearray(content)
    middle[60:90] = bytes(30)
    damaged = {"half": content[:200], "nothing": b"", "zeros": bytes(500), "text": b"no archive", "middle": middle}
    cache.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match=re.escape(str(cache))):
        second = datasets.load("stage1")
    assert len(merges) == 6
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.label_map, other.label_map)
    datasets.load("stage1")
    assert len(merges) == 6, "the cache is whole again"


def test_names_that_are_not_utf_8_are_no_hindrance(real):
    masks = real / "dsb2018" / "stage1_train" / "a" / "masks"
    try:
        (masks / "1.png").rename(masks / b"1\xff.png".decode(errors="surrogateescape"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert datasets.load("stage1")[0].label_map.max() == 2
    assert datasets.label_problems("stage1").set_index("id").loc["a", "file"] == r"1\udcff.png"


def test_wrong_size_stops_load_by_name(real):
    wrong = real / "dsb2018" / "stage1_train" / "c" / "masks" / "2.png"
    pillow(GREY[:5])(wrong)
    with pytest.raises(NucleiError, match=re.escape(str(wrong))):
        datasets.label_problems("stage1")


# How a folder of one's own is read


def two_squares():
    return (square(2, 8, 3, 9, value=1) + square(10, 18, 15, 25, value=2)).astype(np.uint8)


def own_folder(place, names=("b", "a"), image=".png", label=".png"):
    for name in names:
        for part, array, ending in (("images", COLOUR, image), ("labels", two_squares(), label)):
            (place / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(place / part / f"{name}{ending}")
    return place


@pytest.mark.parametrize(("image", "label"), [(".png", ".png"), (".tif", "_labels.png"), (".bmp", ".tif")])
def test_a_folder_of_images_and_label_maps(image, label, tmp_path):
    own_folder(tmp_path, image=image, label=label)
    (tmp_path / "images" / ".DS_Store").touch()
    (tmp_path / "labels" / "notes.txt").touch()
    records = datasets.read_folder(tmp_path)
    assert [record.id for record in records] == ["a", "b"]
    for record in records:
        assert np.array_equal(record.image, COLOUR)
        assert np.array_equal(record.label_map, two_squares())
        assert record.label_map.dtype == np.int32
        assert record.image_type == ""


def test_a_folder_in_the_layout_of_the_competition(tmp_path):
    for name in ("b", "a"):
        for part in ("images", "masks"):
            (tmp_path / name / part).mkdir(parents=True)
        pillow(COLOUR)(tmp_path / name / "images" / f"{name}.png")
        for number in (1, 2):
            pillow((two_squares() == number) * np.uint8(255))(tmp_path / name / "masks" / f"{number}.png")
    (tmp_path / "notes").mkdir()
    records = datasets.read_folder(tmp_path)
    assert [record.id for record in records] == ["a", "b"]
    assert np.array_equal(records[0].label_map, two_squares())
    assert np.array_equal(datasets.read_masks(tmp_path / "a" / "masks"), two_squares())
    with pytest.raises(NucleiError, match="holds no masks"):
        datasets.read_masks(tmp_path / "notes")


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_field_that_lacks_its_images_or_masks_is_named(tmp_path, part):
    for name in ("a", "b"):
        for folder in ("images", "masks"):
            (tmp_path / name / folder).mkdir(parents=True)
            pillow(NUCLEUS)(tmp_path / name / folder / "1.png")
    shutil.rmtree(tmp_path / "b" / part)
    with pytest.raises(NucleiError, match=re.escape(str(tmp_path / "b" / part))):
        datasets.read_folder(tmp_path)


def test_labels_that_are_all_empty_are_refused(tmp_path):
    own_folder(tmp_path)
    for name in "ab":
        pillow(two_squares() * 0)(tmp_path / "labels" / f"{name}.png")
    with pytest.raises(NucleiError, match=f"{re.escape(str(tmp_path))}: found no nucleus"):
        datasets.read_folder(tmp_path)
    pillow(two_squares())(tmp_path / "labels" / "a.png")
    assert len(datasets.read_folder(tmp_path)) == 2, "one image without nuclei is as good as any"


def test_a_folder_that_does_not_fit_says_why(tmp_path):
    def refused(message):
        with pytest.raises(NucleiError, match=message):
            datasets.read_folder(tmp_path)

    with pytest.raises(NucleiError, match="is no folder"):
        datasets.read_folder(tmp_path / "nowhere")
    refused("holds no labelled images: expected images/ and labels/")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    refused("holds no image")
    own_folder(tmp_path)
    (tmp_path / "labels" / "a.png").rename(tmp_path / "labels" / "c.png")
    refused("found on one side only: a, c")
    own_folder(tmp_path, "c")
    own_folder(tmp_path, "a", image=".tif")
    pillow(COLOUR)(tmp_path / "images" / "a.png")
    refused(r"a\.png and a\.tif have one name")
    (tmp_path / "images" / "a.tif").unlink()
    pillow(two_squares()[:-1])(tmp_path / "labels" / "a.png")
    refused(r"labels.a\.png: the label map is \(19, 30\), its image .*\(20, 30\)")


def test_a_mask_in_place_of_a_label_map_is_named(tmp_path):
    own_folder(tmp_path, "a")
    pillow((two_squares() > 0) * np.uint8(255))(tmp_path / "labels" / "a.png")
    with pytest.warns(LabelWarning, match=r"labels.a\.png: all nuclei have one number: is it a mask"):
        datasets.read_folder(tmp_path)


def test_one_nucleus_or_none_is_no_mask():
    assert labels.looks_like_mask(two_squares() > 0)
    for label_map in (two_squares(), two_squares() == 1, np.zeros(SIZE, int)):
        assert not labels.looks_like_mask(label_map)
