"""Probabilities for images of any size: pad, predict, cut back."""

import numpy as np
from keras import ops
from tqdm import tqdm

from nuclei_utils import preprocess


def probabilities(model, images, multiple=32):
    """Predict the probability of nucleus for each pixel of whole images.

    Each image is normalised, padded by reflection to a size that the network takes, and cut back afterwards.

    Parameters
    ----------
    model : keras.Model
        Takes (batch, H, W, 3) in [0, 1], gives (batch, H, W, 1); its input shape leaves H and W open, or is that of
        the padded images.
    images : sequence of uint8 array (H, W, 3)
        RGB, of any sizes.
    multiple : int
        Height and width that the network sees are multiples of it.

    Returns
    -------
    list of float32 array (H, W) in [0, 1]
    """
    found = []
    for image in tqdm(images, "predicting", unit="image", leave=False, disable=len(images) < 10):
        height, width = image.shape[:2]
        padded = preprocess.pad_to_multiple(preprocess.normalize(image), multiple)
        # calling the model rather than model.predict: images differ in size, and predict would compile for each
        output = model(padded[None], training=False)
        found.append(np.asarray(ops.convert_to_numpy(output))[0, :height, :width, 0])
    return found
