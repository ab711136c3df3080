"""The drawing of unstained nuclei is exact, repeatable, and as hard as the lesson needs it."""

import numpy as np
import pytest
from scipy import ndimage

from nuclei_utils.drawn_images import draw_unstained
from nuclei_utils.labels import touching_pairs


@pytest.fixture(scope="module")
def drawings():
    return draw_unstained(6)


def test_shapes_types_and_numbers(drawings):
    for _, image, label_map, _ in [*drawings, *draw_unstained(1, size=(64, 96), nuclei=3)]:
        assert (image.dtype, label_map.dtype) == (np.uint8, np.int32)
        assert image.shape == (*label_map.shape, 3)
        assert (image == image[..., :1]).all(), "grey"
        assert np.unique(label_map).tolist() == list(range(label_map.max() + 1))
    assert [record.label_map.max() for record in drawings] == [20] * 6
    assert label_map.shape == (64, 96)


def test_each_nucleus_is_in_one_piece_and_some_touch(drawings):
    for label_map in (record.label_map for record in drawings):
        for label in range(1, label_map.max() + 1):
            assert ndimage.label(label_map == label)[1] == 1
            assert np.count_nonzero(label_map == label) >= 60
    assert sum(len(touching_pairs(record.label_map)) for record in drawings) >= 6


def test_same_seed_gives_the_same_drawing(drawings):
    again = draw_unstained(4)[3]
    assert again.id == drawings[3].id
    np.testing.assert_array_equal(again.image, drawings[3].image)
    np.testing.assert_array_equal(again.label_map, drawings[3].label_map)
    assert (draw_unstained(4, seed=1)[3].image != again.image).any()


def test_ring_is_dark_halo_bright_and_inside_like_the_background(drawings):
    differences = []
    for _, image, label_map, _ in drawings:
        inside = ndimage.distance_transform_edt(label_map > 0)
        outside = ndimage.distance_transform_edt(label_map == 0)
        regions = [inside > 6, (inside > 0) & (inside <= 2), (outside > 0) & (outside <= 2), outside > 12]
        *values, background = (float(image[region].mean()) for region in regions)
        differences.append(np.array(values) - background)
    differences = np.array(differences)
    assert (differences[:, 1] < -3).all()
    assert (differences[:, 2] > 3).all()
    middle, ring, halo = differences.mean(axis=0)
    assert abs(middle) < 8
    assert ring < -10
    assert halo > 10


def test_small_size_is_refused():
    with pytest.raises(ValueError, match="64"):
        draw_unstained(1, size=(63, 100))
