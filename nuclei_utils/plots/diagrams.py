"""Diagrams of the U-Net and of the U-Net++."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nuclei_utils.plots import style
from nuclei_utils.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY

SKIP = Line2D([], [], color=PURPLE, linestyle="--", label="skip connection")


def architecture(model: Any) -> Figure:
    """Draw the feature maps and skip connections of a U-Net.

    The model is a `keras.Model` with a fixed image size. Each decoder level needs a `Conv2DTranspose` or `UpSampling2D`
    layer and a `Concatenate` layer.
    """
    blocks = _blocks(model)
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
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "grey"})
    for x in range(depth):
        y = 0.45 - drops[x]
        arrow = {"arrowstyle": "->", "color": PURPLE, "linestyle": "--", "linewidth": 1.5}
        ax.annotate("", (2 * depth - x - 0.45, y), (x + 0.45, y), arrowprops=arrow)
    key = {"encoder": BLUE, "bottleneck": ORANGE, "decoder": GREEN, "output": BLACK}
    patches = [Patch(color=colour, label=name) for name, colour in key.items()]
    ax.legend(handles=[*patches, SKIP], loc="lower left", fontsize=9, frameon=False)
    ax.set(xlim=(-0.8, len(blocks) - 0.2), ylim=(-drops.max() - 0.7, 0.8))
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
    skips = [next(tensor for tensor in join.input if tensor is not up.output) for up, join in levels]
    head = model.get_layer(model.output_names[0])
    tensors = [*reversed(skips), *(layer.input for layer in upsamplings), head.input, head.output]
    blocks = [tensor.shape[1:] for tensor in tensors]
    if any(None in block for block in blocks):
        raise ValueError(f"{model.name} leaves the image size open: build the model with a fixed input shape")
    return blocks


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
