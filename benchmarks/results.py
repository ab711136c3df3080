"""Write results with what is needed to judge them: command, date, data, profile, versions, hardware, time."""

import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def circumstances():
    """Return what the figures of this run depend on, as a dictionary."""
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if (cpu.is_file())
        else [platform.processor()]
    )
    return {
        "command": " ".join(["python -m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "hardware": f"{names[0]}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("nuclei-utils", "tensorflow", "keras", "numpy")},
        "python": platform.python_version(),
    }


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
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({**circumstances(), **figures}, indent=1) + "\n")
    aside.replace(path)
    return path
