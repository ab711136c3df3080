import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tools.oldest import oldest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))


def test_conda_environment_is_in_step_with_pyproject():
    # The packages are listed in pyproject.toml alone: the environment installs ours with the extras of the course.
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, requirements = environment["dependencies"]
    after_newest = f"3.{int(PYTHONS[-1].split('.')[1]) + 1}"
    assert python == f"python{PROJECT['requires-python']},<{after_newest}"
    assert pip == "pip"
    extras = [name for name in PROJECT["optional-dependencies"] if name != "deploy"]  # not to be had on every machine
    assert requirements == {"pip": [f"--editable .[{','.join(extras)}]"]}


def test_workflow_runs_every_python_that_pyproject_names():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["newest"]["strategy"]["matrix"]["python"] == PYTHONS
    assert workflow["jobs"]["oldest"]["steps"][1]["with"]["python-version"] == PYTHONS[0]


def test_makefile_asks_for_the_python_that_pyproject_asks_for():
    lower_end = PROJECT["requires-python"].removeprefix(">=").replace(".", ", ")
    assert f"sys.version_info < ({lower_end})" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_ranges_take_in_what_colab_has():
    constraints = oldest(PROJECT["dependencies"])
    assert {"tensorflow==2.19.*", "keras==3.10.*", "numpy==2.0.*"} <= set(constraints)


def test_requirement_without_a_lower_end_is_refused():
    with pytest.raises(ValueError, match=r"found 'numpy==2\.0'"):
        oldest(["pandas>=2.2", "numpy==2.0"])


def test_wheel_carries_the_sample_the_network_and_nothing_that_is_not_the_package(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "assets/sample.zip",
        "assets/instance_unet.weights.h5",
        "assets/splits/sample.csv",
        "assets/splits/stage1_train.csv",
        "dsb2018/README.md",
        "dsb2018/TAGS.txt",
        "dsb2018/CITATIONS.bib",
    }
    assert not {f"nuclei_utils/{name}" for name in wanted} - names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nuclei_utils"}
    assert wheel.stat().st_size < 9 * 2**20, "the sample stays under 4 MB, the network under 5, all the rest is text"


def test_import_is_quick_and_loads_no_tensorflow():
    code = """if True:
        import sys, time
        start = time.perf_counter()
        import nuclei_utils
        print(time.perf_counter() - start, *{"tensorflow", "keras", "torch", "jax"} & set(sys.modules))
    """
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(3)]
    seconds, *heavy = min(run.stdout.split() for run in runs)
    assert not heavy
    assert float(seconds) < 0.5
