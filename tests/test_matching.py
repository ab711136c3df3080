import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from nuclei_utils import matching
from tests.test_segmentation import boxes

# no deadline, because the machines that run the tests may be busy
quick = settings(max_examples=40, deadline=None)


@st.composite
def label_map_pairs(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    return tuple(draw(arrays(dtype, shape, elements=st.integers(0, 5))) for dtype in (np.int32, np.uint16))


EMPTY = boxes()
TWO = boxes((2, 2, 8, 8), (2, 8, 8, 14))  # touching, 36 pixels each
ONE = boxes((2, 2, 8, 14))
THREE = boxes((0, 0, 4, 4), (6, 0, 10, 4), (12, 0, 16, 4))
THREE_PREDICTED = boxes((0, 0, 4, 4), (6, 0, 10, 3), (12, 10, 16, 14))  # exact, IoU 0.75, elsewhere


def test_import_is_free_of_keras():
    code = "import sys; from nuclei_utils import export, matching, segmentation; print('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# Overlap


@quick
@given(label_map_pairs())
def test_overlap_counts_the_pixels_of_all_pairs(pair):
    true, predicted = pair
    overlap = matching.label_overlap(true, predicted)
    assert overlap.true.tolist() == [label for label in np.unique(true) if label]
    assert overlap.predicted.tolist() == [label for label in np.unique(predicted) if label]
    assert overlap.true_areas.tolist() == [(true == label).sum() for label in overlap.true]
    assert overlap.predicted_areas.tolist() == [(predicted == label).sum() for label in overlap.predicted]
    pixels = [
        (row, column, int(((true == t) & (predicted == p)).sum()))
        for row, t in enumerate(overlap.true)
        for column, p in enumerate(overlap.predicted)
    ]
    pairs = zip(overlap.rows.tolist(), overlap.columns.tolist(), overlap.pixels.tolist(), strict=True)
    assert list(pairs) == [pair for pair in pixels if pair[2]]


@quick
@given(label_map_pairs())
def test_iou_matrix_is_intersection_over_union(pair):
    true, predicted = pair
    matrix = matching.iou_matrix(true, predicted)
    for row, t in zip(matrix, filter(None, np.unique(true)), strict=True):
        for iou, p in zip(row, filter(None, np.unique(predicted)), strict=True):
            assert iou == ((true == t) & (predicted == p)).sum() / ((true == t) | (predicted == p)).sum()


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        (np.zeros((4, 4), bool), EMPTY, "bool .4, 4."),
        (EMPTY, np.zeros((4, 4)), "float64"),
        (EMPTY[None], EMPTY, "int32 .1, 20, 20."),
        (EMPTY, EMPTY - 1, "found -1"),
        (EMPTY, EMPTY[:5], "shapes .20, 20. and .5, 20."),
    ],
)
def test_other_arrays_are_refused(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        matching.matching(true, predicted)


# Matching


def test_pairs_of_drawn_nuclei():
    result = matching.matching(THREE, boxes((12, 0, 16, 3), (0, 0, 4, 4), (0, 10, 4, 14)))
    assert result[:3] == (2, 1, 1)
    assert result.pairs.tolist() == [[1, 2], [3, 1]]
    assert result.ious.tolist() == [1, 0.75]


@pytest.mark.parametrize(
    ("width", "threshold", "tp"), [(10, 0.5, 0), (10, 0.4999, 1), (11, matching.IOU_THRESHOLDS[1], 0), (11, 0.5, 1)]
)
def test_iou_must_exceed_the_threshold(width, threshold, tp):
    assert matching.matching(boxes((0, 0, 1, 20)), boxes((0, 0, 1, width)), threshold).tp == tp


@pytest.mark.parametrize("threshold", [0, 0.5])
@pytest.mark.parametrize(("true", "predicted"), [(EMPTY, EMPTY), (EMPTY, TWO), (TWO, EMPTY), (EMPTY[:0], EMPTY[:0])])
def test_empty_label_maps_have_no_pairs(true, predicted, threshold):
    result = matching.matching(true, predicted, threshold)
    assert result[:3] == (0, predicted.max(initial=0), true.max(initial=0))
    assert result.pairs.shape == (0, 2)
    assert result.ious.shape == (0,)


def test_labels_may_be_large_and_have_gaps():
    renumbered = np.array([0, 2**31 - 1, 40])[TWO].astype(np.int64)
    for threshold in (0.3, 0.5):
        assert matching.matching(renumbered, TWO, threshold).pairs.tolist() == [[40, 2], [2**31 - 1, 1]]


def test_thousands_of_nuclei_are_matched():
    true = np.pad(np.kron(np.arange(1, 5042).reshape(71, 71), np.ones((28, 28), np.int32)), (0, 12))
    true[::28] = true[:, ::28] = 0
    predicted = np.roll(true, (3, 3), (0, 1))
    for threshold in (0.1, 0.5):
        result = matching.matching(true, predicted, threshold)
        assert result.tp == 5041
        assert (result.pairs[:, 0] == result.pairs[:, 1]).all()


def test_as_many_pairs_as_possible_match_below_one_half():
    # the best pair, true 1 with predicted 2, would leave true 2 without a partner
    true = boxes((0, 0, 1, 10), (0, 10, 1, 14), shape=(1, 20))
    predicted = boxes((0, 0, 1, 4), (0, 4, 1, 14), shape=(1, 20))
    np.testing.assert_allclose(matching.iou_matrix(true, predicted), [[0.4, 6 / 14], [0, 0.4]])
    assert matching.matching(true, predicted, 0.3).pairs.tolist() == [[1, 1], [2, 2]]
    assert matching.matching(true, predicted, 0.41).pairs.tolist() == [[1, 2]]


@quick
@given(label_map_pairs(), st.sampled_from([0, 0.1, 0.3, 0.5, 0.7]))
def test_matching_is_optimal(pair, threshold):
    ious = matching.iou_matrix(*pair)
    value = np.where(ious > threshold, 1000 + ious, 0)
    best = value[linear_sum_assignment(value, maximize=True)]
    result = matching.matching(*pair, threshold)
    assert result.tp == (best > 0).sum()
    assert result.tp * 1000 + result.ious.sum() == pytest.approx(best.sum())
    assert (result.tp + result.fn, result.tp + result.fp) == ious.shape
    assert (result.ious > threshold).all()
    assert all(len(np.unique(side)) == result.tp for side in result.pairs.T)


@pytest.mark.parametrize("threshold", [-0.1, 1, np.nan])
def test_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match=f"found {threshold}"):
        matching.matching(TWO, TWO, threshold)
    with pytest.raises(ValueError, match=f"found {threshold}"):
        matching.average_precision([TWO], [TWO], [0.5, threshold])


def test_thresholds_are_those_of_the_competition():
    assert matching.IOU_THRESHOLDS.tolist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


@pytest.mark.parametrize(
    ("true", "predicted", "merges", "splits"),
    [
        (TWO, ONE, [1], []),
        (ONE, TWO, [], [1]),
        (TWO, TWO, [], []),
        (TWO, EMPTY, [], []),
        (EMPTY, EMPTY, [], []),
        (boxes((0, 0, 4, 4), (0, 4, 4, 8)), boxes((0, 0, 4, 6)), [], []),  # half of the second nucleus
        (boxes((0, 0, 4, 4), (0, 4, 4, 8)), 9 * boxes((0, 0, 4, 7)), [9], []),
        (9 * boxes((0, 0, 4, 7)), boxes((0, 0, 4, 4), (0, 4, 4, 8)), [], [9]),
    ],
)
def test_merges_and_splits_hold_more_than_half_of_two_nuclei(true, predicted, merges, splits):
    assert matching.find_merges(true, predicted).tolist() == merges
    assert matching.find_splits(true, predicted).tolist() == splits


# Scores


def test_average_precision_counts_nuclei_of_all_images():
    table = matching.average_precision([boxes((0, 0, 4, 4)), THREE], [EMPTY, THREE_PREDICTED], [0.5, 0.8])
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
    ("true", "predicted", "score"), [([EMPTY], [EMPTY], 1), ([EMPTY], [TWO], 0), ([TWO], [EMPTY], 0), ([], [], 1)]
)
def test_average_precision_of_nothing_is_1_or_0(true, predicted, score):
    table = matching.average_precision(true, predicted)
    assert table.index.tolist() == matching.IOU_THRESHOLDS.tolist()
    assert (table[["precision", "recall", "f1", "ap", "panoptic_quality"]] == score).all(axis=None)
    assert table["matched_iou"].isna().all()


@quick
@given(st.lists(label_map_pairs(), min_size=1, max_size=3), st.sampled_from([0.2, 0.5, 0.75]))
def test_average_precision_is_the_sum_of_the_matchings(pairs, threshold):
    results = [matching.matching(*pair, threshold) for pair in pairs]
    row = matching.average_precision(*zip(*pairs, strict=True), [threshold]).loc[threshold]
    assert row[["tp", "fp", "fn"]].tolist() == np.sum([result[:3] for result in results], axis=0).tolist()
    if row["tp"]:
        assert row["matched_iou"] == pytest.approx(np.concatenate([result.ious for result in results]).mean())
        assert row["panoptic_quality"] == pytest.approx(row["f1"] * row["matched_iou"])


def test_scores_of_each_image():
    rows = [
        # true, predicted, score, tp, number of predicted nuclei, merges, splits
        (EMPTY, EMPTY, 1, 0, 0, 0, 0),
        (EMPTY, TWO, 0, 0, 2, 0, 0),
        (TWO, EMPTY, 0, 0, 0, 0, 0),
        (TWO, TWO * 7, 1, 2, 2, 0, 0),
        (TWO, ONE, 0, 0, 1, 1, 0),  # IoU is 0.5 with each, which is not above the threshold
        (ONE, TWO, 0, 0, 2, 0, 1),
        (boxes((0, 0, 4, 4)), boxes((0, 0, 4, 3)), 0.5, 1, 1, 0, 0),  # IoU 0.75: 0.50 .. 0.70 are five of ten
    ]
    table = matching.image_scores([row[0] for row in rows], [row[1] for row in rows])
    expected = [
        (score, true.max(), count, tp, count - tp, true.max() - tp, merges, splits)
        for true, _, score, tp, count, merges, splits in rows
    ]
    assert list(table.columns) == ["score", "true", "predicted", "tp", "fp", "fn", "merges", "splits"]
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize(
    ("true", "predicted", "score"),
    [
        ([EMPTY], [EMPTY], 1),
        ([EMPTY, TWO], [TWO, EMPTY], 0),
        ([TWO, ONE], [EMPTY, ONE], 0.5),  # images count the same, whatever the number of nuclei
        ([THREE], [THREE_PREDICTED], (5 * 2 / 4 + 5 * 1 / 5) / 10),
    ],
)
def test_dsb2018_score_is_the_mean_over_images(true, predicted, score):
    assert matching.dsb2018_score(true, predicted) == pytest.approx(score)


@pytest.mark.parametrize("score", [matching.average_precision, matching.image_scores, matching.dsb2018_score])
def test_scores_need_pairs_of_label_maps(score):
    with pytest.raises(ValueError, match="2 true and 1 predicted"):
        score([TWO, TWO], [TWO])
    with pytest.raises(ValueError, match="label map"):
        score(TWO, TWO)  # an image instead of a list of images
    with pytest.raises(ValueError, match="no image"):
        matching.dsb2018_score([], [])
