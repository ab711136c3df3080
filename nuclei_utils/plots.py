"""Every figure of the course. Functions take arrays and tables, draw, and return the matplotlib figure."""

from collections import defaultdict
from itertools import cycle, pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from skimage.segmentation import find_boundaries

from nuclei_utils.labels import touching_pairs

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
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * (size + 0.3)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, picture in enumerate(pictures):
        axis = axes.flat[index]
        _draw(axis, as_uint8(picture), size)
        if titles is not None:
            axis.set_title(titles[index], fontsize=10)
    _head(figure, title)
    figure.tight_layout()
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
    pictures = [overlay(r.image, r.labels) if outlines else r.image for r in records]
    titles = [f"{r.kind.replace('_', ' ')}\n{len(np.unique(r.labels)) - 1} nuclei" for r in records]
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
            _draw(axis, _middle_square(as_uint8(picture)), size)
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


def spread(table, labels, by="kind", order=None, log=(), points=300, title=None):
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
    best = epochs[history["val_dice"].idxmax()]
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


def _blocks(model):
    """Blocks (height, width, channels) in the order of the network, and skips (from block, to block)."""
    blocks, block_of, skips = [], {}, []
    for layer in model.layers:
        shape = layer.output.shape
        if len(shape) != 4:
            continue
        if None in shape[1:]:
            raise ValueError(f"{model.name} leaves the image size open: build it with a fixed input shape to draw it")
        joined = layer.input if isinstance(layer.input, list) else []
        sources = [block_of[tensor._keras_history.operation.name] for tensor in joined]
        if not blocks or blocks[-1][:2] != list(shape[1:3]) or layer is model.layers[-1]:
            blocks.append(list(shape[1:]))
        elif not layer.name.startswith("concatenate"):
            blocks[-1][-1] = shape[-1]
        block_of[layer.name] = len(blocks) - 1
        skips += [(source, len(blocks) - 1) for source in sources if source != len(blocks) - 1]
    return [tuple(block) for block in blocks], skips
