import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import versions

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
    # deploy is not to be had on every machine; `make site` installs its own extra; the notebooks need no large, formats
    extras = [name for name in PROJECT["optional-dependencies"] if name not in ("deploy", "site", "large", "formats")]
    assert requirements == {"pip": [f"--editable .[{','.join(extras)}]"]}


def test_workflow_runs_every_python_that_pyproject_names():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    for job in workflow["jobs"].values():
        assert job["strategy"]["matrix"]["python"] == PYTHONS


def test_makefile_and_pyproject_need_the_same_python():
    lower_end = PROJECT["requires-python"].removeprefix(">=").replace(".", ", ")
    assert f"sys.version_info < ({lower_end})" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_constraints_of_the_oldest_versions_are_in_step_with_pyproject():
    assert (versions.CONSTRAINTS / "oldest.txt").read_text(encoding="utf-8") == versions.oldest_file()


def test_ranges_include_the_versions_of_colab():
    lines = (versions.CONSTRAINTS / "colab.txt").read_text(encoding="utf-8").splitlines()
    colab = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in map(Requirement, PROJECT["dependencies"]):
        name = canonicalize_name(requirement.name)
        if name in colab:  # Colab does not have all of them
            assert requirement.specifier.contains(colab[name]), f"{requirement}, Colab has {colab[name]}"


def test_requirement_without_a_lower_end_is_refused():
    with pytest.raises(ValueError, match=r"found 'numpy==2\.0'"):
        versions.oldest(["pandas>=2.2", "numpy==2.0"])


def test_colab_list_keeps_the_packages_of_the_project():
    freeze = "Tensor_Flow==1\ntensorflow==2.20.0\nIPython==7.34.0\nipykernel==6.17.1\ntorch==2.9.0\nours @ file:///x"
    text = versions.colab_file(freeze, ["TensorFlow", "ipython", "ipykernel", "ours"], "a list", "2026-01-02")
    *comments, first, second = text.splitlines()
    assert all(line.startswith("#") for line in comments)
    assert "2026-01-02" in comments[0]
    assert [first, second] == ["ipython==7.34.0", "tensorflow==2.20.0"]


def test_list_of_another_environment_is_refused():
    with pytest.raises(ValueError, match="no line tensorflow"):
        versions.colab_file("numpy==2.0", ["numpy"], "a list", "2026-01-02")


def test_plan_takes_the_pythons_of_the_machine(monkeypatch):
    monkeypatch.setattr(versions, "interpreter", lambda python: None if python == "3.13" else f"/python{python}")
    pairs, missing = versions.plan(["newest", "oldest", "colab"], PYTHONS)
    assert missing == ["3.13"]
    assert [pair[:2] for pair in pairs] == [
        ("newest", "3.11"),
        ("newest", "3.12"),
        ("oldest", "3.11"),
        ("oldest", "3.12"),
    ]
    first, _ = versions.plan(["newest", "oldest", "colab"], ["first"])
    assert [pair[:2] for pair in first] == [("newest", "3.11"), ("oldest", "3.11"), ("colab", "3.12")]


def test_row_has_the_result_of_the_tests(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a"/><testcase classname="tests.test_a"><skipped/>'
        '</testcase><testcase classname="notebooks.01.ipynb"><failure/></testcase></testsuite></testsuites>',
        encoding="utf-8",
    )
    row = {"set": "oldest", "exit status": 1, **versions.counts(report)}
    assert row["unit tests"] == "1 passed, 0 failed, 1 skipped"
    assert row["notebook cells"] == "0 passed, 1 failed, 0 skipped"
    assert "| 0 passed, 1 failed, 0 skipped |" in versions.table([row])
    assert not versions.is_good(row)
    assert versions.is_good(row | {"exit status": 0})
    assert not versions.is_good({"exit status": 0} | versions.counts(tmp_path / "none.xml")), "no test ran"


def test_wheel_holds_only_the_package_with_sample_and_network(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        "assets/sample.zip",
        "assets/included_network.weights.h5",
        "assets/included_network.int8.onnx",
        "assets/splits/sample.csv",
        "assets/splits/stage1_train.csv",
        "dsb2018/README.md",
        "dsb2018/TAGS.txt",
        "dsb2018/CITATIONS.bib",
    }
    assert not {f"nuclei_utils/{name}" for name in needed} - names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nuclei_utils"}
    assert wheel.stat().st_size < 10 * 2**20, (
        "the sample stays under 4 MB, the weights under 5, the network in 8 bits under 2, the other files are text"
    )


def test_import_loads_no_heavy_library():
    code = (
        "import sys, nuclei_utils; print(*{'tensorflow', 'keras', 'torch', 'jax', 'pandas', 'cv2'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []
