"""Every figure of the course. Functions take arrays and tables, draw, and return the matplotlib figure."""

from collections import defaultdict
from itertools import cycle, pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from imageio.v3 import imwrite
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from PIL import Image
from scipy.ndimage import center_of_mass
from skimage.segmentation import find_boundaries

from nuclei_utils import preprocess
from nuclei_utils.files import atomic_write
from nuclei_utils.labels import distance_map, touching_pairs

# Okabe & Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/)
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK, YELLOW)


def rgb(colour):
    """Return a colour as three numbers 0..255, uint8."""
    return (np.array(plt.matplotlib.colors.to_rgb(colour)) * 255).round().astype(np.uint8)


# Pictures as arrays


def overlay(image, labels, colour=ORANGE, thickness=1):
    """Draw the outlines of nuclei into an image.

    Parameters
    ----------
    image : uint8 array (H, W, 3) or float array in [0, 1]
    labels : int or bool array (H, W)
        Label map or mask.
    colour : str
    thickness : int
        1 draws the nuclei's own border pixels, 2 also the pixels just outside.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    drawn = as_uint8(image).copy()
    drawn[find_boundaries(np.asarray(labels).astype(int), mode="inner" if thickness == 1 else "thick")] = rgb(colour)
    return drawn


def as_uint8(image):
    """Return an image or a mask as a picture that can be shown.

    Parameters
    ----------
    image : array (H, W), (H, W, 1) or (H, W, 3)
        uint8; bool; or float in [0, 1], of which what lies outside is clipped.

    Returns
    -------
    uint8 array (H, W, 3)

    Raises
    ------
    ValueError
        If the array holds other integers: nothing says which of them is white.
    """
    image = np.asarray(image)
    if image.dtype.kind in "iu" and image.dtype != np.uint8:
        raise ValueError(
            f"cannot tell which value is white in an array of {image.dtype} from {image.min()} to {image.max()}: "
            "show a label map with plots.colour_labels, a mask as `mask > 0`; read a 16-bit image with data.read_image"
        )
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    return np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image


def colour_labels(labels):
    """Paint each nucleus of a label map in one of seven colours, on black; those that touch differ.

    Parameters
    ----------
    labels : int array (H, W)

    Returns
    -------
    uint8 array (H, W, 3)
    """
    labels = np.asarray(labels)
    palette = np.stack([rgb(colour) for colour in (ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE)])
    chosen = np.arange(labels.max(initial=0) + 1) % len(palette)
    touching = defaultdict(set)
    for one, other in touching_pairs(labels).tolist():
        touching[one].add(other)
        touching[other].add(one)
    waiting, order = set(touching), []
    while waiting:  # who has fewest neighbours left is painted last: six colours then do for any map in the plane
        order.append(min(waiting, key=lambda number: len(touching[number] & waiting)))
        waiting.remove(order[-1])
    painted = set()
    for number in reversed(order):
        taken = {chosen[other] for other in touching[number] & painted}
        turns = (chosen[number] + np.arange(len(palette))) % len(palette)
        chosen[number] = next((colour for colour in turns if colour not in taken), chosen[number])
        painted.add(number)
    colours = palette[chosen]
    colours[0] = 0
    return colours[labels]


def instance_overlay(image, labels, opacity=0.5):
    """Tint each nucleus of an image in a colour and draw its outline in it; nuclei that touch differ.

    Parameters
    ----------
    image : uint8 array (H, W, 3) or float array in [0, 1]
    labels : int array (H, W)
        Label map.
    opacity : float
        Of the tint, 0..1; the outlines cover what lies below.

    Returns
    -------
    uint8 array (H, W, 3)
    """
    labels = np.asarray(labels)
    picture, colours = as_uint8(image), colour_labels(labels)
    tinted = ((1 - opacity) * picture + opacity * colours).round().astype(np.uint8)
    drawn = np.where((labels > 0)[..., None], tinted, picture)
    outline = find_boundaries(labels, mode="inner")
    drawn[outline] = colours[outline]
    return drawn


def error_map(mask, predicted):
    """Show where a predicted mask is right, misses nucleus, or invents it.

    Parameters
    ----------
    mask, predicted : bool array (H, W)

    Returns
    -------
    uint8 array (H, W, 3)
        White: found; orange: missed; blue: invented; black: background left alone.
    """
    mask, predicted = np.asarray(mask) > 0, np.asarray(predicted) > 0
    picture = np.zeros((*mask.shape, 3), np.uint8)
    picture[mask & predicted] = 255
    picture[mask & ~predicted] = rgb(ORANGE)
    picture[~mask & predicted] = rgb(BLUE)
    return picture


def zoom(image, labels, number, size=64, colour=ORANGE):
    """Cut out one nucleus with what lies around it, its outline drawn.

    Parameters
    ----------
    image : array (H, W, 3)
    labels : int array (H, W)
        Label map.
    number : int
        The nucleus's label.
    size : int
        Least height and width of the cut-out, pixels; less only where the image is smaller.
    colour : str
        Of the outline.

    Returns
    -------
    uint8 array (at least size, at least size, 3)

    Raises
    ------
    ValueError
        If no pixel carries the label.
    """
    mask = np.asarray(labels) == number
    if not mask.any():
        raise ValueError(f"label {number} does not occur: the labels run from {np.min(labels)} to {np.max(labels)}")
    window = []
    for axis, length in enumerate(mask.shape):
        hits = np.flatnonzero(mask.any(axis=1 - axis))
        extent = min(max(size, hits[-1] - hits[0] + 9), length)  # 4 pixels around a nucleus larger than the window
        start = np.clip((hits[0] + hits[-1] + 1 - extent) // 2, 0, length - extent)
        window.append(slice(start, start + extent))
    return overlay(image, mask, colour)[tuple(window)]


# Figures


def grid(pictures, titles=None, columns=4, size=2.4, title=None):
    """Show pictures in a grid.

    Parameters
    ----------
    pictures : sequence of array (H, W), (H, W, 1) or (H, W, 3)
        As `as_uint8` takes them: shown from 0 to 1 (float, bool) or 0 to 255 (uint8).
    titles : sequence of str, optional
        One for each picture.
    columns : int
    size : float
        Width and height of one picture, inches.
    title : str, optional
        Over the whole figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = -(-len(pictures) // columns)
    lines = max((name.count("\n") + 1 for name in titles or []), default=1)
    height = rows * (size + 0.1 + 0.2 * lines)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, height), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for index, picture in enumerate(pictures):
        axis = axes.flat[index]
        _draw(axis, as_uint8(picture), size)
        if titles is not None:
            axis.set_title(titles[index], fontsize=10)
    if title:
        figure.suptitle(title)
    return figure


def show_samples(records, columns=4, outlines=False, size=2.4, title=None):
    """Show images, with the kind and the number of nuclei above each.

    Parameters
    ----------
    records : sequence of data.Record
    columns : int
    outlines : bool
        Draw the nuclei's outlines.
    size : float
        Width and height of one picture, inches.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    pictures = [overlay(r.image, r.label_map) if outlines else r.image for r in records]
    titles = [f"{r.image_type.replace('_', ' ')}\n{len(np.unique(r.label_map)) - 1} nuclei" for r in records]
    return grid(pictures, titles, columns, size, title)


def _draw(axis, picture, inches, **colours):
    """Show a picture: enlarged with sharp pixels, shrunk by averaging, so that no thin line is lost.

    `inches` is the side of the square it gets, with the margins; `colours` go to `imshow` and take effect on a picture
    that has no colours of its own.
    """
    enlarged = max(picture.shape[:2]) < 0.9 * inches * axis.figure.dpi  # a tenth for the margins
    axis.imshow(picture, interpolation="nearest" if enlarged else "antialiased", **colours)


def _head(figure, title):
    """Write a title over a whole figure, a tenth of an inch below its edge: by default, the taller the lower."""
    if title:
        figure.suptitle(title, y=1 - 0.1 / figure.get_figheight())


def contact_sheet(rows, columns=5, size=1.1, title=None):
    """Show many small pictures, sorted into named rows.

    Parameters
    ----------
    rows : dict of str to sequence of array (H, W) or (H, W, 3)
        Pictures by the name of their row. Of each, the largest square in the middle is shown.
    columns : int
        Most pictures shown of each row.
    size : float
        Width and height of one picture, inches.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns * size + 1.6, len(rows) * size), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, picture in zip(line, pictures, strict=False):
            _draw(axis, preprocess.center_crop(as_uint8(picture), [min(picture.shape[:2])] * 2), size)
        line[0].text(-0.1, 0.5, name, ha="right", va="center", fontsize=10, transform=line[0].transAxes)
    _head(figure, title)
    figure.tight_layout(pad=0.4)
    return figure


def _middle_square(picture):
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def scatter(table, x, y, by, title=None):
    """Plot two columns of a table against each other, a colour and a marker for each group.

    Parameters
    ----------
    table : pandas.DataFrame
    x, y : str
        Columns with numbers; their names label the axes.
    by : str
        Column with the group of each row.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(6, 4))
    for (name, group), (colour, marker) in zip(table.groupby(by), _looks(), strict=False):
        axis.plot(group[x], group[y], marker, color=colour, alpha=0.7, label=str(name))
    axis.set(xlabel=x, ylabel=y, title=title)
    axis.legend(title=by, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def _looks():
    """Colours and markers for groups, without end: who cannot tell the colours apart has the markers."""
    return zip(cycle(CYCLE), cycle("os^Dv*XP"), strict=True)


def spread(table, labels, by="image_type", order=None, log=(), points=300, title=None):
    """Show how columns of a table spread in each group.

    Each value is a point; a box reaches from quartile to quartile, with a bar at the median.

    Parameters
    ----------
    table : pandas.DataFrame
    labels : dict of str to str
        The columns to show, one panel each, and what to write below its axis.
    by : str
        Column with the group of each row.
    order : sequence, optional
        The groups from top to bottom; those that do not occur are left out. Sorted if not given.
    log : sequence of str
        Columns to show on a logarithmic axis.
    points : int
        Most values drawn of each group; of more, a random choice. The boxes take in all.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = [name for name in order or sorted(table[by].unique()) if (table[by] == name).any()]
    figure, axes = plt.subplots(
        1, len(labels), figsize=(1.4 + 3.4 * len(labels), 0.9 + 0.5 * len(names)), sharey=True, squeeze=False
    )
    rng = np.random.default_rng(0)
    for axis, (column, text) in zip(axes[0], labels.items(), strict=True):
        for height, (name, (colour, _)) in enumerate(zip(names, _looks(), strict=False)):
            values = table.loc[table[by] == name, column].dropna().to_numpy()
            low, middle, high = np.percentile(values, [25, 50, 75])
            axis.barh(height, high - low, left=low, height=0.7, fill=False, edgecolor=BLACK)
            axis.plot([middle, middle], [height - 0.35, height + 0.35], color=BLACK, linewidth=2.5)
            shown = rng.permutation(values)[:points]
            axis.plot(shown, height + rng.uniform(-0.3, 0.3, len(shown)), ".", color=colour, alpha=0.4, zorder=0)
        axis.set_xlabel(text)
        if column in log:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_yticks(range(len(names)), [str(name).replace("_", " ") for name in names])
    axes[0, 0].invert_yaxis()
    _head(figure, title)
    figure.tight_layout()
    return figure


def show_predictions(images, masks, probabilities, scores=None, threshold=0.5, title=None):
    """Show image, truth, predicted probability and errors side by side, one row per image.

    Parameters
    ----------
    images : sequence of array (H, W, 3)
    masks : sequence of array (H, W)
        True masks or label maps.
    probabilities : sequence of float or bool array (H, W)
        In [0, 1].
    scores : sequence of float, optional
        Dice of each image, for the caption.
    threshold : float
        A pixel is predicted nucleus where its probability is larger.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    heads = ("image", "truth", "probability of nucleus", "errors")
    size = 2.1
    figure, axes = plt.subplots(len(images), 4, figsize=(4 * size, (size + 0.1) * len(images) + 0.6), squeeze=False)
    for row, image, mask, probability in zip(axes, images, masks, probabilities, strict=True):
        mask, probability = np.asarray(mask) > 0, np.asarray(probability, float)
        pictures = as_uint8(image), as_uint8(mask), probability, error_map(mask, probability > threshold)
        for axis, picture in zip(row, pictures, strict=True):
            _draw(axis, picture, size, cmap="viridis", vmin=0, vmax=1)  # only the probability is without colours
            axis.set(xticks=[], yticks=[])
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=11)
    if scores is not None:
        for axis, score in zip(axes[:, 3], scores, strict=True):
            axis.set_xlabel(f"Dice {score:.2f}", fontsize=10)
    key = [
        Patch(facecolor="white", edgecolor="black", label="found"),
        Patch(facecolor=ORANGE, label="missed"),
        Patch(facecolor=BLUE, label="invented"),
    ]
    _head(figure, title)
    figure.legend(handles=key, ncols=3, loc="lower right", frameon=False, fontsize=10)
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
    return figure


def show_pairs(images, masks, titles=None, columns=5, size=1.3, title=None):
    """Show images with the outlines of their masks, and under each image its mask.

    Parameters
    ----------
    images : sequence of array (H, W, 3)
        uint8, or float in [0, 1].
    masks : sequence of array (H, W) or (H, W, 1)
        Masks or label maps.
    titles : sequence of str, optional
        One for each pair.
    columns : int
        Pairs in a row.
    size : float
        Width and height of one picture, inches.
    title : str, optional
        Over the whole figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    gap, head, line = 0.05, 0.35 if title else 0, 0.25 if titles is not None else 0  # inches
    rows = -(-len(images) // columns)
    width, height = columns * size, head + rows * (line + 2 * size)
    figure = plt.figure(figsize=(width, height))
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        row, column = divmod(index, columns)
        mask = np.asarray(mask).reshape(np.shape(image)[:2]) > 0
        top = height - head - row * (line + 2 * size) - line
        for bottom, picture in ((top - size, overlay(image, mask)), (top - 2 * size, as_uint8(mask))):
            place = (column * size + gap / 2, bottom + gap / 2, size - gap, size - gap)
            axis = figure.add_axes(np.array(place) / (width, height, width, height))
            _draw(axis, picture, size)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="grey", linewidth=0.8)  # a white mask would run into the white page
        if titles is not None:
            figure.axes[-2].set_title(titles[index], fontsize=10)
    _head(figure, title)
    return figure


def show_intensities(images, titles, columns=4, title=None):
    """Show images with the histogram of their values below.

    Parameters
    ----------
    images : sequence of array (H, W, 3)
        uint8 or float in [0, 1]; shown as they are, and the histogram's axis spans the whole range of the type.
    titles : sequence of str
    columns : int
        Images in a row.
    title : str, optional
        Over the whole figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(2 * rows, columns, figsize=(2.7 * columns, 4.6 * rows), squeeze=False)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for index, (image, name) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(index, columns)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        _draw(above, as_uint8(image), 1.7)
        above.set_title(name, fontsize=10)
        above.axis("off")
        top = 255 if image.dtype == np.uint8 else 1
        below.hist(np.ravel(image), bins=64, range=(0, top), color=BLUE, log=True)
        below.set(xlim=(0, top), xlabel="pixel value")
        below.axis("on")
        if column == 0:
            below.set_ylabel("number of values")
    _head(figure, title)
    figure.tight_layout()
    return figure


def speeds(rates, unit="images per second", title=None):
    """Compare speeds on a logarithmic axis: a point for each, the number written beside it.

    Parameters
    ----------
    rates : dict of str to float
        Name of each step, and how much it gets through; more than 0.
    unit : str
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(7.5, 0.45 * len(rates) + 1.2))
    for height, (rate, (colour, marker)) in enumerate(zip(rates.values(), _looks(), strict=False)):
        axis.plot(rate, height, marker, color=colour, markersize=9)
        text = f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
        axis.annotate(text, (rate, height), xytext=(9, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(rates)), list(rates))
    axis.set(ylim=(len(rates) - 0.4, -0.6), xscale="log", xlabel=unit, title=title)
    axis.set_xlim(min(rates.values()) / 2, 2 * max(rates.values()))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.4)
    figure.tight_layout()
    return figure


def falling_loss(losses, title=None):
    """Plot the loss of each step of a short training.

    Parameters
    ----------
    losses : sequence of float
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(6, 3))
    axis.plot(np.arange(1, len(losses) + 1), losses, color=BLUE)
    axis.set(xlabel="step", ylabel="loss", title=title, ylim=(0, None))
    figure.tight_layout()
    return figure


def learning_curves(history, names=("loss", "dice", "iou"), title=None):
    """Plot loss and metrics against the epoch, training beside validation, the best epoch marked.

    Parameters
    ----------
    history : pandas.DataFrame
        From `training.fit`.
    names : sequence of str
        Columns to plot; each needs its partner `val_…`.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), squeeze=False)
    epochs = history["epoch"] + 1
    # networks of several outputs have no `val_dice`, and are judged by the loss of all
    best = epochs[history["val_dice"].idxmax() if "val_dice" in history else history["val_loss"].idxmin()]
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot(epochs, history[name], "o-", color=BLUE, markersize=3, label="training")
        axis.plot(epochs, history[f"val_{name}"], "s-", color=ORANGE, markersize=3, label="validation")
        axis.axvline(best, color="grey", linestyle=":", label=f"best epoch ({best})")
        axis.set(xlabel="epoch", ylabel=name, title=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if name != "loss":
            axis.set_ylim(0, 1)
    axes[0, 0].legend()
    _head(figure, title)
    figure.tight_layout()
    return figure


def compare_curves(histories, column="val_dice", lowest=0.0, title=None):
    """Plot one column of several trainings against the epoch, the best epoch of each marked.

    Each line has dashes of its own, so that one that covers another can be told.

    Parameters
    ----------
    histories : dict of str to pandas.DataFrame
        From `training.fit`, by what the legend is to say.
    column : str
        To be high.
    lowest : float
        Where the axis begins; what lies below is not shown.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(7.5, 4))
    looks = zip(_looks(), cycle(["-", "--", "-.", ":"]))
    for (name, history), ((colour, marker), dashes) in zip(histories.items(), looks, strict=False):
        epochs, best = np.arange(1, len(history) + 1), int(np.argmax(history[column]))
        label = f"{name} (best {history[column].iloc[best]:.3f})"
        axis.plot(epochs, history[column], marker + dashes, color=colour, markersize=4, label=label)
        axis.plot(epochs[best], history[column].iloc[best], marker, color=colour, markersize=11, fillstyle="none")
    label = column.replace("val_", "validation ").replace("_", " ")
    axis.set(xlabel="epoch", ylabel=label, title=title, ylim=(lowest, 1))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.4)
    axis.legend(loc="lower right")
    figure.tight_layout()
    return figure


def by_share(table, score="Dice", title=None):
    """Plot a score against how many images were used, on a logarithmic axis, a line for each column.

    Parameters
    ----------
    table : pandas.DataFrame
        Indexed by the number of images; one column for each line.
    score : str
        What the numbers are.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for name, (colour, marker) in zip(table, _looks(), strict=False):
        axis.plot(table.index, table[name], marker + "-", color=colour, label=str(name))
    axis.set(xscale="log", xlabel=table.index.name or "images", ylabel=score, title=title, ylim=(0, 1))
    axis.set_xticks(table.index, [str(number) for number in table.index])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.4)
    axis.legend()
    figure.tight_layout()
    return figure


def architecture(model, title=None):
    """Draw an encoder-decoder network: its feature maps with their sizes, and its skip connections.

    Everything is read off the model: a block is a run of layers of one size.

    Parameters
    ----------
    model : keras.Model
        With a fixed input size.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the model leaves the image size open.
    """
    blocks, skips = _blocks(model)
    heights = [height for height, _, _ in blocks]
    drops = np.log2(max(heights) / np.array(heights))  # how far down a block is drawn: one step for each halving
    deepest = int(np.argmax(drops))
    figure, axis = plt.subplots(figsize=(min(1.3 * len(blocks), 14), 5))
    for x, ((height, width, channels), drop) in enumerate(zip(blocks, drops, strict=True)):
        colour = BLACK if x == len(blocks) - 1 else BLUE if x < deepest else ORANGE if x == deepest else GREEN
        axis.bar(x, 0.55, width=0.12 + 0.1 * np.log2(channels), bottom=-drop, color=colour, zorder=3)
        axis.text(
            x,
            -drop - 0.08,
            f"{height} x {width}\n{channels} {'maps' if channels > 1 else 'map'}",
            ha="center",
            va="top",
            fontsize=9,
        )
    for x, (drop, following) in enumerate(pairwise(drops)):
        start, end = (x + 0.42, 0.27 - drop), (x + 0.58, 0.27 - following)
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "grey"})
    for start, end in skips:
        y = 0.45 - drops[start]
        style = {"arrowstyle": "->", "color": PURPLE, "linestyle": "--", "linewidth": 1.5}
        axis.annotate("", (end - 0.45, y), (start + 0.45, y), arrowprops=style)
    key = [
        Patch(color=BLUE, label="encoder"),
        Patch(color=ORANGE, label="bottleneck"),
        Patch(color=GREEN, label="decoder"),
    ]
    key.append(plt.Line2D([], [], color=PURPLE, linestyle="--", label="skip connection"))
    axis.legend(handles=key, loc="lower left", fontsize=9, frameon=False)
    axis.set(xlim=(-0.8, len(blocks) - 0.2), ylim=(-drops[deepest] - 0.7, 0.8))
    axis.axis("off")
    axis.set_title(title or f"{model.name}: {model.count_params():,} parameters")
    figure.tight_layout()
    return figure


def nested_skips(depth=4, cuts=None, title=None):
    """Draw the grid of blocks X(i, j) of a U-Net++, who reads whom, and what a cut leaves out.

    Parameters
    ----------
    depth : int
        Of the network.
    cuts : sequence of int, optional
        One panel for each of these depths: the network cut there, with what is left out in pale grey. If not given,
        one panel with the whole network and all its outputs.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = [None] if cuts is None else list(cuts)
    inches = 9 if cuts is None else 3
    figure, axes = plt.subplots(1, len(panels), figsize=(inches * len(panels), 0.62 * inches + 0.6), squeeze=False)
    for axis, cut in zip(axes[0], panels, strict=True):
        _grid_of_nodes(axis, depth, cut, large=cuts is None)
    key = [
        plt.Line2D([], [], linestyle="", marker=marker, markersize=10, color=colour, label=text)
        for marker, colour, text in (
            ("s", BLUE, "encoder, as in a U-Net"),
            ("o", SKY, "new in U-Net++"),
            ("D", GREEN, "decoder, as in a U-Net"),
        )
    ]
    key.append(plt.Line2D([], [], color=PURPLE, linestyle="--", label="skip connection"))
    figure.legend(handles=key, loc="lower center", ncols=len(key) if len(panels) > 1 else 2, fontsize=9, frameon=False)
    _head(figure, title)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    return figure


def _grid_of_nodes(axis, depth, cut, large):
    kept = depth if cut is None else cut
    around = 17 if large else 9  # points from the middle of a node to where an arrow ends

    def place(i, j):
        return i + 2 * j, -i  # what is pooled or enlarged moves one step to the right, as in the paper's figure

    def arrow(start, end, remains, colour=BLACK, **style):
        style = {"arrowstyle": "->", "shrinkA": around, "shrinkB": around, "linewidth": 1.2 if large else 0.9, **style}
        axis.annotate("", end, start, arrowprops={**style, "color": colour if remains else "#DDDDDD"}, zorder=1)

    for i in range(depth + 1):
        for j in range(depth + 1 - i):
            remains = i + j <= kept
            if j == 0 and i:
                arrow(place(i - 1, 0), place(i, 0), remains)
            if j:
                arrow(place(i + 1, j - 1), place(i, j), remains)
            for before in range(j):
                bend = "arc3" if before == j - 1 else "arc3,rad=-0.2"
                arrow(place(i, before), place(i, j), remains, PURPLE, linestyle="--", connectionstyle=bend)
            last = i + j == kept  # of what is kept: there a U-Net of this depth has its decoder
            marker, colour = ("s", BLUE) if j == 0 else ("D", GREEN) if last else ("o", SKY)
            look = {"color": colour} if remains else {"facecolor": "white", "edgecolor": "#BBBBBB", "linestyle": ":"}
            axis.scatter(
                *place(i, j), s=(1150 if marker != "D" else 850) if large else 190, marker=marker, zorder=2, **look
            )
            if large:
                ink = "white" if colour in (BLUE, GREEN) else BLACK
                axis.text(*place(i, j), f"X({i},{j})", ha="center", va="center", fontsize=9, color=ink, zorder=4)
    for j in range(1, depth + 1):
        if cut is None or j == cut:
            x, y = place(0, j)
            arrow((x, y), (x, y + 1.4), True, shrinkB=0)
            axis.text(x, y + 1.45, f"output {j}", ha="center", va="bottom", fontsize=9)
    if cut is not None:
        axis.set_title(f"cut at depth {cut}", fontsize=10)
    axis.set(xlim=(-0.7, 2 * depth + 0.9), ylim=(-depth - 0.6, 2.1))
    axis.axis("off")


def by_step(series, ylabel, log=False, title=None):
    """Plot numbers against the step of a training.

    Parameters
    ----------
    series : dict of str to sequence of float
        One number for each step, by what the legend is to say.
    ylabel : str
    log : bool
        Use a logarithmic axis for the numbers; else it starts at 0.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(6, 3))
    for (name, values), colour, line in zip(series.items(), cycle(CYCLE), cycle(("-", "--", ":", "-.")), strict=False):
        axis.plot(np.arange(1, len(values) + 1), values, line, color=colour, label=name)
    axis.set(xlabel="step", ylabel=ylabel, title=title)
    if log:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, None)
    axis.legend()
    figure.tight_layout()
    return figure


def trade_off(table, costs, score="dice", family=(), title=None):
    """Plot how good models are against what they cost, on logarithmic axes, one panel for each cost.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per model, named by the index.
    costs : dict of str to str
        Columns with what a model costs, and what to write below the axis.
    score : str
        Column with what is to be high.
    family : sequence of str
        Models that are cut from one network, smallest first: numbered from 1 and joined by a line.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    family = list(family)
    others = [name for name in table.index if name not in family]
    figure, axes = plt.subplots(1, len(costs), figsize=(4.6 * len(costs), 4.2), sharey=True, squeeze=False)
    for axis, (cost, text) in zip(axes[0], costs.items(), strict=True):
        for name, colour, marker in zip(others, cycle(CYCLE[1:]), cycle("s^DvXP*"), strict=False):
            axis.plot(*table.loc[name, [cost, score]], marker, color=colour, markersize=13, label=name)
        line = f"{family[0]} … {family[-1]}" if family else None
        axis.plot(table.loc[family, cost], table.loc[family, score], "o-", color=BLUE, markersize=12, label=line)
        for number, name in enumerate(family, start=1):
            point = tuple(table.loc[name, [cost, score]])
            axis.annotate(str(number), point, ha="center", va="center_baseline", fontsize=9, color="white")
        axis.set(xscale="log", xlabel=text)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.12, y=0.15)
        axis.grid(alpha=0.4)
    axes[0, 0].set_ylabel(score)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    _head(figure, title)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


def _blocks(model):
    """Blocks (height, width, channels) in the order of the network, and skips (from block, to block)."""
    blocks, block_of, skips = [], {}, []
    last = model.outputs[0]._keras_history.operation

    def walk(tensor):
        """Go back to where a tensor comes from, a skip before what is enlarged, and return its block."""
        operation, node, number = tensor._keras_history
        if (operation.name, number) not in block_of:
            node = operation._inbound_nodes[node]
            sources = [walk(source) for source in node.input_tensors]
            for index, output in enumerate(node.output_tensors):  # of a network in the network, there are several
                add(operation, output.shape)
                block_of[operation.name, index] = len(blocks) - 1
            if len(sources) > 1:
                skips.extend((source, len(blocks) - 1) for source in sources if source != len(blocks) - 1)
        return block_of[operation.name, number]

    def add(operation, shape):
        if None in shape[1:]:
            raise ValueError(f"{model.name} leaves the image size open: build it with a fixed input shape to draw it")
        if not blocks or blocks[-1][:2] != list(shape[1:3]) or operation is last:
            blocks.append(list(shape[1:]))
        elif not operation.name.startswith(("concatenate", "rescaling")):
            blocks[-1][-1] = shape[-1]

    walk(model.outputs[0])
    return [tuple(block) for block in blocks], skips


# Figures of the evaluation


def curves(sweeps, threshold=0.5, lowest=0.0, title=None):
    """Draw the precision-recall and the ROC curve of each model, one threshold marked on all of them.

    Parameters
    ----------
    sweeps : dict of str to pandas.DataFrame
        Of each model, from `evaluation.sweep`.
    threshold : float
        Where the mark goes.
    lowest : float
        Where the axes of precision and recall begin, to look closely at the corner that matters; the share of the
        background called nucleus is then shown up to `1 - lowest`.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4.8))
    for (name, table), (colour, marker) in zip(sweeps.items(), _looks(), strict=False):
        some = table[table["tp"] + table["fp"] > 0]  # where nothing is found, there is no precision
        for axis, rows, x, y in (
            (left, some, "recall", "precision"),
            (right, table, "false_positive_rate", "recall"),
        ):
            axis.plot(rows[x], rows[y], color=colour, label=name)
            at = rows.iloc[(rows["threshold"] - threshold).abs().argmin()] if len(rows) else table.iloc[0]
            axis.plot(at[x], at[y], marker, color=colour, markersize=8, markeredgecolor="white")
    right.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    ends = lowest - 0.02 * (1 - lowest), 1 + 0.02 * (1 - lowest)
    left.set(
        xlabel="recall: share of nucleus pixels found", ylabel="precision", title="precision and recall", xlim=ends
    )
    right.set(xlabel="share of background called nucleus", ylabel="recall", title="ROC", xlim=np.subtract(ends, lowest))
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, markeredgecolor="white", label=name)
        for name, (colour, marker) in zip(sweeps, _looks(), strict=False)
    ]
    for axis in (left, right):
        axis.set(ylim=ends, aspect="equal")
        axis.grid(alpha=0.4)
    right.legend(handles=right.lines[-1:], loc="lower right")
    _head(figure, title)
    handles.append(plt.Line2D([], [], color="grey", marker="o", linestyle="", label=f"threshold {threshold:g}"))
    figure.legend(handles=handles, ncols=len(handles), loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1 - 0.1 / figure.get_figheight()))
    return figure


def calibration(tables, title=None):
    """Draw what models promise against what comes true, and below how many pixels get each probability.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        Of each model, from `evaluation.calibration`.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5.2, 6.4), sharex=True, gridspec_kw={"height_ratios": [3, 1]}, layout="constrained"
    )
    above.plot([0, 1], [0, 1], color="grey", linestyle=":", label="promise kept")
    for (name, table), (colour, marker) in zip(tables.items(), _looks(), strict=False):
        some = table[table["pixels"] > 0]
        above.plot(some["predicted"], some["observed"], marker + "-", color=colour, label=name)
        below.plot((some["low"] + some["high"]) / 2, some["pixels"], marker + "-", color=colour, markersize=4)
    above.set(ylabel="share of them that is nucleus", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    above.legend(loc="best")
    below.set(xlabel="predicted probability of nucleus", ylabel="pixels", yscale="log")
    for axis in (above, below):
        axis.grid(alpha=0.4)
    if title:
        figure.suptitle(title)
    return figure


def forest(table, value, low, high, label=None, reference=None, title=None):
    """Draw a number for each row of a table with its interval, one below the other.

    Parameters
    ----------
    table : pandas.DataFrame
        Its index names the rows; the parts of an index of several levels are joined by "-".
    value, low, high : str
        Columns with the number and the ends of its interval.
    label : str, optional
        Of the axis; `value` if not given.
    reference : float, optional
        A vertical line, such as 0 where the numbers are differences.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = [" \N{MINUS SIGN} ".join(name) if isinstance(name, tuple) else str(name) for name in table.index]
    figure, axis = plt.subplots(figsize=(7.5, 0.5 * len(table) + 1.2))
    if reference is not None:
        axis.axvline(reference, color="grey", linestyle=":")
    for height, (middle, left, right) in enumerate(table[[value, low, high]].itertuples(index=False)):
        axis.plot([left, right], [height, height], color=BLACK, linewidth=2)
        axis.plot(middle, height, "o", color=BLUE, markersize=9)
        axis.annotate(f"{middle:.3f}", (middle, height), xytext=(0, 8), textcoords="offset points", ha="center")
    axis.set_yticks(range(len(table)), names)
    axis.set(ylim=(len(table) - 0.5, -0.7), xlabel=label or value, title=title)
    axis.margins(x=0.1)
    axis.grid(axis="x", alpha=0.4)
    figure.tight_layout()
    return figure


def threshold_curves(validation, test, chosen, column="dice", title=None):
    """Draw a score against the threshold, one panel per model, with the threshold that validation chose.

    Parameters
    ----------
    validation, test : dict of str to pandas.DataFrame
        Of each model, from `evaluation.sweep`.
    chosen : dict of str to float
        Threshold of each model.
    column : str
        The score.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(1, len(chosen), figsize=(3.6 * len(chosen), 3.4), sharey=True, squeeze=False)
    for axis, (name, threshold) in zip(axes[0], chosen.items(), strict=True):
        for tables, text, colour, style in ((validation, "validation", ORANGE, "-"), (test, "test", BLUE, "--")):
            axis.plot(tables[name]["threshold"], tables[name][column], style, color=colour, label=text)
        axis.axvline(threshold, color=BLACK, linestyle=":", label=f"chosen: {threshold:.2f}")
        axis.set(xlabel="threshold", title=name, xlim=(0, 1))
        axis.legend(loc="best")
        axis.grid(alpha=0.4)
    axes[0, 0].set_ylabel(column.replace("_", " "))
    _head(figure, title)
    figure.tight_layout()
    return figure


def trend(tables, x, y, labels=(None, None), bins=8, log=False, title=None):
    """Draw how the mean of one column changes with another one, a line for each table.

    The rows are sorted by `x` and parted into groups of about equal size; each point is a group, at the median of `x`
    and the mean of `y`.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        Such as `evaluation.nucleus_table` of each model.
    x, y : str
        Columns with numbers.
    labels : tuple of str
        What to write at the axes; the columns' names if None.
    bins : int
        Most groups.
    log : bool
        Logarithmic axis for `x`.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(6.4, 4))
    for (name, table), (colour, marker) in zip(tables.items(), _looks(), strict=False):
        some = table[[x, y]].dropna().sort_values(x)
        parts = [part for part in np.array_split(some.to_numpy(), min(bins, max(len(some), 1))) if len(part)]
        middles = [(np.median(part[:, 0]), part[:, 1].mean()) for part in parts]
        if middles:
            axis.plot(*np.transpose(middles), marker + "-", color=colour, label=name)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel=labels[0] or x, ylabel=labels[1] or y, title=title)
    axis.legend()
    axis.grid(alpha=0.4)
    figure.tight_layout()
    return figure


def robustness(tables, column="dice", labels=None, title=None):
    """Draw how a score falls as images are made worse, one panel for each way to do so and a line for each model.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        Of each model, from `evaluation.robustness`.
    column : str
        The score.
    labels : dict of str to str, optional
        What the strength of each distortion is measured in.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = list(next(iter(tables.values()))["distortion"].unique())
    figure, axes = plt.subplots(1, len(names), figsize=(2.9 * len(names), 3.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for (model, table), (colour, marker) in zip(tables.items(), _looks(), strict=False):
            some = table[table["distortion"] == name]
            axis.plot(range(len(some)), some[column], marker + "-", color=colour, label=model)
        # at equal distances: strengths are chosen to be worth a look, not to be even
        axis.set_xticks(range(len(some)), [f"{strength:g}" for strength in some["strength"]])
        axis.set(title=name, xlabel=(labels or {}).get(name, "strength"), ylim=(0, 1))
        axis.grid(alpha=0.4)
    axes[0, 0].set_ylabel(column.replace("_", " "))
    key = axes[0, 0].get_legend_handles_labels()
    _head(figure, title)
    figure.legend(*key, ncols=len(tables), loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.3 / figure.get_figheight(), 1, 1))
    return figure


# Figures of separated nuclei


def numbered(label_maps, titles, size=4.2, title=None):
    """Paint label maps side by side, each nucleus with its number at its deepest point.

    Parameters
    ----------
    label_maps : sequence of int array (H, W)
    titles : sequence of str
        One for each.
    size : float
        Width of one picture, inches.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    height, width = np.max([np.shape(one) for one in label_maps], axis=0)
    inches = len(label_maps) * size, size * height / width + 0.5
    figure, axes = plt.subplots(1, len(label_maps), figsize=inches, squeeze=False, layout="constrained")
    for axis, one, name in zip(axes[0], map(np.asarray, label_maps), titles, strict=True):
        _draw(axis, colour_labels(one), size)
        axis.axis("off")
        axis.set_title(name)
        depth = distance_map(one)
        for number in np.unique(one[one > 0]):
            y, x = np.argwhere((one == number) & (depth == 1)).mean(axis=0)
            text = axis.text(x, y, str(number), ha="center", va="center", color=BLACK, fontsize=12)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    if title:
        figure.suptitle(title)
    return figure


def heat_maps(tables, labels=(None, None), marked=None, digits=2, bar=None, title=None):
    """Draw tables of numbers from 0 to 1 as coloured squares with the numbers in them, one panel each.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        Of at least one row and column; the index goes down, the columns go across.
    labels : tuple of str
        What to write below the columns and beside the rows; nothing if None.
    marked : dict of str to bool array, optional
        Of each table the squares to frame.
    digits : int
        After the decimal point.
    bar : tuple of float, optional
        Ends of the scale of colours; 0 and 1 if not given.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    low, high = bar or (0, 1)
    rows, columns = (max(table.shape[axis] for table in tables.values()) for axis in (0, 1))
    size = len(tables) * (0.6 * columns + 1.2), 0.45 * rows + 1.5
    figure, axes = plt.subplots(1, len(tables), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        axis.imshow(table, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        frames = np.zeros(table.shape, bool) if marked is None else np.asarray(marked[name])
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            ink = BLACK if value > (low + high) / 2 else "white"
            axis.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=ink, fontsize=9)
            if frames[row, column]:
                corner = column - 0.46, row - 0.46
                axis.add_patch(plt.Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=RED, linewidth=2.5))
        axis.set_xticks(range(table.shape[1]), [f"{column}" for column in table.columns])
        axis.set_yticks(range(table.shape[0]), [f"{row}" for row in table.index])
        axis.set(xlabel=labels[0], ylabel=labels[1], title=name)
    if title:
        figure.suptitle(title)
    return figure


def against_iou(tables, column="ap", label=None, title=None):
    """Draw a score against the IoU that a match must exceed, a line for each way to find nuclei.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        From `instances.average_precision`.
    column : str
        The score.
    label : str, optional
        What to write at its axis; the column's name if not given.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(7.5, 4))
    for (name, table), (colour, marker) in zip(tables.items(), _looks(), strict=False):
        axis.plot(table.index, table[column], marker + "-", color=colour, markersize=5, label=name)
    axis.set(xlabel="IoU that a match must exceed", ylabel=label or column, title=title, ylim=(-0.02, 1.02))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.grid(alpha=0.4)
    figure.tight_layout()
    return figure


def true_and_found(table, true="true", found="predicted", by="image_type", title=None):
    """Plot how many nuclei were found in each image against how many there are, with the line where both agree.

    The axes are logarithmic from 10 on, and even below, so that images with none have a place too.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per image.
    true, found : str
        Columns with the numbers.
    by : str
        Column with the group of each image.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = plt.subplots(figsize=(6.8, 4.4))
    end = 1.15 * max(table[[true, found]].to_numpy().max(initial=0), 10)
    axis.plot([0, end], [0, end], color="grey", linestyle=":", label="all of them", zorder=0)
    for (name, group), (colour, marker) in zip(table.groupby(by), _looks(), strict=False):
        axis.plot(group[true], group[found], marker, color=colour, alpha=0.7, label=str(name).replace("_", " "))
    ticks = [tick for tick in (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if tick <= end]
    axis.set_xscale("symlog", linthresh=10)
    axis.set_yscale("symlog", linthresh=10)
    for side in (axis.xaxis, axis.yaxis):
        side.set_ticks(ticks, [str(tick) for tick in ticks])
        side.set_minor_formatter(NullFormatter())
    axis.set(xlabel="nuclei in the image", ylabel="nuclei found", title=title)
    axis.set(xlim=(-0.5, end), ylim=(-0.5, end), aspect="equal")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.grid(alpha=0.4)
    figure.tight_layout()
    return figure


# Figures of one's own images


def measurements(image, labels, groups, label, bins=24, title=None):
    """Show an image with its nuclei outlined and numbered, and beside it how a measurement is spread.

    Parameters
    ----------
    image : uint8 array (H, W, 3) or float array in [0, 1]
    labels : int array (H, W)
        Label map; the numbers are those of the table of measurements.
    groups : dict of str to sequence of float
        The measurement of every nucleus, by the name of its image; stacked in one histogram.
    label : str
        What is measured, and its unit.
    bins : int
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), width_ratios=(1, 1.15))
    _draw(left, overlay(image, labels), 4.4)
    left.axis("off")
    present = np.flatnonzero(np.bincount(np.asarray(labels).ravel())[1:]) + 1
    for number, (y, x) in zip(present, center_of_mass(labels > 0, labels, present), strict=True):
        # dark on a bright edge: to be read on any ground
        left.text(x, y, str(number), fontsize=8, ha="center", va="center", color="white").set_path_effects(
            [withStroke(linewidth=2, foreground=BLACK)]
        )
    values = [np.asarray(group, float) for group in groups.values()]
    right.hist(
        values,
        bins,
        stacked=True,
        color=[colour for colour, _ in zip(cycle(CYCLE), groups, strict=False)],
        label=[str(name).replace("_", " ") for name in groups],
        edgecolor="white",
        linewidth=0.5,
    )
    right.set(xlabel=label, ylabel="nuclei")
    right.legend(frameon=False)
    right.grid(alpha=0.4, axis="y")
    _head(figure, title)
    figure.tight_layout()
    return figure


def ranking(table, value, by, label=None, reference=None, title=None):
    """Draw one number for each row of a table, the largest on top, with a colour and a marker for each group.

    Parameters
    ----------
    table : pandas.DataFrame
        Its index names the rows. A row without a number (nan) comes last, and gets no mark.
    value : str
        Column with the number.
    by : str
        Column with the group.
    label : str, optional
        Of the axis; `value` if not given.
    reference : float, optional
        Where to draw a vertical line.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    ordered = table.sort_values(value, ascending=False, kind="stable")
    figure, axis = plt.subplots(figsize=(7.5, 0.3 * len(table) + 1.2))
    if reference is not None:
        axis.axvline(reference, color="grey", linestyle=":")
    for (name, _), (colour, marker) in zip(table.groupby(by, sort=False), _looks(), strict=False):
        own = np.flatnonzero(ordered[by] == name)
        axis.plot(ordered[value].iloc[own], own, marker, color=colour, markersize=8, label=str(name))
    names = [str(name).replace("_", " ") for name in ordered.index]
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.5, -0.5), xlabel=label or value, title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.grid(alpha=0.4)
    figure.tight_layout()
    return figure


# How a network learned: the film


def film(records, predictions, path, title=None, fps=5, frames=40, megabytes=3.0):
    """Write a GIF that shows how predictions grow: image, truth and prediction, with Dice, epoch by epoch.

    It loops, and rests on the last epoch.

    Parameters
    ----------
    records : sequence of data.Record
        The images that were watched, one column each; about five fit.
    predictions : sequence of sequence of array (H, W)
        Probabilities in [0, 1]: before training and after each epoch, one map for each image (`recipes.recorded`).
    path : path-like
        The file to write.
    title : str, optional
        On each frame, such as the name of the network.
    fps : float
        Frames per second.
    frames : int
        Most frames, 2 or more. Of more epochs, evenly spaced ones are shown, the first and the last among them.
    megabytes : float
        Most that the file may take (10**6 bytes); frames are left out until it does.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If predictions and images do not match, or even two frames take more.
    """
    _check_predictions(records, predictions)
    path, drawn = Path(path), {}
    shown = _spaced(len(predictions), frames)
    figure, update = _screen(records, predictions, title)
    while True:
        for epoch in shown:
            if epoch not in drawn:
                update(epoch)
                figure.canvas.draw()
                drawn[epoch] = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
        encoded = _gif([drawn[epoch] for epoch in shown], fps)
        if len(encoded) <= megabytes * 1e6:
            break
        if len(shown) <= 2:
            raise ValueError(
                f"{path.name}: a film of {len(shown)} frames takes {len(encoded) / 1e6:.2f} MB, more than "
                f"{megabytes:g} MB: show fewer images, or allow more"
            )
        shown = _spaced(len(predictions), 3 * len(shown) // 4)
    with atomic_write(path) as aside:
        aside.write_bytes(encoded)
    return path


def film_strip(records, predictions, epochs=5, names=None, title=None):
    """Draw the film for print: a row for each image, from left to right image, some of the epochs, and truth.

    Parameters
    ----------
    records, predictions
        As for `film`.
    epochs : int or sequence of int
        How many epochs to show, evenly spaced with the first and the last among them; or which ones.
    names : sequence of str, optional
        What to write at the left of each row.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If predictions and images do not match.
    """
    _check_predictions(records, predictions)
    shown = _spaced(len(predictions), epochs) if isinstance(epochs, int) else list(epochs)
    size, columns = 1.2, len(shown) + 2
    figure, axes = plt.subplots(
        len(records), columns, figsize=(columns * size, len(records) * (size + 0.2) + 0.7), squeeze=False
    )
    for index, (line, record) in enumerate(zip(axes, records, strict=True)):
        maps = [np.asarray(predictions[epoch][index], float) for epoch in shown]
        for axis, picture in zip(line, [as_uint8(record.image), *maps, as_uint8(record.label_map > 0)], strict=True):
            _draw(axis, picture, size, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="grey", linewidth=0.8)
        for axis, probability in zip(line[1:], maps, strict=False):
            axis.set_xlabel(f"Dice {_dice(record.label_map, probability):.2f}", fontsize=9)
        line[0].set_ylabel(names[index] if names else "", fontsize=9)
    heads = ["image", *[f"epoch {epoch}" for epoch in shown], "truth"]
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title("untrained" if head == "epoch 0" else head, fontsize=10)
    _head(figure, title)
    figure.tight_layout(pad=0.5)
    return figure


def _dice(labels, probability):
    """Dice of one image at threshold 0.5, as in `metrics.dice`, which would bring Keras along."""
    true, found = np.asarray(labels) > 0, np.asarray(probability) > 0.5
    total = true.sum() + found.sum()
    return 2 * (true & found).sum() / total if total else 1.0


def _spaced(count, most):
    """Return at most so many of the numbers 0..count-1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(max(most, 2), count)).round().astype(int)).tolist()


def _check_predictions(records, predictions):
    shapes = [record.label_map.shape for record in records]
    if not shapes or not len(predictions):
        raise ValueError(f"a film takes images and predictions, found {len(shapes)} and {len(predictions)} epochs")
    for epoch, maps in enumerate(predictions):
        if (found := [np.shape(one) for one in maps]) != shapes:
            raise ValueError(
                f"the predictions of epoch {epoch} have the shapes {found}, the images {shapes}: they must be of the "
                "same images in the same order (was the network watching others?)"
            )


def _screen(records, predictions, title):
    """Lay out one frame of the film; return the figure, and the function that puts an epoch into it."""
    tile, gap, left, head, foot = 116, 4, 20, 46, 20  # pixels
    width = left + len(records) * (tile + gap)
    height = head + 3 * (tile + gap) + foot
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)  # not pyplot's: notebooks would show it
    FigureCanvasAgg(figure)

    def place(x, y, wide, tall):  # pixels from the upper left corner
        axis = figure.add_axes((x / width, 1 - (y + tall) / height, wide / width, tall / height))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="grey", linewidth=0.8)
        return axis

    def write(x, y, text="", **looks):
        return figure.text(x / width, 1 - y / height, text, fontsize=9, va="center", **looks)

    for row, name in enumerate(("image", "truth", "prediction")):
        write(left / 2, head + (row + 0.5) * (tile + gap), name, ha="center", rotation=90)
    growing, dice = [], []
    for column, record in enumerate(records):
        x = left + column * (tile + gap)
        pictures = (as_uint8(record.image), as_uint8(record.label_map > 0), np.zeros(record.label_map.shape))
        for row, picture in enumerate(pictures):
            axis = place(x, head + row * (tile + gap), tile, tile)
            _draw(axis, picture, tile / 100, cmap="gray", vmin=0, vmax=1)
        growing.append(axis.images[0])
        dice.append(write(x + tile / 2, height - foot / 2 - 2, ha="center"))
    line = write(left, 14)
    bar = place(left, 28, width - left - gap, 8)
    (done,) = bar.barh(0.5, 0, height=1, color=BLUE)
    bar.set(xlim=(0, max(len(predictions) - 1, 1)), ylim=(0, 1))

    def update(epoch):
        maps = [np.asarray(one, float) for one in predictions[epoch]]
        scores = [_dice(record.label_map, one) for record, one in zip(records, maps, strict=True)]
        for picture, text, one, score in zip(growing, dice, maps, scores, strict=True):
            picture.set_data(one)
            text.set_text(f"Dice {score:.2f}")
        state = f"epoch {epoch} of {len(predictions) - 1}" if epoch else "before training"
        line.set_text(f"{title + ': ' if title else ''}{state}, mean Dice of these images {np.mean(scores):.2f}")
        done.set_width(epoch)

    return figure, update


def _gif(frames, fps):
    """Encode frames (H, W, 3) with one palette, so that what does not move is stored only once."""
    sample = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]])
    palette = Image.fromarray(sample).quantize(96, dither=Image.Dither.NONE)
    few = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB") for frame in frames
    ]
    durations = [10 * round(100 / fps)] * (len(frames) - 1) + [2500]  # milliseconds; a GIF counts in hundredths
    pictures = np.stack([np.asarray(frame) for frame in few])
    duration = durations if len(frames) > 1 else durations[0]
    return imwrite("<bytes>", pictures, extension=".gif", plugin="pillow", duration=duration, loop=0)
