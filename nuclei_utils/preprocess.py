"""What happens to an image before a network sees it: intensities put on one scale, sizes made to fit."""

import math

import cv2
import numpy as np

EXACT = 2048 * 2048
"""Pixels up to which `limits` looks at every one; of larger images a regular grid of at most so many is enough."""


def normalize(image, low=1.0, high=99.8):
    """Stretch an image's intensities so that its own dark and bright ends become 0 and 1.

    The ends are percentiles, so that a few hot pixels do not set the scale. All channels share them, which keeps
    the colours. StarDist and Cellpose do the same before they look.

    Parameters
    ----------
    image : array (H, W) or (H, W, C), any numeric type
    low, high : float
        Percentiles that become 0 and 1; values beyond are clipped.

    Returns
    -------
    float32 array of the same shape, in [0, 1]
        All 0 if the image is flat.
    """
    return rescale_intensity(image, *intensity_range(image, low, high))


def intensity_range(image, low=1.0, high=99.8):
    """Find an image's dark and bright ends: `normalize` in two steps, for images that are stretched part by part.

    Parameters
    ----------
    image : array (H, W) or (H, W, C), any numeric type
        Beyond `EXACT` pixels, the percentiles are those of a regular grid of its pixels.
    low, high : float
        Percentiles.

    Returns
    -------
    tuple of float
        (dark, bright); of an image whose percentiles are one, its lowest and highest value.
    """
    step = math.ceil(math.sqrt(math.prod(image.shape[:2]) / EXACT))
    step += 1 - step % 2  # an odd step meets every pixel of a camera's pattern of 2 x 2
    dark, bright = np.percentile(image[::step, ::step], [low, high])
    if bright <= dark:
        # nuclei may cover less than the share of pixels that the upper percentile leaves out
        dark, bright = image.min(), image.max()
    return float(dark), float(bright)


def rescale_intensity(image, dark, bright):
    """Stretch an image's intensities so that two given values become 0 and 1.

    Parameters
    ----------
    image : array (H, W) or (H, W, C), any numeric type
    dark, bright : float
        As `limits` finds them; values beyond are clipped.

    Returns
    -------
    float32 array of the same shape, in [0, 1]
        All 0 if both are one.
    """
    stretched = (image.astype(np.float32) - np.float32(dark)) / max(np.float32(bright) - np.float32(dark), 1e-6)
    return np.clip(stretched, 0, 1, dtype=np.float32)


def clahe(image, clip_limit=2.0, tiles=8):
    """Even out local contrast: contrast-limited adaptive histogram equalisation of the lightness (OpenCV).

    Parameters
    ----------
    image : uint8 array (H, W, 3)
        RGB.
    clip_limit : float
        How much contrast may be raised; 1 raises none.
    tiles : int
        The image is equalised in `tiles` x `tiles` fields.

    Returns
    -------
    uint8 array (H, W, 3)
        RGB, with the colours kept.
    """
    lightness, a, b = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))
    lightness = cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(lightness)
    return cv2.cvtColor(cv2.merge([lightness, a, b]), cv2.COLOR_LAB2RGB)


def resize(image, size):
    """Resize an image, its pixels averaged where it shrinks; for labels use `resize_labels`.

    Parameters
    ----------
    image : uint8 or float32 array (H, W) or (H, W, C)
    size : tuple of int
        (height, width) to come out.

    Returns
    -------
    array (height, width[, C]) of the same type
    """
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.reshape(*size, *image.shape[2:])  # OpenCV drops a channel axis of 1


def resize_label_map(labels, size):
    """Resize a label map or mask by nearest neighbour: no label is invented between two others.

    Parameters
    ----------
    labels : int or bool array (H, W)
    size : tuple of int
        (height, width) to come out.

    Returns
    -------
    array (height, width) of the same type
    """
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(int)
    return labels[np.ix_(rows, columns)]


def pad_to(image, size):
    """Pad an image or label map at the bottom and right by reflection, until it has at least a size.

    Reflection leaves no dark edge that a network could take for a border of the tissue.

    Parameters
    ----------
    image : array (H, W) or (H, W, C)
    size : tuple of int
        Least (height, width) to come out; an image that is larger stays as it is.

    Returns
    -------
    array (max(H, height), max(W, width)[, C]) of the same type
        `padded[:H, :W]` is the image again.
    """
    below = max(size[0] - image.shape[0], 0)
    right = max(size[1] - image.shape[1], 0)
    return np.pad(image, [(0, below), (0, right)] + [(0, 0)] * (image.ndim - 2), mode="reflect")


def pad_to_multiple(image, multiple):
    """Pad an image or label map by reflection until its height and width are multiples of a number.

    Parameters
    ----------
    image : array (H, W) or (H, W, C)
    multiple : int
        A U-Net that halves the image `depth` times needs `2**depth`.

    Returns
    -------
    array of the same type
        `padded[:H, :W]` is the image again.
    """
    height, width = (-(-size // multiple) * multiple for size in image.shape[:2])
    return pad_to(image, (height, width))


def center_crop(image, size):
    """Cut the middle out of an image or label map.

    Parameters
    ----------
    image : array (H, W) or (H, W, C)
    size : tuple of int
        Its (height, width); what is larger than the image is cut down to it.

    Returns
    -------
    array (min(H, height), min(W, width)[, C])
    """
    height, width = (min(pair) for pair in zip(size, image.shape[:2], strict=True))
    return crop(image, (image.shape[0] - height) // 2, (image.shape[1] - width) // 2, (height, width))


def crop(image, top, left, size):
    """Cut a window out of an image or label map.

    Parameters
    ----------
    image : array (H, W) or (H, W, C)
    top, left : int
        Its upper left corner.
    size : tuple of int
        Its (height, width).

    Returns
    -------
    array (height, width[, C])

    Raises
    ------
    ValueError
        If the window leaves the image.
    """
    bottom, right = top + size[0], left + size[1]
    if top < 0 or left < 0 or bottom > image.shape[0] or right > image.shape[1]:
        raise ValueError(
            f"a window of rows {top}..{bottom} and columns {left}..{right} leaves the image of {image.shape[:2]} "
            "(height, width); pad it first (preprocess.pad_to)"
        )
    return image[top:bottom, left:right]
