"""Diagrams of networks and their blocks, and of methods that separate nuclei."""

from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage
from skimage.segmentation import watershed

from nuclei_utils.labels import distance_map
from nuclei_utils.plots import images, style
from nuclei_utils.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

SKIP = Line2D([], [], color=PURPLE, linestyle="--", label="skip connection")
GREY_ARROW = {"arrowstyle": "->", "color": "grey"}


def architecture(model: Any) -> Figure:
    """Draw the feature maps and skip connections of a U-Net.

    The model is a `keras.Model` with a fixed image size. Each decoder level needs a `Conv2DTranspose` or `UpSampling2D`
    layer and a `Concatenate` layer. If no block but the decoder reads the first block, the second block gets an arrow
    from the image.
    """
    blocks, is_chain = _blocks(model), _is_chain(model)
    depth = len(blocks) // 2 - 1  # encoder, bottleneck, decoder, output
    drops = np.log2(blocks[0][0] / np.array([height for height, _, _ in blocks]))  # one step down per halving
    colours = [BLUE] * depth + [ORANGE] + [GREEN] * depth + [BLACK]
    fig, ((ax,),) = style._new_figure(1, 1, min(1.3 * len(blocks), 14), 5)
    for x, ((height, width, channels), drop, colour) in enumerate(zip(blocks, drops, colours, strict=True)):
        ax.bar(x, 0.55, width=0.12 + 0.1 * np.log2(channels), bottom=-drop, color=colour, zorder=3)
        text = f"{height} x {width}\n{channels} {'maps' if channels > 1 else 'map'}"
        ax.text(x, -drop - 0.08, text, ha="center", va="top", fontsize=9)
    for x, (drop, following) in enumerate(pairwise(drops)):
        start, end = (x + 0.42, 0.27 - drop), (x + 0.58, 0.27 - following)
        if x or is_chain:
            ax.annotate("", end, start, arrowprops=GREY_ARROW)
    if not is_chain:
        ax.annotate("image", (-0.35, 0.27), (-0.9, 0.27), ha="center", va="center", arrowprops=GREY_ARROW)
        corner = {"connectionstyle": "angle,angleA=-90,angleB=0", **GREY_ARROW}
        ax.annotate("", (0.6, 0.27 - drops[1]), (-0.9, 0.15), arrowprops=corner)
    for x in range(depth):
        y = 0.45 - drops[x]
        arrow = {"arrowstyle": "->", "color": PURPLE, "linestyle": "--", "linewidth": 1.5}
        ax.annotate("", (2 * depth - x - 0.45, y), (x + 0.45, y), arrowprops=arrow)
    key = {"encoder": BLUE, "bottleneck": ORANGE, "decoder": GREEN, "output": BLACK}
    patches = [Patch(color=colour, label=name) for name, colour in key.items()]
    ax.legend(handles=[*patches, SKIP], loc="lower left", fontsize=9, frameon=False)
    ax.set(xlim=(-0.8 if is_chain else -1.3, len(blocks) - 0.2), ylim=(-drops.max() - 0.7, 0.8))
    ax.axis("off")
    ax.set_title(f"{model.name}: {model.count_params():,} parameters")
    return fig


def _blocks(model):
    """Return (height, width, channels) of all blocks of a U-Net.

    The order is encoder levels, bottleneck, decoder levels, output.
    """
    upsamplings = [layer for layer in model.layers if type(layer).__name__ in ("Conv2DTranspose", "UpSampling2D")]
    concatenations = [layer for layer in model.layers if type(layer).__name__ == "Concatenate"]
    if not upsamplings or len(upsamplings) != len(concatenations):
        raise ValueError(
            f"{model.name} has {len(upsamplings)} upsampling layers and {len(concatenations)} Concatenate layers, "
            "expected one of each per level of a U-Net: draw a U-Net++ with plots.nested_skips"
        )
    levels = zip(upsamplings, concatenations, strict=True)
    skips = [_skip(join, up) for up, join in levels]
    head = model.get_layer(model.output_names[0])
    tensors = [*reversed(skips), *(layer.input for layer in upsamplings), head.input, head.output]
    blocks = [tensor.shape[1:] for tensor in tensors]
    if any(None in block for block in blocks):
        raise ValueError(f"{model.name} leaves the image size open: build the model with a fixed input shape")
    return blocks


def _skip(concatenation, upsampling):
    """Return the tensor that a `Concatenate` layer joins to the output of an upsampling layer."""
    return next(tensor for tensor in concatenation.input if tensor is not upsampling.output)


def _is_chain(model):
    """Return True if the second block of a U-Net reads the first block."""
    concatenations = [layer for layer in model.layers if type(layer).__name__ == "Concatenate"]
    before = model.layers[model.layers.index(concatenations[-1]) - 1]
    first = _skip(concatenations[-1], before)
    return any(layer.input is first for layer in model.layers)


def residual_block(
    channels: int = 24, filters: int = 24, expansion: int = 6, strides: int = 1, title: str | None = None
) -> Figure:
    """Draw an inverted residual block of MobileNetV2.

    The height of a bar grows with the number of feature maps. A dashed arrow is the residual connection, which exists
    if input and output have the same shape.

    Parameters
    ----------
    channels, filters : int
        Number of feature maps of the input and of the output.
    expansion, strides : int
        Factor of the expansion, and 2 for a block that halves height and width.
    """
    wide, add = expansion * channels, strides == 1 and channels == filters
    size = "full size" if strides == 1 else "half size"
    bars = [("input", channels, BLUE, ""), ("expand", wide, SKY, "1 x 1"), (f"depthwise\n{size}", wide, SKY, "3 x 3")]
    bars += [("project", filters, BLUE, "1 x 1")] + [("add", filters, GREEN, "")] * add
    fig, ((ax,),) = style._new_figure(1, 1, 1.45 * len(bars), 3.6, title)
    for x, (name, maps, colour, kernel) in enumerate(bars):
        ax.bar(x, maps, width=0.3, bottom=-maps / 2, color=colour, zorder=3)
        ax.text(x, -0.58 * wide, f"{name}\n{maps} maps", ha="center", va="top", fontsize=10)
        if x:
            ax.annotate("", (x - 0.17, 0), (x - 0.83, 0), arrowprops=GREY_ARROW)
            ax.text(x - 0.5, 0.04 * wide, kernel, ha="center", va="bottom", fontsize=9)
    if add:
        arrow = {"arrowstyle": "->", "color": PURPLE, "linestyle": "--", "linewidth": 1.5}
        top, edge = 0.62 * wide, 0.5 * channels
        ax.plot([0, 0, 4], [edge, top, top], color=PURPLE, linestyle="--", linewidth=1.5)
        ax.annotate("", (4, edge), (4, top), arrowprops=arrow)
        ax.text(2, top + 0.03 * wide, "residual connection", ha="center", va="bottom", fontsize=10)
    ax.set(xlim=(-0.6, len(bars) - 0.4), ylim=(-0.95 * wide, 0.8 * wide))
    ax.axis("off")
    return fig


def nested_skips(depth: int = 4, cuts: Sequence[int] | None = None, title: str | None = None) -> Figure:
    """Draw the blocks X(i, j) of a U-Net++ and their connections.

    `cuts` gives the depth of the cut in each panel. Removed blocks are pale. Default: the whole network in one panel.
    """
    panels, inches = (cuts, 3) if cuts else ([None], 9)
    fig, axes = style._new_figure(1, len(panels), inches * len(panels), 0.62 * inches + 0.6, title)
    for ax, cut in zip(axes[0], panels, strict=True):
        _draw_nested_blocks(ax, depth, cut)
    key = {"encoder, as in a U-Net": ("s", BLUE), "new in U-Net++": ("o", SKY), "decoder, as in a U-Net": ("D", GREEN)}
    blocks = [
        Line2D([], [], linestyle="", marker=marker, markersize=10, color=colour, label=label)
        for label, (marker, colour) in key.items()
    ]
    style._legend_below(fig, [*blocks, SKIP])
    return fig


def _draw_nested_blocks(ax, depth, cut):
    """Draw one panel of `nested_skips`, large if the network is not cut."""
    large, kept = cut is None, cut or depth
    gap, linewidth = (17, 1.2) if large else (9, 0.9)  # points
    arrow_style = {"arrowstyle": "->", "shrinkA": gap, "shrinkB": gap, "linewidth": linewidth}

    def position(i, j):
        return i + 2 * j, -i  # pooling and upsampling move one step to the right, as in the figure of the paper

    def arrow(start, end, is_kept, colour=BLACK, **options):
        options = {**arrow_style, "color": colour if is_kept else "#DDDDDD", **options}
        ax.annotate("", end, start, arrowprops=options, zorder=1)

    for i, j in [(level, step) for level in range(depth + 1) for step in range(depth + 1 - level)]:
        block, is_kept = position(i, j), i + j <= kept
        if i + j:
            arrow(position(i + 1, j - 1) if j else position(i - 1, 0), block, is_kept)
        for before in range(j):
            bend = "arc3" if before == j - 1 else "arc3,rad=-0.2"
            arrow(position(i, before), block, is_kept, PURPLE, linestyle="--", connectionstyle=bend)
        # the decoder of a U-Net of the kept depth lies on the last diagonal
        marker, colour = ("s", BLUE) if j == 0 else ("D", GREEN) if i + j == kept else ("o", SKY)
        look = {"color": colour} if is_kept else {"facecolor": "white", "edgecolor": "#BBBBBB", "linestyle": ":"}
        ax.scatter(*block, s=(850 if marker == "D" else 1150) if large else 190, marker=marker, zorder=2, **look)
        if large:
            text_colour = BLACK if colour == SKY else "white"
            ax.text(*block, f"X({i},{j})", ha="center", va="center", fontsize=9, color=text_colour, zorder=4)
        if i == 0 and j and (large or j == cut):
            x, y = block
            arrow(block, (x, y + 1.4), True, shrinkB=0)
            ax.text(x, y + 1.45, f"output {j}", ha="center", va="bottom", fontsize=9)
    if not large:
        ax.set_title(f"cut at depth {cut}", fontsize=10)
    ax.set(xlim=(-0.7, 2 * depth + 0.9), ylim=(-depth - 0.6, 2.1))
    ax.axis("off")


def flooding(relief: np.ndarray, markers: np.ndarray, levels: Sequence[float]) -> Figure:
    """Draw a watershed in one dimension: the water in a relief at several levels.

    Parameters
    ----------
    relief : float array (N,)
        Height of the ground along a line.
    markers : int array (N,)
        Number of the marker at each position, 0 where there is none. The water rises from the markers.
    levels : sequence of float
        Height of the water in each panel.

    Examples
    --------
    >>> fig = flooding(np.array([1, 0, 2, 0, 1]), np.array([0, 1, 0, 2, 0]), levels=[1, 3])
    >>> [ax.get_title() for ax in fig.axes]
    ['water at 1: 2 basins', 'water at 3: 2 basins, 1 dam']
    """
    relief, markers = np.asarray(relief, float), np.asarray(markers)
    # Twenty positions for each pixel, so that the shores of the water lie on the slopes
    x = np.linspace(0, len(relief) - 1, 20 * len(relief))
    nearest = np.rint(x).astype(int)
    ground, basins = np.interp(x, np.arange(len(relief)), relief), watershed(relief, markers)[nearest]
    floor, ceiling = relief.min() - 0.15 * np.ptp(relief), max(*levels, relief.max()) + 0.1 * np.ptp(relief)
    fig, axes = style._new_figure(len(levels), 1, 6.5, 1.7 * len(levels) + 0.5, sharex=True)
    for ax, level in zip(axes[:, 0], levels, strict=True):
        lakes = _lakes(ground, markers[nearest], basins, level)
        ax.fill_between(x, floor, ground, color="#999999", linewidth=0)
        ax.plot(x, ground, color=BLACK, linewidth=1)
        for number, colour in zip(range(1, basins.max() + 1), cycle((SKY, ORANGE, GREEN, PURPLE)), strict=False):
            ax.fill_between(x, ground, level, where=lakes == number, color=colour, linewidth=0)
        is_dam = (lakes[:-1] > 0) & (lakes[1:] > 0) & (lakes[:-1] != lakes[1:])
        ax.vlines(x[:-1][is_dam], floor, ceiling, color=RED, linewidth=3)
        for number in np.unique(markers[markers > 0]):
            middle = int(np.flatnonzero(markers == number).mean())
            ax.plot(middle, relief[middle], "v", color=BLACK, markersize=8)
        counts = {"basin": len(np.unique(lakes[lakes > 0])), "dam": int(is_dam.sum())}
        words = [f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items() if count]
        ax.set_title(f"water at {level:g}: {', '.join(words) or 'dry'}", fontsize=10)
        ax.set(ylabel="height", ylim=(floor, ceiling), xlim=(0, len(relief) - 1))
    axes[-1, 0].set_xlabel("pixel along the line")
    return fig


def _lakes(relief, markers, basins, level):
    """Return the number of the basin at each wet position, 0 where it is dry."""
    lakes = np.zeros_like(basins)
    for number in np.unique(markers[markers > 0]):
        pools = ndimage.label((relief < level) & (basins == number))[0]
        wet = np.unique(pools[(markers == number) & (pools > 0)])
        lakes[np.isin(pools, wet)] = number
    return lakes


def other_methods(label_map: np.ndarray, prompt: int = 1, n_rays: int = 16) -> Figure:
    """Draw what StarDist, Cellpose and SAM predict for the nuclei of a label map.

    The panels show the rays of star-convex polygons (StarDist), the flow towards the centre of each nucleus (Cellpose),
    and the mask of the nucleus under a point (SAM). All three are computed from the label map.

    Parameters
    ----------
    label_map : int array (H, W)
        A small label map, of about 10 nuclei.
    prompt : int
        Label of the nucleus under the point.
    n_rays : int
        Number of rays of a polygon.

    Examples
    --------
    >>> fig = other_methods(np.pad(np.ones((9, 9), int), 3))
    >>> [ax.get_title() for ax in fig.axes]
    ['StarDist: rays', 'Cellpose: flow', 'SAM: a point']
    """
    label_map = np.asarray(label_map)
    fig, axes = style._new_figure(1, 3, 10.5, 3.7)
    titles = ("StarDist: rays", "Cellpose: flow", "SAM: a point")
    pale = np.where((label_map > 0)[..., None], 128 + images.colour_labels(label_map) // 2, 255).astype(np.uint8)
    grey = np.where((label_map > 0) & (label_map != prompt), 225, 255).astype(np.uint8)[..., None]
    pictures = [pale, pale, np.where((label_map == prompt)[..., None], pale, grey)]
    for ax, title, picture in zip(axes[0], titles, pictures, strict=True):
        style._draw_image(ax, picture, 3.3)
        ax.set_title(title)
    rays, flow, point = axes[0]
    numbers = np.unique(label_map[label_map > 0])
    centres = {n: _deepest_pixel(label_map == n) for n in numbers}
    for number, (row, column) in centres.items():
        ends = _ray_ends(label_map == number, row, column, n_rays)
        for y, x in ends:
            rays.plot([column, x], [row, y], color=BLACK, linewidth=1)
        rays.fill(ends[:, 1], ends[:, 0], fill=False, edgecolor=RED, linewidth=2)
        rays.plot(column, row, "o", color=BLACK, markersize=4)
        flow.plot(column, row, "o", color=RED, markersize=5)
    down, right = _flows(label_map, centres)
    rows, columns = (index[::3, ::3] for index in np.indices(label_map.shape))
    shown = label_map[::3, ::3] > 0
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 0.4, "width": 0.006}
    flow.quiver(columns[shown], rows[shown], right[::3, ::3][shown], down[::3, ::3][shown], **arrows)
    if prompt in centres:
        point.plot(*centres[prompt][::-1], "*", color=RED, markersize=18, markeredgecolor="white")
    return fig


def _deepest_pixel(nucleus):
    depth = distance_map(nucleus.astype(int))
    return np.unravel_index(depth.argmax(), depth.shape)


def _ray_ends(nucleus, row, column, n_rays):
    """Return the last pixel of the nucleus (row, column) in each direction from a centre."""
    lengths = np.arange(0, sum(nucleus.shape), 0.25)
    ends = []
    for angle in np.arange(n_rays) * 2 * np.pi / n_rays:
        path = np.stack([row + lengths * np.sin(angle), column + lengths * np.cos(angle)])
        inside = ndimage.map_coordinates(nucleus.astype(float), path, order=0) > 0
        ends.append(path[:, np.argmin(inside) - 1])
    return np.array(ends)


def _flows(label_map, centres):
    """Return the direction (down, right) from each pixel to its centre, around corners.

    Heat that spreads from the centre of a nucleus, and only inside of it, gives the direction, as in Cellpose
    (doi:10.1038/s41592-020-01018-x).
    """
    flows = np.zeros((2, *label_map.shape))
    for number, centre in centres.items():
        nucleus = label_map == number
        heat = np.zeros(label_map.shape)
        for _ in range(4 * int(np.sqrt(nucleus.sum()))):
            heat[centre] += 1
            heat = np.where(nucleus, ndimage.uniform_filter(heat, 3, mode="constant"), 0)
        gradient = np.array(np.gradient(np.log1p(1e9 * heat)))
        flows += np.where(nucleus, gradient / np.maximum(np.hypot(*gradient), 1e-9), 0)
    return flows
