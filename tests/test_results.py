"""What the text quotes is what the files of results and the notebooks give."""

import re
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from benchmarks import tables
from nuclei_utils import notebook, training
from tools import picture, setup_cell

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.parametrize("path", tables.TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_texts_quote_the_results(path):
    text = text_of(path)
    assert len(tables.MARKED.findall(text)) == text.count("<!-- table "), "a mark without its end"
    assert tables.filled(text) == text, "run `python -m benchmarks.tables --write`"


def test_marked_tables_are_filled_and_the_text_between_them_stays(monkeypatch):
    monkeypatch.setattr(tables, "TABLES", {"one": lambda: "| 1 |", "two": lambda: "| 2 |"})
    text = "a\n\n<!-- table one -->\n\n<!-- end -->\n\nb\n\n<!-- table two -->\n\n| old |\n\n<!-- end -->\n\nc"
    filled = tables.filled(text)
    assert filled == (
        "a\n\n<!-- table one -->\n\n| 1 |\n\n<!-- end -->\n\nb\n\n<!-- table two -->\n\n| 2 |\n\n<!-- end -->\n\nc"
    )
    assert tables.filled(filled) == filled


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_quoted_somewhere(name):
    assert any(f"<!-- table {name} -->" in text_of(path) for path in tables.TEXTS)


def test_benchmark_and_notebook_03_train_alike():
    line = f"SIZE, BATCH, FILTERS = {training.CROP_SIZE}, {training.BATCH_SIZE}, {training.FILTERS}"
    assert line in text_of(ROOT / "notebooks" / "03_unet_from_scratch.ipynb")


def difference(one, other):
    """Return the mean absolute difference of two pictures, 0 to 255."""
    one, other = (np.asarray(picture.convert("RGB"), float) for picture in (one, other))
    assert one.shape == other.shape
    return np.abs(one - other).mean()


@pytest.mark.parametrize("name", picture.SOURCES)
def test_pictures_are_those_of_the_notebooks(name):
    source = Image.open(BytesIO(picture.of_notebook(picture.SOURCES[name])))
    assert difference(Image.open(notebook.PICTURES / name), source) < 8, "run `make outputs`"
    assert f'notebook.show_goal(\n    "{name}"' in text_of(ROOT / "notebooks" / f"{picture.SOURCES[name]}.ipynb")


def test_notebook_06_opens_with_the_last_frame_of_the_film():
    assert difference(Image.open(notebook.PICTURES / picture.LAST), picture.last_frame(picture.FILM)) < 8, (
        "run `make outputs`"
    )
    assert f'"{picture.LAST}"' in text_of(ROOT / "notebooks" / "06_evaluate_and_animate.ipynb")


def test_package_has_no_picture_that_nothing_shows_and_none_is_large():
    assert {path.name for path in notebook.PICTURES.iterdir()} == {*picture.SOURCES, picture.LAST}
    assert sum(path.stat().st_size for path in notebook.PICTURES.iterdir()) < 2**20, "they are in everybody's install"


def test_readme_shows_no_picture_that_is_not_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README)
    files = [name for name in pictures if not name.startswith("https://")]
    assert len(files) >= 3
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_readme_shows_the_film():
    assert picture.FILM.relative_to(ROOT).as_posix() in README
    assert picture.FILM.stat().st_size < 3e6
    states = Image.open(picture.FILM).n_frames
    assert states == 1 + training.PROFILES["laptop"].epochs, "before the training, and after each epoch"


def test_one_address_everywhere():
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        own = re.findall(r"https://github\.com/nuclei[\w-]*/[\w-]+", text)
        assert set(own) <= {setup_cell.address()}, "the address stands in pyproject.toml"


def test_readme_example_runs(tmp_path, monkeypatch, capsys):
    opening, helpers = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # the same with less training
    helpers = helpers.replace("20", "1").replace("min_crops=32", "min_crops=1").replace("filters=16", "filters=2")
    names = {}
    exec(helpers, names)
    names["model"].save("mine.keras")
    exec(opening, names)
    assert names["model"].name == "unet"
    assert "fluorescence_small" in capsys.readouterr().out
