import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nuclei_utils import labels

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))

# no deadline, because the machines that run the tests may be busy
quick = settings(max_examples=60, deadline=None)


def box(shape, top, left, bottom, right):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def two_squares():
    """Draw two touching nuclei of 4 x 4 pixels in an image of 8 x 12."""
    return box((8, 12), 2, 2, 6, 6) + 7 * box((8, 12), 2, 6, 6, 10)


@st.composite
def mask_lists(draw):
    return list(draw(arrays(bool, (draw(st.integers(1, 6)), *draw(SHAPES)))))


# Masks and label maps


@quick
@given(arrays(np.int32, SHAPES, elements=st.integers(0, 5)).filter(np.any))
def test_merged_masks_keep_the_nuclei_and_their_order(label_map):
    numbers = [number for number in np.unique(label_map) if number]
    merged, hidden = labels.merge_masks([label_map == number for number in numbers])
    np.testing.assert_array_equal(merged, np.searchsorted([0, *numbers], label_map))
    assert not hidden.any()


@quick
@given(mask_lists())
def test_merged_masks_lose_no_pixel_and_hidden_pixels_are_counted(masks):
    merged, hidden = labels.merge_masks(masks)
    visible = np.array([mask.sum() for mask in masks]) - hidden
    np.testing.assert_array_equal(merged > 0, np.any(masks, axis=0))
    np.testing.assert_array_equal(np.bincount(merged.ravel())[1:], visible[visible > 0])
    assert merged.dtype == np.int32
    for index, number in zip(np.flatnonzero(visible), range(1, merged.max() + 1), strict=True):
        assert masks[index][merged == number].all()


@pytest.mark.parametrize(("order", "hidden"), [([0, 1], [6, 0]), ([1, 0], [0, 6])])
def test_smaller_mask_stays_on_top_in_any_order(order, hidden):
    large, small = box((10, 10), 0, 0, 8, 8), box((10, 10), 2, 2, 4, 5)
    merged, counts = labels.merge_masks([(large, small)[index] for index in order])
    assert counts.tolist() == hidden
    assert (merged[small] == order.index(1) + 1).all()
    assert (merged[large & ~small] == order.index(0) + 1).all()


def test_empty_and_hidden_masks_get_no_number():
    twin, corner = box((5, 5), 1, 1, 3, 3), 255 * box((5, 5), 4, 4, 5, 5).astype(np.uint8)
    merged, hidden = labels.merge_masks([np.zeros((5, 5)), twin, twin, corner])
    assert hidden.tolist() == [0, 4, 0, 0]  # the later of two equal masks is on top
    assert np.unique(merged).tolist() == [0, 1, 2]
    assert merged[4, 4] == 2
    assert not labels.merge_masks([np.zeros((5, 5))])[0].any()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([], "no masks"),
        ([np.zeros((3, 4)), np.zeros((4, 3))], r"\(3, 4\), \(4, 3\)"),
        ([np.zeros((3, 4, 1))], r"\(3, 4, 1\)"),
        ([np.zeros(12)], r"\(12,\)"),
    ],
)
def test_masks_of_wrong_shapes_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        labels.merge_masks(masks)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), bool), r"bool \(4, 4\).*components"),
        (np.zeros((4, 4)), "float64"),
        (np.zeros((1, 4, 4), int), r"\(1, 4, 4\)"),
        (np.array([[0, -1]]), "-1"),
    ],
)
def test_invalid_label_maps_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        labels.check_label_map(array)


# Borders, distances and touching nuclei


def test_boundary_is_on_both_sides_of_every_border():
    boundary = labels.boundary_map(two_squares())
    assert boundary[4].astype(int).tolist() == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert boundary[:, 4].astype(int).tolist() == [0, 1, 1, 0, 0, 1, 1, 0]


def test_edge_of_the_image_is_not_a_boundary():
    assert not labels.boundary_map(np.ones((4, 4), np.int32)).any()


def test_distance_is_1_in_the_middle_and_low_between_nuclei():
    distance = labels.distance_map(two_squares())
    assert distance.dtype == np.float32
    np.testing.assert_allclose(distance[3], [0, 0, 0.5, 1, 1, 0.5, 0.5, 1, 1, 0.5, 0, 0])
    assert not distance[two_squares() == 0].any()


def test_distance_has_a_scale_for_each_nucleus():
    shape = (40, 60)
    label_map = box(shape, 2, 2, 5, 5) + 2 * box(shape, 5, 20, 35, 55) + 3 * box(shape, 39, 59, 40, 60)
    distance = labels.distance_map(label_map)
    assert [distance[label_map == label].max() for label in (1, 2, 3)] == [1, 1, 1]
    assert not labels.distance_map(np.zeros((5, 5), np.int32)).any()


@pytest.mark.parametrize(
    ("label_map", "pairs"),
    [
        ([[3, 1]], [[1, 3]]),
        ([[1], [3]], [[1, 3]]),
        ([[1, 0], [0, 3]], [[1, 3]]),
        ([[0, 1], [3, 0]], [[1, 3]]),
        ([[1, 3, 1], [3, 1, 3]], [[1, 3]]),
        ([[9, 2, 2], [4, 0, 1]], [[1, 2], [2, 4], [2, 9], [4, 9]]),
        ([[1, 0, 2]], []),
        ([[1, 1]], []),
        ([[0]], []),
    ],
)
def test_touching_pairs_are_listed_once_in_order(label_map, pairs):
    assert labels.touching_pairs(label_map).tolist() == pairs


# Run-length coding


def encode(mask):
    return labels.encode_label_map(mask.astype(int)).get(1, "")


@quick
@given(arrays(bool, SHAPES))
def test_run_length_code_is_decoded_to_the_same_mask(mask):
    code = encode(mask)
    np.testing.assert_array_equal(labels.decode_rle(code, mask.shape), mask)
    starts, lengths = np.array(code.split(), int).reshape(-1, 2).T
    assert lengths.sum() == mask.sum()
    assert (np.diff(starts) > lengths[:-1]).all(), "runs are sorted and separate"


@quick
@given(arrays(np.int32, SHAPES, elements=st.integers(0, 3)))
def test_codes_of_a_label_map_are_those_of_its_masks(label_map):
    expected = {int(label): encode(label_map == label) for label in np.unique(label_map) if label}
    assert labels.encode_label_map(label_map) == expected
    assert list(labels.encode_label_map(label_map)) == list(expected)


def test_run_length_code_counts_from_1_down_the_columns():
    # the example of the competition: "1 3 10 5" implies the pixels (1, 2, 3, 10, 11, 12, 13, 14)
    mask = labels.decode_rle("1 3 10 5", (4, 4))
    assert (np.flatnonzero(mask.T.ravel()) + 1).tolist() == [1, 2, 3, 10, 11, 12, 13, 14]
    assert encode(mask) == "1 3 10 5"
    assert labels.encode_label_map(np.zeros((3, 4), int)) == {}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1", "1 numbers"),
        ("1 2 3", "3 numbers"),
        ("a b", "whole numbers"),
        ("1.5 2", "whole numbers"),
        ("1,2", "whole numbers"),
        ("99999999999999999999 1", "whole numbers"),
        ("0 2", "1..12"),
        ("3 0", "1..12"),
        ("3 -1", "1..12"),
        ("12 2", "1..12"),
        ("13 1", "1..12"),
        (f"2 {2**63 - 1}", "1..12"),
    ],
)
def test_malformed_run_length_code_is_refused(code, message):
    with pytest.raises(ValueError, match=message):
        labels.decode_rle(code, (3, 4))
