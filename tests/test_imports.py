"""Imports go one way: a module imports only from modules that stand before it in this list."""

import ast
from pathlib import Path

import pytest

import nuclei_utils

ORDER = [
    "errors",
    "files",
    "cluster",
    "labels",
    "preprocess",
    "_decode",
    "io",
    "_stacks",
    "microscopy",
    "_label_images",
    "_outlines",
    "_outline_files",
    "annotations",
    "datasets",
    "exported",
    "download",
    "dsb2018",
    "splits",
    "drawn_images",
    "segmentation",
    "blocks",
    "matching",
    "metrics",
    "statistics",
    "plots",
    "_intensities",
    "export",
    "losses",
    "models",
    "saving",
    "devices",
    "distortions",
    "input_pipeline",
    "deploy",
    "predict",
    "slides",
    "checkpoints",
    "training",
    "notebook",
    "exercises",
    "cli",
]
KNOWS_TENSORFLOW = {"dsb2018", "input_pipeline", "deploy", "devices", "exported"}
PACKAGE = Path(nuclei_utils.__file__).parent
MODULES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("__")]


def subject(path):
    """Return the name in ORDER that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Return the full names of all modules that a file imports, inside of functions as well."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: write the full name of a module of the package"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_each_module_has_a_place_in_the_order():
    assert {subject(path) for path in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    module = subject(path)
    parts = {name.split(".")[1] for name in imported(path) if name.startswith("nuclei_utils.")}
    later = {name for name in parts & set(ORDER) if ORDER.index(name) > ORDER.index(module)}
    assert not later, f"{module} imports {later}, which stand after it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_few_modules_import_tensorflow(path):
    tensorflow = {name for name in imported(path) if name.split(".")[0] in ("tensorflow", "tensorflow_datasets")}
    assert not tensorflow or subject(path) in KNOWS_TENSORFLOW
