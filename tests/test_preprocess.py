import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nuclei_utils import preprocess

sides = st.integers(1, 24)
images = st.tuples(sides, sides).flatmap(
    lambda size: arrays.arrays(np.uint8, st.sampled_from([size, (*size, 1), (*size, 3)]))
)
label_maps = st.tuples(sides, sides).flatmap(lambda size: arrays.arrays(np.int32, size, elements=st.integers(0, 500)))


@given(images)
def test_normalize_keeps_shape_and_range(image):
    normal = preprocess.normalize(image)
    assert normal.shape == image.shape
    assert normal.dtype == np.float32
    assert normal.min() >= 0
    assert normal.max() <= 1


@given(images, st.floats(0.5, 8), st.floats(-50, 50))
def test_normalize_takes_exposure_and_offset_out(image, exposure, offset):
    other = image.astype(np.float64) * exposure + offset
    np.testing.assert_allclose(preprocess.normalize(other), preprocess.normalize(image), atol=1e-4)


@given(images)
def test_normalize_keeps_the_order_of_the_values(image):
    order = np.argsort(image, axis=None, kind="stable")
    assert (np.diff(preprocess.normalize(image).ravel()[order]) >= 0).all()


def test_normalize_flat_image_is_black():
    assert not preprocess.normalize(np.full((8, 8, 3), 200, np.uint8)).any()


def test_normalize_sees_nuclei_that_the_percentile_misses():
    image = np.zeros((100, 100), np.uint8)
    image[0, 0] = 50
    assert preprocess.normalize(image).max() == 1


def test_normalize_channels_share_one_scale():
    image = np.zeros((10, 10, 3), np.uint8)
    image[:5] = (200, 100, 50)
    np.testing.assert_allclose(preprocess.normalize(image)[0, 0], [1, 0.5, 0.25])


@given(images, st.sampled_from([np.uint8, np.uint16, np.float32]))
def test_limits_and_stretch_part_by_part_are_normalize(image, image_type):
    image = image.astype(image_type)
    ends = preprocess.intensity_range(image)
    middle = len(image) // 2
    parts = [preprocess.rescale_intensity(part, *ends) for part in (image[:middle], image[middle:])]
    assert np.array_equal(np.concatenate(parts), preprocess.normalize(image))


@given(images)
def test_limits_are_percentiles_of_every_pixel(image):
    dark, bright = np.percentile(image, [5, 95])
    if dark < bright:
        assert preprocess.intensity_range(image, 5, 95) == (dark, bright)
    else:
        assert preprocess.intensity_range(image, 5, 95) == (image.min(), image.max())


def test_limits_of_a_large_image_come_from_a_grid_of_its_pixels(monkeypatch):
    image = np.random.default_rng(0).gamma(2, 20, (300, 400, 3)).clip(0, 255).astype(np.uint8)
    image[1::2] //= 2  # every other row is darker, as through a camera's filter
    exact = preprocess.intensity_range(image)
    monkeypatch.setattr(preprocess, "EXACT", 20_000)
    taken = []
    percentile = np.percentile
    monkeypatch.setattr(np, "percentile", lambda values, q: taken.append(values.shape) or percentile(values, q))
    np.testing.assert_allclose(preprocess.intensity_range(image), exact, atol=5)
    assert taken == [(100, 134, 3)]


def test_limits_of_a_large_dark_image_see_its_only_bright_pixel(monkeypatch):
    monkeypatch.setattr(preprocess, "EXACT", 100)
    image = np.zeros((100, 100, 3), np.uint8)
    image[50, 51] = 90
    assert preprocess.intensity_range(image) == (0, 90)


def test_clahe_raises_contrast_and_keeps_grey_grey():
    grey = np.tile(np.linspace(100, 120, 64).astype(np.uint8), (64, 1))
    even = preprocess.clahe(np.dstack([grey] * 3), clip_limit=4)
    assert even.shape == (64, 64, 3)
    assert even.dtype == np.uint8
    assert even.std() > grey.std()
    assert np.ptp(even.astype(int), axis=2).max() <= 2  # L*a*b* and back rounds


@given(images, sides, sides)
def test_pad_and_cut_give_the_image_back(image, height, width):
    padded = preprocess.pad_to(image, (height, width))
    assert padded.shape[:2] == (max(height, image.shape[0]), max(width, image.shape[1]))
    assert padded.dtype == image.dtype
    assert np.array_equal(padded[: image.shape[0], : image.shape[1]], image)
    assert np.isin(padded, image).all(), "nothing new comes in"


@given(images, st.sampled_from([1, 2, 8, 16, 32]))
def test_pad_to_multiple(image, multiple):
    padded = preprocess.pad_to_multiple(image, multiple)
    assert all(size % multiple == 0 for size in padded.shape[:2])
    assert all(padded.shape[axis] - image.shape[axis] < multiple for axis in (0, 1))
    assert np.array_equal(padded[: image.shape[0], : image.shape[1]], image)


@given(images, st.data())
def test_crops_put_together_give_the_image_back(image, chance):
    height, width = image.shape[:2]
    row, column = chance.draw(st.integers(0, height)), chance.draw(st.integers(0, width))
    quarters = [
        [
            preprocess.crop(image, 0, 0, (row, column)),
            preprocess.crop(image, 0, column, (row, width - column)),
        ],
        [
            preprocess.crop(image, row, 0, (height - row, column)),
            preprocess.crop(image, row, column, (height - row, width - column)),
        ],
    ]
    assert np.array_equal(np.concatenate([np.concatenate(half, axis=1) for half in quarters]), image)


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (3, 0), (0, 5)])
def test_crop_refuses_to_leave_the_image(top, left):
    with pytest.raises(ValueError, match=r"leaves the image of \(4, 6\).*pad_to"):
        preprocess.crop(np.zeros((4, 6)), top, left, (2, 2))


@given(label_maps, sides, sides)
def test_resize_labels_invents_no_label(labels, height, width):
    small = preprocess.resize_label_map(labels, (height, width))
    assert small.shape == (height, width)
    assert small.dtype == labels.dtype
    assert np.isin(small, labels).all()


@given(label_maps, st.integers(1, 4))
def test_resize_labels_to_a_multiple_and_back(labels, factor):
    large = preprocess.resize_label_map(labels, (labels.shape[0] * factor, labels.shape[1] * factor))
    assert np.array_equal(large, np.kron(labels, np.ones((factor, factor), np.int32)))
    assert np.array_equal(preprocess.resize_label_map(large, labels.shape), labels)


@given(images, sides, sides)
def test_resize_gives_the_shape_that_was_asked_for(image, height, width):
    resized = preprocess.resize(image, (height, width))
    assert resized.shape == (height, width, *image.shape[2:])
    assert resized.dtype == image.dtype
    assert image.min() <= resized.min() <= resized.max() <= image.max()


def test_resize_averages_where_it_shrinks():
    board = (np.indices((8, 8)).sum(0) % 2 * 200).astype(np.uint8)
    assert np.array_equal(preprocess.resize(board, (4, 4)), np.full((4, 4), 100))


def test_image_and_labels_shrink_to_the_same_place():
    labels = np.zeros((96, 144), np.int32)
    cv2.circle(labels, (100, 40), 20, 1, -1)
    image = np.dstack([labels * 255] * 3).astype(np.uint8)
    small_image = preprocess.resize(image, (32, 48))[..., 0] > 127
    small_labels = preprocess.resize_label_map(labels, (32, 48)) > 0
    assert (small_image != small_labels).sum() <= 0.05 * small_labels.sum()


def test_crop_middle_takes_the_middle_or_all_there_is():
    image = np.arange(7 * 4).reshape(7, 4)
    assert np.array_equal(preprocess.center_crop(image, (3, 2)), image[2:5, 1:3])
    assert np.array_equal(preprocess.center_crop(image, (3, 9)), image[2:5])
