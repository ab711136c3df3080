"""Tests of `nuclei-utils predict`: its files and tables, and what it does about faults and interruptions."""

import csv
import errno
import io as streams
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from nuclei_utils import cli, export, io, models, predict
from nuclei_utils.commands import predict as predicting
from nuclei_utils.commands.tables import Tables, names_in_tables
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import file_lock, printable_name

ENDINGS = ("_labels.png", "_mask.png", "_overlay.png")
TABLES = ("nuclei.csv", "submission.csv")
ALL_FILES = ("{}_labels.png", "{}_labels.tif", "{}_mask.png", "{}_overlay.png", "{}.geojson", "{}_rois.zip", *TABLES)


def run(*words):
    return cli.main([str(word) for word in words])


def three_nuclei(shift=0):
    """A label map (60, 80) of three squares."""
    labels = np.zeros((60, 80), np.int32)
    for number, left in enumerate((5, 30, 55), start=1):
        labels[10 + shift : 26 + shift, left : left + 16] = number
    return labels


def write_picture(path, labels=None):
    """Write bright nuclei on dark ground."""
    labels = three_nuclei() if labels is None else labels
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.repeat((labels > 0)[..., None] * np.uint8(200) + np.uint8(20), 3, axis=2))
    return path


def bright_is_nucleus():
    """A network whose mask is the red channel."""
    image = keras.Input((None, None, 3))
    red = keras.layers.Conv2D(1, 1, use_bias=False)
    model = keras.Model(image, red(image), name="bright")
    red.set_weights([np.array([1, 0, 0], np.float32).reshape(1, 1, 3, 1)])
    return model


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """Let the included network be one that needs no training."""
    model = bright_is_nucleus()
    monkeypatch.setattr(predict, "default_model", lambda: model)


@pytest.fixture
def folder(tmp_path):
    """A folder of three images."""
    for shift, name in enumerate("abc"):
        write_picture(tmp_path / "in" / f"{name}.png", three_nuclei(shift))
    return tmp_path / "in"


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a network is used."""

    def used(*_, **__):
        raise AssertionError("the command must refuse before any work")

    monkeypatch.setattr(predict, "predict_labels", used)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def complaints(capsys):
    """Return the lines on stderr, without the warnings that libraries give."""
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]


def failing(function, error, chosen):
    """Let a function raise an error if `chosen(first argument)` is true."""

    def call(first, *arguments, **words):
        if chosen(Path(first)):
            raise error
        return function(first, *arguments, **words)

    return call


# Results


def test_predict_writes_labels_masks_overlays_and_tables(tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png")
    write_picture(tmp_path / "in" / "b.tif", three_nuclei(20))
    (tmp_path / "in" / "notes.txt").touch()
    out = tmp_path / "deep" / "out"
    words = ["--pixel-size", 0.5, "--format", "geojson", "--format", "rois", "--tta", 4]
    assert run("predict", tmp_path / "in", tmp_path / "in" / "a.png", "--out", out, *words) == 0
    assert {path.name for path in out.iterdir()} == {
        *TABLES,
        predicting.SETTINGS,
        *(f"{name}{ending}" for name in "ab" for ending in (*ENDINGS, ".geojson", "_rois.zip")),
    }
    assert np.array_equal(io.read_label_map(out / "b_labels.png"), three_nuclei(20))
    assert np.array_equal(io.read_mask(out / "a_mask.png"), three_nuclei() > 0)
    assert io.read_image(out / "a_overlay.png").shape == (60, 80, 3)
    table = pd.read_csv(out / "nuclei.csv")
    assert table["image"].tolist() == ["a"] * 3 + ["b"] * 3
    assert table["area"].tolist() == [16 * 16 * 0.5**2] * 6
    assert pd.read_csv(out / "submission.csv")["ImageId"].tolist() == ["a"] * 3 + ["b"] * 3
    output = capsys.readouterr()
    assert [line.split()[:2] for line in output.out.splitlines()] == [["a", "3"], ["b", "3"], ["2", "of"]]
    assert "nuclei-utils" not in output.err


def test_the_tables_are_those_of_all_images_written_at_once(folder, tmp_path):
    write_picture(folder / "aa.png", np.zeros((60, 80), int))
    assert run("predict", folder, "--out", tmp_path / "out") == 0
    names = ["a", "aa", "b", "c"]
    found = {name: io.read_label_map(tmp_path / "out" / f"{name}_labels.png") for name in names}
    tables = [export.measure_nuclei(io.read_image(folder / f"{name}.png"), found[name], name) for name in names]
    export.write_table(tmp_path / "nuclei.csv", pd.concat([table for table in tables if len(table)]))
    export.write_table(tmp_path / "submission.csv", export.submission_table(found))
    for name in TABLES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_layout_of_the_competition_is_read(tmp_path):
    for name in ("0a", "0b"):
        write_picture(tmp_path / "in" / name / "images" / f"{name}.png")
    assert run("predict", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].unique().tolist() == ["0a", "0b"]


def test_an_image_without_nuclei_and_one_not_to_be_trusted_are_named(tmp_path, monkeypatch, capsys):
    write_picture(tmp_path / "in" / "black.png", np.zeros((60, 80), int))
    write_picture(tmp_path / "in" / "odd.png")
    monkeypatch.setattr(predict, "tta_consistency", lambda model, image, labels, **_: 0.2 if labels.any() else np.nan)
    assert run("predict", tmp_path / "in", "--out", tmp_path / "out") == 0
    black, odd = complaints(capsys)
    assert "black: no nucleus was found" in black
    assert "odd: do not trust this result" in odd
    assert len(pd.read_csv(tmp_path / "out" / "nuclei.csv")) == 3
    submission = pd.read_csv(tmp_path / "out" / "submission.csv")
    assert submission["ImageId"].tolist() == ["black", "odd", "odd", "odd"]
    assert submission["EncodedPixels"].isna().tolist() == [True, False, False, False]


def test_more_nuclei_than_16_bits_number_go_into_a_tiff(tmp_path, monkeypatch):
    image = write_picture(tmp_path / "a.png")
    monkeypatch.setattr(io, "HIGHEST_IN_16_BITS", 2)
    assert run("predict", image, "--out", tmp_path / "out") == 0
    assert io.read_label_map(tmp_path / "out" / "a_labels.tif").max() == 3
    assert not (tmp_path / "out" / "a_labels.png").exists()


def test_a_network_of_ones_own(tmp_path):
    models.unet(filters=2, depth=1).save(tmp_path / "m.keras")
    image = write_picture(tmp_path / "a.png")
    assert run("predict", image, "--model", tmp_path / "m.keras", "--out", tmp_path / "out") == 0
    assert io.read_label_map(tmp_path / "out" / "a_labels.png").shape == (60, 80)


# Files that exist


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("existing", [name.format("b") for name in ALL_FILES])
def test_what_exists_is_refused_before_any_work(folder, tmp_path, capsys, existing):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / existing).write_text("by hand")
    assert run("predict", folder, "--out", tmp_path / "out") == 1
    assert str(tmp_path / "out" / existing) in capsys.readouterr().err
    assert contents(tmp_path / "out") == {existing: b"by hand"}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("options", [["--resume"], ["--replace"], ["--resume", "--replace"]])
@pytest.mark.parametrize("existing", ["a.geojson", "a_rois.zip", "a_labels.tif", *TABLES])
def test_what_this_run_would_not_write_anew_is_never_touched(folder, tmp_path, capsys, options, existing):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / existing).write_text("by hand")
    assert run("predict", folder, "--out", tmp_path / "out", *options) == 1
    assert str(tmp_path / "out" / existing) in capsys.readouterr().err
    assert contents(tmp_path / "out") == {existing: b"by hand"}


@pytest.mark.usefixtures("no_work")
def test_resume_overwrites_no_file_that_is_not_in_the_tables(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_labels.png").write_text("corrected by hand")
    assert run("predict", folder, "--out", tmp_path / "out", "--resume") == 1
    assert "b_labels.png" in capsys.readouterr().err
    assert contents(tmp_path / "out") == {"b_labels.png": b"corrected by hand"}


def test_results_beside_the_images(tmp_path):
    """The folder of the image holds files with the names of results."""
    image = write_picture(tmp_path / "photo.png")
    for name in ("photo.geojson", "photo_rois.zip", "photo_labels.tif", "photo_labels.png"):
        (tmp_path / name).write_text("by hand")
    before = contents(tmp_path)
    assert run("predict", image, "--out", tmp_path) == 1
    assert run("predict", image, "--out", tmp_path, "--replace") == 1
    assert contents(tmp_path) == before


def test_replace_leaves_the_rows_of_other_images(folder, tmp_path):
    assert run("predict", folder, "--out", tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    write_picture(folder / "b.png", three_nuclei() * (three_nuclei() < 3))
    assert run("predict", folder / "b.png", "--out", tmp_path / "out") == 1
    assert contents(tmp_path / "out") == before
    assert run("predict", folder / "b.png", "--out", tmp_path / "out", "--replace") == 0
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].value_counts().to_dict() == {"a": 3, "b": 2, "c": 3}
    assert io.read_label_map(tmp_path / "out" / "b_labels.png").max() == 2
    assert (tmp_path / "out" / "a_labels.png").read_bytes() == before["a_labels.png"]


@pytest.mark.usefixtures("no_work")
def test_names_that_would_collide_are_refused_before_any_work(tmp_path, capsys):
    one = write_picture(tmp_path / "x" / "cell.png")
    two = write_picture(tmp_path / "y" / "Cell.tif")
    assert run("predict", one, two, "--out", tmp_path / "out") == 1
    assert f"{one} and {two} would give results of one name" in capsys.readouterr().err
    assert run("predict", tmp_path / "x", "--out", tmp_path / "x") == 1
    assert "is to be read and written" in capsys.readouterr().err
    mask = write_picture(tmp_path / "x" / "cell_mask.png")
    for options in ([], ["--replace"]):
        assert run("predict", one, mask, "--out", tmp_path / "x", *options) == 1
        assert f"{mask} is one of the images, and would be overwritten" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_work")
def test_two_runs_do_not_write_into_one_folder_at_once(folder, tmp_path, capsys):
    with file_lock(tmp_path / "out" / ".predict.lock", "taken"):
        assert run("predict", folder, "--out", tmp_path / "out") == 1
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


# Interruptions


def test_ctrl_c_keeps_what_is_done_and_resume_does_the_rest(folder, tmp_path, monkeypatch, capsys):
    assert run("predict", folder, "--out", tmp_path / "whole") == 0
    for moment in ("read_raw", "write_overlay"):
        out = tmp_path / moment
        with monkeypatch.context() as patch:
            module = io if moment == "read_raw" else export
            whole = getattr(module, moment)
            patch.setattr(module, moment, failing(whole, KeyboardInterrupt, lambda path: path.stem[0] == "b"))
            assert run("predict", folder, "--out", out) == 1
        assert "--resume" in capsys.readouterr().err
        assert pd.read_csv(out / "nuclei.csv")["image"].tolist() == ["a"] * 3
        assert {path.name for path in out.iterdir()} == {
            *TABLES,
            predicting.SETTINGS,
            *(f"a{ending}" for ending in ENDINGS),
        }
        assert run("predict", folder, "--out", out, "--resume") == 0
        assert contents(out) == contents(tmp_path / "whole")


def test_resume_skips_what_is_finished_and_adds_new_images(folder, tmp_path, monkeypatch, capsys):
    assert run("predict", folder / "a.png", "--out", tmp_path / "out") == 0
    (tmp_path / "out" / "a_labels.png").write_text("corrected by hand")
    asked = []
    monkeypatch.setattr(io, "read_raw", failing(io.read_raw, AssertionError, lambda path: asked.append(path)))
    assert run("predict", folder, "--out", tmp_path / "out", "--resume") == 0
    assert [path.stem for path in asked] == ["b", "c"]
    assert (tmp_path / "out" / "a_labels.png").read_text() == "corrected by hand"
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].tolist() == [*"aaabbbccc"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 of 3 images, 9 nuclei")


def test_resume_after_an_interrupted_replacement(folder, tmp_path, monkeypatch):
    assert run("predict", folder, "--out", tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(io, "read_raw", failing(io.read_raw, KeyboardInterrupt, lambda path: path.stem == "b"))
        assert run("predict", folder, "--out", tmp_path / "out", "--replace") == 1
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].tolist() == ["a"] * 3
    assert run("predict", folder, "--out", tmp_path / "out", "--replace", "--resume") == 0
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("other", [["--tta", 4], ["--pixel-size", 0.5], ["--format", "rois"], ["--model", "m.keras"]])
@pytest.mark.parametrize("option", ["--resume", "--replace"])
def test_one_table_holds_no_results_of_different_options(folder, tmp_path, monkeypatch, capsys, other, option):
    assert run("predict", folder, "--out", tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    bright_is_nucleus().save("m.keras")
    new = write_picture(tmp_path / "new.png")
    assert run("predict", new, "--out", tmp_path / "out", option, *other) == 1
    assert other[0] in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    if option == "--replace" and other[0] != "--format":
        assert run("predict", folder, "--out", tmp_path / "out", option, *other) == 0, "no other results remain"


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("image", ["b", 'b,"\n', "é", "=1+1", os.fsdecode(b"\xff")])
def test_rows_that_were_cut_anywhere_are_repaired(tmp_path, name, image):
    """A process can be killed while it adds the rows of an image: to the first table, then to the second."""
    labels, image = three_nuclei(), printable_name(image)
    rows = {key: export.measure_nuclei(np.zeros((60, 80, 3), np.uint8), labels, key) for key in ("a", image)}
    tables = Tables(tmp_path, rows["a"].columns)
    with tables.added(rows["a"], export.submission_table({"a": labels})):
        pass
    first = contents(tmp_path)
    with tables.added(rows[image], export.submission_table({image: labels})):
        pass
    both = contents(tmp_path)
    a, b = names_in_tables(["a", image])
    assert tables.repair() == {a: 3, b: 3}
    assert contents(tmp_path) == both
    added = range(len(first[name]), len(both[name]))
    for cut in added:
        if cut > added[0] + 12 and both[name][cut - 1 : cut] not in b'"\n' and cut != added[-1]:
            continue  # in the middle of a number
        (tmp_path / "nuclei.csv").write_bytes(both["nuclei.csv"])
        (tmp_path / "submission.csv").write_bytes(first["submission.csv"])
        (tmp_path / name).write_bytes(both[name][:cut])
        assert tables.repair() == {a: 3}
        assert contents(tmp_path) == first


def test_a_table_that_does_not_exist_yet_and_rows_taken_back(tmp_path):
    labels = three_nuclei()
    table = export.measure_nuclei(np.zeros((60, 80, 3), np.uint8), labels, "a")
    tables = Tables(tmp_path, table.columns)
    assert tables.repair() == {}

    def add(name, error):
        with tables.added(table.assign(image=name), export.submission_table({name: labels})):
            raise error

    with pytest.raises(KeyboardInterrupt):
        add("a", KeyboardInterrupt)
    assert not list(tmp_path.iterdir())
    with tables.added(table, export.submission_table({"a": labels})):
        pass
    before = contents(tmp_path)
    with pytest.raises(OSError, match="full"):
        add("b", OSError("full"))
    assert contents(tmp_path) == before


@pytest.fixture
def tables(tmp_path):
    """Two tables with the rows of three images, of which "b" has no nucleus."""
    image, labels = np.zeros((60, 80, 3), np.uint8), three_nuclei()
    found = {"a": labels, "b": np.zeros_like(labels), "é": labels}
    tables = Tables(tmp_path, export.measure_nuclei(image, labels, "").columns)
    for name, one in found.items():
        with tables.added(export.measure_nuclei(image, one, name), export.submission_table({name: one})):
            pass
    assert tables.repair() == {"a": 3, "b": 0, "é": 3}
    return tables


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "damage", [None, lambda rows: re.sub(rb"\na,.*", b"", rows, count=1), lambda rows: rows.partition(b"\n")[0] + b"\n"]
)
def test_rows_stay_if_another_program_removed_some(tables, tmp_path, name, damage):
    (tmp_path / name).unlink() if damage is None else change(tmp_path / name, damage)
    before = contents(tmp_path)
    with pytest.raises(NucleiError, match=r"nuclei\.csv and submission\.csv do not hold the same nuclei of a"):
        tables.repair()
    assert contents(tmp_path) == before
    assert "a" not in tables.repair(replaced={"a", "b", "é"})


def test_tables_of_another_encoding_and_long_codes_are_read(tables, tmp_path):
    for name in TABLES:
        change(tmp_path / name, lambda rows: rows.decode("utf-8").encode("latin-1"))
    change(tmp_path / "submission.csv", lambda rows: rows.replace(b"\na,", b"\na," + b"1 1 " * 40_000, 1))
    tables.drop({"b"})
    assert list(tables.repair().values()) == [3, 3]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from nuclei_utils import cli, predict
from nuclei_utils.commands import predict as predicting

# the network takes no part in this: a process that has used TensorFlow cannot be forked
predicting._network = lambda path: None
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
def test_killed_at_random_moments_and_resumed_nothing_is_lost(tmp_path):
    for number in range(12):
        write_picture(tmp_path / "in" / f"cell{number:02}.png", three_nuclei(number))
    words = [sys.executable, "-c", KILLED, tmp_path / "in", tmp_path / "out", "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    whole = contents(tmp_path / "out" / "whole")
    assert len(whole) == 12 * len(ENDINGS) + len(TABLES) + 1
    for number in range(3):
        assert contents(tmp_path / "out" / str(number)) == whole


# Faults


def test_one_broken_image_does_not_stop_the_rest(tmp_path, capsys):
    broken = write_picture(tmp_path / "in" / "a.png")
    broken.write_bytes(broken.read_bytes()[:-20])
    write_picture(tmp_path / "in" / "b.png")
    (tmp_path / "empty").mkdir()
    words = [tmp_path / "in", tmp_path / "missing.png", tmp_path / "empty", "--out", tmp_path / "out"]
    assert run("predict", *words) == 1
    lines = complaints(capsys)
    assert len(lines) == 3
    for name, line in zip(("empty", "in/a.png", "missing.png"), lines, strict=True):
        assert line.startswith(f"nuclei-utils predict: {tmp_path / name}")
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].unique().tolist() == ["b"]


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 9 GiB")])
def test_an_image_that_does_not_fit_into_memory_is_named(folder, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr(io, "read_raw", failing(io.read_raw, error, lambda path: path.stem == "b"))
    assert run("predict", folder, "--out", tmp_path / "out") == 1
    (line,) = complaints(capsys)
    assert str(folder / "b.png") in line
    assert "memory" in line
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].unique().tolist() == ["a", "c"]


def test_a_link_that_leads_to_itself_is_named(folder, tmp_path, capsys):
    loop = folder / "loop.png"
    try:
        loop.symlink_to("loop.png")
    except OSError:
        pytest.skip("no links here")
    assert run("predict", folder / "a.png", loop, "--out", tmp_path / "out") == 1
    assert str(loop) in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "out" / "nuclei.csv")) == 3


@pytest.mark.parametrize("name", ["ü", "核", os.fsdecode(b"not utf-8 \xff")])
def test_any_name_in_any_terminal(folder, tmp_path, monkeypatch, name):
    try:
        shutil.copy(folder / "a.png", folder / f"{name}.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    terminal = streams.TextIOWrapper(streams.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("predict", folder, tmp_path / f"missing {name}.png", "--out", tmp_path / "out") == 1
    terminal.flush()
    shown = terminal.buffer.getvalue().decode("ascii")
    assert "\\" in shown
    assert "4 of 5 images" in shown
    with (tmp_path / "out" / "nuclei.csv").open(encoding="utf-8", newline="") as file:
        names = {row["image"] for row in csv.DictReader(file)}
    assert names == {"a", "b", "c", *names_in_tables([name])}
    assert run("predict", folder, "--out", tmp_path / "out", "--resume") == 0
    monkeypatch.undo()
    terminal.flush()
    assert "4 of 4 images were finished before" in terminal.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("what", ["write_mask", "csv_bytes"])
def test_no_room_stops_the_run_and_keeps_what_is_done(folder, tmp_path, monkeypatch, capsys, number, what):
    assert run("predict", folder, "--out", tmp_path / "whole") == 0
    capsys.readouterr()
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        error = OSError(number, os.strerror(number), str(out / "a file"))
        seen = []

        def full(_):
            seen.append(1)
            return len(seen) > (1 if what == "write_mask" else 2)  # both tables of the first image, one of the second

        if what == "write_mask":
            patch.setattr(io, what, failing(io.write_mask, error, full))
        else:
            whole = export.csv_bytes
            patch.setattr(
                export, what, lambda table, **words: failing(lambda _: whole(table, **words), error, full)("")
            )
        assert run("predict", folder, "--out", out) == 1
    message = capsys.readouterr().err
    assert str(out / "a file") in message
    assert str(folder / "b.png") in message
    assert str(folder / "c.png") not in message, "the run stops"
    assert pd.read_csv(out / "nuclei.csv")["image"].tolist() == ["a"] * 3
    assert not list(out.glob("b*"))
    assert run("predict", folder, "--out", out, "--resume") == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_file_in_place_of_the_folder_is_named(folder, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert run("predict", folder, "--out", tmp_path / "out") == 1
    (line,) = complaints(capsys)
    assert str(tmp_path / "out") in line


def test_a_limit_of_pixels(folder, tmp_path, capsys):
    write_picture(folder / "b.png", np.zeros((61, 80), int))
    assert run("predict", folder, "--out", tmp_path / "out", "--max-pixels", 60 * 80) == 1
    (line,) = complaints(capsys)
    assert str(folder / "b.png") in line
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].unique().tolist() == ["a", "c"]


# Networks


def test_only_safe_models_of_the_right_shape_are_loaded(tmp_path):
    keras.Sequential([keras.Input((None, None, 3)), keras.layers.Lambda(lambda x: x[..., :1])]).save(
        tmp_path / "lambda.keras"
    )
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(tmp_path / "dense.keras")
    (tmp_path / "broken.keras").write_bytes(b"PK")
    shutil.copy(tmp_path / "dense.keras", tmp_path / "old.h5")
    for name, message in {
        "lambda.keras": "list of layers",
        "dense.keras": "expected one from colour images",
        "broken.keras": "cannot be loaded",
        "old.h5": r"expected \.keras",
        "none.keras": "is missing",
    }.items():
        with pytest.raises(NucleiError, match=message) as caught:
            predicting.load_model(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    models.unet(filters=2, depth=1).save(tmp_path / "good.keras")
    assert predicting.load_model(tmp_path / "good.keras").name == "unet"


def half_size():
    image = keras.Input((None, None, 3))
    return keras.Model(image, keras.layers.Conv2D(1, 2, strides=2)(image))


def without_numbers():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.Conv2D(1, 1)(image))
    model.set_weights([np.full_like(one, np.nan) for one in model.get_weights()])
    return model


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("make", [half_size, without_numbers])
def test_networks_of_another_kind_are_refused_by_name(folder, tmp_path, capsys, make):
    make().save(tmp_path / "other.keras")
    assert run("predict", folder, "--out", tmp_path / "out", "--model", tmp_path / "other.keras") == 1
    (line,) = complaints(capsys)
    assert str(tmp_path / "other.keras") in line


def test_an_image_for_which_the_network_gives_no_numbers_is_named(folder, tmp_path, monkeypatch, capsys):
    labels = predict.predict_labels

    def fails(model, image, **options):
        if image[10, 6, 0] < 128:  # the second and third image
            raise NucleiError("the network gives no numbers")
        return labels(model, image, **options)

    monkeypatch.setattr(predict, "predict_labels", fails)
    monkeypatch.setattr(predict, "tta_consistency", lambda *_, **__: 1.0)
    assert run("predict", folder, "--out", tmp_path / "out") == 1
    for name, line in zip("bc", complaints(capsys), strict=True):
        assert str(folder / f"{name}.png") in line
    assert pd.read_csv(tmp_path / "out" / "nuclei.csv")["image"].unique().tolist() == ["a"]
