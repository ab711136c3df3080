"""Tests of `slides`: files that are read in blocks give what the whole image gives."""

import functools
import io as streams
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import tifffile

from nuclei_utils import annotations, export, io, microscopy, predict, preprocess, slides
from nuclei_utils.errors import NucleiError
from tests.test_microscopy import LEVELS, STACK, write_images, write_levels, write_ome, write_svs, write_zarr
from tests.test_predict import discs

zarr = pytest.importorskip("zarr", minversion="3")
pytest.importorskip("tifffile", minversion="2025.5.21")  # reads TIFF for zarr 3


@functools.cache
def red_network():
    """A network whose mask is the red channel."""
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, inputs[..., :1])


def slide_pixels(height=300, width=430, dtype=np.uint16):
    """Draw dim, blurred nuclei, and hot pixels."""
    rng = np.random.default_rng(0)
    nuclei = discs(height, width)[..., 1].astype(np.float64)
    pixels = np.clip(nuclei * 9 + rng.normal(300, 30, nuclei.shape), 0, None)
    pixels[rng.integers(0, height, 5), rng.integers(0, width, 5)] = 65000
    return pixels.astype(np.uint16) if dtype == np.uint16 else np.clip(pixels / 12, 0, 255).astype(np.uint8)


def write_slide(path, pixels, **options):
    write_ome(path, pixels, "YX", size=(0.5, 0.5, "µm"), tile=(64, 64), compression="zlib", **options)
    return path


def job_for(path, folder, min_pixels=1000, level=0, **options):
    slide = slides.find_slide(path, min_pixels, level=level)
    return slides.Job(
        slide, folder, red_network, "slide", options={"min_size": 20}, **({"block": 96, "context": 32} | options)
    )


def whole(path, level=0, **options):
    """Return label map, table and codes of a slide that is read whole."""
    planes = microscopy.read_planes(path, level=level)
    image = io.to_rgb8(planes.image)
    label_map = predict.predict_labels(red_network(), image, min_size=20, **({"block": 96, "context": 32} | options))
    table = export.measure_nuclei(planes.channels, label_map, "slide", planes.pixel_size)
    return label_map, table, export.submission_table({"slide": label_map}), image


def tables_of(job, columns):
    table, codes = (b"".join(parts).decode() for parts in (job.rows(), job.codes()))
    names = [*columns, "pixel_size", "pixel_size_source"]
    return pd.read_csv(streams.StringIO(table), names=names), pd.read_csv(
        streams.StringIO(codes), names=["ImageId", "EncodedPixels"]
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("blocks", [{}, {"block": 64, "context": 64}, {"block": 768, "context": 192}])
@pytest.mark.parametrize("sampled", [2048**2, 5000])
def test_a_slide_gives_the_nuclei_of_the_whole_image(tmp_path, monkeypatch, dtype, blocks, sampled):
    monkeypatch.setattr(preprocess, "MAX_SAMPLED_PIXELS", sampled)
    path = write_slide(tmp_path / "a.tif", slide_pixels(dtype=dtype))
    label_map, table, codes, image = whole(path, **blocks)
    assert label_map.max() > 80
    job = job_for(path, tmp_path / "work", **blocks)
    result = job.run()
    np.testing.assert_array_equal(annotations.read_labels(result.labels, label_map.shape), label_map)
    assert result.count == label_map.max()
    assert result.consistency == predict.tta_consistency(red_network(), image, label_map, min_size=20)
    in_parts, codes_in_parts = tables_of(job, table.columns)
    in_parts, codes_in_parts = in_parts.sort_values("label", ignore_index=True), codes_in_parts
    pd.testing.assert_frame_equal(in_parts[table.columns], table, check_dtype=False, rtol=1e-9)
    assert sorted(codes_in_parts["EncodedPixels"]) == sorted(codes["EncodedPixels"])


@pytest.mark.parametrize("kind", ["tif", "zarr"])
def test_a_level_of_a_slide_gives_the_nuclei_of_that_level(tmp_path, kind):
    pixels = np.kron(slide_pixels(150, 200), np.ones((2, 2), np.uint16))
    if kind == "tif":
        path = write_levels(tmp_path / "a.tif", 2, pixels, compression="zlib")
    else:
        path = write_zarr(tmp_path / "a.zarr", pixels, "yx", "0.4")
    label_map, table, _, image = whole(path, level=1)
    assert image.shape == (150, 200, 3)
    assert label_map.max() > 10
    job = job_for(path, tmp_path / "work", level=1)
    assert (job.slide.shape, job.slide.pixel_size) == ((150, 200), pytest.approx(0.4))
    result = job.run()
    np.testing.assert_array_equal(annotations.read_labels(result.labels, (150, 200)), label_map)
    in_parts = tables_of(job, table.columns)[0].sort_values("label", ignore_index=True)
    pd.testing.assert_frame_equal(in_parts[table.columns], table, check_dtype=False, rtol=1e-9)
    assert slides.find_slide(path, 2 * 150 * 200, level=1) is None
    assert slides.find_slide(path, 2 * 150 * 200).shape == (300, 400)


def test_an_image_of_a_file_with_several_is_a_slide(tmp_path):
    path = write_images(tmp_path / "a.tif", ["a", "label", "b"], compression="zlib", tile=(16, 16))
    slide = slides.find_slide(path, 100, channel=1, scene=1)
    assert (slide.shape, slide.names, slide.pixel_size) == ((40, 50), ["a2", "b2"], 3)
    with slide.open() as planes:
        np.testing.assert_array_equal(planes.read_image(slice(3, 33), slice(5, 24))[..., 0], STACK[0, 1, 2, 3:33, 5:24])


def test_an_aperio_slide_is_read_in_parts(tmp_path):
    path = write_svs(tmp_path / "a.svs")
    for level, pixels in enumerate(LEVELS):
        slide = slides.find_slide(path, 100, level=level)
        assert (slide.shape, slide.pixel_size) == (pixels.shape[:2], 0.25 * 2**level)
        with slide.open() as planes:
            image, channels = planes.read(slice(3, 15), slice(5, 24))
        np.testing.assert_array_equal(image, pixels[3:15, 5:24])
        np.testing.assert_array_equal(channels["blue"], pixels[3:15, 5:24, 2])


def test_a_tiff_pyramid_holds_the_same_labels(tmp_path):
    path = write_slide(tmp_path / "a.tif", slide_pixels())
    label_map = whole(path)[0]
    result = job_for(path, tmp_path / "work").run("tif")
    with tifffile.TiffFile(result.labels) as file:
        (series,) = file.series
        assert [level.shape for level in series.levels] == [(300, 430), (150, 215), (75, 108), (38, 54)]
        assert series.keyframe.is_tiled
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata
        np.testing.assert_array_equal(series.asarray(), label_map)
        for number, level in enumerate(series.levels):
            np.testing.assert_array_equal(level.asarray(), label_map[:: 2**number, :: 2**number])


def test_the_group_is_an_ome_zarr_image_with_labels(tmp_path):
    """napari-ome-zarr takes a group of labels without an image for a folder of its parent."""
    pixels = slide_pixels(dtype=np.uint8)
    path = write_slide(tmp_path / "a.tif", pixels)
    labels = job_for(path, tmp_path / "work").run().labels
    group = zarr.open_group(labels, mode="r", zarr_format=2)
    (image,) = group.attrs["multiscales"]
    assert image["version"] == "0.4"
    assert [axis["name"] for axis in image["axes"]] == ["c", "y", "x"]
    assert image["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 4.0, 4.0]}]
    overview = preprocess.resize(io.to_rgb8(pixels[..., None])[:96, :96], (12, 12))
    np.testing.assert_array_equal(group["0"][:, :12, :12], np.moveaxis(overview, -1, 0))
    assert group["0"].shape == (3, 38, 54)
    assert group["labels"].attrs["labels"] == ["nuclei"]
    nuclei = group["labels/nuclei"]
    assert "image-label" in nuclei.attrs
    (pyramid,) = nuclei.attrs["multiscales"]
    for number, level in enumerate(pyramid["datasets"]):
        assert level["coordinateTransformations"] == [{"type": "scale", "scale": [0.5 * 2**number] * 2}]
        assert nuclei[level["path"]].shape == (-(-300 // 2**number), -(-430 // 2**number))
    assert len(pyramid["datasets"]) == len(list(nuclei.arrays())) == 4


FORMATS = ["tiles", "strips", "no compression", "big-endian", "rgb", "channels", "pyramid", "zarr 0.4", "zarr 0.5"]


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read_in_parts(tmp_path, kind):
    path, choice = tmp_path / "a.tif", {}
    pixels = np.random.default_rng(1).integers(0, 60000, (3, 2, 200, 150)).astype(np.uint16)
    if kind.startswith("zarr"):
        path = write_zarr(tmp_path / "a.zarr", pixels, "czyx", kind[-3:], ["DAPI", "GFP", "Cy5"])
        choice = {"channel": "GFP", "z": "max"}
    elif kind == "rgb":
        colours = (pixels[:, 0] // 256).astype(np.uint8)
        write_ome(path, np.moveaxis(colours, 0, -1), "YXS", photometric="rgb", tile=(64, 64), compression="zlib")
    elif kind == "channels":
        write_ome(path, pixels, "CZYX", ["DAPI", "GFP", "Cy5"], tile=(64, 64), compression="zlib")
        choice = {"channel": "GFP", "z": 1}
    elif kind == "pyramid":
        with tifffile.TiffWriter(path, ome=True) as file:
            file.write(pixels[:, 0], subifds=1, tile=(64, 64), compression="zlib", metadata={"axes": "CYX"})
            file.write(pixels[:, 0, ::2, ::2], subifds=0, subfiletype=1, tile=(64, 64), compression="zlib")
        choice = {"channel": 2}
    else:
        options = {"tiles": {"tile": (64, 64), "compression": "zlib"}, "strips": {"rowsperstrip": 7, "compression": 8}}
        options |= {"no compression": {}, "big-endian": {"byteorder": ">"}}
        write_ome(path, pixels[0, 0], "YX", **options[kind])
    expected = microscopy.read_planes(path, **choice)
    with microscopy.open_planes(path, **choice, in_parts=True) as planes:
        assert planes.in_parts
        assert (planes.shape, planes.names) == ((200, 150), list(expected.channels))
        part = slice(30, 190), slice(70, 150)
        image, channels = planes.read(*part)
        np.testing.assert_array_equal(image, expected.image[part])
        np.testing.assert_array_equal(planes.read_image(*part), expected.image[part])
        for name, values in expected.channels.items():
            np.testing.assert_array_equal(channels[name], values[part])
    assert slides.find_slide(path, 200 * 150, **choice) is None
    assert slides.find_slide(path, 200 * 150 - 1, **choice).shape == (200, 150)


def test_an_image_without_parts_is_no_slide(tmp_path):
    for name, options in {"a.png": {}, "b.tif": {"photometric": "miniswhite"}}.items():
        if name.endswith("png"):
            io.write_mask(tmp_path / name, np.eye(99, dtype=int))
        else:
            tifffile.imwrite(tmp_path / name, np.eye(99, dtype=np.uint8), **options)
        assert slides.find_slide(tmp_path / name, 10) is None


def test_tifffile_that_zarr_cannot_use_is_named(tmp_path, monkeypatch):
    path = write_slide(tmp_path / "a.tif", slide_pixels())
    monkeypatch.setitem(sys.modules, "tifffile.zarr", None)
    with (
        pytest.raises(NucleiError, match="a newer tifffile: pip install"),
        microscopy.open_planes(path, in_parts=True) as planes,
    ):
        planes.read_image(slice(0, 9), slice(0, 9))
    assert slides.find_slide(path, 1000) is None
    monkeypatch.setattr(io, "MAX_PIXELS", 1000)
    with pytest.raises(NucleiError, match="large"):
        slides.find_slide(path, 1000)


def test_an_empty_slide_has_no_rows(tmp_path):
    job = job_for(write_slide(tmp_path / "a.tif", np.full((200, 200), 7, np.uint8)), tmp_path / "work")
    result = job.run()
    assert result.count == 0
    assert np.isnan(result.consistency)
    assert b"".join(job.rows()) == b""
    assert b"".join(job.codes()).decode() == "slide,\n"


@pytest.mark.parametrize("damage", ["cut", "tile"])
def test_a_damaged_slide_is_named(tmp_path, damage):
    path = write_slide(tmp_path / "a.tif", slide_pixels(), byteorder=">")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[-1]
    if damage == "cut":
        del content[-len(content) // 3 :]
    else:
        content[start : start + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(NucleiError, match=r"a\.tif"):
        job_for(path, tmp_path / "work").run()
    assert not list(tmp_path.glob("work/labels*"))
