"""Trainings of a fraction of a second, and what several tests break them off and damage their files with."""

import keras
import numpy as np
import tensorflow as tf

from nuclei_utils import training

DAMAGES = {
    "missing": None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
}
"""What a power cut leaves of a file that had not reached the disk."""


class PullThePlug(keras.callbacks.Callback):
    """Break off in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch:
            raise KeyboardInterrupt


def damage(path, how):
    """Damage a file in one of the ways of `DAMAGES`."""
    if DAMAGES[how] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


def batches():
    """A batch of noise, in which bright red is nucleus."""
    images = np.random.default_rng(0).random((4, 16, 16, 3)).astype(np.float32)
    masks = (images[..., :1] > 0.5).astype(np.float32)
    return tf.data.Dataset.from_tensors((images, masks))


def small_model(steps=20, learning_rate=0.05, channels=2):
    """A network of a few weights, the same one at each call."""
    keras.utils.set_random_seed(0)
    layers = keras.layers.Conv2D(channels, 1), keras.layers.Conv2D(1, 1, activation="sigmoid")
    model = training.compile_model(keras.Sequential([keras.Input((None, None, 3)), *layers]), steps, learning_rate)
    model.run_eagerly = True  # for a few tiny steps, compiling would take longer than training
    return model


def train(folder, epochs=5, **options):
    """Train the small network; return it and its history."""
    return training.fit(small_model(), batches(), batches(), folder, epochs, verbose=0, **options)
