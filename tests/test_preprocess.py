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


# Intensities


@given(images)
def test_normalized_image_keeps_shape_order_and_range(image):
    normal = preprocess.normalize(image)
    assert normal.shape == image.shape
    assert normal.dtype == np.float32
    assert normal.min() >= 0
    assert normal.max() <= 1
    assert (np.diff(normal.ravel()[np.argsort(image, axis=None, kind="stable")]) >= 0).all()


@given(images, st.floats(0.5, 8), st.floats(-50, 50))
def test_normalize_removes_exposure_and_offset(image, exposure, offset):
    other = image.astype(np.float64) * exposure + offset
    np.testing.assert_allclose(preprocess.normalize(other), preprocess.normalize(image), atol=1e-4)


def test_flat_image_becomes_black():
    assert not preprocess.normalize(np.full((8, 8, 3), 200, np.uint8)).any()


def test_channels_share_one_scale():
    image = np.zeros((10, 10, 3), np.uint8)
    image[:5] = (200, 100, 50)
    np.testing.assert_allclose(preprocess.normalize(image)[0, 0], [1, 0.5, 0.25])


@given(images, st.sampled_from([np.uint8, np.uint16, np.float32]))
def test_image_can_be_normalized_in_tiles(image, dtype):
    image = image.astype(dtype)
    limits = preprocess.intensity_range(image)
    tiles = [preprocess.rescale_intensity(tile, *limits) for tile in np.array_split(image, 2)]
    assert np.array_equal(np.concatenate(tiles), preprocess.normalize(image))


@given(images)
def test_intensity_range_is_percentiles_or_minimum_and_maximum(image):
    dark, bright = np.percentile(image, [5, 95])
    expected = (dark, bright) if dark < bright else (image.min(), image.max())
    assert preprocess.intensity_range(image, 5, 95) == expected


def test_intensity_range_of_a_large_image_is_sampled(monkeypatch):
    image = np.random.default_rng(0).gamma(2, 20, (300, 400, 3)).clip(0, 255).astype(np.uint8)
    image[1::2] //= 2  # every other row is darker, as behind the filter of a camera
    exact = preprocess.intensity_range(image)
    monkeypatch.setattr(preprocess, "MAX_SAMPLED_PIXELS", 20_000)
    sampled = preprocess.intensity_range(image)
    assert sampled != exact
    np.testing.assert_allclose(sampled, exact, atol=5)
    dark = np.zeros((300, 400, 3), np.uint8)
    dark[50, 51] = 90  # the only bright pixel counts
    assert preprocess.intensity_range(dark) == (0, 90)


def test_clahe_raises_contrast_and_keeps_grey():
    grey = np.tile(np.linspace(100, 120, 64).astype(np.uint8), (64, 1))
    equalised = preprocess.clahe(np.dstack([grey] * 3), clip_limit=4)
    assert equalised.shape == (64, 64, 3)
    assert equalised.dtype == np.uint8
    assert equalised.std() > grey.std()
    assert np.ptp(equalised.astype(int), axis=2).max() <= 2  # rounding of L*a*b*


# Sizes


@given(images, sides, sides)
def test_padded_image_holds_the_image(image, height, width):
    padded = preprocess.pad_to(image, (height, width))
    assert padded.shape[:2] == (max(height, image.shape[0]), max(width, image.shape[1]))
    assert padded.dtype == image.dtype
    assert np.array_equal(padded[: image.shape[0], : image.shape[1]], image)
    assert np.isin(padded, image).all()


@given(images, st.sampled_from([1, 2, 8, 16, 32]))
def test_image_is_padded_to_the_next_multiple(image, multiple):
    padded = preprocess.pad_to_multiple(image, multiple)
    assert all(length % multiple == 0 for length in padded.shape[:2])
    assert all(padded.shape[axis] - image.shape[axis] < multiple for axis in (0, 1))
    assert np.array_equal(padded[: image.shape[0], : image.shape[1]], image)


@given(images, st.data())
def test_crops_cover_the_image(image, data):
    height, width = image.shape[:2]
    row, column = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    rows = [
        np.concatenate(
            [
                preprocess.crop(image, top, 0, (size, column)),
                preprocess.crop(image, top, column, (size, width - column)),
            ],
            axis=1,
        )
        for top, size in ((0, row), (row, height - row))
    ]
    assert np.array_equal(np.concatenate(rows), image)


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (3, 0), (0, 5)])
def test_crop_outside_the_image_is_refused(top, left):
    with pytest.raises(ValueError, match=r"leaves the image of \(4, 6\)"):
        preprocess.crop(np.zeros((4, 6)), top, left, (2, 2))


def test_center_crop_is_no_larger_than_the_image():
    image = np.arange(7 * 4).reshape(7, 4)
    assert np.array_equal(preprocess.center_crop(image, (3, 2)), image[2:5, 1:3])
    assert np.array_equal(preprocess.center_crop(image, (3, 9)), image[2:5])


@given(images, sides, sides)
def test_resized_image_keeps_type_and_range(image, height, width):
    resized = preprocess.resize(image, (height, width))
    assert resized.shape == (height, width, *image.shape[2:])
    assert resized.dtype == image.dtype
    assert image.min() <= resized.min() <= resized.max() <= image.max()


def test_shrinking_averages_pixels():
    board = (np.indices((8, 8)).sum(0) % 2 * 200).astype(np.uint8)
    assert np.array_equal(preprocess.resize(board, (4, 4)), np.full((4, 4), 100))


@given(label_maps, sides, sides, st.integers(1, 4))
def test_resized_label_map_has_no_new_labels(label_map, height, width, factor):
    resized = preprocess.resize_label_map(label_map, (height, width))
    assert resized.shape == (height, width)
    assert resized.dtype == label_map.dtype
    assert np.isin(resized, label_map).all()
    large = preprocess.resize_label_map(label_map, (label_map.shape[0] * factor, label_map.shape[1] * factor))
    assert np.array_equal(large, np.kron(label_map, np.ones((factor, factor), np.int32)))
    assert np.array_equal(preprocess.resize_label_map(large, label_map.shape), label_map)


def test_image_and_label_map_stay_aligned():
    label_map = np.zeros((96, 144), np.int32)
    cv2.circle(label_map, (100, 40), 20, 1, -1)
    image = np.dstack([label_map * 255] * 3).astype(np.uint8)
    small_image = preprocess.resize(image, (32, 48))[..., 0] > 127
    small_label_map = preprocess.resize_label_map(label_map, (32, 48)) > 0
    assert (small_image != small_label_map).sum() <= 0.05 * small_label_map.sum()
