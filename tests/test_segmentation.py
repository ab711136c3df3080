import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction

from nuclei_utils import labels, matching, segmentation

CROSS = ndimage.generate_binary_structure(2, 1)

# no deadline, because the machines that run the tests may be busy
quick = settings(max_examples=40, deadline=None)


def boxes(*corners, shape=(20, 20)):
    """Draw a label map of boxes (top, left, bottom, right), numbered from 1."""
    label_map = np.zeros(shape, np.int32)
    for number, (top, left, bottom, right) in enumerate(corners, start=1):
        label_map[top:bottom, left:right] = number
    return label_map


def disks(*circles, shape=(40, 60)):
    """Draw a label map of disks (row, column, radius), numbered from 1; the first disk keeps shared pixels."""
    label_map = np.zeros(shape, np.int32)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for number, (row, column, radius) in enumerate(circles, start=1):
        label_map[((y - row) ** 2 + (x - column) ** 2 <= radius**2) & (label_map == 0)] = number
    return label_map


def are_same_nuclei(first, second):
    """Return True if two label maps are equal up to their numbers."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    return all(len(np.unique(side)) == len(side) for side in pairs) and ((first > 0) == (second > 0)).all()


METHODS = {
    "components": lambda mask, truth: segmentation.components(mask, 5),
    "mask": lambda mask, truth: segmentation.watershed_from_mask(mask, min_size=5),
    "boundary": lambda mask, truth: segmentation.watershed_from_boundary(
        mask * 1.0, labels.boundary_map(truth), min_size=5
    ),
    "distance": lambda mask, truth: segmentation.watershed_from_distance(
        mask * 1.0, labels.distance_map(truth), min_size=5
    ),
}


# All methods


@pytest.mark.parametrize("method", METHODS)
def test_nuclei_are_connected_filled_and_numbered(method):
    rng = np.random.default_rng(5)
    truth = disks(*[(*rng.integers(0, 100, 2), rng.integers(3, 12)) for _ in range(60)], shape=(100, 100))
    mask = (truth > 0) ^ (rng.random(truth.shape) < 0.02)
    label_map = METHODS[method](mask, truth)
    assert label_map.dtype == np.int32
    assert label_map.max() > 5
    np.testing.assert_array_equal(np.unique(label_map), np.arange(label_map.max() + 1))
    assert np.bincount(label_map.ravel()).min() >= 5
    for number in range(1, label_map.max() + 1):
        nucleus = label_map == number
        assert ndimage.label(nucleus, CROSS)[1] == 1
        assert not (label_map == 0)[ndimage.binary_fill_holes(nucleus, np.ones((3, 3)))].any()
    # the mask loses small components only, and gains holes only
    pieces = ndimage.label(mask, CROSS)[0]
    large = mask & (np.bincount(pieces.ravel()) >= 5)[pieces]
    assert (label_map > 0)[large].all()
    assert not (label_map > 0)[~ndimage.binary_fill_holes(large)].any()


@pytest.mark.parametrize("method", METHODS)
def test_empty_and_full_images_are_accepted(method):
    segment = METHODS[method]
    assert not segment(np.zeros((8, 9), bool), np.zeros((8, 9), int)).any()
    np.testing.assert_array_equal(segment(np.ones((8, 9), bool), np.ones((8, 9), int)), np.ones((8, 9)))


def test_wrong_maps_are_refused():
    flat = np.zeros((4, 4))
    with pytest.raises(ValueError, match=r"\['distance'\]"):
        segmentation.maps_to_labels({"distance": flat})
    for call in (
        lambda: segmentation.maps_to_labels({"mask": flat, "distance": flat[1:]}),
        lambda: segmentation.maps_to_labels({"mask": flat[..., None]}),
        lambda: segmentation.watershed_from_boundary(flat, flat[None]),
        lambda: segmentation.components(flat[0]),
        lambda: segmentation.watershed_from_mask(flat[None]),
    ):
        with pytest.raises(ValueError, match=r"\(H, W\), found \[\("):
            call()


# Components and holes


def test_components_are_4_connected_and_have_a_minimal_size():
    truth = boxes((0, 0, 3, 3), (5, 5, 9, 9), (3, 3, 5, 5))  # 9, 16 and 4 pixels that meet at corners
    np.testing.assert_array_equal(segmentation.components(truth) > 0, truth > 0)
    assert [segmentation.components(truth, min_size).max() for min_size in (0, 4, 5, 9, 10, 17)] == [3, 3, 2, 2, 1, 0]


def test_holes_are_filled_but_gaps_between_nuclei_stay():
    truth = boxes((2, 2, 9, 9), (11, 0, 20, 10), (11, 10, 20, 20))
    mask = truth > 0
    mask[5, 5] = False  # inside the first nucleus
    mask[14:16, 9:11] = False  # between the others
    label_map = segmentation.watershed_from_distance(mask * 1.0, labels.distance_map(truth))
    assert label_map[5, 5] == label_map[4, 4]
    assert not label_map[14:16, 9:11].any()
    assert are_same_nuclei(label_map, np.where(label_map > 0, truth, 0))


def test_gap_around_a_nucleus_within_a_ring_stays():
    ring = boxes((1, 1, 12, 12)) - boxes((3, 3, 10, 10)) + 2 * boxes((5, 5, 8, 8))
    np.testing.assert_array_equal(segmentation.components(ring > 0), ring)


def test_background_at_the_edge_of_the_image_is_not_a_hole():
    mask = np.ones((9, 9), bool)
    mask[4:, 4] = False
    np.testing.assert_array_equal(segmentation.components(mask), mask)


# Watersheds


def test_mask_is_split_at_a_waist():
    truth = disks((20, 20, 10), (20, 37, 10))
    assert segmentation.components(truth > 0).max() == 1
    label_map = segmentation.watershed_from_mask(truth > 0)
    assert matching.matching(truth, label_map, 0.9)[:3] == (2, 0, 0)


def test_min_prominence_decides_which_waist_splits():
    mask = disks((20, 20, 10), (20, 32, 10)) > 0  # the waist is two pixels narrower than the disks
    assert [segmentation.watershed_from_mask(mask, min_prominence).max() for min_prominence in (0.5, 4)] == [2, 1]
    with pytest.raises(ValueError, match="min_prominence"):
        segmentation.watershed_from_mask(mask, 0)


def test_edge_of_the_image_is_not_a_waist():
    assert segmentation.watershed_from_mask(disks((0, 30, 15)) > 0).max() == 1


@pytest.mark.parametrize("method", ["boundary", "distance"])
def test_predicted_maps_split_nuclei_without_a_waist(method):
    truth = boxes((5, 5, 25, 25), (5, 25, 25, 45), shape=(40, 60))
    assert segmentation.watershed_from_mask(truth > 0).max() == 1
    assert matching.matching(truth, METHODS[method](truth > 0, truth), 0.99).tp == 2


def test_thresholds_decide_which_nuclei_are_split():
    truth = disks((20, 20, 10), (20, 41, 10))
    mask, distance = (truth > 0) * 1.0, labels.distance_map(truth)
    boundary = np.where(labels.boundary_map(truth), 0.4, 0)
    prominence = 1 - 1 / 11  # both nuclei are 11 pixels deep, and the depth is 1 where they touch
    for lower, numbers in ((0.01, [1, 2]), (-0.01, [2, 1])):
        by_distance = segmentation.watershed_from_distance(mask, distance, min_prominence=prominence + lower)
        by_boundary = segmentation.watershed_from_boundary(mask, boundary, marker_thresh=0.6 + lower)
        assert [by_distance.max(), by_boundary.max()] == numbers


def test_prob_thresh_is_exclusive():
    probability = np.full((6, 6), 0.5, np.float32)
    assert not segmentation.watershed_from_distance(probability, probability, prob_thresh=0.5).any()
    assert segmentation.watershed_from_distance(probability, probability, prob_thresh=0.49).all()


@pytest.mark.parametrize("steps", [0, 1, 256])
@quick
@given(
    arrays(np.float32, st.tuples(st.integers(3, 24), st.integers(3, 24)), elements=st.sampled_from(np.arange(9) / 8)),
    st.sampled_from([0.01, 0.125, 0.25, 0.6, 1]),
)
def test_markers_are_the_h_maxima_of_the_distance(steps, distance, min_prominence):
    mask = distance > 0.2
    depth = np.where(mask, distance, 0).astype(np.float32)
    lowered = reconstruction(depth - np.float32(min_prominence), depth, footprint=CROSS)  # the definition
    markers = local_maxima(lowered, connectivity=1) & mask
    expected = segmentation.watershed_from_boundary(mask + 2.0 * markers, -depth, marker_thresh=2.5, min_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "_MAX_STEPS", steps)
        label_map = segmentation.watershed_from_distance(mask, distance, 0.5, min_prominence, 2)
    np.testing.assert_array_equal(label_map, expected)


def test_small_nucleus_joins_its_neighbour():
    truth = boxes((2, 2, 12, 12))
    distance = labels.distance_map(truth)
    distance[2:4, 2:4] = [[0.9, 0.1], [0.1, 0.1]]  # a second peak in a corner
    mask = (truth > 0) * 1.0
    fragments = segmentation.watershed_from_distance(mask, distance, min_size=0)
    area = int(np.bincount(fragments.ravel())[1:].min())
    assert fragments.max() == 2
    np.testing.assert_array_equal(segmentation.watershed_from_distance(mask, distance, min_size=area), fragments)
    np.testing.assert_array_equal(segmentation.watershed_from_distance(mask, distance, min_size=area + 1), truth)


def test_component_without_a_marker_is_a_nucleus():
    mask = boxes((2, 2, 8, 8), (10, 10, 16, 16)) > 0
    mask_probability, boundary_probability = np.where(mask, 1, 0.45), np.ones(mask.shape)
    boundary_probability[4, 4] = boundary_probability[0, 0] = 0  # the second marker lies outside the mask
    label_map = segmentation.watershed_from_boundary(mask_probability, boundary_probability)
    np.testing.assert_array_equal(label_map, segmentation.components(mask))


def test_crop_of_the_maps_gives_the_same_nuclei():
    # `predict.predict_labels` relies on this when it works block by block
    rng = np.random.default_rng(1)
    truth = disks(*[(*rng.integers(0, 80, 2), rng.integers(3, 8)) for _ in range(50)], shape=(80, 80))
    mask = (truth > 0) & (np.arange(80) != 50)[:, None]  # no nucleus crosses row 50
    distance = labels.distance_map(truth) + rng.normal(0, 0.1, truth.shape)
    whole = segmentation.watershed_from_distance(mask * 1.0, distance)[:50]
    assert whole.max() > 10
    assert are_same_nuclei(whole, segmentation.watershed_from_distance(mask[:50] * 1.0, distance[:50]))


def test_maps_to_labels_uses_the_distance_if_there_is_one():
    truth = boxes((5, 5, 25, 25), (5, 25, 25, 35), (35, 35, 38, 38), shape=(40, 60))
    maps = {"mask": (truth > 0).astype(np.float32)}
    by_mask = segmentation.maps_to_labels(maps, min_size=5)
    np.testing.assert_array_equal(by_mask, segmentation.watershed_from_mask(truth > 0, min_size=5))
    maps |= {"distance": labels.distance_map(truth), "boundary": np.zeros(truth.shape, np.float32)}
    by_distance = segmentation.maps_to_labels(maps, min_size=5)
    assert matching.matching(truth, by_distance, 0.85)[:3] == (3, 0, 0)


def test_a_low_threshold_of_the_mask_leaves_out_no_nucleus():
    truth = boxes((5, 5, 25, 25), shape=(40, 60))
    mask = np.where(truth > 0, 0.9, np.where(ndimage.binary_dilation(truth > 0, iterations=8), 0.2, 0))
    maps = {"mask": mask, "distance": labels.distance_map(truth)}
    assert segmentation.maps_to_labels(maps, prob_thresh=0.1).max() == 1
    maps["mask"] = 0.5 * mask
    assert segmentation.maps_to_labels(maps, prob_thresh=0.1).max() == 0
    assert segmentation.maps_to_labels(maps, prob_thresh=0.1, min_confidence=0).max() == 1
    assert segmentation.maps_to_labels({"mask": maps["mask"]}, prob_thresh=0.1).max() == 1


@pytest.mark.parametrize(
    ("thresholds", "count"),
    [
        ({"min_size": 5}, 3),
        ({"min_size": 10}, 2),
        ({"min_size": 5, "min_prominence": 0.95}, 2),
        ({"prob_thresh": 1}, 0),
        ({"min_size": 5, "min_confidence": 0.9}, 2),
        ({"min_size": 5, "min_confidence": 0.7}, 3),
    ],
)
def test_thresholds_of_maps_to_labels_are_used(thresholds, count):
    truth = boxes((5, 5, 25, 25), (5, 25, 25, 35), (35, 35, 38, 38), shape=(40, 60))
    probability = np.float32([0, 0.85, 1, 1])  # of the background and the three nuclei
    maps = {"mask": probability[truth], "distance": labels.distance_map(truth)}
    label_map = segmentation.maps_to_labels(maps, **thresholds)
    assert np.unique(label_map).tolist() == list(range(count + 1))
