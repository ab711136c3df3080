"""The tables in the text are those that the files of results give."""

from pathlib import Path

import nbformat

from benchmarks import tables

ROOT = Path(__file__).resolve().parent.parent


def test_readme_quotes_the_results():
    assert tables.unet_from_scratch() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_notebook_03_quotes_the_results():
    notebook = nbformat.read(ROOT / "notebooks" / "03_unet_from_scratch.ipynb", as_version=4)
    table = tables.unet_from_scratch()
    assert any(table in cell.source for cell in notebook.cells if cell.cell_type == "markdown")
