from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from nuclei_utils import deploy, models

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated")

SIZE = 32


@pytest.fixture(scope="module")
def network():
    """What makes `instance_unet` hard to export, in small: an encoder inside, enlarging, a dictionary of outputs."""
    keras.utils.set_random_seed(0)
    inner = keras.Input((None, None, 3))
    # enough weights: LiteRT leaves those of a layer in float32 where there are fewer than 1024
    features = layers.BatchNormalization()(layers.Conv2D(64, 3, strides=2, padding="same")(inner))
    encoder = models.FixedStatistics(inner, [layers.ReLU(6)(features)], name="encoder")
    inputs = keras.Input((None, None, 3), name="image")
    (x,) = encoder(layers.Rescaling(2.0, offset=-1.0)(inputs))
    x = layers.Concatenate()([inputs, layers.UpSampling2D(interpolation="bilinear")(x)])
    # not in the order of the alphabet, in which Keras keeps them
    heads = {
        name: layers.Conv2D(1, 3, padding="same", activation="sigmoid", name=name)(x)
        for name in ("mask", "boundary", "distance")
    }
    return keras.Model(inputs, heads)


@pytest.fixture(scope="module")
def images():
    smooth = np.random.default_rng(0).random((6, 5, 5, 3))
    return [(255 * tf.image.resize(one, (SIZE, SIZE)).numpy()).astype(np.uint8) for one in smooth]


@pytest.fixture(scope="module")
def litert(network, images, tmp_path_factory):
    """A LiteRT file of each precision."""
    if not hasattr(tf, "lite"):
        pytest.skip("this TensorFlow comes without tf.lite, which writes LiteRT files")
    folder = tmp_path_factory.mktemp("litert")
    files = {precision: folder / f"{precision}.tflite" for precision in deploy.PRECISIONS}
    for precision, path in files.items():
        deploy.export_litert(network, path, SIZE, precision, images)
    assert sorted(folder.iterdir()) == sorted(files.values())
    return files


def largest_difference(found, network, batch):
    expected = {name: values.numpy() for name, values in network(batch, training=False).items()}
    assert set(found) == set(expected)
    for name, values in found.items():
        assert values.dtype == np.float32
        assert values.shape == expected[name].shape
    return max(np.abs(found[name] - expected[name]).max() for name in expected)


# 8 bits are steps of 1/256 in every layer; a mix-up of two outputs differs by more
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("int8_weights", 0.05), ("int8", 0.05)])
def test_litert_gives_what_keras_gives_under_the_same_names(network, images, litert, precision, tolerance):
    batch = deploy.network_input(images[0], SIZE)
    outputs = [values.numpy() for values in network(batch, training=False).values()]
    assert all(np.abs(outputs[i] - outputs[j]).max() > 0.1 for i, j in [(0, 1), (0, 2), (1, 2)])
    assert largest_difference(deploy.load_exported(litert[precision])(batch), network, batch) < tolerance


def test_precisions_are_what_they_say(litert):
    def types(precision):
        interpreter = tf.lite.Interpreter(str(litert[precision]))
        return [np.dtype(tensor["dtype"]).name for tensor in interpreter.get_tensor_details()]

    assert "int8" not in types("float32")
    assert "int8" in types("int8_weights")
    assert types("int8").count("float32") == 4  # the image and the three maps, nothing between


def test_litert_refuses_other_sizes(litert):
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 32, 32, 3\), found \(1, 16, 32, 3\)"):
        deploy.load_exported(litert["float32"])(np.zeros((1, 16, 32, 3), np.float32))


def test_onnx_gives_what_keras_gives_at_any_size(network, tmp_path):
    for package in ("tf2onnx", "onnxruntime"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    deploy.export_onnx(network, tmp_path / "network.onnx")
    function = deploy.load_exported(tmp_path / "network.onnx")
    for shape in [(1, 32, 32, 3), (2, 48, 16, 3)]:
        batch = np.random.default_rng(1).random(shape, dtype=np.float32)
        assert largest_difference(function(batch), network, batch) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]


def test_comparison_puts_all_side_by_side(network, images, litert, tmp_path):
    other = keras.models.clone_model(network)  # of other weights
    labels = [np.zeros((SIZE, SIZE), np.int32) for _ in images]
    table = deploy.compare_exports(
        network, litert, [images[0], images[1][:20, :24]], [labels[0], labels[1][:20, :24]], SIZE
    )
    assert list(table.index) == ["keras", *deploy.PRECISIONS]
    assert table.loc["keras", ["largest_difference", "agreement"]].tolist() == [0, 1]
    assert table.loc["float32", "largest_difference"] < 1e-5
    assert table.loc["float32", "agreement"] == 1
    assert 0 < table.loc["int8", "mean_difference"] <= table.loc["int8", "largest_difference"] < 0.05
    assert (table[["megabytes", "milliseconds"]] > 0).all(axis=None)
    wrong = deploy.compare_exports(other, {"wrong": litert["float32"]}, images, labels, SIZE, rounds=1)
    assert wrong.loc["wrong", "largest_difference"] > 0.1


def test_what_cannot_be_written_leaves_nothing(network, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"should end in \.tflite"):
        deploy.export_litert(network, tmp_path / "network.onnx")
    with pytest.raises(ValueError, match=r"should end in \.onnx"):
        deploy.export_onnx(network, tmp_path / "network.tflite")
    with pytest.raises(ValueError, match="unknown precision 'int4': choose one of float32"):
        deploy.export_litert(network, tmp_path / "network.tflite", precision="int4")
    with pytest.raises(ValueError, match="int8 needs images"):
        deploy.export_litert(network, tmp_path / "network.tflite", precision="int8")
    with pytest.raises(ValueError, match="Concatenate"):
        deploy.export_litert(network, tmp_path / "network.tflite", size=33)
    monkeypatch.setattr(deploy, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="tf2onnx not found: install with `pip install tf2onnx`"):
        deploy.export_onnx(network, tmp_path / "network.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"network\.pb ends in neither \.onnx nor \.tflite"):
        deploy.load_exported(tmp_path / "network.pb")
    with pytest.raises(FileNotFoundError, match=r"no file .*network\.onnx: write it with"):
        deploy.load_exported(tmp_path / "network.onnx")
