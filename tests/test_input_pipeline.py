import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from nuclei_utils import datasets, input_pipeline, preprocess
from nuclei_utils.errors import NucleiError


def dice(one, other):
    one, other = np.asarray(one) > 0.5, np.asarray(other) > 0.5
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def discs(count=10, size=(100, 140)):
    """Draw examples as `input_pipeline.read` gives them: one bright disc each on a dark ground, the id says where."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(size)

    def generate():
        for number in range(count):
            row, column = rng.integers(20, np.array(size) - 20)
            labels = ((rows - row) ** 2 + (columns - column) ** 2 < 15**2).astype(np.uint16)[..., None]
            image = np.repeat(labels * 200 + 20, 3, axis=-1).astype(np.uint8)
            yield {"image": image, "label_map": labels, "id": str(number), "image_type": 0}

    examples = list(generate())
    spec = {
        "image": tf.TensorSpec((None, None, 3), tf.uint8),
        "label_map": tf.TensorSpec((None, None, 1), tf.uint16),
        "id": tf.TensorSpec((), tf.string),
        "image_type": tf.TensorSpec((), tf.int64),
    }
    known = tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=spec)
    return known.apply(tf.data.experimental.assert_cardinality(count))


def epoch(batches):
    return [(images.numpy(), masks.numpy()) for images, masks in batches]


def same(one, other):
    return all(
        np.array_equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


def test_read_gives_the_records():
    record = datasets.load("sample", "validation")[0]
    example = next(e for e in input_pipeline.read("sample", "validation") if e["id"].numpy().decode() == record.id)
    assert np.array_equal(example["image"], record.image)
    assert np.array_equal(example["label_map"][..., 0], record.label_map)
    assert datasets.IMAGE_TYPES[int(example["image_type"])] == record.image_type


def test_read_knows_every_split():
    for split in datasets.SPLITS:
        examples = input_pipeline.read("sample", split)
        assert sorted(e["id"].numpy().decode() for e in examples) == datasets.ids("sample", split)
        assert len(examples) == len(datasets.ids("sample", split))


def test_without_tfds_the_same_examples_are_read_and_a_line_says_so_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    input_pipeline._tensorflow_datasets.cache_clear()
    try:
        examples = {split: list(input_pipeline.read("sample", split).as_numpy_iterator()) for split in datasets.SPLITS}
    finally:
        input_pipeline._tensorflow_datasets.cache_clear()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("TensorFlow Datasets cannot be imported") == 1
    for split, found in examples.items():
        records = {record.id: record for record in datasets.load("sample", split)}
        assert sorted(example["id"].decode() for example in found) == sorted(records)
        for example in found:
            record = records[example["id"].decode()]
            assert np.array_equal(example["image"], record.image)
            assert np.array_equal(example["label_map"][..., 0], record.label_map)
            assert datasets.IMAGE_TYPES[example["image_type"]] == record.image_type


def test_an_unknown_split_is_refused():
    with pytest.raises(NucleiError, match="no split 'dev'"):
        input_pipeline.read("sample", "dev")


@pytest.mark.parametrize("augment", ["all", "flips", None])
@pytest.mark.parametrize("size", [64, 160])
def test_training_batches(augment, size):
    batches = epoch(input_pipeline.training_batches(discs(), size=size, batch_size=4, augment=augment))
    assert len(batches) == 2, "the two images that are left over are dropped"
    for images, masks in batches:
        assert images.shape == (4, size, size, 3)
        assert masks.shape == (4, size, size, 1)
        assert images.dtype == masks.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert set(np.unique(masks)) <= {0, 1}


@pytest.mark.parametrize("augment", ["all", "flips", None])
def test_image_and_mask_stay_together(augment):
    # the image of a bright disc is its own mask, so whatever moves one must have moved the other
    for number in range(3):
        batches = input_pipeline.training_batches(discs(), size=96, batch_size=5, augment=augment, seed=number)
        for images, masks in epoch(batches):
            assert dice(images.mean(axis=-1, keepdims=True), masks) > (0.95 if augment == "all" else 0.999)


def test_flips_change_no_pixel():
    examples = discs(size=(64, 64))
    plain, flipped = (
        epoch(input_pipeline.training_batches(examples, size=64, batch_size=5, augment=how)) for how in (None, "flips")
    )
    differs = 0
    for (image, _), (changed, _) in zip(plain, flipped, strict=True):
        np.testing.assert_allclose(np.sort(changed.ravel()), np.sort(image.ravel()))
        differs += (image != changed).any()
    assert differs


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match='augment is True: choose "all", "flips" or None'):
        input_pipeline.training_batches(discs(), augment=True)


def test_the_check_for_drift_can_fail():
    images, masks = epoch(input_pipeline.training_batches(discs(), size=96, batch_size=5))[0]
    assert dice(images.mean(axis=-1, keepdims=True), masks[:, ::-1]) < 0.7


def test_same_seed_same_batches():
    first, again, other = (input_pipeline.training_batches(discs(), 64, 4, seed=seed) for seed in (3, 3, 4))
    one = epoch(first)
    assert same(one, epoch(again))
    assert not same(one, epoch(other))
    two = epoch(first)
    assert not same(one, two), "another epoch, other crops"
    assert same(two, epoch(again)), "but the same ones in each run"


def test_every_image_is_seen_once_an_epoch():
    # without augmentation, and at the images' own size, a crop is a whole image
    batches = input_pipeline.training_batches(discs(size=(64, 64)), size=64, batch_size=5, augment=None)
    expected = sorted(preprocess.normalize(e["image"].numpy()).tobytes() for e in discs(size=(64, 64)))
    for _ in range(2):
        assert sorted(image.tobytes() for images, _ in epoch(batches) for image in images) == expected


def test_few_images_still_make_a_batch():
    (batch,) = epoch(input_pipeline.training_batches(discs(3), size=64, batch_size=8))
    assert len(batch[0]) == 3


def test_shuffles_examples_whose_number_tf_data_does_not_know():
    some = discs().filter(lambda example: example["id"] != "3")
    assert some.cardinality() == tf.data.UNKNOWN_CARDINALITY
    batches = input_pipeline.training_batches(some, size=64, batch_size=3)
    assert sum(len(images) for images, _ in epoch(batches)) == 9


def test_expensive_steps_are_done_once(monkeypatch):
    calls = []
    normalize = preprocess.normalize
    monkeypatch.setattr(preprocess, "normalize", lambda image: calls.append(1) or normalize(image))
    batches = input_pipeline.training_batches(discs(), size=64, batch_size=5)
    for _ in range(3):
        epoch(batches)
    assert len(calls) == 10


def test_validation_batches_are_the_middle_and_always_the_same():
    batches = input_pipeline.validation_batches(discs(), size=64, batch_size=4)
    one = epoch(batches)
    assert same(one, epoch(batches))
    assert [len(images) for images, _ in one] == [4, 4, 2]
    example = next(iter(discs()))
    middle = slice(18, 82), slice(38, 102)
    assert np.array_equal(one[0][0][0], preprocess.normalize(example["image"].numpy())[middle])
    assert np.array_equal(one[0][1][0], example["label_map"].numpy()[middle] > 0)


def test_validation_pads_what_is_too_small():
    images, masks = epoch(input_pipeline.validation_batches(discs(1, (60, 90)), size=64))[0]
    assert images.shape == (1, 64, 64, 3)
    assert dice(images[..., :1], masks) > 0.999


def test_augmentation_stays_in_range_and_masks_stay_masks():
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    changed, masks = input_pipeline.augmentation()(images, images[..., :1].round())
    assert 0 <= changed.numpy().min() <= changed.numpy().max() <= 1
    assert set(np.unique(masks)) == {0, 1}


def test_rare_kinds_are_gone_through_more_often():
    rare = discs(2).map(
        lambda example: {**example, "image": 255 - example["image"], "image_type": tf.constant(3, tf.int64)}
    )
    batches = input_pipeline.training_batches(
        discs(6).concatenate(rare), size=96, batch_size=2, augment=None, min_crops=5
    )
    assert int(batches.cardinality()) == 6  # six of the one image_type, three rounds of two of the other
    crops = np.concatenate([images for images, _ in epoch(batches)])
    assert len({crop.tobytes() for crop in crops}) > 6, "the same image gives other crops"
    assert len(epoch(input_pipeline.training_batches(discs(6).concatenate(rare), size=32, batch_size=2))) == 4


def test_examples_without_end_are_refused():
    with pytest.raises(ValueError, match=r"never end: leave out \.repeat"):
        input_pipeline.training_batches(discs(2).repeat())


def test_augmentation_treats_each_image_of_a_batch_on_its_own():
    image = np.random.default_rng(0).random((1, 32, 32, 3), np.float32).repeat(4, axis=0)
    changed, _ = input_pipeline.augmentation()(image, image[..., :1].round())
    assert len({one.tobytes() for one in changed.numpy()}) == 4


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_runs_with_another_backend_of_keras(backend):
    pytest.importorskip(backend)
    code = (
        "from nuclei_utils import input_pipeline\n"
        "batches = input_pipeline.training_batches(input_pipeline.read('sample'), 64, 4)\n"
        "print(*{(tuple(i.shape), tuple(m.shape)) for i, m in batches})"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "((4, 64, 64, 3), (4, 64, 64, 1))", done.stderr


def instance_epoch(batches):
    return [(images.numpy(), {name: one.numpy() for name, one in targets.items()}) for images, targets in batches]


def test_instance_batches_show_image_and_targets_of_the_same_place():
    # squares of one brightness: where the image is bright, the mask is nucleus, whatever the turn and the zoom
    ((images, targets),) = instance_epoch(input_pipeline.instance_batches(discs(4), 64, 4))
    assert images.shape == (4, 64, 64, 3)
    assert all(one.shape == (4, 64, 64, 1) for one in targets.values())
    for image, mask in zip(images, targets["mask"], strict=True):
        inside, outside = image[mask[..., 0] == 1].mean(), image[mask[..., 0] == 0].mean()
        assert abs(inside - outside) > 0.3, "bright on dark, or inverted"
    assert set(np.unique(targets["boundary"])) == {0, 1}
    assert 0 <= targets["distance"].min() < 0.1 < 0.9 < targets["distance"].max() <= 1
    assert not targets["distance"][targets["mask"] == 0].any()


def test_instance_batches_repeat_with_their_seed_and_differ_between_epochs():
    batches = input_pipeline.instance_batches(discs(4), 32, 4, seed=3)
    first, second = instance_epoch(batches), instance_epoch(batches)
    again = instance_epoch(input_pipeline.instance_batches(discs(4), 32, 4, seed=3))
    assert np.array_equal(first[0][1]["mask"], again[0][1]["mask"])
    assert not np.array_equal(first[0][1]["mask"], second[0][1]["mask"])


def test_instance_validation_batches_are_the_middles():
    ((images, targets),) = instance_epoch(input_pipeline.instance_validation_batches(discs(2), 32, 2))
    for example, image, mask in zip(discs(2), images, targets["mask"], strict=True):
        middle = preprocess.center_crop(example["label_map"].numpy(), (32, 32)) > 0
        assert np.array_equal(mask, middle)
        assert image.shape == (32, 32, 3)


def test_records_become_the_examples_that_read_gives():
    records = datasets.load("sample", "validation")
    examples = input_pipeline.from_records(records)
    known = {example["id"].numpy().decode(): example for example in input_pipeline.read("sample", "validation")}
    assert len(examples) == len(records)
    assert examples.element_spec.keys() == input_pipeline.read("sample", "validation").element_spec.keys()
    for record, example in zip(records, examples, strict=True):
        for name, value in known[record.id].items():
            assert np.array_equal(example[name], value)
            assert example[name].dtype == value.dtype


def test_records_of_no_known_kind_can_be_trained_on():
    records = [record._replace(image_type="") for record in datasets.load("sample", "validation")[:2]]
    batches = input_pipeline.training_batches(input_pipeline.from_records(records), 32, 4, augment=None, min_crops=8)
    assert len(epoch(batches)) == 2


def test_records_that_make_no_examples_are_refused():
    with pytest.raises(ValueError, match="no record"):
        input_pipeline.from_records([])
    record = datasets.load("sample", "validation")[0]
    each_pixel = np.arange(1, 70_001).reshape(250, 280)
    with pytest.raises(NucleiError, match="70000 nuclei are too many for 16 bits"):
        input_pipeline.from_records([record._replace(image=np.zeros((250, 280, 3), np.uint8), label_map=each_pixel)])


def test_large_numbers_of_few_nuclei_are_no_obstacle():
    record = datasets.load("sample", "validation")[0]
    (example,) = input_pipeline.from_records([record._replace(label_map=np.where(record.label_map, 70_000, 0))])
    assert set(np.unique(example["label_map"])) == {0, 1}
