"""Draws the bundled sample: small microscope images of nuclei, with one mask for each nucleus.

Nothing is copied from a real image. A drawing goes through the same steps as a photograph: nuclei are scattered over
the field (`_scatter`), stained and lit (`_fluorescence`, `_stained`, `_smear`), blurred, and recorded with noise
(`_record`). What is drawn is known, so the masks are exact; `write_sample` then spoils a few of them on purpose,
because the labels of the real set have errors too (`ERRORS`).

Arrays are NumPy's; lengths are in pixels; a `rng` is a `numpy.random.Generator`.
"""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage as ndi

from nuclei_utils.files import atomic_write

# How many images of each image_type the sample has: mostly fluorescence, as in the 2018 Data Science Bowl.
COUNTS = {
    "fluorescence_small": 14,
    "fluorescence_large": 10,
    "purple_on_white": 6,
    "purple_on_purple": 6,
    "grey_tissue": 4,
}


# The label errors of the real set, and the numbers (over all image_types) of the sample's images that get each of them.
ERRORS = {"overlap": (2, 17, 33), "hole": (5, 19, 27), "speck": (3, 20, 29), "missed": (7, 16, 25)}


SIZES = ((256, 256), (256, 320), (256, 256), (192, 192), (320, 320), (128, 192), (256, 256), (160, 240))


SMALLEST = 20  # no nucleus shows less than this many pixels, as in the real set


class Nucleus(NamedTuple):
    """One nucleus, in the min_size upright rectangle of the image that holds it."""

    window: tuple[slice, slice]
    inside: np.ndarray  # bool, which pixels of the window it covers
    depth: np.ndarray  # float, roughly how far below the outline each of them lies
    radius: float
    centre: np.ndarray  # row, column


def draw(image_type, seed=0, size=(256, 256)):
    """Draw one image and the exact mask of each nucleus in it.

    Parameters
    ----------
    image_type : str
        One of `COUNTS`.
    seed : int, sequence of int or numpy.random.Generator
        The same seed gives the same drawing.
    size : tuple of int
        Rows and columns, 64 or more.

    Returns
    -------
    image : ndarray of uint8, shape (H, W, 3)
        RGB.
    masks : list of ndarray of bool, shape (H, W)
        One for each nucleus; they touch, but no pixel belongs to two. Where nuclei lie over one another, the pixel
        belongs to the upper one. Ghosts far out of focus and debris have no mask.

    Raises
    ------
    ValueError
        If `image_type` is not one of `COUNTS`, or `size` is too small.
    """
    if image_type not in COUNTS:
        raise ValueError(f"image_type is {image_type!r}; expected one of {', '.join(COUNTS)}")
    if min(size) < 64:
        raise ValueError(f"size is {size}; expected 64 or more rows and columns")
    rng = np.random.default_rng(seed)
    image, labels = _PAINTERS[image_type](rng, tuple(size))
    return image, [labels == number for number in range(1, labels.max() + 1)]


def _clouds(rng, size, grain):
    """Smooth noise with mean 0 and deviation 1 whose blobs are about `grain` pixels."""
    noise = np.fft.ifft2(ndi.fourier_gaussian(np.fft.fft2(rng.standard_normal(size)), grain)).real
    return (noise - noise.mean()) / noise.std()


def _blob(rng, size, centre, radius, stretch=1.0, angle=0.0, rough=0.05):
    """Return an ellipse whose outline is bent by a few random waves, or None when it lies outside the image."""
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
    for wave in range(2, 7):  # one wave would only shift the ellipse; slow waves are the strong ones
        outline += rough * rng.normal() * 3 / wave**1.5 * np.cos(wave * direction + rng.uniform(0, 2 * np.pi))
    depth = (1 - np.hypot(along, across) / np.clip(outline, 0.5, 1.5)) * short
    return Nucleus(
        (slice(top, bottom), slice(left, right)), depth > 0, np.maximum(depth, 0), radius, np.asarray(centre)
    )


def _fits(labels, nuclei, new):
    """Tell whether `new` may lie on top: it and all that it lies on must be in view, each in one piece."""
    beneath = labels[new.window][new.inside]
    if new.inside.sum() < SMALLEST or (beneath > 0).mean() > 0.3 or ndi.label(new.inside)[1] != 1:
        return False
    trial = labels.copy()
    trial[new.window][new.inside] = -1
    for number in np.unique(beneath[beneath > 0]):
        old = nuclei[number - 1]
        rest = trial[old.window] == number
        if rest.sum() < max(SMALLEST, 0.7 * old.inside.sum()) or ndi.label(rest)[1] != 1:
            return False
    return True


def _scatter(rng, size, count, radius, spread=0.15, stretch=1.3, rough=0.05, touching=0.2, clumps=0.5):
    """Scatter about `count` nuclei, a share of them against or partly over another; return a label map and the list."""
    labels, nuclei = np.zeros(size, np.int32), []
    crowd = clumps * _clouds(rng, size, min(size) / 6)
    flow = rng.uniform(0, np.pi) + _clouds(rng, size, min(size) / 4)
    for _ in range(12 * count):
        if len(nuclei) >= count:
            break
        own_radius = radius * np.exp(np.clip(spread * rng.normal(), -0.7, 0.5))
        if nuclei and rng.random() < touching:
            neighbour = nuclei[rng.integers(len(nuclei))]
            turn = rng.uniform(0, 2 * np.pi)
            step = rng.uniform(0.8, 1.1) * (neighbour.radius + own_radius)
            centre = neighbour.centre + step * np.array([np.sin(turn), np.cos(turn)])
        else:
            centre = rng.uniform(-0.5 * own_radius, np.array(size) + 0.5 * own_radius)
        at = tuple(np.clip(centre.astype(int), 0, np.array(size) - 1))
        own_stretch = 1 + (stretch - 1) * rng.gamma(4, 0.25)
        angle = flow[at] + 0.4 * rng.normal()
        new = _blob(rng, size, centre, own_radius, min(own_stretch, 3.0), angle, rough)
        if new is None or crowd[at] < rng.normal() - 1 or not _fits(labels, nuclei, new):
            continue
        nuclei.append(new)
        labels[new.window][new.inside] = len(nuclei)
    return labels, nuclei


def _fibres(rng, size, count, width=0.8):
    """Draw `count` bent threads across the field, from 0 to about 1."""
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
    """Draw `count` crumbs of debris, from 0 to 1."""
    canvas = np.zeros(size)
    for _ in range(count):
        crumb = _blob(rng, size, rng.uniform(0, size), rng.uniform(0.7, largest), rng.uniform(1, 2.5), rough=0.2)
        canvas[crumb.window][crumb.inside] = rng.uniform(0.3, 1)
    return canvas


def _uneven_light(rng, size, strength):
    """Brightness of the lamp over the field, about 1: a slope, and darker corners."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    slope = rng.uniform(-1, 1) * rows + rng.uniform(-1, 1) * columns
    return 1 + strength * (0.5 * slope - 0.3 * (rows**2 + columns**2))


def _stray_light(rng, size):
    """One wide glow from near the edge of the field, from 0 to 1."""
    rows, columns = np.indices(size)
    centre = np.where(rng.random(2) < 0.5, -0.1, 0.9) * size + rng.uniform(0, 0.2, 2) * size
    return np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * (0.3 * min(size)) ** 2))


def _record(rng, picture, shot, read):
    """Turn brightness (0 to 255, grey or RGB) into 8-bit RGB, with shot noise and the camera's own."""
    noise = np.sqrt(shot**2 * np.maximum(picture, 0) + read**2) * rng.standard_normal(picture.shape)
    picture = np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def _haze(rng, size, nuclei):
    """Faint light that is no nucleus in focus: cell bodies, threads, nuclei of another storey."""
    haze, strength = np.zeros(size), rng.choice([0, 0.04, 0.1])
    for nucleus in nuclei:
        reach = nucleus.radius * rng.uniform(1.5, 3)
        body = _blob(rng, size, nucleus.centre, reach, rng.uniform(1, 3), rng.uniform(0, np.pi), 0.2)
        haze[body.window] += strength * rng.uniform(0.3, 1) * body.inside
    ghosts = 0.15 * _specks(rng, size, rng.integers(0, 7), 10)
    threads = rng.uniform(0.01, 0.05) * _fibres(rng, size, rng.choice([0, 0, 6, 20]))
    return ndi.gaussian_filter(haze, 2) + ndi.gaussian_filter(ghosts, rng.uniform(2, 6)) + threads


def _fluorescence(rng, size, scene, edge, reach, brightest):
    """Light nuclei up on black. `edge` is the brightness at the rim, `reach` how deep it rises to 1."""
    labels, nuclei = scene
    focus, soft_share = rng.uniform(0.7, 1.3), rng.choice([0, 0.05, 0.3])
    grain, contrast = rng.uniform(0.1, 0.35), rng.uniform(0.1, 0.5)
    chromatin = _clouds(rng, size, rng.uniform(0.9, 1.6)) + 0.5 * _clouds(rng, size, 4)
    sharp, soft = np.zeros(size), np.zeros(size)
    for nucleus in nuclei:
        brightness = np.clip(np.exp(contrast * rng.normal()), 0.3, 2.5)
        if rng.random() < 0.03:
            brightness *= rng.uniform(1.5, 3)  # dividing or dying: condensed and bright
        profile = edge + (1 - edge) * (1 - np.exp(-nucleus.depth / reach))
        body = nucleus.inside * brightness * profile * np.clip(1 + grain * chromatin[nucleus.window], 0.2, 2.5)
        layer = soft if rng.random() < soft_share else sharp
        seen = layer[nucleus.window]
        layer[nucleus.window] = np.maximum(seen, body) + 0.3 * np.minimum(seen, body)  # they shine through each other
    light = ndi.gaussian_filter(sharp, focus) + ndi.gaussian_filter(soft, rng.uniform(1.8, 2.6))
    light += rng.uniform(0.05, 0.3) * ndi.gaussian_filter(light, rng.uniform(2.5, 8))  # glow
    light += 0.4 * ndi.gaussian_filter(_specks(rng, size, rng.integers(0, 8)), 0.7) + _haze(rng, size, nuclei)
    light += rng.choice([0, 0, 0, 0, 0.5]) * _stray_light(rng, size)
    light *= np.exp(rng.uniform(np.log(14), np.log(brightest))) * _uneven_light(rng, size, rng.uniform(0, 0.5))
    background = rng.choice([2, 4, 5, 7, 12, 14])
    return _record(rng, background + light, rng.uniform(0.05, 0.25), rng.choice([0.3, 0.5, 0.7, 1.3])), labels


def _small(rng, size):
    """Fluorescent nuclei at low magnification."""
    radius = rng.choice([4.5, 5.5, 6.5, 8, 10, 12.5])
    count = int(rng.uniform(0.03, 0.25) * size[0] * size[1] / (np.pi * radius**2)) + 3
    rough, touching = rng.uniform(0.02, 0.07), rng.uniform(0.1, 0.4)
    stretch, clumps = rng.uniform(1.1, 1.7), rng.uniform(0, 1.5)
    scene = _scatter(rng, size, count, radius, rng.uniform(0.1, 0.25), stretch, rough, touching, clumps)
    return _fluorescence(rng, size, scene, edge=0.85, reach=2, brightest=130)


def _large(rng, size):
    """Fluorescent nuclei at high magnification; some are bent like a kidney."""
    radius = rng.choice([17, 20, 22, 25])
    count = int(rng.uniform(0.15, 0.35) * size[0] * size[1] / (np.pi * radius**2)) + 2
    scene = _scatter(rng, size, count, radius, 0.2, rng.uniform(1.3, 1.7), rng.uniform(0.03, 0.08), 0.2, 0.3)
    return _fluorescence(rng, size, scene, edge=0.65, reach=5, brightest=70)


def _stained(rng, size, scene, lamp, dye, tissue, clump):
    """Let the light of `lamp` (RGB) through nuclei that hold `dye` (absorbance, RGB) and through `tissue` (H, W, 3).

    By Beer and Lambert, absorbances of what lies in the light's way add up, and brightness falls as exp(-absorbance).
    """
    labels, nuclei = scene
    chromatin = _clouds(rng, size, clump)
    sharp, soft = np.zeros(size), np.zeros(size)
    for nucleus in nuclei:
        amount, grain = rng.uniform(0.35, 1.0), rng.uniform(0.1, 0.5)
        rim = 1 + 0.25 * np.exp(-nucleus.depth / 1.5)  # chromatin lines the envelope
        body = nucleus.inside * amount * rim * np.clip(1 + grain * chromatin[nucleus.window], 0.3, 2)
        layer = soft if rng.random() < 0.12 else sharp
        layer[nucleus.window] = np.maximum(layer[nucleus.window], body)
    ghosts = ndi.gaussian_filter(_specks(rng, size, rng.integers(2, 7), 14), 6)  # another storey of the section
    amount = ndi.gaussian_filter(sharp, rng.uniform(0.8, 1.2)) + ndi.gaussian_filter(soft, 2.2) + 0.35 * ghosts
    absorbance = amount[..., None] * dye + tissue
    picture = lamp * np.exp(-absorbance) * _uneven_light(rng, size, 0.06)[..., None]
    return _record(rng, picture, 0.05, 0.6), labels


def _purple_on_white(rng, size):
    """Haematoxylin and eosin: blood or marrow, crumpled nuclei among pale ghosts of red cells."""
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
    """Haematoxylin on stained tissue: streaky ground, dark and pale nuclei, at one of two magnifications."""
    radius = rng.choice([7, 8, 10, 17])
    count = int(rng.uniform(0.12, 0.35) * size[0] * size[1] / (np.pi * radius**2)) + 2
    scene = _scatter(rng, size, count, radius, 0.2, 1.7, 0.06, 0.35, 1.0)
    streaks = _clouds(rng, size, 1.5) + 2 * _clouds(rng, size, 6) + 5 * _fibres(rng, size, 25, 1.2)
    crowded = ndi.gaussian_filter((scene[0] > 0).astype(float), 12)
    tissue = (0.012 * streaks + 0.35 * crowded)[..., None] * np.array([0.7, 1.0, 0.2])
    lamp = np.array([179, 160, 204]) + rng.normal(0, 2)
    return _stained(rng, size, scene, lamp, np.array([0.75, 1.75, 0.11]), tissue, rng.uniform(1.2, 2))


def _smear(rng, size):
    """Grey brightfield: flat cells with folded rims on white, a small dark nucleus in each, crumbs and bacteria."""
    count = max(4, size[0] * size[1] // 13000)
    labels, nuclei = _scatter(rng, size, count, rng.uniform(7, 10), 0.25, 1.4, 0.03, 0.1, 1.0)
    absorbance = 0.7 * ndi.gaussian_filter(_specks(rng, size, rng.integers(4, 12), 2.5), 0.6)
    absorbance += 0.15 * ndi.gaussian_filter(_specks(rng, size, size[0] * size[1] // 500, 1.5), 0.6)
    texture = _clouds(rng, size, 1.2) + _clouds(rng, size, 5) + 6 * _fibres(rng, size, 10, 1.5)
    for nucleus in nuclei:
        centre = nucleus.centre + rng.normal(0, 8, 2)
        cell = _blob(rng, size, centre, rng.uniform(30, 48), rng.uniform(1, 1.5), rng.uniform(0, np.pi), 0.16)
        body = rng.uniform(0.12, 0.3) * (1 + 0.12 * texture[cell.window]) + 0.15 * np.exp(-cell.depth / 1.5)
        absorbance[cell.window] += cell.inside * body
    for number, nucleus in enumerate(nuclei, start=1):
        seen = labels[nucleus.window] == number
        body = rng.uniform(0.45, 0.95) * (1 + 0.15 * texture[nucleus.window])
        absorbance[nucleus.window] += seen * body
    picture = 230 * np.exp(-ndi.gaussian_filter(absorbance, 0.8)) * _uneven_light(rng, size, 0.05)
    return _record(rng, picture, 0.08, 1.0), labels


_PAINTERS = {
    "fluorescence_small": _small,
    "fluorescence_large": _large,
    "purple_on_white": _purple_on_white,
    "purple_on_purple": _purple_on_purple,
    "grey_tissue": _smear,
}


def sample_table(seed=0):
    """List the images of the sample.

    Parameters
    ----------
    seed : int
        As for `write_sample`.

    Returns
    -------
    list of dict
        For each image, in the order of `COUNTS`: `id` (64 hex digits), `image_type`, `group` (images with the same group show
        the same field, and belong on one side of a split), `field` (its number within the image_type), `size` (rows,
        columns), `corner` (row and column, in the drawn field, of the image's upper left), `channels`
        (3 for an RGB file, 4 for RGBA), `error` (a key of `ERRORS`, or "").
    """
    spoiled = {number: error for error, numbers in ERRORS.items() for number in numbers}
    rows = []
    for image_type, count in COUNTS.items():
        for index in range(count):
            # In each image_type the last image is the field of the one before, moved by a quarter: a near-duplicate.
            twin = index == count - 1
            field = min(index, count - 2)
            size = SIZES[field % len(SIZES)]
            rows.append(
                {
                    "id": hashlib.sha256(f"{image_type} {seed} {index}".encode()).hexdigest(),
                    "image_type": image_type,
                    "group": f"{image_type}-{field:02d}",
                    "field": field,
                    "size": size,
                    "corner": (size[0] // 8, size[1] // 4) if twin else (0, 0),
                    "channels": 3 if len(rows) % 3 == 2 else 4,
                    "error": spoiled.get(len(rows), ""),
                }
            )
    return rows


def _draw_row(row, seed):
    """Draw the image of one row of `sample_table`, a window of its field, with its label error."""
    image_type, field, (height, width), (top, left) = row["image_type"], row["field"], row["size"], row["corner"]
    shared = field == COUNTS[image_type] - 2  # two windows look on this field, so it is larger
    drawn = (height + height // 8, width + width // 4) if shared else (height, width)
    image, masks = draw(image_type, [seed, list(COUNTS).index(image_type), field], drawn)
    window = (slice(top, top + height), slice(left, left + width))
    masks = [mask[window] for mask in masks if mask[window].any()]
    rng = np.random.default_rng([seed, *bytes.fromhex(row["id"])])
    return image[window], _spoil(rng, masks, row["error"])


def _hollow(mask):
    """Punch a hole where the mask is deepest."""
    depth = ndi.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return mask & (depth < 0.6 * depth.max())


def _spoil(rng, masks, error):
    """Give the masks of one image one of the label errors of the real set."""
    chosen = sorted(range(len(masks)), key=lambda number: -masks[number].sum())[: max(1, len(masks) // 4)]
    if error == "missed":
        return [mask for number, mask in enumerate(masks) if number not in chosen[::2]]
    if error == "hole":
        return [_hollow(mask) if number in chosen[:3] else mask for number, mask in enumerate(masks)]
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
    """Encode an 8-bit image the same way every time."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=6)
    return file.getvalue()


def write_sample(path, seed=0):
    """Draw the sample and write it as a zip archive laid out like the real one.

    Each image is `<id>/images/<id>.png`, RGB or RGBA, and each nucleus `<id>/masks/<name>.png`, 8-bit, 0 or 255. The
    same seed gives the same bytes (with the same versions of NumPy, SciPy and Pillow).

    Parameters
    ----------
    path : str or os.PathLike
        The archive; replaced only when the new one is whole.
    seed : int
        Which sample to draw; the course uses 0.

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
            # Fixed here, because they would tell the operating system and the file's rights.
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, members[name])
    return path


if __name__ == "__main__":
    print(write_sample(Path(__file__).parents[1] / "data" / "sample.zip"))
