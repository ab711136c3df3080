"""Read and write result files: named runs, each with its command, commit, hardware and versions.

A file is `{"data": …, "runs": {name: run}}`. A run is a dictionary: first the fields of `circumstances()` (command,
commit, hardware, versions), then settings and scores.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from nuclei_utils.files import atomic_write

FOLDER = Path(__file__).parent / "results"
VARIABLES = ("NUCLEI_DATA", "NUCLEI_PROFILE")  # NUCLEI_HOME depends on the machine and changes no result
CPU_INFO = Path("/proc/cpuinfo")


def read(file: str) -> dict[str, dict]:
    """Return the runs in a result file by their names; an empty dict if the file does not exist."""
    path = FOLDER / f"{file}.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else {}


def add(file: str, name: str, run: dict, **common) -> Path:
    """Add a run to a result file, and return the path of the file.

    A run of the same name is replaced. The file is read again first, because another process may have added to it.

    Parameters
    ----------
    file : str
        Name of the file without its extension.
    name : str
        Name of the run.
    run : dict
        Settings and scores, as JSON can hold them.
    **common
        Values that all runs share, such as the data set.
    """
    path = FOLDER / f"{file}.json"
    runs = {**read(file), name: {**circumstances(), **run}}
    with atomic_write(path) as partial_path:
        partial_path.write_text(json.dumps({**common, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return path


def add_missing(file: str, jobs: dict[str, Callable[[], dict]], **common) -> None:
    """Call the function of each run that is not in a result file, and add what it returns."""
    for name, job in jobs.items():
        if name not in read(file):
            print(f"\n{name}", flush=True)
            add(file, name, job(), **common)


def circumstances() -> dict:
    """Return the command, date, commit, hardware and versions of this process.

    The commit is None outside of a git checkout. Changes that are not committed do not show.
    """
    return {
        "command": command(),
        "date": date.today().isoformat(),
        "commit": commit(),
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("nuclei-utils", "tensorflow", "keras", "numpy")},
        "python": platform.python_version(),
    }


def command() -> str:
    """Return the command line of this process, with the environment variables that choose data and profile."""
    variables = [f"{name}={shlex.quote(os.environ[name])}" for name in VARIABLES if os.environ.get(name)]
    return " ".join([*variables, "python -m", sys.modules["__main__"].__spec__.name, shlex.join(sys.argv[1:])]).rstrip()


def commit() -> str | None:
    """Return the short name of the commit that is checked out."""
    if shutil.which("git") is None:
        return None
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=FOLDER.parent, capture_output=True, text=True, check=False).stdout.strip() or None


def processor() -> str:
    """Return the name of the processor, or its architecture if the machine tells no name."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*names, platform.processor()]), platform.machine())


def load_average() -> float | None:
    """Return how many processes are busy, on average over the last minute; None on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
