"""Write the setup cell and the Colab links into every notebook: `make sync`, or `python -m tools.setup_cell`.

A notebook that is opened alone can import nothing of ours yet, so each one carries the same setup cell. Its text stands
here, the repository's address in `pyproject.toml` under `[project.urls]`; a test sees that the notebooks agree.
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat

from nuclei_utils.files import written_whole

ROOT = Path(__file__).resolve().parent.parent
TAGS = ["setup", "nbval-ignore-output"]  # versions and device differ from machine to machine
COLAB_LINK = re.compile(r"https://colab\.research\.google\.com/github/[^\s)\"'>]+\.ipynb")

# NumPy, Keras and TensorFlow are named with the versions found, so that pip refuses rather than replaces them.
TEMPLATE = """\
from importlib import metadata, util

if not util.find_spec("nuclei_utils"):  # Colab, or a folder of your own: install the package, keep the versions found
    keep = [f"{d.name}=={d.version}" for d in metadata.distributions() if d.name in ("numpy", "keras", "tensorflow")]
    %pip install --quiet {" ".join(keep)} git+ADDRESS
from nuclei_utils import training

print(training.banner())"""


def address():
    """Return the repository's address, as `pyproject.toml` states it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def setup_cell():
    """Return the text of the setup cell."""
    return TEMPLATE.replace("ADDRESS", address())


def colab_link(path):
    """Return the address that opens a notebook of the repository in Colab."""
    repository = address().removeprefix("https://github.com/")
    relative = Path(path).resolve().relative_to(ROOT).as_posix()
    return f"https://colab.research.google.com/github/{repository}/blob/main/{relative}"


def notebooks():
    """Return the paths of the course's notebooks in order, then of the solutions."""
    folder = ROOT / "notebooks"
    return sorted(folder.glob("*.ipynb")) + sorted(folder.glob("solutions/*.ipynb"))


def sync(notebook, path):
    """Put the setup cell, its tags and the Colab links into a notebook.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Changed in place.
    path : path-like
        Where in the repository the notebook lies.

    Returns
    -------
    bool
        Whether anything was changed.

    Raises
    ------
    ValueError
        If the notebook has no code cell to put it into.
    """
    before = nbformat.writes(notebook)
    cell = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    if cell is None:
        raise ValueError(f"{path} has no code cell; its first one is to be the setup cell: add an empty one")
    cell.source = setup_cell()
    cell.metadata["tags"] = TAGS
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = COLAB_LINK.sub(colab_link(path), cell.source)
    return nbformat.writes(notebook) != before


def main():
    """Bring every notebook up to date, and name those that were changed."""
    for path in notebooks():
        notebook = nbformat.read(path, as_version=4)
        if sync(notebook, path):
            write(notebook, path)
            print(f"changed {path.relative_to(ROOT)}")


def write(notebook, path):
    """Write a notebook, so that no half-written one is ever there."""
    with written_whole(path) as aside:
        nbformat.write(notebook, aside)


if __name__ == "__main__":
    sys.exit(main())
