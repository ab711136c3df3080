import json
import tracemalloc
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from keras import layers, ops

from nuclei_utils import datasets, drawn_images, exported, matching, metrics, models, predict, preprocess, segmentation
from nuclei_utils.errors import NucleiError
from tools import draw_sample


@pytest.fixture
def red():
    """A network that returns the red channel."""
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, inputs[..., :1])


@pytest.fixture
def three_maps():
    """A network that returns the three channels as three maps."""
    inputs = keras.Input((None, None, 3))
    names = ("mask", "distance", "boundary")
    return keras.Model(inputs, {name: inputs[..., index : index + 1] for index, name in enumerate(names)})


def convolution(kernel):
    """A network that is one convolution of the red channel."""
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(1, kernel.shape, padding="same", use_bias=False)(inputs[..., :1]))
    model.set_weights([kernel[..., None, None]])
    return model


MEAN_FILTER = np.full((3, 3), 1 / 9, np.float32)


def noise(*size):
    image = np.random.default_rng(0).integers(0, 200, (*size, 3), dtype=np.uint8)
    image[:10, :10] = 255  # only the first tile and block see the brightest pixels
    return image


# Maps


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (5, 70)])
def test_maps_have_the_size_of_the_image_without_its_padding(red, size):
    mask = predict.predict_maps(red, noise(*size))["mask"]
    assert mask.dtype == np.float32
    np.testing.assert_allclose(mask, preprocess.normalize(noise(*size))[..., 0], atol=1e-6)


def test_masks_come_in_the_order_of_the_images(red):
    images = [noise(size, size) for size in (20, 40, 30)]
    masks = predict.predict_masks(red, images)
    assert [mask.shape for mask in masks] == [(20, 20), (40, 40), (30, 30)]
    assert np.array_equal(masks[1], predict.predict_maps(red, images[1])["mask"])
    assert predict.predict_masks(red, []) == []


def test_all_named_maps_are_returned(three_maps):
    maps = predict.predict_maps(three_maps, noise(100, 70), tile=64, overlap=32)
    for index, name in enumerate(("mask", "distance", "boundary")):
        np.testing.assert_allclose(maps[name], preprocess.normalize(noise(100, 70))[..., index], atol=1e-6)


def test_deep_supervision_is_averaged():
    model = models.unet_plus_plus((32, 32, 3), filters=2, depth=2)
    for size in [(32, 32), (40, 70)]:
        maps = predict.predict_maps(model, noise(*size))
        assert list(maps) == ["mask"]
        expected = predict.predict_maps(models.accurate_mode(model), noise(*size))["mask"]
        np.testing.assert_allclose(maps["mask"], expected, atol=1e-6)


def test_predictions_follow_the_weights_of_the_model():
    model = models.unet((None, None, 3), filters=2, depth=2)
    before = predict.predict_maps(model, noise(40, 50))["mask"]
    model.set_weights([2 * weight for weight in model.get_weights()])
    after = predict.predict_maps(model, noise(40, 50))["mask"]
    assert np.abs(after - before).max() > 0.01


def test_the_intensity_range_can_be_that_of_a_larger_image(red):
    image = noise(64, 64)
    lower = predict.predict_maps(red, image[32:], intensity_range=preprocess.intensity_range(image))["mask"]
    np.testing.assert_allclose(lower, preprocess.normalize(image)[32:, :, 0], atol=1e-6)


def half_size(inputs):
    return layers.AveragePooling2D(2)(inputs[..., :1])


def not_a_number(inputs):
    return layers.Activation(lambda x: x / 0.0 - x / 0.0)(inputs[..., :1])


@pytest.mark.parametrize(("output", "message"), [(half_size, r"\(1, 16, 32, 1\)"), (not_a_number, "NaN")])
@pytest.mark.parametrize("function", [predict.predict_maps, predict.predict_labels, predict.tta_consistency])
def test_maps_of_another_size_or_with_nan_are_refused(output, message, function):
    inputs = keras.Input((None, None, 3))
    with pytest.raises(NucleiError, match=f"'odd'.*{message}"):
        function(keras.Model(inputs, output(inputs), name="odd"), noise(32, 64))


@pytest.mark.parametrize(
    "image", [np.zeros(size, np.uint8) for size in ((20, 20), (20, 20, 4))] + [np.zeros((9, 9, 3))]
)
@pytest.mark.parametrize("function", [predict.predict_maps, predict.predict_labels, predict.tta_consistency])
def test_an_array_that_is_no_rgb_image_is_refused(red, image, function):
    with pytest.raises(ValueError, match=r"uint8.*io\.read_image"):
        function(red, image)


# Tiles


@pytest.mark.parametrize("size", [(40, 50), (64, 64), (65, 200), (300, 20), (129, 161), (250, 255)])
@pytest.mark.parametrize("overlap", [0, 32])
def test_tiles_give_the_maps_of_the_whole_image(red, size, overlap):
    inputs = keras.Input((None, None, 3))
    mean = layers.AveragePooling2D(32)(inputs[..., :1])  # depends on the start of a tile
    for model in (red, keras.Model(inputs, layers.UpSampling2D(32)(mean))):
        tiled = predict.predict_maps(model, noise(*size), tile=64, overlap=overlap)["mask"]
        np.testing.assert_allclose(tiled, predict.predict_maps(model, noise(*size))["mask"], atol=1e-6)


def test_overlapping_tiles_leave_no_seam():
    model = convolution(MEAN_FILTER)
    whole = predict.predict_maps(model, noise(200, 200))["mask"]
    seams = [
        np.abs(predict.predict_maps(model, noise(200, 200), 64, overlap)["mask"] - whole).max() for overlap in (0, 32)
    ]
    assert seams[0] > 0.1
    assert seams[1] < 0.002


@pytest.mark.parametrize(("size", "is_whole"), [((96, 96), True), ((50, 90), True), ((97, 40), False)])
def test_a_side_of_one_and_a_half_tiles_is_not_cut(size, is_whole):
    model = convolution(MEAN_FILTER)
    tiled = predict.predict_maps(model, noise(*size), tile=64, overlap=0)["mask"]
    assert np.allclose(tiled, predict.predict_maps(model, noise(*size))["mask"], atol=1e-5) == is_whole


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (80, 200)])
def test_a_network_of_a_fixed_size_takes_images_of_any_size(size):
    inputs = keras.Input((64, 64, 3))
    mask = predict.predict_maps(keras.Model(inputs, inputs[..., :1]), noise(*size))["mask"]
    np.testing.assert_allclose(mask, preprocess.normalize(noise(*size))[..., 0], atol=1e-6)


@pytest.mark.parametrize("size", [(32, 64), (96, 160)])
@pytest.mark.parametrize("n_tta", [4, 8])
def test_copies_are_turned_back_before_the_mean(size, n_tta):
    kernel = np.zeros((3, 3), np.float32)
    kernel[1, 2] = 1  # shifts the image by a pixel to the left
    image = np.zeros((*size, 3), np.uint8)
    image[11, 21] = 255
    mask = predict.predict_maps(convolution(kernel), image, tile=64, overlap=32, n_tta=n_tta)["mask"]
    expected = np.zeros(size)
    expected[11, [20, 22]] = 1 / 2  # mirrored, to the right
    if n_tta == 8:
        expected[11, [20, 22]] = expected[[10, 12], 21] = 1 / 4
    np.testing.assert_allclose(mask, expected, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"tile": 100}, {"tile": 64, "overlap": 64}, {"overlap": 10}, {"tile": 0, "overlap": 0}, {"n_tta": 2}]
)
def test_impossible_tiles_and_numbers_of_copies_are_refused(red, options):
    with pytest.raises(ValueError, match=str(next(iter(options)))):
        predict.predict_maps(red, noise(20, 20), **options)


def test_progress_goes_to_stderr_if_asked_for(red, capsys):
    predict.predict_maps(red, noise(100, 100), tile=64, overlap=32)
    predict.predict_labels(red, noise(100, 100), block=64, context=0)
    assert capsys.readouterr() == ("", "")
    predict.predict_maps(red, noise(100, 100), tile=64, overlap=32, progress=True)
    predict.predict_labels(red, noise(100, 100), block=64, context=0, progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert "0/9" in output.err
    assert "0/4" in output.err


# Label maps


def discs(*size, count=None, seed=0):
    """Draw nuclei for `three_maps`, many of which touch: red is the mask, green the distance."""
    rng = np.random.default_rng(seed)
    image = np.zeros((*size, 3), np.uint8)
    drawn = np.empty((0, 3))
    y, x = np.indices((21, 21)) - 10
    for _ in range(size[0] * size[1] // 50):
        if len(drawn) == count:
            break
        centre, radius = rng.integers(10, np.array(size) - 10), rng.integers(4, 10)
        if (np.hypot(*(drawn[:, :2] - centre).T) < drawn[:, 2] + radius - 1).any():
            continue
        drawn = np.vstack([drawn, [*centre, radius]])
        depth = np.clip(1.1 - np.hypot(y, x) / radius, 0, 1)
        square = image[centre[0] - 10 : centre[0] + 11, centre[1] - 10 : centre[1] + 11]
        square[..., 1] = np.maximum(square[..., 1], np.round(255 * depth))
    image[..., 0] = 255 * (image[..., 1] > 0)
    return image


def assert_same_nuclei(label_map, other):
    """Check that two label maps agree apart from their numbers and a few pixels."""
    result = matching.matching(label_map, other, threshold=0.9)
    assert result.fn == result.fp == 0


@pytest.mark.parametrize("size", [(40, 50), (230, 250), (129, 300), (300, 129), (193, 192)])
@pytest.mark.parametrize("block", [64, 96, 1024])
def test_blocks_give_the_nuclei_of_the_whole_image(three_maps, size, block):
    image = discs(*size)
    label_map = predict.predict_labels(three_maps, image, block=block, context=32)
    whole = segmentation.maps_to_labels(predict.predict_maps(three_maps, image))
    assert label_map.dtype == np.int32
    assert label_map.shape == size
    assert np.array_equal(np.unique(label_map), np.arange(label_map.max() + 1))
    assert whole.max() >= size[0] * size[1] / 1000
    assert_same_nuclei(label_map, whole)


def test_blocks_without_context_cut_nuclei(three_maps):
    """Check that the test above can fail."""
    image = discs(300, 320)
    cut, whole = (predict.predict_labels(three_maps, image, block=block, context=0) for block in (64, 1024))
    assert cut.max() > whole.max()


def test_a_nucleus_whose_outline_depends_on_the_block_is_found_once():
    """Each of two neighbouring blocks sees the middle of the nucleus in the other block, or each in itself."""
    for left, right in [(0, 1), (1, 0)]:

        def shifted(image, left=left, right=right):
            """Shift the image to the side of the block in which the network sees it."""
            return ops.roll(image[..., :1], ops.where(ops.all(image[:, :, 0, 2] > 0), left, right), axis=2)

        image = np.zeros((96, 160, 3), np.uint8)
        image[40:60, 54:73, 0] = 255  # around column 64, where the second block starts
        image[:, 0, 2] = 255
        image[:2, :2] = 255
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, layers.Lambda(shifted, output_shape=(None, None, 1))(inputs))
        assert predict.predict_labels(model, image, block=64, context=32).max() == 1


@pytest.mark.parametrize(
    "options", [{"min_size": 100}, {"min_prominence": 0.99}, {"prob_thresh": 0.99}, {"min_confidence": 0.999}]
)
def test_options_reach_the_segmentation(three_maps, options):
    image = cv2.GaussianBlur(discs(100, 100), (5, 5), 0)
    label_map = predict.predict_labels(three_maps, image, **options)
    assert np.array_equal(label_map, segmentation.maps_to_labels(predict.predict_maps(three_maps, image), **options))
    assert not np.array_equal(label_map, predict.predict_labels(three_maps, image))


def test_a_network_with_one_output_finds_nuclei(red):
    assert predict.predict_labels(red, discs(100, 100, count=3, seed=1)).max() == 3


def test_an_empty_image_has_no_nuclei(three_maps):
    assert not predict.predict_labels(three_maps, np.zeros((300, 300, 3), np.uint8), block=64, context=32).any()


@pytest.mark.parametrize("options", [{"block": 100}, {"block": 0}, {"context": 40}, {"context": -32}])
def test_impossible_blocks_are_refused(red, options):
    with pytest.raises(ValueError, match="multiples of 32"):
        predict.predict_labels(red, noise(20, 20), **options)


def test_memory_does_not_grow_with_the_image(three_maps):
    image = np.tile(discs(256, 256), (12, 2, 1))
    predict.predict_labels(three_maps, image[:512], block=128, context=32)  # compiles
    tracemalloc.start()
    label_map = predict.predict_labels(three_maps, image, block=128, context=32)
    peak = tracemalloc.get_traced_memory()[1] - label_map.nbytes
    tracemalloc.stop()
    assert peak < 0.5 * 4 * image.size, "half of the image as float32"


# Consistency


def test_consistency_is_high_on_nuclei_and_low_on_noise(three_maps):
    nuclei = cv2.GaussianBlur(discs(256, 256, count=40), (3, 3), 0)
    high, low = (predict.tta_consistency(three_maps, image, min_size=5) for image in (nuclei, noise(256, 256)))
    assert high > 0.75
    assert low < 0.45


def test_consistency_of_an_existing_label_map(three_maps):
    image = discs(120, 150)
    label_map = predict.predict_labels(three_maps, image)
    assert predict.tta_consistency(three_maps, image, label_map) == predict.tta_consistency(three_maps, image)
    assert predict.tta_consistency(three_maps, image, np.zeros_like(label_map)) == 0
    with pytest.raises(ValueError, match=r"\(150, 120\)"):
        predict.tta_consistency(three_maps, image, label_map.T)


def test_consistency_without_nuclei_is_nan(three_maps):
    assert np.isnan(predict.tta_consistency(three_maps, np.zeros((50, 50, 3), np.uint8)))


def test_consistency_of_a_large_image_is_that_of_its_middle(three_maps):
    side = 1024
    image = np.tile(discs(96, 96), (side // 96 + 2, side // 96 + 2, 1))
    start = (len(image) - side) // 2
    middle = image[start : start + side, start : start + side]
    assert predict.tta_consistency(three_maps, image) == predict.tta_consistency(three_maps, middle)


# The included network


INCLUDED = pytest.mark.parametrize("included_network", [models.included_network, exported.included_network])


@INCLUDED
@pytest.mark.parametrize(("split", "score", "dice"), [("validation", 0.57, 0.92), ("test", 0.68, 0.957)])
def test_included_network_keeps_its_score_on_the_sample(split, score, dice, included_network):
    """The minimum scores are 0.03 and 0.01 below the scores of the network of the model card."""
    records = datasets.load("sample", split)
    true = [record.label_map for record in records]
    predicted = [predict.predict_labels(included_network(), record.image) for record in records]
    assert matching.image_scores(true, predicted)["score"].mean() > score
    assert metrics.pixel_scores(true, predicted, threshold=0)["dice"].mean() > dice


def test_the_included_network_is_about_the_same_in_both_precisions():
    image = draw_sample.draw("purple_on_white", size=(160, 192))[0]
    maps, maps_in_8_bits = (
        predict.predict_maps(load(), image) for load in (models.included_network, exported.included_network)
    )
    for name, values in maps.items():
        assert 0 < np.abs(maps_in_8_bits[name] - values).mean() < 0.01
    assert maps["mask"].std() > 0.1


@pytest.mark.parametrize(
    ("included_network", "largest"), [(models.included_network, 0.1), (exported.included_network, 0.2)]
)
def test_tiles_change_the_maps_of_the_included_network_little(included_network, largest):
    """The tolerance is that of the docstring of `predict_maps`."""
    model, image = included_network(), draw_sample.draw("fluorescence_small", size=(160, 928))[0]
    whole, tiled = predict.predict_maps(model, image, tile=928), predict.predict_maps(model, image, tile=512)
    for name, values in whole.items():
        difference = np.abs(tiled[name] - values)
        assert 0 < difference.mean() < 0.001
        assert difference.max() < largest


# Diameter


def test_diameter_gives_the_network_nuclei_of_its_size_and_keeps_the_shape(monkeypatch, red):
    image = np.zeros((90, 133, 3), np.uint8)
    image[20:60, 30:70] = 255  # 40 pixels wide
    seen = []
    predict_maps = predict.predict_maps

    def record(model, image, **options):
        seen.append(image.shape)
        return predict_maps(model, image, **options)

    monkeypatch.setattr(predict, "predict_maps", record)
    label_map = predict.predict_labels(red, image, diameter=2 * predict.DIAMETER)
    assert seen == [(45, 66, 3)]
    assert label_map.shape == (90, 133)
    assert label_map.dtype == np.int32
    true = np.zeros((90, 133), bool)
    true[20:60, 30:70] = True
    assert np.count_nonzero((label_map == 1) ^ true) < 4 * 40, "the outline moves by less than a pixel"
    assert predict.median_diameter(label_map) == pytest.approx(2 * 40 / np.sqrt(np.pi), rel=0.05)


def test_size_of_the_smallest_nucleus_is_in_pixels_of_the_image(red):
    image = np.zeros((100, 100, 3), np.uint8)
    image[20:40, 20:40] = 255
    image[60:70, 60:70] = 255
    for diameter in (5, 20, 60):
        for min_size, count in ((50, 2), (200, 1), (800, 0)):
            assert predict.predict_labels(red, image, diameter=diameter, min_size=min_size).max() == count


@pytest.mark.parametrize("diameter", [0, -3, np.nan, np.inf])
def test_impossible_diameter_is_refused(red, diameter):
    with pytest.raises(ValueError, match="diameter"):
        predict.predict_labels(red, noise(20, 20), diameter=diameter)


def test_diameter_that_needs_too_many_pixels_is_refused(red):
    with pytest.raises(NucleiError, match="larger diameter"):
        predict.predict_labels(red, noise(20, 20), diameter=1e-4)


@pytest.mark.parametrize("factor", [6, 8])
def test_large_nuclei_are_found_better_with_their_diameter(factor):
    record = drawn_images.draw_colonies(1)[0]
    size = tuple(factor * side for side in record.label_map.shape)
    image, true = preprocess.resize(record.image, size), preprocess.resize_label_map(record.label_map, size)
    model = models.included_network()

    def found(**options):
        overlap = matching.label_overlap(true, predict.predict_labels(model, image, **options))
        return 2 * np.count_nonzero(overlap.ious >= 0.5) / (len(overlap.true) + len(overlap.predicted))

    assert found(diameter=predict.median_diameter(true)) > found() + 0.15


def test_training_diameters_are_those_of_the_results_file():
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "explore_stage1_fixed.json"
    run = json.loads(path.read_text())["runs"]["stage1_fixed"]
    by_type = run["diameter_by_type"].values()
    low, high = min(quartiles["quarter"] for quartiles in by_type), max(row["three_quarters"] for row in by_type)
    assert pytest.approx(run["diameter"]["median"], abs=0.05) == predict.DIAMETER
    assert pytest.approx((low, high), abs=0.5) == predict.DIAMETER_RANGE
