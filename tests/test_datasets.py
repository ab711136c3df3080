"""Tests of `datasets`, with the sample and with small data in the layout of the real set."""

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

from nuclei_utils import datasets, io
from nuclei_utils.errors import LabelWarning, NucleiError
from tools import draw_sample

ARCHIVE = Path(__file__).parents[1] / "data" / "sample.zip"
SIZE = (20, 30)
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
RGBA = np.dstack([COLOUR, RNG.integers(0, 256, SIZE).astype(np.uint8)])


def square(top, left, bottom, right, value=255):
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = value
    return mask


NUCLEUS = square(5, 5, 9, 12)
LABEL_MAP = square(2, 3, 8, 9, value=1) + square(10, 15, 18, 25, value=2)


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_image(folder, masks, images=("a1.png",)):
    """Write an image and its masks, {file name: array}, in the layout of the competition."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in images:
        save(RGBA, folder / "images" / name)
    for name, mask in masks.items():
        save(mask, folder / "masks" / name)
    return folder


# Read one image


def test_read_record(tmp_path):
    folder = save_image(tmp_path / "a1", {"2.png": square(0, 0, 3, 3), "1.png": square(10, 10, 15, 15, value=1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = datasets.read_record(str(folder))
    assert (record.id, record.image_type) == ("a1", "")
    np.testing.assert_array_equal(record.image, COLOUR)
    assert record.label_map.dtype == np.int32
    assert record.label_map[12, 12] == 1, "the order of the file names numbers the nuclei"
    assert record.label_map[1, 1] == 2


@pytest.mark.parametrize(
    ("masks", "file", "areas"),
    [
        ({"large.png": square(0, 0, 10, 10), "small.png": square(8, 8, 12, 12)}, "large.png: 4 pixels", [96, 16]),
        ({"empty.png": square(0, 0, 0, 0), "full.png": NUCLEUS}, "empty.png: empty", [28]),
        ({"a.png": NUCLEUS, "b.png": NUCLEUS}, "a.png: wholly under", [28]),
    ],
)
def test_read_record_warns_about_empty_and_overlapping_masks(tmp_path, masks, file, areas):
    folder = save_image(tmp_path / "a1", masks)
    with pytest.warns(LabelWarning, match=re.escape(f"{folder / 'masks' / file}")) as caught:
        record = datasets.read_record(folder)
    assert len(caught) == 1
    assert caught[0].filename == __file__, "the warning names the calling line"
    assert np.bincount(record.label_map.ravel())[1:].tolist() == areas


def test_hidden_files_and_notes_are_ignored(tmp_path):
    folder = save_image(tmp_path / "a1", {"a.png": NUCLEUS, "B.PNG": square(15, 15, 18, 18)})
    for name in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini", "notes.txt"):
        (folder / "masks" / name).write_bytes(b"\0\5\x16\7")
        (folder / "images" / name).write_bytes(b"\0\5\x16\7")
    assert datasets.read_record(folder).label_map.max() == 2


def test_read_masks(tmp_path):
    folder = save_image(tmp_path / "a1", {"a.png": NUCLEUS, "b.png": square(15, 15, 18, 18)})
    np.testing.assert_array_equal(datasets.read_masks(folder / "masks"), datasets.read_record(folder).label_map)
    with pytest.raises(NucleiError, match=r"a\.png"):
        datasets.read_masks(folder / "masks", (9, 9))


@pytest.mark.parametrize(
    ("masks", "images", "missing", "message"),
    [
        ({}, ["a1.png"], None, "masks has no masks"),
        ({}, ["a1.png"], "masks", "masks is missing"),
        ({"a.png": NUCLEUS}, ["a.png", "b.tif"], None, r"images: found 2 images \(a\.png, b\.tif\)"),
        ({"a.png": NUCLEUS}, [], None, "images: found 0 images"),
        ({"a.png": NUCLEUS}, ["a1.png"], "images", "images is missing"),
        ({"a.png": NUCLEUS, "b.png": NUCLEUS[:7]}, ["a1.png"], None, r"masks/b\.png: .*\(7, 30\).*\(20, 30\)"),
    ],
)
def test_incomplete_folders_are_named(tmp_path, masks, images, missing, message):
    folder = save_image(tmp_path / "a1", masks, images)
    if missing:
        shutil.rmtree(folder / missing)
    with pytest.raises(NucleiError, match=f"{re.escape(str(folder))}/{message}"):
        datasets.read_record(folder)


# Folders


def test_home_is_the_variable_or_the_clone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for value, expected in {"": ARCHIVE.parent, "a b": tmp_path / "a b", "~/nuclei": Path.home() / "nuclei"}.items():
        monkeypatch.setenv("NUCLEI_HOME", value)
        assert datasets.home() == expected
    monkeypatch.setenv("NUCLEI_HOME", "~nosuchuser/nuclei")
    with pytest.raises(NucleiError, match="~nosuchuser"):
        datasets.home()


def test_installed_package_uses_the_working_directory(tmp_path):
    """The package has its files in `assets`; another project beside the package has a folder `data`."""
    package = tmp_path / "site" / "nuclei_utils"
    package.mkdir(parents=True)
    for path in Path(datasets.__file__).parent.glob("*.py"):
        shutil.copy(path, package)
    shutil.copytree(ARCHIVE.parent / "splits", package / "assets" / "splits")
    shutil.copy(ARCHIVE, package / "assets")
    (tmp_path / "site" / "data").mkdir()
    (tmp_path / "work").mkdir()
    code = "from nuclei_utils import datasets as d; print(d.home(), d.current(), len(d.ids()), d.folder('sample'))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUCLEI_")}
    environment["PYTHONPATH"] = str(package.parent)
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "work", env=environment, check=True, capture_output=True, text=True
    )
    home, *result, folder = process.stdout.split()
    assert [Path(home), *result] == [tmp_path / "work" / "data", "sample", "40"]
    assert Path(folder).parent == tmp_path / "work" / "data"
    assert len(list(Path(folder).iterdir())) == 40


def test_current_is_the_best_data_set(monkeypatch, tmp_path):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path))
    monkeypatch.delenv("NUCLEI_DATA", raising=False)
    folders = {"stage1_train_fixes": "sample", "stage1_train.partial": "sample", "stage1_train": "stage1_fixed"}
    for name, expected in folders.items():
        (tmp_path / "dsb2018" / name).mkdir(parents=True)
        assert datasets.current() == expected
    (tmp_path / "dsb2018" / "stage1_train_fixes").rmdir()
    assert datasets.current() == "stage1"
    monkeypatch.setenv("NUCLEI_DATA", "sample")
    assert datasets.current() == "sample"
    monkeypatch.setenv("NUCLEI_DATA", "stage2")
    with pytest.raises(NucleiError, match="stage2"):
        datasets.current()


def test_unknown_names_and_missing_data_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path))
    read = (datasets.folder, datasets.load, datasets.label_problems)
    for function in (*read, datasets.split_table, datasets.ids):
        with pytest.raises(NucleiError, match=r"'stage2'.*sample, stage1, stage1_fixed"):
            function("stage2")
    for function in read:
        with pytest.raises(NucleiError, match=r"stage1_train is missing: .* `python -m nuclei_utils data"):
            function("stage1")
    for split in ("dev", ""):
        with pytest.raises(NucleiError, match=f"'{split}'.*train, validation, test"):
            datasets.ids("sample", split)
    with pytest.raises(NucleiError, match=r"nothing\.zip is missing"):
        datasets.asset("nothing.zip")
    assert list(tmp_path.iterdir()) == []


# The sample


@pytest.fixture(scope="session")
def sample_home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def sample(sample_home, monkeypatch):
    """Set a home folder in which all tests share the unpacked sample."""
    monkeypatch.setenv("NUCLEI_HOME", str(sample_home))
    monkeypatch.setenv("NUCLEI_DATA", "sample")
    return sample_home


def test_sample_is_unpacked_once(sample):
    folder = datasets.folder("sample")
    assert folder.parent == sample
    assert re.fullmatch(r"sample-[0-9a-f]{8}", folder.name)
    with zipfile.ZipFile(ARCHIVE) as file:
        assert sum(path.is_file() for path in folder.rglob("*")) == len(file.namelist())
    time = folder.stat().st_mtime_ns
    assert datasets.folder("sample").stat().st_mtime_ns == time


@pytest.fixture
def small_archive(tmp_path, monkeypatch):
    """Replace the sample by an archive with one file."""
    archive = tmp_path / "sample.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a1/images/a1.png", b"image")
    monkeypatch.setattr(datasets, "asset", lambda name: tmp_path / name)
    monkeypatch.setenv("NUCLEI_HOME", str(tmp_path / "home"))
    return archive


def test_new_sample_replaces_the_old_sample(small_archive):
    old = datasets.folder("sample")
    (old.parent / "sample-mine").mkdir()
    with zipfile.ZipFile(small_archive, "a") as file:
        file.writestr("a2/images/a2.png", b"image")
    new = datasets.folder("sample")
    assert len(list(new.iterdir())) == 2
    assert sorted(path.name for path in new.parent.iterdir()) == sorted([new.name, "sample-mine"])


def test_interrupted_unpacking_leaves_no_folder(small_archive, tmp_path, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", interrupt)
        with pytest.raises(KeyboardInterrupt):
            datasets.folder("sample")
    assert not list((tmp_path / "home").iterdir())
    assert (datasets.folder("sample") / "a1" / "images" / "a1.png").read_bytes() == b"image"


def test_two_processes_can_unpack_at_once(small_archive, tmp_path, monkeypatch):
    folder = datasets.folder("sample")
    shutil.move(folder, tmp_path / "other")
    extract = zipfile.ZipFile.extractall

    def overtake(file, target):
        extract(file, target)
        shutil.copytree(tmp_path / "other", folder)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", overtake)
    assert datasets.folder("sample") == folder
    assert list((tmp_path / "home").iterdir()) == [folder]


@pytest.mark.usefixtures("sample")
def test_load_reads_the_images_of_the_table():
    table = datasets.split_table("sample").set_index("id")
    assert table.columns.tolist() == ["image_type", "group", "split"]
    assert set(table["image_type"]) == set(datasets.IMAGE_TYPES)
    records = datasets.load()
    assert [record.id for record in records] == sorted(table.index) == datasets.ids()
    for record in records:
        assert record.image.dtype == np.uint8
        assert record.image.shape == (*record.label_map.shape, 3)
        assert record.label_map.dtype == np.int32
        assert record.label_map.max() == len(np.unique(record.label_map)) - 1 > 0
        assert record.image_type == table.loc[record.id, "image_type"]
    for split in datasets.SPLITS:
        image_ids = table.index[table["split"] == split]
        assert [record.id for record in datasets.load("sample", split)] == sorted(image_ids)


@pytest.mark.usefixtures("sample")
def test_load_and_read_record_agree():
    loaded = datasets.load("sample", "test")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelWarning)
        record = datasets.read_record(datasets.folder("sample") / loaded.id)
    np.testing.assert_array_equal(record.image, loaded.image)
    np.testing.assert_array_equal(record.label_map, loaded.label_map)


@pytest.mark.usefixtures("sample")
def test_label_problems_list_all_overlaps():
    table = datasets.label_problems()
    assert table.columns.tolist() == ["id", "file", "problem", "pixels"]
    deliberate = {row["id"] for row in draw_sample.sample_table() if row["error"] == "overlap"}
    assert deliberate <= set(table["id"])
    for image_id in datasets.ids():
        masks = [io.read_mask(path) for path in sorted((datasets.folder("sample") / image_id / "masks").iterdir())]
        rows = table[table["id"] == image_id]
        assert rows["pixels"].sum() == np.sum(masks) - np.any(masks, axis=0).sum()
        assert all((datasets.folder("sample") / image_id / "masks" / file).is_file() for file in rows["file"])


# Small data in the layout of the real set


@pytest.fixture
def real(tmp_path, monkeypatch):
    """Write three images in the layout of the real set. The corrections change b and remove c."""
    home = tmp_path / "home"
    train, fixes = home / "dsb2018" / "stage1_train", home / "dsb2018" / "stage1_train_fixes"
    for image_id in "abc":
        masks = {"1.png": square(0, 0, 10, 10), "2.png": square(9, 9, 12, 12)}
        save_image(train / image_id, masks, [f"{image_id}.png"])
    save(square(9, 9, 15, 15), fixes / "b" / "masks" / "only.png")
    (fixes / "REMOVED.txt").write_text("c\n")
    table = {"id": list("abc"), "image_type": "grey_tissue", "group": ["g1", "g2", "g3"], "split": datasets.SPLITS}
    (tmp_path / "splits").mkdir()
    pd.DataFrame(table).to_csv(tmp_path / "splits" / "stage1_train.csv", index=False)
    monkeypatch.setattr(datasets, "asset", lambda name: tmp_path / name)
    monkeypatch.setenv("NUCLEI_HOME", str(home))
    monkeypatch.delenv("NUCLEI_DATA", raising=False)
    return home / "dsb2018"


@pytest.fixture
def mask_paths(monkeypatch):
    """Return a list that collects the paths of all masks that `datasets` reads."""
    paths = []
    monkeypatch.setattr(datasets, "read_mask", lambda path, shape=None: paths.append(path) or io.read_mask(path, shape))
    return paths


def test_corrected_masks_replace_the_original_masks(real):
    assert datasets.current() == "stage1_fixed"
    original, fixed = datasets.load("stage1"), datasets.load()
    assert [record.id for record in original] == ["a", "b", "c"]
    assert [record.id for record in fixed] == ["a", "b"], "the corrections remove c"
    assert [record.label_map.max() for record in original] == [2, 2, 2]
    assert [record.label_map.max() for record in fixed] == [2, 1]
    np.testing.assert_array_equal(fixed[1].label_map > 0, square(9, 9, 15, 15) > 0)
    np.testing.assert_array_equal(fixed[1].image, COLOUR)
    assert datasets.load("stage1_fixed", "test") == []
    rows = datasets.label_problems("stage1")[["id", "file", "pixels"]]
    assert rows.to_numpy().tolist() == [["a", "1.png", 1], ["b", "1.png", 1], ["c", "1.png", 1]]
    assert datasets.label_problems("stage1_fixed")["id"].tolist() == ["a"]


def test_folders_of_the_real_set(real):
    train, fixes = real / "stage1_train", real / "stage1_train_fixes"
    assert datasets.folder("stage1_fixed") == datasets.folder("stage1") == train
    assert datasets.masks_folders("stage1") == {image_id: train / image_id / "masks" for image_id in "abc"}
    assert datasets.masks_folders("stage1_fixed") == {"a": train / "a" / "masks", "b": fixes / "b" / "masks"}


def test_incomplete_corrections_are_named(real):
    (real / "stage1_train_fixes" / "REMOVED.txt").unlink()
    with pytest.raises(NucleiError, match=r"REMOVED\.txt is missing: fetch"):
        datasets.load("stage1_fixed")
    shutil.rmtree(real / "stage1_train_fixes")
    with pytest.raises(NucleiError, match="stage1_train_fixes is missing: fetch"):
        datasets.load("stage1_fixed")


def test_second_load_reads_the_cache(real, mask_paths):
    first = datasets.load("stage1")
    datasets.load("stage1_fixed")
    assert len(mask_paths) == 6 + 3
    for record, cached in zip(first, datasets.load("stage1"), strict=True):
        np.testing.assert_array_equal(record.label_map, cached.label_map)
        assert cached.label_map.dtype == np.int32
    datasets.load("stage1_fixed", "train")
    assert len(mask_paths) == 9


def set_time(path):
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda train: set_time(train / "a" / "masks" / "2.png"),
        lambda train: set_time(train / "a" / "images" / "a.png"),
        lambda train: save(square(17, 17, 19, 19), train / "a" / "masks" / "3.png"),
        lambda train: (train / "a" / "masks" / "2.png").unlink(),
        lambda train: (train / "a" / "masks" / "2.png").rename(train / "a" / "masks" / "0.png"),
    ],
    ids=["time of a mask", "time of the image", "new mask", "removed mask", "renamed mask"],
)
def test_change_of_a_file_makes_the_cache_stale(real, mask_paths, change):
    datasets.load("stage1")
    change(real / "stage1_train")
    mask_paths.clear()
    label_map = datasets.load("stage1")[0].label_map
    count = len(list((real / "stage1_train" / "a" / "masks").iterdir()))
    assert label_map.max() == count
    assert len(mask_paths) == 4 + count
    assert len(list((real.parent / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["half", "empty", "zeros", "text", "middle"])
def test_damaged_cache_is_named_and_written_again(real, mask_paths, damage):
    first = datasets.load("stage1")
    (cache,) = (real.parent / "cache").iterdir()
    content = cache.read_bytes()
    middle = content[:60] + bytes(30) + content[90:]
    contents = {"half": content[:200], "empty": b"", "zeros": bytes(500), "text": b"no archive", "middle": middle}
    cache.write_bytes(contents[damage])
    with pytest.warns(UserWarning, match=re.escape(str(cache))):
        second = datasets.load("stage1")
    for record, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(record.label_map, other.label_map)
    mask_paths.clear()
    datasets.load("stage1")
    assert not mask_paths


def test_interruption_leaves_no_cache(real, monkeypatch):
    def interrupt(path, **_arrays):
        Path(path).write_bytes(b"PK first half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            datasets.load("stage1")
    assert not list((real.parent / "cache").iterdir())
    assert [record.label_map.max() for record in datasets.load("stage1")] == [2, 2, 2]


def test_faulty_file_is_named_and_not_cached(real):
    path = real / "stage1_train" / "b" / "masks" / "2.png"
    content = path.read_bytes()
    for fault in (content[:-20], None):
        path.write_bytes(fault) if fault else save(RGBA[:5, :, 0], path)
        for function in (datasets.load, datasets.label_problems):
            with pytest.raises(NucleiError, match=re.escape(str(path))):
                function("stage1")
        assert not (real.parent / "cache").exists()
    path.write_bytes(content)
    assert len(datasets.load("stage1")) == 3
    shutil.rmtree(path.parents[1])
    with pytest.raises(NucleiError, match=re.escape(str(path.parents[1]))):
        datasets.load("stage1")


def test_data_without_problems_give_an_empty_table(real):
    for image_id in "abc":
        (real / "stage1_train" / image_id / "masks" / "2.png").unlink()
    table = datasets.label_problems("stage1")
    assert len(table) == 0
    assert table.columns.tolist() == ["id", "file", "problem", "pixels"]


def test_file_names_can_have_other_bytes_than_utf_8(real):
    masks = real / "stage1_train" / "a" / "masks"
    try:
        (masks / "1.png").rename(masks / b"1\xff.png".decode(errors="surrogateescape"))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert datasets.load("stage1")[0].label_map.max() == 2
    assert datasets.label_problems("stage1").set_index("id").loc["a", "file"] == r"1\udcff.png"


# Folders of labelled images


def save_pairs(folder, names=("b", "a"), image=".png", label=".png"):
    for name in names:
        save(COLOUR, folder / "images" / f"{name}{image}")
        save(LABEL_MAP, folder / "labels" / f"{name}{label}")


@pytest.mark.parametrize(("image", "label"), [(".png", ".png"), (".tif", "_labels.png"), (".bmp", ".tif")])
def test_read_folder_with_label_maps(tmp_path, image, label):
    save_pairs(tmp_path, image=image, label=label)
    (tmp_path / "images" / ".DS_Store").touch()
    (tmp_path / "labels" / "notes.txt").touch()
    records = datasets.read_folder(tmp_path)
    assert [(record.id, record.image_type) for record in records] == [("a", ""), ("b", "")]
    for record in records:
        assert np.array_equal(record.image, COLOUR)
        assert np.array_equal(record.label_map, LABEL_MAP)
        assert record.label_map.dtype == np.int32


def test_read_folder_in_the_layout_of_the_competition(tmp_path):
    for name in ("b", "a"):
        save_image(tmp_path / name, {f"{n}.png": (n == LABEL_MAP) * np.uint8(255) for n in (1, 2)}, [f"{name}.png"])
    (tmp_path / "notes").mkdir()
    records = datasets.read_folder(tmp_path)
    assert [record.id for record in records] == ["a", "b"]
    assert np.array_equal(records[0].label_map, LABEL_MAP)
    for name, missing in (("b", "masks"), ("a", "images")):
        shutil.rmtree(tmp_path / name / missing)
        with pytest.raises(NucleiError, match=re.escape(str(tmp_path / name / missing))):
            datasets.read_folder(tmp_path)


def test_read_folder_needs_one_nucleus(tmp_path):
    save_pairs(tmp_path)
    for name in "ab":
        save(LABEL_MAP * 0, tmp_path / "labels" / f"{name}.png")
    with pytest.raises(NucleiError, match=f"{re.escape(str(tmp_path))}: found no nucleus"):
        datasets.read_folder(tmp_path)
    save(LABEL_MAP, tmp_path / "labels" / "a.png")
    assert len(datasets.read_folder(tmp_path)) == 2


def test_read_folder_warns_about_a_mask(tmp_path):
    save_pairs(tmp_path, "a")
    save((LABEL_MAP > 0) * np.uint8(255), tmp_path / "labels" / "a.png")
    with pytest.warns(LabelWarning, match=r"labels.a\.png"):
        datasets.read_folder(tmp_path)


def test_read_folder_names_faults(tmp_path):
    def refused(message, path=tmp_path):
        with pytest.raises(NucleiError, match=message):
            datasets.read_folder(path)

    refused("nowhere is not a folder", tmp_path / "nowhere")
    refused("no labelled images")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    refused("images has no image")
    save_pairs(tmp_path)
    (tmp_path / "labels" / "a.png").rename(tmp_path / "labels" / "c.png")
    refused("a, c")
    save_pairs(tmp_path, "c")
    save_pairs(tmp_path, "a", image=".tif")
    save(COLOUR, tmp_path / "images" / "a.png")
    refused(r"a\.png and a\.tif")
    (tmp_path / "images" / "a.tif").unlink()
    save(LABEL_MAP[:-1], tmp_path / "labels" / "a.png")
    refused(r"labels.a\.png: .*\(19, 30\).*\(20, 30\)")
