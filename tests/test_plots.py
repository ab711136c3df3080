"""Figures: the arrays, numbers and words that they show."""

from dataclasses import dataclass

import imageio.v3 as iio
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageSequence
from skimage.segmentation import find_boundaries

from nuclei_utils import metrics, models, plots
from nuclei_utils.labels import touching_pairs


@dataclass
class Record:
    image: np.ndarray
    label_map: np.ndarray
    image_type: str


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    """Draw in memory, and close all figures after each test."""
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a plot function must not show its figure"))
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


@pytest.fixture
def label_map():
    label_map = np.zeros((20, 30), np.int32)
    label_map[2:8, 3:9] = 1
    label_map[2:8, 9:15] = 2  # touches 1
    label_map[12:18, 20:28] = 5
    return label_map


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def records(image, label_map):
    return [
        Record(image, label_map, "grey_tissue"),
        Record(np.repeat(image, 3, axis=0), np.repeat(label_map, 3, axis=0), "purple_on_white"),
    ]


def image_axes(fig):
    """Draw a figure as a notebook does, and return the axes that show an image."""
    fig.canvas.draw()
    return [ax for ax in fig.axes if ax.images]


def shown(ax):
    """Return the array that an axes shows."""
    return np.asarray(ax.images[0].get_array())


def texts(fig):
    """Draw a figure, and return all its text."""
    fig.canvas.draw()
    return [text.get_text() for text in fig.findobj(mpl.text.Text) if text.get_text()]


def points(line):
    return line.get_xydata().tolist()


# Label maps and images as arrays


@pytest.mark.parametrize("label_type", [np.int32, bool])
@pytest.mark.parametrize("scale", [1, 255], ids=["uint8", "float"])
def test_overlay_colours_the_inner_border_and_no_other_pixel(image, label_map, label_type, scale):
    label_map = label_map.astype(label_type)
    expected = image.copy()
    expected[find_boundaries(label_map.astype(int), mode="inner")] = (0, 114, 178)
    picture = image / 255 if scale == 255 else image
    np.testing.assert_array_equal(plots.overlay(picture, label_map, plots.BLUE), expected)


def test_label_overlay_tints_nuclei_and_keeps_the_background(image, label_map):
    colours, outline = plots.colour_labels(label_map), find_boundaries(label_map, mode="inner")
    result = plots.label_overlay(image, label_map)
    np.testing.assert_array_equal(result[outline], colours[outline])
    np.testing.assert_array_equal(result[label_map == 0], image[label_map == 0])
    inside = (label_map > 0) & ~outline
    assert np.abs(result[inside] - 0.5 * image[inside] - 0.5 * colours[inside]).max() <= 0.5


@pytest.mark.parametrize(
    "label_map",
    [
        np.random.default_rng(0).permutation(np.arange(1, 401)).reshape(20, 20).repeat(3, axis=0).repeat(3, axis=1),
        np.column_stack([np.arange(1, 12), np.full(11, 40)]),  # label 40 has more neighbours than colours exist
        np.array([[0, 3, 60000]], np.uint16),
    ],
    ids=["dense", "eleven neighbours", "large labels"],
)
def test_colour_labels_separates_touching_nuclei_from_each_other_and_from_black(label_map):
    colours = plots.colour_labels(label_map)
    assert colours.dtype == np.uint8
    assert (colours.any(axis=-1) == (label_map > 0)).all()
    for first, second in touching_pairs(label_map):
        assert colours[label_map == first][0].tolist() != colours[label_map == second][0].tolist()


@pytest.mark.parametrize(("size", "shape"), [(8, (14, 16)), (16, (16, 16)), (64, (20, 30))])
def test_crop_nucleus_contains_the_whole_outline(label_map, size, shape):
    crop = plots.crop_nucleus(np.zeros((20, 30, 3), np.uint8), label_map, 5, size, colour=plots.SKY)
    assert crop.shape == (*shape, 3)
    assert (crop == (86, 180, 233)).all(axis=2).sum() == 2 * 8 + 2 * 4


def test_crop_nucleus_centres_the_nucleus_and_refuses_an_absent_label():
    label_map = np.zeros((100, 100), int)
    label_map[40:44, 60:64] = 3
    outline = plots.crop_nucleus(np.zeros((100, 100)), label_map, 3, size=20).any(axis=2)
    assert np.argwhere(outline).mean(axis=0).tolist() == [9.5, 9.5]
    with pytest.raises(ValueError, match="label 2"):
        plots.crop_nucleus(label_map > 0, label_map, 2)


# Figures of images


def test_show_images_displays_each_type_of_image_and_refuses_a_label_map(image, label_map):
    mask = (image[..., :1] > 9).astype(np.float32)
    fig = plots.show_images([image, image / 255, image[..., 0], mask], list("abcd"), columns=3, title="all")
    axes = image_axes(fig)
    assert [ax.get_title() for ax in axes] == list("abcd")
    assert "all" in texts(fig)
    for ax, expected in zip(axes, (image, image, image[..., [0, 0, 0]], 255 * mask[..., [0, 0, 0]]), strict=True):
        np.testing.assert_array_equal(shown(ax), expected)
    assert sum(ax.get_visible() for ax in fig.axes) == 4, "empty panels are hidden"
    with pytest.raises(ValueError, match="colour_labels"):
        plots.show_images([label_map])


def test_show_samples_names_image_type_and_number_of_nuclei(image, label_map):
    records = [Record(image, label_map, "grey_tissue"), Record(image, 0 * label_map, "fluorescence_small")]
    axes = image_axes(plots.show_samples(records, outlines=True))
    assert [ax.get_title() for ax in axes] == ["grey tissue\n3 nuclei", "fluorescence small\n0 nuclei"]
    np.testing.assert_array_equal(shown(axes[0]), plots.overlay(image, label_map))
    np.testing.assert_array_equal(shown(image_axes(plots.show_samples(records))[0]), image)


def test_show_image_rows_of_different_lengths(image):
    rows = {"many": [image] * 4, "one": [image[..., 0] / 255], "none": []}
    fig = plots.show_image_rows(rows.values(), rows, [list("abcd")], captions=[["caption"]])
    axes = image_axes(fig)
    assert len(axes) == 5
    assert {"many", "one", "a", "d", "caption"} <= set(texts(fig))
    assert axes[4].images[0].get_clim() == (0, 1), "float images keep their range"


def test_show_predictions_shows_errors_and_dice(image, label_map):
    probabilities = [np.zeros((20, 30), np.float32), (label_map > 0).astype(np.float32)]
    fig = plots.show_predictions([image] * 2, [label_map] * 2, probabilities, [0.25, 1.0], title="before")
    axes = np.reshape(image_axes(fig), (2, 4))
    for row, probability in zip(axes, probabilities, strict=True):
        np.testing.assert_array_equal(shown(row[3]), plots.error_map(label_map, probability > 0.5))
        assert row[2].images[0].get_clim() == (0, 1), "probabilities keep their range"
    assert {"before", "truth", "errors", "true positive", "false positive"} <= set(texts(fig))
    assert [ax.get_xlabel() for ax in axes[:, 3]] == ["Dice 0.25", "Dice 1.00"]
    title, legend = fig.texts[0].get_window_extent(), fig.legends[0].get_window_extent()
    assert max(ax.title.get_window_extent().y1 for ax in axes[0]) < title.y0 < title.y1 <= fig.bbox.y1
    assert legend.y1 < axes[-1, 3].xaxis.label.get_window_extent().y0, "the legend lies below the images"


def test_show_pairs_shows_overlays_above_masks(image, label_map):
    masks = (label_map > 0).astype(np.float32)[..., None]
    fig = plots.show_pairs([image / 255] * 2, [masks] * 2, ["a", "b"], title="batch")
    axes = np.reshape(image_axes(fig), (2, 2))
    assert {"a", "b", "batch"} <= set(texts(fig))
    np.testing.assert_array_equal(shown(axes[0, 0]), plots.overlay(image, label_map > 0))
    np.testing.assert_array_equal(shown(axes[1, 0]), 255 * np.repeat(label_map[..., None] > 0, 3, axis=2))


def test_show_histograms_cover_the_range_of_the_type(image):
    fig = plots.show_histograms([image, image / 255], ["8 bits", "float"], title="values")
    assert {"8 bits", "float", "values", "pixel value"} <= set(texts(fig))
    first, _, below, below_float = fig.axes
    np.testing.assert_array_equal(shown(first), image)
    assert (below.get_xlim(), below_float.get_xlim()) == ((0, 255), (0, 1))
    assert sum(bar.get_height() for bar in below.patches) == image.size


def test_thin_lines_stay_visible_in_small_panels():
    line = np.zeros((1200, 600))
    line[604] = 1  # nearest-neighbour interpolation would skip this row
    fig = plots.show_images([line], columns=1, size=2)
    box = image_axes(fig)[-1].get_window_extent()
    pixels = np.asarray(fig.canvas.buffer_rgba())[::-1, :, 0].astype(int)
    assert np.ptp(pixels[int(box.y0) + 3 : int(box.y1) - 3, int(box.x0) + 3 : int(box.x1) - 3]) > 10


def test_numbered_labels_writes_each_label_on_its_nucleus(label_map):
    fig = plots.numbered_labels([label_map, 0 * label_map], ["nuclei", "empty"])
    nuclei, empty = image_axes(fig)
    assert {text.get_text() for text in nuclei.texts} == {"1", "2", "5"}
    for text in nuclei.texts:
        x, y = text.get_position()
        assert label_map[round(y), round(x)] == int(text.get_text())
    assert not empty.texts
    assert {"nuclei", "empty"} <= set(texts(fig))


def test_show_measurements_numbers_the_nuclei_and_counts_them(image, label_map):
    fig = plots.show_measurements(image, label_map, {"first_one": [1, 2, 2], "second": [9.0]}, "area (pixels)")
    left, right = fig.axes
    assert [text.get_text() for text in left.texts] == ["1", "2", "5"]
    assert sum(bar.get_height() for bar in right.patches) == 4
    assert {"first one", "second", "area (pixels)", "number of nuclei"} <= set(texts(fig))
    assert not plots.show_measurements(image, 0 * label_map, {"none": []}, "area").axes[0].texts


# Charts


def test_line_chart_of_sequences_and_of_a_table():
    fig = plots.line_chart({"a": [1, 2, 4], "b": [3, 3, 3]}, "step", "size", log="y", title="chart")
    (ax,) = fig.axes
    assert [points(line) for line in ax.lines] == [[[1, 1], [2, 2], [3, 4]], [[1, 3], [2, 3], [3, 3]]]
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert {"a", "b", "step", "size", "chart"} <= set(texts(fig))
    table = pd.DataFrame({"frozen": [0.5, 0.6]}, [5, 26])
    (ax,) = plots.line_chart(table, "training images", "Dice", log="x", ylim=(0, 1)).axes
    assert points(ax.lines[0]) == [[5, 0.5], [26, 0.6]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["5", "26"]
    assert ax.get_ylim() == (0, 1)


def test_line_panels_has_one_panel_per_group_and_one_line_per_table():
    table = pd.DataFrame(
        {"distortion": ["blur"] * 2 + ["noise"] * 2, "strength": list("0401"), "dice": [0.9, 0.3, 0.9, 0.1]}
    )
    options = {"xlabels": {"blur": "sigma (pixels)"}, "references": {"blur": 0.45, "noise": 0.2}, "title": "worse"}
    fig = plots.line_panels({"A": table, "B": table}, "strength", "dice", "distortion", **options)
    blur, noise = fig.axes
    assert {"A", "B", "worse", "dice", "blur", "noise"} <= set(texts(fig))
    assert (blur.get_xlabel(), noise.get_xlabel()) == ("sigma (pixels)", "strength")
    assert [line.get_ydata().tolist() for line in noise.lines[:2]] == [[0.9, 0.1]] * 2
    assert [tick.get_text() for tick in blur.get_xticklabels()] == ["0", "4"]
    assert blur.lines[2].get_xdata()[0] == 0.45


def test_gradient_descent_draws_the_steps_of_each_run_on_the_curve():
    curve = pd.Series([4.0, 1, 0, 1, 4], index=[-2.0, -1, 0, 1, 2])
    fig = plots.gradient_descent(curve, {"right": [2, 1, 0.5], "too large": [2, -3]}, xlabel="threshold", title="steps")
    right, large = fig.axes
    assert {"right", "too large", "steps", "threshold", "loss", "start", "end"} <= set(texts(fig))
    line, steps, start, end = right.lines
    assert line.get_ydata().tolist() == curve.tolist()
    assert steps.get_xydata().tolist() == [[2, 4], [1, 1], [0.5, 0.5]]
    assert (start.get_xydata().tolist(), end.get_xydata().tolist()) == ([[2, 4]], [[0.5, 0.5]])
    assert large.lines[1].get_xdata().tolist() == [2, -2], "a step beyond the curve is drawn at its border"


def history(**columns):
    return pd.DataFrame({"epoch": range(len(next(iter(columns.values())))), **columns})


def test_learning_curves_mark_the_best_epoch():
    table = history(loss=[3.0, 2, 1], val_loss=[3.0, 2.5, 2.6], dice=[0.1, 0.5, 0.7], val_dice=[0.1, 0.6, 0.5])
    fig = plots.learning_curves(table, ("loss", "dice"), title="run")
    loss, dice = fig.axes
    assert {"training", "validation", "best epoch (2)", "run", "epoch", "loss", "dice"} <= set(texts(fig))
    assert dice.get_ylim() == (0, 1)
    assert [line.get_ydata().tolist() for line in dice.lines[:2]] == [[0.1, 0.5, 0.7], [0.1, 0.6, 0.5]]
    assert loss.lines[2].get_xdata()[0] == 2
    without_dice = plots.learning_curves(table[["epoch", "loss", "val_loss"]].iloc[::2], ("loss",))
    assert "best epoch (3)" in texts(without_dice), "the epoch with the lowest loss"


def test_compare_histories_marks_the_best_epoch_of_each_training():
    histories = {"good": history(val_dice=[0.2, 0.9, 0.8]), "short": history(val_dice=[0.1, 0.3]).assign(epoch=[5, 6])}
    fig = plots.compare_histories(histories, ymin=0.1, title="two")
    (ax,) = fig.axes
    assert {"good (best: 0.900)", "short (best: 0.300)", "validation dice", "two"} <= set(texts(fig))
    curves = [[[1, 0.2], [2, 0.9], [3, 0.8]], [[1, 0.1], [2, 0.3]]]
    assert [points(line) for line in ax.lines] == [*curves, [[2, 0.9]], [[2, 0.3]]]
    assert ax.get_ylim() == (0.1, 1)


@pytest.mark.parametrize("zoom", [1, 0.2])
def test_pr_roc_curves_mark_the_threshold_and_zoom_on_the_best_corner(zoom):
    thresholds = np.array([0.2, 0.4, 0.6, 0.8])
    table = pd.DataFrame({"threshold": thresholds, "recall": 1 - thresholds, "precision": [0.5, 0.7, 0.9, 1.0]})
    table = table.assign(false_positive_rate=0.1 * (1 - thresholds), tp=[4, 3, 2, 0], fp=[4, 1, 1, 0])
    tables = {"good": table, "blind": table.assign(tp=0, fp=0)}
    fig = plots.pr_roc_curves(tables, threshold=0.6, zoom=zoom, title="both")
    left, right = fig.axes
    assert {"good", "blind", "both", "threshold 0.6"} <= set(texts(fig))
    assert ("random guess" in texts(fig)) == (zoom == 1), "a smaller part does not show the diagonal"
    curve = left.lines[0]
    assert [points(curve)[index] for index in curve.get_markevery()] == [[pytest.approx(0.4), 0.9]]
    assert len(curve.get_xdata()) == 3, "precision is undefined without a predicted pixel"
    assert len(right.lines[0].get_xdata()) == 4
    assert left.get_xlim() == left.get_ylim() == right.get_ylim() == pytest.approx((1 - 1.02 * zoom, 1 + 0.02 * zoom))
    assert right.get_xlim() == pytest.approx((-0.02 * zoom, 1.02 * zoom))


def test_calibration_curves_leave_out_empty_bins():
    table = pd.DataFrame({"low": [0, 0.5], "high": [0.5, 1], "pixels": [90, 0], "predicted": [0.2, np.nan]})
    fig = plots.calibration_curves({"model": table.assign(observed=[0.1, np.nan])}, title="calibration")
    above, below = fig.axes
    assert {"model", "perfect calibration", "calibration"} <= set(texts(fig))
    assert points(above.lines[1]) == [[0.2, 0.1]]
    assert points(below.lines[0]) == [[0.25, 90]]


def test_dot_plot_draws_intervals_of_differences():
    table = pd.DataFrame({"x": [0.5, -0.1], "a": [0.4, -0.2], "b": [0.7, 0.1]}, index=[("A", "B"), ("A", "C")])
    fig = plots.dot_plot(table["x"], "difference", table[["a", "b"]], reference=0, title="pairs")
    (ax,) = fig.axes
    assert {"difference", "pairs", "0.500", "-0.100", "A \N{MINUS SIGN} B"} <= set(texts(fig))
    assert ax.lines[0].get_xdata()[0] == 0
    assert ax.collections[0].get_segments()[0].tolist() == [[0.4, 0], [0.7, 0]]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first row is on top"


def test_dot_plot_marks_groups_and_leaves_missing_numbers_empty():
    table = pd.DataFrame({"x": [0.9, 0.4, 0.2, np.nan], "g": list("baab")}, index=["high_one", "mid", "low", "none"])
    fig = plots.dot_plot(table["x"], "agreement", group=table["g"])
    (ax,) = fig.axes
    first, second = ax.lines
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["high one", "mid", "low", "none"]
    assert (list(first.get_xdata()[:1]), list(first.get_ydata())) == ([0.9], [0, 3])
    assert points(second) == [[0.4, 1], [0.2, 2]]
    assert {"a", "b", "agreement"} <= set(texts(fig))
    fig = plots.dot_plot(pd.Series({"read": 123.4, "train": 1.26}), "images per second", log=True)
    assert fig.axes[0].get_xscale() == "log"
    assert {"read", "train", "123", "1.26"} <= set(texts(fig)), "a number without a group is written"


def test_scatter_plot_gives_each_group_a_colour_and_a_marker():
    table = pd.DataFrame({"x": range(4), "y": range(4), "image_type": ["a", "b_c", "a", "d"]})
    fig = plots.scatter_plot(table, "x", "y", title="points")
    (ax,) = fig.axes
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 1, 1]
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 3
    assert {"x", "y", "points", "image type", "a", "b c", "d"} <= set(texts(fig))


@pytest.mark.parametrize("largest", [0, 3, 400])
def test_count_scatter_shows_zero_and_large_numbers(largest):
    table = pd.DataFrame({"true": [largest, 1], "predicted": [0, largest], "image_type": ["grey_tissue", "other"]})
    fig = plots.count_scatter(table)
    (ax,) = fig.axes
    assert {"grey tissue", "other", "0", "10", "equal numbers"} <= set(texts(fig))
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[0] < 0 <= largest < ax.get_xlim()[1]


@pytest.mark.parametrize("family", [[], ["depth 1", "depth 2"]])
def test_score_vs_cost_joins_the_cuts_of_one_network(family):
    columns = {"dice": [0.7, 0.8, 0.9], "ms": [1.0, 10, 20], "parameters": [100.0, 1000, 5000]}
    table = pd.DataFrame(columns, index=["depth 1", "depth 2", "rival"])
    fig = plots.score_vs_cost(table, {"ms": "milliseconds", "parameters": "weights"}, family=family)
    assert [ax.get_xlabel() for ax in fig.axes] == ["milliseconds", "weights"]
    for ax, cost in zip(fig.axes, ("ms", "parameters"), strict=True):
        assert ax.get_xscale() == "log"
        assert points(ax.lines[-1]) == [[table.loc["rival", cost], 0.9]]
        assert [text.get_text() for text in ax.texts] == (["1", "2"] if family else [])
        assert len(ax.lines[0].get_xdata()) == (2 if family else 1)
    assert "rival" in texts(fig)


def test_box_plots_show_quartiles_and_at_most_300_points():
    area = np.random.default_rng(1).lognormal(3, 1, 504)
    table = pd.DataFrame({"image_type": ["b"] * 500 + ["a_c"] * 4, "area": area, "holes": 0.0})
    fig = plots.box_plots(table, {"area": "area (pixels)", "holes": "holes"}, log=["area"])
    left, right = fig.axes
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    assert {"a c", "b", "area (pixels)", "holes"} <= set(texts(fig))
    assert [len(line.get_xdata()) for line in left.lines if line.get_marker() == "."] == [4, 300]
    for (_, group), box in zip(table.groupby("image_type"), left.patches, strict=True):
        low, high = np.percentile(group["area"], [25, 75])
        assert (box.get_x(), box.get_width()) == pytest.approx((low, high - low))
    ordered = plots.box_plots(table, {"area": "area"}, order=["b", "missing", "a_c"]).axes[0]
    assert [tick.get_text() for tick in ordered.get_yticklabels()] == ["b", "a c"]
    assert ordered.get_ylim()[0] > ordered.get_ylim()[1], "the first group is on top"


def test_heatmaps_write_and_frame_the_numbers():
    table = pd.DataFrame([[0.1, 0.25], [0.5, 1.0]], index=[0.3, 0.4], columns=["a", "b"])
    marked = {"first": np.array([[False, True], [False, False]]), "second": np.zeros((2, 2), bool)}
    fig = plots.heatmaps({"first": table, "second": table}, "across", "down", marked)
    first, second = image_axes(fig)
    assert [text.get_text() for text in first.texts] == ["0.10", "0.25", "0.50", "1.00"]
    assert [patch.get_x() for patch in first.patches] == [pytest.approx(0.54)]
    assert not second.patches
    assert {"first", "second", "across", "down", "a", "b", "0.3", "0.4"} <= set(texts(fig))


# Diagrams


@pytest.mark.parametrize(
    ("build", "heights", "maps"),
    [
        (lambda: models.unet((32, 64, 3), filters=4, depth=1, residual=True), [32, 16, 32, 32], [4, 8, 4, 1]),
        (
            lambda: models.mobilenet_unet((64, 64, 3), weights=None, filters=4),
            [64, 32, 16, 8, 4, 2, 4, 8, 16, 32, 64, 64],
            [4, 96, 144, 192, 576, 320, 64, 32, 16, 8, 4, 1],
        ),
    ],
    ids=["unet", "mobilenet_unet"],
)
def test_architecture_shows_sizes_and_skip_connections(build, heights, maps):
    model = build()
    fig = plots.architecture(model)
    sizes = [text.split("\n") for text in texts(fig) if " x " in text]
    assert [int(size.split(" x ")[0]) for size, _ in sizes] == heights
    assert [int(text.split()[0]) for _, text in sizes] == maps
    arrows = [text.arrow_patch for text in fig.axes[0].texts if getattr(text, "arrow_patch", None)]
    skips = [arrow for arrow in arrows if arrow.get_linestyle() == "--"]
    assert len(skips) == len(heights) // 2 - 1, "one skip connection per level"
    assert f"{model.name}: {model.count_params():,} parameters" in texts(fig)
    assert ("image" in texts(fig)) == (model.name == "mobilenet_unet"), (
        "its encoder reads the image, not the first block"
    )


def test_architecture_refuses_other_models():
    with pytest.raises(ValueError, match="image size"):
        plots.architecture(models.unet((64, None, 3), filters=4, depth=1))
    with pytest.raises(ValueError, match="nested_skips"):
        plots.architecture(models.mobilenet_encoder(None))


@pytest.mark.parametrize(("filters", "strides"), [(24, 1), (32, 1), (24, 2)])
def test_residual_block_adds_maps_of_equal_shape(filters, strides):
    fig = plots.residual_block(24, filters, expansion=6, strides=strides)
    heights = [round(bar.get_height()) for bar in fig.axes[0].patches]
    is_residual = filters == 24 and strides == 1
    assert heights == [24, 144, 144, filters] + [24] * is_residual
    assert ("residual connection" in texts(fig)) == is_residual


def test_nested_skips_names_every_block_and_output():
    names = texts(plots.nested_skips(4))
    assert {f"X({i},{j})" for i in range(5) for j in range(5 - i)} <= set(names)
    assert {f"output {j}" for j in range(1, 5)} <= set(names)


@pytest.mark.parametrize("cut", [1, 3])
def test_nested_skips_draws_removed_blocks_in_white(cut):
    fig = plots.nested_skips(3, cuts=(cut,))
    colours = [mpl.colors.to_hex(block.get_facecolor()[0]) for block in fig.axes[0].collections]
    assert len(colours) == 10
    assert colours.count("#ffffff") == 10 - (cut + 1) * (cut + 2) // 2
    assert f"output {cut}" in texts(fig)


def test_flooding_builds_a_dam_where_the_waters_meet():
    relief, markers = np.array([3.0, 0, 1, 2, 1, 0, 3]), np.array([0, 1, 0, 0, 0, 2, 0])
    fig = plots.flooding(relief, markers, levels=[0, 1.5, 2.5])
    assert [ax.get_title() for ax in fig.axes] == [
        "water at 0: dry",
        "water at 1.5: 2 basins",
        "water at 2.5: 2 basins, 1 dam",
    ]
    (dam,) = fig.axes[2].collections[-1].get_segments()
    assert 2 <= dam[0][0] <= 4


def test_flooding_fills_a_valley_without_a_marker_from_its_neighbour():
    relief, markers = np.array([2.0, 0, 1, 0.5, 2]), np.array([0, 1, 0, 0, 0])
    low, high = plots.flooding(relief, markers, levels=[0.9, 1.5]).axes
    assert low.get_title() == "water at 0.9: 1 basin"
    lakes = [ax.collections[-2].get_datalim(ax.transData).x1 for ax in (low, high)]
    assert lakes[0] < 2 < 3 < lakes[1]


def test_other_methods_draw_rays_flows_and_a_point(label_map):
    fig = plots.other_methods(label_map, prompt=5, n_rays=8)
    rays, flow, point = fig.axes
    assert len(rays.patches) == 3
    assert len(rays.lines) == 3 * 8 + 3
    (arrows,) = (item for item in flow.collections if isinstance(item, mpl.quiver.Quiver))
    np.testing.assert_allclose(np.hypot(arrows.U, arrows.V), 1, atol=1e-6)
    (star,) = point.lines
    x, y = star.get_xydata()[0].astype(int)
    assert label_map[y, x] == 5


# Training


@pytest.fixture
def predictions(records):
    """Predictions at seven epochs, from noise to the true masks."""
    rng = np.random.default_rng(0)
    return [
        [weight * (r.label_map > 0) + (1 - weight) * rng.random(r.label_map.shape) for r in records]
        for weight in np.linspace(0, 1, 7)
    ]


def test_animate_training_writes_a_gif_that_loops_and_holds_the_last_frame(tmp_path, records, predictions):
    path = plots.animate_training(records, predictions, tmp_path / "new" / "unet.gif", title="U-Net", fps=4)
    assert [file.name for file in path.parent.iterdir()] == ["unet.gif"], "no temporary file stays"
    with Image.open(path) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 7, 0)
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(gif)] == [250] * 6 + [2500]
    changes = np.ptp(iio.imread(path).astype(int), axis=0).max(axis=(1, 2)) > 0
    height = len(changes)
    assert changes[: height // 6].any(), "heading and progress bar change"
    assert not changes[height // 4 : height // 2].any(), "images and truth do not change"
    assert changes[3 * height // 4], "predictions change"


@pytest.mark.parametrize(("epochs", "frames"), [(1, 1), (2, 2), (101, 9)])
def test_animate_training_limits_the_number_of_frames(tmp_path, records, predictions, epochs, frames):
    states = [predictions[0][:1], *[predictions[-1][:1]] * 100][:epochs]
    path = plots.animate_training(records[:1], states, tmp_path / "a.gif", max_frames=9)
    with Image.open(path) as gif:
        assert gif.n_frames == frames


def test_animate_training_limits_the_size_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    records = [Record(np.zeros((116, 116, 3), np.uint8), np.zeros((116, 116), np.int32), "grey_tissue")]
    noise = [[rng.random((116, 116))] for _ in range(30)]
    size = plots.animate_training(records, noise, tmp_path / "whole.gif").stat().st_size
    path = plots.animate_training(records, noise, tmp_path / "small.gif", max_megabytes=size / 2e6)
    assert path.stat().st_size <= size / 2
    with Image.open(path) as gif:
        assert 2 < gif.n_frames < 30
    with pytest.raises(ValueError, match=r"tiny\.gif"):
        plots.animate_training(records, noise, tmp_path / "tiny.gif", max_megabytes=0.001)
    assert not (tmp_path / "tiny.gif").exists()


@pytest.mark.parametrize("epochs", [3, [0, 3, 6]])
def test_show_training_shows_epochs_with_their_dice(records, predictions, epochs):
    fig = plots.show_training(records, predictions, epochs, names=["first", "second"], title="U-Net")
    axes = np.reshape(image_axes(fig), (2, 5))
    assert [ax.get_title() for ax in axes[0]] == ["image", "untrained", "epoch 3", "epoch 6", "truth"]
    np.testing.assert_array_equal(shown(axes[1, 2]), predictions[3][1])
    assert axes[0, 2].images[0].get_clim() == (0, 1), "probabilities keep their range"
    scores = [metrics.dice(records[0].label_map > 0, predictions[epoch][0]) for epoch in (0, 3, 6)]
    assert [ax.get_xlabel() for ax in axes[0, 1:4]] == [f"Dice {float(score):.2f}" for score in scores]
    assert {"first", "second", "U-Net", "Dice 1.00"} <= set(texts(fig))


@pytest.mark.parametrize("draw", [lambda *args: plots.animate_training(*args, "never.gif"), plots.show_training])
def test_predictions_of_other_images_are_refused(records, predictions, draw):
    with pytest.raises(ValueError, match="epoch 0"):
        draw(records[::-1], predictions)
    with pytest.raises(ValueError, match="0 epochs"):
        draw(records, [])
