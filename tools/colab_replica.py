"""Run notebooks as Google Colab would: `python -m tools.colab_replica --python PATH [--whole] [NOTEBOOK ...]`.

PATH is the Python of an environment with Colab's libraries. For each notebook the command makes a fresh environment
with the same libraries but without `nuclei_utils`, and an empty working folder. There it executes the setup cell, or
with `--whole` all cells at the min_size profile. git takes this working tree, committed or not, where the setup cell
names the repository's address. The command prints a line for each notebook. The exit status is not 0 if a cell fails
or if the setup cell removes or replaces a package.
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
    """How a notebook ran.

    Attributes
    ----------
    notebook : nbformat.NotebookNode
        With the outputs.
    seconds : float
        From the start of the kernel to the end of the last cell.
    added, lost : list of str
        Packages that are there only after the run, and only before the run.
    failures : list of str
        A text for each cell that failed.
    """

    notebook: nbformat.NotebookNode
    seconds: float
    added: list
    lost: list
    failures: list


def local_release(folder):
    """Make a git repository of the files as they are here, with the tag of the release.

    Parameters
    ----------
    folder : pathlib.Path
        Made by this function.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    identity = ["-c", "user.name=replica", "-c", "user.email=replica@example.org"]
    commit = [*identity, "commit", "--quiet", "--message", "as it is"]
    for command in (["init", "--quiet"], ["add", "--all"], commit, ["tag", tag()]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def environment_without_package(python, folder):
    """Make an environment with every library of another one, but without the package.

    The libraries are linked, and lie outside of the new environment, so that its pip cannot change them.

    Parameters
    ----------
    python : path-like
        The Python of the other environment.
    folder : pathlib.Path
        Made by this function.

    Returns
    -------
    pathlib.Path
        The Python of the new environment.
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
    """Return the installed packages, a set of texts such as "numpy==2.1.3"."""
    command = [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@contextmanager
def address_leads_to(clone):
    """Let git take a local repository wherever the course's address is asked for, and hide this working tree."""
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
        Gets the outputs. A cell that fails does not stop the others.
    python : path-like
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
        client.execute(
            stderr=subprocess.DEVNULL
        )  # what the kernel's process says; the cells' own stays in the notebook


def failed_cells(notebook):
    """Return what failed, a text for each cell; cells that are meant to fail do not count."""
    failures = []
    for number, cell in enumerate(notebook.cells):
        if "raises-exception" in cell.metadata.get("tags", []):
            continue
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                failures.append(f"cell {number} ({first_line(cell.source)}): {output.ename}: {output.evalue}"[:300])
    return failures


def try_notebook(path, python, clone, whole=False):
    """Execute a notebook, or its setup cell alone, in a fresh environment and an empty folder.

    Parameters
    ----------
    path : pathlib.Path
        The notebook.
    python : path-like
        The Python of an environment with the libraries to use.
    clone : path-like
        A git repository with the tag of the release (`local_release`).
    whole : bool
        Execute all cells, not only the setup cell.

    Returns
    -------
    Trial
    """
    notebook = nbformat.read(path, as_version=4)
    if not whole:
        notebook.cells = [next(cell for cell in notebook.cells if cell.cell_type == "code")]
    with tempfile.TemporaryDirectory() as place, address_leads_to(clone):
        fresh = environment_without_package(python, Path(place) / "environment")
        folder = Path(place) / "empty"
        folder.mkdir()
        before = installed_packages(fresh)
        start = time.monotonic()
        execute(notebook, fresh, folder)
        seconds = time.monotonic() - start
        after = installed_packages(fresh)
    return Trial(notebook, seconds, sorted(after - before), sorted(before - after), failed_cells(notebook))


def main(arguments=None):
    """Try the notebooks that are named, or all of them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.colab_replica", description="Run notebooks as Colab would.")
    parser.add_argument("--python", required=True, help="the Python of an environment with Colab's libraries")
    parser.add_argument("--whole", action="store_true", help="execute all cells at the min_size profile")
    parser.add_argument(
        "notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: the notebooks of the course"
    )
    options = parser.parse_args(arguments)
    os.environ["NUCLEI_PROFILE"] = "smoke"
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        local_release(clone)
        for path in options.notebooks or notebooks():
            trial = try_notebook(path, options.python, clone, options.whole)
            verdict = "FAILED" if trial.failures or trial.lost else "ok"
            added = ", ".join(trial.added) or "nothing"
            print(f"{path.stem}: {verdict}, {trial.seconds:.0f} s; added {added}", flush=True)
            for trouble in [f"removed or replaced: {package}" for package in trial.lost] + trial.failures:
                print(f"    {trouble}", flush=True)
            status = status or int(verdict == "FAILED")
    return status


if __name__ == "__main__":
    sys.exit(main())
