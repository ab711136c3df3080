"""Tests of `nuclei-utils predict` with files of microscopes: channels, planes, pixel sizes and intensities."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from nuclei_utils import io, predict
from nuclei_utils.cli.results import SETTINGS
from tests.commands import complaints, run, three_nuclei, write_image
from tests.test_microscopy import write_ome, write_zarr

pytestmark = pytest.mark.usefixtures("included_network")


def confocal_stack():
    """Two channels of three planes: the nuclei are in plane 1 of channel 1, and channel 0 is even."""
    stack = np.full((2, 3, 60, 80), 100, np.uint16)
    stack[1, 1] += (three_nuclei() > 0) * np.uint16(3000)
    return stack


def read_table(out):
    return pd.read_csv(out / "nuclei.csv", keep_default_na=False)


def test_a_confocal_stack(tmp_path, out, capsys):
    path = write_ome(tmp_path / "a.ome.tif", confocal_stack(), "CZYX", ["GFP", "DAPI"], (0.5, 0.5, "µm"))
    assert run("predict", path, "--out", out, "--channel", "auto") == 0
    np.testing.assert_array_equal(io.read_label_map(out / "a.ome_labels.png"), three_nuclei())
    table = read_table(out)
    assert table["area"].tolist() == [16 * 16 * 0.25] * 3
    for name, mean in {"GFP": 100, "DAPI": 3100}.items():
        assert set(table[f"mean_{name}"]) == {mean}
        assert set(table[f"sum_{name}"]) == {mean * 256}
        assert set(table[f"std_{name}"]) == {0}
        assert set(table[f"background_{name}"]) == {100}
    assert table.columns.tolist()[-3:] == ["unit", "pixel_size", "pixel_size_source"]
    assert (set(table["pixel_size"]), set(table["pixel_size_source"])) == ({0.5}, {"file"})
    assert "pixel size" not in capsys.readouterr().out
    settings = json.loads((out / SETTINGS).read_text())
    assert (settings["--channel"], settings["--z"], settings["--time"]) == ("auto", None, None)
    assert run("predict", path, "--out", tmp_path / "z0", "--channel", "DAPI", "--z", 0) == 0
    assert not io.read_label_map(tmp_path / "z0" / "a.ome_labels.png").any()


def test_a_choice_that_is_left_open_is_named(tmp_path, out, capsys):
    write_ome(tmp_path / "in" / "a.tif", confocal_stack(), "CZYX", ["GFP", "DAPI"])
    write_ome(tmp_path / "in" / "b.tif", confocal_stack(), "TZYX")
    write_image(tmp_path / "in" / "c.png")
    assert run("predict", tmp_path / "in", "--out", out) == 1
    first, second = complaints(capsys)
    assert "a.tif: found 2 channels (0 GFP, 1 DAPI)" in first
    assert "b.tif: found 2 times" in second
    assert set(read_table(out)["image"]) == {"c"}


def test_an_image_of_a_file_with_several(tmp_path, out, capsys):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, plane in {"empty": confocal_stack()[0, 0], "full": confocal_stack()[1, 1]}.items():
            file.write(plane, metadata={"axes": "YX", "Name": name})
    assert run("predict", path, "--out", out) == 1
    assert "a.tif: found 2 images (0: empty, 1: full)" in complaints(capsys)[0]
    assert run("predict", path, "--out", out, "--scene", 1) == 0
    np.testing.assert_array_equal(io.read_label_map(out / "a_labels.png"), three_nuclei())
    assert json.loads((out / SETTINGS).read_text())["--scene"] == 1
    other = write_image(tmp_path / "b.png")
    assert run("predict", other, "--out", out, "--resume", "--scene", 0) == 1
    assert "other --scene: 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--channel", "mCherry"], r"0 GFP, 1 DAPI"),
        (["--channel", "DAPI", "--z", "3"], "found 3 z planes"),
        (["--channel", "DAPI", "--time", "1"], "found 1 times"),
        (["--value-range", "5", "5"], "--value-range 5 5"),
    ],
)
def test_a_plane_that_does_not_exist_is_refused(tmp_path, out, capsys, words, message):
    path = write_ome(tmp_path / "a.tif", confocal_stack(), "CZYX", ["GFP", "DAPI"])
    assert run("predict", path, "--out", out, *words) == 1
    (line,) = complaints(capsys)
    assert message in line
    assert not list(out.glob("*.csv"))


@pytest.mark.parametrize(
    "words", [["--z", "mean"], ["--time", "-1"], ["--value-range", "0"], ["--value-range", "0", "inf"]]
)
def test_wrong_usage(tmp_path, words):
    with pytest.raises(SystemExit):
        run("predict", tmp_path / "a.tif", "--out", tmp_path / "out", *words)


def test_all_images_of_a_table_have_the_same_channels(tmp_path, out, capsys):
    for name, channels in {"a": ["GFP", "DAPI"], "b": ["Cy5", "DAPI"], "c": ["GFP", "DAPI"]}.items():
        write_ome(tmp_path / "in" / f"{name}.tif", confocal_stack(), "CZYX", channels)
    words = ["predict", tmp_path / "in", "--out", out, "--channel", "DAPI"]
    for more in ([], ["--resume"]):  # the second run knows the channels from the table
        assert run(*words, *more) == 1
        (line,) = complaints(capsys)
        assert "b.tif: found the channels Cy5, DAPI, but nuclei.csv has GFP, DAPI" in line
        assert "--out" in line
        assert set(read_table(out)["image"]) == {"a", "c"}
    (tmp_path / "in" / "a.tif").unlink()
    assert run(*words[:1], tmp_path / "in" / "b.tif", *words[2:3], tmp_path / "other", *words[4:]) == 0


def test_grey_and_rgb_images_share_a_table(tmp_path, out):
    grey = np.where(three_nuclei() > 0, 220, 20).astype(np.uint8)
    write_image(tmp_path / "in" / "b.png")
    tifffile.imwrite(tmp_path / "in" / "a.tif", grey)
    tifffile.imwrite(tmp_path / "in" / "c.tif", np.stack([grey] * 4), imagej=True, metadata={"axes": "ZYX"})
    assert run("predict", tmp_path / "in", "--out", out) == 0
    assert set(read_table(out)[["mean_red", "mean_green", "mean_blue"]].to_numpy().ravel()) == {220}


def test_a_float_image_needs_a_value_range(tmp_path, out, capsys):
    values = np.where(three_nuclei() > 0, 0.75, -0.125).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert run("predict", tmp_path / "a.tif", "--out", out) == 1
    assert "--value-range LOW HIGH" in complaints(capsys)[0]
    assert run("predict", tmp_path / "a.tif", "--out", out, "--value-range", "-0.5", "1") == 0
    table = read_table(out)
    assert (set(table["mean_red"]), set(table["background_red"])) == ({0.75}, {-0.125})
    np.testing.assert_array_equal(io.read_label_map(out / "a_labels.png"), three_nuclei())


def test_the_pixel_size_says_where_it_came_from(tmp_path, out, capsys):
    write_ome(tmp_path / "in" / "a.tif", confocal_stack()[1], "ZYX", size=(0.5, 0.5, "µm"))
    for name in ("b", "c"):
        write_image(tmp_path / "in" / f"{name}.png")
    assert run("predict", tmp_path / "in", "--out", out) == 0
    table = read_table(out).groupby("image").first()
    assert table["pixel_size_source"].to_dict() == {"a": "file", "b": "", "c": ""}
    assert table["pixel_size"].tolist() == ["0.5", "", ""]
    assert table["unit"].tolist() == ["micrometre", "pixel", "pixel"]
    images = pd.read_csv(out / "images.csv", keep_default_na=False).set_index("image")
    pd.testing.assert_frame_equal(
        images[["pixel_size", "pixel_size_source"]], table[["pixel_size", "pixel_size_source"]]
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "pixel size" in line]
    assert line.startswith("2 of 3 images")
    assert run("predict", tmp_path / "in", "--out", tmp_path / "other", "--pixel-size", 0.25) == 0
    table = read_table(tmp_path / "other")
    assert (set(table["pixel_size"]), set(table["pixel_size_source"])) == ({0.25}, {"option"})
    assert "pixel size" not in capsys.readouterr().out


def test_a_diameter_in_micrometres_uses_the_pixel_size_of_each_file(tmp_path, out, monkeypatch, capsys):
    for name, size in {"a": 0.5, "b": 0.25}.items():
        write_ome(tmp_path / "in" / f"{name}.tif", confocal_stack()[1], "ZYX", size=(size, size, "µm"))
    write_image(tmp_path / "in" / "c.png")
    given = []

    def predict_labels(_model, image, diameter=None, **_options):
        given.append(diameter)
        return np.ones(image.shape[:2], np.int32)

    monkeypatch.setattr(predict, "predict_labels", predict_labels)
    assert run("predict", tmp_path / "in", "--out", out, "--diameter", "12um") == 1
    (line,) = complaints(capsys)
    assert "c.png has no pixel size" in line
    assert list(dict.fromkeys(given)) == [24, 48]
    assert json.loads((out / SETTINGS).read_text())["--diameter"] == [12, "um"]


def test_exposures_of_a_12_bit_image_have_values_in_proportion(tmp_path, out):
    """The brightest pixel sets the scale for the network, and must not change the measurements."""
    image = np.random.default_rng(0).integers(50, 60, (60, 80)) + three_nuclei() * 300
    exposures = {"a": image, "b": image, "double": image * 2}
    for (name, exposure), brightest in zip(exposures.items(), (2047, 2048, 4094), strict=True):
        exposure = exposure.copy()
        exposure[0, 0] = brightest
        write_ome(tmp_path / "in" / f"{name}.tif", exposure.astype(np.uint16), "YX", ["DAPI"])
    assert run("predict", tmp_path / "in", "--out", out) == 0
    table = pd.read_csv(out / "nuclei.csv").set_index("image")
    columns = [f"{statistic}_DAPI" for statistic in ("mean", "sum", "std", "background")]
    np.testing.assert_array_equal(table.loc["a", columns], table.loc["b", columns])
    np.testing.assert_allclose(table.loc["double", columns], 2 * table.loc["a", columns], rtol=1e-12)
    assert table.loc["a", "background_DAPI"].between(53, 57).all()


def test_a_truncated_file_does_not_stop_the_others(tmp_path, out, capsys):
    for name in "ab":
        write_ome(tmp_path / "in" / f"{name}.tif", confocal_stack(), "CZYX", ["GFP", "DAPI"])
    path = tmp_path / "in" / "a.tif"
    path.write_bytes(path.read_bytes()[:-9000])
    assert run("predict", tmp_path / "in", "--out", out, "--channel", "DAPI") == 1
    (line,) = complaints(capsys)
    assert "a.tif" in line
    assert set(read_table(out)["image"]) == {"b"}
    assert not list(out.glob("a*"))


def test_zarr_images_of_a_folder(tmp_path, out):
    (tmp_path / "in").mkdir()
    path = write_zarr(tmp_path / "in" / "a.zarr", confocal_stack(), "czyx", "0.5", ["GFP", "DAPI"])
    write_ome(tmp_path / "in" / "b.tif", confocal_stack(), "CZYX", ["GFP", "DAPI"])
    for images in (tmp_path / "in", path):
        assert run("predict", images, "--out", out, "--channel", "DAPI", "--replace") == 0
    table = read_table(out)
    assert sorted(table["image"]) == [*"aaabbb"]
    assert set(table["mean_DAPI"]) == {3100}
