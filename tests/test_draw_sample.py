"""Tests of `tools/draw_sample.py`, which draws the sample."""

import io
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage as ndi

from tools import draw_sample

COMMITTED = Path(__file__).parents[1] / "data" / "sample.zip"


def read_archive(path):
    """Return {id: (image as in the file, [mask, ...])}."""
    images, masks = {}, defaultdict(list)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            image_id, folder, _ = name.split("/")
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            if folder == "images":
                images[image_id] = pixels
            else:
                masks[image_id].append(pixels)
    return {image_id: (image, masks[image_id]) for image_id, image in images.items()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return draw_sample.write_sample(tmp_path_factory.mktemp("sample") / "sample.zip")


@pytest.fixture(scope="module")
def sample(archive):
    return read_archive(archive)


@pytest.fixture(scope="module")
def table():
    return {row["id"]: row for row in draw_sample.sample_table()}


def has_overlap(masks):
    return np.sum([mask > 0 for mask in masks], axis=0).max() > 1


def has_hole(mask):
    inside = (mask > 0)[ndi.find_objects((mask > 0).astype(int))[0]]
    return ndi.binary_fill_holes(inside).sum() > inside.sum()


def test_same_seed_gives_the_same_bytes_in_another_process(archive, tmp_path):
    path = tmp_path / "other.zip"
    code = f"from tools import draw_sample; draw_sample.write_sample({str(path)!r}, seed=0)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "7"}, cwd=COMMITTED.parents[1])
    assert path.read_bytes() == archive.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_another_seed_gives_other_images():
    ids = [{row["id"] for row in draw_sample.sample_table(seed)} for seed in (0, 1)]
    assert ids[0].isdisjoint(ids[1])
    first, second = (draw_sample.draw("fluorescence_small", seed, (96, 96))[0] for seed in (0, 1))
    assert (first != second).any()


def test_committed_sample_is_drawn_by_the_code(sample):
    committed = read_archive(COMMITTED)
    assert committed.keys() == sample.keys()
    for image_id, (image, masks) in sample.items():
        # The bytes can differ, because another version of a library can round or compress in another way.
        assert np.abs(committed[image_id][0].astype(int) - image).mean() < 0.5
        assert len(committed[image_id][1]) == len(masks)


def test_archive_has_the_layout_of_the_real_data(archive):
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
        assert {entry.date_time for entry in file.infolist()} == {(2018, 1, 1, 0, 0, 0)}
    assert names == sorted(set(names))
    for name in names:
        image_id, folder, file = name.split("/")
        assert len(image_id) == 64
        assert file.endswith(".png")
        assert folder == "masks" or (folder == "images" and file == f"{image_id}.png")
    assert archive.stat().st_size < 4_000_000


def test_files_agree_with_the_table(sample, table):
    assert sample.keys() == table.keys()
    assert Counter(row["image_type"] for row in table.values()) == draw_sample.COUNTS
    assert {row["channels"] for row in table.values()} == {3, 4}
    for image_id, (image, masks) in sample.items():
        assert image.dtype == np.uint8
        assert image.shape == (*table[image_id]["size"], table[image_id]["channels"])
        assert all(128 <= side <= 320 for side in image.shape[:2])
        assert image.shape[2] == 3 or (image[..., 3] == 255).all()
        assert masks
        for mask in masks:
            assert mask.dtype == np.uint8
            assert mask.shape == image.shape[:2]
            assert set(np.unique(mask)) == {0, 255}


def test_image_types_have_their_colours(sample, table):
    for image_id, (image, masks) in sample.items():
        inside, brightness = np.any(masks, axis=0), image[..., :3].mean(axis=2)
        colour = np.ptp(image[..., :3].astype(int), axis=2).mean()
        image_type = table[image_id]["image_type"]
        if image_type.startswith("fluorescence"):
            assert brightness[inside].mean() > brightness[~inside].mean()
            assert np.median(brightness[~inside]) < 50
        else:
            assert brightness[inside].mean() < brightness[~inside].mean() - 20
        assert (colour > 5) == image_type.startswith("purple")


def test_label_errors_are_in_the_listed_images_only(sample, table):
    counts = Counter(row["error"] for row in table.values())
    assert all(counts[error] == len(numbers) == 3 for error, numbers in draw_sample.ERRORS.items())
    for image_id, (_, masks) in sample.items():
        error = table[image_id]["error"]
        assert has_overlap(masks) == (error == "overlap")
        assert any(map(has_hole, masks)) == (error == "hole")
        assert sum((mask > 0).sum() == 2 for mask in masks) >= 3 * (error == "speck")
        if error == "missed":
            row = table[image_id]
            seed = [0, list(draw_sample.COUNTS).index(row["image_type"]), row["field"]]
            assert len(masks) < len(draw_sample.draw(row["image_type"], seed, row["size"])[1])


def test_near_duplicates_show_the_same_field(sample, table):
    groups = defaultdict(list)
    for row in table.values():
        groups[row["group"]].append(row)
    pairs = [rows for rows in groups.values() if len(rows) > 1]
    assert len(pairs) == len(draw_sample.COUNTS)
    for rows in pairs:
        down, right = rows[1]["corner"]
        first, second = (sample[row["id"]][0][..., :3] for row in rows)
        assert np.array_equal(first[down:, right:], second[:-down, :-right])


def test_nuclei_touch_in_most_images(sample):
    is_touching = [ndi.label(np.any(masks, axis=0), np.ones((3, 3)))[1] < len(masks) for _, masks in sample.values()]
    assert np.mean(is_touching) > 0.5


@pytest.mark.parametrize("image_type", draw_sample.COUNTS)
def test_masks_of_a_drawing_are_exact(image_type):
    image, masks = draw_sample.draw(image_type, seed=3, size=(128, 160))
    same_image, same_masks = draw_sample.draw(image_type, np.random.default_rng(3), (128, 160))
    assert np.array_equal(image, same_image)
    assert np.array_equal(masks, same_masks)
    assert image.shape == (128, 160, 3)
    assert image.dtype == np.uint8
    assert not has_overlap(masks)
    for mask in masks:
        assert mask.dtype == bool
        assert mask.sum() >= draw_sample.MIN_SIZE
        assert ndi.label(mask)[1] == 1
        assert not has_hole(mask)
    inside = np.any(masks, axis=0)
    outside = ndi.binary_dilation(inside, iterations=5) & ~ndi.binary_dilation(inside, iterations=2)
    brightness = image.mean(axis=2)
    assert abs(brightness[inside].mean() - brightness[outside].mean()) > 5, "masks and drawing share their outlines"


@pytest.mark.parametrize(
    ("args", "message"), [(("phase_contrast",), "phase_contrast"), (("grey_tissue", 0, (32, 256)), "32")]
)
def test_wrong_arguments_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        draw_sample.draw(*args)
