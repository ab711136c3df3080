"""Write results with what is needed to judge them: command, date, commit, hardware, versions."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from nuclei_utils.files import atomic_write

FOLDER = Path(__file__).parent / "results"
KNOBS = ("NUCLEI_DATA", "NUCLEI_PROFILE")  # NUCLEI_HOME says only where on this machine the data are
CPU = Path("/proc/cpuinfo")


def circumstances():
    """Return what the figures of this run depend on.

    Returns
    -------
    dict
        `command` with the variables that choose data and profile, where they are set; `date`; `commit` that was checked
        out (changes since then do not show), None where there is no git checkout; `hardware`; `versions`; `python`.
    """
    return {
        "command": command(),
        "date": date.today().isoformat(),
        "commit": commit(),
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("nuclei-utils", "tensorflow", "keras", "numpy")},
        "python": platform.python_version(),
    }


def command():
    """Return the command line of this run, as one would type it in the repository."""
    knobs = [f"{name}={shlex.quote(os.environ[name])}" for name in KNOBS if os.environ.get(name)]
    return " ".join([*knobs, "python -m", sys.modules["__main__"].__spec__.name, shlex.join(sys.argv[1:])]).rstrip()


def commit():
    """Return the short name of the commit that is checked out, None where there is no git checkout."""
    if shutil.which("git") is None:
        return None
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=FOLDER.parent, capture_output=True, text=True, check=False).stdout.strip() or None


def processor():
    """Return the name of the processor, or at least of its architecture: not every machine tells more."""
    lines = CPU.read_text().splitlines() if CPU.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*names, platform.processor()]), platform.machine())


def runs(name):
    """Return the runs that a file of results has so far, by name; none if there is no such file."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["runs"] if path.is_file() else {}


def add(name, run, figures, **common):
    """Add a run to a file of results, with the circumstances of this run beside its figures.

    The file is read again just before: another process may have added to it meanwhile.

    Parameters
    ----------
    name : str
        Name of the file, without ending.
    run : str
        Name of the run; an older one of this name is replaced.
    figures : dict
        What JSON can hold.
    common
        What is the same for all runs, such as the data.

    Returns
    -------
    pathlib.Path
        The file.
    """
    return write(name, {**common, "runs": {**runs(name), run: {**circumstances(), **figures}}})


def write(name, figures):
    """Write figures as JSON below `benchmarks/results`, whole or not at all.

    Parameters
    ----------
    name : str
        Name of the file, without ending.
    figures : dict
        What JSON can hold; `circumstances()` is put before it.

    Returns
    -------
    pathlib.Path
        The file.
    """
    path = FOLDER / f"{name}.json"
    with atomic_write(path) as aside:
        aside.write_text(json.dumps({**circumstances(), **figures}, indent=1) + "\n")
    return path
