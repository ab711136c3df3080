"""Write the constraint files of the supported library versions, and run the tests with each set of versions.

    python -m tools.versions write          write tools/constraints/oldest.txt from pyproject.toml
    python -m tools.versions write --colab  write tools/constraints/colab.txt too, from Colab's published list
    python -m tools.versions test           run all tests with each set of versions (`make test-versions`)

A set of versions is "newest" (the versions that pip chooses) or a constraint file for pip. The first lines of the file
name the source of the versions. The line `# Python 3.11 3.12` names the Pythons that have wheels of all versions.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections import Counter
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "tools" / "constraints"
BUILD = ROOT / "build" / "versions"
SETS = ("newest", "colab", "oldest")
TESTED = ("tests", "notebooks", "nuclei_utils")  # unit tests, notebooks, doctests
COLAB_LIST = "https://raw.githubusercontent.com/googlecolab/backend-info/main/pip-freeze.txt"
COLAB_PYTHON = "3.13"
LOWER_END = re.compile(r"([\w-]+)>=([\d.]+)$")
# Pythons with a wheel of every library at its lower end. NumPy 2.0 and TensorFlow 2.19 have none for Python 3.13.
OLDEST_PYTHONS = "3.11 3.12"
# Colab has an older Jupyter. Only its IPython changes what a reader sees, so the other packages are left out.
JUPYTER = re.compile(r"(ipykernel|jupyter|nbconvert|nbclient|notebook|traitlets|tornado|pyzmq)", re.IGNORECASE)


def project():
    """Return the `[project]` table of `pyproject.toml`."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pythons():
    """Return the Python versions of `pyproject.toml`, such as "3.11", in order."""
    return [text.rsplit(" ", 1)[1] for text in project()["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]


# The constraint files


def oldest(requirements):
    """Return one constraint for each requirement: `numpy>=2.0` becomes `numpy==2.0.*`.

    Parameters
    ----------
    requirements : list of str

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If a requirement is not a name with a lower end.
    """
    for requirement in requirements:
        if not LOWER_END.match(requirement):
            raise ValueError(f"pyproject.toml: expected NAME>=VERSION, found {requirement!r}")
    return [LOWER_END.sub(r"\1==\2.*", requirement) for requirement in requirements]


def oldest_file():
    """Return the text of `oldest.txt`."""
    header = [
        "# The lower ends of the dependencies in pyproject.toml, written by `python -m tools.versions write`.",
        f"# Python {OLDEST_PYTHONS}",
    ]
    return "\n".join([*header, *oldest(project()["dependencies"])]) + "\n"


def colab_file(freeze, installed, source, date):
    """Return the text of `colab.txt`: Colab's versions of the packages that this project installs.

    Parameters
    ----------
    freeze : str
        Output of `pip freeze` on Colab.
    installed : iterable of str
        Names of the distributions in an environment of this project.
    source : str
        Source of the list.
    date : str
        Date of the list, such as "2026-08-19".

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the list does not contain TensorFlow.
    """
    ours = {_normalised(name) for name in installed}
    versions = {}
    for line in freeze.splitlines():
        name, separator, version = line.strip().partition("==")
        if separator and _normalised(name) in ours and not JUPYTER.match(name):
            versions[_normalised(name)] = version.split(";")[0].strip()
    if "tensorflow" not in versions:
        raise ValueError(f"{source}: found no line tensorflow==VERSION, expected the output of pip freeze on Colab")
    header = [
        f"# What Google Colab had on {date}, of the libraries that this project installs ({source}).",
        "# Written by `python -m tools.versions write --colab`.",
        f"# Python {COLAB_PYTHON}",
    ]
    return "\n".join([*header, *(f"{name}=={version}" for name, version in sorted(versions.items()))]) + "\n"


def _normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def write(colab=None, date=None):
    """Write `oldest.txt`, and `colab.txt` if `colab` is the address or file of a list."""
    CONSTRAINTS.mkdir(exist_ok=True)
    (CONSTRAINTS / "oldest.txt").write_text(oldest_file(), encoding="utf-8")
    if not colab:
        return
    if Path(colab).is_file():
        freeze, source = Path(colab).read_text(encoding="utf-8"), "pip freeze, googlecolab/backend-info"
    else:
        with urllib.request.urlopen(colab, timeout=60) as answer:
            freeze, source = answer.read().decode(), colab
    installed = [distribution.name for distribution in metadata.distributions()]
    text = colab_file(freeze, installed, source, date or datetime.date.today().isoformat())
    (CONSTRAINTS / "colab.txt").write_text(text, encoding="utf-8")


# Testing


def supported(versions):
    """Return the Pythons that a set of versions runs on."""
    if versions == "newest":
        return pythons()
    text = (CONSTRAINTS / f"{versions}.txt").read_text(encoding="utf-8")
    return re.search(r"^# Python (.+)$", text, re.MULTILINE)[1].split()


def interpreter(python):
    """Return the path of the Python of a version such as "3.12", or None.

    The function tries `python3.12` on the path, the present Python, and all versions of pyenv.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{python}"), sys.executable, *sorted(pyenv.glob(f"{python}.*/bin/python"))]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        answer = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if answer.returncode == 0 and answer.stdout.strip() == python:
            return str(candidate)
    return None


def plan(sets, wanted):
    """Return the pairs (set, Python) to test, and the Pythons that are not on this machine.

    Parameters
    ----------
    sets : sequence of str
        Names from `SETS`.
    wanted : sequence of str
        Pythons to test, or "first": one Python for each set.

    Returns
    -------
    pairs : list of tuple of str
    missing : list of str
    """
    paths = {python: interpreter(python) for python in pythons()}
    pairs = []
    for name in sets:
        present = [python for python in supported(name) if paths.get(python)]
        if "first" in wanted:
            # another Python is better than no test
            present = present[:1] or [python for python in paths if paths[python]][-1:]
        else:
            present = [python for python in present if python in wanted]
        pairs += [(name, python, paths[python]) for python in present]
    return pairs, [python for python in paths if not paths[python]]


def run(name, python, executable):
    """Test one set of versions on one Python in a new environment; return a row of the table."""
    folder = BUILD / f"{name}-{python}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = (folder / "log.txt").open("w", encoding="utf-8")
    row = {"set": name, "python": python}
    bin_folder = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = [] if name == "newest" else ["--constraint", str(CONSTRAINTS / f"{name}.txt")]
    install = [bin_folder / "python", "-m", "pip", "install", "--editable", ".[notebooks,test]", *constraints]

    def stage(what, *command, **variables):
        print(f"{name} on Python {python}: {what} ...", flush=True)
        start = time.monotonic()
        status = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        row[f"{what} s"] = row.get(f"{what} s", 0) + round(time.monotonic() - start)
        return status.returncode

    with log:
        if stage("install", executable, "-m", "venv", folder / "venv") or stage("install", *install):
            return row | {"exit status": "not installed"}
        libraries = ("tensorflow", "keras", "numpy")
        script = f"from importlib.metadata import version; print(*map(version, {libraries}))"
        answer = subprocess.run([bin_folder / "python", "-c", script], capture_output=True, text=True, check=True)
        row |= dict(zip(libraries, answer.stdout.split(), strict=True))
        report = folder / "report.xml"
        command = [
            bin_folder / "python",
            "-m",
            "pytest",
            "--numprocesses=auto",
            "--nbval",
            *TESTED,
        ]
        row["exit status"] = stage("tests", *command, f"--junitxml={report}")
        row |= counts(report)
    return row


def counts(report):
    """Count passed, failed and skipped tests and notebook cells in a report of pytest (JUnit XML)."""
    if not report.is_file():
        return {}
    numbers = {"unit tests": Counter(), "notebook cells": Counter()}
    for case in ElementTree.parse(report).iter("testcase"):
        what = "notebook cells" if ".ipynb" in case.get("classname") else "unit tests"
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        numbers[what][next((outcome[child.tag] for child in case if child.tag in outcome), "passed")] += 1
    return {
        what: ", ".join(f"{number[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        for what, number in numbers.items()
    }


def is_good(row):
    """Return True if tests ran and all of them passed."""
    return row.get("exit status") == 0 and "notebook cells" in row


def table(rows):
    """Return rows as a Markdown table."""
    columns = ["set", "python", "tensorflow", "keras", "numpy", "unit tests", "notebook cells"]
    columns += ["exit status", "install s", "tests s"]
    lines = [columns, ["---"] * len(columns), *([str(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv=None):
    """Write the constraint files, or test the sets of versions; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="write the constraint files")
    writing.add_argument(
        "--colab",
        nargs="?",
        const=COLAB_LIST,
        metavar="LIST",
        help="address or file of pip freeze on Colab",
    )
    writing.add_argument("--date", help="date of the list if it is older, such as 2026-08-19")
    testing = commands.add_parser("test", help="run all unit tests and notebooks with each set of versions")
    testing.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    testing.add_argument(
        "--pythons", nargs="+", default=pythons(), metavar="3.X", help="or 'first': one Python for each set"
    )
    args = parser.parse_args(argv)
    if args.command == "write":
        write(args.colab, args.date)
        return 0
    pairs, missing = plan(args.sets, args.pythons)
    rows = [run(*pair) for pair in pairs]
    print(table(rows))
    if missing:
        print(f"Not on this machine, so not tested: Python {', '.join(missing)}")
    failed = [row for row in rows if not is_good(row)]
    for row in failed:
        log = (BUILD / f"{row['set']}-{row['python']}" / "log.txt").read_text(encoding="utf-8", errors="replace")
        print(f"\nThe end of the log of {row['set']} on Python {row['python']}:\n{log[-6000:]}")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
