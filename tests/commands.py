"""Helpers for the tests of the command line: run a command, write images of three squares, and a simple network."""

import cv2
import keras
import numpy as np

from nuclei_utils import cli, exported


def run(*words):
    """Run a command. Return its exit status."""
    return cli.main([str(word) for word in words])


def three_nuclei(shift=0):
    """Return a label map (60, 80) of three squares."""
    label_map = np.zeros((60, 80), np.int32)
    for label, left in enumerate((5, 30, 55), start=1):
        label_map[10 + shift : 26 + shift, left : left + 16] = label
    return label_map


def image_of(label_map):
    """Return an image with bright nuclei on a dark background."""
    return np.repeat((label_map > 0)[..., None] * np.uint8(200) + np.uint8(20), 3, axis=2)


def write_image(path, label_map=None):
    """Write an image with bright nuclei on a dark background. Return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image_of(three_nuclei() if label_map is None else label_map))
    return path


def complaints(capsys):
    """Return the lines on stderr without the warnings of libraries."""
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]


def frozen_bright_network():
    """A network whose mask is the red channel, without Keras."""
    return exported.Frozen("bright", (None, None, None, 3), lambda batch: {"mask": batch[..., :1]})


def bright_network():
    """A network whose mask is the red channel."""
    inputs = keras.Input((None, None, 3))
    red = keras.layers.Conv2D(1, 1, use_bias=False)
    model = keras.Model(inputs, red(inputs), name="bright")
    red.set_weights([np.array([1, 0, 0], np.float32).reshape(1, 1, 3, 1)])
    return model
