"""Print pip constraints for the oldest libraries that the package supports: `python -m tools.oldest > oldest.txt`.

They are the lower ends of the ranges in `pyproject.toml`, so that what it promises is what is tested. Jupyter and the
tools for testing stay free. Needs nothing installed.
"""

import re
import tomllib
from pathlib import Path

LOWER_END = re.compile(r"([\w-]+)>=([\d.]+)$")


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


if __name__ == "__main__":
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    print(*oldest(tomllib.loads(text)["project"]["dependencies"]), sep="\n")
