"""The networks of the course, built from Keras layers, and the included network.

U-Net, U-Net on MobileNetV2 and U-Net++ give one probability per pixel. `instance_unet`, the architecture of the
included network, gives three maps per image: mask, boundary and distance. A new network needs a function here and an
entry in `training.NETWORKS`.
"""

import functools
import math
import os
import timeit
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from nuclei_utils import datasets, exported
from nuclei_utils.errors import NucleiError, first_line

# Layers of MobileNetV2 for the skip connections, as in TensorFlow's segmentation tutorial, and for the decoder's start
SKIP_LAYERS = (
    "block_1_expand_relu",  # 1/2 of the image's height and width
    "block_3_expand_relu",  # 1/4
    "block_6_expand_relu",  # 1/8
    "block_13_expand_relu",  # 1/16
)
BOTTLENECK_LAYER = "block_16_project_BN"  # 1/32

# Environment variable with the path of a file of ImageNet weights, for machines without internet
WEIGHTS_VARIABLE = "NUCLEI_MOBILENET_WEIGHTS"


def conv_block(x: KerasTensor, filters: int, dropout: float = 0.0, residual: bool = False) -> KerasTensor:
    """Apply 3x3 convolution, batch normalisation and ReLU, twice.

    Parameters
    ----------
    x : KerasTensor (batch, H, W, C)
        Feature maps. The result has the shape (batch, H, W, filters).
    filters : int
        Number of output feature maps.
    dropout : float
        Fraction of feature maps that are dropped between the convolutions in training, `0 <= dropout < 1`.
    residual : bool
        Add the input to the output through a 1x1 convolution, as in ResNet (arXiv 1512.03385).

    Examples
    --------
    >>> conv_block(keras.Input((8, 8, 3)), filters=4).shape
    (None, 8, 8, 4)
    """
    shortcut = x
    x = _convolution(x, filters)
    x = layers.ReLU()(x)
    if dropout:
        x = layers.SpatialDropout2D(dropout)(x)
    x = _convolution(x, filters)
    if residual:
        x = layers.Add()([x, layers.Conv2D(filters, 1)(shortcut)])
    return layers.ReLU()(x)


def _convolution(x, filters):
    # The convolution needs no bias because the normalisation adds an offset. With a momentum of 0.9 the running means
    # keep up in short trainings. With the default of 0.99 the first predictions are black.
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def _head(x, name="probability"):
    return layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name=name)(x)


def unet(
    input_shape: tuple = (None, None, 3),
    filters: int = 32,
    depth: int = 4,
    dropout: float = 0.0,
    residual: bool = False,
) -> keras.Model:
    """Build a U-Net with same-size convolutions and batch normalisation (arXiv 1505.04597).

    The network maps images (batch, H, W, channels) in [0, 1] to probabilities of nucleus (batch, H, W, 1), float32.

    Parameters
    ----------
    input_shape : tuple of int or None
        (H, W, channels). H and W are multiples of `2**depth` (otherwise ValueError), or None for any such size.
    filters : int
        Feature maps at full size. The number doubles at each level, up to `filters * 2**depth`.
    depth : int
        Number of times that the image is halved.
    dropout, residual
        As in `conv_block`.

    Examples
    --------
    >>> unet((64, 64, 3), filters=2, depth=2).output_shape
    (None, 64, 64, 1)
    """
    _check_size(input_shape, 2**depth)
    x = inputs = keras.Input(input_shape, name="image")
    skips = []
    for level in range(depth):
        x = conv_block(x, filters * 2**level, dropout, residual)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = conv_block(x, filters * 2**depth, dropout, residual)
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(filters * 2**level, 2, strides=2)(x)
        x = layers.Concatenate()([skips[level], x])
        x = conv_block(x, filters * 2**level, dropout, residual)
    return keras.Model(inputs, _head(x), name="unet")


def mobilenet_unet(
    input_shape: tuple = (None, None, 3),
    weights: str | os.PathLike | None = "imagenet",
    trainable: bool | int = True,
    filters: int = 16,
) -> keras.Model:
    """Build a U-Net whose encoder is a MobileNetV2 (arXiv 1801.04381).

    Inputs and outputs are as for `unet`.

    Parameters
    ----------
    input_shape : tuple of int or None
        (H, W, 3). H and W are multiples of 32 (otherwise ValueError), or None for any such size.
    weights : "imagenet", path-like or None
        Weights of the encoder. "imagenet" is the file that the environment variable `NUCLEI_MOBILENET_WEIGHTS` names,
        or else a download. A path is a file of `keras.applications.MobileNetV2(include_top=False)`. None is random.
    trainable : bool or int
        Part of the encoder that is trained (`unfreeze_encoder`).
    filters : int
        Feature maps of the decoder at full size. The number doubles at each level.

    Raises
    ------
    errors.NucleiError, FileNotFoundError, ConnectionError
        If the file has the weights of another network, is missing, or cannot be downloaded.

    Examples
    --------
    >>> mobilenet_unet((64, 64, 3), weights=None, filters=2).output_shape
    (None, 64, 64, 1)
    """
    _check_size(input_shape, 2 ** (len(SKIP_LAYERS) + 1))
    inputs = keras.Input(input_shape, name="image")
    encoder = mobilenet_encoder(weights)
    *skips, x = encoder(layers.Rescaling(2.0, offset=-1.0)(inputs))
    # The first layer of the encoder halves the image. The skip connection at full size starts from the image.
    skips.insert(0, conv_block(inputs, filters))
    for level, skip in reversed(list(enumerate(skips))):
        x = layers.Conv2DTranspose(filters * 2**level, 2, strides=2)(x)
        x = layers.Concatenate()([skip, x])
        x = conv_block(x, filters * 2**level)
    model = keras.Model(inputs, _head(x), name="mobilenet_unet")
    unfreeze_encoder(model, trainable)
    return model


def mobilenet_encoder(
    weights: str | os.PathLike | None = "imagenet",
    outputs: Sequence[str] = (*SKIP_LAYERS, BOTTLENECK_LAYER),
    fixed_statistics: bool | None = None,
) -> keras.Model:
    """Build the MobileNetV2 encoder.

    The encoder maps images (batch, H, W, 3) in [-1, 1] to a list of feature maps.

    Parameters
    ----------
    weights
        As in `mobilenet_unet`, with the same errors.
    outputs : sequence of str
        Names of the layers whose feature maps are returned. Layers after the last name are left out.
    fixed_statistics : bool, optional
        Use `FixedStatistics`. The default is True for a pretrained encoder.
    """
    source = os.environ.get(WEIGHTS_VARIABLE) or weights if weights == "imagenet" else weights
    if source not in ("imagenet", None) and not Path(source).is_file():
        raise FileNotFoundError(
            f"the file of MobileNetV2 weights is missing: {source}. Set the environment variable {WEIGHTS_VARIABLE} "
            "or the argument `weights` to the path of the file"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`input_shape` is undefined")  # the weights fit images of any size
            base = keras.applications.MobileNetV2(
                (None, None, 3), include_top=False, weights=source and os.fspath(source)
            )
    except Exception as error:  # keras.utils.get_file raises a plain Exception, a file of other weights any error
        if "URL fetch failure" in str(error):
            raise ConnectionError(
                f"MobileNetV2's ImageNet weights could not be downloaded ({error}). Without internet, copy the file to "
                f"this machine and set {WEIGHTS_VARIABLE} to its path, or start from random weights with weights=None"
            ) from error
        if source in ("imagenet", None):
            raise
        raise NucleiError(
            f"{source} (argument `weights` or ${WEIGHTS_VARIABLE}) does not have the weights of "
            f"keras.applications.MobileNetV2(include_top=False): {first_line(error)}"
        ) from error
    if fixed_statistics is None:
        fixed_statistics = source is not None
    model_class = FixedStatistics if fixed_statistics else keras.Model
    encoder = model_class(base.input, [base.get_layer(name).output for name in outputs], name="mobilenet_v2")
    if not fixed_statistics:
        for layer in encoder.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.9  # as in `conv_block`; the default 0.999 suits trainings of a million steps
    return encoder


@keras.saving.register_keras_serializable("nuclei_utils")
class FixedStatistics(keras.Model):
    """Model whose batch normalisation always runs in inference mode.

    Scale and offset are trained. The statistics of a few small batches would overwrite those of a million images. Keras
    has no option for this. It passes `training=True` on to a model that was called with `training=False`. With
    `layer.trainable = False`, scale and offset are frozen as well.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Compute the outputs as in prediction. The argument `training` has no effect."""
        return super().call(inputs, training=False, mask=mask)


def unfreeze_encoder(model: keras.Model, trainable: bool | int) -> None:
    """Unfreeze or freeze the MobileNetV2 encoder of a model.

    Compile the model afterwards.

    Parameters
    ----------
    model : keras.Model
        Network from `mobilenet_unet`.
    trainable : bool or int
        True unfreezes the encoder, and False freezes the encoder. A number from 0 to 16 unfreezes that many of the last
        blocks.
    """
    encoder = model.get_layer("mobilenet_v2")
    names = [layer.name for layer in encoder.layers]
    if isinstance(trainable, bool):
        first = 0 if trainable else len(names)
    elif 0 <= trainable <= 16:
        first = names.index(f"block_{17 - trainable}_expand") if trainable else len(names)
    else:
        raise ValueError(f"found trainable={trainable}, expected True, False or a number of blocks, 0 to 16")
    encoder.trainable = bool(trainable)
    for index, layer in enumerate(encoder.layers):
        # Set each layer: if the encoder's value does not change, TensorFlow does not pass it on to the layers.
        layer.trainable = index >= first


def instance_unet(
    input_shape: tuple = (None, None, 3),
    weights: str | os.PathLike | None = "imagenet",
    filters: int = 16,
    fixed_statistics: bool | None = None,
) -> keras.Model:
    """Build the three-output U-Net that separates touching nuclei.

    The network is a light `mobilenet_unet` of less than 5 MB. The encoder ends at 1/16 of the image's size, the number
    of decoder maps grows slowly, and interpolation enlarges the feature maps. The network takes images (batch, H, W, 3)
    in [0, 1]. It returns a dictionary of arrays (batch, H, W, 1), float32 in [0, 1]: the probabilities `mask` and
    `boundary` (`labels.boundary_map`), and `distance`, the depth inside a nucleus (`labels.distance_map`).

    Parameters
    ----------
    input_shape : tuple of int or None
        (H, W, 3). H and W are multiples of 16 (otherwise ValueError), or None for any such size.
    weights, fixed_statistics
        As in `mobilenet_encoder`, with the same errors.
    filters : int
        Feature maps of the decoder at full size. Each level adds as many.

    Examples
    --------
    >>> sorted(instance_unet(weights=None, filters=2).output)
    ['boundary', 'distance', 'mask']
    """
    _check_size(input_shape, 2 ** len(SKIP_LAYERS))
    inputs = keras.Input(input_shape, name="image")
    encoder = mobilenet_encoder(weights, SKIP_LAYERS, fixed_statistics)
    *skips, x = encoder(layers.Rescaling(2.0, offset=-1.0)(inputs))
    skips.insert(0, conv_block(inputs, filters))
    for level, skip in reversed(list(enumerate(skips))):
        # A 1x1 convolution before the enlargement costs a quarter of one after it.
        x = layers.Conv2D(filters * (level + 2), 1, use_bias=False)(x)
        x = layers.UpSampling2D(interpolation="bilinear")(x)
        x = layers.Concatenate()([skip, x])
        x = conv_block(x, filters * (level + 1))
    outputs = {name: _head(x, name) for name in ("mask", "boundary", "distance")}
    return keras.Model(inputs, outputs, name="instance_unet")


@functools.cache
def included_network() -> keras.Model:
    """Load the network that comes with the package.

    The network is an `instance_unet` that was trained on the real images. Each call returns the same model.
    """
    # A file of weights can be read by every supported Keras. A whole model cannot.
    model = instance_unet(weights=None, fixed_statistics=True)
    model.load_weights(datasets.asset(exported.INCLUDED["float32"]))
    return model


def unet_plus_plus(
    input_shape: tuple = (None, None, 3), filters: int = 32, depth: int = 4, deep_supervision: bool = True
) -> keras.Model:
    """Build a U-Net++ (arXiv 1807.10165, eq. 1).

    A U-Net++ is a U-Net with nested blocks between encoder and decoder. Block X(i, j) is at level i, where the image
    has been halved i times, and at step j of the skip pathway. The block reads all earlier blocks of its level and the
    enlarged block X(i + 1, j - 1) of the level below.

    Parameters
    ----------
    input_shape, filters, depth
        As in `unet`.
    deep_supervision : bool
        Return a list with one output for each depth 1..`depth`, shaped as in `unet`, the shallowest first
        (`DeepSupervision`). Otherwise, or at depth 1, the model has one output.

    Examples
    --------
    >>> len(unet_plus_plus(filters=2, depth=3).outputs)
    3
    """
    _check_size(input_shape, 2**depth)
    inputs = keras.Input(input_shape, name="image")
    blocks = [[] for _ in range(depth + 1)]  # blocks[i][j] is X(i, j)
    for level in range(depth + 1):
        x = layers.MaxPooling2D()(blocks[level - 1][0]) if level else inputs
        blocks[level].append(conv_block(x, filters * 2**level))
        for above in reversed(range(level)):  # each new level adds one block to every level above
            maps = filters * 2**above
            enlarged = layers.Conv2DTranspose(maps, 2, strides=2)(blocks[above + 1][-1])
            x = layers.Concatenate()([*blocks[above], enlarged])
            blocks[above].append(conv_block(x, maps))
    heads = [_head(blocks[0][j], f"depth_{j}") for j in range(1, depth + 1)]
    if deep_supervision and depth > 1:
        return DeepSupervision(inputs, heads, name="unet_plus_plus")
    return keras.Model(inputs, heads[-1], name="unet_plus_plus")


@keras.saving.register_keras_serializable("nuclei_utils")
class DeepSupervision(keras.Model):
    """Model with several outputs for one mask.

    `accurate_mode` and `fast_mode` turn the model into a model with one output. The loss is the mean of the losses of
    the outputs, with equal weights (arXiv 1807.10165, section 3.2). The metrics are computed on the mean of the
    outputs.
    """

    def compile(self, *args, metrics: Sequence = (), **kwargs) -> None:
        """Compile the model.

        The model keeps the metrics itself, because Keras up to 3.13 copies them for each output.
        """
        super().compile(*args, **kwargs)
        self.mean_metrics = [keras.metrics.get(metric) for metric in metrics or ()]

    def get_compile_config(self) -> dict | None:
        """Return the configuration for `compile_from_config`, or None."""
        config = super().get_compile_config()
        if config:
            config["metrics"] = [keras.saving.serialize_keras_object(metric) for metric in self.mean_metrics]
        return config

    def compile_from_config(self, config: dict) -> None:
        """Compile the model from the configuration of `get_compile_config`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the mean of the losses of the outputs."""
        losses = [super(DeepSupervision, self).compute_loss(x, y, output, sample_weight, training) for output in y_pred]
        return ops.mean(ops.stack(losses))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict:
        """Return the metrics of the mean of the outputs."""
        mean = ops.mean(ops.stack(y_pred), axis=0)
        for metric in self.mean_metrics:
            metric.update_state(y, mean, sample_weight)
        return self.get_metrics_result()


def accurate_mode(model: keras.Model) -> keras.Model:
    """Return a model of the mean output of a U-Net++.

    The weights are the same (arXiv 1807.10165, section 3.2).

    Examples
    --------
    >>> len(accurate_mode(unet_plus_plus(filters=2, depth=3)).outputs)
    1
    """
    mean = layers.Average(name="probability")(model.outputs)
    return keras.Model(model.input, mean, name=f"{model.name}_accurate")


def fast_mode(model: keras.Model, depth: int) -> keras.Model:
    """Prune a U-Net++ with deep supervision to a smaller depth.

    The weights are the same.

    Examples
    --------
    >>> fast_mode(unet_plus_plus(filters=2, depth=3), depth=1).name
    'unet_plus_plus_depth_1'
    """
    if not 1 <= depth <= len(model.outputs):
        raise ValueError(f"found depth {depth}, expected 1 to {len(model.outputs)}, the outputs of {model.name}")
    return keras.Model(model.input, model.outputs[depth - 1], name=f"{model.name}_depth_{depth}")


def weight_megabytes(model: keras.Model) -> float:
    """Return the memory of a model's weights, in 10**6 bytes."""
    return sum(weight.nbytes for weight in model.get_weights()) / 1e6


def count_multiplications(model: keras.Model) -> int:
    """Count the multiplications in the convolutions of a network.

    The count is for one image. The network has a fixed input size.

    Examples
    --------
    >>> count_multiplications(keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3)]))
    72
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.Conv2DTranspose):
            # Each weight is used once for every pixel of the smaller of input and output.
            feature_map = layer.input if isinstance(layer, layers.Conv2DTranspose) else layer.output
            total += math.prod(feature_map.shape[1:3]) * math.prod(layer.kernel.shape)
    return total


def model_cost(model: keras.Model, size: int = 256, repeats: int = 7) -> dict[str, float]:
    """Measure the parameters, memory and prediction time of a model.

    The model takes images (1, size, size, 3). The results are `parameters`, the number of weights; `megabytes`, the
    memory of the weights (10**6 bytes); and `milliseconds`, the median time of `repeats` compiled predictions of one
    image, from array to array.
    """
    image = np.random.default_rng(0).random((1, size, size, 3), dtype=np.float32)
    compiled = keras.Model(model.inputs, model.outputs)  # a separate function for this size
    compiled.predict_on_batch(image)  # the first call compiles the function
    seconds = timeit.repeat(lambda: compiled.predict_on_batch(image), number=1, repeat=repeats)
    return {
        "parameters": model.count_params(),
        "megabytes": weight_megabytes(model),
        "milliseconds": 1000 * float(np.median(seconds)),
    }


def _check_size(input_shape, multiple):
    height, width = input_shape[:2]
    if any(size is not None and size % multiple for size in (height, width)):
        raise ValueError(
            f"found an image size of {height} x {width}, expected multiples of {multiple}, because the network reduces "
            f"the image to 1/{multiple}: crop or pad the image (preprocess.pad_to_multiple)"
        )
