"""Distort images on purpose, and measure how the scores of a model fall.

Each distortion takes a uint8 image (H, W, 3) and a strength, and returns a new image of the same shape and dtype.
Strength 0 changes nothing. The same input gives the same result. (`input_pipeline` has the augmentation of training
images.)
"""

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import pandas as pd

from nuclei_utils import metrics


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur an image with a Gaussian of `sigma` pixels.

    The result looks like an image out of focus.

    Examples
    --------
    >>> blur(np.array([[0, 0, 255, 0, 0]], np.uint8), sigma=1).tolist()
    [[15, 62, 102, 62, 15]]
    """
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) if sigma else image.copy()


def noise(image: np.ndarray, deviation: float) -> np.ndarray:
    """Add Gaussian noise to an image, as in dim light.

    `deviation` is the standard deviation in grey levels.

    Examples
    --------
    >>> noise(np.full((1, 3), 100, np.uint8), deviation=10).tolist()
    [[101, 99, 106]]
    """
    grains = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(np.round(image + grains), 0, 255).astype(np.uint8)


def _reduce_contrast(image: np.ndarray, fraction: float) -> np.ndarray:
    """Remove a fraction of the contrast, `0 <= fraction <= 1`. Rounding loses grey levels."""
    mean = image.mean()
    return np.round(mean + (1 - fraction) * (image - mean)).astype(np.uint8)


def _invert(image: np.ndarray, strength: float) -> np.ndarray:
    """Exchange bright and dark at any strength but 0."""
    return 255 - image if strength else image.copy()


DISTORTIONS = {  # function and strengths; strength 0 leaves the image unchanged
    "blur": (blur, (0, 1, 2, 4)),
    "noise": (noise, (0, 8, 16, 32)),
    "contrast": (_reduce_contrast, (0, 0.8, 0.9, 0.95)),
    "inversion": (_invert, (0, 1)),
}


def robustness_table(
    predict: Callable,
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    distortions: Mapping[str, tuple[Callable, Sequence[float]]] = DISTORTIONS,
    threshold: float = 0.5,
) -> pd.DataFrame:
    """Score a model on distorted images.

    Parameters
    ----------
    predict : callable
        Function from a list of images to a list of probability maps, such as
        `functools.partial(predict.predict_masks, model)`.
    images : sequence of uint8 array (H, W, 3)
    masks, threshold
        As for `metrics.pixel_scores`.
    distortions : dict of str to (callable, sequence of float)
        Functions and strengths, as in `DISTORTIONS`.

    Returns
    -------
    pandas.DataFrame
        One row per `distortion` and `strength`: the scores of `metrics.pixel_scores` over all pixels, and `mean_dice`
        over images.

    Examples
    --------
    >>> def predict(images):
    ...     return [image[..., 0] / 255 for image in images]
    >>> images, masks = [np.full((8, 8, 3), 200, np.uint8)], [np.ones((8, 8))]
    >>> table = robustness_table(predict, images, masks, {"inversion": DISTORTIONS["inversion"]})
    >>> table[["strength", "dice"]].to_numpy().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    known, rows = {}, []
    for name, (distort, strengths) in distortions.items():
        for strength in strengths:
            key = (name, strength) if strength else "undistorted"  # predicted only once
            if key not in known:
                maps = predict([distort(image, strength) for image in images])
                known[key] = metrics.threshold_scores(masks, maps, [threshold]).iloc[0].to_dict()
            rows.append({"distortion": name, "strength": strength, **known[key]})
    return pd.DataFrame(rows).drop(columns=["threshold", "false_positive_rate", *metrics.COUNTS])
