import keras
import numpy as np
import pytest
import tensorflow as tf

from nuclei_utils import datasets, input_pipeline, preprocess
from nuclei_utils.errors import NucleiError


def dice(mask, other):
    mask, other = np.asarray(mask) > 0.5, np.asarray(other) > 0.5
    return 2 * (mask & other).sum() / (mask.sum() + other.sum())


def discs(count=10, size=(100, 140), image_type="fluorescence_small"):
    """Draw examples with one bright disc each on a dark background."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(size)
    records = []
    for number in range(count):
        row, column = rng.integers(20, np.array(size) - 20)
        label_map = ((rows - row) ** 2 + (columns - column) ** 2 < 15**2).astype(np.int32)
        image = np.repeat(label_map[..., None] * 200 + 20, 3, axis=-1).astype(np.uint8)
        records.append(datasets.Record(str(number), image, label_map, image_type))
    return input_pipeline.from_records(records)


def epoch(batches):
    """Return the batches of one epoch as arrays."""
    return list(batches.as_numpy_iterator())


def same(batches, expected):
    pairs = zip(keras.tree.flatten(batches), keras.tree.flatten(expected), strict=True)
    return all(np.array_equal(array, other) for array, other in pairs)


# Examples


@pytest.mark.parametrize(
    ("split", "first"), [("train", "84c1fd889a"), ("validation", "bfb4a99357"), ("test", "5feb44cd02")]
)
def test_read_returns_the_records_of_a_split_in_a_fixed_order(split, first):
    records = {record.id: record for record in datasets.load("sample", split)}
    examples = epoch(input_pipeline.read("sample", split))
    assert sorted(example["id"].decode() for example in examples) == sorted(records)
    assert len(input_pipeline.read("sample", split)) == len(records)
    assert examples[0]["id"].decode().startswith(first), "the first image in the order of TensorFlow Datasets"
    for example in examples:
        record = records[example["id"].decode()]
        assert np.array_equal(example["image"], record.image)
        assert np.array_equal(example["label_map"][..., 0], record.label_map)
        assert datasets.IMAGE_TYPES[example["image_type"]] == record.image_type


def test_read_refuses_an_unknown_split():
    with pytest.raises(NucleiError, match="'dev'"):
        input_pipeline.read("sample", "dev")


def test_from_records_refuses_no_records_and_too_many_nuclei():
    with pytest.raises(ValueError, match="no records"):
        input_pipeline.from_records([])
    label_map = np.arange(1, 70_001).reshape(250, 280)
    with pytest.raises(NucleiError, match="large: found 70000 nuclei"):
        input_pipeline.from_records([datasets.Record("large", np.zeros((250, 280, 3), np.uint8), label_map, "")])


def test_from_records_renumbers_large_labels():
    record = datasets.load("sample", "validation")[0]
    (example,) = input_pipeline.from_records([record._replace(label_map=np.where(record.label_map, 70_000, 0))])
    assert set(np.unique(example["label_map"])) == {0, 1}


def test_read_keeps_the_order_of_the_images_with_the_given_ids():
    first, _, third, *_ = (example["id"] for example in epoch(input_pipeline.read("sample")))
    examples = input_pipeline.read("sample", ids=[third.decode(), first.decode()])
    assert [example["id"] for example in epoch(examples)] == [first, third]


# Training batches


@pytest.mark.parametrize("augment", ["all", "flips", None])
@pytest.mark.parametrize("size", [64, 160])
def test_training_batches_have_the_documented_shapes_and_ranges(augment, size):
    batches = epoch(input_pipeline.training_batches(discs(), size=size, batch_size=4, augment=augment))
    assert len(batches) == 2, "the last two crops are no whole batch"
    for images, masks in batches:
        assert images.shape == (4, size, size, 3)
        assert masks.shape == (4, size, size, 1)
        assert images.dtype == masks.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert set(np.unique(masks)) <= {0, 1}


@pytest.mark.parametrize("augment", ["all", "flips", None])
def test_image_and_mask_move_together(augment):
    for seed in range(3):
        batches = input_pipeline.training_batches(discs(), size=96, batch_size=5, augment=augment, seed=seed)
        for images, masks in epoch(batches):
            overlap = dice(images.mean(axis=-1, keepdims=True), masks)  # the image of a bright disc is its own mask
            assert overlap > (0.95 if augment == "all" else 0.999)
            assert dice(images.mean(axis=-1, keepdims=True), masks[:, ::-1]) < 0.7, "this check can fail"


@pytest.mark.parametrize("targets", ["mask", "instances"])
def test_a_seed_gives_the_same_sequence_of_different_epochs(targets):
    first, again, other = (
        input_pipeline.training_batches(discs(), 64, 4, seed=seed, targets=targets) for seed in (3, 3, 4)
    )
    first_epoch, second_epoch = epoch(first), epoch(first)
    assert same(first_epoch, epoch(again))
    assert same(second_epoch, epoch(again))
    assert not same(first_epoch, second_epoch)
    assert not same(first_epoch, epoch(other))


def test_every_image_is_used_once_in_an_epoch():
    # Without augmentation, a crop of the image's size is the whole image.
    batches = input_pipeline.training_batches(discs(size=(64, 64)), size=64, batch_size=5, augment=None)
    expected = sorted(preprocess.normalize(e["image"]).tobytes() for e in epoch(discs(size=(64, 64))))
    for _ in range(2):
        assert sorted(image.tobytes() for images, _ in epoch(batches) for image in images) == expected


def test_few_images_make_one_small_batch():
    ((images, _),) = epoch(input_pipeline.training_batches(discs(3), size=64, batch_size=8))
    assert len(images) == 3


def test_examples_of_unknown_number_are_batched():
    examples = discs().filter(lambda example: tf.strings.to_number(example["id"]) < 4)
    batches = input_pipeline.training_batches(examples, size=64, batch_size=2)
    assert sum(len(images) for images, _ in epoch(batches)) == 4


def test_images_are_normalised_once(monkeypatch):
    calls = []
    normalize = preprocess.normalize
    monkeypatch.setattr(preprocess, "normalize", lambda image: calls.append(1) or normalize(image))
    batches = input_pipeline.training_batches(discs(), size=64, batch_size=5)
    for _ in range(3):
        epoch(batches)
    assert len(calls) == 10


def test_images_of_rare_types_are_repeated():
    examples = discs(6).concatenate(discs(2, image_type="purple_on_white"))
    batches = input_pipeline.training_batches(examples, size=96, batch_size=2, augment=None, min_crops=5)
    assert len(batches) == 6  # 6 crops of the first type, 3 x 2 crops of the second
    crops = np.concatenate([images for images, _ in epoch(batches)])
    assert len({crop.tobytes() for crop in crops}) > 6, "an image gives different crops"
    assert len(epoch(input_pipeline.training_batches(examples, size=32, batch_size=2))) == 4


def test_images_of_unknown_type_are_one_type():
    batches = input_pipeline.training_batches(discs(2, image_type=""), 32, 4, augment=None, min_crops=8)
    assert len(epoch(batches)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": True}, "augment=True"),
        ({"targets": "boxes"}, "targets='boxes'"),
        ({"targets": "instances", "augment": "flips"}, "augment='flips'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        input_pipeline.training_batches(discs(1), **options)


def test_examples_without_end_are_refused():
    with pytest.raises(ValueError, match=r"remove \.repeat"):
        input_pipeline.training_batches(discs(2).repeat())


def test_instance_targets_match_the_image():
    ((images, targets),) = epoch(input_pipeline.training_batches(discs(8), 64, 8, targets="instances"))
    assert images.shape == (8, 64, 64, 3)
    assert {name: array.shape for name, array in targets.items()} == dict.fromkeys(targets, (8, 64, 64, 1))
    pairs = [(image, mask[..., 0] == 1) for image, mask in zip(images, targets["mask"], strict=True) if mask.any()]
    assert len(pairs) >= 4
    for image, mask in pairs:
        assert abs(image[mask].mean() - image[~mask].mean()) > 0.3, "bright on dark, or inverted"
    assert set(np.unique(targets["boundary"])) == {0, 1}
    assert 0 <= targets["distance"].min() < 0.1 < 0.9 < targets["distance"].max() <= 1
    assert not targets["distance"][targets["mask"] == 0].any()


# Validation batches


def test_validation_batches_are_center_crops():
    batches = input_pipeline.validation_batches(discs(), size=64, batch_size=4)
    crops = epoch(batches)
    assert same(crops, epoch(batches))
    assert [len(images) for images, _ in crops] == [4, 4, 2]
    example = epoch(discs())[0]
    center = slice(18, 82), slice(38, 102)
    assert np.array_equal(crops[0][0][0], preprocess.normalize(example["image"])[center])
    assert np.array_equal(crops[0][1][0], example["label_map"][center] > 0)


def test_small_validation_images_are_padded():
    ((images, masks),) = epoch(input_pipeline.validation_batches(discs(1, (60, 90)), size=64))
    assert images.shape == (1, 64, 64, 3)
    assert dice(images[..., :1], masks) > 0.999


def test_validation_batches_of_instances_have_the_same_crops():
    ((images, masks),) = epoch(input_pipeline.validation_batches(discs(2), 32, 2))
    ((same_images, targets),) = epoch(input_pipeline.validation_batches(discs(2), 32, 2, targets="instances"))
    assert np.array_equal(images, same_images)
    assert np.array_equal(masks, targets["mask"])
    assert set(targets) == {"mask", "boundary", "distance"}


# Augmentation


def test_crops_and_their_masks_are_flipped_along_each_axis_or_not():
    (image, mask) = epoch(input_pipeline.training_batches(discs(1), 140, 1, augment=None))[0]
    batches = input_pipeline.training_batches(discs(1), 140, 1, augment="flips", min_crops=20)
    crops = [(tuple(images.ravel()), tuple(masks.ravel())) for images, masks in epoch(batches)]
    sides = [(rows, columns) for rows in (1, -1) for columns in (1, -1)]
    expected = [(image[:, ::rows, ::columns], mask[:, ::rows, ::columns]) for rows, columns in sides]
    assert set(crops) == {(tuple(images.ravel()), tuple(masks.ravel())) for images, masks in expected}


def test_random_rotation_equals_the_layer_of_keras_at_the_same_angle():
    image = tf.constant(np.random.default_rng(0).random((32, 24, 3), np.float32))
    rotated, _ = input_pipeline.random_rotation(image, image[..., :1], (1, 2))
    angle = float(tf.random.stateless_uniform((), (1, 2)))
    layer = keras.layers.RandomRotation((angle, angle), fill_mode="reflect")
    np.testing.assert_allclose(rotated, keras.ops.convert_to_numpy(layer(image[None], training=True))[0], atol=1e-3)


def test_augmented_pairs_differ_and_stay_in_range():
    image = tf.constant(np.random.default_rng(0).random((32, 32, 3), np.float32))
    pairs = [input_pipeline.augment_pair(image, tf.round(image[..., :1]), (seed, 0)) for seed in range(4)]
    images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    assert len({changed.tobytes() for changed in images}) == 4
    assert 0 <= images.min() <= images.max() <= 1
    assert set(np.unique(masks)) == {0, 1}
