import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest

from benchmarks import (
    compare_peer_costs,
    continue_training,
    cross_validate,
    describe_data,
    find_limits,
    measure_formats,
    measure_slides,
    peers,
    results_file,
    score_included_network,
    train_on_stardist_subset,
    tune_unet,
)
from nuclei_utils import cluster, datasets, deploy, exported, input_pipeline, labels, losses, microscopy, models
from nuclei_utils.errors import NucleiError
from tests.commands import frozen_bright_network
from tools import release_network
from tools.draw_sample import draw

CIRCUMSTANCES = ["command", "date", "commit", "hardware", "versions", "python"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Let this process look like `python -m benchmarks.describe_data --data sample`; return its result folder."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="benchmarks.describe_data"))
    monkeypatch.setattr(sys, "argv", ["describe_data.py", "--data", "sample"])
    for name in [name for name in os.environ if name.startswith("NUCLEI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(results_file, "FOLDER", tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.usefixtures("results")
def test_command_has_the_variables_that_are_set(monkeypatch):
    assert results_file.command() == "python -m benchmarks.describe_data --data sample"
    monkeypatch.setenv("NUCLEI_PROFILE", "full")
    monkeypatch.setenv("NUCLEI_DATA", "stage1")
    monkeypatch.setenv("NUCLEI_HOME", "/somebody/at home")
    monkeypatch.setattr(sys, "argv", ["describe_data.py"])
    assert results_file.command() == "NUCLEI_DATA=stage1 NUCLEI_PROFILE=full python -m benchmarks.describe_data"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_none_outside_of_a_checkout(results, monkeypatch):
    repository = results.parent
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repository.parent))
    assert results_file.commit() is None
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "--quiet"], [*identity, "commit", "--quiet", "--allow-empty", "--message", "first"]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    assert re.fullmatch("[0-9a-f]{7,}", results_file.commit())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert results_file.commit() is None


@pytest.mark.parametrize(("text", "name"), [("model name\t: AMD: EPYC\n", "AMD: EPYC"), ("CPU part: 0xd0c\n", "")])
def test_processor_may_have_no_name(tmp_path, monkeypatch, text, name):
    monkeypatch.setattr(results_file, "CPU_INFO", tmp_path / "cpuinfo")
    results_file.CPU_INFO.write_text(text)
    assert results_file.processor() == name or (results_file.processor() and not name)


def test_runs_are_added_with_their_circumstances(results):
    assert results_file.read("x") == {}
    for name, dice in {"a": 0.1, "b": 0.2, "c": 0.3}.items():
        path = results_file.add("x", name, {"dice": dice}, data="sample")
    assert list(results.iterdir()) == [path]
    assert list(json.loads(path.read_text())) == ["data", "runs"]
    assert [(name, run["dice"]) for name, run in results_file.read("x").items()] == [("a", 0.1), ("b", 0.2), ("c", 0.3)]
    assert all(list(run) == [*CIRCUMSTANCES, "dice"] for run in results_file.read("x").values())


@pytest.mark.usefixtures("results")
def test_only_missing_runs_are_made():
    results_file.add("x", "a", {"dice": 0.1})
    results_file.add_missing("x", {"a": lambda: pytest.fail("run again"), "b": lambda: {"dice": 0.2}})
    assert [run["dice"] for run in results_file.read("x").values()] == [0.1, 0.2]


@pytest.mark.parametrize(
    "path", [path for path in sorted(results_file.FOLDER.glob("*.json")) if path.stem != "splits"], ids=lambda p: p.stem
)
def test_published_files_have_the_common_format(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) <= {"data", "profile", "runs"}
    for run in content["runs"].values():
        expected = [name for name in CIRCUMSTANCES if name in run or name != "commit"]  # the first files have no commit
        assert list(run)[: len(expected)] == expected


def test_resizing_counts_vanished_nuclei_and_errors_of_area():
    label_map = np.zeros((8, 8), np.int32)
    label_map[:4, :4] = 1  # shrinks to 2 x 2 pixels without an error of area
    label_map[6, 6] = 2  # between the pixels that remain
    records = [datasets.Record("a", np.zeros((8, 8, 3), np.uint8), label_map, "")]
    expected = {"size": 4, "nuclei": 2, "vanished": 1, "mean_error_of_area_percent": 50}
    assert json.loads(json.dumps(describe_data.resizing(records, size=4))) == expected


def test_numbers_of_the_sample_can_be_written():
    records = datasets.load("sample", "test")
    numbers = json.loads(json.dumps(describe_data.describe(records, datasets.label_problems("sample"))))
    assert numbers["images"] == len(records)
    assert numbers["nuclei"] == sum(record.label_map.max() for record in records)
    same = describe_data.correction(records, records)
    assert json.loads(json.dumps(same))["pixels_changed"] == 0


def test_variants_of_the_unet_have_equal_arithmetic():
    steps = {name: tune_unet.steps_of(tune_unet.FIRST | settings) for name, settings in tune_unet.VARIANTS.items()}
    assert steps["crops of 256"] == 256
    assert steps["crops of 128"] == 512  # a quarter of the pixels, twice the crops
    assert steps["crops of 128, half the width"] == 2048


@pytest.mark.parametrize("settings", [{}, {"rotation": False}, {"colours": False}], ids=str)
def test_variants_make_batches(settings, monkeypatch):
    examples = input_pipeline.from_records(datasets.load("sample", "train")[:4])
    monkeypatch.setattr(input_pipeline, "read", lambda split: examples)
    settings = tune_unet.FIRST | {"crop_size": 32, "batch_size": 2} | settings
    images, masks = next(iter(tune_unet.training_batches(settings, seed=0)))
    assert images.shape == (2, 32, 32, 3)
    assert set(np.unique(masks)) <= {0, 1}


def test_methods_are_tuned_and_scored():
    records = datasets.load("sample", "test")[:2]
    label_maps = [record.label_map for record in records]
    maps = [{name: (m > 0).astype(np.float32) for name in ("mask", "distance")} for m in label_maps]
    maps = [{**m, "boundary": np.zeros_like(m["mask"])} for m in maps]
    for method in score_included_network.GRIDS:
        options, table = score_included_network.tune(method, maps, label_maps, ["a", "b"])
        predicted = score_included_network.separate(method, maps, **options)
        scores = json.loads(json.dumps(score_included_network.score(label_maps, predicted, ["a", "b"])))
        assert scores["score"] == pytest.approx(table["score"].max(), abs=1e-4)
        assert scores["image_types"]["a"]["images"] == 1


def test_a_match_of_stardist_needs_no_more_than_the_threshold():
    true, predicted = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 0, 0]])
    assert train_on_stardist_subset.average_precision([true], [predicted]) == [1, 0, 0, 0, 0]


def test_speed_of_a_program_leaves_out_its_first_predictions():
    shapes = []
    images = {"test images": [np.zeros((10, side, 3), np.uint8) for side in (20, 20, 30)]}
    costs = compare_peer_costs.measure(lambda: (lambda image: shapes.append(image.shape[1]), 7), images)
    assert shapes == [20, 30] + compare_peer_costs.ROUNDS * [20, 20, 30]
    assert costs["parameters"] == 7
    assert costs["rounds"] == {"test images": compare_peer_costs.ROUNDS}
    assert costs["megapixels_per_second"]["test images"] > 0


def test_crops_of_stardist_are_turned_with_their_labels():
    label_map = np.arange(30, dtype=np.int32).reshape(5, 6)
    for seed in range(8):
        image, turned = peers._augment(100.0 * label_map, label_map, np.random.default_rng(seed))
        assert np.corrcoef(image.ravel(), turned.ravel())[0, 1] > 0.999


def test_released_network_predicts_like_the_trained_network(tmp_path, monkeypatch):
    seen = []
    keras.utils.set_random_seed(0)
    model = models.instance_unet(weights=None, fixed_statistics=True)
    model.save_weights(tmp_path / "trained.weights.h5")
    monkeypatch.setattr(deploy, "export_onnx", lambda network, path, *options: seen.append((network, path, options)))
    release_network.release(tmp_path / "trained.weights.h5", ["image"], tmp_path)
    released = models.instance_unet(weights=None, fixed_statistics=True)
    released.load_weights(tmp_path / exported.INCLUDED["float32"])
    for weights, expected in zip(released.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, expected)
    ((network, path, options),) = seen
    assert network.name == "instance_unet"
    assert (path, options) == (tmp_path / exported.INCLUDED["int8"], ("int8", ["image"]))


def test_another_network_cannot_be_released(tmp_path):
    models.unet(filters=2, depth=1).save_weights(tmp_path / "unet.weights.h5")
    with pytest.raises(NucleiError, match=r"unet\.weights\.h5.*instance_unet"):
        release_network.release(tmp_path / "unet.weights.h5", [], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["unet.weights.h5"]


def test_the_parts_of_the_work_on_a_slide_are_timed(tmp_path, monkeypatch):
    pytest.importorskip("zarr", minversion="3")
    pytest.importorskip("tifffile", minversion="2025.5.21")
    monkeypatch.setattr(exported, "included_network", frozen_bright_network)
    monkeypatch.setattr(cluster, "connect", lambda workers: contextlib.nullcontext())
    measure_slides.write_slide(tmp_path / "slide.ome.tif", 900)
    run = measure_slides.measure_steps(tmp_path / "slide.ome.tif", tmp_path)
    assert (run["blocks"], run["precision"]) == (4, "int8")
    assert run["nuclei"] > 100
    assert run["find_block_seconds_per_block"] > 0


@pytest.mark.parametrize("name", measure_formats.FORMATS)
def test_each_format_is_read_back(name, tmp_path):
    stack = np.random.default_rng(0).integers(0, 4080, (3, 2, 64, 80), np.uint16)
    path, options = measure_formats.FORMATS[name](tmp_path, stack)
    is_stack = bool(options)
    planes = microscopy.read_planes(path, channel=options[1], z=1) if is_stack else microscopy.read_planes(path)
    expected = stack[1, 1] if planes.image.dtype == np.uint16 else stack[1, 1] >> 4
    if name != "JPEG":  # changes pixels
        np.testing.assert_array_equal(planes.image[..., 0], expected)
    assert planes.pixel_size == (measure_formats.PIXEL_SIZE if is_stack else None)
    assert len(planes.channels) == (2 if is_stack else 3)


def test_limits_use_the_truth_for_one_step_alone():
    label_map = np.zeros((20, 30), np.int32)
    label_map[2:12, 2:10], label_map[2:12, 10:18] = 1, 2
    mask = np.zeros(label_map.shape, np.float32)
    mask[2:12, 3:18], mask[14:20, 22:28] = 1, 1  # one component for both nuclei, and one that is no nucleus
    maps = {"mask": mask, "distance": mask / 2}
    divided = find_limits.separate_truly(maps, label_map)
    np.testing.assert_array_equal(divided > 0, mask > 0)
    np.testing.assert_array_equal(divided[:14], np.where(mask > 0, label_map, 0)[:14])
    assert set(np.unique(divided[14:])) == {0, 3}
    predicted = find_limits.separate_true_mask(maps, label_map)
    np.testing.assert_array_equal(predicted > 0, label_map > 0)
    assert predicted.max() == 1  # the distance has one peak


def test_each_tissue_image_is_scored_in_one_fold(monkeypatch):
    monkeypatch.setenv("NUCLEI_DATA", "stage1")
    table = datasets.split_table("stage1").set_index("id")
    sides = pd.DataFrame({fold: cross_validate.divide(fold) for fold in range(3)})
    is_scored, is_tissue = sides == "scored", table["image_type"].isin(cross_validate.TISSUE)
    assert is_scored.sum(axis=1).isin([0, 1]).all()
    assert is_scored[is_tissue].to_numpy().sum() == is_tissue.sum() - 1, "the corrections remove one tissue image"
    assert not is_scored[~is_tissue].any(axis=None)
    assert (is_scored[is_tissue].groupby(table["image_type"]).sum() >= 5).all(axis=None)
    scored = table[is_scored.any(axis=1)]
    assert (sides.loc[scored.index].groupby(scored["group"]).nunique() == 1).all(axis=None)
    assert not (sides[is_tissue] == "validation").any(axis=None)
    assert ((sides[0] == "validation") == ((table["split"] == "validation") & ~is_tissue)).all()


def test_weights_count_at_borders():
    rng = np.random.default_rng(0)
    targets = {name: rng.random((2, 8, 8, 1), np.float32).round() for name in ("mask", "boundary", "distance")}
    predicted = rng.random((2, 8, 8, 1), np.float32)
    errors = np.abs(targets["distance"] - predicted)

    def loss(border_weight):
        _, weighted = continue_training.add_weights(border_weight, predicted, targets)
        assert weighted["boundary"] is targets["boundary"]
        mask = continue_training.mask_loss(weighted["mask"], predicted)
        return float(mask), float(continue_training.distance_loss(weighted["distance"], predicted))

    package_loss = float(losses.BinaryCrossentropyDice().call(targets["mask"], predicted)[0])
    assert loss(1.0) == pytest.approx((package_loss, errors.mean()), rel=1e-5)
    assert loss(4.0)[1] == pytest.approx(np.average(errors, weights=1 + 3 * targets["boundary"]), rel=1e-5)
    predicted = np.where(targets["boundary"] == 1, predicted, targets["mask"])  # all errors are at borders
    assert loss(4.0)[0] > 1.2 * loss(1.0)[0]


def test_pasted_nuclei_touch_others():
    image, masks = draw("purple_on_white", 0)
    record = datasets.Record("drawn", image, labels.merge_masks(masks)[0], "purple_on_white")
    pasted = continue_training.paste_nuclei(record, np.random.default_rng(0))
    new = np.setdiff1d(pasted.label_map, record.label_map)
    is_new = np.isin(pasted.label_map, new)
    assert len(new)
    assert (pasted.label_map[~is_new] == record.label_map[~is_new]).all()
    assert (pasted.image[is_new] != record.image[is_new]).any()
    assert np.isin(new, labels.touching_pairs(pasted.label_map)).all()
    areas, visible = np.bincount(record.label_map.ravel()), np.bincount(pasted.label_map.ravel())
    assert (visible[: len(areas)] >= (1 - continue_training.MAX_HIDDEN) * areas)[1:].all()
