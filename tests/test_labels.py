import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nuclei_utils import labels

COLUMNS = ["label", "area", "diameter", "eccentricity", "solidity", "holes", "parts"]
SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))

# The machines that run the tests may be busy: a slow example is no failure.
quick = settings(max_examples=60, deadline=None)


def box(shape, *corners):
    mask = np.zeros(shape, bool)
    mask[slice(*corners[0::2]), slice(*corners[1::2])] = True
    return mask


def disk(shape, centre, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@st.composite
def mask_lists(draw):
    return list(draw(arrays(bool, (draw(st.integers(1, 6)), *draw(SHAPES)))))


# Merge and split


@quick
@given(arrays(np.int32, SHAPES, elements=st.integers(0, 5)).filter(np.any))
def test_merge_is_the_inverse_of_split(label_map):
    masks = labels.split_labels(label_map)
    merged, hidden = labels.merge_masks(masks)
    # the same nuclei in the same order, numbered without gaps
    np.testing.assert_array_equal(merged, np.searchsorted(np.unique([0, *np.unique(label_map)]), label_map))
    assert not hidden.any()
    np.testing.assert_array_equal(labels.split_labels(merged), masks)


@quick
@given(mask_lists())
def test_merge_loses_no_pixel_and_counts_what_is_hidden(masks):
    merged, hidden = labels.merge_masks(masks)
    areas = np.array([mask.sum() for mask in masks])
    np.testing.assert_array_equal(merged > 0, np.any(masks, axis=0))
    assert merged.dtype == np.int32
    assert hidden.shape == (len(masks),)
    visible = areas - hidden
    np.testing.assert_array_equal(np.bincount(merged.ravel())[1:], visible[visible > 0])
    for index, number in zip(np.flatnonzero(visible), range(1, merged.max() + 1), strict=True):
        assert masks[index][merged == number].all()
    assert hidden.sum() == np.sum(masks) - np.any(masks, axis=0).sum()


def test_small_mask_stays_on_top_whatever_the_order():
    large, small = box((10, 10), 0, 0, 8, 8), box((10, 10), 2, 2, 4, 5)
    for masks in ([large, small], [small, large]):
        merged, hidden = labels.merge_masks(masks)
        numbers = {len_: index for index, len_ in enumerate((mask.sum() for mask in masks), start=1)}
        assert (merged[small] == numbers[6]).all()
        assert (merged[large & ~small] == numbers[64]).all()
        assert hidden.tolist() == [6 if mask is large else 0 for mask in masks]


def test_partial_overlap_is_hidden_from_the_larger():
    merged, hidden = labels.merge_masks([box((6, 6), 0, 0, 6, 4), box((6, 6), 0, 3, 6, 6)])
    assert hidden.tolist() == [6, 0]
    np.testing.assert_array_equal(merged[0], [1, 1, 1, 2, 2, 2])


def test_empty_and_wholly_hidden_masks_get_no_number():
    twin = box((5, 5), 1, 1, 3, 3)
    merged, hidden = labels.merge_masks([np.zeros((5, 5)), twin, twin, box((5, 5), 4, 4, 5, 5)])
    assert hidden.tolist() == [0, 4, 0, 0]  # of two that are the same, the later one is on top
    assert set(np.unique(merged)) == {0, 1, 2}
    assert merged[4, 4] == 2


def test_only_empty_masks_make_an_empty_map():
    merged, hidden = labels.merge_masks([np.zeros((3, 4), np.uint8)] * 2)
    assert merged.shape == (3, 4)
    assert merged.dtype == np.int32
    assert not merged.any()
    assert hidden.tolist() == [0, 0]
    assert labels.split_labels(merged).shape == (0, 3, 4)


def test_any_value_but_zero_is_nucleus():
    merged, _ = labels.merge_masks([np.array([[0, 1, 255]], np.uint8)])
    np.testing.assert_array_equal(merged, [[0, 1, 1]])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([], "no masks to merge"),
        ([np.zeros((3, 4)), np.zeros((4, 3))], r"\(3, 4\), \(4, 3\)"),
        ([np.zeros((3, 4, 1))], r"\(3, 4, 1\)"),
        ([np.zeros(12)], r"\(12,\)"),
    ],
)
def test_merge_refuses_wrong_shapes(masks, message):
    with pytest.raises(ValueError, match=message):
        labels.merge_masks(masks)


def test_split_keeps_the_order_of_labels_with_gaps():
    masks = labels.split_labels([[7, 0, 2]])
    np.testing.assert_array_equal(masks, [[[False, False, True]], [[True, False, False]]])


# Touching


@pytest.mark.parametrize(
    "label_map",
    [[[3, 1]], [[1], [3]], [[1, 0], [0, 3]], [[0, 1], [3, 0]], [[1, 3, 1], [3, 1, 3]]],
    ids=["beside", "below", "diagonal", "other diagonal", "many times"],
)
def test_touching_pair_is_listed_once(label_map):
    assert labels.touching_pairs(label_map).tolist() == [[1, 3]]


@pytest.mark.parametrize("label_map", [[[1, 0, 2]], [[1, 1]], [[0]], [[5]], np.zeros((4, 4), int)])
def test_nothing_touches(label_map):
    assert labels.touching_pairs(label_map).shape == (0, 2)


def test_touching_pairs_are_sorted():
    assert labels.touching_pairs([[9, 2, 2], [4, 0, 1]]).tolist() == [[1, 2], [2, 4], [2, 9], [4, 9]]


# Measures


def test_measure_of_a_disk_and_a_bar():
    shape = (64, 64)
    label_map = np.where(disk(shape, (20, 20), 12), 1, 0) + 5 * box(shape, 50, 10, 53, 50)
    table = labels.measure(label_map).set_index("label")
    assert table.index.tolist() == [1, 5]
    assert table.loc[1, "diameter"] == pytest.approx(24, abs=0.5)
    assert table.loc[1, "eccentricity"] == pytest.approx(0, abs=0.05)
    assert table.loc[1, "solidity"] > 0.9
    assert table.loc[5, "area"] == 120
    assert table.loc[5, "diameter"] == pytest.approx(np.sqrt(4 * 120 / np.pi))
    assert table.loc[5, "eccentricity"] > 0.99
    assert table["holes"].tolist() == [0, 0]
    assert table["parts"].tolist() == [1, 1]


def test_measure_counts_pixels_of_holes_and_loose_parts():
    label_map = box((20, 20), 2, 2, 10, 10).astype(int)
    label_map[4:6, 4:7] = 0
    label_map[8, 8] = 0
    label_map[15, 15] = 1  # a speck far off
    table = labels.measure(label_map)
    assert table[["holes", "parts"]].to_numpy().tolist() == [[7, 2]]


def test_pieces_that_meet_at_a_corner_are_one_part():
    assert labels.measure(np.eye(3, dtype=int))["parts"].tolist() == [1]


def test_nucleus_on_top_of_another_is_no_hole():
    merged, _ = labels.merge_masks([box((20, 20), 0, 0, 15, 15), box((20, 20), 5, 5, 9, 9)])
    assert labels.measure(merged)["holes"].tolist() == [0, 0]


def test_measure_of_nothing_has_the_same_columns():
    assert labels.measure(np.zeros((4, 4), int)).columns.tolist() == COLUMNS
    assert labels.measure(np.ones((4, 4), int)).columns.tolist() == COLUMNS
    assert len(labels.measure(np.zeros((4, 4), int))) == 0


# Run-length coding


@quick
@given(arrays(bool, SHAPES))
def test_run_length_code_comes_back(mask):
    code = labels.encode_rle(mask)
    np.testing.assert_array_equal(labels.decode_rle(code, mask.shape), mask)
    numbers = np.array(code.split(), int)
    assert numbers[1::2].sum() == mask.sum()
    assert (np.diff(numbers[::2]) > numbers[1::2][:-1]).all(), "runs are sorted, and none adjoins the next"


def test_run_length_code_counts_from_1_down_the_columns():
    # Kaggle's own words: "1 3 10 5" implies the pixels (1, 2, 3, 10, 11, 12, 13, 14)
    mask = labels.decode_rle("1 3 10 5", (4, 4))
    assert (np.flatnonzero(mask.T.ravel()) + 1).tolist() == [1, 2, 3, 10, 11, 12, 13, 14]
    assert mask[:, 0].tolist() == [True, True, True, False]
    assert labels.encode_rle(mask) == "1 3 10 5"
    assert labels.encode_rle([[0, 9], [0, 0]]) == "3 1"
    assert labels.encode_rle(np.ones((2, 3))) == "1 6"


def test_empty_mask_has_an_empty_code():
    assert labels.encode_rle(np.zeros((3, 4))) == ""
    assert not labels.decode_rle("", (3, 4)).any()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1", "1 numbers, expected pairs"),
        ("1 2 3", "3 numbers, expected pairs"),
        ("a b", "whole numbers"),
        ("1.5 2", "whole numbers"),
        ("1,2", "whole numbers"),
        ("99999999999999999999 1", "whole numbers"),
        ("0 2", "must lie in 1..12"),
        ("3 0", "must lie in 1..12"),
        ("3 -1", "must lie in 1..12"),
        ("12 2", "must lie in 1..12"),
        ("13 1", "must lie in 1..12"),
        (f"2 {2**63 - 1}", "must lie in 1..12"),
    ],
)
def test_malformed_run_length_code_is_refused(code, message):
    with pytest.raises(ValueError, match=message):
        labels.decode_rle(code, (3, 4))


def test_run_may_end_with_the_last_pixel():
    assert labels.decode_rle("12 1", (3, 4))[2, 3]


def two_squares():
    """Two nuclei of 4 x 4 pixels that touch, in an image of 8 x 12."""
    pair = np.zeros((8, 12), np.int32)
    pair[2:6, 2:6] = 1
    pair[2:6, 6:10] = 7
    return pair


def test_boundary_lies_on_both_sides_of_every_border():
    found = labels.boundary_map(two_squares())
    assert found[4, 5], "between two nuclei"
    assert found[4, 6]
    assert found[2, 4], "inside, at the background"
    assert found[1, 4], "outside"
    assert not found[3:5, 3:5].any(), "the inner pixels of a nucleus"
    assert not found[0].any()


def test_edge_of_the_image_is_no_boundary():
    assert not labels.boundary_map(np.ones((4, 4), np.int32)).any()


def test_distance_is_1_in_the_middle_and_low_between_nuclei():
    found = labels.distance_map(two_squares())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[3], [0, 0, 0.5, 1, 1, 0.5, 0.5, 1, 1, 0.5, 0, 0])
    assert found[two_squares() == 0].max() == 0


def test_distance_gives_every_nucleus_its_own_scale():
    sizes = np.zeros((40, 60), np.int32)
    sizes[2:5, 2:5] = 1
    sizes[5:35, 20:55] = 2
    sizes[39, 59] = 3  # a single pixel
    found = labels.distance_map(sizes)
    assert [found[sizes == number].max() for number in (1, 2, 3)] == [1, 1, 1]
    assert not labels.distance_map(np.zeros((5, 5), np.int32)).any()
