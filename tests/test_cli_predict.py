"""Tests of `nuclei-utils predict`: its files and tables, and its behaviour after faults and interruptions."""

import csv
import errno
import io as streams
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from nuclei_utils import cluster, deploy, devices, export, exported, io, models, predict, segmentation
from nuclei_utils.cli import predict_images
from nuclei_utils.cli.results import IMAGE_COLUMNS, SETTINGS, Tables, names_in_tables
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import file_lock, printable_name
from tests.commands import bright_network, complaints, frozen_bright_network, run, three_nuclei, write_image

SUFFIXES = ("_labels.png", "_mask.png", "_overlay.png")
TABLES = ("images.csv", "nuclei.csv", "submission.csv")  # in the order in which they grow
OTHER_FILES = ("a.geojson", "a_rois.zip", "a_labels.tif", *TABLES)  # not written without options

pytestmark = pytest.mark.usefixtures("included_network")


@pytest.fixture
def folder(tmp_path):
    """A folder of three images."""
    for shift, name in enumerate("abc"):
        write_image(tmp_path / "in" / f"{name}.png", three_nuclei(shift))
    return tmp_path / "in"


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a network is used."""

    def predict_labels(*_, **__):
        raise AssertionError("the command must refuse before any work")

    monkeypatch.setattr(predict, "predict_labels", predict_labels)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def image_counts(out):
    """Return the number of rows of each image in nuclei.csv."""
    return pd.read_csv(out / "nuclei.csv")["image"].value_counts().sort_index().to_dict()


def failing(function, error, condition):
    """Let a function raise an error if the condition is true for its first argument, a path."""

    def call(first, *arguments, **options):
        if condition(Path(first)):
            raise error
        return function(first, *arguments, **options)

    return call


# Results


def test_predict_writes_label_maps_masks_overlays_and_tables(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png")
    write_image(tmp_path / "in" / "b.tif", three_nuclei(20))
    (tmp_path / "in" / "notes.txt").touch()
    out = tmp_path / "deep" / "out"
    options = ["--pixel-size", 0.5, "--format", "geojson", "--format", "rois", "--tta", 4]
    assert run("predict", tmp_path / "in", tmp_path / "in" / "a.png", "--out", out, *options) == 0
    results = {f"{name}{suffix}" for name in "ab" for suffix in (*SUFFIXES, ".geojson", "_rois.zip")}
    assert {path.name for path in out.iterdir()} == {*TABLES, SETTINGS, *results}
    assert np.array_equal(io.read_label_map(out / "b_labels.png"), three_nuclei(20))
    assert np.array_equal(io.read_mask(out / "a_mask.png"), three_nuclei() > 0)
    assert io.read_image(out / "a_overlay.png").shape == (60, 80, 3)
    assert pd.read_csv(out / "nuclei.csv")["area"].tolist() == [16 * 16 * 0.5**2] * 6
    assert image_counts(out) == {"a": 3, "b": 3}
    assert pd.read_csv(out / "submission.csv")["ImageId"].tolist() == [*"aaabbb"]
    output = capsys.readouterr()
    assert [line.split()[:2] for line in output.out.splitlines()] == [["a", "3"], ["b", "3"], ["2", "of"]]
    assert "nuclei-utils" not in output.err


def test_options_reach_the_segmentation_and_have_its_defaults(tmp_path, out):
    label_map = three_nuclei()
    label_map[10:12, 55:71] = 0  # the third nucleus is smaller
    image = write_image(tmp_path / "a.png", label_map)
    assert run("predict", image, "--out", out, "--min-size", 16 * 15) == 0
    assert image_counts(out) == {"a": 2}
    assert run("predict", image, "--out", tmp_path / "default") == 0
    settings = json.loads((tmp_path / "default" / SETTINGS).read_text())
    assert (settings["--min-size"], settings["--prob-thresh"]) == (segmentation.MIN_SIZE, segmentation.PROB_THRESH)
    assert settings["--min-confidence"] is None


def test_the_tables_are_those_of_all_images_at_once(folder, tmp_path, out, monkeypatch):
    monkeypatch.setattr(predict, "tta_consistency", lambda model, image, labels, **_: 0.9 if labels.any() else np.nan)
    write_image(folder / "aa.png", np.zeros((60, 80), int))
    assert run("predict", folder, "--out", out) == 0
    label_maps = {name: io.read_label_map(out / f"{name}_labels.png") for name in ("a", "aa", "b", "c")}
    tables = [export.measure_nuclei(io.read_image(folder / f"{name}.png"), label_maps[name], name) for name in "abc"]
    table = pd.concat(tables).assign(pixel_size=None, pixel_size_source="")
    export.write_table(tmp_path / "nuclei.csv", table)
    export.write_table(tmp_path / "submission.csv", export.submission_table(label_maps))
    warning = "no nucleus was found; if the image has nuclei, do not trust this result"
    diameter = predict.median_diameter(label_maps["a"])
    found = dict.fromkeys("abc", (3, diameter, 0.9, None, "", "")) | {"aa": (0, None, None, None, "", warning)}
    rows = [(name, str(folder / f"{name}.png"), 60, 80, *found[name]) for name in label_maps]
    export.write_table(tmp_path / "images.csv", pd.DataFrame(rows, columns=IMAGE_COLUMNS))
    for name in TABLES:
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_layout_of_the_competition_is_read(tmp_path, out):
    for name in ("0a", "0b"):
        write_image(tmp_path / "in" / name / "images" / f"{name}.png")
    assert run("predict", tmp_path / "in", "--out", out) == 0
    assert image_counts(out) == {"0a": 3, "0b": 3}


def test_images_without_nuclei_or_with_low_consistency_are_named(tmp_path, out, monkeypatch, capsys):
    write_image(tmp_path / "in" / "black.png", np.zeros((60, 80), int))
    write_image(tmp_path / "in" / "odd.png")
    monkeypatch.setattr(predict, "tta_consistency", lambda model, image, labels, **_: 0.2 if labels.any() else np.nan)
    assert run("predict", tmp_path / "in", "--out", out) == 0
    lines = complaints(capsys)
    images = pd.read_csv(out / "images.csv")
    assert images["consistency"].isna().tolist() == [True, False]
    assert [
        f"nuclei-utils predict: {image}: {text}" for image, text in images[["image", "warning"]].to_numpy()
    ] == lines
    assert image_counts(out) == {"odd": 3}
    submission = pd.read_csv(out / "submission.csv")
    assert submission["ImageId"].tolist() == ["black", "odd", "odd", "odd"]
    assert submission["EncodedPixels"].isna().tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("options", "diameter"),
    [
        ([], None),
        (["--diameter", "30"], 30),
        (["--diameter", "12um", "--pixel-size", 0.5], 24),
        (["--diameter=9µm"], None),
    ],
)
def test_diameter_reaches_the_prediction_in_pixels(tmp_path, out, monkeypatch, capsys, options, diameter):
    given = []

    def predict_labels(_model, image, diameter=None, **_options):
        given.append(diameter)
        return np.ones(image.shape[:2], np.int32)

    monkeypatch.setattr(predict, "predict_labels", predict_labels)
    is_complete = "--diameter=9µm" not in options
    assert run("predict", write_image(tmp_path / "a.png"), "--out", out, *options) == (0 if is_complete else 1)
    if is_complete:
        assert set(given) == {diameter}, "for the label map and for its consistency"
    else:
        assert "--pixel-size" in capsys.readouterr().err
        assert not given


@pytest.mark.parametrize("text", ["0", "-3um", "nan", "12mm", "um"])
def test_other_diameters_are_wrong_usage(folder, out, text):
    with pytest.raises(SystemExit):
        run("predict", folder, "--out", out, f"--diameter={text}")


@pytest.mark.parametrize(("side", "unusual"), [(5, True), (16, False), (60, True)])
def test_images_with_unusually_small_or_large_nuclei_are_named(tmp_path, out, capsys, side, unusual):
    label_map = np.zeros((96, 96), int)
    label_map[10 : 10 + side, 10 : 10 + side] = 1
    image = write_image(tmp_path / "a.png", label_map)
    assert run("predict", image, "--out", out, "--min-size", 9) == 0
    (row,) = pd.read_csv(out / "images.csv", keep_default_na=False).itertuples()
    assert row.median_diameter == pytest.approx(2 * side / np.sqrt(np.pi))
    assert ("--diameter" in row.warning) == unusual
    named = [text for text in complaints(capsys) if "--diameter" in text]
    assert len(named) == unusual
    assert all("a: " in text and f"{2 * side / np.sqrt(np.pi):.1f}" in text for text in named)
    assert run("predict", image, "--out", tmp_path / "again", "--diameter", side) == 0
    assert not [text for text in complaints(capsys) if "--diameter" in text]


def test_a_label_map_beyond_16_bits_is_a_tiff(tmp_path, out, monkeypatch):
    image = write_image(tmp_path / "a.png")
    monkeypatch.setattr(io, "HIGHEST_IN_16_BITS", 2)
    assert run("predict", image, "--out", out) == 0
    assert io.read_label_map(out / "a_labels.tif").max() == 3
    assert not (out / "a_labels.png").exists()


# Existing files


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "existing"),
    [
        *(([], name) for name in (*(f"a{suffix}" for suffix in SUFFIXES), *OTHER_FILES)),
        *(([option], name) for option in ("--resume", "--replace") for name in OTHER_FILES),
        *((["--resume", "--replace"], name) for name in OTHER_FILES),
        (["--resume"], "a_labels.png"),  # corrected by hand, and not in the tables
    ],
)
def test_existing_files_are_refused_before_any_work(folder, out, capsys, options, existing):
    out.mkdir()
    (out / existing).write_text("by hand")
    assert run("predict", folder, "--out", out, *options) == 1
    assert str(out / existing) in capsys.readouterr().err
    assert contents(out) == {existing: b"by hand"}


def test_files_beside_the_image_are_refused(tmp_path):
    image = write_image(tmp_path / "photo.png")
    for name in ("photo.geojson", "photo_rois.zip", "photo_labels.tif", "photo_labels.png"):
        (tmp_path / name).write_text("by hand")
    before = contents(tmp_path)
    for options in ([], ["--replace"]):
        assert run("predict", image, "--out", tmp_path, *options) == 1
        assert contents(tmp_path) == before


def test_replace_keeps_the_rows_of_other_images(folder, out):
    assert run("predict", folder, "--out", out) == 0
    before = contents(out)
    write_image(folder / "b.png", three_nuclei() * (three_nuclei() < 3))
    assert run("predict", folder / "b.png", "--out", out) == 1
    assert contents(out) == before
    assert run("predict", folder / "b.png", "--out", out, "--replace") == 0
    assert image_counts(out) == {"a": 3, "b": 2, "c": 3}
    assert pd.read_csv(out / "images.csv")[["image", "nuclei"]].to_numpy().tolist() == [["a", 3], ["c", 3], ["b", 2]]
    assert io.read_label_map(out / "b_labels.png").max() == 2
    assert (out / "a_labels.png").read_bytes() == before["a_labels.png"]


@pytest.mark.usefixtures("no_work")
def test_colliding_names_are_refused_before_any_work(tmp_path, out, capsys):
    image, other = write_image(tmp_path / "x" / "cell.png"), write_image(tmp_path / "y" / "Cell.tif")
    mask = write_image(tmp_path / "x" / "cell_mask.png")
    for words, names in [
        ([image, other, "--out", out], (image, other)),
        ([tmp_path / "x", "--out", tmp_path / "x"], (tmp_path / "x",)),
        ([image, mask, "--out", tmp_path / "x"], (mask,)),
        ([image, mask, "--out", tmp_path / "x", "--replace"], (mask,)),
    ]:
        assert run("predict", *words) == 1
        message = capsys.readouterr().err
        assert all(str(name) in message for name in names)
    assert not out.exists()


@pytest.mark.usefixtures("no_work")
def test_two_runs_do_not_write_into_the_same_folder(folder, out, capsys):
    with file_lock(out / ".predict.lock", "taken"):
        assert run("predict", folder, "--out", out) == 1
    assert str(out) in capsys.readouterr().err
    assert not list(out.iterdir())


# Interruptions


@pytest.mark.parametrize(("module", "function"), [(io, "read_raw"), (export, "write_overlay")])
def test_ctrl_c_keeps_finished_images_and_resume_does_the_others(
    folder, tmp_path, out, monkeypatch, capsys, module, function
):
    assert run("predict", folder, "--out", tmp_path / "whole") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        original = getattr(module, function)
        patch.setattr(module, function, failing(original, KeyboardInterrupt, lambda path: path.stem[0] == "b"))
        assert run("predict", folder, "--out", out) == 1
    assert "--resume" in capsys.readouterr().err
    assert image_counts(out) == {"a": 3}
    assert set(contents(out)) == {*TABLES, SETTINGS, *(f"a{suffix}" for suffix in SUFFIXES)}
    assert run("predict", folder, "--out", out, "--resume") == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_resume_skips_finished_images_and_adds_new_images(folder, out, monkeypatch, capsys):
    assert run("predict", folder / "a.png", "--out", out) == 0
    (out / "a_labels.png").write_text("corrected by hand")
    read = []
    monkeypatch.setattr(io, "read_raw", failing(io.read_raw, AssertionError, lambda path: read.append(path)))
    assert run("predict", folder, "--out", out, "--resume") == 0
    assert [path.stem for path in read] == ["b", "c"]
    assert (out / "a_labels.png").read_text() == "corrected by hand"
    assert image_counts(out) == {"a": 3, "b": 3, "c": 3}
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 of 3 images, 9 nuclei")


def test_an_interrupted_replacement_is_resumed(folder, out, monkeypatch):
    assert run("predict", folder, "--out", out) == 0
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(io, "read_raw", failing(io.read_raw, KeyboardInterrupt, lambda path: path.stem == "b"))
        assert run("predict", folder, "--out", out, "--replace") == 1
    assert image_counts(out) == {"a": 3}
    assert run("predict", folder, "--out", out, "--replace", "--resume") == 0
    assert contents(out) == before


def test_results_of_an_older_version_without_images_csv_are_kept_or_replaced(folder, out, capsys):
    for names in ("ab", "a"):
        words = [folder / f"{name}.png" for name in names]
        assert run("predict", *words, "--out", out, "--replace") == 0
        (out / "images.csv").unlink()
        before = contents(out)
        for option in ("--resume", "--replace"):
            assert run("predict", folder / "c.png", "--out", out, option) == 1
            message = capsys.readouterr().err
            assert str(out / "images.csv") in message
            assert "--replace" in message
            assert contents(out) == before
        assert run("predict", *words, "--out", out, "--replace") == 0
        assert pd.read_csv(out / "images.csv")["image"].tolist() == [*names]
        shutil.rmtree(out)


@pytest.mark.parametrize(
    "other",
    [
        ["--tta", 4],
        ["--pixel-size", 0.5],
        ["--diameter", 30],
        ["--format", "rois"],
        ["--model", "m.keras"],
        ["--precision", "float32"],
        ["--min-size", 9],
        ["--prob-thresh", 0.4],
        ["--channel", "0"],
        ["--z", "max"],
        ["--time", 0],
        ["--value-range", 0, 255],
    ],
)
@pytest.mark.parametrize("option", ["--resume", "--replace"])
def test_results_of_different_options_are_not_mixed(folder, tmp_path, out, monkeypatch, capsys, other, option):
    assert run("predict", folder, "--out", out) == 0
    before = contents(out)
    monkeypatch.chdir(tmp_path)
    bright_network().save("m.keras")
    new = write_image(tmp_path / "new.png")
    assert run("predict", new, "--out", out, option, *other) == 1
    assert other[0] in capsys.readouterr().err
    assert contents(out) == before
    if option == "--replace" and other[0] != "--format":
        assert run("predict", folder, "--out", out, option, *other) == 0, "no other results stay"


def add(tables, name, label_map, error=None):
    """Add the rows of an image; raise an error before the end."""
    image = pd.DataFrame({"image": [name]}, columns=IMAGE_COLUMNS)
    table = export.measure_nuclei(np.zeros((60, 80, 3), np.uint8), label_map, name)
    codes = export.submission_table({name: label_map})
    parts = [[export.csv_bytes(part, header=False)] for part in (image, table, codes)]
    with tables.adding(table.columns, *parts):
        if error:
            raise error


@pytest.fixture
def tables(tmp_path):
    """Tables that do not exist yet."""
    image, label_map = np.zeros((60, 80, 3), np.uint8), three_nuclei()
    return Tables(tmp_path, export.measure_nuclei(image, label_map, "").columns)


@pytest.mark.parametrize("file_name", TABLES)
@pytest.mark.parametrize("image", ["b", 'b,"\n', "é", "=1+1", os.fsdecode(b"\xff")])
def test_rows_that_end_anywhere_are_repaired(tables, tmp_path, file_name, image):
    """A process can be killed while it adds rows to a table. The tables before it are complete."""
    add(tables, "a", three_nuclei())
    first = contents(tmp_path)
    image = printable_name(image)
    add(tables, image, three_nuclei())
    second = contents(tmp_path)
    assert tables.repair() == dict.fromkeys(names_in_tables(["a", image]), 3)
    assert contents(tmp_path) == second
    content, start = second[file_name], len(first[file_name])
    for end in range(start, len(content)):
        if start + 12 < end < len(content) - 1 and content[end - 1 : end] not in b'"\n':
            continue  # in the middle of a number
        for name in TABLES:
            is_complete = TABLES.index(name) < TABLES.index(file_name)
            (tmp_path / name).write_bytes((second if is_complete else first)[name])
        (tmp_path / file_name).write_bytes(content[:end])
        assert tables.repair() == {"a": 3}
        assert contents(tmp_path) == first


def test_rows_are_removed_if_the_block_fails(tables, tmp_path):
    assert tables.repair() == {}
    with pytest.raises(KeyboardInterrupt):
        add(tables, "a", three_nuclei(), KeyboardInterrupt())
    assert not list(tmp_path.iterdir())
    add(tables, "a", three_nuclei())
    before = contents(tmp_path)
    with pytest.raises(OSError, match="full"):
        add(tables, "b", three_nuclei(), OSError("full"))
    assert contents(tmp_path) == before


@pytest.fixture
def filled_tables(tables):
    """Tables with the rows of three images. The second image has no nuclei."""
    for name, label_map in {"a": three_nuclei(), "b": 0 * three_nuclei(), "é": three_nuclei()}.items():
        add(tables, name, label_map)
    assert tables.repair() == {"a": 3, "b": 0, "é": 3}
    return tables


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


@pytest.mark.parametrize("file_name", TABLES)
@pytest.mark.parametrize(
    "damage", [None, lambda rows: re.sub(rb"\na,.*", b"", rows, count=1), lambda rows: rows.partition(b"\n")[0] + b"\n"]
)
def test_rows_stay_if_another_program_removed_rows(filled_tables, tmp_path, file_name, damage):
    (tmp_path / file_name).unlink() if damage is None else change(tmp_path / file_name, damage)
    before = contents(tmp_path)
    with pytest.raises(
        NucleiError, match=r"images\.csv, nuclei\.csv and submission\.csv .* a|images\.csv does not exist"
    ):
        filled_tables.repair()
    assert contents(tmp_path) == before
    assert "a" not in filled_tables.repair(replaced={"a", "b", "é"})


def test_tables_with_another_encoding_and_long_codes_are_read(filled_tables, tmp_path):
    for name in TABLES:
        change(tmp_path / name, lambda rows: rows.decode("utf-8").encode("latin-1"))
    change(tmp_path / "submission.csv", lambda rows: rows.replace(b"\na,", b"\na," + b"1 1 " * 40_000, 1))
    filled_tables.drop({"b"})
    assert list(filled_tables.repair().values()) == [3, 3]


KILLED = """
import os, random, signal, sys, time
from nuclei_utils import cli, io, export, predict, segmentation
import nuclei_utils.cli.predict_images

# without a network: a process that has used TensorFlow cannot be forked
cli.predict_images.load = lambda network: None
cli.predict_images._GPU_FILES = ()
predict.predict_labels = lambda model, image, **_: segmentation.components(image[..., 0] > 128)
predict.tta_consistency = lambda *_, **__: 1.0

def start(*words):
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(cli.main(["predict", sys.argv[1], "--out", *words]))
    return child

begin = time.monotonic()
assert os.waitpid(start(sys.argv[2] + "/whole"), 0)[1] == 0
duration = time.monotonic() - begin
moments, kills = random.Random(0), 0
for number in range(int(sys.argv[3])):
    out = f"{sys.argv[2]}/{number}"
    words = [out]
    while True:
        child = start(*words)
        time.sleep(moments.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        words = [out, "--resume"]
        if not os.WIFSIGNALED(status) or moments.random() < 0.5:
            break
    _, status = os.waitpid(start(*words), 0)
    assert status == 0, (number, status)
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_nothing_is_lost_if_the_process_is_killed(tmp_path, out):
    for number in range(12):
        write_image(tmp_path / "in" / f"cell{number:02}.png", three_nuclei(number))
    words = [sys.executable, "-c", KILLED, tmp_path / "in", out, "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    whole = contents(out / "whole")
    assert len(whole) == 12 * len(SUFFIXES) + len(TABLES) + 1
    for number in range(3):
        assert contents(out / str(number)) == whole


def test_the_partial_settings_of_a_killed_process_are_removed(folder, tmp_path, out):
    assert run("predict", folder, "--out", tmp_path / "whole") == 0
    out.mkdir()
    (out / ".predict_settings-1234-0a1b2c3d.json").write_text("{")
    assert run("predict", folder, "--out", out, "--resume") == 0
    assert contents(out) == contents(tmp_path / "whole")


# Faults


def test_one_broken_image_does_not_stop_the_others(tmp_path, out, capsys):
    broken = write_image(tmp_path / "in" / "a.png")
    broken.write_bytes(broken.read_bytes()[:-20])
    write_image(tmp_path / "in" / "b.png")
    (tmp_path / "empty").mkdir()
    assert run("predict", tmp_path / "in", tmp_path / "missing.png", tmp_path / "empty", "--out", out) == 1
    for name, line in zip(("empty", "in/a.png", "missing.png"), complaints(capsys), strict=True):
        assert line.startswith(f"nuclei-utils predict: {tmp_path / name}")
    assert image_counts(out) == {"b": 3}


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 9 GiB"), NucleiError("b.png: NaN")])
@pytest.mark.parametrize(("module", "function"), [(io, "read_raw"), (predict, "predict_labels")])
def test_an_image_that_fails_is_named(folder, out, monkeypatch, capsys, error, module, function):
    original, images = getattr(module, function), []

    def fails(*arguments, **options):
        if module is predict:
            images.append(arguments)
        if len(images) == 3 or str(arguments[0]).endswith("b.png"):  # the third label map is that of image b
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(module, function, fails)
    monkeypatch.setattr(predict, "tta_consistency", lambda *_, **__: images.append(()) or 1.0)
    assert run("predict", folder, "--out", out) == 1
    (line,) = complaints(capsys)
    assert "b.png" in line
    assert isinstance(error, NucleiError) or "memory" in line
    assert image_counts(out) == {"a": 3, "c": 3}


def test_too_many_pixels_and_a_circular_link_are_named(folder, out, capsys):
    write_image(folder / "b.png", np.zeros((61, 80), int))
    names = ["b.png"]
    try:
        (folder / "loop.png").symlink_to("loop.png")
        names.append("loop.png")
    except OSError:  # a file system without links
        pass
    assert run("predict", folder, "--out", out, "--max-pixels", 60 * 80) == 1
    for name, line in zip(names, complaints(capsys), strict=True):
        assert str(folder / name) in line
    assert image_counts(out) == {"a": 3, "c": 3}


@pytest.mark.parametrize("name", ["ü", "核", os.fsdecode(b"not utf-8 \xff")])
def test_any_name_in_any_terminal(folder, tmp_path, out, monkeypatch, name):
    try:
        shutil.copy(folder / "a.png", folder / f"{name}.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    terminal = streams.TextIOWrapper(streams.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("predict", folder, tmp_path / f"missing {name}.png", "--out", out) == 1
    assert run("predict", folder, "--out", out, "--resume") == 0
    terminal.flush()
    shown = terminal.buffer.getvalue().decode("ascii")
    assert "\\" in shown
    assert "4 of 5 images" in shown
    assert "4 of 4 images" in shown
    with (out / "nuclei.csv").open(encoding="utf-8", newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {"a", "b", "c", *names_in_tables([name])}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize(("module", "function", "calls"), [(io, "write_mask", 1), (export, "csv_bytes", 3)])
def test_a_full_disk_stops_the_run_and_keeps_finished_images(
    folder, tmp_path, out, monkeypatch, capsys, number, module, function, calls
):
    assert run("predict", folder, "--out", tmp_path / "whole") == 0
    capsys.readouterr()
    original, count = getattr(module, function), 0

    def full(*arguments, **options):
        nonlocal count
        count += 1
        if count > calls:  # of the first image
            raise OSError(number, os.strerror(number), str(out / "a file"))
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, full)
        assert run("predict", folder, "--out", out) == 1
    message = capsys.readouterr().err
    assert str(out / "a file") in message
    assert str(folder / "b.png") in message
    assert str(folder / "c.png") not in message, "the run stops"
    assert image_counts(out) == {"a": 3}
    assert not list(out.glob("b*"))
    assert run("predict", folder, "--out", out, "--resume") == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_file_in_place_of_the_folder_is_named(folder, out, capsys):
    out.touch()
    assert run("predict", folder, "--out", out) == 1
    (line,) = complaints(capsys)
    assert str(out) in line


# Networks


def lambda_layer():
    return keras.Sequential([keras.Input((None, None, 3)), keras.layers.Lambda(lambda x: x[..., :1])])


def other_input():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])


def half_size():
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, keras.layers.Conv2D(1, 2, strides=2)(inputs))


def nan_weights():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    return model


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("network", [lambda_layer, other_input, half_size, nan_weights, b"PK", None])
def test_unsafe_and_unfit_networks_are_refused(folder, tmp_path, out, capsys, network):
    path = tmp_path / "other.keras"
    if callable(network):
        network().save(path)
    elif network:
        path.write_bytes(network)
    assert run("predict", folder, "--out", out, "--model", path) == 1
    (line,) = complaints(capsys)
    assert str(path) in line


def test_own_network_is_used(tmp_path, out):
    path = tmp_path / "good.keras"
    models.unet(filters=2, depth=1).save(path)
    assert run("predict", write_image(tmp_path / "a.png"), "--model", path, "--out", out) == 0
    assert io.read_label_map(out / "a_labels.png").shape == (60, 80)


@pytest.mark.parametrize(
    ("words", "used"), [([], "int8"), (["--precision", "int8"], "int8"), (["--precision", "float32"], "float32")]
)
def test_the_included_network_is_used_in_its_precision(tmp_path, out, monkeypatch, words, used):
    calls = []
    monkeypatch.setattr(exported, "included_network", lambda: calls.append("int8") or frozen_bright_network())
    monkeypatch.setattr(models, "included_network", lambda: calls.append("float32") or bright_network())
    assert run("predict", write_image(tmp_path / "a.png"), "--out", out, *words) == 0
    assert calls == [used]
    assert json.loads((out / SETTINGS).read_text())["--precision"] == used


def test_a_resumed_run_keeps_its_precision(folder, out, monkeypatch, capsys):
    monkeypatch.setattr(models, "included_network", bright_network)
    assert run("predict", folder / "a.png", "--out", out, "--precision", "float32") == 0
    monkeypatch.setattr(exported, "included_network", None)
    assert run("predict", folder, "--out", out, "--resume") == 0
    assert image_counts(out) == {"a": 3, "b": 3, "c": 3}
    for damaged in ('"int4"', '["int8"]'):
        (out / SETTINGS).write_text(f'{{"--precision": {damaged}}}')
        assert run("predict", folder, "--out", out, "--resume") == 1
        assert f"{out / SETTINGS} is damaged" in complaints(capsys)[-1]


def test_results_of_another_network_are_not_mixed_with_those_of_the_included_network(folder, tmp_path, out, capsys):
    bright_network().save(tmp_path / "m.keras")
    assert run("predict", folder / "a.png", "--out", out, "--model", tmp_path / "m.keras") == 0
    assert run("predict", folder, "--out", out, "--resume") == 1
    assert "other --model: another network" in complaints(capsys)[-1]


def test_a_missing_network_is_named_before_any_work(tmp_path, out, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "connect", None)
    assert run("predict", write_image(tmp_path / "a.png"), "--out", out, "--model", tmp_path / "m.keras") == 1
    assert f"{tmp_path / 'm.keras'} is missing" in capsys.readouterr().err


@pytest.mark.usefixtures("no_work")
def test_a_precision_of_another_network_is_refused(tmp_path, out, capsys):
    words = ["--model", tmp_path / "m.keras", "--precision", "int8"]
    assert run("predict", write_image(tmp_path / "a.png"), "--out", out, *words) == 1
    (line,) = complaints(capsys)
    assert "leave it out with --model" in line


@pytest.mark.parametrize(
    ("files", "error", "precision"),
    [(("null",), None, "float32"), (("null",), NucleiError(), "int8"), (("no",), None, "int8")],
)
def test_the_precision_depends_on_a_gpu(monkeypatch, files, error, precision):
    def find_devices(text):
        if error:
            raise error
        return [f"{text}:0"]

    monkeypatch.setattr(predict_images, "_GPU_FILES", files)  # /dev/null stands for the file of a driver
    monkeypatch.setattr(devices, "find_devices", find_devices)
    assert predict_images.default_precision() == precision


def test_the_command_loads_no_tensorflow_without_a_gpu(tmp_path, out):
    code = (
        "import sys; from nuclei_utils import cli; from nuclei_utils.cli import predict_images; "
        "predict_images._GPU_FILES = (); status = cli.main(sys.argv[1:]); "
        "print('loaded:', *{'tensorflow', 'keras'} & set(sys.modules)); sys.exit(status)"
    )
    words = ["predict", write_image(tmp_path / "a.png"), "--out", out]
    run = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "loaded:"


def write_exported(path, output):
    """Write a LiteRT file whose network returns the brightness of the red channel."""
    inputs = keras.Input((None, None, 3), name="image")
    layer = keras.layers.Conv2D(1, 1, use_bias=False, activation="sigmoid", name=output)
    model = keras.Model(inputs, {output: layer(inputs)})
    model.set_weights([np.array([9, -2, -2], np.float32).reshape(1, 1, 3, 1)])
    if not hasattr(tf, "lite"):
        pytest.skip("this TensorFlow has no tf.lite, which writes LiteRT files")
    deploy.export_litert(model, path, 64)
    return model


def test_exported_network_is_used(tmp_path, out):
    path = tmp_path / "fast.tflite"
    model = write_exported(path, "mask")
    image = write_image(tmp_path / "a.png")
    assert run("predict", image, "--model", path, "--out", out) == 0
    expected = predict.predict_labels(model, io.read_image(image))
    assert expected.max() == 3
    np.testing.assert_array_equal(io.read_label_map(out / "a_labels.png"), expected)


@pytest.mark.usefixtures("no_work")
def test_exported_network_needs_a_mask(folder, tmp_path, out, capsys):
    path = tmp_path / "other.tflite"
    write_exported(path, "depth")
    assert run("predict", folder, "--out", out, "--model", path) == 1
    (line,) = complaints(capsys)
    assert str(path) in line
    assert "mask" in line
