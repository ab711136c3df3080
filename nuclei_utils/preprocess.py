"""Prepare images and label maps for a network: normalise by percentiles, CLAHE, resize, pad and crop.

Images are arrays `(H, W)` or `(H, W, C)`, label maps are integer arrays `(H, W)`, and a size is `(height, width)`.
A function keeps the dtype of its input unless its docstring names another dtype.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

MAX_SAMPLED_PIXELS = 2048 * 2048  # `intensity_range` samples larger images


def normalize(image: np.ndarray, low: float = 1.0, high: float = 99.8) -> np.ndarray:
    """Rescale an image between two percentiles to float32 in [0, 1].

    Values outside are clipped. Percentiles keep a few hot pixels from setting the scale. All channels share one scale,
    which keeps the colours. An image with one value becomes 0. Other tools choose similar percentiles: StarDist 1 and
    99.8, for all channels together or one by one; Cellpose 1 and 99.

    Examples
    --------
    >>> normalize(np.array([[10, 20, 30]]), low=0, high=100).tolist()
    [[0.0, 0.5, 1.0]]
    """
    return rescale_intensity(image, *intensity_range(image, low, high))


def intensity_range(image: np.ndarray, low: float = 1.0, high: float = 99.8) -> tuple[float, float]:
    """Compute the percentiles between which `normalize` rescales an image.

    Together with `rescale_intensity`, the function normalises an image that is processed in tiles. If both percentiles
    are equal, the result is the minimum and maximum of the image. Large images are sampled on a regular grid.

    Examples
    --------
    >>> intensity_range(np.arange(101).reshape(1, 101), low=5, high=90)
    (5.0, 90.0)
    """
    step = sampling_step(image.shape[:2])
    return sampled_range(image[::step, ::step], lambda: (image.min(), image.max()), low, high)


def sampling_step(shape: tuple[int, int]) -> int:
    """Return the distance of the rows and columns of a large image that `intensity_range` samples.

    Examples
    --------
    >>> sampling_step((2048, 2048)), sampling_step((40_000, 40_000))
    (1, 21)
    """
    step = math.ceil(math.sqrt(math.prod(shape) / MAX_SAMPLED_PIXELS))
    return step + 1 - step % 2  # an odd step samples all pixels of a camera's 2 x 2 pattern


def sampled_range(
    sample: np.ndarray, extremes: Callable[[], tuple[float, float]], low: float = 1.0, high: float = 99.8
) -> tuple[float, float]:
    """Compute `intensity_range` from the sample of an image.

    `extremes` returns the minimum and maximum of the image, for the case that both percentiles are equal.

    Examples
    --------
    >>> sampled_range(np.array([3, 3, 3]), lambda: (3, 200))
    (3.0, 200.0)
    """
    dark, bright = np.percentile(sample, [low, high])
    if bright <= dark:  # nuclei may cover fewer pixels than the upper percentile leaves out
        dark, bright = extremes()
    return float(dark), float(bright)


def rescale_intensity(image: np.ndarray, dark: float, bright: float) -> np.ndarray:
    """Rescale an image from [dark, bright] to float32 in [0, 1].

    Values outside are clipped.

    Examples
    --------
    >>> rescale_intensity(np.array([[5, 10, 20, 40]]), dark=10, bright=30).tolist()
    [[0.0, 0.0, 0.5, 1.0]]
    """
    width = max(np.float32(bright) - np.float32(dark), 1e-6)
    return np.clip((image.astype(np.float32) - np.float32(dark)) / width, 0, 1, dtype=np.float32)


def clahe(image: np.ndarray, clip_limit: float = 2.0, tiles: int = 8) -> np.ndarray:
    """Equalise local contrast with contrast-limited adaptive histogram equalisation.

    Only the lightness of the L*a*b* colour space changes, which keeps the colours.

    Parameters
    ----------
    image : uint8 array (H, W, 3)
        RGB, as is the result.
    clip_limit : float
        Limit of the contrast. 1 leaves the contrast as it is.
    tiles : int
        Number of tiles in each direction.

    Examples
    --------
    >>> clahe(np.full((32, 32, 3), 90, np.uint8)).shape
    (32, 32, 3)
    """
    lightness, a, b = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))
    lightness = cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(lightness)
    return cv2.cvtColor(cv2.merge([lightness, a, b]), cv2.COLOR_LAB2RGB)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 or float32 image.

    Pixels are averaged if the image shrinks.

    Examples
    --------
    >>> resize(np.array([[0, 100, 200, 200]], np.uint8), (1, 2)).tolist()
    [[50, 200]]
    """
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.reshape(*size, *image.shape[2:])  # OpenCV drops a channel axis of length 1


def resize_label_map(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map or mask by nearest neighbour.

    The result has no new labels.

    Examples
    --------
    >>> resize_label_map(np.array([[1, 7]]), (1, 4)).tolist()
    [[1, 1, 7, 7]]
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, label_map.shape, strict=True)
    )
    return label_map[np.ix_(rows, columns)]


def pad_to(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad an image or label map by reflection to a size.

    Pixels are added at the bottom and right until the image has at least this size. Reflection adds no dark edge that a
    network could take for a border of the tissue. `padded[:H, :W]` is the image.

    Examples
    --------
    >>> pad_to(np.array([[1, 2, 3]]), (1, 5)).tolist()
    [[1, 2, 3, 2, 1]]
    """
    missing = [(0, max(new - old, 0)) for new, old in zip(size, image.shape[:2], strict=True)]
    return np.pad(image, missing + [(0, 0)] * (image.ndim - 2), mode="reflect")


def pad_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """Pad an image or label map to multiples of a number.

    A U-Net that halves the image `depth` times needs multiples of `2**depth`.

    Examples
    --------
    >>> pad_to_multiple(np.zeros((30, 64)), 16).shape
    (32, 64)
    """
    height, width = (math.ceil(length / multiple) * multiple for length in image.shape[:2])
    return pad_to(image, (height, width))


def center_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop the center of an image or label map.

    The crop is at most as large as the image.

    Examples
    --------
    >>> center_crop(np.arange(16).reshape(4, 4), (2, 2)).tolist()
    [[5, 6], [9, 10]]
    """
    height, width = (min(pair) for pair in zip(size, image.shape[:2], strict=True))
    return crop(image, (image.shape[0] - height) // 2, (image.shape[1] - width) // 2, (height, width))


def crop(image: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Crop an image or label map.

    A crop that leaves the image raises `ValueError`.

    Examples
    --------
    >>> crop(np.arange(16).reshape(4, 4), top=1, left=0, size=(1, 3)).tolist()
    [[4, 5, 6]]
    """
    bottom, right = top + size[0], left + size[1]
    if top < 0 or left < 0 or bottom > image.shape[0] or right > image.shape[1]:
        extent, advice = f"rows {top}..{bottom} and columns {left}..{right}", "pad the image first (preprocess.pad_to)"
        raise ValueError(f"a crop of {extent} leaves the image of {image.shape[:2]} (height, width): {advice}")
    return image[top:bottom, left:right]
