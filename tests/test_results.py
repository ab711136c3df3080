"""What the text quotes is what the files of results and the notebooks give."""

import re
from pathlib import Path

import nbformat

from benchmarks import tables, unet_from_scratch
from tools import picture, setup_cell

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOK_03 = nbformat.read(ROOT / "notebooks" / "03_unet_from_scratch.ipynb", as_version=4)


def test_readme_quotes_the_results():
    assert tables.unet_from_scratch() in README


def test_notebook_03_quotes_the_results():
    table = tables.unet_from_scratch()
    assert any(table in cell.source for cell in NOTEBOOK_03.cells if cell.cell_type == "markdown")


def test_benchmark_and_notebook_03_train_alike():
    sizes = unet_from_scratch.SIZE, unet_from_scratch.BATCH, unet_from_scratch.FILTERS
    line = f"SIZE, BATCH, FILTERS = {sizes[0]}, {sizes[1]}, {sizes[2]}"
    assert any(line in cell.source for cell in NOTEBOOK_03.cells)


def test_readme_shows_the_picture_of_notebook_03():
    assert picture.PICTURE.read_bytes() == picture.of_notebook(), "run `make outputs`"
    assert picture.PICTURE.relative_to(ROOT).as_posix() in README


def test_one_address_everywhere():
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        own = re.findall(r"https://github\.com/nuclei[\w-]*/[\w-]+", text)
        assert set(own) <= {setup_cell.address()}, "the address stands in pyproject.toml"


def test_readme_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # what it does, with less of it
    exec(code.replace("20", "1").replace("at_least=32", "at_least=1").replace("filters=16", "filters=2"), {})
    assert "fluorescence_small" in capsys.readouterr().out
