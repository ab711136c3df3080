"""Draw the sample: small microscope images of nuclei with one mask per nucleus.

`python -m tools.draw_sample` writes `data/sample.zip`. The same code writes the same bytes.

Nothing is copied from real images. `_scatter` places nuclei in the field; `_fluorescence`, `_stained` and `_smear`
stain and light the nuclei; `_record` adds noise. The masks of a drawing are exact. `write_sample` adds the label errors
of the real set (`ERRORS`) to a few images.

Lengths are in pixels, and `rng` is a `numpy.random.Generator`.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage as ndi

from nuclei_utils.files import atomic_write

COUNTS = {
    "fluorescence_small": 14,
    "fluorescence_large": 10,
    "purple_on_white": 6,
    "purple_on_purple": 6,
    "grey_tissue": 4,
}
"""Number of images of each type. Most are fluorescence images, as in the 2018 Data Science Bowl."""
ERRORS = {"overlap": (2, 17, 33), "hole": (5, 19, 27), "speck": (3, 20, 29), "missed": (7, 16, 25)}
"""Label errors of the real set, each with the numbers of the sample's images that get the error."""
SIZES = ((256, 256), (256, 320), (256, 256), (192, 192), (320, 320), (128, 192), (256, 256), (160, 240))
MIN_SIZE = 20
"""Smallest visible area of a nucleus, as in the real set."""


class Nucleus(NamedTuple):
    """Nucleus in its bounding box."""

    window: tuple[slice, slice]  # bounding box in the image
    inside: np.ndarray  # bool, pixels of the window that belong to the nucleus
    depth: np.ndarray  # float, approximate distance of these pixels from the outline
    radius: float
    centre: np.ndarray  # row, column


def draw(
    image_type: str, seed: int | Sequence[int] | np.random.Generator = 0, size: tuple[int, int] = (256, 256)
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw an image and the exact mask of each nucleus.

    Parameters
    ----------
    image_type : str
        Key of `COUNTS`.
    seed : int, sequence of int or numpy.random.Generator
        The same seed gives the same drawing.
    size : tuple of int
        (H, W), each at least 64.

    Returns
    -------
    image : uint8 array (H, W, 3)
        RGB.
    masks : list of bool array (H, W)
        One mask per nucleus, without overlap: a pixel belongs to the upper nucleus. Debris and nuclei far out of focus
        have no mask.

    Raises
    ------
    ValueError
        If the image type is unknown, or the size is too small.
    """
    if image_type not in COUNTS:
        raise ValueError(f"found image type {image_type!r}, expected one of {', '.join(COUNTS)}")
    if min(size) < 64:
        raise ValueError(f"found size {size}, expected at least 64 rows and columns")
    image, label_map = _PAINTERS[image_type](np.random.default_rng(seed), tuple(size))
    return image, [label_map == number for number in range(1, label_map.max() + 1)]


# Shapes and places


def _clouds(rng, size, grain):
    """Return smooth noise with mean 0, standard deviation 1 and blobs of about `grain` pixels."""
    noise = np.fft.ifft2(ndi.fourier_gaussian(np.fft.fft2(rng.standard_normal(size)), grain)).real
    return (noise - noise.mean()) / noise.std()


def _blob(rng, size, centre, radius, stretch=1.0, angle=0.0, rough=0.05):
    """Return an ellipse with random waves in its outline, or None if the ellipse is outside the image."""
    reach = int(np.ceil(1.6 * radius * np.sqrt(stretch))) + 1
    top, left = np.maximum(0, np.round(centre).astype(int) - reach)
    bottom, right = np.minimum(size, np.round(centre).astype(int) + reach + 1)
    if top >= bottom or left >= right:
        return None
    rows, columns = np.mgrid[top:bottom, left:right]
    dy, dx = rows - centre[0], columns - centre[1]
    long, short = radius * np.sqrt(stretch), radius / np.sqrt(stretch)
    along = (dx * np.cos(angle) + dy * np.sin(angle)) / long
    across = (dy * np.cos(angle) - dx * np.sin(angle)) / short
    direction = np.arctan2(across, along)
    outline = np.ones_like(direction)
    for wave in range(2, 7):  # a single wave would only shift the ellipse; slow waves are strong
        outline += rough * rng.normal() * 3 / wave**1.5 * np.cos(wave * direction + rng.uniform(0, 2 * np.pi))
    depth = (1 - np.hypot(along, across) / np.clip(outline, 0.5, 1.5)) * short
    return Nucleus(
        (slice(top, bottom), slice(left, right)), depth > 0, np.maximum(depth, 0), radius, np.asarray(centre)
    )


def _fits(label_map, nuclei, new):
    """Return True if `new` and all nuclei below stay visible in one piece when `new` is added on top."""
    beneath = label_map[new.window][new.inside]
    if new.inside.sum() < MIN_SIZE or (beneath > 0).mean() > 0.3 or ndi.label(new.inside)[1] != 1:
        return False
    trial = label_map.copy()
    trial[new.window][new.inside] = -1
    for number in np.unique(beneath[beneath > 0]):
        old = nuclei[number - 1]
        visible = trial[old.window] == number
        if visible.sum() < max(MIN_SIZE, 0.7 * old.inside.sum()) or ndi.label(visible)[1] != 1:
            return False
    return True


def _scatter(rng, size, count, radius, spread=0.15, stretch=1.3, rough=0.05, touching=0.2, clumps=0.5):
    """Place about `count` nuclei, a fraction `touching` of them beside or over another one."""
    label_map, nuclei = np.zeros(size, np.int32), []
    crowd = clumps * _clouds(rng, size, min(size) / 6)
    flow = rng.uniform(0, np.pi) + _clouds(rng, size, min(size) / 4)
    for _ in range(12 * count):
        if len(nuclei) >= count:
            break
        nucleus_radius = radius * np.exp(np.clip(spread * rng.normal(), -0.7, 0.5))
        if nuclei and rng.random() < touching:
            neighbour = nuclei[rng.integers(len(nuclei))]
            turn = rng.uniform(0, 2 * np.pi)
            step = rng.uniform(0.8, 1.1) * (neighbour.radius + nucleus_radius)
            centre = neighbour.centre + step * np.array([np.sin(turn), np.cos(turn)])
        else:
            centre = rng.uniform(-0.5 * nucleus_radius, np.array(size) + 0.5 * nucleus_radius)
        at = tuple(np.clip(centre.astype(int), 0, np.array(size) - 1))
        nucleus_stretch = 1 + (stretch - 1) * rng.gamma(4, 0.25)
        angle = flow[at] + 0.4 * rng.normal()
        new = _blob(rng, size, centre, nucleus_radius, min(nucleus_stretch, 3.0), angle, rough)
        if new is None or crowd[at] < rng.normal() - 1 or not _fits(label_map, nuclei, new):
            continue
        nuclei.append(new)
        label_map[new.window][new.inside] = len(nuclei)
    return label_map, nuclei


# Light and colour


def _fibres(rng, size, count, width=0.8):
    """Draw `count` bent threads across the field, in the range 0 to about 1."""
    canvas, steps = np.zeros(size), np.arange(2 * max(size))
    for _ in range(count):
        turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.04, len(steps)))
        start = rng.uniform(0, size)
        rows = np.round(start[0] + np.cumsum(np.sin(turns))).astype(int)
        columns = np.round(start[1] + np.cumsum(np.cos(turns))).astype(int)
        seen = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        canvas[rows[seen], columns[seen]] = rng.uniform(0.4, 1)
    return 2.5 * width * ndi.gaussian_filter(canvas, width)


def _specks(rng, size, count, largest=2.0):
    """Draw `count` particles of debris, in the range 0 to 1."""
    canvas = np.zeros(size)
    for _ in range(count):
        crumb = _blob(rng, size, rng.uniform(0, size), rng.uniform(0.7, largest), rng.uniform(1, 2.5), rough=0.2)
        canvas[crumb.window][crumb.inside] = rng.uniform(0.3, 1)
    return canvas


def _uneven_light(rng, size, strength):
    """Return the brightness of the lamp over the field, about 1, with a slope and darker corners."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    slope = rng.uniform(-1, 1) * rows + rng.uniform(-1, 1) * columns
    return 1 + strength * (0.5 * slope - 0.3 * (rows**2 + columns**2))


def _stray_light(rng, size):
    """Return one wide glow near the edge of the field, in the range 0 to 1."""
    rows, columns = np.indices(size)
    centre = np.where(rng.random(2) < 0.5, -0.1, 0.9) * size + rng.uniform(0, 0.2, 2) * size
    return np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * (0.3 * min(size)) ** 2))


def _record(rng, picture, shot, read):
    """Convert brightness (0 to 255, grey or RGB) to 8-bit RGB with shot noise and read noise."""
    noise = np.sqrt(shot**2 * np.maximum(picture, 0) + read**2) * rng.standard_normal(picture.shape)
    picture = np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


# Image types


def _haze(rng, size, nuclei):
    """Return faint light of cell bodies, threads and nuclei out of focus."""
    haze, strength = np.zeros(size), rng.choice([0, 0.04, 0.1])
    for nucleus in nuclei:
        reach = nucleus.radius * rng.uniform(1.5, 3)
        body = _blob(rng, size, nucleus.centre, reach, rng.uniform(1, 3), rng.uniform(0, np.pi), 0.2)
        haze[body.window] += strength * rng.uniform(0.3, 1) * body.inside
    ghosts = 0.15 * _specks(rng, size, rng.integers(0, 7), 10)
    threads = rng.uniform(0.01, 0.05) * _fibres(rng, size, rng.choice([0, 0, 6, 20]))
    return ndi.gaussian_filter(haze, 2) + ndi.gaussian_filter(ghosts, rng.uniform(2, 6)) + threads


def _fluorescence(rng, size, scene, edge, reach, brightest):
    """Draw bright nuclei on black. The brightness rises from `edge` at the outline to 1 at the depth `reach`."""
    label_map, nuclei = scene
    focus, soft_fraction = rng.uniform(0.7, 1.3), rng.choice([0, 0.05, 0.3])
    grain, contrast = rng.uniform(0.1, 0.35), rng.uniform(0.1, 0.5)
    chromatin = _clouds(rng, size, rng.uniform(0.9, 1.6)) + 0.5 * _clouds(rng, size, 4)
    sharp, soft = np.zeros(size), np.zeros(size)
    for nucleus in nuclei:
        brightness = np.clip(np.exp(contrast * rng.normal()), 0.3, 2.5)
        if rng.random() < 0.03:
            brightness *= rng.uniform(1.5, 3)  # dividing or dying nuclei are condensed and bright
        profile = edge + (1 - edge) * (1 - np.exp(-nucleus.depth / reach))
        body = nucleus.inside * brightness * profile * np.clip(1 + grain * chromatin[nucleus.window], 0.2, 2.5)
        layer = soft if rng.random() < soft_fraction else sharp
        seen = layer[nucleus.window]
        layer[nucleus.window] = np.maximum(seen, body) + 0.3 * np.minimum(seen, body)  # nuclei shine through each other
    light = ndi.gaussian_filter(sharp, focus) + ndi.gaussian_filter(soft, rng.uniform(1.8, 2.6))
    light += rng.uniform(0.05, 0.3) * ndi.gaussian_filter(light, rng.uniform(2.5, 8))  # glow
    light += 0.4 * ndi.gaussian_filter(_specks(rng, size, rng.integers(0, 8)), 0.7) + _haze(rng, size, nuclei)
    light += rng.choice([0, 0, 0, 0, 0.5]) * _stray_light(rng, size)
    light *= np.exp(rng.uniform(np.log(14), np.log(brightest))) * _uneven_light(rng, size, rng.uniform(0, 0.5))
    background = rng.choice([2, 4, 5, 7, 12, 14])
    return _record(rng, background + light, rng.uniform(0.05, 0.25), rng.choice([0.3, 0.5, 0.7, 1.3])), label_map


def _small(rng, size):
    """Draw fluorescent nuclei at low magnification."""
    radius = rng.choice([4.5, 5.5, 6.5, 8, 10, 12.5])
    count = int(rng.uniform(0.03, 0.25) * size[0] * size[1] / (np.pi * radius**2)) + 3
    rough, touching = rng.uniform(0.02, 0.07), rng.uniform(0.1, 0.4)
    stretch, clumps = rng.uniform(1.1, 1.7), rng.uniform(0, 1.5)
    scene = _scatter(rng, size, count, radius, rng.uniform(0.1, 0.25), stretch, rough, touching, clumps)
    return _fluorescence(rng, size, scene, edge=0.85, reach=2, brightest=130)


def _large(rng, size):
    """Draw fluorescent nuclei at high magnification; some have the shape of a kidney."""
    radius = rng.choice([17, 20, 22, 25])
    count = int(rng.uniform(0.15, 0.35) * size[0] * size[1] / (np.pi * radius**2)) + 2
    scene = _scatter(rng, size, count, radius, 0.2, rng.uniform(1.3, 1.7), rng.uniform(0.03, 0.08), 0.2, 0.3)
    return _fluorescence(rng, size, scene, edge=0.65, reach=5, brightest=70)


def _stained(rng, size, scene, lamp, dye, tissue, clump):
    """Send the light of `lamp` (RGB) through nuclei with `dye` (absorbance, RGB) and through `tissue` (H, W, 3).

    By the law of Beer and Lambert, absorbances add up, and brightness falls as exp(-absorbance).
    """
    label_map, nuclei = scene
    chromatin = _clouds(rng, size, clump)
    sharp, soft = np.zeros(size), np.zeros(size)
    for nucleus in nuclei:
        amount, grain = rng.uniform(0.35, 1.0), rng.uniform(0.1, 0.5)
        rim = 1 + 0.25 * np.exp(-nucleus.depth / 1.5)  # dense chromatin at the envelope
        body = nucleus.inside * amount * rim * np.clip(1 + grain * chromatin[nucleus.window], 0.3, 2)
        layer = soft if rng.random() < 0.12 else sharp
        layer[nucleus.window] = np.maximum(layer[nucleus.window], body)
    ghosts = ndi.gaussian_filter(_specks(rng, size, rng.integers(2, 7), 14), 6)  # nuclei out of focus
    amount = ndi.gaussian_filter(sharp, rng.uniform(0.8, 1.2)) + ndi.gaussian_filter(soft, 2.2) + 0.35 * ghosts
    absorbance = amount[..., None] * dye + tissue
    picture = lamp * np.exp(-absorbance) * _uneven_light(rng, size, 0.06)[..., None]
    return _record(rng, picture, 0.05, 0.6), label_map


def _purple_on_white(rng, size):
    """Draw blood or marrow in haematoxylin and eosin: folded nuclei among pale red cells."""
    radius = rng.uniform(8, 11)
    count = int(rng.uniform(0.1, 0.35) * size[0] * size[1] / (np.pi * radius**2))
    scene = _scatter(rng, size, count, radius, 0.2, 1.3, 0.11, 0.45, 1.0)
    cells = np.zeros(size)
    for _ in range(size[0] * size[1] // 1500):
        cell = _blob(rng, size, rng.uniform(0, size), rng.uniform(6, 9), 1.2, rng.uniform(0, np.pi), 0.08)
        cells[cell.window] += cell.inside * (0.3 + np.exp(-cell.depth / 1.2))
    cytoplasm = ndi.gaussian_filter((scene[0] > 0).astype(float), 4) * np.clip(0.5 + _clouds(rng, size, 6), 0, 2)
    pigment = ndi.gaussian_filter(_specks(rng, size, rng.integers(0, 3), 5), 1)
    layers = [(cells, (0.05, 0.04, 0.06)), (cytoplasm, (0.1, 0.35, 0.08)), (pigment, (1.3, 1.1, 1.3))]
    tissue = sum(ndi.gaussian_filter(layer, 0.8)[..., None] * colour for layer, colour in layers)
    lamp = np.array([207, 209, 213]) + rng.normal(0, 5) + rng.normal(0, 2, 3)
    return _stained(rng, size, scene, lamp, np.array([0.72, 1.65, 0.42]), tissue, 1.5)


def _purple_on_purple(rng, size):
    """Draw haematoxylin on stained tissue: dark and pale nuclei on a background of streaks."""
    radius = rng.choice([7, 8, 10, 17])
    count = int(rng.uniform(0.12, 0.35) * size[0] * size[1] / (np.pi * radius**2)) + 2
    scene = _scatter(rng, size, count, radius, 0.2, 1.7, 0.06, 0.35, 1.0)
    streaks = _clouds(rng, size, 1.5) + 2 * _clouds(rng, size, 6) + 5 * _fibres(rng, size, 25, 1.2)
    crowded = ndi.gaussian_filter((scene[0] > 0).astype(float), 12)
    tissue = (0.012 * streaks + 0.35 * crowded)[..., None] * np.array([0.7, 1.0, 0.2])
    lamp = np.array([179, 160, 204]) + rng.normal(0, 2)
    return _stained(rng, size, scene, lamp, np.array([0.75, 1.75, 0.11]), tissue, rng.uniform(1.2, 2))


def _smear(rng, size):
    """Draw a grey brightfield smear: flat cells on white, each with a small dark nucleus, among debris and bacteria."""
    count = max(4, size[0] * size[1] // 13000)
    label_map, nuclei = _scatter(rng, size, count, rng.uniform(7, 10), 0.25, 1.4, 0.03, 0.1, 1.0)
    absorbance = 0.7 * ndi.gaussian_filter(_specks(rng, size, rng.integers(4, 12), 2.5), 0.6)
    absorbance += 0.15 * ndi.gaussian_filter(_specks(rng, size, size[0] * size[1] // 500, 1.5), 0.6)
    texture = _clouds(rng, size, 1.2) + _clouds(rng, size, 5) + 6 * _fibres(rng, size, 10, 1.5)
    for nucleus in nuclei:
        centre = nucleus.centre + rng.normal(0, 8, 2)
        cell = _blob(rng, size, centre, rng.uniform(30, 48), rng.uniform(1, 1.5), rng.uniform(0, np.pi), 0.16)
        body = rng.uniform(0.12, 0.3) * (1 + 0.12 * texture[cell.window]) + 0.15 * np.exp(-cell.depth / 1.5)
        absorbance[cell.window] += cell.inside * body
    for number, nucleus in enumerate(nuclei, start=1):
        seen = label_map[nucleus.window] == number
        body = rng.uniform(0.45, 0.95) * (1 + 0.15 * texture[nucleus.window])
        absorbance[nucleus.window] += seen * body
    picture = 230 * np.exp(-ndi.gaussian_filter(absorbance, 0.8)) * _uneven_light(rng, size, 0.05)
    return _record(rng, picture, 0.08, 1.0), label_map


_PAINTERS = {
    "fluorescence_small": _small,
    "fluorescence_large": _large,
    "purple_on_white": _purple_on_white,
    "purple_on_purple": _purple_on_purple,
    "grey_tissue": _smear,
}


# The sample


def sample_table(seed: int = 0) -> list[dict]:
    """List the images of the sample, in the order of `COUNTS`.

    Parameters
    ----------
    seed : int
        Random seed of `write_sample`.

    Returns
    -------
    list of dict
        `id` (64 hexadecimal digits), `image_type`, `group` (near-duplicates, which show the same field, share a group),
        `field` (number of the field within the type), `size` (H, W), `corner` (row and column of the image in the
        field), `channels` (3 for an RGB file, 4 for RGBA) and `error` (key of `ERRORS`, or "").
    """
    errors = {number: error for error, numbers in ERRORS.items() for number in numbers}
    rows = []
    for image_type, count in COUNTS.items():
        for index in range(count):
            is_duplicate = index == count - 1  # the last image of each type shows the field before, shifted
            field = min(index, count - 2)
            size = SIZES[field % len(SIZES)]
            rows.append(
                {
                    "id": hashlib.sha256(f"{image_type} {seed} {index}".encode()).hexdigest(),
                    "image_type": image_type,
                    "group": f"{image_type}-{field:02d}",
                    "field": field,
                    "size": size,
                    "corner": (size[0] // 8, size[1] // 4) if is_duplicate else (0, 0),
                    "channels": 3 if len(rows) % 3 == 2 else 4,
                    "error": errors.get(len(rows), ""),
                }
            )
    return rows


def _draw_row(row, seed):
    """Draw the image and the masks, with the label error, of one row of `sample_table`."""
    image_type, field, (height, width), (top, left) = row["image_type"], row["field"], row["size"], row["corner"]
    is_shared = field == COUNTS[image_type] - 2  # two images show parts of this field, which is therefore larger
    field_size = (height + height // 8, width + width // 4) if is_shared else (height, width)
    image, masks = draw(image_type, [seed, list(COUNTS).index(image_type), field], field_size)
    window = (slice(top, top + height), slice(left, left + width))
    masks = [mask[window] for mask in masks if mask[window].any()]
    rng = np.random.default_rng([seed, *bytes.fromhex(row["id"])])
    return image[window], _add_error(rng, masks, row["error"])


def _add_hole(mask):
    """Remove the pixels of a mask that are farthest from the outline."""
    depth = ndi.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return mask & (depth < 0.6 * depth.max())


def _add_error(rng, masks, error):
    """Add a label error of the real set to the masks of an image."""
    chosen = sorted(range(len(masks)), key=lambda number: -masks[number].sum())[: max(1, len(masks) // 4)]
    if error == "missed":
        return [mask for number, mask in enumerate(masks) if number not in chosen[::2]]
    if error == "hole":
        return [_add_hole(mask) if number in chosen[:3] else mask for number, mask in enumerate(masks)]
    if error == "overlap":
        return [ndi.binary_dilation(mask, iterations=3) if n in chosen else mask for n, mask in enumerate(masks)]
    if error == "speck":
        free = np.argwhere(~ndi.binary_dilation(np.any(masks, axis=0), iterations=4)[1:-1, 1:-1]) + 1
        specks = np.zeros((3, *masks[0].shape), bool)
        for speck, (row, column) in zip(specks, rng.permutation(free)[:3], strict=True):
            speck[row, column : column + 2] = True
        return masks + list(specks)
    return masks


def _png(array):
    """Encode an 8-bit image as PNG with fixed settings."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=6)
    return file.getvalue()


def write_sample(path: str | Path, seed: int = 0) -> Path:
    """Draw the sample and write a zip archive in the layout of the real data.

    Each image is `<id>/images/<id>.png`, RGB or RGBA. Each nucleus is `<id>/masks/<name>.png`, 8-bit, 0 or 255. The
    same seed gives the same bytes with the same versions of NumPy, SciPy and Pillow.

    Parameters
    ----------
    path : path-like
        Zip archive, replaced when the new archive is complete.
    seed : int
        Random seed. The sample of the course has the seed 0.

    Returns
    -------
    pathlib.Path
        `path`.
    """
    path = Path(path)
    members = {}
    for row in sample_table(seed):
        image, masks = _draw_row(row, seed)
        if row["channels"] == 4:
            image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
        members[f"{row['id']}/images/{row['id']}.png"] = _png(image)
        for number, mask in enumerate(masks):
            name = hashlib.sha256(f"{row['id']} {number}".encode()).hexdigest()
            members[f"{row['id']}/masks/{name}.png"] = _png(mask.astype(np.uint8) * 255)
    with atomic_write(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, date_time=(2018, 1, 1, 0, 0, 0))
            # fixed values, because the defaults depend on the operating system
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, members[name])
    return path


if __name__ == "__main__":
    print(write_sample(Path(__file__).parents[1] / "data" / "sample.zip"))
