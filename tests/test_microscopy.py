"""Tests of `microscopy`: files as microscopes write them, the choice of a plane, and files that are refused."""

import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.measure_formats import write_ome_zarr
from nuclei_utils import _stacks, io, microscopy
from nuclei_utils.errors import NucleiError
from nuclei_utils.microscopy import read_planes

NAMES = ["DAPI", "GFP", "Cy5"]
STACK = np.random.default_rng(0).integers(0, 4096, (2, 3, 5, 40, 50), np.uint16)  # times, channels, planes
STACK.setflags(write=False)


def write_ome(path, array, axes, names=None, size=None, **options):
    """Write an OME-TIFF file. Return its path."""
    metadata = {"axes": axes} | ({"Channel": {"Name": names}} if names else {})
    if size:
        metadata |= {"PhysicalSizeX": size[0], "PhysicalSizeY": size[1], "PhysicalSizeXUnit": size[2]}
        metadata["PhysicalSizeYUnit"] = size[2]
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, array, ome=True, metadata=metadata, **options)
    return path


@pytest.fixture
def path(tmp_path):
    """Path of a TIFF file that does not exist yet."""
    return tmp_path / "cells.tif"


@pytest.fixture
def confocal(path):
    """OME-TIFF of two times, three channels and five planes, with a pixel size."""
    return write_ome(path, STACK, "TCZYX", NAMES, (0.2, 0.2, "µm"))


# Formats


COMPRESSED = {"compression": "zlib", "tile": (16, 16)}


@pytest.mark.parametrize("options", [{}, COMPRESSED, {"bigtiff": True, "byteorder": ">"}, {**COMPRESSED, "bigtiff": 1}])
def test_ome_tiff(path, options):
    write_ome(path, STACK, "TCZYX", NAMES, (200, 200, "nm"), **options)
    planes = read_planes(path, channel="GFP", z=3, time=1)
    assert planes.image.dtype == np.uint16
    np.testing.assert_array_equal(planes.image, STACK[1, 1, 3][..., None])
    assert list(planes.channels) == NAMES
    for number, values in enumerate(planes.channels.values()):
        np.testing.assert_array_equal(values, STACK[1, number, 3])
    assert (planes.pixel_size, planes.pixel_size_source) == (pytest.approx(0.2), "file")


@pytest.mark.parametrize("options", [{}, {"truncate": True}, {"compression": "zlib"}])
def test_imagej_hyperstack(path, options):
    metadata = {"axes": "ZCYX", "unit": "um"}
    tifffile.imwrite(path, STACK[0].swapaxes(0, 1), imagej=True, resolution=(4, 4), metadata=metadata, **options)
    planes = read_planes(path, channel=2)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[0, 2].max(axis=0))
    assert list(planes.channels) == ["channel_0", "channel_1", "channel_2"]
    assert (planes.pixel_size, planes.pixel_size_source) == (0.25, "file")


@given(order=st.permutations("TCZ"), time=st.integers(0, 1), channel=st.integers(0, 2), z=st.integers(0, 4))
def test_the_order_of_the_axes_does_not_matter(tmp_path_factory, order, time, channel, z):
    path = tmp_path_factory.mktemp("order") / "a.tif"
    write_ome(path, STACK.transpose(*("TCZ".index(axis) for axis in order), 3, 4), "".join(order) + "YX")
    planes = read_planes(path, channel=channel, z=z, time=time)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[time, channel, z])


def test_a_pyramid_gives_its_largest_level(path):
    channels = STACK[0, :, 0]
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(channels, subifds=1, tile=(16, 16), metadata={"axes": "CYX"})
        file.write(channels[:, ::2, ::2], subfiletype=1, tile=(16, 16))
    np.testing.assert_array_equal(read_planes(path, channel=1).image[..., 0], channels[1])


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_channels_that_are_samples_of_a_page(path, planar):
    channels = STACK[0, :, 0] if planar == "separate" else np.moveaxis(STACK[0, :, 0], 0, -1)
    axes = "CYX" if planar == "separate" else "YXC"
    write_ome(path, channels, axes.replace("C", "S"), photometric="minisblack", planarconfig=planar)
    planes = read_planes(path, channel=1)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[0, 1, 0])
    assert len(planes.channels) == 3


@pytest.mark.parametrize("z", [0, 2, "max"])
def test_rgb_stays_rgb(path, z):
    stack = np.random.default_rng(1).integers(0, 256, (4, 20, 30, 3), np.uint8)
    write_ome(path, stack, "ZYXS", photometric="rgb")
    expected = stack.max(axis=0) if z == "max" else stack[z]
    for channel in (None, "auto"):
        planes = read_planes(path, channel=channel, z=z)
        np.testing.assert_array_equal(planes.image, expected)
    np.testing.assert_array_equal(planes.channels["blue"], expected[..., 2])
    np.testing.assert_array_equal(read_planes(path, channel="green", z=z).image, expected[..., 1:2])


def test_only_the_planes_that_are_asked_for_are_read(confocal, monkeypatch):
    read = []
    decode = _stacks.decode_page
    monkeypatch.setattr(_stacks, "decode_page", lambda page, content: read.append(page) or decode(page, content))
    read_planes(confocal, channel="DAPI", z=2, time=0)
    assert len(read) == len(NAMES)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_other_images_are_those_of_read_raw(tmp_path, name, shape):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(2).integers(0, 256, shape, np.uint8)).save(path, dpi=(300, 300))
    raw, planes = io.read_raw(path), read_planes(path)
    np.testing.assert_array_equal(planes.image, raw)
    assert list(planes.channels) == ["red", "green", "blue"]
    np.testing.assert_array_equal(np.dstack(list(planes.channels.values())), np.broadcast_to(raw, (20, 30, 3)))
    assert (planes.pixel_size, planes.pixel_size_source) == (None, "")


def test_a_single_channel_with_a_name_keeps_it(path):
    write_ome(path, STACK[0, 0, 0], "YX", ["Hoechst 33342"], (0.5, 0.5, "µm"))
    planes = read_planes(path)
    assert list(planes.channels) == ["Hoechst 33342"]
    assert planes.pixel_size == 0.5


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_white_is_high(path, photometric):
    tifffile.imwrite(path, STACK[0, 0], photometric=photometric, metadata={"axes": "ZYX"})
    expected = STACK[0, 0, 1] if photometric == "minisblack" else 65535 - STACK[0, 0, 1]
    np.testing.assert_array_equal(read_planes(path, z=1).image[..., 0], expected)


# Pictures of the glass beside a slide


LEVELS = [np.random.default_rng(3).integers(0, 256, (64 // n, 96 // n, 3), np.uint8) for n in (1, 2, 4)]
APERIO = "Aperio Image Library v12.0.15\r\n96x64 [0,0 96x64] (16x16)|AppMag = 40|MPP = 0.25"


def write_svs(path, description=APERIO, n_other=3, **options):
    """Write a slide of three levels as Aperio's scanners do: with thumbnail, label and picture of the glass."""
    options = {"compression": "zlib", "photometric": "rgb", "metadata": None} | options
    tiles = {"tile": (16, 16), **options}
    with tifffile.TiffWriter(path) as file:
        file.write(LEVELS[0], description=description, **tiles)
        if n_other:
            file.write(LEVELS[2], description="Aperio Image Library v12.0.15", **options)
        for level in LEVELS[1:]:
            file.write(level, description=description, **tiles)
        for name, kind in [("label", 1), ("macro", 9)][: n_other - 1 if n_other else 0]:
            file.write(
                LEVELS[2][:9], description=f"Aperio Image Library v12.0.15\r\n{name}", subfiletype=kind, **options
            )
    return path


@pytest.mark.parametrize("n_other", [1, 2, 3])
def test_an_aperio_slide_is_read_without_the_other_pictures(tmp_path, n_other):
    path = write_svs(tmp_path / "slide.svs", n_other=n_other)
    for level, pixels in enumerate(LEVELS):
        planes = read_planes(path, level=level)
        np.testing.assert_array_equal(planes.image, pixels)
        assert planes[2:] == (0.25 * 2**level, "file")
    assert microscopy.list_images(tmp_path) == [path]


@pytest.mark.parametrize("text", ["|AppMag = 40", "|MPP = 0|AppMag = 40", "|MPP = unknown", "|XMPP = 0.3"])
def test_an_aperio_slide_without_a_pixel_size(tmp_path, text):
    path = write_svs(tmp_path / "slide.svs", f"Aperio Image Library v12.0.15{text}")
    assert read_planes(path)[2:] == (None, "")


def test_an_aperio_pixel_size_may_have_a_comma(tmp_path):
    path = write_svs(tmp_path / "slide.svs", APERIO.replace("0.25", "0,25|Filtered = 5"))
    assert read_planes(path).pixel_size == 0.25


def test_colours_that_would_be_misread_are_refused(tmp_path):
    path = write_svs(tmp_path / "slide.svs")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(33003)
    with pytest.raises(NucleiError, match=r"slide\.svs.*YCbCr.*OME-TIFF"):
        read_planes(path)


def write_images(path, names, **options):
    """Write an OME-TIFF file of several images, each with other pixels and another pixel size."""
    with tifffile.TiffWriter(path, ome=True) as file:
        for number, name in enumerate(names):
            metadata = {"axes": "CYX", "Name": name, "Channel": {"Name": [f"{c}{number}" for c in "ab"]}}
            metadata |= {f"PhysicalSize{axis}": number + 1 for axis in "XY"}
            file.write(STACK[0, :2, number], metadata=metadata, **options)
    return path


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["slide.svs", "label image", "macro image"], 0),
        (["Overview", "THUMBNAIL IMAGE", "20x_01", "Macro Mask Image"], 2),
        (["label"], 0),
    ],
)
def test_pictures_of_the_glass_are_left_out(path, names, chosen):
    planes = read_planes(write_images(path, names), channel=1)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[0, 1, chosen])
    assert list(planes.channels) == [f"a{chosen}", f"b{chosen}"]
    assert planes.pixel_size == chosen + 1


@pytest.mark.parametrize(
    ("names", "listing"),
    [
        (["a", "label", "b"], "2 images (0: a, 1: b)"),
        (["label", "macro"], "2 images (0: label, 1: macro)"),
        (["label 2", "macrophages"], "2 images (0: label 2, 1: macrophages)"),
    ],
)
def test_several_images_of_a_file_are_refused_with_a_list(path, names, listing):
    message = f"cells.tif: found {listing}: choose the index of one with --scene"
    with pytest.raises(NucleiError, match=re.escape(message)):
        read_planes(write_images(path, names), channel=0)


def test_an_image_of_a_file_with_several_has_its_own_channels_and_pixel_size(path):
    write_images(path, ["a", "label", "b"])
    for scene, number in enumerate([0, 2]):  # the label is not counted
        planes = read_planes(path, channel=f"b{number}", scene=scene)
        np.testing.assert_array_equal(planes.image[..., 0], STACK[0, 1, number])
        assert list(planes.channels) == [f"a{number}", f"b{number}"]
        assert planes[2:] == (number + 1, "file")
    with pytest.raises(NucleiError, match=r"found 2 images \(0: a, 1: b\), and no image 2: .*--scene"):
        read_planes(path, channel=0, scene=2)


@pytest.mark.parametrize("in_parts", [False, True])
def test_images_without_names_are_listed_by_size(path, in_parts):
    sizes = range(20, 32)
    with tifffile.TiffWriter(path) as file:
        for size in sizes:
            file.write(STACK[0, 0, 0, :size], metadata=None)
    for scene in (0, 11):
        with microscopy.open_planes(path, in_parts=in_parts, scene=scene) as planes:
            assert planes.in_parts == in_parts
            image, _ = planes.read(slice(None), slice(None))
        np.testing.assert_array_equal(image[..., 0], STACK[0, 0, 0, : sizes[scene]])
    with pytest.raises(NucleiError, match=r"12 images \(0: 20 x 50, .*, 9: 29 x 50 and 2 more\): .*--scene"):
        read_planes(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ome.tif", "a.zarr"])
@pytest.mark.parametrize("scene", [-1, 1])
def test_a_file_with_one_image_has_the_scene_0(tmp_path, name, scene):
    path = tmp_path / name
    if name == "a.zarr":
        write_zarr(path, STACK[0, 0, 0], "yx", "0.5")
    elif name == "a.ome.tif":
        write_ome(path, STACK[0, 0, 0], "YX")
    else:
        Image.fromarray(STACK[0, 0, 0]).save(path)
    np.testing.assert_array_equal(read_planes(path, scene=0).image[..., 0], STACK[0, 0, 0])
    with pytest.raises(NucleiError, match=rf"{name}: found 1 image \(.*\), and no image {scene}: .*--scene"):
        read_planes(path, scene=scene)


def test_a_slide_of_overlapping_tiles_is_refused(path):
    xmp = (700, "B", None, b"<iScan/>", True)
    with tifffile.TiffWriter(path) as file:
        for name in ("Label Image", "level=0 mag=40 quality=90"):
            file.write(LEVELS[0], description=name, software="ScanOutputManager 1.0", extratags=[xmp], metadata=None)
    with pytest.raises(NucleiError, match=r"cells\.tif.*Ventana.*OME-TIFF"):
        read_planes(path)


# Levels


def write_levels(path, n_levels, pixels=STACK[0, :, 0], byteorder="<", **options):
    """Write a TIFF pyramid."""
    with tifffile.TiffWriter(path, ome=True, byteorder=byteorder) as file:
        for level in range(n_levels):
            size = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2} if level == 0 else {}
            axes = "CYX"[-pixels.ndim :]
            more = {"subfiletype": 1} if level else {"subifds": n_levels - 1, "metadata": {"axes": axes, **size}}
            file.write(pixels[..., :: 2**level, :: 2**level], tile=(16, 16), **more, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_of_a_tiff_pyramid(path, level, options):
    planes = read_planes(write_levels(path, 3, **options), channel=1, level=level)
    np.testing.assert_array_equal(planes.channels["channel_1"], STACK[0, 1, 0, :: 2**level, :: 2**level])
    assert planes.pixel_size == pytest.approx(0.2 * 50 / [50, 25, 13][level])
    assert read_planes(path, channel=1, level=level, pixel_size=0.7).pixel_size == 0.7
    grey = read_planes(write_levels(path, 3, STACK[0, 0, 0], **options), level=level)
    np.testing.assert_array_equal(grey.image[..., 0], STACK[0, 0, 0, :: 2**level, :: 2**level])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_level_of_ome_zarr(tmp_path, version):
    path = write_zarr(tmp_path / "cells.zarr", STACK[0], "czyx", version, NAMES)
    planes = read_planes(path, channel=1, z=2, level=1)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[0, 1, 2, ::2, ::2])
    assert planes.pixel_size == pytest.approx(0.4)
    with pytest.raises(NucleiError, match=r"cells\.zarr: found 2 levels .*0: 40 x 50, 1: 20 x 25.*instead of 2"):
        read_planes(path, channel=1, level=2)


@pytest.mark.parametrize("level", [-1, 2])
def test_a_level_that_does_not_exist_is_refused_with_a_list(path, level):
    write_levels(path, 2)
    with pytest.raises(NucleiError, match=rf"cells\.tif: found 2 levels .*0: 40 x 50, 1: 20 x 25.* {level}: .*--level"):
        read_planes(path, channel=1, level=level)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "stack.tif"])
def test_a_file_without_a_pyramid_has_one_level(tmp_path, name):
    path = tmp_path / name
    if name == "stack.tif":
        write_ome(path, STACK[0], "CZYX", NAMES)
    else:
        Image.fromarray(LEVELS[0]).save(path)
    size = "40 x 50" if name == "stack.tif" else "64 x 96"
    with pytest.raises(NucleiError, match=rf"{name}: found 1 level .*0: {size}"):
        read_planes(path, channel=0, level=1)


# Choices


@pytest.mark.parametrize("channel", ["dapi", "DAPI", 0, "0", "auto"])
def test_a_channel_is_chosen_by_name_or_index(confocal, channel):
    planes = read_planes(confocal, channel=channel, time=0)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[0, 0].max(axis=0))


@pytest.mark.parametrize("channel", [None, "mCherry", 3, "3", -1])
def test_a_channel_that_is_missing_or_not_chosen_is_refused_with_a_list(confocal, channel):
    with pytest.raises(NucleiError, match=r"cells\.tif.*0 DAPI, 1 GFP, 2 Cy5.*--channel"):
        read_planes(confocal, channel=channel, time=0)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["TO-PRO-3", "GFP"], 0),
        (["488", "405 nm"], 1),
        (["mCherry-H2B", "phase"], 0),
        (["Hoechst 33342", "DAPI"], None),
        (["GFP", "Cy5"], None),
    ],
)
def test_auto_needs_exactly_one_nuclear_stain(path, names, chosen):
    write_ome(path, STACK[0, :2, 0], "CYX", names)
    if chosen is None:
        with pytest.raises(NucleiError, match=f"0 {names[0]}, 1 {names[1]}"):
            read_planes(path, channel="auto")
    else:
        np.testing.assert_array_equal(read_planes(path, channel="auto").image[..., 0], STACK[0, chosen, 0])


def test_equal_names_become_different(path):
    write_ome(path, STACK[0, :2, 0], "CYX", ["DAPI", "DAPI"])
    assert list(read_planes(path, channel=1).channels) == ["DAPI_0", "DAPI_1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": None}, "found 2 times"),
        ({"time": 2}, "found 2 times.* 0 to 1 "),
        ({"z": 5}, "found 5 z planes.* 0 to 4 "),
        ({"z": -1}, "found 5 z planes"),
    ],
)
def test_planes_that_do_not_exist_are_refused(confocal, options, message):
    with pytest.raises(NucleiError, match=message):
        read_planes(confocal, **{"channel": "DAPI", "time": 0} | options)


def test_the_option_says_what_pages_without_a_description_are(path):
    tifffile.imwrite(path, STACK[0, 0], metadata=None)
    with pytest.raises(NucleiError, match=r"found 5 planes.*--z"):
        read_planes(path)
    np.testing.assert_array_equal(read_planes(path, z="max").image[..., 0], STACK[0, 0].max(axis=0))
    np.testing.assert_array_equal(read_planes(path, time=4).image[..., 0], STACK[0, 0, 4])
    assert len(read_planes(path, channel=1).channels) == 5
    with pytest.raises(NucleiError, match="found 5 planes"):
        read_planes(path, channel=1, z=0)
    tifffile.imwrite(path, STACK[0], metadata={})
    with pytest.raises(NucleiError, match="OME-TIFF"):
        read_planes(path, z="max")


@pytest.mark.parametrize("options", [{"z": "mean"}, {"value_range": (1, 1)}, {"value_range": (0, np.nan)}])
def test_wrong_arguments_are_refused(confocal, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        read_planes(confocal, **options)


# Values


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint32])
@pytest.mark.parametrize("axes", ["YX", "ZYX"])
def test_other_types_need_a_value_range(path, dtype, axes):
    values = np.linspace(-100, 300, 5 * 40 * 50).reshape(5, 40, 50).astype(dtype)
    values = values if axes == "ZYX" else values[0]
    tifffile.imwrite(path, values, metadata={"axes": axes})
    with pytest.raises(NucleiError, match=r"cells\.tif.*" + np.dtype(dtype).name + ".*--value-range LOW HIGH"):
        read_planes(path)
    planes = read_planes(path, value_range=(-50, 150))
    flat = values.max(axis=0) if axes == "ZYX" else values
    np.testing.assert_array_equal(planes.channels["red"], flat)
    expected = np.round((np.clip(flat.astype(float), -50, 150) + 50) / 200 * 65535)
    np.testing.assert_array_equal(planes.image[..., 0], expected)
    assert planes.image.dtype == np.uint16


def test_a_pixel_without_a_number_is_refused(path):
    tifffile.imwrite(path, np.array([[0, np.nan]], np.float32))
    with pytest.raises(NucleiError, match="NaN"):
        read_planes(path, value_range=(0, 1))


# Pixel size


@pytest.mark.parametrize(
    ("unit", "size"), [("um", 0.25), ("micron", 0.25), ("\\u00B5m", 0.25), ("nm", 0.00025), ("mm", 250.0)]
)
def test_pixel_size_of_imagej(path, unit, size):
    tifffile.imwrite(path, STACK[0, 0, 0], imagej=True, resolution=(4, 4), metadata={"unit": unit})
    assert read_planes(path).pixel_size == pytest.approx(size)
    assert read_planes(path, pixel_size=0.7)[2:] == (0.7, "option")


@pytest.mark.parametrize("unit", ["inch", "cm", "pixel", ""])
def test_a_resolution_for_printing_is_no_pixel_size(path, unit):
    tifffile.imwrite(path, STACK[0, 0, 0], imagej=True, resolution=(300, 300), metadata={"unit": unit})
    assert read_planes(path).pixel_size is None
    tifffile.imwrite(path, STACK[0, 0, 0], resolution=(300, 300), resolutionunit="INCH")
    assert read_planes(path).pixel_size is None


def test_pixels_that_are_not_square_are_refused(path):
    write_ome(path, STACK[0, 0, 0], "YX", size=(0.2, 0.4, "µm"))
    with pytest.raises(NucleiError, match=r"0\.2 x 0\.4 .*--pixel-size"):
        read_planes(path)
    assert read_planes(path, pixel_size=0.2).pixel_size_source == "option"


@pytest.mark.parametrize("size", [(0, 0, "µm"), (0.2, 0.2, "pixel"), (-1, -1, "µm"), ("NaN", "NaN", "µm")])
def test_a_pixel_size_without_meaning_is_not_known(path, size):
    write_ome(path, STACK[0, 0, 0], "YX", size=size)
    assert read_planes(path)[2:] == (None, "")


# Damaged files


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "tile": (16, 16)}])
@pytest.mark.parametrize("imagej", [False, True])
def test_every_truncated_stack_is_refused(path, options, imagej):
    stack = STACK[0, :2, :2]
    if imagej:
        tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZCYX"}, **options)
    else:
        write_ome(path, stack, "CZYX", **options)
    content = path.read_bytes()
    for length in range(1, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(NucleiError, match=r"cells\.tif"):
            read_planes(path, channel=1, z=1)


def test_a_truncated_stack_of_one_listed_page_is_refused(path):
    tifffile.imwrite(path, STACK[0, 0], imagej=True, truncate=True, metadata={"axes": "ZYX"})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(NucleiError, match=r"cells\.tif"):
        read_planes(path)


def test_a_damaged_description_is_refused(path):
    write_ome(path, STACK[0, 0], "ZYX")
    path.write_bytes(path.read_bytes().replace(b"<Pixels", b"<Pi><ls"))
    with pytest.raises(NucleiError, match=r"cells\.tif"):
        read_planes(path)


def test_planes_in_other_files_are_not_opened(tmp_path, path):
    write_ome(path, STACK[0, 0], "ZYX")
    other = (
        '<UUID FileName="secret.tif">urn:uuid:1</UUID></TiffData><TiffData><UUID FileName="cells.tif">urn:uuid:2</UUID>'
    )
    description = tifffile.tiffcomment(path).replace("</TiffData>", f"{other}</TiffData>")
    description = description.replace('PlaneCount="5"/>', f'PlaneCount="5">{other}</TiffData>')
    tifffile.tiffcomment(path, description)
    with pytest.raises(NucleiError, match="2 files"):
        read_planes(path)


def test_an_image_without_planes_is_refused(path):
    """tifffile leaves such an image out, and the next image would get its pixel size."""
    write_images(path, ["a", "b"])
    description = tifffile.tiffcomment(path)
    first = description.index("<TiffData")
    last = description.index("</Pixels>")
    tifffile.tiffcomment(path, description[:first] + description[last:])
    with pytest.raises(NucleiError, match=r"cells\.tif.*2 images.*the file 1"):
        read_planes(path, channel=0)


def test_a_compression_without_decoder_is_named(path):
    pages = [Image.fromarray(page) for page in STACK[0, 0]]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    if importlib.util.find_spec("imagecodecs"):
        np.testing.assert_array_equal(read_planes(path, z=1).image[..., 0], STACK[0, 0, 1])
    else:
        with pytest.raises(NucleiError, match=r"LZW.*nuclei-utils\[formats\]"):
            read_planes(path, z=1)


def test_too_many_pixels_and_missing_files_are_refused(confocal, tmp_path):
    with pytest.raises(NucleiError, match="limit"):
        read_planes(confocal, channel=0, time=0, max_pixels=40 * 50 - 1)
    for name in ("no.tif", "no.czi", "no.zarr"):
        with pytest.raises(NucleiError, match=f"{name}.*missing"):
            read_planes(tmp_path / name)
    with pytest.raises(NucleiError, match="folder"):
        read_planes(tmp_path)


# OME-Zarr


def write_zarr(path, array, axes, version, names=(), scale=0.2, **options):
    """Write OME-Zarr of two levels in small chunks. Return its path."""
    pytest.importorskip("zarr", minversion="3")
    write_ome_zarr(path, array, axes, version, names, scale, chunk=16, **options)
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, version):
    path = write_zarr(tmp_path / "cells.zarr", STACK, "tczyx", version, NAMES)
    planes = read_planes(path, channel="auto", time=1)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[1, 0].max(axis=0))
    assert list(planes.channels) == NAMES
    assert planes[2:] == (pytest.approx(0.2), "file")
    np.testing.assert_array_equal(read_planes(path, channel=2, time=0, z=4).image[..., 0], STACK[0, 2, 4])
    assert microscopy.list_images(tmp_path) == [path]


def test_ome_zarr_of_one_plane(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", STACK[0, :1, :1], "czyx", "0.5", unit="nanometer", scale=325)
    planes = read_planes(path)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[0, 0, 0])
    assert list(planes.channels) == ["red", "green", "blue"]
    assert planes.pixel_size == pytest.approx(0.325)


@pytest.mark.parametrize("damage", ["attributes", "no group", "empty", "array", "chunk", "old", "plate"])
def test_damaged_zarr_is_refused(tmp_path, damage):
    path = write_zarr(tmp_path / "cells.zarr", STACK[0], "czyx", "0.5", NAMES)
    described = json.loads((path / "zarr.json").read_text())
    if damage == "attributes":
        described["attributes"] = {}
    elif damage == "old":
        described["attributes"]["ome"]["multiscales"][0] = {"version": "0.3", "axes": ["c", "z", "y", "x"]}
    elif damage == "plate":
        described["attributes"]["ome"] = {"plate": {}}
        shutil.rmtree(path / "0")
        write_zarr(path / "A" / "1" / "0", STACK[0], "czyx", "0.5")
    elif damage == "array":
        described["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = "missing"
    elif damage == "chunk":
        chunk = path / "0" / "c" / "0" / "0" / "0" / "0"
        chunk.write_bytes(chunk.read_bytes()[:9])
    (path / "zarr.json").write_text("{" if damage == "no group" else json.dumps(described))
    if damage == "empty":
        (path / "zarr.json").unlink()
    expected = {"plate": "A/1/0", "attributes": "multiscales", "old": "0.3"}.get(damage, "")
    with pytest.raises(NucleiError, match=rf"cells\.zarr.*{expected}"):
        read_planes(path, channel=0)


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("a.zarr", "zarr", r"nuclei-utils\[large\]"),
        ("a.nd2", "bioio", r"nuclei-utils\[formats\]"),
        ("a.czi", "bioio", "bioio-czi"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, module, install):
    path = tmp_path / name
    path.mkdir() if module == "zarr" else path.touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NucleiError, match=rf"{name}.*pip install.*{install}"):
        read_planes(path)


# CZI, ND2, LIF


def test_bioio(tmp_path, monkeypatch):
    bioio = pytest.importorskip("bioio")
    size = bioio.PhysicalPixelSizes(1, 0.3, 0.3)
    image = bioio.BioImage(STACK, channel_names=NAMES, physical_pixel_sizes=size)
    monkeypatch.setattr(bioio, "BioImage", lambda path: image)
    path = tmp_path / "cells.lif"
    path.touch()
    planes = read_planes(path, channel="gfp", z=2, time=1)
    np.testing.assert_array_equal(planes.image[..., 0], STACK[1, 1, 2])
    assert list(planes.channels) == NAMES
    assert planes[2:] == (0.3, "file")
    with pytest.raises(NucleiError, match=r"found 1 level .*0: 40 x 50"):
        read_planes(path, channel="gfp", z=2, time=1, level=1)
    with pytest.raises(NucleiError, match=r"found 1 image .* no image 1"):
        read_planes(path, channel="gfp", z=2, time=1, scene=1)


def test_a_scene_of_bioio(tmp_path, monkeypatch):
    bioio = pytest.importorskip("bioio")
    scenes, names = [STACK[:1, :2, :, :20], STACK[1:]], [["a", "b"], NAMES]
    image = bioio.BioImage(scenes, channel_names=names)
    size = bioio.PhysicalPixelSizes(1, 0.3, 0.3)  # `set_scene` of an image in memory forgets it
    monkeypatch.setattr(bioio.BioImage, "physical_pixel_sizes", size)
    monkeypatch.setattr(bioio, "BioImage", lambda path: image)
    path = tmp_path / "cells.lif"
    path.touch()
    for scene in (1, 0):
        planes = read_planes(path, channel=1, z=2, scene=scene)
        np.testing.assert_array_equal(planes.image[..., 0], scenes[scene][0, 1, 2])
        assert list(planes.channels) == names[scene]
    for scene, message in {None: r"\(0: Image:0, 1: Image:1\): .*--scene", 2: "no image 2"}.items():
        with pytest.raises(NucleiError, match=rf"cells\.lif: found 2 images.*{message}"):
            read_planes(path, channel=1, z=2, scene=scene)


@pytest.mark.parametrize("n_scenes", [1, 2])
def test_images_of_a_czi_file_without_descriptions_are_refused(tmp_path, n_scenes):
    pytest.importorskip("bioio_czi")
    czi = pytest.importorskip("pylibCZIrw.czi")
    path = tmp_path / "cells.czi"
    with czi.create_czi(str(path)) as file:
        for scene in range(n_scenes):
            plane = STACK[0, 0, scene][..., None]
            file.write(plane, plane={"C": 0, "Z": 0, "T": 0}, scene=scene, location=(100 * scene, 0))
        file.write_metadata("cells", scale_x=3e-7, scale_y=3e-7)
    if n_scenes == 1:
        planes = read_planes(path)
        np.testing.assert_array_equal(planes.image[..., 0], STACK[0, 0, 0])
        assert planes.pixel_size == pytest.approx(0.3)
    else:
        for scene in (None, 0):
            with pytest.raises(NucleiError, match=r"cells\.czi: found 2 images without descriptions"):
                read_planes(path, scene=scene)


@pytest.mark.parametrize("name", ["a.nd2", "a.lif", "a.czi"])
def test_a_file_that_bioio_cannot_read_is_refused(tmp_path, name):
    pytest.importorskip("bioio")
    (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(NucleiError, match=name):
        read_planes(tmp_path / name)
