"""Probabilities for images of any size: pad, predict, cut back; and a record of them while a network learns."""

from pathlib import Path

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from nuclei_utils import preprocess
from nuclei_utils.files import written_whole


def probabilities(model, images, multiple=32):
    """Predict the probability of nucleus for each pixel of whole images.

    Each image is normalised, padded by reflection to a size that the network takes, and cut back afterwards.

    Parameters
    ----------
    model : keras.Model
        Takes (batch, H, W, 3) in [0, 1], gives (batch, H, W, 1); its input shape leaves H and W open, or is that of
        the padded images. Of several outputs for the same mask (U-Net++) the mean is taken.
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
        if isinstance(output, list):  # deep supervision
            output = ops.mean(ops.stack(output), axis=0)
        found.append(np.asarray(ops.convert_to_numpy(output))[0, :height, :width, 0])
    return found


class Recorder(keras.callbacks.Callback):
    """Keep what a network predicts for a few images, before training and after each epoch: what a film is made of.

    The files `predictions/epoch_NNN.npz` survive a training that is killed. `training.fit` clears them for a new one.

    Parameters
    ----------
    images : sequence of uint8 array (H, W, 3)
    folder : path-like
        The folder of the training.
    first : int
        Epochs that the network was trained before.
    """

    def __init__(self, images, folder, first=0):
        super().__init__()
        self.images, self.folder, self.first = images, Path(folder) / "predictions", first

    def on_train_begin(self, logs=None):
        """Record the state before training; that of a training which goes on is there already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._path(0).exists():
            self._record(0)

    def on_epoch_end(self, epoch, logs=None):
        """Record the state after an epoch."""
        self._record(epoch + 1)

    def _path(self, epochs):
        return self.folder / f"epoch_{self.first + epochs:03d}.npz"

    def _record(self, epochs):
        found = probabilities(self.model, self.images)
        with written_whole(self._path(epochs)) as aside, aside.open("wb") as file:
            # 8 bits are finer than the eye, and a quarter of the size
            np.savez_compressed(file, *[np.round(255 * one).astype(np.uint8) for one in found])


def recorded(folder):
    """Read what `Recorder` kept.

    Parameters
    ----------
    folder : path-like
        The folder of the training.

    Returns
    -------
    dict of int to list of float32 array (H, W) in [0, 1]
        For the number of epochs trained, from 0, one map for each image.
    """
    frames = {}
    for path in sorted((Path(folder) / "predictions").glob("epoch_*.npz")):
        with np.load(path) as file:
            frames[int(path.stem.removeprefix("epoch_"))] = [file[name].astype(np.float32) / 255 for name in file.files]
    return frames
