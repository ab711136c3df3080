"""Each format is read back as it was written; each error names the file."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from roifile import ROI_TYPE, roiread
from skimage.draw import polygon2mask
from skimage.segmentation import mark_boundaries

from nuclei_utils import export, io
from nuclei_utils.errors import NucleiError

LABEL_MAPS = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))

# texts that a spreadsheet would calculate or change
NAMES = [
    "@SUM(A1)",
    "=1+1",
    "+a",
    "-5",
    "\tx",
    "'=a",
    "''@b",
    "'quoted",
    "a=b",
    "a-5",
    "007",
    "NA",
    'say "hi", you',
    "",
]

quick = settings(max_examples=60, deadline=None)


def disk(shape, centre, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@pytest.fixture
def label_map():
    """Draw nuclei with gaps in their numbers: two touch, one is cut off, one has a hole, one is in two parts."""
    label_map, shape = np.zeros((40, 60), np.int32), (40, 60)
    label_map[disk(shape, (12, 12), 7)] = 1
    label_map[disk(shape, (12, 24), 6) & (label_map == 0)] = 2
    label_map[disk(shape, (38, 5), 6)] = 4
    label_map[disk(shape, (25, 40), 9) & ~disk(shape, (25, 40), 3)] = 7
    label_map[5:8, 50:55] = label_map[12:15, 50:54] = 9
    return label_map


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def rasterise(shape, rings):
    """Return the pixels whose centres lie inside an odd number of rings."""
    return np.logical_xor.reduce([polygon2mask(shape, np.asarray(ring)[:, ::-1] - 0.5) for ring in rings], axis=0)


def signed_area(ring):
    x, y = np.asarray(ring).T
    return (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2


# Measurements


def test_measures_of_known_nuclei():
    label_map, image = np.zeros((20, 30), np.uint16), np.zeros((20, 30, 3), np.uint8)
    label_map[2:6, 10:20] = 3
    label_map[15, 29] = 8
    image[2:6, 10:15] = [100, 0, 7]
    image[15, 29] = [1, 2, 3]
    first, second = export.measure_nuclei(image, label_map, "a.png").to_dict("records")
    assert first == pytest.approx(
        {
            **{"image": "a.png", "label": 3, "area": 40, "centroid_x": 15, "centroid_y": 4},
            **{"bbox_left": 10, "bbox_top": 2, "bbox_width": 10, "bbox_height": 4},
            **{"major_axis": 4 * np.sqrt(99 / 12), "minor_axis": 4 * np.sqrt(15 / 12)},
            **{"eccentricity": np.sqrt(1 - 15 / 99), "solidity": 1},
            **{"mean_red": 50, "mean_green": 0, "mean_blue": 3.5, "unit": "pixel"},
            **{"sum_red": 2000, "sum_green": 0, "sum_blue": 140, "std_red": 50, "std_green": 0, "std_blue": 3.5},
            **dict.fromkeys(["background_red", "background_green", "background_blue"], 0),
        }
    )
    assert list(first)[:4] == ["image", "label", "area", "centroid_x"]
    assert list(first)[-2:] == ["background_blue", "unit"]
    assert (second["label"], second["area"], second["bbox_width"], second["bbox_height"]) == (8, 1, 1, 1)
    assert (second["centroid_x"], second["centroid_y"], second["mean_green"]) == (29.5, 15.5, 2)


def test_pixel_size_scales_lengths_and_areas(image, label_map):
    pixels, table = (export.measure_nuclei(image, label_map, "a", size, quality=True) for size in (None, 0.5))
    factors = dict.fromkeys(table.columns.drop(["image", "unit"]), 1) | {"area": 0.25}
    lengths = [column for column in table if column.startswith(("centroid", "bbox", "diameter")) or "axis" in column]
    assert len(lengths) == 9
    for column, factor in (factors | dict.fromkeys(lengths, 0.5)).items():
        np.testing.assert_allclose(table[column], pixels[column] * factor, err_msg=column)
    assert set(table["unit"]) == {"micrometre"}


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_intensities_do_not_depend_on_the_brightest_pixel(tmp_path, label_map, ending):
    """Two images of a 12-bit camera differ in one background pixel, which needs 11 or 12 bits."""
    pixels, tables = (label_map * 150 + 90).astype(np.uint16), []
    for brightest in (2047, 2048):
        pixels[0, 0] = brightest
        io.write_label_map(tmp_path / f"{brightest}.{ending}", pixels)
        tables.append(export.measure_nuclei(io.read_raw(tmp_path / f"{brightest}.{ending}"), label_map, "a"))
    pd.testing.assert_frame_equal(*tables)
    for column in ("mean_red", "mean_green", "mean_blue"):
        np.testing.assert_allclose(tables[0][column], tables[0]["label"] * 150 + 90)


def test_intensities_of_named_channels(label_map):
    channels = {"DAPI": label_map * 10.5 + 3, "Größe 488": label_map.astype(np.uint16)}
    table = export.measure_nuclei(channels, label_map, "a")
    assert table.filter(regex="_(DAPI|Größe 488)$").columns.tolist() == [
        f"{statistic}_{name}" for statistic in ("mean", "sum", "std", "background") for name in channels
    ]
    np.testing.assert_allclose(table["mean_DAPI"], table["label"] * 10.5 + 3)
    np.testing.assert_allclose(table["sum_Größe 488"], table["label"] * table["area"])
    with pytest.raises(ValueError, match=r"a: .*DAPI"):
        export.measure_nuclei({"DAPI": label_map[1:]}, label_map, "a")


def test_the_background_is_the_median_of_a_ring_without_other_nuclei():
    rows, columns = np.ogrid[:60, :60]
    distances = np.hypot(rows - 30, columns - 20)
    label_map = (distances <= 6).astype(int)
    label_map[:, 29:36] = 2  # touches the ring
    image = np.where(label_map == 2, 50_000, np.random.default_rng(0).integers(90, 110, label_map.shape))
    image[(label_map == 1) | ((distances > 6) & (distances <= 8))] = 30_000  # the nucleus and its blurred edge
    image[:, 36:38] = 40_000  # the blurred edge of the other nucleus
    image[:, 27:29] = 40_000
    table = export.measure_nuclei({"x": image.astype(np.uint16)}, label_map, "a").set_index("label")
    assert table["background_x"].between(95, 105).all()
    assert np.isnan(export.measure_nuclei({"x": image}, np.ones_like(label_map), "a")["background_x"]).all()


def test_intensities_of_16_bit_colours(label_map):
    factors = {"mean_red": 5000, "mean_green": 7000, "mean_blue": 1}
    raw = np.dstack([label_map * factor for factor in factors.values()]).astype(np.uint16)
    table = export.measure_nuclei(raw, label_map, "a")
    for column, factor in factors.items():
        np.testing.assert_allclose(table[column], table["label"] * factor)


def test_quality_columns_show_holes_and_parts(label_map):
    label_map[25, 40] = 12  # a nucleus within the hole of nucleus 7
    table = export.measure_nuclei(None, label_map, "a", quality=True).set_index("label")
    assert table["holes"].to_dict() == {1: 0, 2: 0, 4: 0, 7: 28, 9: 0, 12: 0}
    assert table["parts"].to_dict() == {1: 1, 2: 1, 4: 1, 7: 1, 9: 2, 12: 1}
    np.testing.assert_allclose(table["diameter"], 2 * np.sqrt(table["area"] / np.pi))
    assert table["mean_red"].isna().all()


def test_pixels_that_meet_at_a_corner_are_one_part():
    assert export.measure_nuclei(None, np.eye(3, dtype=int), "a", quality=True)["parts"].tolist() == [1]


@pytest.mark.parametrize("quality", [False, True])
def test_table_without_nuclei_has_the_same_columns(image, label_map, quality):
    tables = [export.measure_nuclei(image, array, "a", 0.5, quality) for array in (label_map, 0 * label_map)]
    assert tables[0].columns.tolist() == tables[1].columns.tolist()
    assert len(tables[1]) == 0


@pytest.mark.parametrize("pixel_size", [0, -0.5, np.inf, np.nan])
def test_wrong_pixel_size_is_refused(image, label_map, pixel_size):
    with pytest.raises(ValueError, match="pixel size"):
        export.measure_nuclei(image, label_map, "a", pixel_size)


def test_image_of_another_shape_is_refused(image, label_map):
    with pytest.raises(ValueError, match=r"a\.png.*\(40, 59, 3\).*found\s\(40, 60, 3\)"):
        export.measure_nuclei(image, label_map[:, 1:], "a.png")


# Tables


def test_table_is_read_back(tmp_path, image, label_map):
    table = pd.concat([export.measure_nuclei(image, label_map, name, 0.3) for name in ("a, b", "Kern ä")])
    export.write_table(tmp_path / "nuclei.csv", table)
    read = pd.read_csv(tmp_path / "nuclei.csv")
    pd.testing.assert_frame_equal(read, table.reset_index(drop=True), check_dtype=False, rtol=1e-14)


def test_names_are_not_formulas_in_a_spreadsheet(tmp_path, image, label_map):
    table = pd.concat([export.measure_nuclei(image, label_map, name) for name in NAMES])
    export.write_table(tmp_path / "nuclei.csv", table)
    written = pd.read_csv(tmp_path / "nuclei.csv", dtype=str, keep_default_na=False)
    assert not written.map(lambda cell: cell[:1] in tuple("=+-@\t\r\n") and cell != "").any(axis=None)
    assert {"'@SUM(A1)", "'-5", "a=b", "a-5", "007"} <= set(written["image"])
    np.testing.assert_allclose(written["bbox_left"].astype(float), table["bbox_left"])


def test_name_that_is_not_utf_8_is_escaped(tmp_path, image, label_map):
    name = b"cell\xff".decode(errors="surrogateescape")
    for table in (export.measure_nuclei(image, label_map, name), export.submission_table({name: label_map})):
        export.write_table(tmp_path / "a.csv", table)
        assert "cell\\udcff" in (tmp_path / "a.csv").read_text(encoding="utf-8")


# Overlays, and arrays that are refused


@pytest.mark.parametrize("strip", [1, 7, 1024])
def test_overlay_marks_the_inner_boundaries(tmp_path, monkeypatch, image, label_map, strip):
    monkeypatch.setattr(export, "STRIP", strip)
    export.write_overlay(tmp_path / "a.png", image, label_map)
    expected = mark_boundaries(image, label_map, np.array([230, 159, 0]) / 255, mode="inner")
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.array(picture), np.round(expected * 255))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), "float64"),
        (np.zeros((2, 3), bool), "bool"),
        (np.zeros((1, 2, 3), int), r"\(1, 2, 3\)"),
        (np.array([[0, -1]]), "-1"),
    ],
)
def test_other_arrays_than_label_maps_are_refused(tmp_path, array, message):
    for write in (export.write_geojson, export.write_imagej_rois):
        with pytest.raises(ValueError, match=f"label map.*{message}"):
            write(tmp_path / "a.png", array)
    assert list(tmp_path.iterdir()) == []


def test_wrong_endings_and_shapes_are_refused(tmp_path, image, label_map):
    with pytest.raises(ValueError, match=r"ending ''.*\.jpg"):
        export.write_overlay(tmp_path / "a", image, label_map)
    with pytest.raises(ValueError, match=r"a\.png.*\(40, 60\).*\(40, 59\)"):
        export.write_overlay(tmp_path / "a.png", image, label_map[:, 1:])
    assert list(tmp_path.iterdir()) == []


# Outlines


def read_polygons(path):
    """Return {label: list of polygons}, each polygon a list of closed rings, of a GeoJSON file."""
    polygons = {}
    for feature in json.loads(path.read_text())["features"]:
        geometry = feature["geometry"]
        is_multiple = geometry["type"] == "MultiPolygon"
        polygons[int(feature["properties"]["name"])] = (
            geometry["coordinates"] if is_multiple else [geometry["coordinates"]]
        )
    return polygons


@quick
@given(LABEL_MAPS)
def test_outlines_enclose_exactly_the_nucleus(tmp_path_factory, label_map):
    path = tmp_path_factory.getbasetemp() / "outlines.geojson"
    export.write_geojson(path, label_map)
    outlines = read_polygons(path)
    assert list(outlines) == np.unique(label_map[label_map > 0]).tolist()
    for label, polygons in outlines.items():
        rings = [np.array(ring[:-1]) for polygon in polygons for ring in polygon]
        np.testing.assert_array_equal(rasterise(label_map.shape, rings), label_map == label)
        assert sum(map(signed_area, rings)) == (label_map == label).sum()
        for outer, *holes in polygons:
            assert signed_area(outer) > 0
            assert all(signed_area(hole) < 0 for hole in holes)
        for ring in rings:
            assert len(np.unique(ring, axis=0)) == len(ring), "a ring does not meet itself"
            is_vertical = (ring == np.roll(ring, 1, axis=0))[:, 0]
            assert (is_vertical != np.roll(is_vertical, 1)).all(), "each point is a corner"


def test_outlines_and_centroids_share_their_coordinates(tmp_path):
    label_map = np.zeros((30, 40), int)
    label_map[3, 5], label_map[10:13, 20:28] = 2, 5
    table = export.measure_nuclei(None, label_map, "a")
    export.write_geojson(tmp_path / "a.geojson", label_map)
    corners = [polygons[0][0][:-1] for polygons in read_polygons(tmp_path / "a.geojson").values()]
    assert sorted(corners[0]) == [[5, 3], [5, 4], [6, 3], [6, 4]]
    np.testing.assert_allclose(table[["centroid_x", "centroid_y"]], [np.mean(ring, axis=0) for ring in corners])


def test_geojson_has_what_qupath_imports(tmp_path, label_map):
    export.write_geojson(tmp_path / "a.geojson", label_map)
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    drawn, types = np.zeros_like(label_map), {}
    for feature in content["features"]:
        properties, geometry = feature["properties"], feature["geometry"]
        assert (feature["type"], properties["objectType"]) == ("Feature", "annotation")
        assert properties["classification"] == {"name": "Nucleus", "color": [230, 159, 0]}
        types[properties["name"]] = geometry["type"]
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        rings = [ring for polygon in polygons for ring in polygon]
        assert all(ring[0] == ring[-1] for ring in rings), "rings are closed"
        drawn[rasterise(drawn.shape, [ring[:-1] for ring in rings])] = int(properties["name"])
    np.testing.assert_array_equal(drawn, label_map)
    assert types == dict.fromkeys("1247", "Polygon") | {"9": "MultiPolygon"}


def test_rois_are_read_back(tmp_path, label_map):
    path = tmp_path / "a.zip"
    for _ in range(2):  # the second file replaces the first
        export.write_imagej_rois(path, label_map)
    rois = {roi.name: roi for roi in roiread(path)}
    assert list(rois) == ["1", "2", "4", "7", "9", "9-2"]
    assert zipfile.ZipFile(path).namelist() == [f"{name}.roi" for name in rois]
    drawn = np.zeros_like(label_map)
    for name, roi in rois.items():
        assert roi.roitype == ROI_TYPE.TRACED
        drawn[rasterise(drawn.shape, [roi.coordinates()])] = int(name.split("-")[0])
    label_map[disk(label_map.shape, (25, 40), 3)] = 7  # holes are filled
    np.testing.assert_array_equal(drawn, label_map)


def test_rois_reach_to_the_limit_of_imagej(tmp_path):
    label_map = np.zeros((2, 60535), np.int32)
    label_map[:, -3:] = 1
    export.write_imagej_rois(tmp_path / "a.zip", label_map)
    assert roiread(tmp_path / "a.zip")[0].coordinates().max(axis=0).tolist() == [60535, 2]
    with pytest.raises(ValueError, match=r"b\.zip.*60536"):
        export.write_imagej_rois(tmp_path / "b.zip", np.zeros((1, 60536), int))


def test_files_without_nuclei_are_valid(tmp_path):
    label_map = np.zeros((5, 6), int)
    export.write_geojson(tmp_path / "a.geojson", label_map)
    export.write_imagej_rois(tmp_path / "a.zip", label_map)
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == []


# The tables of the competition


def test_submission_is_read_back(tmp_path, label_map):
    label_maps = {"b": label_map, "0a1b2c3d" * 8: np.zeros((3, 4), int)} | {name: label_map.T for name in NAMES if name}
    table = export.submission_table(label_maps)
    export.write_table(tmp_path / "s.csv", table)
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "ImageId,EncodedPixels"
    assert lines[6] == f"{'0a1b2c3d' * 8},", "the ids of the competition are written as they are"
    shapes = {name: array.shape for name, array in label_maps.items()} | {"absent": (1, 1)}
    read = export.read_submission(tmp_path / "s.csv", shapes)
    assert list(read) == list(label_maps)
    numbered = np.array([0, 1, 2, 0, 3, 0, 0, 4, 0, 5])  # in the order of the file, without gaps
    for name, expected in label_maps.items():
        assert read[name].dtype == np.int32
        np.testing.assert_array_equal(read[name], numbered[expected])


def test_solution_is_read_without_ignored_rows(tmp_path):
    (tmp_path / "s.csv").write_text(
        "ImageId,EncodedPixels,Height,Width,Usage\n"
        "a,1 2 5 1,4,3,Private\n"
        "b,,2,2,Public\n"
        "a,12 1,4,3,Private\n"
        "c,1 1,1,1,Ignored\n"
    )
    assert {name: label_map.tolist() for name, label_map in export.read_solution(tmp_path / "s.csv").items()} == {
        "a": [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 2]],
        "b": [[0, 0], [0, 0]],
    }


def test_smaller_nucleus_of_a_solution_stays_on_top(tmp_path):
    (tmp_path / "s.csv").write_text("ImageId,EncodedPixels,Height,Width\na,2 1,1,4\na,1 3,1,4\na,2 1,1,4\n")
    assert export.read_solution(tmp_path / "s.csv")["a"].tolist() == [[2, 3, 2, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "table"),
        ("ImageId,EncodedPixels\na,1 1,2\n,,,,\n", "line 3"),
        ("Id,EncodedPixels\na,1 1\n", "line 1.*ImageId is missing"),
        ("ImageId,EncodedPixels\na,1 1\na,1 2 3\n", "line 3: run-length code"),
        ("ImageId,EncodedPixels\n\na,12 2\n", r"line 3: run-length code.*\(3, 4\)"),
        ("ImageId,EncodedPixels\na,1 1\nb,1 1\n", "line 3.*'b'"),
        ("ImageId,EncodedPixels\n,1 1\n", "line 2.*empty"),
        ("ImageId,EncodedPixels\na,1 5\na,3 1\n", "line 2.*overlaps"),
    ],
)
def test_error_in_a_submission_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(NucleiError, match=rf"s\.csv.*{message}"):
        export.read_submission(tmp_path / "s.csv", {"a": (3, 4)})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1 1,3,4\na,1 1,4,3\n", r"line 3.*\('4', '3'\).*\('3', '4'\) in line 2"),
        ("a,1 1,3,\n", "line 2: Height and Width"),
        ("a,1 1,3.0,4\n", "line 2: Height and Width"),
        ("a,1 1,0,4\n", "line 2: Height and Width"),
        (f"a,1 1,{'9' * 5000},1\n", "line 2: Height and Width"),
        ("a,1 1,1000000,1000000\n", "line 2.*limit"),
        ("a,x,3,4\n", "line 2: run-length code"),
    ],
)
def test_error_in_a_solution_is_named_with_its_line(tmp_path, rows, message):
    (tmp_path / "s.csv").write_text("ImageId,EncodedPixels,Height,Width\n" + rows)
    with pytest.raises(NucleiError, match=rf"s\.csv.*{message}"):
        export.read_solution(tmp_path / "s.csv")


@pytest.mark.parametrize("name", ["truth.zip", "truth.gz", "truth.csv"])
def test_other_files_are_refused_whatever_their_ending(tmp_path, name):
    with pytest.raises(NucleiError, match=f"{name} is missing"):
        export.read_solution(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\3\4\xff\xfe\0\0")
    with pytest.raises(NucleiError, match=name):
        export.read_solution(tmp_path / name)


def test_table_of_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "s.csv").write_bytes("ImageId,EncodedPixels\r\na,1 1\r\n".encode("utf-8-sig"))
    assert export.read_submission(tmp_path / "s.csv", {"a": (1, 2)})["a"].tolist() == [[1, 0]]
