"""Each file of the corpus comes out right or is refused with its reason; further tests of single files."""

import os
import re
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from nuclei_utils import datasets, io
from nuclei_utils.errors import NucleiError
from tests import corpus

SIZE = (20, 30)

_RNG = np.random.default_rng(0)
GREY = _RNG.integers(0, 256, SIZE).astype(np.uint8)
COLOUR = _RNG.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
ALPHA = _RNG.integers(0, 256, SIZE).astype(np.uint8)
# 257 * v is the 16-bit value that stands for the 8-bit value v
GREY16, COLOUR16, ALPHA16 = (array.astype(np.uint16) * 257 for array in (GREY, COLOUR, ALPHA))


def square(*corners, value=255):
    mask = np.zeros(SIZE, np.uint8)
    mask[slice(*corners[0::2]), slice(*corners[1::2])] = value
    return mask


def name_alone(value):
    """Call a test's case by the name of its file: what saves it, and what is expected, would only lengthen the id."""
    return value if isinstance(value, str) and re.fullmatch(r".*\.\w{3,4}", value) else "-"


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def pillow(array, mode=None, **options):
    picture = Image.fromarray(array)
    return lambda path: (picture.convert(mode) if mode else picture).save(path, **options)


def opencv(array, *options):
    if array.ndim == 3:
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    return lambda path: cv2.imwrite(str(path), array, options)


def tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


def planes(array, **options):
    return tiff(np.moveaxis(array, -1, 0), photometric="rgb", planarconfig="separate", **options)


def png16_with_alpha(path):
    """Grey + alpha, 16 bits: no library at hand writes it, and the format needs few words."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = np.stack([GREY16, ALPHA16], axis=-1).astype(">u2")
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 4, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


# The corpus

CASES = corpus.cases()
GROUPS = list(dict.fromkeys(case.group for case in CASES))


@pytest.mark.parametrize("group", GROUPS)
def test_each_file_of_the_corpus_is_right_or_refused_with_its_reason(group, tmp_path):
    found = {case.name: corpus.outcome(case, tmp_path) for case in CASES if case.group == group}
    assert {name: result for name, result in found.items() if result[0] not in corpus.GOOD_OUTCOMES} == {}


def test_the_corpus_is_large_and_its_names_are_unique():
    assert len(CASES) >= 300
    assert len({(case.group, case.name) for case in CASES}) == len(CASES)
    assert {type(case.expected) for case in CASES} == {np.ndarray, corpus.Refused}


def test_a_damaged_file_is_read_or_refused_and_never_fails_otherwise(tmp_path):
    results = [(name, *corpus.read_mutation(name, *more, tmp_path)) for name, *more in corpus.mutations(1_500)]
    assert [result for result in results if result[1] not in corpus.GOOD_OUTCOMES] == []
    assert {outcome for _, outcome, _ in results} == set(corpus.GOOD_OUTCOMES), "some are read, some refused"


# Nothing runs, and nothing is decoded that is too large


@pytest.mark.skipif(os.name == "nt", reason="a program by the name of gs")
def test_postscript_starts_no_program(tmp_path):
    """A stand-in for Ghostscript would leave a file if it were started."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    corpus_files = [case for case in CASES if "script" in case.name]
    for case in corpus_files:
        case.write(tmp_path / case.name)
    names = [case.name for case in corpus_files]
    code = f"""
from nuclei_utils import errors, io
for name in {names}:
    for read in (io.read_image, io.read_mask, io.read_label_map):
        try:
            read(name)
        except errors.NucleiError as error:
            print("refused")
"""
    environment = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(Path(datasets.__file__).parents[1])
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout.split() == ["refused"] * 3 * len(names), run.stderr
    assert len(names) >= 4
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.bmp", "image.jpg"])
def test_the_limit_of_pixels_is_the_callers(tmp_path, name):
    pillow(COLOUR)(tmp_path / name)
    pixels = COLOUR.shape[0] * COLOUR.shape[1]
    for read in (io.read_image, io.read_raw):
        assert read(tmp_path / name, max_pixels=pixels).shape == COLOUR.shape
        with pytest.raises(NucleiError, match=f"20 x 30 pixels, more than the limit of {pixels - 1}"):
            read(tmp_path / name, max_pixels=pixels - 1)


@pytest.mark.parametrize("name", ["image.png", "image.tif", "lzw.tif"])
def test_images_above_pillows_own_limit_are_read_and_its_limit_stays(tmp_path, monkeypatch, name):
    pillow(COLOUR, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(io, "_PILLOW_WARNS", 100)
    np.testing.assert_array_equal(io.read_image(tmp_path / name), COLOUR)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pieces_of_whole_slides_fit_below_the_limit():
    assert 30_000 * 30_000 < io.MAX_PIXELS < 65_500 * 65_500


def test_what_does_not_fit_into_memory_is_named(tmp_path, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    pillow(COLOUR)(tmp_path / "a.png")
    for place, name in ((ImageFile.ImageFile, "load"), (io, "to_rgb8")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, no_memory)
            with pytest.raises(NucleiError, match=r"a\.png.*memory"):
                io.read_image(tmp_path / "a.png")


# Files as other programs write them


BLACK_WHITE = np.where(GREY > 127, 255, 0).astype(np.uint8)
PALETTE_COLOURS = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 9)]).astype(np.uint16) * 257
RGBA, RGBA16 = np.dstack([COLOUR, ALPHA]), np.dstack([COLOUR16, ALPHA16])
LZW = (cv2.IMWRITE_TIFF_COMPRESSION, 5)
TIFF_BY_ANOTHER_NAME, LZW_BY_ANOTHER_NAME = RENAMED = tiff(GREY16), opencv(COLOUR16, *LZW)


@pytest.mark.parametrize(
    ("name", "save", "expected"),
    [
        ("grey.png", pillow(GREY), as_rgb(GREY)),
        ("grey_alpha.png", pillow(np.dstack([GREY, ALPHA])), as_rgb(GREY)),
        ("rgb.png", pillow(COLOUR), COLOUR),
        ("rgba.png", pillow(RGBA), COLOUR),
        ("palette.png", pillow(GREY, "P"), as_rgb(GREY)),
        ("palette_clear.png", pillow(GREY, "P", transparency=3), as_rgb(GREY)),
        ("one_bit.png", pillow(GREY > 127), as_rgb(BLACK_WHITE)),
        ("clear_colour.png", pillow(COLOUR, transparency=(1, 2, 3)), COLOUR),
        ("grey16.png", opencv(GREY16), as_rgb(GREY)),
        ("grey_alpha16.png", png16_with_alpha, as_rgb(GREY)),
        ("rgb16.png", opencv(COLOUR16), COLOUR),
        ("rgba16.png", opencv(RGBA16), COLOUR),
        ("grey.tif", tiff(GREY), as_rgb(GREY)),
        ("grey_lzw.tif", pillow(GREY, compression="tiff_lzw"), as_rgb(GREY)),
        ("grey_white_is_0.tif", tiff(255 - GREY, photometric="miniswhite"), as_rgb(GREY)),
        ("palette.tif", tiff(GREY, photometric="palette", colormap=PALETTE_COLOURS), PALETTE_COLOURS.T[GREY] // 257),
        ("rgb.tif", tiff(COLOUR, photometric="rgb"), COLOUR),
        ("rgb_lzw.tif", pillow(COLOUR, compression="tiff_lzw"), COLOUR),
        ("rgb_planes.tif", planes(COLOUR), COLOUR),
        ("rgb_planes_zip.tif", planes(COLOUR, compression="zlib"), COLOUR),
        ("rgba.tif", tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]), COLOUR),
        ("grey16.tif", tiff(GREY16), as_rgb(GREY)),
        ("grey16_big_endian.tif", tiff(GREY16.astype(">u2"), byteorder=">"), as_rgb(GREY)),
        ("grey16_lzw.tif", opencv(GREY16, *LZW), as_rgb(GREY)),
        ("rgb16.tif", tiff(COLOUR16, photometric="rgb"), COLOUR),
        ("rgb16_lzw.tif", opencv(COLOUR16, *LZW), COLOUR),
        ("rgb16_planes.tif", planes(COLOUR16), COLOUR),
        ("rgb16_planes_zip.tif", planes(COLOUR16, compression="zlib"), COLOUR),
        ("rgba16.tif", tiff(RGBA16, photometric="rgb", extrasamples=["unassalpha"]), COLOUR),
        ("rgb16_big.tiff", tiff(COLOUR16, photometric="rgb", bigtiff=True), COLOUR),
        ("imagej.tif", tiff(GREY16, imagej=True), as_rgb(GREY)),
        ("rgb.bmp", pillow(COLOUR), COLOUR),
        ("UPPER.TIF", tiff(COLOUR, photometric="rgb"), COLOUR),
        ("UPPER.PNG", pillow(COLOUR), COLOUR),
        ("a name, with (ümlaut) & spaces.png", pillow(COLOUR), COLOUR),
        ("a name, with (ümlaut) & spaces.tif", LZW_BY_ANOTHER_NAME, COLOUR),
        ("really_a_tiff.png", TIFF_BY_ANOTHER_NAME, as_rgb(GREY)),
        ("two.dots.png", pillow(GREY), as_rgb(GREY)),
    ],
    ids=name_alone,
)
def test_image_is_read_as_8_bit_rgb(tmp_path, name, save, expected):
    written = tmp_path / ("written.tif" if save in RENAMED else name)
    save(written)
    written.rename(tmp_path / name)
    image = io.read_image(tmp_path / name)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(io.read_image(str(tmp_path / name)), image)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 2048, 4095], [0, 128, 255]),  # a 12-bit camera
        ([0, 512, 1023], [0, 128, 255]),  # 10 bits
        ([0, 32768, 65535], [0, 128, 255]),
        ([0, 100, 255], [0, 100, 255]),  # 8-bit values in a 16-bit file
        ([0, 1, 3], [0, 1, 3]),  # too dark to be judged: left as it is
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_16_bits_are_scaled_to_the_brightest_part(tmp_path, values, expected):
    opencv(np.array([values], np.uint16))(tmp_path / "image.png")
    assert io.read_image(tmp_path / "image.png")[0, :, 0].tolist() == expected


def test_alpha_does_not_count_for_the_scale(tmp_path):
    opencv(np.dstack([COLOUR16 // 16, np.full(SIZE, 65535, np.uint16)]))(tmp_path / "image.png")
    np.testing.assert_allclose(io.read_image(tmp_path / "image.png"), COLOUR.astype(int), atol=1)


def drawn_16_bits(side, nuclei, radius):
    """Draw nuclei of different brightness, as a 12-bit camera sees them, on a dark ground with noise."""
    rng = np.random.default_rng(0)
    image, y, x = rng.poisson(200, (side, side)), *np.ogrid[:side, :side]
    inside = np.zeros((side, side), bool)
    for _ in range(nuclei):
        top, left = rng.integers(radius, side - radius, 2)
        disk = (y - top) ** 2 + (x - left) ** 2 <= radius**2
        image[disk] = rng.normal(rng.uniform(900, 1800), 40, np.count_nonzero(disk))
        inside |= disk
    return image.astype(np.uint16)[..., None], inside, rng


@pytest.mark.parametrize("hot", [1, 25])
@pytest.mark.parametrize("value", [4095, 65535])
@pytest.mark.parametrize(("side", "nuclei", "radius"), [(128, 8, 8), (256, 11, 10), (256, 1, 5)])
def test_hot_pixels_do_not_cost_grey_levels(side, nuclei, radius, value, hot):
    image, inside, rng = drawn_16_bits(side, nuclei, radius)
    clean = io.to_rgb8(image)
    image.flat[rng.choice(np.flatnonzero(~inside), hot, replace=False)] = value
    spoilt = io.to_rgb8(image)
    assert len(np.unique(spoilt[inside])) >= 0.9 * len(np.unique(clean[inside])) > 10
    np.testing.assert_allclose(spoilt[inside].astype(int), clean[inside], atol=6)


def test_nuclei_on_a_thousandth_of_an_image_stay_visible():
    image, inside, _ = drawn_16_bits(512, 1, 9)
    assert inside.mean() < 0.001
    seen = io.to_rgb8(image)
    assert seen[inside].mean() > 200
    assert seen[~inside].mean() < 50


def test_one_grey_value_more_does_not_change_what_a_network_sees():
    image, inside, _ = drawn_16_bits(128, 8, 8)
    image[inside] = np.clip(image[inside], 0, 2047)
    image[10:20, 10:20] = 2047
    one_more = image.copy()
    one_more[10:20, 10:20] = 2048
    np.testing.assert_allclose(io.to_rgb8(one_more).astype(int), io.to_rgb8(image), atol=1)


@pytest.mark.parametrize("shape", [(3000, 40), (1, 1), (1, 7), (7, 1), (1024, 3), (1025, 3), (2050, 3)])
def test_the_scale_does_not_depend_on_how_the_image_is_measured(shape, monkeypatch):
    image = np.random.default_rng(0).integers(0, 4000, (*shape, 3)).astype(np.uint16)
    at_once = io.to_rgb8(image)
    for rows in (1, 2, 1024, 10**6):
        monkeypatch.setattr(io, "_STRIP", rows)
        if rows > 2 or shape[0] < 100:
            np.testing.assert_array_equal(io.to_rgb8(image), at_once)


def test_8_bits_stay_as_they_are():
    np.testing.assert_array_equal(io.to_rgb8(COLOUR), COLOUR)
    np.testing.assert_array_equal(io.to_rgb8(GREY[..., None]), as_rgb(GREY))


def stains(count):
    return tiff(np.zeros((*SIZE, count), np.uint8), photometric="minisblack", planarconfig="contig")


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("stack.tif", tiff(np.stack([GREY] * 3), photometric="minisblack"), "found 3 pages"),
        ("hyperstack.tif", tiff(np.stack([GREY16] * 3), imagej=True, metadata={"axes": "CYX"}), "found 3 pages"),
        ("pages_of_3.tif", tiff(np.zeros((5, 20, 3), np.uint8), photometric="minisblack"), "found 5 pages"),
        ("channels.tif", stains(5), "5 grey channels"),
        ("two_stains.tif", stains(2), "2 grey channels"),
        ("float.tif", tiff(GREY.astype(np.float32)), "float32, expected 8- or 16-bit unsigned integers"),
        ("signed.tif", tiff(GREY.astype(np.int16)), "int16, expected 8- or 16-bit"),
        ("deep.tif", tiff(GREY.astype(np.uint32)), "32, expected 8- or 16-bit|no image that can be read"),
        ("film.png", pillow(GREY, save_all=True, append_images=[Image.fromarray(255 - GREY)]), "found 2 frames"),
        ("glass.png", pillow(np.dstack([np.zeros_like(COLOUR), ALPHA])), "only its alpha channel"),
        ("white_glass.png", pillow(np.dstack([np.full_like(COLOUR, 255), ALPHA])), "only its alpha channel"),
        ("text.png", lambda path: path.write_text("<html>not found</html>"), "is no image"),
        ("text.tif", lambda path: path.write_text("<html>not found</html>"), "is no image"),
        ("nothing.png", lambda path: path.touch(), "is no image"),
        ("none.png", lambda path: None, "is missing: check its name"),
        ("none.tif", lambda path: None, "is missing: check its name"),
        ("folder.png", Path.mkdir, "cannot be read"),
    ],
    ids=name_alone,
)
def test_what_is_not_one_image_is_refused_by_name(tmp_path, name, save, message):
    save(tmp_path / name)
    with pytest.raises(NucleiError, match=message) as caught:
        io.read_image(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert " at 0x" not in str(caught.value)


def test_pages_of_different_size_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "image.tif") as file:
        file.write(COLOUR, photometric="rgb")
        file.write(GREY[:5, :5])
    with pytest.raises(NucleiError, match="found 2 pages"):
        io.read_image(tmp_path / "image.tif")


# Masks

NUCLEUS = square(5, 5, 9, 12)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("white.png", pillow(NUCLEUS)),
        ("one.png", pillow(NUCLEUS // 255)),
        ("bits.png", pillow(NUCLEUS > 0)),
        ("palette.png", pillow(NUCLEUS, "P")),
        ("rgb.png", pillow(as_rgb(NUCLEUS))),
        ("rgb_one.png", pillow(as_rgb(NUCLEUS // 255))),
        ("red_one.png", pillow(np.dstack([NUCLEUS // 255, NUCLEUS * 0, NUCLEUS * 0]))),
        ("opaque.png", pillow(np.dstack([as_rgb(NUCLEUS), np.full(SIZE, 255, np.uint8)]))),
        ("grey_opaque.png", pillow(np.dstack([NUCLEUS, np.full(SIZE, 255, np.uint8)]))),
        ("deep_one.png", opencv(NUCLEUS.astype(np.uint16) // 255)),
        ("deep_rgb_one.png", opencv(as_rgb(NUCLEUS).astype(np.uint16) // 255)),
        ("MASK.TIF", tiff(NUCLEUS)),
        ("float.tif", tiff(NUCLEUS.astype(np.float32) / 510)),
    ],
    ids=name_alone,
)
def test_mask_is_read_whatever_its_format(tmp_path, name, save):
    save(tmp_path / name)
    mask = io.read_mask(tmp_path / name, SIZE)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, NUCLEUS > 0)


def test_black_mask_is_empty_though_opaque_and_white_mask_is_full(tmp_path):
    opaque = np.full(SIZE, 255, np.uint8)
    pillow(np.dstack([as_rgb(opaque * 0), opaque]))(tmp_path / "black.png")
    pillow(opaque)(tmp_path / "white.png")
    assert not io.read_mask(tmp_path / "black.png").any()
    assert io.read_mask(tmp_path / "white.png").all()


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("small.png", pillow(NUCLEUS[:10]), r"the mask is \(10, 30\), its image \(20, 30\)"),
        ("turned.png", pillow(NUCLEUS.T.copy()), r"the mask is \(30, 20\), its image \(20, 30\)"),
        ("label_map.png", pillow(NUCLEUS // 255 + square(12, 12, 14, 14, value=2)), "found 3 values, expected two"),
        ("blurred.jpg", pillow(NUCLEUS), "JPEG"),
        ("glass.png", pillow(np.dstack([as_rgb(NUCLEUS * 0), NUCLEUS])), "only its alpha channel"),
        ("none.png", lambda path: None, "is missing"),
    ],
    ids=name_alone,
)
def test_mask_that_would_have_to_be_guessed_is_refused(tmp_path, name, save, message):
    save(tmp_path / name)
    with pytest.raises(NucleiError, match=message) as caught:
        io.read_mask(tmp_path / name, SIZE)
    assert str(tmp_path / name) in str(caught.value)
