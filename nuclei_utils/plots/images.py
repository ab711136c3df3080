"""Draw outlines or colours of nuclei over an image (overlays), and show images side by side."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy.ndimage import center_of_mass
from skimage.segmentation import find_boundaries, mark_boundaries

from nuclei_utils.labels import distance_map, touching_pairs
from nuclei_utils.plots import style
from nuclei_utils.plots.style import BLACK, BLUE, CYCLE, GREEN, ORANGE, PURPLE, RED, SKY, YELLOW

Images = Sequence[np.ndarray]


def overlay(image: np.ndarray, label_map: np.ndarray, colour: str = ORANGE) -> np.ndarray:
    """Draw the borders of nuclei into an image.

    `label_map` is a label map or mask. The result is uint8 (H, W, 3).

    Examples
    --------
    >>> overlay(np.zeros((3, 4)), np.array([[0, 0, 0, 0], [0, 7, 0, 0], [0, 0, 0, 0]]), "white")[..., 0]
    array([[  0,   0,   0,   0],
           [  0, 255,   0,   0],
           [  0,   0,   0,   0]], dtype=uint8)
    """
    marked = mark_boundaries(style._as_rgb(image), np.asarray(label_map).astype(int), to_rgb(colour), mode="inner")
    return (marked * 255).round().astype(np.uint8)


def colour_labels(label_map: np.ndarray) -> np.ndarray:
    """Colour each nucleus on black, uint8 (H, W, 3).

    Touching nuclei get different colours.

    Examples
    --------
    >>> colour_labels(np.array([[0, 1, 2]])).tolist()
    [[[0, 0, 0], [86, 180, 233], [0, 158, 115]]]
    """
    label_map = np.asarray(label_map)
    palette = _palette(ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE)
    colour_of = np.arange(label_map.max(initial=0) + 1) % len(palette)
    neighbours = defaultdict(set)
    for first, second in touching_pairs(label_map).tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    # colour the nuclei with the fewest neighbours last: six colours are then enough for a planar map
    remaining, order = set(neighbours), []
    while remaining:
        order.append(min(remaining, key=lambda label: len(neighbours[label] & remaining)))
        remaining.remove(order[-1])
    coloured = set()
    for label in reversed(order):
        taken = {colour_of[neighbour] for neighbour in neighbours[label] & coloured}
        candidates = (colour_of[label] + np.arange(len(palette))) % len(palette)
        colour_of[label] = next((colour for colour in candidates if colour not in taken), colour_of[label])
        coloured.add(label)
    return palette[colour_of][label_map] * (label_map > 0)[..., None]


def _palette(*colours):
    """Return matplotlib colours as a uint8 array (colours, 3)."""
    return (to_rgba_array(colours)[:, :3] * 255).round().astype(np.uint8)


def label_overlay(image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """Tint and outline each nucleus of an image.

    Touching nuclei get different colours. The result is uint8 (H, W, 3).

    Examples
    --------
    >>> label_overlay(np.zeros((3, 3)), np.ones((3, 3), int))[1].tolist()
    [[43, 90, 116], [43, 90, 116], [43, 90, 116]]
    """
    label_map = np.asarray(label_map)
    opacity = np.where(find_boundaries(label_map, mode="inner"), 1, 0.5 * (label_map > 0))[..., None]
    return ((1 - opacity) * style._as_rgb(image) + opacity * colour_labels(label_map)).round().astype(np.uint8)


def error_map(mask: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Colour the errors of a predicted mask: uint8 array (H, W, 3).

    White: true positive. Orange: false negative. Blue: false positive. Black: true negative.

    Examples
    --------
    >>> error_map(np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])).tolist()
    [[[255, 255, 255], [230, 159, 0], [0, 114, 178], [0, 0, 0]]]
    """
    return _palette(BLACK, ORANGE, BLUE, "white")[(np.asarray(mask) > 0) + 2 * (np.asarray(predicted) > 0)]


def crop_nucleus(
    image: np.ndarray, label_map: np.ndarray, label: int, size: int = 64, colour: str = ORANGE
) -> np.ndarray:
    """Crop an image around one outlined nucleus: uint8 array (height, width, 3).

    The crop has at least `size` rows and columns, if the image is large enough.

    Examples
    --------
    >>> crop_nucleus(np.zeros((100, 80)), np.eye(100, 80, dtype=int), 1, size=32).shape
    (88, 80, 3)
    """
    mask = np.asarray(label_map) == label
    if not mask.any():
        raise ValueError(
            f"label {label} does not occur: the labels run from {np.min(label_map)} to {np.max(label_map)}"
        )
    crop = []
    for positions, length in zip(np.nonzero(mask), mask.shape, strict=True):
        first, last = positions.min(), positions.max()
        extent = min(max(size, last - first + 9), length)  # 4 pixels around a large nucleus
        start = np.clip((first + last + 1 - extent) // 2, 0, length - extent)
        crop.append(slice(start, start + extent))
    return overlay(image, mask, colour)[tuple(crop)]


def show_images(
    images: Images, titles: Sequence[str] = (), columns: int = 4, size: float = 2.4, title: str | None = None
) -> Figure:
    """Show images in a grid, with an optional title above each image.

    Examples
    --------
    >>> fig = show_images([np.zeros((8, 8)), np.ones((8, 8))], ["black", "white"])
    >>> [ax.get_title() for ax in fig.axes]
    ['black', 'white']
    """
    images, starts = list(images), range(0, len(images), columns)
    rows = [images[start : start + columns] for start in starts]
    return show_image_rows(rows, titles=[titles[start : start + columns] for start in starts], size=size, title=title)


def show_samples(records: Sequence, columns: int = 4, outlines: bool = False, size: float = 2.4) -> Figure:
    """Show the images of records.

    The title of an image has its image type and its number of nuclei.
    """
    images = [overlay(record.image, record.label_map) if outlines else record.image for record in records]
    counts = [len(np.unique(record.label_map[record.label_map > 0])) for record in records]
    titles = [f"{style._readable(r.image_type)}\n{count} nuclei" for r, count in zip(records, counts, strict=True)]
    return show_images(images, titles, columns, size)


def show_image_rows(
    rows: Iterable[Images],
    names: Iterable[str] = (),
    titles: Iterable[Sequence[str]] = (),
    captions: Iterable[Sequence[str]] = (),
    size: float = 1.2,
    title: str | None = None,
    cmap: str = "gray",
) -> Figure:
    """Show rows of images, with a name for each row.

    Rows may differ in length. `titles` and `captions` give the text above and below each image, by row; missing rows
    have no text. `cmap` is the colour map of float arrays (H, W).

    Examples
    --------
    >>> fig = show_image_rows([[np.zeros((8, 8)), np.ones((8, 8))]], names=["sample"])
    >>> fig.axes[0].get_ylabel()
    'sample'
    """
    rows, titles, captions = list(rows), list(titles), list(captions)
    columns = max(map(len, rows))
    lines = sum(max((text.count("\n") + 1 for text in texts), default=0) for texts in titles + captions)
    height = len(rows) * (size + 0.05) + 0.2 * lines + (0.3 if title else 0)
    fig, axes = style._new_figure(len(rows), columns, columns * size + 0.3, height, title)
    for row, images in zip(axes, rows, strict=True):
        for ax, image in zip(row, images, strict=False):
            image = np.asarray(image)
            is_map = image.ndim == 2 and image.dtype.kind == "f"
            style._draw_image(ax, image if is_map else style._as_rgb(image), size, cmap=cmap, vmin=0, vmax=1)
    for ax, name in zip(axes[:, 0], names, strict=False):
        ax.set_ylabel(name, fontsize=10, rotation=0, ha="right", va="center")
    for write, fontsize, table in ((Axes.set_title, 10, titles), (Axes.set_xlabel, 9, captions)):
        for row, texts in zip(axes, table, strict=False):
            for ax, text in zip(row, texts, strict=False):
                write(ax, text, fontsize=fontsize)
    for ax in axes.flat:
        ax.set_visible(bool(ax.images))
    return fig


def show_predictions(
    images: Images,
    masks: Images,
    probabilities: Images,
    dice: Sequence[float] = (),
    title: str | None = None,
    size: float = 2.1,
) -> Figure:
    """Show image, truth, predicted probability and errors, one row per image.

    `masks` are true masks or label maps. `probabilities` are float or bool arrays (H, W) in [0, 1]; the predicted mask
    is `probability > 0.5`. `dice` gives the Dice of each image for the captions.

    Examples
    --------
    >>> fig = show_predictions([np.zeros((8, 8, 3))], [np.eye(8)], [np.eye(8)], dice=[1])
    >>> fig.axes[3].get_xlabel()
    'Dice 1.00'
    """
    rows = []
    for image, mask, probability in zip(images, masks, probabilities, strict=True):
        mask, probability = np.asarray(mask) > 0, np.asarray(probability, float)
        rows.append([image, mask, probability, error_map(mask, probability > 0.5)])
    titles = ["image", "truth", "probability of nucleus", "errors"]
    captions = [["", "", "", f"Dice {score:.2f}"] for score in dice]
    fig = show_image_rows(rows, titles=[titles], captions=captions, size=size, title=title, cmap="viridis")
    key = {"true positive": "white", "false negative (missed)": ORANGE, "false positive": BLUE}
    style._legend_below(fig, [Patch(facecolor=colour, edgecolor=BLACK, label=name) for name, colour in key.items()])
    return fig


def show_pairs(
    images: Images, masks: Images, titles: Sequence[str] = (), size: float = 1.3, title: str | None = None
) -> Figure:
    """Show images with outlined nuclei above their masks or label maps.

    Examples
    --------
    >>> len(show_pairs([np.zeros((8, 8, 3))], [np.eye(8)]).axes)
    2
    """
    masks = [np.asarray(mask).reshape(np.shape(image)[:2]) > 0 for image, mask in zip(images, masks, strict=True)]
    overlays = [overlay(image, mask) for image, mask in zip(images, masks, strict=True)]
    return show_image_rows([overlays, masks], titles=[titles], size=size, title=title)


def show_histograms(images: Images, titles: Sequence[str], title: str | None = None) -> Figure:
    """Show images above the histograms of their values.

    A histogram covers the range of the data type.

    Examples
    --------
    >>> len(show_histograms([np.zeros((8, 8, 3), np.uint8)], ["black"]).axes)
    2
    """
    fig, axes = style._new_figure(2, len(images), 2.9 * len(images), 4.4, title)
    for (above, below), image, name in zip(axes.T, images, titles, strict=True):
        style._draw_image(above, style._as_rgb(image), 1.9)
        above.set_title(name, fontsize=10)
        highest = 255 if image.dtype == np.uint8 else 1
        below.hist(np.ravel(image), bins=64, range=(0, highest), color=BLUE, log=True)
        below.set(xlim=(0, highest), xlabel="pixel value")
    axes[1, 0].set_ylabel("number of values")
    return fig


def numbered_labels(label_maps: Images, titles: Sequence[str]) -> Figure:
    """Show coloured label maps with the label on each nucleus.

    Examples
    --------
    >>> fig = numbered_labels([np.array([[0, 1], [7, 7]])], ["two nuclei"])
    >>> [text.get_text() for text in fig.axes[0].texts]
    ['1', '7']
    """
    fig = show_images([colour_labels(label_map) for label_map in label_maps], titles, len(label_maps), size=4.2)
    for ax, label_map in zip(fig.axes, label_maps, strict=True):
        _write_labels(ax, label_map, 12, BLACK, "white")
    return fig


def show_measurements(
    image: np.ndarray,
    label_map: np.ndarray,
    groups: Mapping[str, Sequence[float]],
    xlabel: str,
    title: str | None = None,
) -> Figure:
    """Show an image with numbered nuclei beside the histogram of a measurement.

    `groups` gives the measurements of the nuclei by the name of their image. The bars of the images are stacked.

    Examples
    --------
    >>> fig = show_measurements(np.zeros((8, 8, 3)), np.eye(8, dtype=int), {"a": [8]}, "area (pixels)")
    >>> fig.axes[1].get_xlabel()
    'area (pixels)'
    """
    fig, ((left, right),) = style._new_figure(1, 2, 10, 4.6, title, width_ratios=(1, 1.15))
    style._draw_image(left, overlay(image, label_map), 4.4)
    _write_labels(left, label_map, 8, "white", BLACK)
    values = [np.asarray(group, float) for group in groups.values()]
    look = {"color": list(islice(cycle(CYCLE), len(groups))), "edgecolor": "white", "linewidth": 0.5}
    right.hist(values, 24, stacked=True, label=list(map(style._readable, groups)), **look)
    right.set(xlabel=xlabel, ylabel="number of nuclei")
    right.legend(frameon=False)
    right.grid(alpha=0.4, axis="y")
    return fig


def _write_labels(ax, label_map, fontsize, colour, outline):
    """Write each label at the deepest point of its nucleus."""
    labels = np.unique(label_map[label_map > 0])
    centres = center_of_mass(distance_map(label_map) == 1, label_map, labels)
    for label, (y, x) in zip(labels, centres, strict=True):
        text = ax.text(x, y, str(label), ha="center", va="center", color=colour, fontsize=fontsize)
        text.set_path_effects([withStroke(linewidth=fontsize / 4, foreground=outline)])
