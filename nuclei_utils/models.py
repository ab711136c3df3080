"""The networks of the course, built from Keras' own layers; every one maps an image to one probability per pixel."""

import math
import os
import time
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops


def model_cost(model, size=256, rounds=7):
    """Measure what a model costs: parameters, memory for them, and time for one image.

    Parameters
    ----------
    model : keras.Model
        Takes (1, size, size, 3).
    size : int
        Height and width of the image, pixels.
    rounds : int
        How many predictions are timed, after one that is not; the median counts, which a busy moment does not move.

    Returns
    -------
    dict
        `parameters`, all of them; `megabytes` that their values take (10**6 bytes); `milliseconds` for one prediction
        of one image as `predict.predict_masks` makes it, from an array to an array.
    """
    image = np.random.default_rng(0).random((1, size, size, 3), dtype=np.float32)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        ops.convert_to_numpy(model(image, training=False))
        seconds.append(time.perf_counter() - start)
    return {
        "parameters": model.count_params(),
        "megabytes": megabytes(model),
        "milliseconds": 1000 * float(np.median(seconds[1:])),  # the first one also sets things up
    }


SKIPS = (
    "block_1_expand_relu",  # 1/2 of the image's height and width
    "block_3_expand_relu",  # 1/4
    "block_6_expand_relu",  # 1/8
    "block_13_expand_relu",  # 1/16
)
"""Layers of MobileNetV2 whose feature maps the decoder sees, as in TensorFlow's tutorial on segmentation."""


BOTTOM = "block_16_project_BN"
"""Layer of MobileNetV2 where the decoder starts, at 1/32."""


BLOCKS = 16
"""Inverted residual blocks of MobileNetV2 that are numbered."""


WEIGHTS = "NUCLEI_MOBILENET_WEIGHTS"
"""Environment variable that names a file with ImageNet's weights, for places without internet."""


def conv_block(x, filters, dropout=0.0, residual=False):
    """Apply (3x3 convolution, batch normalisation, ReLU) twice: the block that a U-Net is made of.

    Parameters
    ----------
    x : KerasTensor (batch, H, W, C)
    filters : int
        Number of feature maps that come out.
    dropout : float
        Share of feature maps dropped between the convolutions while training, 0..1.
    residual : bool
        Add the block's input to its output (through a 1x1 convolution), as in ResNet (arXiv 1512.03385).

    Returns
    -------
    KerasTensor (batch, H, W, filters)
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
    # the normalisation brings its own offset, so the convolution needs no bias; a momentum of 0.9 lets the running
    # means keep up in short trainings, where Keras' 0.99 gives black predictions at first
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def unet(input_shape=(None, None, 3), filters=32, depth=4, dropout=0.0, residual=False):
    """Build a U-Net (Ronneberger et al. 2015, arXiv 1505.04597), with same-size convolutions and batch norm.

    Parameters
    ----------
    input_shape : tuple of int or None
        (H, W, channels) of the images, values in [0, 1]. H and W are multiples of `2**depth`, or None for any such
        size.
    filters : int
        Feature maps of the first block; they double with each level, `filters * 2**depth` at the bottleneck. The
        course's "channel rate" 1/2, 1, 2 is 16, 32, 64.
    depth : int
        How many times the image is halved.
    dropout : float
        Share of feature maps dropped inside each block while training, 0..1.
    residual : bool
        Residual blocks instead of plain ones.

    Returns
    -------
    keras.Model
        (batch, H, W, channels) to probabilities of nucleus (batch, H, W, 1), float32 in [0, 1].

    Raises
    ------
    ValueError
        If H or W cannot be halved `depth` times.
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
    outputs = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="probability")(x)
    return keras.Model(inputs, outputs, name="unet")


def mobilenet_unet(input_shape=(None, None, 3), weights="imagenet", trainable=True, filters=16):
    """Build a U-Net whose encoder is a MobileNetV2 (arXiv 1801.04381), pretrained on ImageNet if wanted.

    The model takes images in [0, 1], like all of the course, and scales them to the [-1, 1] that the encoder knows.
    A pretrained encoder's batch normalisation always runs in inference mode, whether it is trained or not: the
    statistics of a few small batches would overwrite those of a million images.

    Parameters
    ----------
    input_shape : tuple of int or None
        (H, W, 3). H and W are multiples of 32, or None for any such size.
    weights : "imagenet", path-like or None
        Of the encoder: Keras' download, or the file that the environment variable `NUCLEI_MOBILENET_WEIGHTS` names,
        where there is no internet; a file of `keras.applications.MobileNetV2(include_top=False)`; random.
    trainable : bool or int
        Of the encoder: whole, frozen, or its last so many of 16 blocks (`train_encoder`).
    filters : int
        Feature maps of the decoder at full size; they double with each level below.

    Returns
    -------
    keras.Model
        (batch, H, W, 3) to probabilities of nucleus (batch, H, W, 1), float32 in [0, 1].

    Raises
    ------
    ValueError
        If H or W is no multiple of 32, or the file holds the weights of another network.
    FileNotFoundError
        If there is no such file.
    OSError
        If the weights cannot be downloaded.
    """
    _check_size(input_shape, 2 ** (len(SKIPS) + 1))
    inputs = keras.Input(input_shape, name="image")
    encoder = mobilenet_encoder(weights)
    scaled = layers.Rescaling(2.0, offset=-1.0)(inputs)
    *skips, x = encoder(scaled)
    # the encoder halves the image at once; what lies at full size comes from the image itself
    skips.insert(0, conv_block(inputs, filters))
    for level, skip in reversed(list(enumerate(skips))):
        x = layers.Conv2DTranspose(filters * 2**level, 2, strides=2)(x)
        x = layers.Concatenate()([skip, x])
        x = conv_block(x, filters * 2**level)
    outputs = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="probability")(x)
    model = keras.Model(inputs, outputs, name="mobilenet_unet")
    unfreeze_encoder(model, trainable)
    return model


def mobilenet_encoder(weights="imagenet", outputs=(*SKIPS, BOTTOM), fixed_statistics=None):
    """Build MobileNetV2 up to a layer, with its feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 as outputs.

    Parameters
    ----------
    weights : as for `mobilenet_unet`
    outputs : sequence of str
        Names of the layers whose feature maps are wanted; what comes after the last is left out.
    fixed_statistics : bool, optional
        Keep batch normalisation in inference mode (`FixedStatistics`). Default: if the encoder is pretrained.

    Returns
    -------
    keras.Model
        (batch, H, W, 3) in [-1, 1] to a list of arrays, one for each name.
    """
    source = os.environ.get(WEIGHTS) or weights if weights == "imagenet" else weights
    if source not in ("imagenet", None) and not Path(source).is_file():
        raise FileNotFoundError(
            f"no file with MobileNetV2's weights at {source}: name it in ${WEIGHTS}, or by `weights`"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`input_shape` is undefined")  # the weights fit images of any size
            base = keras.applications.MobileNetV2(
                (None, None, 3), include_top=False, weights=source and os.fspath(source)
            )
    except Exception as error:  # keras.utils.get_file raises no narrower class
        if "URL fetch failure" not in str(error):
            raise
        raise ConnectionError(
            f"MobileNetV2's ImageNet weights could not be downloaded ({error}). Without internet, fetch the file "
            f"elsewhere and name it in ${WEIGHTS}; or build the network with weights=None, from random ones"
        ) from error
    if fixed_statistics is None:
        fixed_statistics = source is not None
    kind = FixedStatistics if fixed_statistics else keras.Model
    encoder = kind(base.input, [base.get_layer(name).output for name in outputs], name="mobilenet_v2")
    if not fixed_statistics:
        for layer in encoder.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.9  # as in `double_convolution`: 0.999 is for trainings of a million steps
    return encoder


@keras.saving.register_keras_serializable("nuclei_utils")
class FixedStatistics(keras.Model):
    """A model whose batch normalisation runs in inference mode always: trained or not, its statistics stay put.

    To call a model with `training=False` when a network is put together is not enough: Keras 3 hands `training=True`
    on to it as soon as the network is trained.
    """

    def call(self, inputs, training=None, mask=None):
        """Compute as in prediction, whatever `training` says."""
        return super().call(inputs, training=False, mask=mask)


def unfreeze_encoder(model, trainable):
    """Choose how much of the MobileNetV2 encoder of a model is trained; compile the model afterwards.

    Parameters
    ----------
    model : keras.Model
        From `mobilenet_unet`.
    trainable : bool or int
        Whole, frozen, or its last so many of 16 blocks, which hold what is most particular to ImageNet.

    Raises
    ------
    ValueError
        If it is a number of blocks that MobileNetV2 does not have.
    """
    encoder = model.get_layer("mobilenet_v2")
    names = [layer.name for layer in encoder.layers]
    if isinstance(trainable, bool):
        first = 0 if trainable else len(names)
    elif 0 <= trainable <= BLOCKS:
        first = names.index(f"block_{BLOCKS + 1 - trainable}_expand") if trainable else len(names)
    else:
        raise ValueError(f"MobileNetV2 has {BLOCKS} blocks, of which {trainable} cannot be trained")
    encoder.trainable = bool(trainable)
    for index, layer in enumerate(encoder.layers):
        # each by itself: on TensorFlow, setting what the encoder is set to already does not reach its layers
        layer.trainable = index >= first


def instance_unet(input_shape=(None, None, 3), weights="imagenet", filters=16, fixed_statistics=None):
    """Build a small U-Net on MobileNetV2 with three outputs, from which touching nuclei can be separated.

    It is `mobilenet_unet` made light, so that it can be shipped: the encoder ends at 1/16 of the image's size, the
    decoder widens slowly, and the images are enlarged by interpolation. The encoder is trained as a whole.

    Parameters
    ----------
    input_shape : tuple of int or None
        (H, W, 3). H and W are multiples of 16, or None for any such size.
    weights : as for `mobilenet_unet`
    filters : int
        Feature maps of the decoder at full size; each level below has as many more.
    fixed_statistics : as for `mobilenet_encoder`

    Returns
    -------
    keras.Model
        (batch, H, W, 3) in [0, 1] to a dictionary of arrays (batch, H, W, 1), float32 in [0, 1]: `mask` and
        `boundary` are probabilities, `distance` is the depth inside the nucleus (`labels.boundary_map`,
        `labels.distance_map`).

    Raises
    ------
    ValueError, FileNotFoundError, OSError
        As for `mobilenet_unet`.
    """
    _check_size(input_shape, 2 ** len(SKIPS))
    inputs = keras.Input(input_shape, name="image")
    *skips, x = mobilenet_encoder(weights, SKIPS, fixed_statistics)(layers.Rescaling(2.0, offset=-1.0)(inputs))
    skips.insert(0, conv_block(inputs, filters))
    for level, skip in reversed(list(enumerate(skips))):
        # fewer feature maps before they are enlarged: 1x1 convolutions are cheap, and cheapest at the small size
        x = layers.Conv2D(filters * (level + 2), 1, use_bias=False)(x)
        x = layers.UpSampling2D(interpolation="bilinear")(x)
        x = layers.Concatenate()([skip, x])
        x = conv_block(x, filters * (level + 1))
    outputs = {
        name: layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name=name)(x)
        for name in ("mask", "boundary", "distance")
    }
    return keras.Model(inputs, outputs, name="instance_unet")


def unet_plus_plus(input_shape=(None, None, 3), filters=32, depth=4, deep_supervision=True):
    """Build a U-Net++ (Zhou et al. 2018, arXiv 1807.10165): nested blocks between encoder and decoder.

    Block X(i, j) stands at level i, where the image has been halved i times, and j steps along the skip pathway. It
    reads all blocks before it on its level and, enlarged, block X(i + 1, j - 1) from the level below (eq. 1).

    Parameters
    ----------
    input_shape, filters, depth
        As for `unet`.
    deep_supervision : bool
        One output for each depth 1..`depth`, shallowest first, every one at full size and with a loss of its own
        (`DeepSupervision`); False: the deepest alone.

    Returns
    -------
    keras.Model
        (batch, H, W, channels) to a list of `depth` arrays of probabilities (batch, H, W, 1); to one array without
        deep supervision, or at depth 1. For predictions, `accurate_mode` and `fast_mode` make ordinary models of one
        output from it.

    Raises
    ------
    ValueError
        If H or W cannot be halved `depth` times.
    """
    _check_size(input_shape, 2**depth)
    inputs = keras.Input(input_shape, name="image")
    levels = [[] for _ in range(depth + 1)]  # levels[i][j] is X(i, j)
    for level in range(depth + 1):
        x = layers.MaxPooling2D()(levels[level - 1][0]) if level else inputs
        levels[level].append(conv_block(x, filters * 2**level))
        for above in reversed(range(level)):  # the diagonal that this level makes possible
            maps = filters * 2**above
            enlarged = layers.Conv2DTranspose(maps, 2, strides=2)(levels[above + 1][-1])
            x = layers.Concatenate()([*levels[above], enlarged])
            levels[above].append(conv_block(x, maps))
    heads = [
        layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name=f"depth_{j}")(levels[0][j])
        for j in range(1, depth + 1)
    ]
    if deep_supervision and depth > 1:
        return DeepSupervision(inputs, heads, name="unet_plus_plus")
    return keras.Model(inputs, heads[-1], name="unet_plus_plus")


@keras.saving.register_keras_serializable("nuclei_utils")
class DeepSupervision(keras.Model):
    """A model of several outputs for the same mask: its loss is their mean loss, its metrics are those of their mean.

    As in U-Net++ (arXiv 1807.10165, section 3.2), where the weights of all outputs are equal.
    """

    def compile(self, *args, metrics=(), **kwargs):
        """Compile as any model; `metrics` are metrics of Keras, each for the mean of the outputs.

        The model holds the metrics itself: up to version 3.13, Keras gives each output metrics of its own.
        """
        super().compile(*args, **kwargs)
        self.mean_metrics = [keras.metrics.get(metric) for metric in metrics or ()]

    def get_compile_config(self):
        """Return what is needed to compile the model again, or None if it is not compiled."""
        config = super().get_compile_config()
        if config:
            config["metrics"] = [keras.saving.serialize_keras_object(metric) for metric in self.mean_metrics]
        return config

    def compile_from_config(self, config):
        """Compile the model again as `get_compile_config` says, as Keras does for a plain `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the mean of the losses of the outputs."""
        losses = [super(DeepSupervision, self).compute_loss(x, y, output, sample_weight, training) for output in y_pred]
        return ops.mean(ops.stack(losses))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return the metrics of the mean of the outputs, what `accurate_mode` predicts."""
        mean = ops.mean(ops.stack(y_pred), axis=0)
        for metric in self.mean_metrics:
            metric.update_state(y, mean, sample_weight)
        return self.get_metrics_result()


def megabytes(model):
    """Return what the weights of a network take, in units of 10**6 bytes.

    Parameters
    ----------
    model : keras.Model

    Returns
    -------
    float
    """
    return sum(weight.nbytes for weight in model.get_weights()) / 1e6


def count_multiplications(model):
    """Count the multiplications in the convolutions of a network, for one image: what a prediction costs.

    Parameters
    ----------
    model : keras.Model
        Of convolutions, transposed ones included, and a fixed input size (H, W, channels).

    Returns
    -------
    int
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.Conv2DTranspose):
            # each weight is used once for every pixel of the smaller side: what comes out, or what is enlarged
            feature_map = layer.input if isinstance(layer, layers.Conv2DTranspose) else layer.output
            total += math.prod(feature_map.shape[1:3]) * math.prod(layer.kernel.shape)
    return total


def accurate_mode(model):
    """Make the model that predicts the mean of all outputs of a U-Net++ (arXiv 1807.10165, section 3.2).

    Parameters
    ----------
    model : keras.Model
        From `unet_plus_plus` with deep supervision; the weights are shared, not copied.

    Returns
    -------
    keras.Model
        Of one output (batch, H, W, 1).
    """
    mean = layers.Average(name="probability")(model.outputs)
    return keras.Model(model.input, mean, name=f"{model.name}_accurate")


def fast_mode(model, depth):
    """Cut a U-Net++ at a depth: a smaller network, which leaves out all blocks that deeper outputs need alone.

    Parameters
    ----------
    model : keras.Model
        From `unet_plus_plus` with deep supervision; the weights are shared, not copied.
    depth : int
        1..depth of the model.

    Returns
    -------
    keras.Model
        Of one output (batch, H, W, 1).

    Raises
    ------
    ValueError
        If the model has no output for this depth.
    """
    if not 1 <= depth <= len(model.outputs):
        raise ValueError(f"{model.name} has outputs for depths 1 to {len(model.outputs)}, found depth {depth}")
    return keras.Model(model.input, model.outputs[depth - 1], name=f"{model.name}_depth_{depth}")


def _check_size(input_shape, multiple):
    height, width = input_shape[:2]
    if any(size is not None and size % multiple for size in (height, width)):
        raise ValueError(
            f"a network of this depth halves the image down to 1/{multiple}: height and width must be multiples of "
            f"{multiple}, found {height} x {width}; crop or pad the image (preprocess.pad_to_multiple)"
        )
