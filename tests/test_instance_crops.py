import numpy as np
import pytest

from nuclei_utils import _instance_crops, drawn_images, labels


@pytest.fixture
def colony():
    (record,) = drawn_images.draw_colonies(1, seed=3)
    return record.image, record.label_map, labels.distance_map(record.label_map)


def crop(image, label_map, distance, seed=0, size=96):
    depth = np.round(255 * distance).astype(np.uint16)
    random = np.random.default_rng(seed)
    return _instance_crops.random_instance_crop(image, label_map.astype(np.uint16), depth, size, random)


def test_crops_have_the_ranges_of_the_targets(colony):
    for seed in range(20):
        image, targets = crop(*colony, seed=seed)
        assert image.shape == targets.shape == (96, 96, 3)
        assert (image.dtype, targets.dtype) == (np.uint8, np.float32)
        assert targets.min() >= 0
        assert targets.max() <= 1
        mask, _, distance = np.moveaxis(targets, 2, 0)
        assert set(np.unique(mask)) <= {0, 1}
        np.testing.assert_array_equal(distance > 0, mask > 0)


def test_the_same_seed_gives_the_same_crop(colony):
    for one, other in zip(crop(*colony, seed=5), crop(*colony, seed=5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pasted_nuclei_touch_others(colony):
    image, label_map, _ = colony
    before = [array.copy() for array in colony]
    pasted_image, pasted, pasted_distance = _instance_crops.paste_nuclei(*colony, np.random.default_rng(0))
    for array, copy in zip(colony, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert len(labels.touching_pairs(pasted)) > len(labels.touching_pairs(label_map))
    # every nucleus that was there before keeps at least three quarters of its pixels
    old = np.bincount(label_map.ravel())
    kept = np.bincount(pasted[pasted == label_map], minlength=len(old))
    assert (kept[1:] >= 0.75 * old[1:]).all()
    # pixels far from the copies do not change
    is_new = pasted > label_map.max()
    far = ~np.asarray(labels.boundary_map(is_new)) & ~is_new & (pasted == label_map)
    assert np.mean(pasted_image[far] == image[far]) > 0.9
    # each copy is a whole nucleus with its own depth
    for number in np.unique(pasted[is_new]):
        assert pasted_distance[pasted == number].max() == 1
    np.testing.assert_array_equal(pasted_distance > 0, pasted > 0)


def test_nothing_is_pasted_without_a_whole_nucleus():
    image, label_map = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.int32)
    label_map[:, 20:] = 1  # is cut off
    for result, array in zip(
        _instance_crops.paste_nuclei(image, label_map, labels.distance_map(label_map), np.random.default_rng(0)),
        (image, label_map, labels.distance_map(label_map)),
        strict=True,
    ):
        np.testing.assert_array_equal(result, array)


def test_mixed_channels_keep_grey():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    purple = np.full((4, 4, 3), (150, 60, 180), np.uint8)
    random = np.random.default_rng(2)
    results = [_instance_crops.mix_channels(grey, random) for _ in range(10)]
    assert all(np.abs(result.astype(int) - grey).max() <= 1 for result in results)
    assert len({tuple(_instance_crops.mix_channels(purple, random)[0, 0]) for _ in range(10)}) > 5


def test_a_gamma_for_each_channel_keeps_black_and_white():
    image = np.array([[[0, 0, 0], [255, 255, 255], [100, 100, 100]]], np.uint8)
    result = _instance_crops.change_dye(image, np.random.default_rng(0))
    assert result[0, :2].tolist() == image[0, :2].tolist()
    assert len(set(result[0, 2].tolist())) > 1
