"""Each format read back equals what was written; each error names the file."""

import json
import subprocess
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from roifile import ROI_TYPE, roiread
from skimage.draw import polygon2mask

from nuclei_utils import export, io, labels, plots
from nuclei_utils.errors import NucleiError
from nuclei_utils.labels import encode_label_map, encode_rle, split_labels

LABEL_MAPS = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))

quick = settings(max_examples=60, deadline=None)


def disk(shape, centre, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@pytest.fixture
def label_map():
    """Nuclei with gaps in their numbers: two that touch, one that is cut off, one with a hole, one in two pieces."""
    labels, shape = np.zeros((40, 60), np.int32), (40, 60)
    labels[disk(shape, (12, 12), 7)] = 1
    labels[disk(shape, (12, 24), 6) & (labels == 0)] = 2
    labels[disk(shape, (38, 5), 6)] = 4
    labels[disk(shape, (25, 40), 9) & ~disk(shape, (25, 40), 3)] = 7
    labels[5:8, 50:55] = labels[12:15, 50:54] = 9
    return labels


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def filled(shape, rings):
    """Rasterise rings: pixels whose centres lie inside an odd number of them."""
    inside = [polygon2mask(shape, np.asarray(ring)[:, ::-1] - 0.5) for ring in rings]
    return np.logical_xor.reduce(inside, axis=0)


def signed_area(ring):
    x, y = np.asarray(ring).T
    return (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2


# The table


def test_table_of_known_nuclei():
    labels = np.zeros((20, 30), np.uint16)
    labels[2:6, 10:20] = 3
    labels[15, 29] = 8
    image = np.zeros((20, 30, 3), np.uint8)
    image[2:6, 10:15] = [100, 0, 7]
    image[15, 29] = [1, 2, 3]
    table = export.measure_nuclei(image, labels, "a.png")
    first, second = table.to_dict("records")
    semi = {"major_axis": 4 * np.sqrt(99 / 12), "minor_axis": 4 * np.sqrt(15 / 12)}
    assert first == pytest.approx(
        {
            **{"image": "a.png", "label": 3, "area": 40, "centroid_x": 15, "centroid_y": 4},
            **{"bbox_left": 10, "bbox_top": 2, "bbox_width": 10, "bbox_height": 4},
            **semi,
            **{"eccentricity": np.sqrt(1 - 15 / 99), "solidity": 1},
            **{"mean_red": 50, "mean_green": 0, "mean_blue": 3.5, "unit": "pixel"},
        }
    )
    assert (second["label"], second["area"], second["bbox_width"], second["bbox_height"]) == (8, 1, 1, 1)
    assert (second["centroid_x"], second["centroid_y"]) == (29.5, 15.5)
    assert (second["mean_red"], second["mean_green"], second["mean_blue"]) == (1, 2, 3)


def test_table_agrees_with_the_measures_of_labels(image, label_map):
    table, expected = export.measure_nuclei(image, label_map, "a"), labels.measure(label_map)
    for column in ("label", "area", "eccentricity", "solidity"):
        np.testing.assert_allclose(table[column], expected[column])


def test_table_in_micrometres(image, label_map):
    pixels, table = export.measure_nuclei(image, label_map, "a"), export.measure_nuclei(image, label_map, "a", 0.5)
    squared, same = ["area"], ["label", "eccentricity", "solidity", "mean_red", "mean_green", "mean_blue"]
    lengths = pixels.columns.difference([*squared, *same, "image", "unit"])
    assert len(lengths) == 8
    np.testing.assert_allclose(table[lengths], pixels[lengths] * 0.5)
    np.testing.assert_allclose(table[squared], pixels[squared] * 0.25)
    np.testing.assert_allclose(table[same], pixels[same])
    assert set(table["unit"]) == {"micrometre"}


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_intensities_are_those_of_the_file_whatever_its_brightest_pixel(tmp_path, label_map, ending):
    """Two images of a 12-bit camera differ in one pixel of the background, whose value needs one bit more."""
    nuclei, tables = (label_map * 150 + 90).astype(np.uint16), []
    for brightest in (2047, 2048):
        nuclei[0, 0] = brightest
        io.write_label_map(tmp_path / f"{brightest}.{ending}", nuclei)
        raw = io.read_raw(tmp_path / f"{brightest}.{ending}")
        assert (raw.dtype, raw.shape) == (np.uint16, (*label_map.shape, 1))
        tables.append(export.measure_nuclei(raw, label_map, "a"))
    pd.testing.assert_frame_equal(*tables)
    for column in ("mean_red", "mean_green", "mean_blue"):
        np.testing.assert_allclose(tables[0][column], tables[0]["label"] * 150 + 90)


def test_table_of_raw_colours_keeps_16_bits(label_map):
    raw = np.dstack([label_map * 5000, label_map * 7000, label_map]).astype(np.uint16)
    table = export.measure_nuclei(raw, label_map, "a")
    for column, factor in {"mean_red": 5000, "mean_green": 7000, "mean_blue": 1}.items():
        np.testing.assert_allclose(table[column], table["label"] * factor)


def test_table_without_nuclei_has_the_same_columns(image, label_map):
    table = export.measure_nuclei(image, np.zeros_like(label_map), "a", pixel_size=0.5)
    assert table.columns.tolist() == export.measure_nuclei(image, label_map, "a").columns.tolist()
    assert len(table) == 0


def test_table_comes_back(tmp_path, image, label_map):
    table = pd.concat([export.measure_nuclei(image, label_map, name, 0.3) for name in ("a, b", "Kern ä")])
    export.write_table(tmp_path / "nuclei.csv", table)
    found = pd.read_csv(tmp_path / "nuclei.csv")
    pd.testing.assert_frame_equal(found, table.reset_index(drop=True), check_dtype=False, rtol=1e-14)


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


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path, image, label_map):
    table = pd.concat([export.measure_nuclei(image, label_map, name) for name in NAMES])
    export.write_table(tmp_path / "nuclei.csv", table)
    written = pd.read_csv(tmp_path / "nuclei.csv", dtype=str, keep_default_na=False)
    assert not written.map(lambda cell: cell[:1] in tuple("=+-@\t\r\n") and cell != "").any(axis=None)
    assert {"'@SUM(A1)", "'-5", "a=b", "a-5", "007"} <= set(written["image"])
    np.testing.assert_allclose(written["bbox_left"].astype(float), table["bbox_left"])


def test_names_of_a_submission_come_back_as_they_were(tmp_path, label_map):
    label_maps = {name: label_map for name in NAMES if name}
    export.write_submission(tmp_path / "s.csv", export.submission_table(label_maps))
    found = export.read_submission(tmp_path / "s.csv", dict.fromkeys(label_maps, label_map.shape))
    assert list(found) == list(label_maps)


def test_ids_of_the_competition_are_written_as_they_are(tmp_path, label_map):
    name = "0a1b2c3d" * 8
    export.write_submission(tmp_path / "s.csv", export.submission_table({name: label_map > 0}))
    assert (tmp_path / "s.csv").read_text().splitlines()[1].startswith(f"{name},")


def test_a_name_that_is_not_utf_8_does_not_lose_the_table(tmp_path, image, label_map):
    name = b"cell\xff".decode(errors="surrogateescape")
    export.write_table(tmp_path / "nuclei.csv", export.measure_nuclei(image, label_map, name))
    export.write_submission(tmp_path / "s.csv", export.submission_table({name: label_map}))
    for file in ("nuclei.csv", "s.csv"):
        assert "cell\\udcff" in (tmp_path / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("pixel_size", [0, -0.5, np.inf, np.nan])
def test_table_refuses_a_pixel_size_that_is_none(image, label_map, pixel_size):
    with pytest.raises(ValueError, match="pixel size"):
        export.measure_nuclei(image, label_map, "a", pixel_size)


def test_table_refuses_shapes_that_differ(image, label_map):
    with pytest.raises(ValueError, match=r"a\.png: expected an image \(40, 59, 3\).*found\s\(40, 60, 3\)"):
        export.measure_nuclei(image, label_map[:, 1:], "a.png")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.zeros((2, 3)), "float64"),
        (np.zeros((2, 3), bool), "bool"),
        (np.zeros((1, 2, 3), int), r"\(1, 2, 3\)"),
        (np.array([[0, -1]]), "0 .background. or above, found -1"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path, labels, found):
    for write in (io.write_label_map, export.write_geojson, export.write_imagej_rois):
        with pytest.raises(ValueError, match=f"expected a label map.*{found}"):
            write(tmp_path / "a.png", labels)
    assert list(tmp_path.iterdir()) == []


# Pictures


@pytest.mark.parametrize("ending", ["png", "tif", "TIFF"])
@pytest.mark.parametrize("factor", [1, 7281], ids=["8 bits", "16 bits"])
def test_labels_come_back(tmp_path, label_map, ending, factor):
    path = tmp_path / "new" / f"Kern ä.{ending}"
    io.write_label_map(path, label_map * factor)
    found = io.read_label_map(path)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, label_map * factor)
    if ending == "png":
        assert path.read_bytes()[24] == 16, "bits per pixel"
    else:
        assert tifffile.imread(path).dtype == np.uint16


def test_many_nuclei_need_a_tiff(tmp_path, label_map):
    with pytest.raises(ValueError, match=r"a\.png: the highest label is 65536.*a\.tif"):
        io.write_label_map(tmp_path / "a.png", label_map * 0 + 65536)
    io.write_label_map(tmp_path / "a.tif", label_map * 65536)
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.uint32
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "a.tif"), label_map * 65536)


def test_labels_of_other_programs_are_read(tmp_path, label_map):
    for dtype in (np.uint8, np.int16, np.int32, np.uint32, np.int64):
        tifffile.imwrite(tmp_path / "a.tif", label_map.astype(dtype))
        np.testing.assert_array_equal(io.read_label_map(tmp_path / "a.tif"), label_map)
    Image.fromarray(label_map.astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "a.png"), label_map)


def test_mask_is_black_and_white(tmp_path, label_map):
    for name in ("a.png", "a.tif"):
        io.write_mask(tmp_path / name, label_map)
        with Image.open(tmp_path / name) as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.array(picture), np.where(label_map, 255, 0))
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "a.png"), np.where(label_map, 255, 0))


@pytest.mark.parametrize("strip", [1, 7, 1024])
def test_overlay_is_that_of_plots_whatever_the_strips(tmp_path, monkeypatch, image, label_map, strip):
    monkeypatch.setattr(export, "STRIP", strip)
    export.write_overlay(tmp_path / "a.png", image, label_map)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.array(picture), plots.overlay(image, label_map))


def test_endings_that_lose_labels_are_refused(tmp_path, image, label_map):
    for write in (io.write_label_map, io.write_mask):
        with pytest.raises(ValueError, match=r"a\.jpg.*'\.jpg', expected one of \.png"):
            write(tmp_path / "a.jpg", label_map)
    with pytest.raises(ValueError, match=r"found the ending ''"):
        export.write_overlay(tmp_path / "a", image, label_map)
    with pytest.raises(ValueError, match=r"\(40, 60\), its labels \(40, 59\)"):
        export.write_overlay(tmp_path / "a.png", image, label_map[:, 1:])
    assert list(tmp_path.iterdir()) == []


def test_unreadable_label_maps_are_named(tmp_path, image, label_map):
    def refused(name, message):
        with pytest.raises(NucleiError, match=message) as caught:
            io.read_label_map(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)

    refused("missing.png", "is missing")
    Image.fromarray(image).save(tmp_path / "colours.png")
    refused("colours.png", r"found pixels of shape \(40, 60, 3\)")
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([label_map] * 5).astype(np.uint16), photometric="minisblack")
    refused("stack.tif", "found 5 pages")
    tifffile.imwrite(tmp_path / "fractions.tif", (label_map / 2).astype(np.float32))
    refused("fractions.tif", "found pixels of type float32")
    tifffile.imwrite(tmp_path / "negative.tif", (label_map - 1).astype(np.int16))
    refused("negative.tif", "found values from -1 to 8")
    for name in ("cut.png", "cut.tif", "plain.tif"):
        io.write_label_map(tmp_path / name, label_map)
        if name == "plain.tif":
            tifffile.imwrite(tmp_path / name, label_map.astype(np.uint16))
        content = (tmp_path / name).read_bytes()
        for size in (0, 6, len(content) * 9 // 10):
            (tmp_path / name).write_bytes(content[:size])
            refused(name, "read")


# Outlines


@quick
@given(LABEL_MAPS)
def test_outlines_enclose_exactly_the_nucleus(labels):
    found = dict(export.outlines(labels))
    assert list(found) == np.unique(labels[labels > 0]).tolist()
    for label, pieces in found.items():
        rings = [ring for piece in pieces for ring in piece]
        np.testing.assert_array_equal(filled(labels.shape, rings), labels == label)
        assert sum(map(signed_area, rings)) == (labels == label).sum()
        for outer, *holes in pieces:
            assert signed_area(outer) > 0
            assert all(signed_area(hole) < 0 for hole in holes)
        for ring in rings:
            assert len(np.unique(ring, axis=0)) == len(ring), "no ring meets itself"
            upright = (ring == np.roll(ring, 1, axis=0))[:, 0]
            assert (upright != np.roll(upright, 1)).all(), "each point is a corner"


def test_outline_of_one_pixel_is_its_square():
    labels = np.zeros((3, 5), int)
    labels[1, 3] = 2
    ((label, [[ring]]),) = export.outlines(labels)
    assert label == 2
    assert sorted(ring.tolist()) == [[3, 1], [3, 2], [4, 1], [4, 2]]


def test_outlines_have_the_centroids_of_the_table(image, label_map):
    table = export.measure_nuclei(image, label_map, "a").set_index("label")
    for label, [[outer, *holes], *more] in export.outlines(label_map):
        if not holes and not more:
            corners = np.concatenate([outer, outer[:1]])
            x, y = corners.T
            cross = x[:-1] * y[1:] - x[1:] * y[:-1]
            centroid = ((corners[:-1] + corners[1:]) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
            np.testing.assert_allclose(centroid, table.loc[label, ["centroid_x", "centroid_y"]].astype(float))


def test_geojson_is_what_qupath_imports(tmp_path, label_map):
    export.write_geojson(tmp_path / "a.geojson", label_map)
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    labels, image_types = np.zeros_like(label_map), {}
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        properties, geometry = feature["properties"], feature["geometry"]
        assert properties["objectType"] == "detection"
        assert properties["classification"] == {"name": "Nucleus", "color": [230, 159, 0]}
        image_types[properties["name"]] = geometry["type"]
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        rings = [ring for polygon in polygons for ring in polygon]
        assert all(ring[0] == ring[-1] for ring in rings), "closed"
        labels[filled(labels.shape, [ring[:-1] for ring in rings])] = int(properties["name"])
    np.testing.assert_array_equal(labels, label_map)
    assert image_types == {"1": "Polygon", "2": "Polygon", "4": "Polygon", "7": "Polygon", "9": "MultiPolygon"}


def test_rois_come_back(tmp_path, label_map):
    path = tmp_path / "a.zip"
    for _ in range(2):  # the second time replaces the first, and adds nothing to it
        export.write_imagej_rois(path, label_map)
    rois = {roi.name: roi for roi in roiread(path)}
    assert list(rois) == ["1", "2", "4", "7", "9", "9-2"]
    with zipfile.ZipFile(path) as file:
        assert file.namelist() == [f"{name}.roi" for name in rois]
    labels = np.zeros_like(label_map)
    for name, roi in rois.items():
        assert roi.roitype == ROI_TYPE.TRACED
        labels[filled(labels.shape, [roi.coordinates()])] = int(name.split("-")[0])
    label_map[disk(label_map.shape, (25, 40), 3)] = 7  # holes are filled
    np.testing.assert_array_equal(labels, label_map)


def test_rois_reach_as_far_as_imagej_does(tmp_path):
    labels = np.zeros((2, 60535), np.int32)
    labels[:, -3:] = 1
    export.write_imagej_rois(tmp_path / "a.zip", labels)
    assert roiread(tmp_path / "a.zip")[0].coordinates().max(axis=0).tolist() == [60535, 2]
    with pytest.raises(ValueError, match=r"a\.zip: the image is \(1, 60536\)"):
        export.write_imagej_rois(tmp_path / "a.zip", np.zeros((1, 60536), int))


def test_no_nuclei_make_empty_files(tmp_path):
    labels = np.zeros((5, 6), int)
    export.write_geojson(tmp_path / "a.geojson", labels)
    export.write_imagej_rois(tmp_path / "a.zip", labels)
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == []


# The competition's tables


@quick
@given(LABEL_MAPS)
def test_codes_of_all_nuclei_are_those_of_each(labels):
    codes = encode_label_map(labels)
    assert list(codes) == np.unique(labels[labels > 0]).tolist()
    assert list(codes.values()) == [encode_rle(mask) for mask in split_labels(labels)]


def test_thousands_of_nuclei_are_quick():
    labels = np.kron(np.arange(1, 2501, dtype=np.int32).reshape(50, 50), np.ones((18, 18), np.int32))
    start = time.process_time()
    codes, outlines = encode_label_map(labels), dict(export.outlines(labels))
    assert time.process_time() - start < 3  # 0.3 s; whole masks one after the other take 10 s and more
    assert len(codes) == len(outlines) == 2500


def test_submission_comes_back(tmp_path, label_map):
    label_maps = {"b": label_map, "007": np.zeros((3, 4), int), "NA": label_map.T}
    table = export.submission_table(label_maps)
    assert table["ImageId"].tolist() == ["b"] * 5 + ["007"] + ["NA"] * 5
    assert table["EncodedPixels"][5] == ""
    export.write_submission(tmp_path / "s.csv", table.assign(more=1))
    assert (tmp_path / "s.csv").read_text().startswith("ImageId,EncodedPixels\nb,")
    shapes = {name: labels.shape for name, labels in label_maps.items()}
    found = export.read_submission(tmp_path / "s.csv", shapes | {"absent": (1, 1)})
    assert list(found) == list(label_maps)
    numbered = np.array([0, 1, 2, 0, 3, 0, 0, 4, 0, 5])  # in the order of the file, without gaps
    for name, label_map in label_maps.items():
        assert found[name].dtype == np.int32
        np.testing.assert_array_equal(found[name], numbered[label_map])


def test_solution_of_the_competition_is_read(tmp_path):
    path = tmp_path / "stage1_solution.csv"
    path.write_text(
        "ImageId,EncodedPixels,Height,Width,Usage\n"
        "a,1 2 5 1,4,3,Private\n"
        "b,,2,2,Public\n"
        "a,12 1,4,3,Private\n"
        "c,1 1,1,1,Ignored\n"
    )
    found = export.read_solution(path)
    assert {name: labels.tolist() for name, labels in found.items()} == {
        "a": [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 2]],
        "b": [[0, 0], [0, 0]],
    }
    assert found["a"].flags.c_contiguous


def test_smaller_nucleus_of_a_solution_stays_on_top(tmp_path):
    (tmp_path / "s.csv").write_text("ImageId,EncodedPixels,Height,Width\na,2 1,1,4\na,1 3,1,4\na,2 1,1,4\n")
    assert export.read_solution(tmp_path / "s.csv")["a"].tolist() == [[2, 3, 2, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as a table"),
        ("ImageId,EncodedPixels\na,1 1,2\n,,,,\n", "cannot be read as a table.*line 3"),
        ("Id,EncodedPixels\na,1 1\n", "line 1: found the columns Id, EncodedPixels; ImageId is missing"),
        ("ImageId,EncodedPixels\na,1 1\na,1 2 3\n", "line 3: run-length code has 3 numbers"),
        ("ImageId,EncodedPixels\n\na,12 2\n", r"line 3: run-length code leaves the image.*\(3, 4\)"),
        ("ImageId,EncodedPixels\na,1 1\nb,1 1\n", "line 3: the image 'b' is not known"),
        ("ImageId,EncodedPixels\n,1 1\n", "line 2: ImageId is empty"),
        ("ImageId,EncodedPixels\na,1 5\na,3 1\n", "line 2: the nucleus overlaps"),
    ],
)
def test_broken_submission_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(NucleiError, match=message) as caught:
        export.read_submission(tmp_path / "s.csv", {"a": (3, 4)})
    assert str(tmp_path / "s.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1 1,3,4\na,1 1,4,3\n", r"line 3: 'a' has the size \('4', '3'\) here, \('3', '4'\) in line 2"),
        ("a,1 1,3,\n", r"line 2: Height and Width must be whole numbers"),
        ("a,1 1,3.0,4\n", r"line 2: Height and Width must be whole numbers"),
        ("a,1 1,0,4\n", r"line 2: Height and Width must be whole numbers"),
        ("a,x,3,4\n", "line 2: run-length code must be whole numbers"),
        ("a,1 1,1000000,1000000\n", "line 2: found an image of 1000000 x 1000000 pixels, more than the limit"),
        (f"a,1 1,{'9' * 5000},1\n", "line 2: Height and Width must be whole numbers"),
    ],
)
def test_broken_solution_is_named_with_its_line(tmp_path, rows, message):
    (tmp_path / "s.csv").write_text("ImageId,EncodedPixels,Height,Width\n" + rows)
    with pytest.raises(NucleiError, match=message):
        export.read_solution(tmp_path / "s.csv")
    with pytest.raises(NucleiError, match=r"none\.csv is missing"):
        export.read_solution(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["truth.zip", "truth.gz", "truth.csv"])
def test_what_is_no_table_is_refused_whatever_its_ending(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4\xff\xfe\0\0")
    with pytest.raises(NucleiError, match=f"{name} cannot be read as a table|{name}, line 1"):
        export.read_solution(tmp_path / name)


def test_table_of_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "s.csv").write_bytes("ImageId,EncodedPixels\r\na,1 1\r\n".encode("utf-8-sig"))
    assert export.read_submission(tmp_path / "s.csv", {"a": (1, 2)})["a"].tolist() == [[1, 0]]


def test_needs_neither_keras_nor_tensorflow():
    code = "import sys, nuclei_utils.export; print({'keras', 'tensorflow'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
