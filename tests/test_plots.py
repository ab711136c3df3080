import imageio.v3 as iio
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nuclei_utils import metrics, models, plots
from nuclei_utils.datasets import Record
from nuclei_utils.labels import touching_pairs


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    """Draw into memory, and leave no figure open."""
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a plot function must not show its figure"))
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


@pytest.fixture
def labels():
    labels = np.zeros((20, 30), np.int32)
    labels[2:8, 3:9] = 1
    labels[2:8, 9:15] = 2  # touches 1
    labels[12:18, 20:28] = 5
    return labels


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def drawn(figure):
    """Draw a figure as a notebook does, and return the axes that hold pictures."""
    figure.canvas.draw()
    return [axis for axis in figure.axes if axis.images]


def words(figure):
    """Everything that is written in a figure."""
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


# Pictures as arrays


@pytest.mark.parametrize(
    ("colour", "numbers"), [("#000000", [0, 0, 0]), ("white", [255, 255, 255]), (plots.ORANGE, [230, 159, 0])]
)
def test_rgb(colour, numbers):
    result = plots.rgb(colour)
    assert result.dtype == np.uint8
    assert result.tolist() == numbers


def test_colours_are_told_apart():
    assert len(set(plots.CYCLE)) == len(plots.CYCLE) == 8


def test_as_uint8_takes_what_the_course_has(image):
    assert plots.as_uint8(image) is image
    assert plots.as_uint8(np.array([[0.0, 0.5, 1.0, 7.0, -1.0]])).tolist() == [
        [[0] * 3, [128] * 3, [255] * 3, [255] * 3, [0] * 3]
    ]
    assert plots.as_uint8(np.array([[False, True]])).tolist() == [[[0] * 3, [255] * 3]]
    np.testing.assert_array_equal(plots.as_uint8(image / 255), image)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_as_uint8_of_a_mask_with_a_channel(dtype):
    mask = np.array([[[0], [1]]], dtype)
    np.testing.assert_array_equal(plots.as_uint8(mask), plots.as_uint8(mask[..., 0]))
    assert plots.as_uint8(mask).shape == (1, 2, 3)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_as_uint8_does_not_guess_what_integers_mean(labels, dtype):
    with pytest.raises(ValueError, match=rf"{dtype.__name__} from 0 to 5: .*colour_labels.*io\.read_image"):
        plots.as_uint8(labels.astype(dtype))


def test_overlay_draws_the_border_of_each_nucleus_and_nothing_else(image, labels):
    before = image.copy()
    result = plots.overlay(image, labels, plots.BLUE)
    np.testing.assert_array_equal(image, before)
    changed = (result == plots.rgb(plots.BLUE)).all(axis=2)
    border = np.zeros_like(changed)
    for number in (1, 2, 5):
        rows, columns = np.nonzero(labels == number)
        border[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        border[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()] = False
    np.testing.assert_array_equal(changed, border)
    np.testing.assert_array_equal(result[~border], image[~border])


def test_overlay_thick_also_draws_outside(labels):
    thin, thick = (plots.overlay(np.zeros((20, 30, 3), np.uint8), labels, thickness=n).any(axis=2) for n in (1, 2))
    assert (thick | ~thin).all()
    assert (thick & (labels == 0)).any()
    assert not (thin & (labels == 0)).any()


def test_overlay_of_a_mask_draws_around_the_clump(labels):
    result = plots.overlay(np.zeros((20, 30)), labels > 0)
    assert result[5, 3].any()
    assert not result[5, 9].any(), "the line between two nuclei is not in the mask"


def test_colour_labels(labels):
    result = plots.colour_labels(labels)
    assert result.dtype == np.uint8
    assert not result[labels == 0].any()
    colours = [np.unique(result[labels == number], axis=0) for number in (1, 2, 5)]
    assert [len(colour) for colour in colours] == [1, 1, 1]
    assert len(np.unique(np.concatenate(colours), axis=0)) == 3


def test_colour_labels_tells_apart_what_touches():
    labels = np.random.default_rng(0).permutation(np.arange(1, 401)).reshape(20, 20).repeat(3, axis=0).repeat(3, axis=1)
    coloured = plots.colour_labels(labels)
    for one, other in touching_pairs(labels):
        assert coloured[labels == one][0].tolist() != coloured[labels == other][0].tolist()


def test_colour_labels_of_more_neighbours_than_colours():
    labels = np.column_stack([np.arange(1, 12), np.full(11, 40)])  # 40 comes last and touches eleven others
    coloured = plots.colour_labels(labels)
    assert not (coloured[:, 0] == coloured[0, 1]).all(axis=1).any()


def test_colour_labels_takes_maps_with_gaps_of_any_integers():
    labels = np.array([[0, 3, 60000]], np.uint16)
    (background, one, other) = plots.colour_labels(labels)[0].tolist()
    assert background == [0, 0, 0]
    assert one != other
    assert not plots.colour_labels(np.zeros((2, 2), int)).any()


def test_colour_labels_never_paints_a_nucleus_black():
    assert plots.colour_labels(np.arange(1, 50)[None]).any(axis=2).all()


def test_error_map():
    result = plots.error_map(np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]]))
    assert result.tolist() == [[[255] * 3, plots.rgb(plots.ORANGE).tolist(), plots.rgb(plots.BLUE).tolist(), [0] * 3]]


@pytest.mark.parametrize(("size", "shape"), [(8, (14, 16)), (16, (16, 16)), (64, (20, 30))])
def test_zoom_shows_the_whole_nucleus_and_stays_inside(labels, size, shape):
    result = plots.zoom(np.zeros((20, 30, 3), np.uint8), labels, 5, size)
    assert result.shape == (*shape, 3)
    outline = (result == plots.rgb(plots.ORANGE)).all(axis=2)
    assert outline.sum() == 2 * 8 + 2 * 4


def test_zoom_centres_the_nucleus():
    labels = np.zeros((100, 100), int)
    labels[40:44, 60:64] = 3
    outline = plots.zoom(np.zeros((100, 100)), labels, 3, size=20).any(axis=2)
    assert np.argwhere(outline).mean(axis=0).tolist() == [9.5, 9.5]


def test_zoom_in_another_colour(image, labels):
    result = plots.zoom(image, labels, 5, colour=plots.SKY)
    assert (result == plots.rgb(plots.SKY)).all(axis=2).sum() == 6 * 8 - 4 * 6, "the outline of a nucleus of 6 x 8"


def test_zoom_on_a_label_that_is_not_there(image, labels):
    with pytest.raises(ValueError, match=r"label 3 does not occur: the labels run from 0 to 5"):
        plots.zoom(image, labels, 3)


# Figures


def test_grid(image):
    figure = plots.grid([image, image[..., 0], image[..., 0] > 9], ["a", "b", "c"], columns=2, title="all")
    axes = drawn(figure)
    assert len(figure.axes) == 4
    assert [axis.get_title() for axis in axes] == ["a", "b", "c"]
    assert "all" in words(figure)
    np.testing.assert_array_equal(axes[0].images[0].get_array(), image)


@pytest.mark.parametrize(
    ("draw", "index"),
    [
        (lambda line: plots.grid([line], columns=1, size=2), 0),
        (lambda line: plots.show_predictions([line * 0], [line], [line]), 1),
        (lambda line: plots.show_predictions([line * 0], [line], [line]), 2),
        (lambda line: plots.show_pairs([line * 0], [line[..., None]], columns=1), 1),
        (lambda line: plots.show_intensities([line], ["line"], columns=1), 0),
    ],
    ids=["grid", "truth", "probability", "pairs", "intensities"],
)
def test_no_thin_line_is_lost_where_a_picture_shrinks(draw, index):
    line = np.zeros((1200, 600))  # shrunk more in height than its width alone tells
    line[604] = 1  # a row that picking every few would leave out
    figure = draw(line)
    axis = drawn(figure)[index]
    box = axis.get_window_extent()
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1, :, 0].astype(int)
    inside = pixels[int(box.y0) + 3 : int(box.y1) - 3, int(box.x0) + 3 : int(box.x1) - 3]
    assert np.ptp(inside) > 10


def test_show_samples(image, labels):
    records = [Record("a", image, labels, "grey_tissue"), Record("b", image, labels * 0, "fluorescence_small")]
    figure = plots.show_samples(records, outlines=True)
    axes = drawn(figure)
    assert [axis.get_title() for axis in axes] == ["grey tissue\n3 nuclei", "fluorescence small\n0 nuclei"]
    np.testing.assert_array_equal(axes[0].images[0].get_array(), plots.overlay(image, labels))
    np.testing.assert_array_equal(axes[1].images[0].get_array(), image)
    plain = drawn(plots.show_samples(records))
    np.testing.assert_array_equal(plain[0].images[0].get_array(), image)


def test_contact_sheet(image):
    rows = {"many": [image] * 9, "one": [image[..., 0]], "none": []}
    figure = plots.contact_sheet(rows, columns=4)
    axes = drawn(figure)
    assert len(axes) == 5
    assert {"many", "one", "none"} <= set(words(figure))
    np.testing.assert_array_equal(axes[0].images[0].get_array(), image[:, 5:25])


def test_scatter_gives_each_group_its_look():
    table = pd.DataFrame({"x": [0, 1, 2, 3], "y": [3, 2, 1, 0], "group": ["a", "b", "a", "c"]})
    figure = plots.scatter(table, "x", "y", by="group", title="points")
    (axis,) = figure.axes
    figure.canvas.draw()
    assert [len(line.get_xdata()) for line in axis.lines] == [2, 1, 1]
    assert len({(line.get_color(), line.get_marker()) for line in axis.lines}) == 3
    assert {"x", "y", "points", "group", "a", "b", "c"} <= set(words(figure))


@pytest.fixture
def table():
    rng = np.random.default_rng(1)
    return pd.DataFrame({"kind": ["b"] * 500 + ["a_c"] * 4, "area": rng.lognormal(3, 1, 504), "holes": 0.0})


def test_spread(table):
    figure = plots.spread(table, {"area": "area (pixels)", "holes": "holes"}, log=["area"], title="nuclei")
    figure.canvas.draw()
    left, right = figure.axes
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    assert {"a c", "b", "area (pixels)", "holes", "nuclei"} <= set(words(figure))
    points = [line for line in left.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in points] == [4, 300], "sorted, and at most 300 points"
    for (_, group), box, bar in zip(
        table.groupby("kind"), left.patches, (line for line in left.lines if line not in points), strict=True
    ):
        low, middle, high = np.percentile(group["area"], [25, 50, 75])
        assert (box.get_x(), box.get_width()) == pytest.approx((low, high - low))
        assert bar.get_xdata() == pytest.approx([middle, middle])


def test_spread_in_a_given_order(table):
    figure = plots.spread(table, {"area": "area"}, order=["b", "missing", "a_c"])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["b", "a c"]
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1], "the first is on top"


@pytest.mark.parametrize("scores", [None, [0.25, 1.0]])
def test_show_predictions(image, labels, scores):
    probabilities = [np.zeros((20, 30), np.float32), (labels > 0).astype(np.float32)]
    figure = plots.show_predictions([image] * 2, [labels] * 2, probabilities, scores, title="before")
    axes = np.reshape(drawn(figure), (2, 4))
    assert [axis.get_title() for axis in axes[0]] == ["image", "truth", "probability of nucleus", "errors"]
    for row, probability in enumerate(probabilities):
        errors = axes[row, 3].images[0].get_array()
        np.testing.assert_array_equal(errors, plots.error_map(labels, probability > 0.5))
        assert axes[row, 2].images[0].get_clim() == (0, 1), "probabilities are not stretched"
    assert {"before", "found", "missed", "invented"} <= set(words(figure))
    assert [axis.get_xlabel() for axis in axes[:, 3]] == (["", ""] if scores is None else ["Dice 0.25", "Dice 1.00"])


@pytest.mark.parametrize("rows", [1, 5])
def test_title_and_key_keep_clear_of_the_pictures(image, labels, rows):
    figure = plots.show_predictions([image] * rows, [labels] * rows, [labels > 0] * rows, [1.0] * rows, title="before")
    axes = np.reshape(drawn(figure), (rows, 4))
    assert figure.get_suptitle() == "before"
    title, key = figure._suptitle.get_window_extent(), figure.legends[0].get_window_extent()
    assert title.y0 > max(axis.title.get_window_extent().y1 for axis in axes[0])
    assert title.y1 <= figure.bbox.y1
    assert key.y1 < axes[-1, 3].xaxis.label.get_window_extent().y0


def test_show_pairs(image, labels):
    masks = (labels > 0).astype(np.float32)[..., None]
    figure = plots.show_pairs([image / 255] * 3, [masks] * 3, ["a", "b", "c"], columns=2, title="batch")
    assert len(drawn(figure)) == 6
    assert {"a", "b", "c", "batch"} <= set(words(figure))
    above, below = figure.axes[:2]
    np.testing.assert_array_equal(above.images[0].get_array(), plots.overlay(image, labels > 0))
    np.testing.assert_array_equal(below.images[0].get_array(), plots.as_uint8(labels > 0))
    assert figure.axes == drawn(figure), "no frame where there is no picture"


@pytest.mark.parametrize("titles", [None, ["a", "b", "c"]])
def test_show_pairs_is_tight_and_nothing_overlaps(titles):
    figure = plots.show_pairs([np.zeros((90, 90, 3))] * 3, [np.zeros((90, 90))] * 3, titles, columns=2, title="batch")
    above, below, beside, _, next_row, _ = (axis.get_tightbbox() for axis in drawn(figure))
    title = figure._suptitle.get_window_extent()
    for upper, lower in ((title, above), (above, below), (below, next_row)):
        assert 0 < upper.y0 - lower.y1 < 0.2 * figure.dpi
    assert above.x1 < beside.x0


def test_show_intensities(image):
    titles = ["8 bits", "float", "again"]
    figure = plots.show_intensities([image, image / 255, image], titles, columns=2, title="values")
    assert len(drawn(figure)) == 3
    assert {*titles, "values", "pixel value"} <= set(words(figure))
    above, beside, below, below_beside = figure.axes[:4]
    np.testing.assert_array_equal(above.images[0].get_array(), image)
    assert (below.get_xlim(), below_beside.get_xlim()) == ((0, 255), (0, 1)), "the whole range of the type"
    assert sum(bar.get_height() for bar in below.patches) == image.size
    assert beside.get_title() == "float"


def test_speeds():
    figure = plots.speeds({"read": 10.0, "augment": 123.4, "train": 1.26}, title="how fast")
    figure.canvas.draw()
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in axis.lines] == [10.0, 123.4, 1.26]
    assert {"read", "augment", "train", "10", "123", "1.3", "images per second", "how fast"} <= set(words(figure))
    assert [text.get_text() for text in axis.get_yticklabels()] == ["read", "augment", "train"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "the first is on top"


def test_falling_loss():
    (axis,) = plots.falling_loss([2.0, 1.5, 0.5], title="one batch").axes
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[1, 2.0], [2, 1.5], [3, 0.5]]]
    assert axis.get_ylim()[0] == 0, "how far it has fallen is seen against 0"
    assert axis.get_title() == "one batch"


def test_learning_curves_mark_the_best_epoch():
    history = pd.DataFrame({"epoch": [0, 1, 2], "loss": [3.0, 2, 1], "val_loss": [3.0, 2.5, 2.6]})
    history = history.assign(dice=[0.1, 0.5, 0.7], val_dice=[0.1, 0.6, 0.5], iou=0.1, val_iou=0.2)
    figure = plots.learning_curves(history, title="run")
    figure.canvas.draw()
    loss, dice, iou = figure.axes
    assert {"training", "validation", "best epoch (2)", "run", "epoch"} <= set(words(figure))
    assert [axis.get_title() for axis in (loss, dice, iou)] == ["loss", "dice", "iou"]
    assert dice.get_ylim() == iou.get_ylim() == (0, 1)
    training, validation, best = dice.lines
    assert training.get_ydata().tolist() == [0.1, 0.5, 0.7]
    assert validation.get_ydata().tolist() == [0.1, 0.6, 0.5]
    assert best.get_xdata()[0] == 2


@pytest.mark.parametrize("names", [("loss",), ("loss", "dice")])
def test_learning_curves_of_some_columns(names):
    history = pd.DataFrame({"epoch": [0], "loss": [1.0], "val_loss": [1.0], "dice": [0.5], "val_dice": [0.5]})
    assert len(plots.learning_curves(history, names).axes) == len(names)


def test_compare_curves():
    histories = {
        "good": pd.DataFrame({"epoch": [0, 1, 2], "val_dice": [0.2, 0.9, 0.8]}),
        "short": pd.DataFrame({"epoch": [5, 6], "val_dice": [0.1, 0.3]}),
    }
    figure = plots.compare_curves(histories, title="three")
    figure.canvas.draw()
    (axis,) = figure.axes
    assert {"good (best 0.900)", "short (best 0.300)", "validation dice", "three"} <= set(words(figure))
    points = [line.get_xydata().tolist() for line in axis.lines]
    assert points[0] == [[1, 0.2], [2, 0.9], [3, 0.8]]
    assert points[1] == [[2, 0.9]], "the best is marked"
    assert points[2] == [[1, 0.1], [2, 0.3]], "every training starts at epoch 1"
    assert len({line.get_color() for line in axis.lines}) == 2
    assert axis.get_ylim() == (0, 1)


def test_by_share():
    table = pd.DataFrame({"frozen": [0.5, 0.6], "random": [0.3, 0.7]}, pd.Index([5, 26], name="training images"))
    figure = plots.by_share(table, title="few")
    figure.canvas.draw()
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["5", "26"]
    assert axis.lines[1].get_xydata().tolist() == [[5, 0.3], [26, 0.7]]
    assert {"frozen", "random", "few", "training images", "Dice"} <= set(words(figure))


def test_architecture_is_read_off_the_model():
    model = models.unet((64, 64, 3), filters=4, depth=2)
    figure = plots.architecture(model)
    figure.canvas.draw()
    text = words(figure)
    assert [size for size in text if size.endswith("maps")] == [
        "64 x 64\n4 maps",
        "32 x 32\n8 maps",
        "16 x 16\n16 maps",
        "32 x 32\n8 maps",
        "64 x 64\n4 maps",
    ]
    assert f"{model.name}: {model.count_params():,} parameters" in text
    (axis,) = figure.axes
    dashed = [a for a in axis.texts if getattr(a, "arrow_patch", None) and a.arrow_patch.get_linestyle() == "--"]
    assert len(dashed) == 2, "one skip connection for each level"


def test_architecture_of_an_oblong_image():
    text = words(plots.architecture(models.unet((32, 64, 3), filters=4, depth=1)))
    assert [size for size in text if " x " in size] == [
        "32 x 64\n4 maps",
        "16 x 32\n8 maps",
        "32 x 64\n4 maps",
        "32 x 64\n1 map",
    ]


def test_architecture_shows_the_steps_of_an_encoder_inside():
    figure = plots.architecture(models.mobilenet_unet((64, 64, 3), weights=None, filters=4))
    sizes = [text.split("\n") for text in words(figure) if " x " in text]
    assert [size for size, _ in sizes] == [f"{s} x {s}" for s in (64, 32, 16, 8, 4, 2, 4, 8, 16, 32, 64, 64)]
    assert [maps.split()[0] for _, maps in sizes] == [str(n) for n in (4, 96, 144, 192, 576, 320, 64, 32, 16, 8, 4, 1)]
    (axis,) = figure.axes
    dashed = [a for a in axis.texts if getattr(a, "arrow_patch", None) and a.arrow_patch.get_linestyle() == "--"]
    assert len(dashed) == 5


@pytest.mark.parametrize("shape", [(None, None, 3), (64, None, 3)])
def test_architecture_needs_a_fixed_size(shape):
    with pytest.raises(ValueError, match="leaves the image size open"):
        plots.architecture(models.unet(shape, filters=4, depth=1))


# Figures of the evaluation


@pytest.fixture
def scored():
    """Truth, and probabilities of two models, for two images."""
    rng = np.random.default_rng(0)
    masks = [rng.random((12, 15)) > 0.7 for _ in range(2)]
    good = [np.clip(mask * 0.5 + 0.5 * rng.random(mask.shape), 0, 1) for mask in masks]
    return masks, {"good": good, "poor": [rng.random(mask.shape) for mask in masks]}


@pytest.fixture
def sweeps(scored):
    masks, predictions = scored
    return {name: metrics.threshold_scores(masks, found) for name, found in predictions.items()}


def test_curves(sweeps):
    figure = plots.curves(sweeps, threshold=0.6, title="both")
    figure.canvas.draw()
    left, right = figure.axes
    assert {"good", "poor", "chance", "both", "threshold 0.6"} <= set(words(figure))
    for table, line, mark in zip(sweeps.values(), left.lines[::2], left.lines[1::2], strict=True):
        at = table[table["threshold"] == 0.6]
        assert mark.get_xydata().tolist() == [[at["recall"].item(), at["precision"].item()]]
        assert len(line.get_ydata()) == (table["tp"] + table["fp"] > 0).sum() < len(table), "no find, no precision"
    assert right.lines[0].get_xdata().max() <= 1
    assert len({line.get_color() for line in left.lines}) == 2


def test_curves_close_up(sweeps):
    left, right = plots.curves(sweeps, lowest=0.8).axes
    assert left.get_xlim() == left.get_ylim() == right.get_ylim() == pytest.approx((0.796, 1.004))
    assert right.get_xlim() == pytest.approx((-0.004, 0.204))


def test_curves_of_a_model_that_finds_nothing():
    blind = metrics.threshold_scores([np.eye(4)], [np.zeros((4, 4))])
    plots.curves({"blind": blind}).canvas.draw()


def test_calibration(scored):
    masks, predictions = scored
    tables = {name: metrics.calibration_table(masks, found) for name, found in predictions.items()}
    figure = plots.calibration(tables, title="promises")
    figure.canvas.draw()
    above, below = figure.axes
    assert {"good", "poor", "promise kept", "promises"} <= set(words(figure))
    some = tables["good"].dropna()
    assert above.lines[1].get_xydata().tolist() == some[["predicted", "observed"]].to_numpy().tolist()
    assert below.lines[0].get_ydata().tolist() == some["pixels"].tolist()
    assert below.get_yscale() == "log"


def test_forest():
    table = pd.DataFrame({"x": [0.5, -0.1], "a": [0.4, -0.2], "b": [0.7, 0.1]}, index=[("A", "B"), ("A", "C")])
    figure = plots.forest(table, "x", "a", "b", "difference", reference=0, title="pairs")
    figure.canvas.draw()
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["A \u2212 B", "A \u2212 C"]
    assert {"difference", "pairs", "0.500", "-0.100"} <= set(words(figure))
    assert axis.lines[0].get_xdata()[0] == 0
    assert axis.lines[1].get_xdata().tolist() == [0.4, 0.7]
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "the first is on top"
    plain = plots.forest(table.set_axis(["A", "B"]), "x", "a", "b")
    assert [text.get_text() for text in plain.axes[0].get_yticklabels()] == ["A", "B"]
    assert plain.axes[0].get_xlabel() == "x"


def test_threshold_curves(sweeps):
    figure = plots.threshold_curves(sweeps, sweeps, {"good": 0.45, "poor": 0.2}, "mean_dice", title="thresholds")
    figure.canvas.draw()
    assert [axis.get_title() for axis in figure.axes] == ["good", "poor"]
    assert {"chosen: 0.45", "chosen: 0.20", "validation", "test", "mean dice", "thresholds"} <= set(words(figure))
    assert figure.axes[0].lines[2].get_xdata()[0] == 0.45
    assert figure.axes[1].lines[0].get_ydata().tolist() == sweeps["poor"]["mean_dice"].tolist()


def test_trend():
    table = pd.DataFrame({"area": [4.0, 1, 3, 2, np.nan], "found": [1.0, 0, 0.5, 0.2, 9]})
    figure = plots.trend({"model": table}, "area", "found", ("area (pixels)", None), bins=2, log=True, title="by size")
    figure.canvas.draw()
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[1.5, 0.1], [3.5, 0.75]])
    assert {"model", "area (pixels)", "found", "by size"} <= set(words(figure))
    assert axis.get_xscale() == "log"


def test_trend_of_fewer_rows_than_bins():
    (axis,) = plots.trend({"model": pd.DataFrame({"x": [2, 1], "y": [0, 1]})}, "x", "y").axes
    assert axis.lines[0].get_xydata().tolist() == [[1, 1], [2, 0]]


def test_robustness():
    rows = [("blur", 0, 0.9), ("blur", 4, 0.3), ("inversion", 0, 0.9), ("inversion", 1, 0.1)]
    table = pd.DataFrame(rows, columns=["distortion", "strength", "dice"])
    labels = {"blur": "sigma (pixels)"}
    figure = plots.robustness({"A": table, "B": table}, labels=labels, title="made worse")
    figure.canvas.draw()
    blur, inversion = figure.axes
    assert (blur.get_xlabel(), inversion.get_xlabel()) == ("sigma (pixels)", "strength")
    assert [text.get_text() for text in blur.get_xticklabels()] == ["0", "4"]
    assert [line.get_ydata().tolist() for line in inversion.lines] == [[0.9, 0.1]] * 2
    assert {"A", "B", "made worse", "dice", "blur", "inversion"} <= set(words(figure))


# How a network learned: the film


@pytest.fixture
def records(image, labels):
    return [
        Record("a", image, labels, "grey_tissue"),
        Record("b", np.repeat(image, 3, axis=0), np.repeat(labels, 3, axis=0), "purple_on_white"),
    ]


@pytest.fixture
def growing(records):
    """Predictions of seven epochs, from noise to the truth."""
    rng = np.random.default_rng(0)
    return [
        [w * (record.labels > 0) + (1 - w) * rng.random(record.labels.shape) for record in records]
        for w in np.linspace(0, 1, 7)
    ]


def test_film(tmp_path, records, growing):
    path = plots.film(records, growing, tmp_path / "films" / "unet.gif", title="U-Net", fps=4)
    assert [one.name for one in path.parent.iterdir()] == ["unet.gif"]
    with Image.open(path) as gif:
        assert gif.format == "GIF"
        assert gif.n_frames == 7
        assert gif.info["loop"] == 0, "for ever"
        durations = []
        for frame in range(7):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    assert durations == [250] * 6 + [2500], "it rests on the last epoch"
    frames = iio.imread(path)
    assert frames.shape[0] == 7
    assert (frames[0] != frames[-1]).any()
    still = (frames == frames[0]).all(axis=(0, 3))
    assert still[46:276].all(), "image and truth stay as they are"
    assert not still[286:402].all(), "the prediction does not"


def test_film_shows_epoch_and_dice(records, growing):
    figure, update = plots._screen(records, growing, "U-Net")
    seen = []
    for epoch in (0, 6):
        update(epoch)
        seen.append(words(figure))
        pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
        np.testing.assert_array_equal(pictures[2], growing[epoch][0])
    before = [float(metrics.dice(record.labels > 0, one)) for record, one in zip(records, growing[0], strict=True)]
    assert f"U-Net: before training, mean Dice of these images {np.mean(before):.2f}" in seen[0]
    assert {f"Dice {score:.2f}" for score in before} <= set(seen[0])
    assert "U-Net: epoch 6 of 6, mean Dice of these images 1.00" in seen[1]
    assert {"image", "truth", "prediction"} <= set(seen[0])


@pytest.mark.parametrize(("epochs", "frames"), [(1, 1), (2, 2), (101, 9)])
def test_film_of_more_epochs_than_frames(tmp_path, records, growing, epochs, frames):
    path = plots.film(records[:1], [growing[0][:1], *[growing[-1][:1]] * 100][:epochs], tmp_path / "a.gif", frames=9)
    with Image.open(path) as gif:
        assert gif.n_frames == frames


def test_film_keeps_below_its_limit(tmp_path):
    rng = np.random.default_rng(0)
    record = Record("a", np.zeros((116, 116, 3), np.uint8), np.zeros((116, 116), np.int32), "grey_tissue")
    noise = [[rng.random((116, 116))] for _ in range(30)]
    whole = plots.film([record], noise, tmp_path / "whole.gif").stat().st_size
    path = plots.film([record], noise, tmp_path / "small.gif", megabytes=whole / 2e6)
    assert path.stat().st_size <= whole / 2
    with Image.open(path) as gif:
        assert 2 < gif.n_frames < 30
    with pytest.raises(ValueError, match=r"tiny\.gif: a film of 2 frames takes 0\.\d+ MB, more than 0.001 MB"):
        plots.film([record], noise, tmp_path / "tiny.gif", megabytes=0.001)
    assert not (tmp_path / "tiny.gif").exists()


@pytest.mark.parametrize("draw", [lambda *args: plots.film(*args, "never.gif"), plots.film_strip])
def test_film_of_other_images_is_refused(records, growing, draw):
    with pytest.raises(
        ValueError, match=r"epoch 0 have the shapes \[\(20, 30\), \(60, 30\)\], the images \[\(60, 30\)"
    ):
        draw(records[::-1], growing)
    with pytest.raises(ValueError, match="found 2 and 0 epochs"):
        draw(records, [])


def test_spaced_keeps_first_and_last():
    assert plots._spaced(19, 40) == list(range(19))
    assert plots._spaced(101, 5) == [0, 25, 50, 75, 100]
    assert plots._spaced(8, 1) == [0, 7]
    assert plots._spaced(1, 5) == [0]


@pytest.mark.parametrize(("epochs", "heads"), [(3, [0, 3, 6]), ([0, 1, 6], [0, 1, 6])])
def test_film_strip(records, growing, epochs, heads):
    figure = plots.film_strip(records, growing, epochs, names=["first", "second"], title="U-Net")
    axes = np.reshape(drawn(figure), (2, 5))
    titles = ["untrained" if epoch == 0 else f"epoch {epoch}" for epoch in heads]
    assert [axis.get_title() for axis in axes[0]] == ["image", *titles, "truth"]
    np.testing.assert_array_equal(axes[1, 2].images[0].get_array(), growing[heads[1]][1])
    np.testing.assert_array_equal(axes[0, 4].images[0].get_array(), plots.as_uint8(records[0].labels > 0))
    assert axes[0, 3].get_xlabel() == "Dice 1.00"
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["first", "second"]
    assert {"U-Net"} < set(words(plots.film_strip(records, growing, epochs, title="U-Net")))
    assert axes[0, 3].images[0].get_clim() == (0, 1), "probabilities are not stretched"


@pytest.mark.parametrize("depth", [1, 4])
def test_nested_skips_name_every_block_and_output(depth):
    text = words(plots.nested_skips(depth))
    blocks = [f"X({i},{j})" for i in range(depth + 1) for j in range(depth + 1 - i)]
    assert sorted(word for word in text if word.startswith("X(")) == sorted(blocks)
    assert [word for word in text if word.startswith("output")] == [f"output {j}" for j in range(1, depth + 1)]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_nested_skips_pale_what_a_cut_leaves_out(cut):
    depth = 3
    figure = plots.nested_skips(depth, cuts=(cut,))
    assert f"output {cut}" in words(figure)
    (axis,) = figure.axes
    faces = [mpl.colors.to_hex(nodes.get_facecolor()[0]) for nodes in axis.collections]
    assert len(faces) == (depth + 1) * (depth + 2) // 2
    kept = (cut + 1) * (cut + 2) // 2
    assert sum(face != "#ffffff" for face in faces) == kept
    arrows = [
        mpl.colors.to_hex(text.arrow_patch.get_edgecolor()) for text in axis.texts if hasattr(text, "arrow_patch")
    ]
    # what X(i, j) reads: one arrow along a diagonal (none into X(0, 0)), and one from each block before it; the output
    expected = sum((i > 0) if j == 0 else 1 + j for i in range(cut + 1) for j in range(cut + 1 - i)) + 1
    assert sum(colour != "#dddddd" for colour in arrows) == expected


def test_by_step():
    figure = plots.by_step({"one": [1, 2, 4], "other": [3, 3, 3]}, "size", log=True)
    (axis,) = figure.axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[1, 2, 4], [3, 3, 3]]
    assert list(axis.lines[0].get_xdata()) == [1, 2, 3]
    assert axis.get_yscale() == "log"
    assert {"one", "other", "step", "size"} <= set(words(figure))


def test_trade_off():
    costs = {"dice": [0.7, 0.8, 0.9], "ms": [1.0, 10, 20], "parameters": [100.0, 1000, 5000]}
    table = pd.DataFrame(costs, index=["depth 1", "depth 2", "rival"])
    figure = plots.trade_off(table, {"ms": "milliseconds", "parameters": "weights"}, family=["depth 1", "depth 2"])
    assert [axis.get_xlabel() for axis in figure.axes] == ["milliseconds", "weights"]
    for axis, cost in zip(figure.axes, ("ms", "parameters"), strict=True):
        assert axis.get_xscale() == "log"
        rival, family = axis.lines
        assert (list(rival.get_xdata()), list(rival.get_ydata())) == ([table.loc["rival", cost]], [0.9])
        assert list(family.get_xdata()) == list(table[cost][:2])
        assert list(family.get_ydata()) == [0.7, 0.8]
        assert [text.get_text() for text in axis.texts] == ["1", "2"]
    assert {"rival", "depth 1 … depth 2"} <= set(words(figure))


def test_trade_off_without_a_family():
    table = pd.DataFrame({"dice": [0.7, 0.8], "ms": [1.0, 10]}, index=["one", "other"])
    figure = plots.trade_off(table, {"ms": "milliseconds"})
    assert {"one", "other"} <= set(words(figure))


# Separated nuclei


def test_instance_overlay_tints_nuclei_and_outlines_them(image, labels):
    result = plots.instance_overlay(image, labels, opacity=0.5)
    colours = plots.colour_labels(labels)
    assert (result.dtype, result.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(result[labels == 0], image[labels == 0])
    assert result[2, 3].tolist() == colours[2, 3].tolist()  # on the outline
    assert result[4, 8].tolist() == colours[4, 8].tolist() != colours[4, 9].tolist()  # where two touch
    np.testing.assert_allclose(result[4, 5], (image[4, 5].astype(float) + colours[4, 5]) / 2, atol=0.51)
    np.testing.assert_array_equal(plots.instance_overlay(image, 0 * labels), image)


def test_numbered_writes_each_label_upon_its_nucleus(labels):
    figure = plots.numbered([labels, 0 * labels], ["some", "none"])
    some, none = drawn(figure)
    assert {text.get_text() for text in some.texts} == {"1", "2", "5"}
    for text in some.texts:
        x, y = text.get_position()
        assert labels[round(y), round(x)] == int(text.get_text())
    assert not none.texts
    assert {"some", "none"} <= set(words(figure))


def test_heat_maps_write_and_frame_the_numbers():
    table = pd.DataFrame([[0.1, 0.25], [0.5, 1.0]], index=[0.3, 0.4], columns=["a", "b"])
    frames = {"one": np.array([[False, True], [False, False]]), "two": np.zeros((2, 2), bool)}
    figure = plots.heat_maps({"one": table, "two": table}, ("across", "down"), frames, title="both")
    one, two = drawn(figure)
    assert [text.get_text() for text in one.texts] == ["0.10", "0.25", "0.50", "1.00"]
    assert [patch.get_x() for patch in one.patches] == [pytest.approx(0.54)]
    assert not two.patches
    assert [tick.get_text() for tick in one.get_yticklabels()] == ["0.3", "0.4"]
    assert {"one", "two", "across", "down", "a", "b", "both"} <= set(words(figure))


def test_against_iou():
    table = pd.DataFrame({"ap": [0.9, 0.4]}, index=[0.5, 0.95])
    (axis,) = plots.against_iou({"one": table, "other": table / 2}, label="AP").axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.9, 0.4], [0.45, 0.2]]
    assert list(axis.lines[0].get_xdata()) == [0.5, 0.95]
    assert axis.get_ylabel() == "AP"


@pytest.mark.parametrize("largest", [0, 3, 400])
def test_true_and_found_has_room_for_none_and_many(largest):
    table = pd.DataFrame({"true": [largest, 1], "predicted": [0, largest], "kind": ["grey_tissue", "other"]})
    figure = plots.true_and_found(table)
    figure.canvas.draw()
    (axis,) = figure.axes
    assert {"grey tissue", "other", "nuclei found", "0", "10"} <= set(words(figure))
    assert axis.get_xlim() == axis.get_ylim()
    assert axis.get_xlim()[0] < 0 <= largest < axis.get_xlim()[1]


# One's own images


def test_measurements_number_the_nuclei_and_count_them(image, labels):
    figure = plots.measurements(image, labels, {"first_one": [1, 2, 2], "second": [9.0]}, "area (pixels)", bins=4)
    picture, histogram = figure.axes
    places = {text.get_text(): text.get_position() for text in picture.texts}
    assert places == {"1": (5.5, 4.5), "2": (11.5, 4.5), "5": (23.5, 14.5)}
    assert picture.images[0].get_array().shape == image.shape
    assert sorted(patch.get_height() for patch in histogram.patches if patch.get_height()) == [1, 3]
    assert {"first one", "second", "area (pixels)", "nuclei"} <= set(words(figure))


def test_measurements_of_an_image_without_nuclei(image, labels):
    figure = plots.measurements(image, 0 * labels, {"none": []}, "area")
    figure.canvas.draw()
    assert not figure.axes[0].texts


def test_ranking_puts_the_largest_on_top_and_marks_no_missing_number():
    table = pd.DataFrame({"x": [0.2, np.nan, 0.9, 0.4], "g": list("abba")}, index=["low", "none", "high_one", "mid"])
    figure = plots.ranking(table, "x", "g", "agreement", reference=0.5)
    figure.canvas.draw()
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["high one", "mid", "low", "none"]
    reference, a, b = axis.lines
    assert reference.get_xdata()[0] == 0.5
    assert (list(a.get_xdata()), list(a.get_ydata())) == ([0.4, 0.2], [1, 2])
    assert (list(b.get_xdata()[:1]), list(b.get_ydata())) == ([0.9], [0, 3])
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "the first is on top"
    assert {"a", "b", "agreement"} <= set(words(figure))
