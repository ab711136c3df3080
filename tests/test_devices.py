"""Tests of trainings on several devices and in mixed precision.

No GPU is needed: a process of its own sees the CPU as two devices.
"""

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from nuclei_utils import devices, input_pipeline, models, saving, training
from nuclei_utils.errors import NucleiError

BACKENDS = [
    "tensorflow",
    pytest.param("jax", marks=pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")),
]

TWO_DEVICES = """
import json, sys
import keras, numpy as np, tensorflow as tf
from nuclei_utils import datasets, devices, losses, training
from tests.test_checkpoints import Interrupt

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
rng = np.random.default_rng(0)
images = rng.random((3, 4, 16, 16, 3)).astype(np.float32)

def first_losses(names, build, images, loss=None, precision="float32"):
    masks = (images[..., :1] > 0.7).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices((images, masks))
    with devices.use_devices(names, precision):
        keras.utils.set_random_seed(0)
        model = training.compile_model(build(), steps=3, learning_rate=0.01)
        if loss:
            model.compile("sgd", loss, metrics=[losses.Dice()])
        steps = [model.fit(batches.skip(i).take(1), verbose=0).history["loss"][0] for i in range(len(images))]
        return [*steps, *model.evaluate(batches, verbose=0, return_dict=True).values()]

def both(*arguments, **options):
    return [first_losses(names, *arguments, **options) for names in ("cpu:0", "cpu:0,1")]

def plain():
    layers = keras.layers
    return keras.Sequential([
        keras.Input((None, None, 3)),
        layers.Conv2D(4, 3, padding="same", activation="relu"),
        layers.Conv2D(1, 1, activation="sigmoid", dtype="float32"),
    ])
"""


def two_devices(code, backend="tensorflow", *words):
    """Run code in a process with two virtual devices; return what it prints as JSON."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", TWO_DEVICES + code, *map(str, words)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


# First steps

FIRST_STEPS = """
from nuclei_utils import models
halves = images.copy()
halves[:, 2:] = halves[:, :2]
unet = lambda: models.unet(filters=2, depth=1)
plus_plus = lambda: models.unet_plus_plus(filters=2, depth=2)
pairs = {
    "tensorflow": lambda: [both(plain, images, "binary_crossentropy"), both(plus_plus, halves)],
    "jax": lambda: [both(unet, images)],
}[keras.backend.backend()]()
precisions = [
    first_losses("cpu:0,1", plain, images, precision=precision)
    for precision in ("float32", "mixed_bfloat16", "mixed_float16")
]
print(json.dumps([pairs, precisions]))
"""


@pytest.fixture(scope="module", params=BACKENDS)
def first_steps(request):
    return two_devices(FIRST_STEPS, request.param)


def test_two_devices_have_the_losses_of_one(first_steps):
    """With JAX, this holds for any network.

    With TensorFlow, each device has its own share of batch normalisation and of the Dice loss. The first network and
    its loss have neither. The other network gets two equal halves of each batch, of which both are equal.
    """
    for one, two in first_steps[0]:
        assert two == pytest.approx(one, rel=1e-4)
        assert np.ptp(one[:3]) > 1e-3, "the steps do something"


def test_mixed_precision_changes_the_losses_little(first_steps):
    exact, bfloat16, float16 = first_steps[1]
    for mixed in (bfloat16, float16):
        assert mixed != exact
        assert mixed[:3] == pytest.approx(exact[:3], rel=0.01)


# Whole trainings

TRAIN = """
folder, precision = sys.argv[1:]
batch = tf.data.Dataset.from_tensor_slices((images[0], (images[0][..., :1] > 0.7).astype(np.float32)))
batch = batch.take(3).batch(4)  # padded to 4, because 3 is no multiple of two devices
training.batches = lambda *_, **__: (batch, batch)
training.build = lambda *_: plain()
fit, interrupt = training.fit, []
training.fit = lambda *arguments, **options: fit(*arguments, **options | {"callbacks": interrupt})

def train(name, names="cpu:0,1"):
    options = {"devices": names, "precision": precision, "epochs": 4, "patience": 4, "verbose": 0}
    return training.train("unet", f"{folder}/{name}", **options)

def interrupted(name, names):
    interrupt.append(Interrupt(2))
    try:
        train(name)
    except KeyboardInterrupt:
        interrupt.clear()
    return train(name, names)

_, history = train("whole")
model, resumed = interrupted("resumed", "cpu:0,1")
_, elsewhere = interrupted("elsewhere", "cpu:1")
print(json.dumps([[table["loss"].tolist() for table in (history, resumed, elsewhere)], model.compute_dtype]))
"""


def check_training(tmp_path, backend, precision):
    (whole, resumed, elsewhere), dtype = two_devices(TRAIN, backend, tmp_path, precision)
    assert len(whole) == 4
    assert resumed == pytest.approx(whole, rel=1e-4)
    assert elsewhere == pytest.approx(whole, rel=1e-2), "on one device, the batch has two equal examples less"
    assert dtype == "float32", "the saved network runs anywhere"


def test_training_on_two_devices_resumes_with_the_same_result(tmp_path):
    check_training(tmp_path, "tensorflow", "mixed_float16")  # its optimizer has the most state


@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
def test_training_under_jax_resumes_with_the_same_result(tmp_path):
    check_training(tmp_path, "jax", "mixed_bfloat16")


# In this process


@pytest.mark.parametrize("text", ["gpu:7", "cpu:0,9", "GPU:7"])
def test_missing_device_is_named_with_those_that_exist(text):
    with pytest.raises(NucleiError, match=r"(gpu:7|cpu:9).*cpu:0"):
        devices.find_devices(text)


def test_a_backend_without_a_list_of_devices_is_named(monkeypatch):
    def list_devices(_kind):
        raise AttributeError("'NoneType' object has no attribute 'list_devices'")  # as Keras with PyTorch

    monkeypatch.setattr(keras.distribution, "list_devices", list_devices)
    with pytest.raises(NucleiError, match=r"no devices for the .* backend: use auto"):
        devices.find_devices("gpu")


@pytest.mark.parametrize("text", ["", "tpu", "gpu:x", "gpu:-1", "cpu:0,", "2"])
def test_other_words_for_devices_are_refused(text):
    with pytest.raises(NucleiError, match="gpu:0,1"):
        devices.find_devices(text)


def test_devices_by_name():
    assert devices.find_devices("auto") == []
    assert devices.find_devices("cpu") == devices.find_devices("CPU:0,0") == ["cpu:0"]


def test_batch_size_is_a_multiple_of_the_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "find_devices", lambda _: ["cpu:0"] * 3)
    monkeypatch.setattr(devices, "_strategy", lambda _: tf.device("cpu:0"))
    with pytest.raises(NucleiError, match=r"batch size of 16.*3 devices"):
        training.train("unet", tmp_path, devices="cpu:0,1,2")


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="float64"), devices.use_devices(precision="float64"):
        pass


def test_precision_is_restored_after_an_error():
    before = keras.config.dtype_policy().name
    with pytest.raises(ValueError, match="mixed_bfloat16"), devices.use_devices("cpu", "mixed_bfloat16"):
        raise ValueError(keras.config.dtype_policy().name)
    assert keras.config.dtype_policy().name == before
    assert not tf.distribute.has_strategy()


@pytest.mark.parametrize(
    "build",
    [
        functools.partial(models.unet, filters=2, depth=1),
        functools.partial(models.unet_plus_plus, filters=2, depth=2),
        functools.partial(models.instance_unet, weights=None, filters=2, fixed_statistics=True),
    ],
)
def test_networks_in_mixed_precision_end_in_float32_and_are_saved_for_any_machine(tmp_path, build):
    with devices.use_devices(precision="mixed_bfloat16"):
        model = build()
    assert {tensor.dtype for tensor in model.outputs} == {"float32"}
    assert {weight.dtype for weight in model.weights if "seed" not in weight.path} == {"float32"}
    model.save(tmp_path / "mixed.keras")
    loaded = devices.in_float32(saving.load_model(tmp_path / "mixed.keras"))
    assert type(loaded) is type(model)
    assert {layer.compute_dtype for layer in loaded._flatten_layers()} == {"float32"}
    for weight, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    image = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    for exact, mixed in zip(*(keras.tree.flatten(network(image)) for network in (loaded, model)), strict=True):
        np.testing.assert_allclose(np.asarray(exact), np.asarray(mixed), atol=0.05)


def test_network_in_float32_is_not_copied():
    model = models.unet(filters=2, depth=1)
    assert devices.in_float32(model) is model


def test_batches_are_padded_to_a_multiple():
    pairs = tf.data.Dataset.from_tensor_slices((np.arange(7), {"mask": np.arange(7)})).batch(5)
    padded = input_pipeline.pad_batches(pairs, 3)
    assert len(padded) == len(pairs)
    assert [images.numpy().tolist() for images, _ in padded] == [[0, 1, 2, 3, 4, 0], [5, 6, 5]]
    assert all((images.numpy() == targets["mask"].numpy()).all() for images, targets in padded)
