import base64
import os
import shutil
import sys
from importlib import metadata
from io import BytesIO

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from jupyter_server.services.contents.filemanager import FileContentsManager
from PIL import Image

from nuclei_utils import __version__, notebook
from tools import colab_replica, course, setup_cell

NOTEBOOKS = setup_cell.notebooks()
ROOT = setup_cell.ROOT


def notebook_of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_setup_cell_and_links_are_in_step(path):
    assert not setup_cell.sync(nbformat.read(path, as_version=4), path), "run `make sync`, and commit the changes"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size <= 2 * 2**20, "GitHub shows no larger notebook well"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make outputs`"


def test_sync_puts_in_the_address():
    notebook = notebook_of("old", "print(1)")
    link = "https://colab.research.google.com/github/someone/else/blob/main/notebooks/x.ipynb"
    notebook.cells.append(nbformat.v4.new_markdown_cell(f"[Colab]({link})"))
    assert setup_cell.sync(notebook, ROOT / "notebooks" / "01_a.ipynb")
    assert f"git+{setup_cell.address()}@v{__version__}" in notebook.cells[0].source
    assert notebook.cells[1].source == "print(1)"
    assert notebook.cells[2].source == f"[Colab]({setup_cell.colab_link('notebooks/01_a.ipynb')})"
    assert notebook.metadata == setup_cell.METADATA
    assert not setup_cell.sync(notebook, ROOT / "notebooks" / "01_a.ipynb")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opening_and_saving_in_jupyter_changes_nothing(path, tmp_path):
    shutil.copy(path, tmp_path / "a.ipynb")
    manager = FileContentsManager(root_dir=str(tmp_path), pre_save_hook="tools.setup_cell.keep_version")
    model = manager.get("a.ipynb")
    model["content"]["metadata"]["language_info"]["version"] = "3.99.0"  # as the reader's kernel says
    manager.save(model, "a.ipynb")
    assert (tmp_path / "a.ipynb").read_bytes() == path.read_bytes()


def test_readme_links_to_the_release_of_every_notebook():
    text = setup_cell.README.read_text(encoding="utf-8")
    links = {link[0] for link in setup_cell.COLAB_LINK.finditer(text)}
    paths = [path.relative_to(ROOT).as_posix() for path in NOTEBOOKS if path.parent.name == "notebooks"]
    assert links == {setup_cell.colab_link(path) for path in paths}, "run `make sync`, and commit the changes"


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.parent.name == "notebooks"], ids=lambda path: path.stem
)
def test_each_exercise_has_a_box_and_a_solution(path):
    exercises = exercises_of(path)
    text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    boxes = [box.get_text() for box in BeautifulSoup(text, "html.parser").select("div.alert")]
    assert len(boxes) == len(exercises) > 0
    for name, box in zip(exercises, boxes, strict=True):
        assert f"Exercise {name}" in box
    assert exercises_of(path.parent / "solutions" / f"{path.stem[:2]}_solutions.ipynb") == exercises


def exercises_of(path):
    """Return the numbers of a notebook's exercises, in order."""
    cells = nbformat.read(path, as_version=4).cells
    return list(dict.fromkeys(cell.metadata["exercise"] for cell in cells if "exercise" in cell.metadata))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_goal_picture_is_the_packages_and_has_its_description(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert "](../" not in cell.source.replace("](../0", "").replace("](../1", ""), (
            "the server cannot show a picture outside of its root"
        )
        if not cell.source.startswith("notebook.show_goal("):
            continue
        (output,) = cell.outputs
        name = cell.source.split('"')[1]
        assert base64.b64decode(output.data["image/jpeg"]) == (notebook.PICTURES / name).read_bytes(), (
            "run `make outputs`"
        )
        assert output.metadata["image/jpeg"]["alt"] == output.data["text/plain"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_packing_changes_no_pixel(mode):
    pixels = np.random.default_rng(0).integers(0, 4, (20, 30, len(mode)), dtype=np.uint8).squeeze()
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
    before = base64.b64encode(stream.getvalue()).decode()
    after = course.packed(before)
    assert len(after) < len(before)
    assert np.array_equal(np.asarray(Image.open(BytesIO(base64.b64decode(after)))), pixels)


def test_packing_gives_a_large_picture_a_palette():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    packed = Image.open(BytesIO(base64.b64decode(course.packed(base64.b64encode(stream.getvalue()).decode()))))
    assert (packed.mode, packed.size) == ("P", (500, 400))


def test_course_names_the_failed_cell_and_keeps_earlier_outputs(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "OUT", tmp_path / "build")
    nbformat.write(notebook_of("print(6 * 7)"), folder / "01_good.ipynb")
    nbformat.write(notebook_of("x = 1", "# a comment\n1 / 0", "print('never')"), folder / "02_bad.ipynb")

    assert course.main([str(path) for path in sorted(folder.iterdir())]) == 1

    printed = capsys.readouterr()
    assert "01_good.ipynb done after 0 min" in printed.out
    assert "02_bad.ipynb failed in cell 1: 1 / 0\nZeroDivisionError: division by zero" in printed.err
    assert nbformat.read(tmp_path / "build" / "01_good.ipynb", 4).cells[0].outputs[0].text == "42\n"
    assert nbformat.read(tmp_path / "build" / "02_bad.ipynb", 4).cells[1].outputs[0].ename == "ZeroDivisionError"


def test_course_names_a_dead_kernel(tmp_path):
    notebook = notebook_of("x = 1", "import os; os._exit(1)")
    assert course.execute(notebook, tmp_path, tmp_path / "dies.log").startswith(
        "cell 1: import os; os._exit(1)\nthe kernel died"
    )


@pytest.mark.skipif(os.name == "nt", reason="makes links, which Windows allows only to administrators")
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_notebook_alone_in_an_empty_folder_gets_the_package_and_replaces_nothing(tmp_path, monkeypatch):
    # the build fetches nothing: its requirements are among the libraries
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # as pip has it, 0 says: no isolation
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    goal = f"notebook.show_goal({min(path.name for path in notebook.PICTURES.iterdir())!r}, alt='a picture')"
    sample = "from nuclei_utils import datasets\nprint(datasets.__file__, len(datasets.load('sample')))"
    nbformat.write(notebook_of(setup_cell.setup_cell(), goal, sample), tmp_path / "alone.ipynb")
    colab_replica.local_release(tmp_path / "clone")

    trial = colab_replica.try_notebook(tmp_path / "alone.ipynb", sys.executable, tmp_path / "clone", whole=True)

    assert trial.failures == []
    assert trial.lost == []
    assert trial.added == [f"nuclei-utils=={__version__}"]
    setup, goal, where = trial.notebook.cells
    printed = "".join(output.text for output in setup.outputs)
    assert f"tensorflow {metadata.version('tensorflow')}" in printed
    assert "image/jpeg" in goal.outputs[0].data
    assert not where.outputs[0].text.startswith(str(ROOT)), "the package of the release, not that of this folder"
    assert where.outputs[0].text.endswith(" 40\n")


@pytest.mark.skipif(os.name == "nt", reason="makes links, which Windows allows only to administrators")
def test_replica_has_the_libraries_but_not_the_package(tmp_path):
    python = colab_replica.environment_without_package(sys.executable, tmp_path / "replica")
    packages = colab_replica.installed_packages(python)
    assert f"numpy=={np.__version__}" in packages
    assert not [package for package in packages if package.startswith("nuclei")]


def test_replica_names_unexpected_failures_only(tmp_path):
    notebook = notebook_of("print(1)", "1 / 0", "[][0]")
    notebook.cells[2].metadata["tags"] = ["raises-exception"]
    colab_replica.execute(notebook, sys.executable, tmp_path)
    (failure,) = colab_replica.failed_cells(notebook)
    assert failure.startswith("cell 1 (1 / 0): ZeroDivisionError")
