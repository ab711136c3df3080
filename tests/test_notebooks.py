import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tools import course, setup_cell

NOTEBOOKS = setup_cell.notebooks()
ROOT = setup_cell.ROOT


def notebook_of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_setup_cell_and_links_are_in_step(path):
    assert not setup_cell.sync(nbformat.read(path, as_version=4), path), "run `make sync`, and commit what it changed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}, "run `make outputs`"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make outputs`"


def test_sync_puts_in_the_address():
    notebook = notebook_of("old", "print(1)")
    link = "https://colab.research.google.com/github/someone/else/blob/main/notebooks/x.ipynb"
    notebook.cells.append(nbformat.v4.new_markdown_cell(f"[Colab]({link})"))
    assert setup_cell.sync(notebook, ROOT / "notebooks" / "01_a.ipynb")
    assert f"git+{setup_cell.address()}" in notebook.cells[0].source
    assert notebook.cells[1].source == "print(1)"
    assert notebook.cells[2].source == f"[Colab]({setup_cell.colab_link(ROOT / 'notebooks' / '01_a.ipynb')})"
    assert not setup_cell.sync(notebook, ROOT / "notebooks" / "01_a.ipynb")


def test_course_names_the_cell_that_broke_and_keeps_what_ran(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "OUT", tmp_path / "build")
    good = notebook_of("print(6 * 7)")
    good.cells.append(
        nbformat.v4.new_markdown_cell("[next](02_bad.ipynb#top), [abroad](https://example.org/02_bad.ipynb)")
    )
    nbformat.write(good, folder / "01_good.ipynb")
    nbformat.write(notebook_of("x = 1", "# a comment\n1 / 0", "print('never')"), folder / "02_bad.ipynb")

    assert course.main([str(path) for path in sorted(folder.iterdir())]) == 1

    printed = capsys.readouterr()
    assert "01_good.ipynb done after 0 min" in printed.out
    assert "02_bad.ipynb broke in cell 1, which begins: 1 / 0\nZeroDivisionError: division by zero" in printed.err
    assert nbformat.read(tmp_path / "build" / "01_good.ipynb", 4).cells[0].outputs[0].text == "42\n"
    assert nbformat.read(tmp_path / "build" / "02_bad.ipynb", 4).cells[1].outputs[0].ename == "ZeroDivisionError"
    page = (tmp_path / "build" / "01_good.html").read_text(encoding="utf-8")
    assert 'href="02_bad.html#top"' in page
    assert 'href="https://example.org/02_bad.ipynb"' in page


def test_course_says_when_a_kernel_died(tmp_path):
    notebook = notebook_of("x = 1", "import os; os._exit(1)")
    assert course.execute(notebook, tmp_path, tmp_path / "dies.log").startswith(
        "cell 1, which begins: import os; os._exit(1)\nthe kernel died"
    )


@pytest.fixture
def bare_environment(tmp_path):
    """Make an environment that has every library of this one, but not the package; return its Python.

    The libraries are linked rather than installed, outside of the environment, where its pip cannot touch them.
    """
    installed = Path(nbformat.__file__).parent.parent
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for entry in installed.iterdir():
        if "nuclei_utils" not in entry.name:
            (libraries / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
    return tmp_path / "venv" / "bin" / "python"


@pytest.fixture
def local_clone(tmp_path):
    """Make a git repository of the files as they are here, committed or not; return its folder."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    clone = tmp_path / "clone"
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "as it is"]):
        subprocess.run(["git", *command], cwd=clone, check=True)
    return clone


VERSIONS = "from importlib.metadata import version; print(*map(version, ['tensorflow', 'keras', 'numpy']))"
WHERE = """
from pathlib import Path
import nuclei_utils
print(Path(nuclei_utils.__file__))
print((Path(nuclei_utils.__file__).parent / "assets" / "sample.zip").is_file())
"""
EXECUTE = """
import nbformat, nbclient
notebook = nbformat.read("alone.ipynb", 4)
try:
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
finally:
    nbformat.write(notebook, "alone.ipynb")
"""


@pytest.mark.skipif(os.name == "nt", reason="makes links, which Windows allows only to administrators")
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_notebook_alone_in_an_empty_folder_gets_the_package_and_replaces_nothing(
    tmp_path, bare_environment, local_clone
):
    folder = tmp_path / "empty"
    folder.mkdir()
    nbformat.write(notebook_of(VERSIONS, setup_cell.setup_cell(), VERSIONS, WHERE), folder / "alone.ipynb")
    environment = {
        **os.environ,
        # git takes the local clone wherever the repository's address is asked for
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{local_clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": setup_cell.address(),
        # nothing is to be fetched: what the build needs is among the libraries
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip has it, 0 says: no isolation
        "PIP_NO_INDEX": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    subprocess.run([bare_environment, "-c", EXECUTE], cwd=folder, env=environment, check=True)

    before, setup, after, where = nbformat.read(folder / "alone.ipynb", 4).cells
    assert before.outputs[0].text == after.outputs[0].text
    tensorflow = after.outputs[0].text.split()[0]
    assert tensorflow in "".join(output.text for output in setup.outputs), "the banner names TensorFlow's version"
    package, sample = where.outputs[0].text.splitlines()
    assert Path(package).is_relative_to(tmp_path / "venv")
    assert sample == "True"
