"""A network outside Keras: ONNX and LiteRT files, functions that run them, and a comparison with the original."""

import os
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import joblib
import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers

from nuclei_utils import matching, models, preprocess, segmentation
from nuclei_utils.files import atomic_write

PRECISIONS = ("float32", "int8_weights", "int8")
"""Of LiteRT files: as trained; weights of 8 bits; weights and what is computed with them, of 8 bits."""


def export_onnx(model, path):
    """Write a network as an ONNX file, which ONNX Runtime and many other programs run without Python or Keras.

    Height, width and batch size stay open where the network leaves them open.

    Parameters
    ----------
    model : keras.Model
        Takes (batch, H, W, 3) in [0, 1], gives a dictionary of arrays (batch, H, W, 1), such as
        `models.instance_unet`; the file's outputs have the names of the dictionary.
    path : path-like
        Ends in ".onnx".

    Raises
    ------
    ValueError
        If the path ends otherwise.
    ImportError
        If tf2onnx is not installed.
    """
    _check_ending(path, ".onnx")
    _check_installed("tf2onnx")
    signature = [keras.InputSpec(shape=model.input_shape, dtype="float32", name="image")]
    with atomic_write(path) as aside:
        with_open_sizes(model).export(aside, format="onnx", verbose=False, input_signature=signature)


def export_litert(model, path, size=256, precision="float32", images=None):
    """Write a network as a LiteRT (TensorFlow Lite) file, for phones, small computers and browsers.

    The file takes one image of one size, so that everything can be laid out in memory beforehand. For 8 bits see
    Jacob et al. 2018, arXiv 1712.05877; images go in, and maps come out, in float32 even then.

    Parameters
    ----------
    model : as for `export_onnx`
    path : path-like
        Ends in ".tflite".
    size : int
        Height and width of the image, pixels; a multiple that the network takes.
    precision : str
        One of `PRECISIONS`.
    images : sequence of uint8 array (H, W, 3), optional
        For "int8": RGB images like those to come, some dozens of all kinds. They are run through the network to find
        the range of each of its feature maps.

    Raises
    ------
    ValueError
        If the path ends otherwise, the precision is unknown, "int8" has no images, or the network does not take the
        size.
    """
    _check_ending(path, ".tflite")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not images:
        raise ValueError("int8 needs images from which it can find the ranges of the feature maps: give some dozens")
    signature = [keras.InputSpec(shape=(1, size, size, 3), dtype="float32", name="image")]
    with tempfile.TemporaryDirectory() as folder:
        # by way of TensorFlow's own format: Keras' format="litert" does the same, from 3.13 on
        model.export(folder, format="tf_saved_model", verbose=False, input_signature=signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "int8":
            converter.representative_dataset = lambda: ([network_input(image, size)] for image in images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]  # or fail: nothing in float
        content = converter.convert()
    with atomic_write(path) as aside:
        aside.write_bytes(content)


def network_input(image, size):
    """Cut the upper left piece out of an image, as a network takes it.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
        RGB.
    size : int
        Height and width of the piece, pixels.

    Returns
    -------
    float32 array (1, size, size, 3) in [0, 1]
        Normalised over the whole image; padded by reflection where the image is smaller.
    """
    return preprocess.pad_to(preprocess.normalize(image), (size, size))[None, :size, :size]


def with_open_sizes(model):
    """Make a network that TensorFlow can compile once for images of all sizes.

    Keras 3.15 cannot trace `UpSampling2D` with interpolation for open sizes, because it compares them with zero
    (keras-team/keras#22079). Layers that compute the same replace these layers.

    Parameters
    ----------
    model : keras.Model

    Returns
    -------
    keras.Model
        The model itself if it has no such layers; else a copy that shares its weights.
    """
    if not any(map(_interpolates, model.layers)):
        return model
    return keras.models.clone_model(
        model,
        clone_function=lambda layer: _Enlarge(name=layer.name) if _interpolates(layer) else layer,
    )


def _interpolates(layer):
    return isinstance(layer, layers.UpSampling2D) and layer.interpolation == "bilinear" and layer.size == (2, 2)


class _Enlarge(layers.Layer):
    """`UpSampling2D(2, interpolation="bilinear")`, also for sizes that are known only when it runs."""

    def call(self, inputs):
        shape = tf.shape(inputs)
        return tf.image.resize(inputs, (2 * shape[1], 2 * shape[2]))

    def compute_output_shape(self, input_shape):
        batch, *size, channels = input_shape
        return (batch, *(length and 2 * length for length in size), channels)


def _check_ending(path, ending):
    if Path(path).suffix != ending:
        raise ValueError(f"{path} should end in {ending}, which tells other programs what it is: rename it")


def _check_installed(*packages):
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} not found: install with `pip install {' '.join(missing)}`")


def load_exported(path, threads=None):
    """Load an exported network as a function.

    Parameters
    ----------
    path : path-like
        From `export_onnx` or `export_litert`.
    threads : int, optional
        How many threads compute; as many as there are cores for this process if not given.

    Returns
    -------
    callable
        Maps float32 (batch, H, W, 3) in [0, 1] to a dictionary of float32 arrays (batch, H, W, 1) in [0, 1]. That of
        a LiteRT file raises ValueError for any shape but its own.

    Raises
    ------
    ValueError
        If the file's name ends in neither ".onnx" nor ".tflite".
    FileNotFoundError
        If there is no such file.
    ImportError
        If what the file needs is not installed: onnxruntime, or ai-edge-litert once TensorFlow has no more part of it.
    """
    kinds = {".onnx": _load_onnx, ".tflite": _load_litert}
    path = Path(path)
    if path.suffix not in kinds:
        raise ValueError(f"{path} ends in neither {' nor '.join(kinds)}: only such files can be run here")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: write it with `deploy.export_onnx` or `deploy.export_litert`")
    return kinds[path.suffix](path, threads or joblib.cpu_count())


def _load_onnx(path, threads):
    _check_installed("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(names, {image.name: batch}), strict=True))


def _load_litert(path, threads):
    if find_spec("ai_edge_litert") or not hasattr(tf.lite, "Interpreter"):
        _check_installed("ai_edge_litert")
        from ai_edge_litert.interpreter import Interpreter
    else:  # the older one, which TensorFlow brings for the time being
        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        runner = Interpreter(os.fspath(path), num_threads=threads).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    shape = tuple(details["shape"].tolist())

    def run(batch):
        if batch.shape != shape:
            raise ValueError(f"{path} takes images of shape {shape}, found {batch.shape}: export it for that size")
        return runner(**{name: batch})

    return run


def compare_exports(model, files, images, labels, size=256, rounds=3, threads=None):
    """Run a network and its exported files side by side on the same images: how good and how fast each is.

    All take turns, so that a busy moment of the machine strikes all. Each image counts with its upper left piece.

    Parameters
    ----------
    model : keras.Model
        As for `export_onnx`.
    files : dict of str to path-like
        Exported files of it, by the name that they get in the table.
    images : sequence of uint8 array (H, W, 3)
        RGB.
    labels : sequence of int array (H, W)
        Their true label maps.
    size : int
        Height and width that the networks see, pixels; that of the LiteRT files.
    rounds : int
        How many times each predicts all images, after one prediction that is not timed.
    threads : int, optional
        As for `load`. Keras takes as many as TensorFlow is set to, all cores by default.

    Returns
    -------
    pandas.DataFrame
        One row for "keras" and one for each file: `megabytes` (10**6 bytes; of Keras, what the weights take);
        `milliseconds` for an image of size x size, from array to array, the median; `largest_difference` and
        `mean_difference` to Keras' `mask`, over all pixels; `agreement` of the label maps with those of Keras, and
        their `score` against the truth, both by `matching.dsb2018_score`.
    """
    functions = {
        "keras": _compiled(model, size),
        **{name: load_exported(path, threads) for name, path in files.items()},
    }
    windows = [network_input(image, size) for image in images]
    milliseconds = {name: [] for name in functions}
    found = {}
    for function in functions.values():
        function(windows[0])  # sets things up
    for _ in range(rounds):
        for name, function in functions.items():
            found[name] = []
            for one in windows:
                start = time.perf_counter()
                maps = function(one)
                milliseconds[name].append(1000 * (time.perf_counter() - start))
                found[name].append(maps)
    # what was padded does not count
    shapes = [(min(height, size), min(width, size)) for height, width in (image.shape[:2] for image in images)]
    truth = [label_map[:height, :width] for label_map, (height, width) in zip(labels, shapes, strict=True)]
    found = {
        name: [
            {key: values[0, :height, :width, 0] for key, values in maps.items()}
            for maps, (height, width) in zip(several, shapes, strict=True)
        ]
        for name, several in found.items()
    }
    separated = {name: [segmentation.maps_to_labels(maps) for maps in several] for name, several in found.items()}
    masks = {name: np.concatenate([maps["mask"].ravel() for maps in several]) for name, several in found.items()}
    rows = {}
    for name in functions:
        difference = np.abs(masks[name] - masks["keras"])
        rows[name] = {
            "megabytes": Path(files[name]).stat().st_size / 1e6 if name in files else models.weight_megabytes(model),
            "milliseconds": float(np.median(milliseconds[name])),
            "largest_difference": float(difference.max()),
            "mean_difference": float(difference.mean(dtype=np.float64)),
            "agreement": matching.dsb2018_score(separated["keras"], separated[name]),
            "score": matching.dsb2018_score(truth, separated[name]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("runtime")


def _compiled(model, size):
    # not predict_on_batch: once it has seen several sizes it compiles for all, which fails (see `with_open_sizes`)
    signature = [tf.TensorSpec((1, size, size, 3), tf.float32)]
    function = tf.function(lambda batch: model(batch, training=False), input_signature=signature)
    return lambda batch: {name: values.numpy() for name, values in function(batch).items()}
