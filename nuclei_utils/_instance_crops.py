"""Cut random crops for `models.instance_unet`, and change them: geometry, pasted nuclei, optics.

`input_pipeline.training_batches` uses this module. All arrays are NumPy arrays.
"""

import cv2
import numpy as np
from scipy import ndimage

from nuclei_utils import labels

PASTE = 0.3  # fraction of the crops into which nuclei are pasted
STAIN = 0.5  # probability of each change of the stain: mixed channels, a gamma for each channel
OPTICS = 0.15  # probability of each change of a crop by optics: blur, fewer pixels, uneven light, no colour

_MAX_PASTED = 10  # nuclei that are pasted into a crop
_SQUARE = np.ones((3, 3), np.uint8)
_MAX_HIDDEN = 0.25  # fraction of a nucleus that a pasted nucleus may hide


def random_instance_crop(
    image: np.ndarray, label_map: np.ndarray, distance: np.ndarray, size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Crop, rotate, mirror and zoom an image at random; paste nuclei, blur and invert some crops.

    Parameters
    ----------
    image, label_map, distance : uint8 (H, W, 3), uint16 (H, W), uint16 (H, W) of 0..255
        Normalised image, its nuclei, and their depth (`labels.distance_map`).
    size : int
        Height and width of the crop, pixels. The zoom is 0.5 to 2.

    Returns
    -------
    image : uint8 array (size, size, 3)
    targets : float32 array (size, size, 3) in [0, 1]
        Mask, boundary and distance.
    """
    matrix = _random_matrix(image.shape[:2], distance, size, random)
    image, label_map, distance = (
        cv2.warpAffine(
            array, matrix, (size, size), flags=cv2.WARP_INVERSE_MAP | method, borderMode=cv2.BORDER_REFLECT_101
        )
        for array, method in ((image, cv2.INTER_LINEAR), (label_map, cv2.INTER_NEAREST), (distance, cv2.INTER_NEAREST))
    )
    distance = distance / np.float32(255)
    if random.random() < PASTE:
        image, label_map, distance = paste_nuclei(image, label_map, distance, random)
    image = _random_optics(_random_stain(image, random), random)
    if random.random() < 0.1:
        image = 255 - image
    return image, stack_targets(label_map, distance)


def stack_targets(label_map: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Stack mask, boundary and distance, float32 (H, W, 3)."""
    return np.dstack([label_map > 0, labels.boundary_map(label_map), distance]).astype(np.float32)


def _random_matrix(shape, distance, size, random):
    """Return the matrix that maps pixels of the crop to pixels of the image."""
    zoom = 2.0 ** random.uniform(-1, 1)
    angle = random.uniform(0, 2 * np.pi)
    mirror = random.choice([-1, 1])
    radius = size / zoom / 2  # half the width of the crop, in pixels of the image
    centers = np.argwhere(distance == 255)
    if len(centers) and random.random() < 0.5:  # near the center of a nucleus, so that few crops are empty
        y, x = random.choice(centers) + random.uniform(-radius / 2, radius / 2, 2)
    else:
        y, x = (random.uniform(min(radius, side / 2), side - min(radius, side / 2)) for side in shape)
    rotation = np.array([[mirror * np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), np.cos(angle)]]) / zoom
    return np.column_stack([rotation, np.array([x, y]) - rotation @ [(size - 1) / 2, (size - 1) / 2]])


def paste_nuclei(
    image: np.ndarray, label_map: np.ndarray, distance: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paste turned copies of nuclei beside other nuclei, so that more nuclei touch.

    A copy may hide a small part of its neighbours. Image uint8 (H, W, 3), label map (H, W) and distance float32 (H, W)
    keep their shapes; the inputs do not change.
    """
    label_map = label_map.astype(np.int32)
    boxes = ndimage.find_objects(label_map)
    height, width = label_map.shape
    whole = [
        number
        for number, box in enumerate(boxes, start=1)
        if box and box[0].start > 2 and box[1].start > 2 and box[0].stop < height - 2 and box[1].stop < width - 2
    ]
    if not whole:
        return image, label_map, distance
    image, changed = image.astype(np.float32), set()
    areas = np.bincount(label_map.ravel(), minlength=len(boxes) + 1)
    for _ in range(random.integers(2, _MAX_PASTED + 1)):
        source, neighbour = random.choice(whole, 2)
        rows, columns = boxes[source - 1]
        rows, columns = slice(rows.start - 2, rows.stop + 2), slice(columns.start - 2, columns.stop + 2)
        mask, patch = label_map[rows, columns] == source, image[rows, columns]
        if not mask.any():
            continue
        turns, is_mirrored = random.integers(4), random.integers(2)
        mask, patch = np.rot90(mask, turns), np.rot90(patch, turns)
        if is_mirrored:
            mask, patch = mask[:, ::-1], patch[:, ::-1]
        target_rows, target_columns = boxes[neighbour - 1]
        step = random.uniform(0.8, 1.05) * (np.sqrt(areas[source] / np.pi) + np.sqrt(areas[neighbour] / np.pi))
        angle = random.uniform(0, 2 * np.pi)
        top = round((target_rows.start + target_rows.stop - mask.shape[0]) / 2 + step * np.sin(angle))
        left = round((target_columns.start + target_columns.stop - mask.shape[1]) / 2 + step * np.cos(angle))
        if top < 0 or left < 0 or top + mask.shape[0] > height or left + mask.shape[1] > width:
            continue
        window = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        hidden = np.bincount(label_map[window][mask], minlength=len(areas))
        hidden[0] = 0
        if (hidden > _MAX_HIDDEN * areas).any() or not label_map[window][cv2.dilate(np.uint8(mask), _SQUARE) > 0].any():
            continue
        alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)[..., None]
        image[window] += alpha * (patch * random.uniform(0.85, 1.15) - image[window])
        number = len(areas)
        label_map[window][mask] = number
        changed.update(np.flatnonzero(hidden).tolist(), [number])
        areas = np.append(areas - hidden, np.count_nonzero(mask))
    if not changed:
        return image.astype(np.uint8), label_map, distance
    is_changed = np.isin(label_map, list(changed))
    distance = np.where(is_changed, labels.distance_map(label_map), distance)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), label_map, distance


def _random_optics(image, random):
    """Blur, coarsen, shade or turn grey some crops."""
    size = image.shape[:2]
    if random.random() < OPTICS:
        image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.5, 2))
    if random.random() < OPTICS:  # few pixels, enlarged
        factor = random.uniform(0.35, 0.8)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, size[::-1], interpolation=random.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
    if random.random() < OPTICS:  # uneven light
        rows, columns = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in size), indexing="ij")
        angle, strength = random.uniform(0, 2 * np.pi), random.uniform(0, 0.5)
        light = 1 - strength * (1 + rows * np.sin(angle) + columns * np.cos(angle)) / 2
        image = np.clip(image * light[..., None], 0, 255).astype(np.uint8)
    if random.random() < OPTICS:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    return image


def _random_stain(image, random):
    """Change the colours of some crops, as other stains and cameras would."""
    if random.random() < STAIN:
        image = mix_channels(image, random)
    if random.random() < STAIN:
        image = change_dye(image, random)
    return image


def mix_channels(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mix the channels of a uint8 image (H, W, 3) at random. What is grey stays grey."""
    noise = random.normal(0, 0.3, (3, 3))
    mixing = np.eye(3) + noise - noise.mean(axis=1, keepdims=True)  # the rows have the sum 1
    return np.clip(np.round(image @ mixing.T), 0, 255).astype(np.uint8)


def change_dye(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Apply a random gamma to each channel of a uint8 image (H, W, 3): more or less dye.

    The gamma is a factor of the optical density. Black and white do not change.
    """
    levels = 255 * np.linspace(0, 1, 256)[:, None] ** np.exp(random.uniform(-0.4, 0.4, 3))
    return cv2.LUT(image, np.round(levels).astype(np.uint8)[None])
