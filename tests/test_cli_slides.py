"""Tests of `nuclei-utils predict` with slides: files, tables, interruptions and faults, in one process."""

import errno
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from nuclei_utils import annotations, datasets, exported, io, predict, slides
from nuclei_utils.cli import predict_images
from tests.commands import complaints, frozen_bright_network, run
from tests.test_microscopy import write_levels
from tests.test_slides import slide_pixels, write_slide

pytest.importorskip("zarr", minversion="3")
pytest.importorskip("tifffile", minversion="2025.5.21")  # reads TIFF for zarr 3

pytestmark = pytest.mark.usefixtures("included_network")

SMALL = ("--slide-pixels", 1000, "--block", 96)  # takes the images of the tests as slides


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / "in" / "a.tif", slide_pixels(300, 400))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a run over `slide` that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "included_network", frozen_bright_network)
        patch.setattr(predict_images, "_GPU_FILES", ())
        path = write_slide(folder / "in" / "a.tif", slide_pixels(300, 400))
        assert run("predict", path, "--out", folder / "out", *SMALL) == 0
    return contents(folder / "out")


def contents(folder):
    """Return the content of each file. images.csv has the paths of the images within the folder of the test."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "images.csv" in files:
        files["images.csv"] = files["images.csv"].replace(str(folder.parent).encode(), b"")
    return files


def sorted_table(out, name="nuclei.csv"):
    table = pd.read_csv(out / name)
    return table.sort_values(list(table.columns), ignore_index=True)


def test_a_slide_has_the_nuclei_of_the_image(slide, tmp_path, out, capsys):
    write_slide(tmp_path / "in" / "b.tif", slide_pixels(300, 300))
    assert run("predict", slide.parent, "--out", tmp_path / "whole", "--block", 96) == 0
    expected = capsys.readouterr().out.splitlines()[:2]
    for label_format, ending in {"zarr": "_labels.ome.zarr", "tif": "_labels.ome.tif"}.items():
        folder = out / label_format
        assert run("predict", slide.parent, "--out", folder, *SMALL, "--label-format", label_format) == 0
        assert {path.name for path in folder.iterdir()} == {
            *(f"{name}{ending}" for name in "ab"),
            *("images.csv", "nuclei.csv", "submission.csv", "predict_settings.json"),
        }
        for name in "ab":
            label_map = io.read_label_map(tmp_path / "whole" / f"{name}_labels.png")
            found = annotations.read_labels(folder / f"{name}{ending}", label_map.shape)
            np.testing.assert_array_equal(found, label_map)
        table = sorted_table(folder)
        pd.testing.assert_frame_equal(table, sorted_table(tmp_path / "whole"), rtol=1e-9)
        assert set(table["pixel_size"]) == {0.5}
        codes = sorted_table(folder, "submission.csv")
        pd.testing.assert_frame_equal(codes, sorted_table(tmp_path / "whole", "submission.csv"))
        images, wholes = (sorted_table(where, "images.csv") for where in (folder, tmp_path / "whole"))
        assert images["median_diameter"].isna().all(), "slides are not checked"
        columns = images.columns.drop(["median_diameter", "warning"])
        pd.testing.assert_frame_equal(images[columns], wholes[columns])
        assert images["consistency"].between(0, 1).all()
        assert capsys.readouterr().out.splitlines()[:2] == expected
    assert run("predict", slide.parent, "--out", out / "tif", *SMALL, "--label-format", "tif", "--resume") == 0
    assert "2 of 2 images were finished before" in capsys.readouterr().out


@pytest.mark.parametrize("label_format", ["zarr", "tif"])
def test_the_labels_of_a_slide_are_read_back(tmp_path, out, label_format, capsys):
    images, labels = tmp_path / "corrected" / "images", tmp_path / "corrected" / "labels"
    labels.mkdir(parents=True)
    image = write_slide(images / "a.ome.tif", slide_pixels(200, 300))
    assert run("predict", image, "--out", out, *SMALL, "--label-format", label_format) == 0
    name = f"a.ome_labels.ome.{label_format}"
    (shutil.copytree if label_format == "zarr" else shutil.copyfile)(out / name, labels / name)
    (record,) = datasets.read_folder(tmp_path / "corrected")
    np.testing.assert_array_equal(record.label_map, annotations.read_labels(out / name, (200, 300)))
    capsys.readouterr()
    assert run("evaluate", out, "--truth", tmp_path / "corrected", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["instances"]["score"] == 1
    assert report["instances"]["true"] == record.label_map.max() > 20


def test_a_level_of_a_pyramid(tmp_path, out, capsys):
    pixels = np.kron(slide_pixels(150, 200), np.ones((2, 2), np.uint16))
    path = write_levels(tmp_path / "a.tif", 2, pixels)
    assert run("predict", path, "--out", out / "whole", "--block", 96, "--level", 1) == 0
    assert run("predict", path, "--out", out / "slide", *SMALL, "--level", 1) == 0
    label_map = io.read_label_map(out / "whole" / "a_labels.png")
    found = annotations.read_labels(out / "slide" / "a_labels.ome.zarr", (150, 200))
    np.testing.assert_array_equal(found, label_map)
    for folder in (out / "whole", out / "slide"):
        assert json.loads((folder / "predict_settings.json").read_text())["--level"] == 1
        assert set(sorted_table(folder)["pixel_size"]) == {0.4}
    other = write_levels(tmp_path / "b.tif", 2, pixels)
    capsys.readouterr()
    assert run("predict", other, "--out", out / "slide", *SMALL, "--resume") == 1
    assert "other --level" in capsys.readouterr().err
    assert run("predict", other, "--out", out / "other", *SMALL, "--level", 2) == 1
    (line,) = complaints(capsys)
    assert f"{other}: found 2 levels (height x width 0: 300 x 400, 1: 150 x 200)" in line


def test_blocks_of_another_level_are_not_used(tmp_path, out, monkeypatch):
    path = write_levels(tmp_path / "a.tif", 2, np.kron(slide_pixels(100, 200), np.ones((2, 2), np.uint16)))

    def stop(job, number):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slides.Job, "finish_block", stop)
        assert run("predict", path, "--out", out, *SMALL) == 1
    assert run("predict", path, "--out", out, *SMALL, "--resume", "--level", 1) == 0
    assert run("predict", path, "--out", tmp_path / "whole", *SMALL, "--level", 1) == 0
    assert contents(out) == contents(tmp_path / "whole")


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("find_block", FULL),
        ("finish_block", KeyboardInterrupt()),
        ("shrink", FULL),
        ("consistency", KeyboardInterrupt()),
    ],
)
def test_a_stopped_slide_goes_on_with_finished_blocks(slide, whole, out, monkeypatch, capsys, step, error):
    original, calls = {name: getattr(slides.Job, name) for name in ("find_block", "finish_block", "shrink", step)}, []

    def stops(job, *arguments):
        calls.append(arguments)
        if len(calls) == {"consistency": 1, "shrink": 2}.get(step, 4):
            raise error
        return original[step](job, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(slides.Job, step, stops)
        assert run("predict", slide, "--out", out, *SMALL) == 1
    message = capsys.readouterr().err
    assert "--resume" in message
    assert isinstance(error, KeyboardInterrupt) or "No space left" in message
    visible = {path.name for path in out.iterdir()} - {".predict_work"}
    assert visible == {"predict_settings.json"}, "nothing half-written"

    assert run("predict", slide, "--out", out, *SMALL) == 1, "finished blocks are not thrown away"
    assert "--resume" in capsys.readouterr().err
    again = []
    for name in ("find_block", "finish_block"):
        monkeypatch.setattr(
            slides.Job, name, lambda job, number, name=name: again.append(name) or original[name](job, number)
        )
    assert run("predict", slide, "--out", out, *SMALL, "--resume") == 0
    n_blocks = len(slides._places((300, 400), 96, predict.CONTEXT))
    left = {"find_block": n_blocks - 3 if step == "find_block" else 0, "finish_block": 0}
    left["finish_block"] = {"find_block": n_blocks, "finish_block": n_blocks - 3}.get(step, 0)
    assert {name: again.count(name) for name in left} == left
    assert contents(out) == whole


def test_blocks_of_other_options_or_another_file_are_not_used(slide, tmp_path, out, monkeypatch):
    def stop(job, number):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slides.Job, "finish_block", stop)
        assert run("predict", slide, "--out", out, *SMALL) == 1
    write_slide(slide, slide_pixels(300, 400)[::-1])
    assert run("predict", slide, "--out", out, *SMALL, "--resume", "--min-size", 50) == 0
    assert run("predict", slide, "--out", tmp_path / "whole", *SMALL, "--min-size", 50) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_slides_are_replaced(slide, tmp_path, out, monkeypatch, capsys):
    assert run("predict", slide, "--out", out, *SMALL) == 0
    write_slide(slide, slide_pixels(300, 400)[::-1])
    assert run("predict", slide, "--out", out, *SMALL) == 1
    assert run("predict", slide, "--out", out, *SMALL, "--replace") == 0
    assert run("predict", slide, "--out", tmp_path / "whole", *SMALL) == 0
    assert contents(out) == contents(tmp_path / "whole")
    capsys.readouterr()
    monkeypatch.setattr(slides.Job, "run", lambda *_, **__: pytest.fail("hours of work, which cannot be kept"))
    assert run("predict", slide, "--out", out, *SMALL, "--label-format", "tif", "--replace") == 1
    assert "a_labels.ome.zarr would stay beside" in capsys.readouterr().err
    shutil.rmtree(out / "a_labels.ome.zarr")
    io.write_mask(out / "a_overlay.png", np.eye(9, dtype=int))
    assert run("predict", slide, "--out", out, *SMALL, "--replace") == 1
    assert "a_overlay.png would stay beside" in capsys.readouterr().err


@pytest.mark.parametrize("killed_in", ["unlink", "rmtree"])
def test_finished_blocks_are_not_used_again(slide, whole, out, monkeypatch, killed_in):
    class Killed(BaseException):
        pass

    def kill(job):
        if killed_in == "rmtree":
            (job.folder / "made_from.json").unlink()
            (job.folder / "settled.npz").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(predict_images, "remove_finished", kill)
        with pytest.raises(Killed):
            run("predict", slide, "--out", out, *SMALL)
    left = out / ".predict_work" / "slides" / "a"
    assert left.exists() == (killed_in == "unlink"), "rows are left, and their labels are moved"
    assert run("predict", slide, "--out", out, *SMALL, "--replace") == 0
    assert contents(out) == whole


def test_a_slide_that_fails_is_named_and_the_others_are_finished(slide, tmp_path, out, capsys):
    cut = tmp_path / "in" / "b.tif"
    cut.write_bytes(slide.read_bytes()[:-5000])
    assert run("predict", slide.parent, "--out", out, *SMALL) == 1
    assert sum("b.tif" in line for line in complaints(capsys)) == 1
    assert set(sorted_table(out)["image"]) == {"a"}
    assert not list(out.glob("b*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "geojson"], r"--format"),
        (["--max-pixels", 100_000], r"--max-pixels"),
        (["--diameter", 30], r"--diameter"),
        (["--block", 100], None),
    ],
)
def test_what_a_slide_cannot_have_is_refused(slide, out, capsys, words, message):
    if message is None:
        with pytest.raises(SystemExit):
            run("predict", slide, "--out", out, *words)
        return
    assert run("predict", slide, "--out", out, *SMALL, *words) == 1
    (line,) = complaints(capsys)
    assert str(slide) in line
    assert message in line
    assert not list(out.glob("a*"))


def test_without_zarr_a_slide_names_the_extra(slide, out, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with monkeypatch.context() as patch:
        patch.setattr(io, "MAX_PIXELS", 100_000)
        assert run("predict", slide, "--out", out, *SMALL) == 1
    assert 'a slide needs zarr 3: pip install "nuclei-utils[large]"' in capsys.readouterr().err
    assert run("predict", slide, "--out", out, *SMALL) == 0, "an image that may fit into memory needs no zarr"
    assert (out / "a_labels.png").exists()
