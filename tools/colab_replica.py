"""Run notebooks as Google Colab would: `python -m tools.colab_replica --python PATH [--whole] [NOTEBOOK ...]`.

PATH is the Python of an environment with Colab's libraries. For each notebook, the command makes a fresh environment
with the same libraries but without `nuclei_utils`, and an empty working folder. There it executes the setup cell, or,
with `--whole`, all cells with the profile "smoke". In place of the repository's address, git uses this working tree,
committed or not. The command prints one line for each notebook. The exit status is 1 if a cell fails, or if the setup
cell removes or replaces a package.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import nbformat
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from tools.course import first_line
from tools.setup_cell import ROOT, address, notebooks, tag

PACKAGE = "nuclei_utils"


class Trial(NamedTuple):
    """Result of one notebook.

    Attributes
    ----------
    notebook : nbformat.NotebookNode
        Notebook with its outputs.
    seconds : float
        Time from the start of the kernel to the end of the last cell.
    added, lost : list of str
        Packages that exist only after the run, and only before the run.
    failures : list of str
        One text for each failed cell.
    """

    notebook: nbformat.NotebookNode
    seconds: float
    added: list
    lost: list
    failures: list


def local_release(folder):
    """Make a git repository of the present files, with the tag of the release.

    Parameters
    ----------
    folder : pathlib.Path
        Folder that this function makes.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    identity = ["-c", "user.name=replica", "-c", "user.email=replica@example.org"]
    commit = [*identity, "commit", "--quiet", "--message", "working tree"]
    for command in (["init", "--quiet"], ["add", "--all"], commit, ["tag", tag()]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def environment_without_package(python, folder):
    """Make an environment with all libraries of another environment, but without `nuclei_utils`.

    The libraries are links to files outside of the new environment, so that its pip cannot change them.

    Parameters
    ----------
    python : path-like
        Python of the other environment.
    folder : pathlib.Path
        Folder that this function makes.

    Returns
    -------
    pathlib.Path
        Python of the new environment.
    """
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    installed = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    libraries = folder / "libraries"
    libraries.mkdir(parents=True)
    for entry in Path(installed).iterdir():
        if PACKAGE not in entry.name:
            (libraries / entry.name).symlink_to(entry)
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
    return folder / "venv" / "bin" / "python"


def installed_packages(python):
    """Return the installed packages, a set of strings such as "numpy==2.1.3"."""
    command = [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@contextmanager
def address_leads_to(clone):
    """Let git use a local repository in place of the course's address, and hide this working tree from Python."""
    number = int(os.environ.get("GIT_CONFIG_COUNT", 0))
    changes = {
        "GIT_CONFIG_COUNT": str(number + 1),
        f"GIT_CONFIG_KEY_{number}": f"url.{Path(clone).as_uri()}.insteadOf",
        f"GIT_CONFIG_VALUE_{number}": address(),
    }
    with mock.patch.dict(os.environ, changes):
        os.environ.pop("PYTHONPATH", None)
        yield


def execute(notebook, python, folder):
    """Execute a notebook in place with a kernel of another Python.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Notebook that receives the outputs. A failed cell does not stop the other cells.
    python : path-like
        Python of the kernel.
    folder : pathlib.Path
        Working folder of the kernel.
    """
    with tempfile.TemporaryDirectory() as specifications:
        (Path(specifications) / "replica").mkdir()
        kernel = {
            "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "replica",
            "language": "python",
        }
        (Path(specifications) / "replica" / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
        manager = KernelManager(
            kernel_name="replica", kernel_spec_manager=KernelSpecManager(kernel_dirs=[specifications])
        )
        client = NotebookClient(
            notebook, km=manager, timeout=None, allow_errors=True, resources={"metadata": {"path": str(folder)}}
        )
        # hide the messages of the kernel's process; the outputs of the cells stay in the notebook
        client.execute(stderr=subprocess.DEVNULL)


def failed_cells(notebook):
    """Return one text for each failed cell, apart from cells with the tag "raises-exception"."""
    failures = []
    for number, cell in enumerate(notebook.cells):
        if "raises-exception" in cell.metadata.get("tags", []):
            continue
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                failures.append(f"cell {number} ({first_line(cell.source)}): {output.ename}: {output.evalue}"[:300])
    return failures


def try_notebook(path, python, clone, whole=False):
    """Execute a notebook, or only its setup cell, in a fresh environment and an empty folder.

    Parameters
    ----------
    path : pathlib.Path
        Path of the notebook.
    python : path-like
        Python of an environment with the libraries to use.
    clone : path-like
        Git repository with the tag of the release (`local_release`).
    whole : bool
        If True, all cells are executed.

    Returns
    -------
    Trial
    """
    notebook = nbformat.read(path, as_version=4)
    if not whole:
        notebook.cells = [next(cell for cell in notebook.cells if cell.cell_type == "code")]
    with tempfile.TemporaryDirectory() as temporary, address_leads_to(clone):
        fresh = environment_without_package(python, Path(temporary) / "environment")
        folder = Path(temporary) / "empty"
        folder.mkdir()
        before = installed_packages(fresh)
        start = time.monotonic()
        execute(notebook, fresh, folder)
        seconds = time.monotonic() - start
        after = installed_packages(fresh)
    return Trial(notebook, seconds, sorted(after - before), sorted(before - after), failed_cells(notebook))


def main(argv=None):
    """Try the named notebooks, or all notebooks; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.colab_replica", description="Run notebooks as Colab would.")
    parser.add_argument("--python", required=True, help="Python of an environment with Colab's libraries")
    parser.add_argument("--whole", action="store_true", help="execute all cells, with the profile smoke")
    parser.add_argument(
        "notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: the notebooks of the course"
    )
    args = parser.parse_args(argv)
    os.environ["NUCLEI_PROFILE"] = "smoke"
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        local_release(clone)
        for path in args.notebooks or notebooks():
            trial = try_notebook(path, args.python, clone, args.whole)
            verdict = "FAILED" if trial.failures or trial.lost else "ok"
            added = ", ".join(trial.added) or "nothing"
            print(f"{path.stem}: {verdict}, {trial.seconds:.0f} s; added {added}", flush=True)
            for problem in [f"removed or replaced: {package}" for package in trial.lost] + trial.failures:
                print(f"    {problem}", flush=True)
            status = status or int(verdict == "FAILED")
    return status


if __name__ == "__main__":
    sys.exit(main())
