"""Draw images of nuclei for single lessons, with exact label maps.

The drawings show one difficulty each, more clearly than real images do. A random seed decides everything: the same seed
gives the same images.
"""

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import relabel_sequential

from nuclei_utils.datasets import Record

_NUCLEUS_AREA = 260  # pixels, on average
_MIN_AREA = 60  # pixels; smaller nuclei are left out
_OVERLAP = 0.12  # fraction of a colony that may lie below others


def draw_colonies(count: int, seed: int = 0, size: tuple[int, int] = (128, 128)) -> list[Record]:
    """Draw colonies of nuclei that touch along straight borders.

    A colony has a smooth outline without a waist, so that the outline does not say how many nuclei the colony has. The
    nuclei differ in brightness and in the direction of their texture, and the border between two nuclei is a little
    darker. Single nuclei lie between the colonies. Where colonies or single nuclei touch, the outline has a waist.

    Parameters
    ----------
    count : int
        Number of images.
    seed : int
        Random seed. Image number i is the same for every `count` above i.
    size : (int, int)
        Height and width, at least 64 pixels each.

    Returns
    -------
    list of Record
        Bright nuclei on a dark background, as in fluorescence. The image type is "".

    Examples
    --------
    >>> record = draw_colonies(1)[0]
    >>> record.image.shape, int(record.label_map.max()) > 5
    ((128, 128, 3), True)
    """
    if min(size) < 64:
        raise ValueError(f"found size {size}, expected at least 64 rows and columns")
    return [
        _draw_colony_image(f"colonies_{seed}_{i:03d}", np.random.default_rng((seed, i)), size) for i in range(count)
    ]


def _draw_colony_image(name, rng, size):
    label_map = np.zeros(size, np.int32)
    for _ in range(round(size[0] * size[1] / 1000)):
        nuclei = int(rng.choice([1, 1, 1, 3, 4, 5, 6, 8]))
        blob = _blob(rng, size, np.sqrt(nuclei * _NUCLEUS_AREA / np.pi))
        # Colonies may touch each other; the later one lies below
        if np.mean(label_map[blob] > 0) < _OVERLAP:
            free = blob & (label_map == 0)
            label_map[free] = label_map.max() + _divide(rng, blob, nuclei)[free]
    label_map = label(label_map, connectivity=1)  # a colony below another may be in two pieces
    areas = np.bincount(label_map.ravel())
    label_map = relabel_sequential(np.where(areas[label_map] < _MIN_AREA, 0, label_map))[0].astype(np.int32)
    return Record(name, _colony_image(rng, label_map), label_map, "")


def _blob(rng, size, radius):
    """Return the mask of a smooth, nearly elliptical region."""
    rows, columns = np.indices(size)
    rows, columns = rows - rng.uniform(0, size[0]), columns - rng.uniform(0, size[1])
    angle = np.arctan2(rows, columns)
    stretch = rng.uniform(0, 0.22), rng.uniform(0, 0.04)
    outline = sum(s * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k, s in zip((2, 3), stretch, strict=True))
    return np.hypot(rows, columns) < radius * (1 + outline)


def _divide(rng, blob, nuclei):
    """Divide a region into cells of similar size: a Voronoi diagram whose points were moved to the centres."""
    pixels = np.argwhere(blob)
    points = pixels[rng.choice(len(pixels), min(nuclei, len(pixels)), replace=False)] + rng.uniform(
        -0.5, 0.5, (nuclei, 2)
    )
    for step in range(4):
        nearest = ((pixels[:, None] - points) ** 2).sum(axis=-1).argmin(axis=1)
        if step < 3:
            points = [pixels[nearest == i].mean(axis=0) if (nearest == i).any() else points[i] for i in range(nuclei)]
    label_map = np.zeros(blob.shape, np.int32)
    label_map[blob] = nearest + 1
    return label_map


def _colony_image(rng, label_map):
    """Stain the nuclei of a label map."""
    count, shape = label_map.max() + 1, label_map.shape
    brightness = rng.uniform(0.5, 0.85, count)
    directions, phases = rng.uniform(0, np.pi, count), rng.uniform(0, 2 * np.pi, count)
    rows, columns = np.indices(shape)
    across = np.cos(directions)[label_map] * rows + np.sin(directions)[label_map] * columns
    stripes = np.cos(across * 2 * np.pi / 5 + phases[label_map])
    coarse = ndimage.gaussian_filter(rng.standard_normal(shape), 4)
    texture = 0.07 * stripes + 0.03 * coarse / coarse.std()
    seams = _seams(label_map) * np.clip(0.16 + 0.08 * coarse / coarse.std(), 0, None)
    nuclei = ndimage.gaussian_filter(np.where(label_map > 0, brightness[label_map] + texture - seams, 0), 0.7)
    image = 0.08 + 0.85 * nuclei + rng.normal(0, 0.025, shape)
    return np.repeat(np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)[..., None], 3, axis=-1)


def _seams(label_map):
    """Mark the pixels at which two nuclei touch."""
    inside = label_map > 0
    lowest = ndimage.minimum_filter(np.where(inside, label_map, label_map.max() + 1), 3)
    return inside & (ndimage.maximum_filter(label_map, 3) != lowest)
