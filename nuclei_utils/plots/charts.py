"""Draw charts from tables: learning curves, precision-recall curves, points, boxes and heatmaps.

`tables` is a dictionary: the name of a line or panel, and its pandas.DataFrame. `by` is the name of the column that
groups the rows.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

from nuclei_utils.plots import style
from nuclei_utils.plots.style import BLACK, BLUE, ORANGE, RED

Series = Mapping[str, Sequence[float] | pd.Series]
Tables = Mapping[str, pd.DataFrame]


def line_chart(
    series: Series, xlabel: str, ylabel: str, log: str = "", ylim: tuple | None = None, title: str | None = None
) -> Figure:
    """Plot series of numbers as lines.

    The index of a pandas.Series gives the x values; other sequences start at x = 1. `log` names the logarithmic axes:
    "", "x", "y" or "xy".
    """
    fig, ((ax,),) = style._new_figure(1, 1, 7, 3.8)
    if "x" in log:
        style._log_axis(ax)
    if "y" in log:
        ax.set_yscale("log")
    _draw_lines(ax, series)
    x_values = {x for line in ax.lines for x in line.get_xdata()}
    if len(x_values) <= 6:
        ax.set_xticks(sorted(x_values))
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, ylim=ylim)
    if len(series) > 4:
        style._legend_beside(ax)
    elif len(series) > 1:
        ax.legend()
    return fig


def line_panels(
    tables: Tables,
    x: str,
    y: str,
    by: str,
    xlabels: Mapping[str, str] | None = None,
    references: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Plot a score against another column, in a panel per group.

    The score, column `y`, is in [0, 1]. Each table is a line. `by` is a column or an index level. Text in `x` is placed
    at equal distances. `xlabels` gives the label of the x axis of a panel, by default `x`. `references` gives the
    position of a vertical line in each panel.
    """
    groups = {name: dict(list(table.groupby(by, sort=False))) for name, table in tables.items()}
    panels = list(next(iter(groups.values())))
    fig, axes = style._new_figure(1, len(panels), 3.1 * len(panels), 3.6, title, sharey=True)
    for ax, panel in zip(axes[0], panels, strict=True):
        _draw_lines(ax, {name: group[panel].set_index(x)[y] for name, group in groups.items()})
        if references:
            ax.axvline(references[panel], color=BLACK, linestyle=":")
            ax.text(references[panel], 0.03, f" {references[panel]:.2f}", transform=ax.get_xaxis_transform())
        ax.set(title=panel, xlabel=(xlabels or {}).get(panel, style._readable(x)), ylim=(-0.02, 1.02))
    axes[0, 0].set_ylabel(style._readable(y))
    style._legend_below(fig)
    return fig


def gradient_descent(
    curve: pd.Series, runs: Mapping[str, Sequence[float]], xlabel: str = "weight", title: str | None = None
) -> Figure:
    """Plot the steps of gradient descent on a loss curve, one panel per run.

    `curve` has the loss; its index has the weights in increasing order. `runs` gives the weights of each run, from the
    start to the end. A step that leaves the curve is drawn at the border of the panel.

    Examples
    --------
    >>> curve = pd.Series([4.0, 1, 0, 1, 4], index=[-2.0, -1, 0, 1, 2])
    >>> fig = gradient_descent(curve, {"rate 0.25": [2, 1, 0.5]})
    >>> [ax.get_title() for ax in fig.axes]
    ['rate 0.25']
    """
    fig, axes = style._new_figure(
        1, len(runs), 3.3 * len(runs) + (1.2 if len(runs) == 1 else 0), 3.4, title, sharey=True
    )
    for ax, (name, weights) in zip(axes[0], runs.items(), strict=True):
        visible = np.clip(weights, curve.index[0], curve.index[-1])
        ax.plot(curve.index, curve, color="grey")
        ax.plot(visible, np.interp(visible, curve.index, curve), "o-", color=BLUE, markersize=5, linewidth=0.8)
        ax.plot(visible[0], np.interp(visible[0], curve.index, curve), "s", color=ORANGE, markersize=9, label="start")
        ax.plot(visible[-1], np.interp(visible[-1], curve.index, curve), "^", color=RED, markersize=10, label="end")
        ax.set(title=name, xlabel=xlabel)
    axes[0, 0].set_ylabel("loss")
    axes[0, 0].legend()
    return fig


def learning_curves(
    history: pd.DataFrame, names: Sequence[str] = ("loss", "dice", "iou"), title: str | None = None
) -> Figure:
    """Plot training and validation metrics against the epoch.

    A vertical line marks the best epoch. The history has a column `epoch`, counted from 0, and the columns NAME and
    val_NAME for each NAME in `names`. The best epoch has the highest `val_dice`, or the lowest `val_loss` if the
    history has no `val_dice`.
    """
    history = history.set_index(history["epoch"] + 1)
    best = history["val_dice"].idxmax() if "val_dice" in history else history["val_loss"].idxmin()
    fig, axes = style._new_figure(1, len(names), 4 * len(names), 3.4, title)
    for ax, name in zip(axes[0], names, strict=True):
        _draw_lines(ax, {"training": history[name], "validation": history[f"val_{name}"]})
        ax.axvline(best, color="grey", linestyle=":", label=f"best epoch ({best})")
        ax.set(xlabel="epoch", title=style._readable(name), ylim=None if name == "loss" else (0, 1))
    axes[0, 0].legend()
    return fig


def compare_histories(
    histories: Tables, column: str = "val_dice", ymin: float = 0.0, title: str | None = None
) -> Figure:
    """Plot a metric of several trainings against the epoch.

    A ring marks the best epoch of each training. The metric `column` lies in [0, 1], higher is better. The y axis
    starts at `ymin`.
    """
    curves = {name: pd.Series(table[column].to_numpy(), range(1, len(table) + 1)) for name, table in histories.items()}
    series = {f"{name} (best: {curve.max():.3f})": curve for name, curve in curves.items()}
    label = style._readable(column.replace("val_", "validation "))
    fig = line_chart(series, "epoch", label, ylim=(ymin, 1), title=title)
    (ax,) = fig.axes
    for curve, (colour, marker) in zip(curves.values(), style._styles(), strict=False):
        ax.plot(curve.idxmax(), curve.max(), marker, color=colour, markersize=11, fillstyle="none")
    ax.legend(loc="lower right")
    return fig


def pr_roc_curves(tables: Tables, threshold: float = 0.5, zoom: float = 1.0, title: str | None = None) -> Figure:
    """Plot precision-recall and ROC curves, with a point at one threshold.

    The tables are those of `metrics.threshold_scores`. `zoom` is the fraction of each axis to show, `0 < zoom <= 1`;
    the best corner stays visible.
    """
    fig, ((left, right),) = style._new_figure(1, 2, 8.6, 4.8, title)
    low, high, margin = 1 - 1.02 * zoom, 1 + 0.02 * zoom, 0.02 * zoom
    for ax, x, y in ((left, "recall", "precision"), (right, "false_positive_rate", "recall")):
        for (name, table), (colour, marker) in zip(tables.items(), style._styles(), strict=False):
            # precision is undefined without predicted pixels
            rows = table[table["tp"] + table["fp"] > 0] if y == "precision" else table
            nearest = np.abs(rows["threshold"].to_numpy() - threshold).argsort(kind="stable")[:1].tolist()
            look = {"marker": marker, "mec": "white", "markersize": 8, "markevery": nearest}
            ax.plot(rows[x], rows[y], color=colour, label=name, **look)
        ax.set(ylim=(low, high), ylabel=y, aspect="equal")
        ax.grid(alpha=0.4)
    left.set(title="precision and recall", xlabel="recall: fraction of nucleus found", xlim=(low, high))
    right.set(title="ROC", xlabel="false positive rate: fraction of background", xlim=(-margin, zoom + margin))
    if zoom == 1:  # a smaller part does not show the diagonal
        (diagonal,) = right.plot([0, 1], [0, 1], color="grey", linestyle=":", label="random guess")
        right.legend(handles=[diagonal], loc="lower right")
    point = Line2D([], [], color="grey", marker="o", linestyle="", label=f"threshold {threshold:g}")
    style._legend_below(fig, [*left.lines, point])
    return fig


def calibration_curves(tables: Tables, title: str | None = None) -> Figure:
    """Plot observed fractions of nucleus against predicted probabilities.

    A second panel shows the number of pixels. The tables are those of `metrics.calibration_table`.
    """
    fig, ((above,), (below,)) = style._new_figure(2, 1, 5.6, 6.4, title, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect calibration")
    tables = {name: table[table["pixels"] > 0] for name, table in tables.items()}
    _draw_lines(above, {name: table.set_index("predicted")["observed"] for name, table in tables.items()})
    middles = {name: table.set_index((table["low"] + table["high"]) / 2) for name, table in tables.items()}
    _draw_lines(below, {name: table["pixels"] for name, table in middles.items()})
    above.set(ylabel="observed fraction of nucleus", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    above.legend()
    below.set(xlabel="predicted probability of nucleus", ylabel="pixels", yscale="log")
    return fig


def _draw_lines(ax, series):
    """Draw each series with its own colour, marker and dashes. Long series have no markers."""
    dashes = cycle(("-", "--", "-.", ":"))
    for (name, values), (colour, marker) in zip(series.items(), style._styles(), strict=False):
        x = values.index if isinstance(values, pd.Series) else np.arange(1, len(values) + 1)
        marker = marker if len(x) <= 30 else None
        ax.plot(x, values, color=colour, linestyle=next(dashes), marker=marker, markersize=4, label=name)
        if pd.api.types.is_integer_dtype(x) and ax.get_xscale() == "linear":
            ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.4)


def dot_plot(
    values: pd.Series,
    xlabel: str,
    interval: pd.DataFrame | None = None,
    group: pd.Series | None = None,
    reference: float | None = None,
    log: bool = False,
    title: str | None = None,
) -> Figure:
    """Draw one number per row, with optional intervals or groups.

    The index of `values` names the rows from top to bottom; a MultiIndex names differences. A missing number has no
    mark. `interval` has two columns: the lower and upper ends of the intervals. `group` gives the group of each row,
    shown by colour and marker; without groups, the numbers are written beside the marks. `reference` is the position
    of a vertical line, `log` makes the axis logarithmic.
    """
    difference = " \N{MINUS SIGN} "
    names = [difference.join(name) if isinstance(name, tuple) else style._readable(name) for name in values.index]
    fig, ((ax,),) = style._new_figure(1, 1, 7.5, (0.5 if group is None else 0.32) * len(values) + 1.1)
    if log:
        style._log_axis(ax)
    if reference is not None:
        ax.axvline(reference, color="grey", linestyle=":")
    if interval is not None:
        ax.hlines(range(len(values)), *interval.to_numpy().T, color=BLACK, linewidth=2, zorder=1)
    table = pd.DataFrame({"value": values.to_numpy(), "row": range(len(values))})
    groups = np.full(len(values), "") if group is None else group.loc[values.index].to_numpy()
    _draw_points(ax, table.groupby(groups, sort=False), "value", "row", markersize=8)
    if group is None:
        for row, value in enumerate(values):
            text = f"{value:.3g}" if interval is None else f"{value:.3f}"
            ax.annotate(text, (value, row), xytext=(0, 7), textcoords="offset points", ha="center")
    else:
        style._legend_beside(ax)
    ax.set_yticks(range(len(values)), names)
    ax.margins(x=0.1)
    ax.set(ylim=(len(values) - 0.5, -0.7), xlabel=xlabel, title=title)
    return fig


def scatter_plot(table: pd.DataFrame, x: str, y: str, by: str = "image_type", title: str | None = None) -> Figure:
    """Plot column `y` against column `x`.

    Each group in column `by` has its own colour and marker.
    """
    fig, ((ax,),) = style._new_figure(1, 1, 6.8, 4.2)
    _draw_points(ax, table.groupby(by), x, y, alpha=0.7)
    ax.set(xlabel=x, ylabel=y, title=title)
    style._legend_beside(ax, style._readable(by))
    return fig


def _draw_points(ax, groups, x, y, **options):
    """Draw each group of rows with its own colour and marker."""
    for (name, group), (colour, marker) in zip(groups, style._styles(), strict=False):
        ax.plot(group[x], group[y], marker, color=colour, label=style._readable(name), **options)
    ax.grid(alpha=0.4)


def count_scatter(table: pd.DataFrame, by: str = "image_type", title: str | None = None) -> Figure:
    """Plot the predicted against the true number of nuclei.

    The columns are `predicted` and `true`. Each image is a point. The axes are linear up to 10 and logarithmic above,
    so that 0 is visible.
    """
    fig = scatter_plot(table, "true", "predicted", by, title)
    (ax,) = fig.axes
    end = 1.15 * max(table[["true", "predicted"]].to_numpy().max(initial=0), 10)
    ax.plot([0, end], [0, end], color="grey", linestyle=":", label="equal numbers", zorder=0)
    ax.set_xscale("symlog", linthresh=10)
    ax.set_yscale("symlog", linthresh=10)
    ticks = [tick for tick in (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if tick <= end]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(ticks, map(str, ticks))
        axis.set_ticks([], minor=True)
    ax.set(xlabel="true number of nuclei", ylabel="predicted number of nuclei")
    ax.set(xlim=(-0.5, end), ylim=(-0.5, end), aspect="equal")
    style._legend_beside(ax, style._readable(by))
    return fig


def score_vs_cost(
    table: pd.DataFrame, costs: Mapping[str, str], family: Sequence[str] = (), title: str | None = None
) -> Figure:
    """Plot the Dice of models against their costs.

    Each cost has a panel with a logarithmic x axis. The index of the table names the models. The columns are `dice` and
    the costs; `costs` gives the labels of their axes. `family` names the cuts of one network, smallest first: they are
    numbered from 1 and joined by a line.
    """
    family = list(family)
    fig, axes = style._new_figure(1, len(costs), 4.6 * len(costs), 4.2, title, sharey=True)
    for ax, (cost, label) in zip(axes[0], costs.items(), strict=True):
        points, looks = table[[cost, "dice"]], style._styles()
        if family:
            colour, marker = next(looks)
            name = f"{family[0]} \N{HORIZONTAL ELLIPSIS} {family[-1]}"
            ax.plot(*points.loc[family].to_numpy().T, f"{marker}-", color=colour, markersize=12, label=name, zorder=2.5)
            for number, point in enumerate(points.loc[family].to_numpy(), start=1):
                ax.annotate(str(number), point, ha="center", va="center_baseline", fontsize=9, color="white")
        for (name, point), (colour, marker) in zip(points.drop(family).iterrows(), looks, strict=False):
            ax.plot(*point, marker, color=colour, markersize=12, label=name)
        style._log_axis(ax, EngFormatter(sep=""))
        ax.set_xlabel(label)
        ax.margins(x=0.12, y=0.15)
        ax.grid(alpha=0.4)
    axes[0, 0].set_ylabel("Dice")
    style._legend_below(fig)
    return fig


def box_plots(
    table: pd.DataFrame,
    xlabels: Mapping[str, str],
    by: str = "image_type",
    order: Sequence[str] | None = None,
    log: Sequence[str] = (),
) -> Figure:
    """Draw quartiles and medians of columns for each group.

    Points show up to 300 random values. `xlabels` gives the columns, one panel each, and the labels of their axes.
    `order` lists the groups from top to bottom, by default sorted; groups without rows are left out. `log` lists the
    columns with a logarithmic axis.
    """
    names = [name for name in order or sorted(table[by].unique()) if (table[by] == name).any()]
    fig, axes = style._new_figure(1, len(xlabels), 1.4 + 3.4 * len(xlabels), 0.9 + 0.5 * len(names), sharey=True)
    rng = np.random.default_rng(0)
    for ax, (column, label) in zip(axes[0], xlabels.items(), strict=True):
        if column in log:
            style._log_axis(ax)
        for row, (name, (colour, _)) in enumerate(zip(names, style._styles(), strict=False)):
            values = table.loc[table[by] == name, column].dropna().to_numpy()
            low, median, high = np.percentile(values, [25, 50, 75])
            ax.barh(row, high - low, left=low, height=0.7, fill=False, edgecolor=BLACK)
            ax.plot([median, median], [row - 0.35, row + 0.35], color=BLACK, linewidth=2.5)
            points = rng.permutation(values)[:300]
            ax.plot(points, row + rng.uniform(-0.3, 0.3, len(points)), ".", color=colour, alpha=0.4, zorder=0)
        ax.set_xlabel(label)
    axes[0, 0].set_yticks(range(len(names)), map(style._readable, names))
    axes[0, 0].invert_yaxis()
    return fig


def heatmaps(
    tables: Tables,
    xlabel: str | None = None,
    ylabel: str | None = None,
    marked: Mapping[str, np.ndarray] | None = None,
    digits: int = 2,
    limits: tuple[float, float] = (0, 1),
) -> Figure:
    """Draw tables as coloured cells with numbers, one panel per table.

    `marked` gives a bool array for each table: cells with a red frame. `limits` is the range of the colours.
    """
    rows, columns = (max(table.shape[dim] for table in tables.values()) for dim in (0, 1))
    fig, axes = style._new_figure(1, len(tables), len(tables) * (0.6 * columns + 1.2), 0.45 * rows + 1.5)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        ax.imshow(table, cmap="cividis", vmin=limits[0], vmax=limits[1], aspect="auto")
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            colour = BLACK if value > np.mean(limits) else "white"
            ax.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=9)
        for row, column in np.argwhere(marked[name]) if marked else ():
            corner = column - 0.46, row - 0.46
            ax.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=RED, linewidth=2.5))
        ax.set_xticks(range(table.shape[1]), map(str, table.columns))
        ax.set_yticks(range(table.shape[0]), map(str, table.index))
        ax.set(xlabel=xlabel, ylabel=ylabel, title=name)
    return fig
