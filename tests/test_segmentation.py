import subprocess
import sys
from time import process_time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.morphology import local_maxima, reconstruction

from nuclei_utils import labels, matching, segmentation

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))

# The machines that run the tests may be busy: a slow example is no failure.
quick = settings(max_examples=40, deadline=None)


def boxes(*corners, shape=(20, 20)):
    """Draw a label map of boxes (top, left, bottom, right), numbered from 1."""
    label_map = np.zeros(shape, np.int32)
    for number, (top, left, bottom, right) in enumerate(corners, start=1):
        label_map[top:bottom, left:right] = number
    return label_map


def disks(*circles, shape=(40, 60)):
    """Draw a label map of disks (row, column, radius), numbered from 1; the first keeps what two share."""
    label_map = np.zeros(shape, np.int32)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for number, (row, column, radius) in enumerate(circles, start=1):
        label_map[((y - row) ** 2 + (x - column) ** 2 <= radius**2) & (label_map == 0)] = number
    return label_map


def same_nuclei(one, other):
    """Whether two label maps are the same up to their numbers."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(side)) == len(side) for side in pairs) and ((one > 0) == (other > 0)).all()


@st.composite
def label_map_pairs(draw, largest=5):
    shape = draw(SHAPES)
    elements = st.integers(0, largest)
    return draw(arrays(np.int32, shape, elements=elements)), draw(arrays(np.uint16, shape, elements=elements))


EMPTY = boxes()
TWO = boxes((2, 2, 8, 8), (2, 8, 8, 14))  # two that touch, 36 pixels each
ONE = boxes((2, 2, 8, 14))


# The room


def test_import_is_free_of_keras():
    code = "import sys, nuclei_utils.matching, nuclei_utils.segmentation; print({'keras', 'tensorflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# Separate


def test_components_are_the_connected_pieces():
    found = segmentation.components(boxes((0, 0, 3, 3), (5, 5, 9, 9), (5, 12, 7, 14)))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, boxes((0, 0, 3, 3), (5, 5, 9, 9), (5, 12, 7, 14)))
    assert segmentation.components(TWO).max() == 1


def test_nuclei_that_touch_at_a_corner_are_two():
    assert segmentation.components(boxes((0, 0, 3, 3), (3, 3, 6, 6))).max() == 2


def test_smallest_is_the_smallest_that_stays():
    mask = boxes((0, 0, 3, 3), (5, 5, 8, 9)) > 0  # 9 and 12 pixels
    assert [segmentation.components(mask, min_size).max() for min_size in (9, 10, 12, 13)] == [2, 1, 1, 0]


def separations():
    """Name every way to separate nuclei, each taking a mask and the true label map."""
    return {
        "components": lambda mask, truth: segmentation.components(mask, 5),
        "shape": lambda mask, truth: segmentation.watershed_from_mask(mask, min_size=5),
        "boundary": lambda mask, truth: segmentation.watershed_from_boundary(
            mask * 1.0, labels.boundary_map(truth), min_size=5
        ),
        "distance": lambda mask, truth: segmentation.watershed_from_distance(
            mask * 1.0, labels.distance_map(truth), min_size=5
        ),
    }


@pytest.mark.parametrize("way", separations())
def test_every_way_gives_whole_nuclei_in_order(way):
    rng = np.random.default_rng(5)
    truth = disks(*[(*rng.integers(0, 100, 2), rng.integers(3, 12)) for _ in range(60)], shape=(100, 100))
    mask = (truth > 0) ^ (rng.random(truth.shape) < 0.02)
    found = separations()[way](mask, truth)
    assert found.dtype == np.int32
    assert found.max() > 5
    np.testing.assert_array_equal(np.unique(found), np.arange(found.max() + 1))
    table = labels.measure(found)
    assert (table["area"] >= 5).all()
    assert (table["holes"] == 0).all()
    cross = ndimage.generate_binary_structure(2, 1)
    assert all(ndimage.label(one, cross)[1] == 1 for one in labels.split_labels(found))
    # nothing of the mask is lost but small pieces, and nothing is won but holes
    pieces = ndimage.label(mask, cross)[0]
    large = mask & (np.bincount(pieces.ravel()) >= 5)[pieces]
    assert (found > 0)[large].all()
    assert not (found > 0)[~ndimage.binary_fill_holes(large)].any()


@pytest.mark.parametrize("way", separations())
def test_every_way_takes_empty_and_full_images(way):
    separate = separations()[way]
    assert not separate(np.zeros((8, 9), bool), np.zeros((8, 9), int)).any()
    np.testing.assert_array_equal(separate(np.ones((8, 9), bool), np.ones((8, 9), int)), np.ones((8, 9)))


def test_hole_is_filled_but_a_gap_between_nuclei_is_not():
    truth = boxes((2, 2, 9, 9), (11, 0, 20, 10), (11, 10, 20, 20))
    mask = truth > 0
    mask[5, 5] = False  # inside the first
    mask[14:16, 9:11] = False  # between the two others
    found = segmentation.watershed_from_distance(mask * 1.0, labels.distance_map(truth))
    assert found[5, 5] == found[4, 4]
    assert not found[14:16, 9:11].any()
    assert same_nuclei(found, np.where(found > 0, truth, 0))
    assert found.max() == 3


def test_a_nucleus_within_a_ring_stays_its_own():
    ring = boxes((1, 1, 12, 12)) - boxes((3, 3, 10, 10)) + 2 * boxes((5, 5, 8, 8))
    assert segmentation.components(ring > 0).max() == 2
    assert segmentation.components(ring > 0)[4, 4] == 0


def test_background_that_reaches_the_edge_is_no_hole():
    mask = np.ones((9, 9), bool)
    mask[4:, 4] = False
    assert (segmentation.components(mask) > 0).sum() == mask.sum()


def test_shape_cuts_at_the_waist_where_components_cannot():
    truth = disks((20, 20, 10), (20, 37, 10))
    assert segmentation.components(truth > 0).max() == 1
    found = segmentation.watershed_from_mask(truth > 0)
    assert found.max() == 2
    assert matching.matching(truth, found, 0.9).tp == 2


def test_rise_decides_which_waist_counts():
    mask = disks((20, 20, 10), (20, 32, 10)) > 0  # the waist is two pixels narrower than the disks
    assert [segmentation.watershed_from_mask(mask, min_prominence).max() for min_prominence in (0.5, 4)] == [2, 1]
    with pytest.raises(ValueError, match="min_prominence must be above 0, found 0"):
        segmentation.watershed_from_mask(mask, 0)


def test_edge_of_the_image_is_no_waist():
    truth = disks((0, 30, 15))
    assert segmentation.watershed_from_mask(truth > 0).max() == 1


@pytest.mark.parametrize("way", ["boundary", "distance"])
def test_learned_maps_cut_where_the_outline_shows_nothing(way):
    truth = boxes((5, 5, 25, 25), (5, 25, 25, 45), shape=(40, 60))
    found = separations()[way](truth > 0, truth)
    assert segmentation.watershed_from_mask(truth > 0).max() == 1
    assert matching.matching(truth, found, 0.99).tp == 2


def test_rise_and_marker_threshold_decide_what_is_cut():
    truth = disks((20, 20, 10), (20, 41, 10))
    mask, distance = (truth > 0) * 1.0, labels.distance_map(truth)
    min_prominence = 1 - 1 / 11  # both are 11 pixels deep, and 1 where they touch
    found = [
        segmentation.watershed_from_distance(mask, distance, min_prominence=min_prominence + d).max()
        for d in (0.01, -0.01)
    ]
    assert found == [1, 2]
    boundary = np.where(labels.boundary_map(truth), 0.4, 0)
    found = [segmentation.watershed_from_boundary(mask, boundary, marker_thresh=t).max() for t in (0.59, 0.61)]
    assert found == [1, 2]


@pytest.mark.parametrize("rounds", [0, 1, 32])
@quick
@given(
    arrays(np.float32, st.tuples(st.integers(3, 24), st.integers(3, 24)), elements=st.sampled_from(np.arange(9) / 8)),
    st.sampled_from([0.01, 0.125, 0.25, 0.6, 1]),
)
def test_distance_cuts_as_the_reconstruction_of_scikit_image_says(rounds, distance, min_prominence):
    """The definition of h-maxima, by a function that is slower."""
    mask = distance > 0.2
    landscape = np.where(mask, distance, 0).astype(np.float32)
    cross = ndimage.generate_binary_structure(2, 1)
    levelled = reconstruction(landscape - np.float32(min_prominence), landscape, footprint=cross)
    expected = segmentation.watershed_from_markers(local_maxima(levelled, connectivity=1), mask, -landscape, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "FILL_ROUNDS", rounds)
        found = segmentation.watershed_from_distance(mask, distance, 0.5, min_prominence, 2)
    assert np.array_equal(found, expected)


def test_mask_threshold_is_exclusive():
    probability = np.full((6, 6), 0.5, np.float32)
    assert not segmentation.watershed_from_distance(probability, probability).any()
    assert segmentation.watershed_from_distance(probability, probability, prob_thresh=0.49).all()


def test_small_fragment_falls_to_its_neighbour():
    truth = boxes((2, 2, 12, 12))
    distance = labels.distance_map(truth)
    distance[2, 2] = 0.9  # a second peak in a corner
    distance[2:4, 2:4] = np.maximum(distance[2:4, 2:4], [[0.9, 0.1], [0.1, 0.1]])
    fragments = segmentation.watershed_from_distance((truth > 0) * 1.0, distance, min_size=0)
    assert fragments.max() == 2
    area = np.bincount(fragments.ravel())[1:].min()
    assert area < 50
    np.testing.assert_array_equal(
        segmentation.watershed_from_distance((truth > 0) * 1.0, distance, min_size=int(area) + 1), truth
    )
    np.testing.assert_array_equal(
        segmentation.watershed_from_distance((truth > 0) * 1.0, distance, min_size=int(area)), fragments
    )


def test_piece_without_a_marker_is_a_nucleus():
    mask = boxes((2, 2, 8, 8), (10, 10, 16, 16)) > 0
    markers = np.zeros_like(mask)
    markers[4, 4] = True
    np.testing.assert_array_equal(
        segmentation.watershed_from_markers(markers, mask, 0.0 * mask), segmentation.components(mask)
    )


def test_markers_outside_the_mask_are_nothing():
    mask = boxes((2, 2, 8, 8)) > 0
    np.testing.assert_array_equal(segmentation.watershed_from_markers(np.ones_like(mask), mask, 0.0 * mask), mask)


def test_a_part_of_the_image_gives_the_same_nuclei():
    # `predict.predict_labels` separates large images block by block and relies on it
    rng = np.random.default_rng(1)
    truth = disks(*[(*rng.integers(0, 80, 2), rng.integers(3, 8)) for _ in range(50)], shape=(80, 80))
    mask = (truth > 0) & (np.arange(80) != 50)[:, None]  # nothing crosses row 50
    distance = labels.distance_map(truth) + rng.normal(0, 0.1, truth.shape)
    whole = segmentation.watershed_from_distance(mask * 1.0, distance)[:50]
    assert whole.max() > 10
    assert same_nuclei(whole, segmentation.watershed_from_distance(mask[:50] * 1.0, distance[:50]))


def test_separate_takes_the_best_there_is():
    truth = boxes((5, 5, 25, 25), (5, 25, 25, 35), (35, 35, 38, 38), shape=(40, 60))
    maps = {"mask": (truth > 0).astype(np.float32)}
    np.testing.assert_array_equal(
        segmentation.maps_to_labels(maps, min_size=5), segmentation.watershed_from_mask(truth > 0, min_size=5)
    )
    maps |= {"distance": labels.distance_map(truth), "boundary": np.zeros(truth.shape, np.float32)}
    found = segmentation.maps_to_labels(maps, min_size=5)
    assert matching.matching(truth, found, 0.85).tp == found.max() == 3
    assert segmentation.maps_to_labels(maps, min_size=10).max() == 2
    assert segmentation.maps_to_labels(maps, min_prominence=0.95, min_size=5).max() == 2  # one piece, and the small one
    assert segmentation.maps_to_labels(maps, prob_thresh=1).max() == 0
    assert segmentation.maps_to_labels({"mask": maps["mask"]}, prob_thresh=1).max() == 0


def test_separation_says_what_is_wrong():
    flat = np.zeros((4, 4))
    with pytest.raises(ValueError, match=r"found the maps \['distance'\], expected \"mask\""):
        segmentation.maps_to_labels({"distance": flat})
    for call in (
        lambda: segmentation.maps_to_labels({"mask": flat, "distance": flat[1:]}),
        lambda: segmentation.maps_to_labels({"mask": flat[..., None]}),
        lambda: segmentation.watershed_from_boundary(flat, flat[None]),
        lambda: segmentation.components(flat[0]),
        lambda: segmentation.watershed_from_mask(flat[None]),
        lambda: segmentation.watershed_from_markers(flat, flat, flat[:2]),
    ):
        with pytest.raises(ValueError, match=r"maps must all have one shape \(H, W\), found \[\("):
            call()


# Overlaps


@quick
@given(label_map_pairs())
def test_overlaps_count_every_pair(pair):
    true, predicted = pair
    shared = matching.label_overlap(true, predicted)
    assert shared.true.tolist() == [n for n in np.unique(true) if n]
    assert shared.predicted.tolist() == [n for n in np.unique(predicted) if n]
    assert shared.true_areas.tolist() == [(true == n).sum() for n in shared.true]
    assert shared.predicted_areas.tolist() == [(predicted == n).sum() for n in shared.predicted]
    expected = {(t, p): ((true == t) & (predicted == p)).sum() for t in shared.true for p in shared.predicted}
    found = zip(shared.true[shared.rows], shared.predicted[shared.columns], shared.pixels, strict=True)
    assert {(t, p): n for t, p, n in found} == {pair: n for pair, n in expected.items() if n}
    assert len(shared.pixels) == sum(n > 0 for n in expected.values())


@quick
@given(label_map_pairs())
def test_iou_matrix_by_its_definition(pair):
    true, predicted = pair
    expected = [
        [((true == t) & (predicted == p)).sum() / ((true == t) | (predicted == p)).sum() for p in np.unique(predicted)]
        for t in np.unique(true)
    ]
    expected = np.array(expected)[(np.unique(true) > 0)][:, np.unique(predicted) > 0]
    found = matching.iou_matrix(true, predicted)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        (np.zeros((4, 4), bool), EMPTY, "expected a label map.*found bool .4, 4..*components"),
        (EMPTY, np.zeros((4, 4)), "expected a label map.*found float64"),
        (EMPTY[None], EMPTY, "expected a label map.*found int32 .1, 20, 20."),
        (EMPTY, EMPTY - 1, "0 .background. or above, found -1"),
        (EMPTY, EMPTY[:5], "the same image, found the shapes .20, 20. and .5, 20."),
    ],
)
def test_what_is_no_pair_of_label_maps_is_refused(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        matching.matching(true, predicted)


# Match


def test_match_by_hand():
    true = boxes((0, 0, 4, 4), (6, 0, 10, 4), (12, 0, 16, 4))
    predicted = boxes((12, 0, 16, 3), (0, 0, 4, 4), (0, 10, 4, 14))
    found = matching.matching(true, predicted)
    assert (found.tp, found.fp, found.fn) == (2, 1, 1)
    assert found.pairs.tolist() == [[1, 2], [3, 1]]
    assert found.ious.tolist() == [1, 0.75]


def test_iou_must_exceed_the_threshold():
    true, predicted = boxes((0, 0, 10, 10)), boxes((0, 0, 10, 5))  # IoU exactly 0.5
    assert matching.matching(true, predicted, 0.5).tp == 0
    assert matching.matching(true, predicted, 0.4999).tp == 1
    eleven = boxes((0, 0, 1, 11))
    assert matching.matching(boxes((0, 0, 1, 20)), eleven, matching.IOU_THRESHOLDS[1]).tp == 0  # exactly 0.55
    assert matching.matching(boxes((0, 0, 1, 20)), eleven, matching.IOU_THRESHOLDS[0]).tp == 1


@pytest.mark.parametrize(("true", "predicted"), [(EMPTY, EMPTY), (EMPTY, TWO), (TWO, EMPTY)])
def test_match_of_nothing(true, predicted):
    for threshold in (0, 0.5):
        found = matching.matching(true, predicted, threshold)
        assert (found.tp, found.fp, found.fn) == (0, predicted.max(), true.max())
        assert found.pairs.shape == (0, 2)
        assert found.ious.shape == (0,)


def test_numbers_may_have_gaps_and_be_large():
    renumbered = np.array([0, 2**31 - 1, 40])[TWO].astype(np.int64)
    found = matching.matching(renumbered, TWO)
    assert found.pairs.tolist() == [[40, 2], [2**31 - 1, 1]]


def test_below_one_half_the_best_pairs_are_chosen():
    # each of the predicted ones overlaps the first true one best: taking it greedily would leave the second unfound
    true = boxes((0, 0, 1, 10), (0, 10, 1, 14), shape=(1, 20))
    predicted = boxes((0, 0, 1, 4), (0, 4, 1, 14), shape=(1, 20))
    np.testing.assert_allclose(matching.iou_matrix(true, predicted), [[0.4, 6 / 14], [0, 0.4]])
    found = matching.matching(true, predicted, 0.3)
    assert found.pairs.tolist() == [[1, 1], [2, 2]]
    assert matching.matching(true, predicted, 0.41).pairs.tolist() == [[1, 2]]


@quick
@given(label_map_pairs(), st.sampled_from([0, 0.1, 0.3, 0.5, 0.7]))
def test_match_is_optimal(pair, threshold):
    true, predicted = pair
    ious = matching.iou_matrix(true, predicted)
    value = np.where(ious > threshold, 1000 + ious, 0)
    best = value[linear_sum_assignment(value, maximize=True)]
    found = matching.matching(true, predicted, threshold)
    assert found.tp == (best > 0).sum()
    assert found.tp * 1000 + found.ious.sum() == pytest.approx(best.sum())
    assert (found.tp + found.fn, found.tp + found.fp) == ious.shape[::1]
    assert (found.ious > threshold).all()
    for side in found.pairs.T:
        assert len(np.unique(side)) == found.tp


@pytest.mark.parametrize("threshold", [-0.1, 1, np.nan])
def test_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="0 or above and below 1, found"):
        matching.matching(TWO, TWO, threshold)
    with pytest.raises(ValueError, match="0 or above and below 1, found"):
        matching.average_precision([TWO], [TWO], [0.5, threshold])


def test_thresholds_are_the_competitions():
    assert matching.IOU_THRESHOLDS.tolist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


# Merges and splits


def test_merges_and_splits_by_hand():
    assert matching.find_merges(TWO, ONE).tolist() == [1]
    assert matching.find_splits(TWO, ONE).tolist() == []
    assert matching.find_merges(ONE, TWO).tolist() == []
    assert matching.find_splits(ONE, TWO).tolist() == [1]
    for truth in (EMPTY, TWO):
        assert matching.find_merges(truth, truth).tolist() == []
        assert matching.find_splits(truth, EMPTY).tolist() == []


def test_half_a_nucleus_is_not_the_larger_part():
    true = boxes((0, 0, 4, 4), (0, 4, 4, 8))
    assert matching.find_merges(true, boxes((0, 0, 4, 6))).tolist() == []
    assert matching.find_merges(true, boxes((0, 0, 4, 7))).tolist() == [1]
    assert matching.find_splits(boxes((0, 0, 4, 6)), true).tolist() == []
    assert matching.find_splits(boxes((0, 0, 4, 7)) * 9, true).tolist() == [9]


# Scores


def test_average_precision_is_pooled_over_nuclei():
    # the second image has three nuclei, so it counts three times the first one
    true = [boxes((0, 0, 4, 4)), boxes((0, 0, 4, 4), (6, 0, 10, 4), (12, 0, 16, 4))]
    predicted = [EMPTY, boxes((0, 0, 4, 4), (6, 0, 10, 3), (12, 10, 16, 14))]
    table = matching.average_precision(true, predicted, [0.5, 0.8])
    assert table.index.name == "threshold"
    expected = pd.DataFrame(
        {
            "tp": [2, 1],
            "fp": [1, 2],
            "fn": [2, 3],
            "precision": [2 / 3, 1 / 3],
            "recall": [1 / 2, 1 / 4],
            "f1": [4 / 7, 2 / 7],
            "ap": [2 / 5, 1 / 6],
            "matched_iou": [0.875, 1],
            "panoptic_quality": [0.5, 2 / 7],
        },
        index=pd.Index([0.5, 0.8], name="threshold"),
    )
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize(
    ("true", "predicted", "ap", "precision", "recall"),
    [([EMPTY], [EMPTY], 1, 1, 1), ([EMPTY], [TWO], 0, 0, 0), ([TWO], [EMPTY], 0, 0, 0), ([], [], 1, 1, 1)],
)
def test_average_precision_of_nothing(true, predicted, ap, precision, recall):
    table = matching.average_precision(true, predicted)
    assert table.index.tolist() == matching.IOU_THRESHOLDS.tolist()
    row = table.loc[0.5]
    assert (row["ap"], row["precision"], row["recall"]) == (ap, precision, recall)
    assert row["f1"] == row["panoptic_quality"] == ap
    assert np.isnan(row["matched_iou"])


@quick
@given(st.lists(label_map_pairs(), min_size=1, max_size=3), st.sampled_from([0.2, 0.5, 0.75]))
def test_average_precision_adds_up_the_matches(pairs, threshold):
    matches = [matching.matching(true, predicted, threshold) for true, predicted in pairs]
    row = matching.average_precision(*zip(*pairs, strict=True), [threshold]).loc[threshold]
    assert (row["tp"], row["fp"], row["fn"]) == tuple(sum(getattr(m, n) for m in matches) for n in ("tp", "fp", "fn"))
    if row["tp"]:
        assert row["matched_iou"] == pytest.approx(np.concatenate([m.ious for m in matches]).mean())
        assert row["panoptic_quality"] == pytest.approx(row["f1"] * row["matched_iou"])


def test_image_scores_by_hand():
    cases = {
        "both empty": (EMPTY, EMPTY, 1, 0, 0, 0, 0),
        "empty truth": (EMPTY, TWO, 0, 0, 2, 0, 0),
        "empty prediction": (TWO, EMPTY, 0, 0, 0, 0, 0),
        "the same": (TWO, TWO * 7, 1, 2, 2, 0, 0),
        "merged": (TWO, ONE, 0, 0, 1, 1, 0),  # IoU is 0.5 with each, which is not enough
        "split": (ONE, TWO, 0, 0, 2, 0, 1),
        "IoU 0.75": (boxes((0, 0, 4, 4)), boxes((0, 0, 4, 3)), 0.5, 1, 1, 0, 0),  # 0.50 .. 0.70: five of ten
    }
    table = matching.image_scores([case[0] for case in cases.values()], [case[1] for case in cases.values()])
    assert list(table.columns) == ["score", "true", "predicted", "tp", "fp", "fn", "merges", "splits"]
    table.index = list(cases)
    for name, (true, _, score, tp, count, merged, split) in cases.items():
        row = table.loc[name]
        assert (row["score"], row["tp"], row["predicted"]) == (score, tp, count), name
        assert (row["true"], row["fn"], row["fp"]) == (true.max(), true.max() - tp, count - tp), name
        assert (row["merges"], row["splits"]) == (merged, split), name


def test_kaggle_score_averages_over_images():
    assert matching.dsb2018_score([EMPTY], [EMPTY]) == 1
    assert matching.dsb2018_score([EMPTY, TWO], [TWO, EMPTY]) == 0
    # an image with one nucleus counts as much as one with two
    assert matching.dsb2018_score([TWO, ONE], [EMPTY, ONE]) == 0.5
    with pytest.raises(ValueError, match="no image"):
        matching.dsb2018_score([], [])


def test_kaggle_score_by_its_definition():
    # one of three at IoU 0.75, one exact, one missed, one too many
    true = boxes((0, 0, 4, 4), (6, 0, 10, 4), (12, 0, 16, 4))
    predicted = boxes((0, 0, 4, 4), (6, 0, 10, 3), (12, 10, 16, 14))
    assert matching.dsb2018_score([true], [predicted]) == pytest.approx((5 * 2 / 4 + 5 * 1 / 5) / 10)


@pytest.mark.parametrize("score", [matching.average_precision, matching.image_scores, matching.dsb2018_score])
def test_scores_take_pairs_only(score):
    with pytest.raises(ValueError, match="found 2 true and 1 predicted"):
        score([TWO, TWO], [TWO])
    with pytest.raises(ValueError, match="expected a label map"):
        score(TWO, TWO)  # one image instead of a list of images


def test_large_images_are_matched_in_under_a_second():
    cells = np.kron(np.arange(1, 5042).reshape(71, 71), np.ones((28, 28), np.int32))  # 5,041 nuclei
    true = np.pad(cells, (0, 12))
    true[::28] = true[:, ::28] = 0
    predicted = np.roll(true, (3, 3), (0, 1))
    start = process_time()  # of this process alone: others may keep the machine busy
    found = matching.matching(true, predicted)
    assert process_time() - start < 1
    assert true.shape == (2000, 2000)
    assert found.tp == 5041
    assert (found.pairs[:, 0] == found.pairs[:, 1]).all()
