"""Helpers for the tests of the command line: run a command, and write images and label maps of three squares."""

import cv2
import numpy as np

from nuclei_utils import cli


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
