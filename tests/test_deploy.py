import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from nuclei_utils import deploy, exported, models, predict, preprocess
from nuclei_utils.errors import NucleiError

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated")

SIZE = 32


def noise(*size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


# Compiled and frozen networks, which must give the same as the model


COMPILED = pytest.mark.parametrize("compiled", [lambda model: model, deploy.freeze], ids=["compiled", "frozen"])

NETWORKS = {
    "unet": lambda: models.unet(filters=2, depth=2),
    "unet_plus_plus": lambda: models.unet_plus_plus(filters=2, depth=2),
    "mobilenet_unet": lambda: models.mobilenet_unet(weights=None, filters=2),
    "instance_unet": lambda: models.instance_unet(weights=None, filters=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_and_frozen_networks_give_the_maps_of_the_model(name):
    model = NETWORKS[name]()
    for image in (noise(64, 96), noise(96, 32)):
        expected = model(preprocess.normalize(image)[None], training=False)
        if not isinstance(expected, dict):
            expected = {"mask": np.mean(expected, axis=0) if isinstance(expected, list) else expected}
        for network in (model, deploy.freeze(model)):
            maps = predict.predict_maps(network, image)
            assert maps.keys() == expected.keys()
            for key, values in maps.items():
                np.testing.assert_allclose(values, np.asarray(expected[key])[0, ..., 0], atol=1e-5)


def test_a_frozen_network_keeps_its_weights():
    model = models.unet((None, None, 3), filters=2, depth=2)
    frozen = deploy.freeze(model)
    before = predict.predict_maps(frozen, noise(40, 50))["mask"]
    model.set_weights([2 * weight for weight in model.get_weights()])
    assert np.array_equal(predict.predict_maps(frozen, noise(40, 50))["mask"], before)
    assert np.abs(predict.predict_maps(model, noise(40, 50))["mask"] - before).max() > 0.01


class NeedsItsSize(layers.Layer):
    """A layer that cannot be compiled for open sizes."""

    def call(self, inputs):
        if None in inputs.shape[1:3]:
            raise ValueError("the size must be known")
        return inputs[..., :1]

    def compute_output_shape(self, shape):
        return (*shape[:3], 1)


class TakesAllMemory(layers.Layer):
    def call(self, inputs):
        # each factor fits into 32 bits, the limit of TensorFlow 2.19
        return ops.max(ops.tile(inputs, (1, 2**12, 2**12, 2**14)), axis=-1, keepdims=True)

    def compute_output_shape(self, shape):
        return (*shape[:3], 1)


def network_of(layer):
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, layer(inputs))


@COMPILED
def test_a_network_that_cannot_be_compiled_for_all_sizes_is_used_as_it_is(compiled):
    network = compiled(network_of(NeedsItsSize()))
    for image in (noise(40, 50), noise(64, 96)):
        mask = predict.predict_maps(network, image)["mask"]
        np.testing.assert_allclose(mask, preprocess.normalize(image)[..., 0], atol=1e-6)


@COMPILED
def test_a_size_that_the_network_cannot_take_is_named(compiled):
    network = compiled(models.unet(filters=1, depth=6))  # takes multiples of 64
    assert predict.predict_maps(network, noise(64, 64))["mask"].shape == (64, 64)
    with pytest.raises(NucleiError, match="96 x 64"):
        predict.predict_maps(network, noise(96, 64))


@COMPILED
def test_too_little_memory_is_a_memory_error(compiled):
    with pytest.raises(MemoryError):
        predict.predict_maps(compiled(network_of(TakesAllMemory())), noise(32, 32))


# Exported networks


@pytest.fixture(scope="module")
def network():
    """A small network with the difficulties of `instance_unet`: a model inside, upsampling, a dictionary of outputs."""
    keras.utils.set_random_seed(0)
    inner = keras.Input((None, None, 3))
    # LiteRT leaves layers with fewer than 1024 weights in float32
    features = layers.BatchNormalization()(layers.Conv2D(64, 3, strides=2, padding="same")(inner))
    encoder = models.FixedStatistics(inner, [layers.ReLU(6)(features)], name="encoder")
    inputs = keras.Input((None, None, 3), name="image")
    (x,) = encoder(layers.Rescaling(2.0, offset=-1.0)(inputs))
    x = layers.Concatenate()([inputs, layers.UpSampling2D(interpolation="bilinear")(x)])
    # not in alphabetical order, which is the order of Keras
    heads = {
        name: layers.Conv2D(1, 3, padding="same", activation="sigmoid", name=name)(x)
        for name in ("mask", "boundary", "distance")
    }
    return keras.Model(inputs, heads)


@pytest.fixture(scope="module")
def images():
    smooth = np.random.default_rng(0).random((6, 5, 5, 3))
    return [(255 * tf.image.resize(image, (SIZE, SIZE)).numpy()).astype(np.uint8) for image in smooth]


@pytest.fixture(scope="module")
def litert(network, images, tmp_path_factory):
    """A LiteRT file for each precision."""
    if not hasattr(tf, "lite"):
        pytest.skip("this TensorFlow has no tf.lite, which writes LiteRT files")
    folder = tmp_path_factory.mktemp("litert")
    files = {precision: folder / f"{precision}.tflite" for precision in deploy.PRECISIONS}
    for precision, path in files.items():
        deploy.export_litert(network, path, SIZE, precision, images)
    assert sorted(folder.iterdir()) == sorted(files.values())
    return files


def fixed_size(network):
    """Return a copy of the network that takes images of one size."""
    copy = keras.models.clone_model(network, input_tensors=keras.Input((SIZE, SIZE, 3), name="image"))
    copy.set_weights(network.get_weights())
    return copy


def largest_difference(outputs, network, batch):
    expected = {name: values.numpy() for name, values in network(batch, training=False).items()}
    assert set(outputs) == set(expected)
    for name, values in outputs.items():
        assert values.dtype == np.float32
        assert values.shape == expected[name].shape
    return max(np.abs(outputs[name] - expected[name]).max() for name in expected)


# 8 bits are steps of 1/256 in every layer; swapped outputs differ by more
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("int8_weights", 0.05), ("int8", 0.05)])
def test_litert_gives_the_named_maps_of_keras(network, images, litert, precision, tolerance):
    batch = preprocess.normalize(images[0])[None]
    outputs = [values.numpy() for values in network(batch, training=False).values()]
    assert all(np.abs(outputs[i] - outputs[j]).max() > 0.1 for i, j in [(0, 1), (0, 2), (1, 2)])
    assert largest_difference(exported.load(litert[precision])(batch), network, batch) < tolerance


def test_litert_files_have_their_precision(litert):
    def types(precision):
        interpreter = tf.lite.Interpreter(str(litert[precision]))
        return [np.dtype(tensor["dtype"]).name for tensor in interpreter.get_tensor_details()]

    assert "int8" not in types("float32")
    assert "int8" in types("int8_weights")
    assert types("int8").count("float32") == 4  # only the image and the three maps


def test_workers_limit_the_threads_of_an_exported_network(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(exported, "_load_litert", lambda path, threads: (None, seen.append(threads)))
    (tmp_path / "network.tflite").touch()
    for limit in ("3", ""):
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", limit)
        exported.load(tmp_path / "network.tflite")
    exported.load(tmp_path / "network.tflite", threads=5)
    assert (seen[0], seen[2]) == (3, 5)
    assert seen[1] >= 1


def test_litert_refuses_other_sizes(litert):
    with pytest.raises(ValueError, match=r"\(1, 32, 32, 3\).*\(1, 16, 32, 3\)"):
        exported.load(litert["float32"])(np.zeros((1, 16, 32, 3), np.float32))


def test_a_litert_file_predicts_images_of_other_sizes_in_tiles(network, images, litert):
    loaded, image = exported.load(litert["float32"]), np.concatenate([images[0], images[1][:20]])
    assert (loaded.name, loaded.input_shape) == ("float32", (1, SIZE, SIZE, 3))
    maps = predict.predict_maps(loaded, image, overlap=0)
    for name, expected in predict.predict_maps(fixed_size(network), image, overlap=0).items():
        np.testing.assert_allclose(maps[name], expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # tf2onnx
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("int8", 0.05)])
def test_onnx_gives_the_maps_of_keras_at_any_size(network, images, tmp_path, precision, tolerance):
    if find_spec("tf2onnx") is None:
        pytest.skip("tf2onnx is not installed")
    deploy.export_onnx(network, tmp_path / "network.onnx", precision, images)
    loaded = exported.load(tmp_path / "network.onnx")
    assert loaded.input_shape == (None, None, None, 3)
    for height, width in [(32, 32), (48, 16)]:
        batch = np.stack([preprocess.pad_to(preprocess.normalize(image), (48, 32)) for image in images[:2]])
        batch = batch[:, :height, :width].astype(np.float32)
        assert largest_difference(loaded(batch), network, batch) < tolerance
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]
    assert (b"QuantizeLinear" in (tmp_path / "network.onnx").read_bytes()) == (precision == "int8")
    deploy.export_onnx(fixed_size(network), tmp_path / "fixed.onnx", precision, images)
    assert exported.load(tmp_path / "fixed.onnx").input_shape == (None, SIZE, SIZE, 3)


def test_comparison_has_a_row_for_each_file(network, images, litert):
    label_maps = [np.zeros((SIZE, SIZE), np.int32) for _ in images]
    small = [images[0], images[1][:20, :24]], [label_maps[0], label_maps[1][:20, :24]]
    table = deploy.compare_exports(network, litert, *small, SIZE)
    assert list(table.index) == ["keras", *deploy.PRECISIONS]
    assert table.loc["keras", ["largest_difference", "agreement"]].tolist() == [0, 1]
    assert table.loc["float32", "largest_difference"] < 1e-5
    assert table.loc["float32", "agreement"] == 1
    assert 0 < table.loc["int8", "mean_difference"] <= table.loc["int8", "largest_difference"] < 0.05
    assert (table[["megabytes", "milliseconds"]] > 0).all(axis=None)
    other = keras.models.clone_model(network)  # has other weights
    table = deploy.compare_exports(other, {"wrong": litert["float32"]}, images, label_maps, SIZE, rounds=1)
    assert table.loc["wrong", "largest_difference"] > 0.1


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("network.onnx", {}, "tflite"),
        ("network.tflite", {"precision": "int4"}, "int4"),
        ("network.tflite", {"precision": "int8"}, "images"),
        ("network.tflite", {"size": 33}, "Concatenate"),
    ],
)
def test_a_failed_export_leaves_no_file(network, tmp_path, name, options, word):
    with pytest.raises(ValueError, match=word):
        deploy.export_litert(network, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_file_needs_its_suffix_and_its_package(network, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="onnx"):
        deploy.export_onnx(network, tmp_path / "network.tflite")
    with pytest.raises(ValueError, match="int8_weights"):
        deploy.export_onnx(network, tmp_path / "network.onnx", "int8_weights")
    with pytest.raises(ValueError, match="images"):
        deploy.export_onnx(network, tmp_path / "network.onnx", "int8")
    monkeypatch.setattr(deploy, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install tf2onnx"):
        deploy.export_onnx(network, tmp_path / "network.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_onnxruntime_that_cannot_be_loaded_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # `import` then raises ImportError
    with pytest.raises(NucleiError, match=r"onnxruntime cannot be loaded.*--precision float32"):
        exported.included_network()


def test_a_file_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"network\.pb"):
        exported.load(tmp_path / "network.pb")
    with pytest.raises(FileNotFoundError, match=r"network\.onnx"):
        exported.load(tmp_path / "network.onnx")
