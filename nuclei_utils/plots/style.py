"""Colours (also of outlines), markers, legends and other helpers that the figures share."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/)
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK, YELLOW)


def _as_rgb(image):
    """Convert an image or mask to a uint8 array (H, W, 3).

    Floats are clipped to [0, 1].
    """
    image = np.asarray(image)
    if image.dtype.kind in "iu" and image.dtype != np.uint8:
        raise ValueError(
            f"cannot show {image.dtype} from {image.min()} to {image.max()}, expected uint8, bool, or float in [0, 1]: "
            "show a label map with plots.colour_labels, a mask as `mask > 0`; read a 16-bit image with io.read_image"
        )
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    image = np.atleast_3d(image)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _styles():
    """Yield pairs of a colour and a marker, without end."""
    return zip(cycle(CYCLE), cycle("os^Dv*XP"), strict=True)


def _readable(name):
    """Return a name with spaces in place of underscores."""
    return str(name).replace("_", " ")


def _new_figure(rows, columns, width, height, title=None, **options):
    """Return a figure and its axes, an array (rows, columns).

    The sizes are in inches.
    """
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)
    if title:
        fig.suptitle(title)
    return fig, axes


def _draw_image(ax, image, inches, **options):
    """Show an image in a panel of side `inches`.

    A small image is enlarged with sharp pixels. A large image is averaged to keep thin lines.
    """
    enlarged = max(image.shape[:2]) < 0.9 * inches * ax.get_figure().dpi  # margins take about a tenth
    ax.imshow(image, interpolation="nearest" if enlarged else "antialiased", **options)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(color="grey", linewidth=0.8)


def _log_axis(ax, formatter="{x:g}"):
    """Make the x axis logarithmic, with plain numbers at 1, 2, 5, 10, 20, ..."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(formatter)
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend_beside(ax, title=None):
    """Put the legend to the right of an axes."""
    ax.legend(title=title, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _legend_below(fig, handles=None):
    """Put one legend below all axes of a figure.

    By default, the legend is that of the first axes.
    """
    handles = handles or fig.axes[0].get_legend_handles_labels()[0]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
