"""Every file of the corpus is read correctly or refused with its reason; tests of files from other programs."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from nuclei_utils import io
from nuclei_utils.errors import NucleiError
from tests import corpus

GREY, COLOUR, GREY16, COLOUR16 = corpus.GREY, corpus.COLOUR, corpus.GREY16, corpus.COLOUR16
LABEL_MAP = corpus.LABELS.astype(np.int32)


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


# The corpus

CASES = corpus.cases()
GROUPS = list(dict.fromkeys(case.group for case in CASES))


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_of_the_corpus_is_right_or_refused_with_its_reason(group, tmp_path):
    outcomes = {case.name: corpus.outcome(case, tmp_path) for case in CASES if case.group == group}
    assert {name: result for name, result in outcomes.items() if result[0] not in corpus.GOOD_OUTCOMES} == {}


def test_the_corpus_is_large_and_its_names_are_unique():
    assert len({(case.group, case.name) for case in CASES}) == len(CASES) >= 300
    assert {type(case.expected) for case in CASES} == {np.ndarray, corpus.Refused}


def test_damaged_files_are_read_or_refused(tmp_path):
    results = [(name, *corpus.read_mutation(name, *mutation, tmp_path)) for name, *mutation in corpus.mutations(1_500)]
    assert [result for result in results if result[1] not in corpus.GOOD_OUTCOMES] == []
    assert {outcome for _, outcome, _ in results} == set(corpus.GOOD_OUTCOMES)


# Safety and limits


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as a program")
def test_postscript_starts_no_program(tmp_path):
    """A stand-in for Ghostscript would create a file if it were started."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    scripts = [case for case in CASES if "script" in case.name]
    for case in scripts:
        case.write(tmp_path / case.name)
    names = [case.name for case in scripts]
    code = f"""
from nuclei_utils import errors, io
for name in {names}:
    for read in (io.read_image, io.read_mask, io.read_label_map):
        try:
            read(name)
        except errors.NucleiError:
            print("refused")
"""
    environment = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(Path(io.__file__).parents[1])
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout.split() == ["refused"] * 3 * len(names), run.stderr
    assert len(names) >= 4
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.bmp", "image.jpg"])
def test_the_caller_sets_the_limit_of_pixels(tmp_path, name):
    Image.fromarray(COLOUR).save(tmp_path / name)
    for read in (io.read_image, io.read_raw):
        assert read(tmp_path / name, max_pixels=GREY.size).shape == COLOUR.shape
        with pytest.raises(NucleiError, match=rf"24 x 36 pixels.*limit of {GREY.size - 1}"):
            read(tmp_path / name, max_pixels=GREY.size - 1)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}], ids=["plain", "lzw"])
@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_images_above_the_limit_of_pillow_are_read_and_the_limit_stays(tmp_path, monkeypatch, name, options):
    Image.fromarray(COLOUR).save(tmp_path / name, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(io.read_image(tmp_path / name), COLOUR)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(("owner", "name"), [(ImageFile.ImageFile, "load"), (io, "to_rgb8")])
def test_an_image_that_does_not_fit_into_memory_is_named(tmp_path, monkeypatch, owner, name):
    def fail(*_, **__):
        raise MemoryError

    Image.fromarray(COLOUR).save(tmp_path / "a.bmp")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(NucleiError, match=r"a\.bmp.*memory"):
        io.read_image(tmp_path / "a.bmp")


# Files as other programs write them


@pytest.mark.parametrize(
    ("name", "array", "options"),
    [
        ("imagej.tif", GREY16, {"imagej": True}),
        ("big.tiff", COLOUR16, {"photometric": "rgb", "bigtiff": True}),
        ("predictor.tif", COLOUR16, {"photometric": "rgb", "compression": "zlib", "predictor": True}),
        ("alpha.TIF", np.dstack([COLOUR16, corpus.ALPHA16]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_of_tifffile_are_read(tmp_path, name, array, options):
    tifffile.imwrite(tmp_path / name, array, **options)
    expected = GREY16[..., None] if array.ndim == 2 else COLOUR16
    np.testing.assert_array_equal(io.read_raw(tmp_path / name), expected)


@pytest.mark.parametrize("name", ["image.png", "image.tif"])  # OpenCV writes LZW with a predictor
@pytest.mark.parametrize("array", [GREY, GREY16, COLOUR, COLOUR16], ids=["grey", "grey16", "rgb", "rgb16"])
def test_images_of_opencv_are_read_as_writable_8_bit_rgb(tmp_path, name, array):
    cv2.imwrite(str(tmp_path / name), array[..., ::-1] if array.ndim == 3 else array)
    image = io.read_image(str(tmp_path / name))
    np.testing.assert_array_equal(image, as_rgb(GREY) if array.ndim == 2 else COLOUR)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous


@pytest.mark.parametrize("axes", ["CYX", "ZYX"])
def test_stacks_of_imagej_are_refused(tmp_path, axes):
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([GREY16] * 3), imagej=True, metadata={"axes": axes})
    with pytest.raises(NucleiError, match="3 pages"):
        io.read_image(tmp_path / "stack.tif")


def test_pages_of_different_size_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "image.tif") as file:
        file.write(COLOUR, photometric="rgb")
        file.write(GREY[:5, :5])
    with pytest.raises(NucleiError, match="2 pages"):
        io.read_image(tmp_path / "image.tif")


# 16 bits


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 2048, 4095], [0, 128, 255]),  # a 12-bit camera
        ([0, 512, 1023], [0, 128, 255]),  # 10 bits
        ([0, 32768, 65535], [0, 128, 255]),
        ([0, 100, 255], [0, 100, 255]),  # 8-bit values in a 16-bit file
        ([0, 1, 3], [0, 1, 3]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_16_bits_are_scaled_to_the_brightest_part(values, expected):
    assert io.to_rgb8(np.array([values], np.uint16)[..., None])[0, :, 0].tolist() == expected


def test_alpha_does_not_change_the_scale(tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), np.dstack([COLOUR16 // 16, np.full_like(GREY16, 65535)]))
    np.testing.assert_allclose(io.read_image(tmp_path / "image.png"), COLOUR[..., ::-1].astype(int), atol=1)


def draw_16_bits(side, n_nuclei, radius):
    """Draw nuclei of different brightness as a 12-bit camera sees them, on a dark background with noise."""
    rng = np.random.default_rng(0)
    image, y, x = rng.poisson(200, (side, side)), *np.ogrid[:side, :side]
    mask = np.zeros((side, side), bool)
    for _ in range(n_nuclei):
        top, left = rng.integers(radius, side - radius, 2)
        disk = (y - top) ** 2 + (x - left) ** 2 <= radius**2
        image[disk] = rng.normal(rng.uniform(900, 1800), 40, np.count_nonzero(disk))
        mask |= disk
    return image.astype(np.uint16)[..., None], mask, rng


@pytest.mark.parametrize("n_hot", [1, 25])
@pytest.mark.parametrize("value", [4095, 65535])
@pytest.mark.parametrize(("side", "n_nuclei", "radius"), [(128, 8, 8), (256, 11, 10), (256, 1, 5)])
def test_hot_pixels_do_not_cost_grey_levels(side, n_nuclei, radius, value, n_hot):
    image, mask, rng = draw_16_bits(side, n_nuclei, radius)
    clean = io.to_rgb8(image)
    image.flat[rng.choice(np.flatnonzero(~mask), n_hot, replace=False)] = value
    hot = io.to_rgb8(image)
    assert len(np.unique(hot[mask])) >= 0.9 * len(np.unique(clean[mask])) > 10
    np.testing.assert_allclose(hot[mask].astype(int), clean[mask], atol=6)


def test_nuclei_on_a_thousandth_of_an_image_stay_visible():
    image, mask, _ = draw_16_bits(512, 1, 9)
    assert mask.mean() < 0.001
    scaled = io.to_rgb8(image)
    assert scaled[mask].mean() > 200
    assert scaled[~mask].mean() < 50


def test_the_scale_has_no_jump_at_a_power_of_two():
    image, mask, _ = draw_16_bits(128, 8, 8)
    image[mask] = np.clip(image[mask], 0, 2047)
    image[10:20, 10:20] = 2047
    brighter = image.copy()
    brighter[10:20, 10:20] = 2048
    np.testing.assert_allclose(io.to_rgb8(brighter).astype(int), io.to_rgb8(image), atol=1)


@pytest.mark.parametrize("shape", [(3000, 40), (1, 1), (1, 7), (1024, 3), (1025, 3), (2050, 3)])
def test_the_scale_does_not_depend_on_the_direction(shape):
    image = np.random.default_rng(0).integers(0, 4000, (*shape, 3)).astype(np.uint16)
    transposed = io.to_rgb8(np.ascontiguousarray(image.swapaxes(0, 1)))  # all rows are measured at once
    np.testing.assert_array_equal(io.to_rgb8(image), transposed.swapaxes(0, 1))


def test_8_bits_are_not_scaled():
    np.testing.assert_array_equal(io.to_rgb8(COLOUR), COLOUR)
    np.testing.assert_array_equal(io.to_rgb8(GREY[..., None]), as_rgb(GREY))


# Masks and label maps


@pytest.mark.parametrize("array", [corpus.MASK[:10], corpus.MASK.T.copy()], ids=["cropped", "rotated"])
def test_a_mask_must_have_the_shape_of_its_image(tmp_path, array):
    Image.fromarray(array).save(tmp_path / "mask.png")
    assert io.read_mask(tmp_path / "mask.png", array.shape).shape == array.shape
    with pytest.raises(NucleiError, match=r"mask\.png.*\(24, 36\)"):
        io.read_mask(tmp_path / "mask.png", corpus.SIZE)


@pytest.mark.parametrize("name", ["Kern ä.png", "a.tif", "a.TIFF"])
@pytest.mark.parametrize("factor", [1, 20_000], ids=["8 bits", "16 bits"])
def test_a_label_map_is_written_with_16_bits_and_read_back(tmp_path, name, factor):
    path = tmp_path / "new" / name
    io.write_label_map(path, LABEL_MAP * factor)
    label_map = io.read_label_map(path)
    assert label_map.dtype == np.int32
    np.testing.assert_array_equal(label_map, LABEL_MAP * factor)
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == np.uint16


def test_labels_above_16_bits_need_a_tiff(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png.*65536.*a\.tif"):
        io.write_label_map(tmp_path / "a.png", LABEL_MAP * 0 + 65536)
    io.write_label_map(tmp_path / "a.tif", LABEL_MAP * 65536)
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "a.tif"), LABEL_MAP * 65536)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_mask_is_written_as_0_and_255(tmp_path, name):
    io.write_mask(tmp_path / name, LABEL_MAP)
    np.testing.assert_array_equal(io.read_raw(tmp_path / name)[..., 0], np.where(LABEL_MAP, 255, 0))
    np.testing.assert_array_equal(io.read_mask(tmp_path / name), LABEL_MAP > 0)


@pytest.mark.parametrize("write", [io.write_label_map, io.write_mask])
@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_endings_that_lose_labels_are_refused(tmp_path, write, name):
    with pytest.raises(ValueError, match=rf"{name}.*expected one of \.png"):
        write(tmp_path / name, LABEL_MAP)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label_map", [LABEL_MAP / 2, LABEL_MAP - 1, LABEL_MAP[None]])
def test_arrays_that_are_not_label_maps_are_refused(tmp_path, label_map):
    with pytest.raises(ValueError, match="expected a label map"):
        io.write_label_map(tmp_path / "a.png", label_map)
    assert list(tmp_path.iterdir()) == []
