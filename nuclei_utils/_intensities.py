"""Measure the intensities of nuclei, and the background around each nucleus, in each channel."""

from collections.abc import Mapping

import cv2
import numpy as np
from scipy import ndimage

GAP, RING = 2, 5  # pixels between a nucleus and its ring, and width of the ring
STATISTICS = ("mean", "sum", "std", "background")


def measure_intensities(channels: Mapping[str, np.ndarray], label_map: np.ndarray) -> dict[str, np.ndarray]:
    """Measure each channel, (H, W), in each nucleus.

    Returns
    -------
    dict
        Each column, and its values in the order of the labels.

    Examples
    --------
    >>> channels = {"DAPI": np.array([[1, 3, 0, 0, 0, 7, 9]])}
    >>> measure_intensities(channels, np.array([[4, 4, 0, 0, 0, 0, 0]]))
    {'mean_DAPI': array([2.]), 'sum_DAPI': array([4.]), 'std_DAPI': array([1.]), 'background_DAPI': array([7.])}
    """
    boxes = [(label, box) for label, box in enumerate(ndimage.find_objects(label_map), 1) if box]
    different = {id(channel): channel for channel in channels.values()}  # the colours of a grey image are the same
    values = {key: np.full((len(STATISTICS), len(boxes)), np.nan) for key in different}
    # 0 where a ring may lie. Near a nucleus, its blurred edge would count as background.
    near = cv2.dilate((label_map > 0).astype(np.uint8), _disc(GAP))
    disc = _disc(GAP + RING)
    for number, (label, box) in enumerate(boxes):
        mask = label_map[box] == label
        around = tuple(slice(max(side.start - GAP - RING, 0), side.stop + GAP + RING) for side in box)
        ring = cv2.dilate((label_map[around] == label).astype(np.uint8), disc) > near[around]
        for key, channel in different.items():
            inside, outside = channel[box][mask].astype(np.float64), channel[around][ring]
            values[key][:3, number] = inside.mean(), inside.sum(), inside.std()
            if outside.size:
                values[key][3, number] = np.median(outside)
    rows = {name: values[id(channel)] for name, channel in channels.items()}
    return {f"{statistic}_{name}": rows[name][i] for i, statistic in enumerate(STATISTICS) for name in channels}


def channels_of(image: np.ndarray | Mapping | None, shape: tuple[int, int], name: str) -> dict[str, np.ndarray]:
    """Return the name and the values (H, W) of each channel of an image."""
    if isinstance(image, Mapping):
        channels = {key: np.asarray(channel) for key, channel in image.items()}
        if wrong := {key: channel.shape for key, channel in channels.items() if channel.shape != shape}:
            raise ValueError(f"{name}: expected channels {shape}, found {wrong}")
        return channels
    image = np.full((*shape, 1), np.nan) if image is None else np.asarray(image)
    if image.shape not in ((*shape, 1), (*shape, 3)):
        raise ValueError(f"{name}: expected an image {(*shape, 3)} or {(*shape, 1)}, found {image.shape}")
    colours = np.moveaxis(image, -1, 0)
    return dict(zip(("red", "green", "blue"), colours if len(colours) == 3 else [colours[0]] * 3, strict=True))


def _disc(radius):
    steps = np.arange(-radius, radius + 1)
    return (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)
