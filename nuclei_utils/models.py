"""The networks of the course, built from Keras' own layers; every one maps an image to one probability per pixel."""

import keras
from keras import layers


def double_convolution(x, filters, dropout=0.0, residual=False):
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
        x = double_convolution(x, filters * 2**level, dropout, residual)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = double_convolution(x, filters * 2**depth, dropout, residual)
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(filters * 2**level, 2, strides=2)(x)
        x = layers.Concatenate()([skips[level], x])
        x = double_convolution(x, filters * 2**level, dropout, residual)
    outputs = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="probability")(x)
    return keras.Model(inputs, outputs, name="unet")


def _check_size(input_shape, multiple):
    height, width = input_shape[:2]
    if any(size is not None and size % multiple for size in (height, width)):
        raise ValueError(
            f"a network of this depth halves the image down to 1/{multiple}: height and width must be multiples of "
            f"{multiple}, found {height} x {width}; crop or pad the image (preprocess.pad_to_multiple)"
        )
