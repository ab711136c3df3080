"""Labels that people correct are read as they meant, in each format, in Python and by the commands."""

import gzip
import json
import sys
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from roifile import ROI_SUBTYPE, ROI_TYPE, ImagejRoi, roiwrite

from nuclei_utils import annotations, datasets, export, io
from nuclei_utils._outlines import trace_outlines
from nuclei_utils.errors import LabelWarning, NucleiError
from tests.commands import run, three_nuclei

# background, touching nuclei, several parts, holes, one pixel, nuclei at the border, gaps in the numbers
LABEL_MAPS = arrays(
    np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 7, 40, 65535])
)
quick = settings(max_examples=40, deadline=None)


def write_napari(path, label_map):
    """Write a label layer as napari does: at least 32 bits, zlib."""
    tifffile.imwrite(path, label_map.astype(np.int64), compression="zlib", compressionargs={"level": 1})


def write_gzip(path, label_map):
    export.write_geojson(path.with_suffix(".json"), label_map)
    path.write_bytes(gzip.compress(path.with_suffix(".json").read_bytes()))


def write_zip(path, label_map):
    """Write compressed GeoJSON as QuPath does: a zip with one file."""
    export.write_geojson(path.with_suffix(".json"), label_map)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path.with_suffix(".json"), "objects.geojson")


def write_roi(path, label_map):
    """Write the only nucleus of a label map as ROI."""
    export.write_imagej_rois(path.with_suffix(".zip"), label_map)
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        (name,) = archive.namelist()
        path.write_bytes(archive.read(name))


def write_zarr(path, label_map, zarr_format=3):
    """Write an OME-Zarr label image with two levels."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for level, array in {"0": label_map, "1": label_map[::2, ::2]}.items():
        group.create_array(level, shape=array.shape, dtype=array.dtype)[:] = array
    metadata = {"multiscales": [{"datasets": [{"path": "0"}, {"path": "1"}]}], "image-label": {}}
    group.attrs.update({"ome": metadata} if zarr_format == 3 else metadata)


WRITERS = {
    "a.png": io.write_label_map,
    "a_labels.tif": io.write_label_map,
    "a.tiff": write_napari,
    "a.geojson": export.write_geojson,
    "a.geojson.gz": write_gzip,
    "a.zip": write_zip,
    "a_rois.zip": export.write_imagej_rois,
    "a.ome.zarr": write_zarr,
    "a.zarr": lambda path, label_map: write_zarr(path, label_map, zarr_format=2),
}


def has_holes(label_map):
    return any(len(rings) > 1 for _, parts in trace_outlines(label_map) for rings in parts)


@pytest.mark.parametrize("name", WRITERS)
def test_label_map_is_read_back_exactly(tmp_path_factory, name):
    @quick
    @given(LABEL_MAPS)
    def round_trip(label_map):
        assume(name != "a_rois.zip" or not has_holes(label_map))
        path = tmp_path_factory.getbasetemp() / name
        WRITERS[name](path, label_map)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = annotations.read_labels(path, label_map.shape)
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, label_map)

    round_trip()


@quick
@given(LABEL_MAPS)
def test_single_roi_is_read_back_exactly(tmp_path_factory, label_map):
    label_map = np.where(label_map == 7, 7, 0)
    parts = [rings for _, parts in trace_outlines(label_map) for rings in parts]
    assume(len(parts) == 1 and len(parts[0]) == 1)
    path = tmp_path_factory.getbasetemp() / "a.roi"
    write_roi(path, label_map)
    np.testing.assert_array_equal(annotations.read_labels(path, label_map.shape), label_map)


# Folders of images and labels


def save_images(folder, names, size=(60, 80)):
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / "images" / name)
    return folder / "labels"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slide.ome_labels.ome.zarr", "slide"),
        ("slide.ome_labels.ome.tif", "slide"),
        ("slide_labels.ome.zarr", "slide"),
        ("slide_labels.zarr", "slide"),
        ("slide.ome_rois.zip", "slide"),
        ("slide.ome.geojson.gz", "slide"),
        ("slide_labels_rois.tif", "slide_labels_rois"),
        ("slide.some_labels.png", "slide.some"),
    ],
)
def test_the_name_of_the_image(name, expected):
    assert annotations.image_name(Path("labels.ome") / name) == expected


def test_formats_are_mixed_in_a_folder(tmp_path):
    writers = {name: write for name, write in WRITERS.items() if "zarr" not in name or find_spec("zarr")}
    labels = save_images(tmp_path, [f"{index}.png" for index in range(len(writers))])
    for index, (name, write) in enumerate(writers.items()):
        write(labels / name.replace("a", str(index), 1), three_nuclei() + 10 * index * (three_nuclei() > 0))
    for path in labels.glob("*.json"):  # left by the writers, and not a name of labels
        assert path.stat().st_size
    (labels / ".0.geojson").write_bytes(b"\0\5\x16\7")  # macOS leaves such files
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = datasets.read_folder(tmp_path)
    assert len(records) == len(writers) >= 7
    for index, record in enumerate(records):
        np.testing.assert_array_equal(record.label_map, three_nuclei() + 10 * index * (three_nuclei() > 0))


@pytest.mark.parametrize("name", ["cell.geojson", "cell.ome.geojson", "cell.ome_rois.zip", "cell_labels.png"])
def test_ome_tiff_is_paired_with_its_labels(tmp_path, name):
    labels = save_images(tmp_path, ["cell.ome.tif"])
    write = next(write for other, write in WRITERS.items() if name.endswith(other[1:]))
    write(labels / name, three_nuclei())
    (record,) = datasets.read_folder(tmp_path)
    np.testing.assert_array_equal(record.label_map, three_nuclei())


@pytest.mark.parametrize("pair", [("a.geojson", "a.png"), ("a.geojson", "a_rois.zip"), ("a.zip", "a_rois.zip")])
def test_two_files_of_labels_for_an_image_are_named(tmp_path, pair):
    labels = save_images(tmp_path, ["a.png"])
    for name in pair:
        WRITERS[name](labels / name, three_nuclei())
    with pytest.raises(NucleiError, match=f"{pair[0]} and {pair[1]}.*keep one of them"):
        datasets.read_folder(tmp_path)


def test_image_without_labels_is_named(tmp_path):
    labels = save_images(tmp_path, ["a.png", "b.png"])
    export.write_geojson(labels / "a.geojson", three_nuclei())
    export.write_geojson(labels / "c.geojson", three_nuclei())
    with pytest.raises(NucleiError, match="without a pair: b, c"):
        datasets.read_folder(tmp_path)


# Files of QuPath


def square(left, top, side):
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]


def qupath_object(geometry, object_type="annotation", name=None, class_name=None, **members):
    """Return an object with the members that QuPath 0.5 writes."""
    properties = {"objectType": object_type}
    if name:
        properties["name"] = name
    if class_name:
        properties["classification"] = {"name": class_name, "color": [230, 159, 0]}
    properties |= {"isLocked": True, "measurements": {"Area": 12.5}}
    identity = "2f4dd9c8-3b46-4a09-9a3f-6f2b9c8f3b11"
    return {"type": "Feature", "id": identity, "geometry": geometry, **members, "properties": properties}


def polygon(*rings, **members):
    return {"type": "Polygon", "coordinates": list(rings), **members}


def write_qupath(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def test_objects_of_qupath_are_read(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 41)
    ellipse = [[round(30 + 8 * np.cos(a), 2), round(10 + 5 * np.sin(a), 2)] for a in angles]
    path = write_qupath(
        tmp_path / "a.geojson",
        qupath_object(polygon(square(0, 0, 8), square(2, 2, 3)), name="Nucleus with a hole", class_name="Nucleus"),
        qupath_object(polygon(ellipse, isEllipse=True), name="12"),
        qupath_object(
            polygon(square(40, 0, 12)), "cell", nucleusGeometry=polygon(square(44, 4, 4)), class_name="Tumor: Positive"
        ),
        qupath_object({"type": "MultiPolygon", "coordinates": [[square(0, 20, 3)], [square(6, 20, 3)]]}, "detection"),
        qupath_object(polygon(square(0, 0, 50)), class_name="Region*"),
        qupath_object(polygon(ellipse, isEllipse=True), "tmaCore", name="A-1"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_map = annotations.read_labels(path, (40, 60))
    labels, areas = np.unique(label_map[label_map > 0], return_counts=True)
    assert labels.tolist() == [12, 13, 14, 15]
    assert areas[1:].tolist() == [64 - 9, 16, 18]
    assert areas[0] == pytest.approx(np.pi * 8 * 5, rel=0.03)


@pytest.mark.parametrize(("classification", "area"), [({"names": ["Tumor", "Ignore*"]}, 0), ("Tumor", 64), (None, 64)])
def test_classes_have_several_forms(tmp_path, classification, area):
    feature = qupath_object(polygon(square(0, 0, 8)))
    feature["properties"]["classification"] = classification
    assert annotations.read_labels(write_qupath(tmp_path / "a.geojson", feature), (9, 9)).sum() == area


def test_geometries_without_properties_are_read(tmp_path):
    (tmp_path / "a.geojson").write_text(json.dumps([polygon(square(0, 0, 3)), polygon(square(4, 4, 3))]))
    label_map = annotations.read_labels(tmp_path / "a.geojson", (9, 9))
    assert np.bincount(label_map.ravel())[1:].tolist() == [9, 9]


def test_objects_of_several_planes_are_refused(tmp_path):
    planes = [{"c": -1, "z": z, "t": 0} for z in (1, 2)]
    features = [qupath_object(polygon(square(0, 0, 4), plane=plane)) for plane in planes]
    assert annotations.read_labels(write_qupath(tmp_path / "a.geojson", features[0]), (9, 9)).any()
    with pytest.raises(NucleiError, match=r"a\.geojson: the outlines lie in 2 planes"):
        annotations.read_labels(write_qupath(tmp_path / "a.geojson", *features), (9, 9))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.geojson.gz", gzip.compress(b"[]", mtime=0)[:-9], "cannot be read as GeoJSON"),
        ("a.geojson.gz", b"\x1f\x8b nonsense", "cannot be read as GeoJSON"),
        ("a.geojson", b"", "cannot be read as GeoJSON"),
        ("a.geojson", b'{"type": "FeatureCollection", "features": [{"type": "Fea', "cannot be read as GeoJSON"),
        ("a.geojson", b'{"type": "Feature", "properties": {}, "geometry": null}', "object 1 is damaged"),
        ("a.geojson", b'{"type": "Feature", "properties": "x", "geometry": {}}', "object 1 is damaged"),
        ("a.zip", b"", "cannot be read as ROIs"),
        ("a.roi", b"", "cannot be read as ROIs"),
    ],
)
def test_empty_and_damaged_files_are_named(tmp_path, name, content, message):
    labels = save_images(tmp_path, ["a.png"])
    (labels / name).write_bytes(content)
    with pytest.raises(NucleiError, match=f"{name}.*{message}"):
        datasets.read_folder(tmp_path)


def test_zip_of_several_geojson_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a.geojson", "b.geojson"):
            archive.writestr(name, "[]")
    with pytest.raises(NucleiError, match=r"a\.zip cannot be read as GeoJSON \(found 2 GeoJSON files"):
        annotations.read_labels(tmp_path / "a.zip", (9, 9))


# Outlines that people draw wrong


@pytest.fixture
def drawn(tmp_path):
    """Return a folder with one image, and a function that writes its outlines."""
    labels = save_images(tmp_path / "mine", ["a.png"])

    def write(*geometries):
        features = [qupath_object(geometry, name=f"n{i}") for i, geometry in enumerate(geometries, start=1)]
        write_qupath(labels / "a.geojson", *features)
        return tmp_path / "mine"

    return write


def test_open_outline_is_refused(drawn):
    line = {"type": "LineString", "coordinates": square(0, 0, 5)[:-1]}
    with pytest.raises(NucleiError, match=r"a\.geojson: object 2 is a LineString, expected a polygon; keep closed"):
        datasets.read_folder(drawn(polygon(square(0, 0, 5)), line))


def test_overlapping_outlines_are_named(drawn):
    folder = drawn(polygon(square(0, 0, 50)), polygon(square(10, 10, 5)), polygon(square(30, 10, 9)))
    with pytest.warns(LabelWarning, match=r"a\.geojson: outlines overlap, 106 pixels .*'n3' on 'n1'"):
        (record,) = datasets.read_folder(folder)
    assert np.bincount(record.label_map.ravel())[1:].tolist() == [2500 - 106, 25, 81]


def test_outlines_outside_of_the_image_are_named(drawn):
    folder = drawn(polygon(square(70, 50, 50)), polygon(square(200, 10, 5)), polygon(square(-9, -9, 4)))
    with pytest.warns(LabelWarning, match=r"a\.geojson: 2 outlines enclose no visible pixel .*\(60, 80\).*'n2', 'n3'"):
        (record,) = datasets.read_folder(folder)
    assert np.count_nonzero(record.label_map) == 10 * 10, "outlines are clipped at the image"


def test_folder_without_any_outline_is_refused(drawn):
    with pytest.raises(NucleiError, match="found no nucleus in 1 label maps"):
        datasets.read_folder(drawn())


# Files of ImageJ


def test_hole_of_a_combination_stays_open(tmp_path):
    path = []
    for ring in (square(0, 0, 8), square(2, 2, 3)):
        path += [0, *ring[0]] + [value for point in ring[1:-1] for value in (1, *point)] + [4]
    coordinates = np.array(path, np.float32)
    box = {"left": 0, "top": 0, "right": 8, "bottom": 8}
    roi = ImagejRoi(
        roitype=ROI_TYPE.RECT, name="3", multi_coordinates=coordinates, shape_roi_size=len(coordinates), **box
    )
    roi.tofile(tmp_path / "a.roi")
    label_map = annotations.read_labels(tmp_path / "a.roi", (10, 10))
    assert np.count_nonzero(label_map == 3) == 64 - 9


def test_files_that_macos_adds_to_a_zip_are_left_out(tmp_path):
    export.write_imagej_rois(tmp_path / "a.zip", three_nuclei())
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("__MACOSX/._1.roi", b"\0\5\x16\7")
        archive.writestr("notes.json", "{}")
    np.testing.assert_array_equal(annotations.read_labels(tmp_path / "a.zip", (60, 80)), three_nuclei())


def test_texts_and_rois_of_several_planes_are_refused(tmp_path):
    box = {"left": 0, "top": 0, "right": 8, "bottom": 8, "roitype": ROI_TYPE.RECT}
    text = ImagejRoi(name="note", subtype=ROI_SUBTYPE.TEXT, **box)
    roiwrite(tmp_path / "a.zip", [text], mode="w")
    with pytest.raises(NucleiError, match=r"a\.zip: 'note' is a TEXT, expected a polygon"):
        annotations.read_labels(tmp_path / "a.zip", (9, 9))
    roiwrite(tmp_path / "a.zip", [ImagejRoi(name=f"{z}", z_position=z, **box) for z in (1, 2)], mode="w")
    with pytest.raises(NucleiError, match="2 planes"):
        annotations.read_labels(tmp_path / "a.zip", (9, 9))


def test_zip_without_outlines_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(NucleiError, match=r"a\.zip cannot be read as ROIs of ImageJ \(found notes\.txt"):
        annotations.read_labels(tmp_path / "a.zip", (9, 9))


# OME-Zarr


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_labels_of_an_image_and_plain_arrays_are_read(tmp_path, zarr_format):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    group.create_array("0", shape=(1, 60, 80), dtype="uint16")
    metadata = [{"multiscales": [{"datasets": [{"path": "0"}]}]}, {"labels": ["nuclei"]}]
    labels = group.create_group("labels")
    for node, content in zip((group, labels), metadata, strict=True):
        node.attrs.update({"ome": content} if zarr_format == 3 else content)
    write_zarr(tmp_path / "a.zarr" / "labels" / "nuclei", three_nuclei()[None, None], zarr_format)
    np.testing.assert_array_equal(annotations.read_labels(tmp_path / "a.zarr", (60, 80)), three_nuclei())

    array = zarr.create_array(tmp_path / "b.zarr", shape=(60, 80), dtype="uint8", zarr_format=zarr_format)
    array[:] = three_nuclei()
    np.testing.assert_array_equal(annotations.read_labels(tmp_path / "b.zarr", (60, 80)), three_nuclei())


def test_zarr_without_one_label_image_is_refused(tmp_path):
    zarr = pytest.importorskip("zarr")

    def refused(message):
        with pytest.raises(NucleiError, match=rf"a\.zarr.*{message}"):
            annotations.read_labels(tmp_path / "a.zarr", (60, 80))

    (tmp_path / "a.zarr").mkdir()
    refused("cannot be read as OME-Zarr")  # no metadata at all
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    refused("found 0 label images, expected")
    group.create_group("labels").attrs["ome"] = {"labels": ["cells", "nuclei"]}
    refused("found 2 label images: cells, nuclei")
    group["labels"].attrs["ome"] = {"labels": ["cells"]}
    refused("cannot be read as OME-Zarr .*cells")
    write_zarr(tmp_path / "a.zarr", three_nuclei()[:50])
    refused(r"found \(height, width\) \(50, 80\), expected \(60, 80\)")
    write_zarr(tmp_path / "a.zarr", three_nuclei().astype(np.float32))
    refused("found pixels of type float32")
    write_zarr(tmp_path / "a.zarr", np.stack([three_nuclei()] * 2))
    refused("found pixels of shape")
    (tmp_path / "a.zarr" / "0" / "zarr.json").write_text("{")
    refused("cannot be read as OME-Zarr")


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(NucleiError, match=r"a\.zarr: the package zarr is missing.*nuclei-utils\[large\]"):
        annotations.read_labels(tmp_path / "a.zarr", (9, 9))


# Commands


@pytest.fixture
def predicted(tmp_path):
    """Return a folder of results, with outlines beside the label map."""
    io.write_label_map(tmp_path / "out" / "a_labels.png", three_nuclei())
    export.write_geojson(tmp_path / "out" / "a.geojson", three_nuclei())
    (tmp_path / "truth").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("name", WRITERS)
def test_evaluate_reads_corrected_labels(name, predicted, tmp_path, capsys):
    WRITERS[name](tmp_path / "truth" / name, np.where(three_nuclei() == 2, 0, three_nuclei()))
    assert run("evaluate", predicted, "--truth", tmp_path / "truth", "--json") == 0
    output = capsys.readouterr()
    assert output.err == ""
    scores = json.loads(output.out)["instances"]
    assert (scores["true"], scores["predicted"]) == (2, 3)


def test_evaluate_refuses_two_truths_and_open_outlines(predicted, tmp_path, capsys):
    assert run("evaluate", predicted, "--truth", predicted) == 1, "which of the files was corrected?"
    error = capsys.readouterr().err
    assert "a_labels.png and a.geojson" in error
    line = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    write_qupath(tmp_path / "truth" / "a.geojson", qupath_object(line))
    assert run("evaluate", predicted, "--truth", tmp_path / "truth") == 1
    assert "a.geojson: object 1 is a LineString" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::nuclei_utils.errors.LabelWarning")
def test_commands_warn_of_overlaps_in_one_line(predicted, tmp_path, capsys):
    squares = [qupath_object(polygon(square(10, 10, side))) for side in (20, 5)]
    write_qupath(tmp_path / "truth" / "a.geojson", *squares)
    assert run("evaluate", predicted, "--truth", tmp_path / "truth") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'truth' / 'a.geojson'}: outlines overlap, 25 pixels")


def test_train_names_a_file_of_labels_that_it_cannot_use(tmp_path, capsys):
    labels = save_images(tmp_path / "mine", ["a.png", "b.png"])
    export.write_geojson(labels / "a.geojson", three_nuclei())
    roi = ImagejRoi.frompoints(np.array([[0, 0], [5, 0], [5, 5]]), name="line")
    roi.roitype = ROI_TYPE.POLYLINE
    roiwrite(labels / "b_rois.zip", [roi], mode="w")
    words = ["train", "--model", "unet", "--epochs", 1, "--data", tmp_path / "mine", "--out", tmp_path / "m.keras"]
    assert run(*words) == 1
    assert "b_rois.zip: 'line' is a POLYLINE, expected a polygon" in capsys.readouterr().err
    assert not (tmp_path / "m.keras").exists()
