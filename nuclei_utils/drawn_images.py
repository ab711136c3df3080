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
    _check_size(size)
    return [
        _draw_colony_image(f"colonies_{seed}_{i:03d}", np.random.default_rng((seed, i)), size) for i in range(count)
    ]


def _check_size(size):
    if min(size) < 64:
        raise ValueError(f"found size {size}, expected at least 64 rows and columns")


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


def draw_unstained(
    count: int, seed: int = 0, size: tuple[int, int] = (256, 256), nuclei: int | None = None
) -> list[Record]:
    """Draw unstained nuclei, as a phase-contrast microscope shows them.

    Each nucleus is a dark ring with a bright halo on a grey, textured background. Its inside is as bright as the
    background, so that brightness alone does not find it. Bubbles are no nuclei: their ring is bright and their halo is
    dark. Contrast, sharpness, texture, and the size of the nuclei vary from image to image.

    Parameters
    ----------
    count, seed, size
        As for `draw_colonies`.
    nuclei : int, optional
        Number of nuclei in an image. A small image can have fewer, because nuclei do not overlap. Default: 20 for
        256 x 256 pixels, and in proportion for other sizes.

    Returns
    -------
    list of Record
        Grey images, all channels equal. Each nucleus is in one piece, and some nuclei touch. The image type is "".

    Examples
    --------
    >>> (record,) = draw_unstained(1, size=(64, 96), nuclei=2)
    >>> record.image.shape, int(record.label_map.max())
    ((64, 96, 3), 2)
    """
    _check_size(size)
    nuclei = max(20 * size[0] * size[1] // 256**2, 1) if nuclei is None else nuclei
    return [
        _draw_unstained_image(f"unstained_{seed}_{i:03d}", np.random.default_rng((seed, i)), size, nuclei)
        for i in range(count)
    ]


def _draw_unstained_image(name, rng, size, nuclei):
    label_map = _place_unstained(rng, size, nuclei, radius=rng.uniform(13, 22))
    bubbles = _place_unstained(rng, size, int(rng.integers(0, 9)), radius=rng.uniform(6, 14))
    near = np.unique(bubbles[ndimage.binary_dilation(label_map > 0, iterations=6)])
    bubbles[np.isin(bubbles, near)] = 0  # a bubble keeps its distance from nuclei

    grey = rng.uniform(105, 150) + rng.uniform(4, 10) * _smooth_noise(rng, size, 30)  # uneven light
    for grain in (1.0, 2.0, 4.0):
        grey += rng.uniform(7, 14) * _smooth_noise(rng, size, grain)
    gaps = np.clip(1 + 0.5 * _smooth_noise(rng, size, 6), 0.1, 1.9)
    grey += gaps * _rings(
        label_map, -rng.uniform(35, 75), rng.uniform(1.2, 2.2), rng.uniform(30, 100), rng.uniform(2, 4)
    )
    grey += gaps * _rings(bubbles, rng.uniform(35, 75), rng.uniform(1.2, 2.2), -rng.uniform(30, 60), rng.uniform(2, 4))
    for region, sign in ((label_map > 0, -1), (label_map == 0, 1)):  # nucleoli and granules
        grey += sign * _spots(rng, region, rng.uniform(1, 2.5))
    grey = ndimage.gaussian_filter(grey, rng.uniform(0.6, 1.6)) + rng.uniform(2, 5) * rng.standard_normal(size)
    grey = np.clip(np.round(grey), 0, 255).astype(np.uint8)
    return Record(name, np.repeat(grey[..., None], 3, axis=2), label_map, "")


def _place_unstained(rng, size, count, radius):
    """Place ellipses with wavy outlines. A nucleus in the way of another is placed elsewhere."""
    label_map, placed = np.zeros(size, np.int32), 0
    rows, columns = np.mgrid[: size[0], : size[1]]
    for _ in range(20 * count):
        if placed == count:
            break
        y, x, angle = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(0, np.pi)
        stretch, own_radius = rng.uniform(1, 1.35), radius * np.exp(0.15 * rng.standard_normal())
        along = ((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)) / stretch
        across = ((rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)) * stretch
        direction = np.arctan2(across, along)
        outline = 1.0
        for wave in (2, 3, 4):
            outline = outline + 0.1 / wave * rng.standard_normal() * np.cos(wave * direction + rng.uniform(0, 6.3))
        inside = np.hypot(along, across) < own_radius * np.clip(outline, 0.7, 1.3)
        free = inside & (label_map == 0)
        # a little overlap becomes a common border
        is_whole = np.count_nonzero(free) >= max(0.95 * np.count_nonzero(inside), 60)
        if is_whole and ndimage.label(free)[1] == 1:
            placed += 1
            label_map[free] = placed
    return label_map


def _smooth_noise(rng, size, grain):
    """Return noise of mean 0 and standard deviation 1, with a grain of `grain` pixels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(size), grain, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _rings(label_map, ring, ring_width, halo, halo_width):
    """Return the light of a ring inside the border of each nucleus, and of a halo outside."""
    inside = np.zeros(label_map.shape)
    for nucleus, box in enumerate(ndimage.find_objects(label_map), start=1):
        if box is not None:
            # the edge of the image is no border
            mask = np.pad(np.pad(label_map[box] == nucleus, 1, mode="edge"), 1)
            inside[box] += ndimage.distance_transform_edt(mask)[2:-2, 2:-2] * (label_map[box] == nucleus)
    outside = ndimage.distance_transform_edt(label_map == 0) if label_map.any() else np.full(label_map.shape, np.inf)
    light = ring * np.exp(-(((inside - 1.5) / ring_width) ** 2)) * (label_map > 0)
    return light + halo * np.exp(-((outside / halo_width) ** 2)) * (label_map == 0)


def _spots(rng, region, radius):
    """Return small round spots in a region: nucleoli in nuclei, granules in the background."""
    seeds = np.zeros(region.shape)
    places = np.argwhere(region)
    if len(places):
        chosen = rng.choice(places, size=len(places) // 400 + 1)
        seeds[tuple(chosen.T)] = rng.uniform(15, 40, len(chosen))
    return ndimage.gaussian_filter(seeds, radius) * 2 * np.pi * radius**2
