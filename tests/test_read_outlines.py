"""Outlines written for QuPath and ImageJ are read back; files that people corrected are read as they meant."""

import json
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from roifile import ROI_TYPE, ImagejRoi, roiwrite
from scipy import ndimage
from skimage.draw import polygon2mask

from nuclei_utils import export
from nuclei_utils._outlines import paint_outlines
from nuclei_utils.errors import LabelWarning, NucleiError
from nuclei_utils.labels import merge_masks

LABEL_MAPS = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))
SQUARE = [[2, 1], [6, 1], [6, 5], [2, 5], [2, 1]]
quick = settings(max_examples=60, deadline=None)


def square(left, top, side):
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]


def polygon(*rings, name=None, **members):
    properties = {"objectType": "annotation"} | ({"name": name} if name else {})
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": properties,
        **members,
    }


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


# Round trips


@quick
@given(LABEL_MAPS)
def test_geojson_is_read_back_exactly(tmp_path_factory, label_map):
    path = tmp_path_factory.getbasetemp() / "round.geojson"
    export.write_geojson(path, label_map)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(export.read_geojson(path, label_map.shape), label_map)


@quick
@given(LABEL_MAPS)
def test_rois_are_read_back_with_filled_holes(tmp_path_factory, label_map):
    path = tmp_path_factory.getbasetemp() / "round.zip"
    export.write_imagej_rois(path, label_map)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelWarning)  # a nucleus in a hole
        read = export.read_imagej_rois(path, label_map.shape)
    filled = [
        np.logical_or.reduce([ndimage.binary_fill_holes(parts == n) for n in range(1, count + 1)])
        for parts, count in (ndimage.label(label_map == label) for label in np.unique(label_map[label_map > 0]))
    ]
    expected = merge_masks(filled)[0] if filled else label_map
    numbers = np.unique(label_map)
    numbers = numbers if numbers[0] == 0 else np.insert(numbers, 0, 0)
    np.testing.assert_array_equal(read, numbers[expected] if filled else label_map)


def test_label_map_without_holes_keeps_its_numbers_in_both_formats(tmp_path):
    label_map = np.zeros((40, 60), np.int32)
    label_map[2:12, 3:20], label_map[12:20, 3:9], label_map[30:, 50:] = 40, 7, 1000
    label_map[25:27, 5:8] = 7  # a second part
    export.write_geojson(tmp_path / "a.geojson", label_map)
    export.write_imagej_rois(tmp_path / "a.zip", label_map)
    for read in (
        export.read_geojson(tmp_path / "a.geojson", label_map.shape),
        export.read_imagej_rois(tmp_path / "a.zip", label_map.shape),
    ):
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, label_map)


# Painting


@quick
@given(arrays(float, st.tuples(st.integers(3, 7), st.just(2)), elements=st.floats(-5, 15, width=16)))
def test_pixels_inside_an_outline_are_those_of_scikit_image(ring):
    expected = polygon2mask((10, 12), ring[:, ::-1] - 0.5)
    painted = paint_outlines([(1, [[ring]])], (10, 12))[0] > 0
    # centres that lie on the outline may go either way
    y, x = np.nonzero(painted != expected)
    points = np.stack([x, y], axis=1) + 0.5
    a, b = ring, np.roll(ring, -1, axis=0)
    for point in points:
        along = np.clip(((point - a) * (b - a)).sum(1) / np.maximum(((b - a) ** 2).sum(1), 1e-12), 0, 1)
        assert np.hypot(*(a + along[:, None] * (b - a) - point).T).min() < 1e-6


def test_painting_takes_the_memory_of_the_boxes():
    nuclei = [(label, [[np.array(square(10 * label, 5, 8))]]) for label in range(1, 200)]
    tracemalloc.start()
    label_map, overlaps, empty = paint_outlines(nuclei, (2000, 2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(np.unique(label_map)), overlaps, empty) == (200, {}, [])
    assert peak < label_map.nbytes + 2e6, "a mask of the whole image for each nucleus would take 800 MB"


# Files of QuPath


def test_names_are_labels_and_other_nuclei_get_new_numbers(tmp_path):
    features = [polygon(square(10 * x, 0, 4), name=name) for x, name in enumerate([None, "7", "7", "cell", "3", "0"])]
    read = export.read_geojson(write(tmp_path / "a.geojson", collection(*features)), (5, 60))
    assert read[1, 1::10].tolist() == [8, 7, 9, 10, 3, 11]


def test_list_or_single_object_is_read_as_well(tmp_path):
    feature = polygon(SQUARE)
    for content in ([feature], feature, collection(feature)):
        assert export.read_geojson(write(tmp_path / "a.geojson", content), (8, 8)).sum() == 16


def test_nucleus_of_a_cell_counts(tmp_path):
    cell = polygon(square(0, 0, 8), nucleusGeometry={"type": "Polygon", "coordinates": [SQUARE]})
    read = export.read_geojson(write(tmp_path / "a.geojson", collection(cell)), (8, 8))
    assert np.count_nonzero(read) == 16


def test_holes_parts_and_fractions_of_pixels(tmp_path):
    two = {"type": "MultiPolygon", "coordinates": [[square(0, 0, 6), square(2, 2, 2)], [square(9.4, 0.4, 2.2)]]}
    read = export.read_geojson(write(tmp_path / "a.geojson", polygon(name="2") | {"geometry": two}), (6, 12))
    expected = np.zeros((6, 12), int)
    expected[:6, :6], expected[2:4, 2:4], expected[:3, 9:12] = 2, 0, 2
    np.testing.assert_array_equal(read, expected)


def test_outlines_are_clipped_at_the_image(tmp_path):
    features = [polygon(square(-3, -3, 5), name="1"), polygon(square(6, 6, 1000), name="2")]
    path = write(tmp_path / "a.geojson", collection(*features))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = export.read_geojson(path, (8, 8))
    assert np.argwhere(read == 1).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert np.count_nonzero(read == 2) == 4


def test_smaller_of_two_overlapping_outlines_stays_on_top(tmp_path):
    features = [polygon(square(2, 2, 2)), polygon(square(0, 0, 6)), polygon(square(50, 50, 3))]
    path = write(tmp_path / "a.geojson", collection(*features))
    with pytest.warns(LabelWarning) as warned:
        read = export.read_geojson(path, (8, 8))
    assert (np.count_nonzero(read == 1), np.count_nonzero(read == 2)) == (4, 32)
    messages = [str(warning.message) for warning in warned]
    assert len(messages) == 2
    assert "4 pixels were given to the smaller nucleus" in messages[0]
    assert "1 outlines enclose no visible pixel" in messages[1]


def test_file_without_nuclei_is_an_empty_label_map(tmp_path):
    export.write_geojson(tmp_path / "a.geojson", np.zeros((3, 4), int))
    export.write_imagej_rois(tmp_path / "a.zip", np.zeros((3, 4), int))
    for read in (
        export.read_geojson(tmp_path / "a.geojson", (3, 4)),
        export.read_imagej_rois(tmp_path / "a.zip", (3, 4)),
    ):
        np.testing.assert_array_equal(read, np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as GeoJSON"),
        ("[" * 100_000, "cannot be read as GeoJSON"),
        ("5", "object 1 is damaged"),
        ('{"type": "Feature"}', "object 1 is damaged"),
        ('[{"geometry": {"type": "Point", "coordinates": [1, 2]}}]', "object 1 is a Point, expected a polygon"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[1, 2]]}}]', "object 1 is damaged"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[1, NaN], [2, 3], [4, 5]]]}}]', "object 1 is damaged"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[["a", 1]]]}}]', "object 1 is damaged"),
    ],
)
def test_damaged_geojson_is_named(tmp_path, content, message):
    (tmp_path / "bad.geojson").write_text(content)
    with pytest.raises(NucleiError, match=rf"bad\.geojson.*{message}"):
        export.read_geojson(tmp_path / "bad.geojson", (8, 8))
    with pytest.raises(NucleiError, match="none"):
        export.read_geojson(tmp_path / "none.geojson", (8, 8))


# Files of ImageJ


def roi(points, name=None, roitype=ROI_TYPE.POLYGON):
    roi = ImagejRoi.frompoints(np.asarray(points), name=name)
    roi.roitype = roitype
    return roi


def test_parts_belong_to_one_nucleus_and_names_of_imagej_do_not(tmp_path):
    names = ["7", "7-2", "7-3", "0012-0034", "1234-2345", "7-5"]
    rois = [roi(square(10 * x, 0, 4), name) for x, name in enumerate(names)]
    roiwrite(tmp_path / "a.zip", rois, mode="w")
    assert export.read_imagej_rois(tmp_path / "a.zip", (5, 60))[1, 1::10].tolist() == [7, 7, 7, 8, 9, 10]


def test_rectangle_oval_and_single_roi_are_read(tmp_path):
    box = {"left": 2, "top": 1, "right": 12, "bottom": 7}
    for roitype, area in ((ROI_TYPE.RECT, 60), (ROI_TYPE.OVAL, np.pi * 15)):
        ImagejRoi(roitype=roitype, name="3", **box).tofile(tmp_path / "a.roi")
        read = export.read_imagej_rois(tmp_path / "a.roi", (10, 20))
        assert np.count_nonzero(read == 3) == pytest.approx(area, rel=0.1)
        rows, columns = np.nonzero(read)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 6, 2, 11)


def test_open_or_damaged_rois_are_refused(tmp_path):
    roi(square(0, 0, 4), "line", ROI_TYPE.POLYLINE).tofile(tmp_path / "a.roi")
    with pytest.raises(NucleiError, match=r"a\.roi: 'line' is a POLYLINE"):
        export.read_imagej_rois(tmp_path / "a.roi", (8, 8))
    for name in ("b.roi", "b.zip"):
        (tmp_path / name).write_bytes(b"PK\3\4 Iout nonsense")
        with pytest.raises(NucleiError, match=f"{name} cannot be read"):
            export.read_imagej_rois(tmp_path / name, (8, 8))
    with pytest.raises(NucleiError, match="none"):
        export.read_imagej_rois(tmp_path / "none.zip", (8, 8))
