"""Show how predictions change during a training: as a GIF animation and as a figure.

`training.read_previews` reads the predictions that a training stored after each epoch.
"""

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nuclei_utils.files import atomic_write
from nuclei_utils.metrics import dice
from nuclei_utils.plots import style
from nuclei_utils.plots.images import show_image_rows
from nuclei_utils.plots.style import BLUE

Predictions = Sequence[Sequence[np.ndarray]]
HOLD = 2500  # duration of the last frame, milliseconds


def animate_training(
    records: Sequence,
    predictions: Predictions,
    path: str | PathLike,
    title: str | None = None,
    fps: float = 5,
    max_frames: int = 40,
    max_megabytes: float = 3.0,
) -> Path:
    """Write a GIF of the predictions after each epoch.

    The function returns the path. Each frame shows the images, the true masks and the predictions with their Dice. The
    animation loops and holds the last frame.

    Parameters
    ----------
    records : sequence of datasets.Record
        Preview images, one column each. About five fit.
    predictions : sequence of sequence of float array (H, W)
        Probabilities in [0, 1] before training and after each epoch, one map per image (`training.read_previews`).
    fps : float
        Frames per second.
    max_frames : int
        Maximum number of frames, `max_frames >= 2`. Longer trainings are shown at evenly spaced epochs.
    max_megabytes : float
        Maximum size of the file, 10**6 bytes. Frames are left out until the file is small enough.

    Raises
    ------
    ValueError
        If images and predictions do not match, or the size limit is too small for two frames.
    """
    _check_predictions(records, predictions)
    path, draw = Path(path), _frame_drawer(records, predictions, title)
    epochs = _spaced(len(predictions), max_frames)
    while len(content := _encode_gif([draw(epoch) for epoch in epochs], fps)) > max_megabytes * 1e6:
        if len(epochs) <= 2:
            raise ValueError(
                f"{path.name}: an animation of {len(epochs)} frames takes {len(content) / 1e6:.2f} MB, more than "
                f"{max_megabytes:g} MB: show fewer images, or raise max_megabytes"
            )
        epochs = _spaced(len(predictions), 3 * len(epochs) // 4)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def show_training(
    records: Sequence,
    predictions: Predictions,
    epochs: int | Sequence[int] = 5,
    names: Sequence[str] = (),
    title: str | None = None,
) -> Figure:
    """Show image, predictions at some epochs, and truth, one row per image.

    `records` and `predictions` are those of `animate_training`. `epochs` is the number of evenly spaced epochs, or the
    epochs themselves. `names` gives the name of each row.
    """
    _check_predictions(records, predictions)
    epochs = _spaced(len(predictions), epochs) if isinstance(epochs, int) else list(epochs)
    rows, captions = [], []
    for index, record in enumerate(records):
        maps, truth = [np.asarray(predictions[epoch][index], float) for epoch in epochs], record.label_map > 0
        rows.append([record.image, *maps, truth])
        captions.append(["", *(f"Dice {float(dice(truth, probability)):.2f}" for probability in maps), ""])
    titles = ["image", *(f"epoch {epoch}" if epoch else "untrained" for epoch in epochs), "truth"]
    return show_image_rows(rows, names, [titles], captions, size=1.25, title=title)


def _spaced(count, maximum):
    """Return at most `maximum` evenly spaced numbers of `range(count)`.

    The first and the last number are included.
    """
    return np.unique(np.linspace(0, count - 1, min(max(maximum, 2), count)).round().astype(int)).tolist()


def _check_predictions(records, predictions):
    expected = [record.label_map.shape for record in records]
    if not expected or not len(predictions):
        raise ValueError(f"expected images and epochs, found {len(expected)} images and {len(predictions)} epochs")
    for epoch, maps in enumerate(predictions):
        if (shapes := [np.shape(probability) for probability in maps]) != expected:
            raise ValueError(
                f"the predictions of epoch {epoch} have the shapes {shapes}, the images {expected}: "
                "pass the records whose predictions were recorded, in the same order"
            )


def _frame_drawer(records, predictions, title):
    """Return a function that draws the frame of an epoch."""
    columns = len(records)
    fig = Figure(figsize=(1.2 * columns + 0.2, 4.3), dpi=100, layout="compressed")  # pyplot would show it in a notebook
    FigureCanvasAgg(fig)
    heading = fig.suptitle(" ", fontsize=9)
    grid = fig.add_gridspec(4, columns, height_ratios=(0.08, 1, 1, 1))
    bar_ax = fig.add_subplot(grid[0, :], xticks=[], yticks=[])
    (bar,) = bar_ax.barh(0, 0, color=BLUE)
    bar_ax.set(xlim=(0, max(len(predictions) - 1, 1)), ylim=(-0.4, 0.4))
    axes = np.array([[fig.add_subplot(grid[row, column]) for column in range(columns)] for row in (1, 2, 3)])
    for column, record in zip(axes.T, records, strict=True):
        images = style._as_rgb(record.image), record.label_map > 0, 0 * record.label_map
        for ax, image in zip(column, images, strict=True):
            style._draw_image(ax, image, 1.2, cmap="gray", vmin=0, vmax=1)
        column[2].set_xlabel("Dice 0.00", fontsize=9)
    for ax, name in zip(axes[:, 0], ("image", "truth", "prediction"), strict=True):
        ax.set_ylabel(name, fontsize=9)

    @cache
    def draw(epoch):
        scores = []
        for ax, record, probability in zip(axes[2], records, predictions[epoch], strict=True):
            scores.append(float(dice(record.label_map > 0, probability)))
            ax.images[0].set_data(np.asarray(probability, float))
            ax.set_xlabel(f"Dice {scores[-1]:.2f}")
        state = f"epoch {epoch} of {len(predictions) - 1}" if epoch else "before training"
        heading.set_text(f"{title + ': ' if title else ''}{state}\nmean Dice of these images {np.mean(scores):.2f}")
        bar.set_width(epoch)
        fig.canvas.draw()
        return Image.fromarray(np.asarray(fig.canvas.buffer_rgba())).convert("RGB")

    draw(0)
    fig.set_layout_engine("none")  # the panels must not move between frames
    return draw


def _encode_gif(frames, fps):
    """Encode images with one palette, to store only their changes."""
    sample = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]])
    palette = Image.fromarray(sample).quantize(96, dither=Image.Dither.NONE)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [10 * round(100 / fps)] * len(others) + [HOLD]  # a GIF counts hundredths of a second
    content = BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return content.getvalue()
