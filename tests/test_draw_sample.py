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

BUNDLED = Path(__file__).parents[1] / "data" / "sample.zip"


def read_archive(path):
    """Return {id: (image as in the file, [mask, ...])}."""
    images, masks = {}, defaultdict(list)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            id_, folder, _ = name.split("/")
            array = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            if folder == "images":
                images[id_] = array
            else:
                masks[id_].append(array)
    return {id_: (images[id_], masks[id_]) for id_ in images}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return draw_sample.write_sample(tmp_path_factory.mktemp("sample") / "sample.zip", seed=0)


@pytest.fixture(scope="module")
def sample(archive):
    return read_archive(archive)


@pytest.fixture(scope="module")
def table():
    return {row["id"]: row for row in draw_sample.sample_table(0)}


def overlapping(masks):
    return np.sum([mask > 0 for mask in masks], axis=0).max() > 1


def with_hole(mask):
    inside = (mask > 0)[ndi.find_objects((mask > 0).astype(int))[0]]  # a hole lies within the bounding box
    return ndi.binary_fill_holes(inside).sum() > inside.sum()


def test_same_seed_same_bytes_in_another_process(archive, tmp_path):
    other = tmp_path / "other.zip"
    code = f"from tools import draw_sample; draw_sample.write_sample({str(other)!r}, seed=0)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "7"}, cwd=BUNDLED.parents[1])
    assert other.read_bytes() == archive.read_bytes()
    assert list(tmp_path.iterdir()) == [other]


def test_another_seed_gives_other_images():
    assert {row["id"] for row in draw_sample.sample_table(0)}.isdisjoint(
        row["id"] for row in draw_sample.sample_table(1)
    )
    first, second = (draw_sample.draw("fluorescence_small", seed, (96, 96))[0] for seed in (0, 1))
    assert (first != second).any()


def test_bundled_file_is_what_the_code_draws(sample):
    bundled = read_archive(BUNDLED)
    assert bundled.keys() == sample.keys()
    for id_, (image, masks) in sample.items():
        # Not the bytes: another release of a library may round a pixel or compress in another way.
        assert np.abs(bundled[id_][0].astype(int) - image).mean() < 0.5
        assert len(bundled[id_][1]) == len(masks)


def test_layout_is_that_of_the_real_archive(archive):
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        assert {entry.date_time for entry in opened.infolist()} == {(2018, 1, 1, 0, 0, 0)}
    assert names == sorted(names)
    assert len(names) == len(set(names))
    for name in names:
        id_, folder, file = name.split("/")
        assert len(id_) == 64
        int(id_, 16)
        assert file.endswith(".png")
        assert folder == "masks" or (folder == "images" and file == f"{id_}.png")


def test_archive_is_small(archive):
    assert archive.stat().st_size < 4_000_000
    assert BUNDLED.stat().st_size < 4_000_000


def test_files_agree_with_the_table(sample, table):
    assert sample.keys() == table.keys()
    assert Counter(row["image_type"] for row in table.values()) == draw_sample.COUNTS
    for id_, (image, masks) in sample.items():
        assert image.dtype == np.uint8
        assert image.shape == (*table[id_]["size"], table[id_]["channels"])
        assert all(128 <= side <= 320 for side in image.shape[:2])
        if image.shape[2] == 4:
            assert (image[..., 3] == 255).all()
        assert masks
        for mask in masks:
            assert mask.dtype == np.uint8
            assert mask.shape == image.shape[:2]
            assert set(np.unique(mask)) == {0, 255}
    assert {row["channels"] for row in table.values()} == {3, 4}


def test_kinds_look_like_themselves(sample, table):
    for id_, (image, masks) in sample.items():
        inside = np.any(masks, axis=0)
        light = image[..., :3].mean(axis=2)
        colour = np.ptp(image[..., :3].astype(int), axis=2).mean()
        image_type = table[id_]["image_type"]
        if image_type.startswith("fluorescence"):
            assert light[inside].mean() > light[~inside].mean()
            assert np.median(light[~inside]) < 50
        else:
            assert light[inside].mean() < light[~inside].mean() - 20
        assert (colour > 5) == image_type.startswith("purple")


def test_label_errors_are_there_and_only_on_purpose(sample, table):
    counts = Counter(row["error"] for row in table.values())
    assert all(counts[error] == len(numbers) == 3 for error, numbers in draw_sample.ERRORS.items())
    for id_, (_, masks) in sample.items():
        error = table[id_]["error"]
        assert overlapping(masks) == (error == "overlap")
        assert any(map(with_hole, masks)) == (error == "hole")
        assert sum((mask > 0).sum() == 2 for mask in masks) >= 3 * (error == "speck")
    missed = [row for row in table.values() if row["error"] == "missed"]
    for row in missed:
        whole = draw_sample._draw_row(row | {"error": ""}, 0)[1]
        assert 0 < len(sample[row["id"]][1]) < len(whole)


def test_twins_show_the_same_field(sample, table):
    groups = defaultdict(list)
    for row in table.values():
        groups[row["group"]].append(row)
    twins = [rows for rows in groups.values() if len(rows) > 1]
    assert len(twins) == len(draw_sample.COUNTS)
    for first, second in twins:
        down, right = second["corner"]
        one, other = (sample[row["id"]][0][..., :3] for row in (first, second))
        assert np.array_equal(one[down:, right:], other[:-down, :-right])


def test_nuclei_touch_in_most_images(sample):
    touching = 0
    for _, masks in sample.values():
        pieces = ndi.label(np.any(masks, axis=0), np.ones((3, 3)))[1]
        touching += pieces < len(masks)
    assert touching > len(sample) / 2


@pytest.mark.parametrize("image_type", draw_sample.COUNTS)
def test_a_drawing_has_exact_masks(image_type):
    image, masks = draw_sample.draw(image_type, seed=3, size=(128, 160))
    again, masks_again = draw_sample.draw(image_type, np.random.default_rng(3), (128, 160))
    assert np.array_equal(image, again)
    assert np.array_equal(masks, masks_again)
    assert image.shape == (128, 160, 3)
    assert image.dtype == np.uint8
    assert not overlapping(masks)
    for mask in masks:
        assert mask.dtype == bool
        assert mask.sum() >= draw_sample.SMALLEST
        assert ndi.label(mask)[1] == 1
        assert not with_hole(mask)
    # The edge of the drawing runs along the edge of the mask: inside is unlike just outside.
    inside = np.any(masks, axis=0)
    near = ndi.binary_dilation(inside, iterations=5) & ~ndi.binary_dilation(inside, iterations=2)
    light = image.mean(axis=2)
    assert abs(light[inside].mean() - light[near].mean()) > 5


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"'phase_contrast'.*fluorescence_small"):
        draw_sample.draw("phase_contrast")
    with pytest.raises(ValueError, match=r"\(32, 256\).*64"):
        draw_sample.draw("grey_tissue", size=(32, 256))
