"""Tests of the rule that decides which nuclei of overlapping blocks stay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from nuclei_utils import blocks


def merge_one_by_one(places, label_maps, shape):
    """Add the nuclei of one block after the other to a label map: a plain version of the rule."""
    label_map, count = np.zeros(shape, np.int32), 0
    for place, seen in zip(places, label_maps, strict=True):
        for label, box in enumerate(ndimage.find_objects(seen), 1):
            shifted = [slice(s.start + p.seen.start, s.stop + p.seen.start) for s, p in zip(box, place, strict=True)]
            middle = [(side.start + side.stop) / 2 for side in shifted]
            if all(p.first - 32 <= m < p.last for p, m in zip(place, middle, strict=True)):
                nucleus, target = seen[box] == label, label_map[tuple(shifted)]
                free = nucleus & (target == 0)
                if 2 * np.count_nonzero(free) > np.count_nonzero(nucleus):
                    count += 1
                    target[free] = count
    return label_map


def noisy_blocks(rng, shape, block, context, density):
    """Return places, and a label map of what each block sees: like its neighbours', but a little different."""
    places = blocks.place_blocks(shape, block, context)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 3)
    label_maps = []
    for place in places:
        seen = noise[place.seen] + 0.02 * ndimage.gaussian_filter(rng.normal(size=noise[place.seen].shape), 1)
        label_maps.append(ndimage.label(seen > np.quantile(noise, 1 - density))[0])
    return places, label_maps


@given(
    st.tuples(st.integers(1, 260), st.integers(1, 260)),
    st.sampled_from([(64, 32), (32, 64), (96, 0), (64, 64)]),
    st.floats(0, 0.5),
    st.integers(0, 9999),
)
def test_nuclei_are_those_of_one_block_after_the_other(shape, sizes, density, seed):
    rng = np.random.default_rng(seed)
    places, label_maps = noisy_blocks(rng, shape, *sizes, density)
    candidates = {}
    for number in rng.permutation(len(places)):  # blocks are finished in any order
        candidates[number] = blocks.find_candidates(label_maps[number], places[number])
    candidates = [candidates[number] for number in range(len(places))]
    label_map, count = np.zeros(shape, np.int32), 0
    for nuclei, stays in zip(candidates, blocks.settle(places, candidates), strict=True):
        blocks.paint(label_map, (0, 0), nuclei, np.where(stays, count + np.cumsum(stays), 0))
        count += stays.sum()
    np.testing.assert_array_equal(label_map, merge_one_by_one(places, label_maps, shape))


def test_the_noisy_blocks_disagree():
    """Check that the test above can fail."""
    places, label_maps = noisy_blocks(np.random.default_rng(0), (200, 200), 64, 32, 0.3)
    candidates = [blocks.find_candidates(*pair) for pair in zip(label_maps, places, strict=True)]
    stays = np.concatenate(list(blocks.settle(places, candidates)))
    assert 0 < stays.sum() < len(stays)


@given(st.tuples(st.integers(1, 400), st.integers(1, 400)), st.sampled_from([(64, 32), (96, 96), (32, 0)]))
def test_each_pixel_is_inside_of_one_block_and_seen_with_context(shape, sizes):
    inside = np.zeros(shape, int)
    for place in blocks.place_blocks(shape, *sizes):
        inside[place.inside] += 1
        for span, side in zip(place, shape, strict=True):
            assert span.seen == slice(max(span.first - sizes[1], 0), min(span.last + sizes[1], side))
    assert (inside == 1).all()


@given(st.integers(0, 9999))
def test_parts_of_a_label_map_are_painted_like_the_whole(seed):
    rng = np.random.default_rng(seed)
    places, label_maps = noisy_blocks(rng, (150, 170), 64, 32, 0.3)
    top, left = rng.integers(0, 100, 2)
    whole, part = np.zeros((150, 170), int), np.zeros((50, 60), int)
    for label_map, place in zip(label_maps, places, strict=True):
        nuclei = blocks.find_candidates(label_map, place)
        labels = rng.integers(0, 99, len(nuclei.boxes))
        blocks.paint(whole, (0, 0), nuclei, labels)
        blocks.paint(part, (top, left), nuclei, labels)
    np.testing.assert_array_equal(part, whole[top : top + 50, left : left + 60])


@pytest.mark.parametrize("sizes", [(100, 32), (0, 32), (64, 40), (64, -32)])
def test_impossible_blocks_are_refused(sizes):
    with pytest.raises(ValueError, match="multiples of 32"):
        blocks.place_blocks((10, 10), *sizes)
