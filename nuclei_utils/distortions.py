"""Distort images on purpose, and measure how the scores of a model fall."""

import cv2
import numpy as np
import pandas as pd

from nuclei_utils import metrics


def blur(image, sigma):
    """Blur an image as a microscope out of focus does, about: a Gaussian of `sigma` pixels.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
    sigma : float
        0 leaves the image as it is.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) if sigma else image.copy()


def noise(image, deviation):
    """Add Gaussian noise of a standard deviation in grey levels, as in a dim image; always the same.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
    deviation : float
        0 leaves the image as it is.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    grains = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(np.round(image + grains), 0, 255).astype(np.uint8)


def reduce_contrast(image, share):
    """Take contrast away: every value moves towards the image's mean, and grey levels are lost for good.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
    share : float
        Of the contrast to take away, 0..1.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    mean = image.mean()
    return np.round(mean + (1 - share) * (image - mean)).astype(np.uint8)


def invert(image, share=1):
    """Turn bright into dark.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
    share : 0 or 1
        0 leaves the image as it is.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    return 255 - image if share else image.copy()


DISTORTIONS = {
    "blur": (blur, (0, 1, 2, 4)),
    "noise": (noise, (0, 8, 16, 32)),
    "contrast": (reduce_contrast, (0, 0.8, 0.9, 0.95)),
    "inversion": (invert, (0, 1)),
}
"""What can be done to an image on purpose, by name: the function, and the strengths to try; 0 does nothing."""


def robustness_table(predict, images, masks, distortions=DISTORTIONS, threshold=0.5):
    """Score a model on images that were made worse on purpose.

    Parameters
    ----------
    predict : callable
        Takes a list of uint8 images (H, W, 3), returns their probabilities of nucleus, such as
        `functools.partial(predict.predict_masks, model)`.
    images : sequence of uint8 array (H, W, 3)
    masks : sequence of array (H, W)
        True masks or label maps.
    distortions : dict of str to (callable, sequence of float)
        As `DISTORTIONS`.
    threshold : float

    Returns
    -------
    pandas.DataFrame
        One row per `distortion` and `strength`: the scores of `metrics.scores_from_counts` over all pixels, and `mean_dice` over
        images.
    """
    known, rows = {}, []
    for name, (distort, strengths) in distortions.items():
        for strength in strengths:
            key = (name, strength) if strength else "as it is"  # needs to be predicted only once
            if key not in known:
                worse = [distort(image, strength) for image in images]
                table = metrics.pixel_scores(masks, predict(worse), threshold)
                pooled = metrics.scores_from_counts(table[list(metrics.COUNTS)].sum().to_frame().T).iloc[0]
                known[key] = {**pooled, "mean_dice": table["dice"].mean()}
            rows.append({"distortion": name, "strength": strength, **known[key]})
    return pd.DataFrame(rows)
