import numpy as np
import pytest
from scipy import ndimage

from nuclei_utils import drawn_images, matching, segmentation


@pytest.fixture(scope="module")
def colonies():
    return drawn_images.draw_colonies(6, seed=3)


def test_colonies_are_images_with_label_maps(colonies):
    assert len({record.id for record in colonies}) == 6
    for record in colonies:
        assert record.image.shape == (128, 128, 3)
        assert record.image.dtype == np.uint8
        assert record.label_map.dtype == np.int32
        numbers, areas = np.unique(record.label_map, return_counts=True)
        assert numbers.tolist() == list(range(len(numbers)))
        assert areas.min() >= 60


def test_each_nucleus_of_a_colony_is_in_one_piece(colonies):
    for record in colonies:
        for number in range(1, record.label_map.max() + 1):
            assert ndimage.label(record.label_map == number)[1] == 1


def test_same_seed_draws_the_same_colonies(colonies):
    again = drawn_images.draw_colonies(2, seed=3)
    np.testing.assert_array_equal(again[1].image, colonies[1].image)
    np.testing.assert_array_equal(again[1].label_map, colonies[1].label_map)
    other = drawn_images.draw_colonies(1, seed=4)[0]
    assert not np.array_equal(other.image, colonies[0].image)


def test_outline_of_a_colony_does_not_tell_its_nuclei_apart(colonies):
    truth = [record.label_map for record in colonies]
    found = [segmentation.watershed_from_mask(label_map > 0) for label_map in truth]
    nuclei = sum(label_map.max() for label_map in truth)
    assert sum(label_map.max() for label_map in found) < nuclei / 2
    assert matching.dsb2018_score(truth, found) < 0.25


def test_image_tells_touching_nuclei_apart(colonies):
    record = colonies[0]
    gradient = ndimage.gaussian_gradient_magnitude(record.image[..., 0].astype(float), 1)
    label_map = record.label_map
    inside = ndimage.minimum_filter(label_map, 5) == ndimage.maximum_filter(label_map, 5)
    smallest = ndimage.minimum_filter(np.where(label_map > 0, label_map, 10_000), 3)
    seams = (ndimage.minimum_filter(label_map, 7) > 0) & (ndimage.maximum_filter(label_map, 3) != smallest)
    assert gradient[seams].mean() > gradient[inside & (label_map > 0)].mean()


def test_size_and_number_of_colonies():
    (record,) = drawn_images.draw_colonies(1, size=(64, 96))
    assert record.image.shape == (64, 96, 3)
    assert drawn_images.draw_colonies(0) == []
    with pytest.raises(ValueError, match="at least 64"):
        drawn_images.draw_colonies(1, size=(32, 128))
