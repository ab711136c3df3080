"""Tables, pictures and links in the texts agree with the result files and the notebooks."""

import re
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from benchmarks import cross_validate, results_file, write_tables
from nuclei_utils import datasets, notebook, training
from tools import picture, setup_cell

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.parametrize("path", write_tables.TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_tables_agree_with_the_result_files(path):
    text = text_of(path)
    assert len(write_tables.MARKED.findall(text)) == text.count("<!-- table "), "a mark without its end"
    assert write_tables.fill(text) == text, "run `python -m benchmarks.write_tables --write`"


def test_fill_changes_only_the_marked_tables(monkeypatch):
    monkeypatch.setattr(write_tables, "TABLES", {"one": lambda: "| 1 |", "two": lambda: "| 2 |"})
    template = "a\n\n<!-- table one -->\n\n{}<!-- end -->\n\nb\n\n<!-- table two -->\n\n{}<!-- end -->\n\nc"
    filled = write_tables.fill(template.format("", "| old |\n\n"))
    assert filled == template.format("| 1 |\n\n", "| 2 |\n\n")
    assert write_tables.fill(filled) == filled


@pytest.mark.parametrize("name", write_tables.TABLES)
def test_every_table_is_in_a_text(name):
    assert any(f"<!-- table {name} -->" in text_of(path) for path in write_tables.TEXTS)
    assert write_tables.TABLES[name]().count("\n") >= 2, "heads, a line, and at least one row"


def test_trainings_of_a_program_are_one_row(monkeypatch):
    files = {
        "stardist_subset": {
            "subset_seed0": {"training": {}, "ap": {"test, n_tta 1": [0.5] * 5, "test, n_tta 8": [0.6] * 5}}
        },
        "peers": {
            f"StarDist, seed {seed}": {"program": "StarDist", "cpu_seconds": 1140 + 120 * seed, "ap": [ap] * 5}
            for seed, ap in enumerate((0.2, 0.4))
        },
    }
    monkeypatch.setattr(results_file, "read", files.get)
    rows = write_tables.peers().splitlines()
    assert "| ours | on a GPU | 0.500 |" in rows[-3]
    assert "| StarDist | 20 minutes of processor time | 0.300\u00a0±\u00a00.141 |" in rows[-1]
    assert rows[-1].endswith("| 2 |")


def test_trainings_with_an_earlier_learning_rate_have_a_table_of_their_own(monkeypatch):
    def run(ap, rate):
        history = {f"val_{output}_loss": [1, ap / 10] for output in ("mask", "boundary", "distance")}
        scores = {f"{split}, n_tta {n_tta}": [ap] * 5 for split in ("validation", "test") for n_tta in (1, 8)}
        return {"seed": 0, "cpu_seconds": 60, "best_epoch": 2, "history": history, "ap": scores, "learning_rate": rate}

    files = {"stardist_subset": {"a": run(0.2, 1e-4), "b": run(0.4, training.INSTANCE_RATE)}, "peers": {}}
    monkeypatch.setattr(results_file, "read", files.get)
    (row,) = [row for row in write_tables.peers().splitlines() if row.startswith("| ours | ")]
    assert row.startswith("| ours | 1 minutes of processor time | 0.400 |")
    old, new = write_tables.learning_rates().splitlines()[2:]
    assert old == "| 0.0001 | 0 | 0.020 | 0.020 | 0.020 | 0.200 | 0.200 |"
    assert new.startswith(f"| {training.INSTANCE_RATE:g} | 0 | 0.040 |")


def test_scores_of_tissue_are_means_over_all_folds(monkeypatch):
    table = datasets.split_table("stage1")
    tissue = table[table["image_type"].isin(cross_validate.TISSUE)]
    folds = [tissue.iloc[number::3] for number in range(3)]

    def run(number, fold):
        counts = {"true": 10, "predicted": 9, "merges": number, "splits": 0}
        scores = {"images": [number / 10] * len(fold), "image_types": dict.fromkeys(cross_validate.TISSUE, counts)}
        return {"ids": list(fold["id"]), "scores": scores}

    runs = {str(number): run(number, fold) for number, fold in enumerate(folds)}
    included = {"scores": {"image_types": {name: {"score": 0.5} for name in cross_validate.TISSUE}}}
    files = {
        "cross_validation_stage1_fixed_laptop": runs,
        "limits_stage1_fixed": {"validation images, as predicted": included},
    }
    monkeypatch.setattr(results_file, "read", files.get)
    rows = write_tables.cross_validation().splitlines()[2:]
    sizes = [[(fold["image_type"] == name).sum() for fold in folds] for name in cross_validate.TISSUE]
    for row, name, (first, second, third) in zip(rows, cross_validate.TISSUE, sizes, strict=True):
        images = first + second + third
        groups = tissue.loc[tissue["image_type"] == name, "group"].nunique()
        mean = (0.1 * second + 0.2 * third) / images
        assert row.startswith(f"| {name.replace('_', ' ')} | {images} | {groups} | {mean:.3f} | ")
        validation = [fold[(fold["image_type"] == name) & (fold["split"] == "validation")] for fold in folds]
        count = sum(map(len, validation))
        mean = (0.1 * len(validation[1]) + 0.2 * len(validation[2])) / count
        assert row.endswith(f" | 30 | 27 | 3 | 0 | {count} | {mean:.3f} | 0.500 |")


def test_scores_of_the_run_lengths_are_those_of_the_table_and_of_stardist():
    trainings, matching = results_file.read("stardist_subset"), results_file.read("stardist_matching")
    for name, run in matching.items():
        training_name, _, n_tta = name.partition("_n_tta_")
        assert np.round(run["ap"], 4).tolist() == trainings[training_name]["ap"][f"test, n_tta {n_tta or 1}"]
    for run in (*matching.values(), *results_file.read("peers").values()):
        assert run["ap"] == run["ap_by_stardist"]


def test_benchmark_and_notebook_04_have_the_same_settings():
    line = f"SIZE, BATCH, FILTERS = {training.CROP_SIZE}, {training.BATCH_SIZE}, {training.FILTERS}"
    assert line in text_of(ROOT / "notebooks" / "04_unet_from_scratch.ipynb")


@pytest.mark.parametrize("name", [*picture.SOURCES, picture.LAST_FRAME])
def test_pictures_agree_with_the_notebooks(name):
    if name == picture.LAST_FRAME:
        source, stem = picture.last_frame(picture.ANIMATION), "07_evaluate_and_animate"
    else:
        stem = picture.SOURCES[name]
        source = Image.open(BytesIO(picture.notebook_picture(stem)))
    shown, source = (np.asarray(p.convert("RGB"), float) for p in (Image.open(notebook.PICTURES / name), source))
    assert shown.shape == source.shape
    assert np.abs(shown - source).mean() < 8, "run `make outputs`"
    assert re.search(rf'notebook\.show_goal\(\s*"{name}"', text_of(ROOT / "notebooks" / f"{stem}.ipynb"))


def test_package_has_only_pictures_that_are_shown():
    paths = list(notebook.PICTURES.iterdir())
    assert {path.name for path in paths} == {*picture.SOURCES, picture.LAST_FRAME}
    assert sum(path.stat().st_size for path in paths) < 2**20, "every install contains the pictures"


def test_readme_shows_existing_pictures():
    files = [name for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README) if not name.startswith("https://")]
    assert len(files) >= 3
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert picture.ANIMATION.relative_to(ROOT).as_posix() in files


def test_animation_has_a_frame_for_each_epoch():
    frames = Image.open(picture.ANIMATION).n_frames
    assert frames == 1 + training.PROFILES["laptop"].epochs, "one before the training, one after each epoch"
    assert picture.ANIMATION.stat().st_size < 3e6


def test_texts_name_the_address_of_pyproject():
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"https://github\.com/nuclei[\w-]*/[\w-]+", text)) <= {setup_cell.address()}


def test_readme_example_runs(tmp_path, monkeypatch, capsys):
    opening, helpers = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # the same code with less training
    helpers = helpers.replace("20", "1").replace("min_crops=32", "min_crops=1").replace("filters=16", "filters=2")
    names = {}
    exec(helpers, names)
    names["model"].save("mine.keras")
    exec(opening, names)
    assert names["model"].name == "unet"
    assert "fluorescence_small" in capsys.readouterr().out
