"""Tests of `slides`: files that are read in blocks give what the whole image gives."""

import functools
import io as streams
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from nuclei_utils import _label_images, annotations, export, io, microscopy, predict, preprocess, slides
from nuclei_utils.errors import NucleiError
from tests.test_microscopy import write_ome, write_zarr
from tests.test_predict import discs

zarr = pytest.importorskip("zarr", minversion="3")


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


def job_for(path, folder, min_pixels=1000, **options):
    slide = slides.find_slide(path, min_pixels)
    return slides.Job(
        slide, folder, red_network, "slide", options={"min_size": 20}, **({"block": 96, "context": 32} | options)
    )


def whole(path, **options):
    """Return label map, table and codes of a slide that is read whole."""
    planes = microscopy.read_planes(path)
    image = io.to_rgb8(planes.image)
    label_map = predict.predict_labels(red_network(), image, min_size=20, **({"block": 96, "context": 32} | options))
    table = export.measure_nuclei(planes.channels, label_map, "slide", planes.pixel_size)
    return label_map, table, export.submission_table({"slide": label_map}), image


def tables_of(job, columns):
    rows = list(job.rows())
    table, codes = (b"".join(parts).decode() for parts in zip(*rows, strict=True))
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
