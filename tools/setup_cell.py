"""Write the setup cell and the Colab links into every notebook and the README: `make sync`.

A notebook that is opened alone, for example in Colab, has no `nuclei_utils` yet. Each notebook begins with the same
setup cell. Its text is in this module, the address of the repository in `pyproject.toml` under `[project.urls]`,
and the version in `nuclei_utils/__init__.py`. A test checks that all notebooks agree.
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat

from nuclei_utils import __version__
from nuclei_utils.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
TAGS = ["setup", "nbval-ignore-output"]  # versions and device differ from machine to machine
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}
"""Metadata that fold the code of the setup cell, in Colab and in JupyterLab."""
README = ROOT / "README.md"
COLAB_LINK = re.compile(r"https://colab\.research\.google\.com/github/[^\s)\"'>]+?/(notebooks/[^\s)\"'>]+\.ipynb)")
"""Link that opens a notebook in Colab. The group is the path of the notebook in the repository."""
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": "3.12.0",
    },
}
"""Metadata that JupyterLab writes into a notebook, with a fixed version of Python."""

# All installed packages are constraints, so that pip cannot replace them. The package comes from the release that
# the notebook belongs to, not from a branch that changes.
TEMPLATE = """\
# @title Setup: run this cell first
from importlib import util

if not util.find_spec("nuclei_utils"):  # Colab: install the package, replace nothing
    %pip list --format=freeze > installed.txt
    %pip install --quiet --constraint installed.txt git+ADDRESS@TAG
from nuclei_utils import notebook

notebook.start()"""


def address():
    """Return the address of the repository from `pyproject.toml`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def tag():
    """Return the git tag of the release that the notebooks belong to, for example "v0.1.0"."""
    return f"v{__version__}"


def setup_cell():
    """Return the text of the setup cell."""
    return TEMPLATE.replace("ADDRESS", address()).replace("TAG", tag())


def colab_link(path):
    """Return the address that opens a notebook of the release in Colab.

    Parameters
    ----------
    path : str
        Path of the notebook in the repository, such as `"notebooks/01_explore_the_data.ipynb"`.
    """
    repository = address().removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{repository}/blob/{tag()}/{path}"


def notebooks():
    """Return the paths of the notebooks in order, then of the solutions."""
    folder = ROOT / "notebooks"
    return sorted(folder.glob("*.ipynb")) + sorted(folder.glob("solutions/*.ipynb"))


def sync(notebook, path):
    """Put the setup cell, its tags, the Colab links and the metadata into a notebook.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Notebook that is changed in place.
    path : path-like
        Path of the notebook in the repository.

    Returns
    -------
    bool
        True if the notebook was changed.

    Raises
    ------
    ValueError
        If the notebook has no code cell.
    """
    before = nbformat.writes(notebook)
    cell = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    if cell is None:
        raise ValueError(f"{path} has no code cell: add an empty code cell for the setup")
    cell.source = setup_cell()
    cell.metadata.update(tags=TAGS, **FOLDED)
    link = colab_link(Path(path).resolve().relative_to(ROOT).as_posix())
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = COLAB_LINK.sub(link, cell.source)
    notebook.metadata = nbformat.from_dict(METADATA)
    return nbformat.writes(notebook) != before


def keep_version(model, **_):
    """Save a notebook with a fixed version of Python, so that opening a notebook does not change the file.

    `make lab` gives this function to Jupyter (`ContentsManager.pre_save_hook`).

    Parameters
    ----------
    model : dict
        Jupyter's description of the file that is saved, changed in place.
    """
    if model["type"] == "notebook":
        language = model["content"]["metadata"].get("language_info", {})
        if language.get("name") == "python":
            language["version"] = METADATA["language_info"]["version"]


def main():
    """Update every notebook and the README, and print the changed files."""
    for path in notebooks():
        notebook = nbformat.read(path, as_version=4)
        if sync(notebook, path):
            write(notebook, path)
            print(f"changed {path.relative_to(ROOT)}")
    before = README.read_text(encoding="utf-8")
    after = COLAB_LINK.sub(lambda link: colab_link(link[1]), before)
    if after != before:
        with atomic_write(README) as aside:
            aside.write_text(after, encoding="utf-8")
        print(f"changed {README.relative_to(ROOT)}")


def write(notebook, path):
    """Write a notebook whole or not at all."""
    with atomic_write(path) as aside:
        nbformat.write(notebook, aside)


if __name__ == "__main__":
    sys.exit(main())
