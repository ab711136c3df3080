"""Make networks faster, and run them without Keras.

`freeze` and `compile_network` compile a network into one TensorFlow function for images of all sizes. `export_onnx` and
`export_litert` write files for other programs. `exported` loads such files, and `compare_exports` runs them beside the
Keras model.
"""

import functools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers, ops

from nuclei_utils import exported, matching, models, preprocess, segmentation
from nuclei_utils.errors import NucleiError, first_line
from nuclei_utils.files import atomic_write

PRECISIONS = ("float32", "int8_weights", "int8")
"""Precisions of LiteRT files: as trained, 8-bit weights, 8-bit weights and feature maps."""


def freeze(model: keras.Model) -> exported.Frozen:
    """Compile a network with its present weights, for the functions of `predict`.

    TensorFlow computes a frozen network faster, because it merges batch normalisation into the convolutions. The
    results are those of the model apart from rounding. Later changes of the weights do not reach the frozen network.

    Examples
    --------
    >>> freeze(models.unet(filters=2, depth=1))(np.zeros((1, 8, 8, 3), np.float32)).shape
    TensorShape([1, 8, 8, 1])
    """
    return exported.Frozen(model.name, model.input_shape, _compile(model, frozen=True))


@functools.lru_cache(maxsize=4)
def compile_network(model: keras.Model) -> Callable:
    """Compile a network once for images of all sizes.

    The function takes a float32 array (batch, H, W, 3). Changes of the weights reach the function. It raises
    `errors.NucleiError` for a size that the network cannot take, and `MemoryError`.

    Examples
    --------
    >>> compile_network(models.unet(filters=2, depth=1))(np.zeros((1, 8, 8, 3), np.float32)).shape
    TensorShape([1, 8, 8, 1])
    """
    return _compile(model, frozen=False)


def _compile(model, frozen):
    network = _with_open_sizes(model)
    variables = network.trainable_variables, network.non_trainable_variables
    # NumPy arrays become constants of the compiled function
    weights = [list(map(np.asarray, group)) for group in variables] if frozen else None

    def predict(batch):
        return network.stateless_call(*weights, batch, training=False)[0] if frozen else network(batch, training=False)

    compiled = tf.function(predict, input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.float32)])
    try:
        compiled.get_concrete_function()
    except (TypeError, ValueError, NotImplementedError):  # a layer needs to know the size
        compiled = functools.partial(model, training=False)

    def run(batch):
        try:
            return compiled(batch)
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(error.message) from error
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise NucleiError(
                f"the network {model.name!r} fails on images of {batch.shape[1]} x {batch.shape[2]} pixels: "
                f"{first_line(error)}"
            ) from error

    return run


def _with_open_sizes(model):
    """Return a network that TensorFlow can compile for open sizes.

    The result is the model, or a copy that shares its weights.
    """
    # Keras 3.15 cannot trace UpSampling2D with interpolation for open sizes, because it compares the sizes with zero
    # (keras-team/keras#22079): the copy has equivalent layers
    if not any(map(_is_bilinear_upsampling, model.layers)):
        return model
    return keras.models.clone_model(
        model, clone_function=lambda layer: _Upsample(name=layer.name) if _is_bilinear_upsampling(layer) else layer
    )


def _is_bilinear_upsampling(layer):
    return isinstance(layer, layers.UpSampling2D) and layer.interpolation == "bilinear" and layer.size == (2, 2)


class _Upsample(layers.Layer):
    """`UpSampling2D(2, interpolation="bilinear")` for open sizes."""

    def call(self, inputs):
        shape = tf.shape(inputs)
        return tf.image.resize(inputs, (2 * shape[1], 2 * shape[2]))

    def compute_output_shape(self, input_shape):
        batch, *size, channels = input_shape
        return (batch, *(side and 2 * side for side in size), channels)


def export_onnx(
    model: keras.Model,
    path: str | os.PathLike,
    precision: str = "float32",
    images: Sequence[np.ndarray] | None = None,
) -> None:
    """Write a network to an ONNX file.

    Other programs run the file without Keras. Open sizes stay open. Input and outputs are float32 at every precision.
    The function needs tf2onnx. For 8 bits see Jacob et al. 2018, arXiv 1712.05877.

    Parameters
    ----------
    model : keras.Model
        Network from (batch, H, W, 3) in [0, 1] to a dictionary of arrays (batch, H, W, 1), such as
        `models.instance_unet`. The outputs of the file have the names of the dictionary.
    path
        File whose name ends in ".onnx".
    precision : {"float32", "int8"}
        As trained, or 8-bit weights and feature maps, which many processors compute faster.
    images : sequence of uint8 array (H, W, 3), optional
        Dozens of typical RGB images for "int8". The range of each feature map is taken from these images.
    """
    _check_suffix(path, ".onnx")
    _check_precision(precision, ("float32", "int8"), images)
    if find_spec("tf2onnx") is None:
        raise ImportError("tf2onnx not found: install with `pip install tf2onnx`")
    signature = [keras.InputSpec(shape=model.input_shape, dtype="float32", name="image")]
    with atomic_write(path) as partial_path:
        _with_open_sizes(model).export(partial_path, format="onnx", verbose=False, input_signature=signature)
        if precision == "int8":
            size = [side or 256 for side in model.input_shape[1:3]]
            _quantize_onnx(partial_path, [_network_input(image, size) for image in images])


def _quantize_onnx(path, inputs):
    """Replace an ONNX file by one with 8-bit weights and feature maps."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.inputs = iter(inputs)

        def get_next(self):
            return next(({"image": image} for image in self.inputs), None)

    with tempfile.TemporaryDirectory() as folder:
        prepared_path = Path(folder) / "prepared.onnx"
        quant_pre_process(path, prepared_path, skip_symbolic_shape=True)
        # Processors without VNNI add pairs of products in 16 bits: weights of 7 bits leave room for the sum
        quantize_static(
            prepared_path, path, Reader(), per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8
        )


def export_litert(
    model: keras.Model,
    path: str | os.PathLike,
    size: int = 256,
    precision: str = "float32",
    images: Sequence[np.ndarray] | None = None,
) -> None:
    """Write a network to a LiteRT (TensorFlow Lite) file.

    LiteRT runs on phones, small computers and in browsers. The file takes one image of one size. Its input and outputs
    are float32 at every precision. For 8 bits see Jacob et al. 2018, arXiv 1712.05877.

    Parameters
    ----------
    model, path
        Network as for `export_onnx`, and a file whose name ends in ".tflite".
    size : int
        Height and width of the image, pixels.
    precision : {"float32", "int8_weights", "int8"}
        As trained, 8-bit weights, or 8-bit weights and feature maps.
    images : sequence of uint8 array (H, W, 3), optional
        Dozens of typical RGB images for "int8". The converter takes the range of each feature map from these images.
    """
    _check_suffix(path, ".tflite")
    _check_precision(precision, PRECISIONS, images)
    signature = [keras.InputSpec(shape=(1, size, size, 3), dtype="float32", name="image")]
    with tempfile.TemporaryDirectory() as folder:
        # Keras before 3.13 has no format="litert", which takes the same way
        model.export(folder, format="tf_saved_model", verbose=False, input_signature=signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "int8":
            converter.representative_dataset = lambda: ([_network_input(image, (size, size))] for image in images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]  # no operation stays in float
        content = converter.convert()
    with atomic_write(path) as partial_path:
        partial_path.write_bytes(content)


def _network_input(image, size):
    """Normalise and crop or pad an image: (1, *size, 3)."""
    height, width = size
    return preprocess.pad_to(preprocess.normalize(image), size)[None, :height, :width]


def _check_precision(precision, precisions, images):
    if precision not in precisions:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(precisions)}")
    if precision == "int8" and not images:
        raise ValueError("precision int8 needs dozens of images to find the range of each feature map: pass `images`")


def _check_suffix(path, suffix):
    if Path(path).suffix != suffix:
        raise ValueError(f"{path}: other programs expect a name that ends in {suffix}; rename the file")


def compare_exports(
    model: keras.Model,
    files: dict[str, str | os.PathLike],
    images: Sequence[np.ndarray],
    label_maps: Sequence[np.ndarray],
    size: int = 256,
    rounds: int = 3,
    threads: int | None = None,
) -> pd.DataFrame:
    """Compare a network with its exported files: size, speed and results.

    The networks take turns, so that a busy moment of the machine slows all of them. Only the upper left corner of each
    image is used.

    Parameters
    ----------
    model, files
        Network as for `export_onnx`, and its exported files by their name in the table.
    images, label_maps : sequences of uint8 array (H, W, 3) and int array (H, W)
        RGB images and their true label maps.
    size : int
        Height and width of the corner, pixels; LiteRT files need the size of their export.
    rounds, threads : int
        Number of timed predictions of each image, and of threads of the files; Keras takes those of TensorFlow.

    Returns
    -------
    pandas.DataFrame
        One row for "keras" and one row for each file. `megabytes` is the size of the file, or of the weights in Keras
        (10**6 bytes). `milliseconds` is the median time of one image. `largest_difference` and `mean_difference`
        compare the pixels of the mask with those of Keras. `agreement` is the score of the label maps against those
        of Keras, and `score` against the truth (`matching.dsb2018_score`).
    """
    network = compile_network(model)
    functions = {"keras": lambda batch: {name: ops.convert_to_numpy(values) for name, values in network(batch).items()}}
    functions |= {name: exported.load(path, threads) for name, path in files.items()}
    outputs, milliseconds = _run_in_turns(functions, [_network_input(image, (size, size)) for image in images], rounds)
    # padding does not count
    shapes = [(min(image.shape[0], size), min(image.shape[1], size)) for image in images]
    true = [label_map[:height, :width] for label_map, (height, width) in zip(label_maps, shapes, strict=True)]
    rows, masks, predicted = {}, {}, {}
    for name in functions:  # Keras comes first
        maps = [
            {key: values[0, :height, :width, 0] for key, values in output.items()}
            for output, (height, width) in zip(outputs[name], shapes, strict=True)
        ]
        masks[name] = np.concatenate([image_maps["mask"].ravel() for image_maps in maps])
        predicted[name] = [segmentation.maps_to_labels(image_maps) for image_maps in maps]
        difference = np.abs(masks[name] - masks["keras"])
        rows[name] = {
            "megabytes": Path(files[name]).stat().st_size / 1e6 if name in files else models.weight_megabytes(model),
            "milliseconds": milliseconds[name],
            "largest_difference": float(difference.max()),
            "mean_difference": float(difference.mean(dtype=np.float64)),
            "agreement": matching.dsb2018_score(predicted["keras"], predicted[name]),
            "score": matching.dsb2018_score(true, predicted[name]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("runtime")


def _run_in_turns(functions, inputs, rounds):
    """Run all functions on all inputs; return outputs and median milliseconds."""
    outputs, milliseconds = {}, {name: [] for name in functions}
    for function in functions.values():
        function(inputs[0])  # the first prediction sets up the function
    for _ in range(rounds):
        for name, function in functions.items():
            outputs[name] = []
            for batch in inputs:
                start = time.perf_counter()
                outputs[name].append(function(batch))
                milliseconds[name].append(1000 * (time.perf_counter() - start))
    return outputs, {name: float(np.median(times)) for name, times in milliseconds.items()}
