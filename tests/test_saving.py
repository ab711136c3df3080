"""A `.keras` file of the course is loaded unchanged. A file that could run code or write files is refused."""

import json
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from nuclei_utils import losses, models, saving
from nuclei_utils.errors import NucleiError

IMAGES = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)


def outputs(model):
    return [keras.ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(model(IMAGES, training=False))]


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return models.unet(filters=2, depth=1)


@pytest.fixture
def saved(small, tmp_path):
    path = tmp_path / "small.keras"
    small.save(path)
    return path


NETWORKS = {
    "unet": lambda: models.unet(filters=2, depth=2, dropout=0.1, residual=True),
    "unet_plus_plus": lambda: models.unet_plus_plus(filters=2, depth=2),
    "accurate_mode": lambda: models.accurate_mode(models.unet_plus_plus(filters=2, depth=2)),
    "instance_unet": lambda: models.instance_unet(weights=None, filters=2, fixed_statistics=True),
    "sequential": lambda: keras.Sequential(
        [layers.Input((None, None, 3)), layers.Conv2D(1, 1, activation="swish", kernel_regularizer="l2")]
    ),
    "activation object": lambda: keras.Sequential(
        [layers.Input((None, None, 3)), layers.Conv2D(1, 1, activation=keras.activations.gelu)]
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_loaded_unchanged_and_nothing_else_is_written(name, tmp_path):
    model = NETWORKS[name]()
    model.save(tmp_path / "saved.keras")
    loaded = saving.load_model(tmp_path / "saved.keras")
    assert type(loaded) is type(model)
    for before, after in zip(outputs(model), outputs(loaded), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["saved.keras"]


def test_a_compiled_network_is_loaded_without_an_import_of_its_classes(tmp_path):
    model = models.unet_plus_plus(filters=2, depth=2)
    model.compile("adam", losses.BinaryCrossentropyDice(), metrics=[losses.Dice()])
    model.save(tmp_path / "compiled.keras")
    code = f"from nuclei_utils import saving; print(type(saving.load_model({str(tmp_path / 'compiled.keras')!r})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DeepSupervision" in run.stdout, run.stderr


# Files that are refused


def rewrite(path, change_config=None, change_weights=None, metadata=None):
    """Write a `.keras` file again with a changed configuration, changed weights or other metadata."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    if change_config:
        config = json.loads(parts["config.json"])
        change_config(config)
        parts["config.json"] = json.dumps(config).encode()
    if change_weights:
        weights = path.with_name("weights.h5")
        weights.write_bytes(parts["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            change_weights(file, path.parent)
        parts["model.weights.h5"] = weights.read_bytes()
    if metadata:
        parts["metadata.json"] = json.dumps(metadata).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def layer_of(config, class_name="Conv2D"):
    return next(layer for layer in config["config"]["layers"] if layer["class_name"] == class_name)


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def change_layer(**changes):
    return lambda config: layer_of(config, "ReLU").update(changes)


def change_setting(key, value):
    return lambda config: layer_of(config)["config"].update({key: value})


HOSTILE = {
    "lambda layer": change_layer(
        class_name="Lambda", config={"function": function("keras.visualization", "plot_image_gallery"), "path": "x"}
    ),
    "layer of another module": change_layer(module="keras_hub.evil"),
    "layer of a planted module": change_layer(module="os", class_name="system"),
    "saved model of TensorFlow": change_layer(class_name="TFSMLayer", config={"filepath": "x"}),
    "other registered name": change_layer(registered_name="other>ReLU"),
    "module that is no text": change_layer(module=["keras.layers"]),
    "function as activation": change_setting("activation", function("keras.visualization", "plot_image_gallery")),
    "function of the system as activation": change_setting("activation", function("os", "system")),
    "builtin that is no activation": change_setting("activation", function("builtins", "eval")),
    "name that is no activation": change_setting("activation", "plot_image_gallery"),
    "function as initializer": change_setting("kernel_initializer", function("keras.utils", "get_file")),
    "name that is no initializer": change_setting("kernel_initializer", "get_file"),
    "lambda as regularizer": change_setting("kernel_regularizer", {"class_name": "__lambda__", "config": {}}),
    "type of TensorFlow": change_setting("name", {"class_name": "__typespec__", "module": "os", "spec_name": "system"}),
    "training of a layer": lambda config: layer_of(config).update(
        compile_config={"optimizer": {"module": "os", "class_name": "system", "config": {}}}
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_classes_and_functions_outside_of_the_lists_are_refused(name, saved, monkeypatch):
    rewrite(saved, HOSTILE[name])
    monkeypatch.setattr(keras.models, "load_model", lambda *args, **kwargs: pytest.fail("something was built"))
    with pytest.raises(NucleiError, match=r"small\.keras: found .* listed"):
        saving.load_model(saved)


def soft_link(file, folder):
    file["other"] = h5py.SoftLink("/layers")


def external_link(file, folder):
    file["other"] = h5py.ExternalLink(str(folder / "secret.h5"), "/data")


def external_storage(file, folder):
    file.create_dataset("other", (4,), "u1", external=[(str(folder / "secret"), 0, 4)])


def virtual_storage(file, folder):
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "data", (4,))
    file.create_virtual_dataset("other", layout)


def huge_storage(file, folder):
    file.create_dataset("other", (2**40,), "u1", chunks=(2**20,), compression="gzip")


def doubling_links(file, folder):
    """Add 40 groups. Each leads to the next by two names, so that there are 2**40 paths."""
    group = file.create_group("other")
    for number in range(40):
        following = file.create_group(f"group_{number}")
        group["a"] = group["b"] = following
        group = following


@pytest.mark.parametrize(
    "change", [soft_link, external_link, external_storage, virtual_storage, huge_storage, doubling_links]
)
def test_weights_in_other_files_or_of_huge_size_are_refused(change, saved):
    rewrite(saved, change_weights=change)
    with pytest.raises(NucleiError, match=r"small\.keras: its weights"):
        saving.load_model(saved)


@pytest.mark.parametrize("name", ["assets/a.txt", "../a.txt", "model.weights.npz"])
def test_further_parts_are_refused(name, saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(NucleiError, match=f"small.keras.*'{name}'"):
        saving.load_model(saved)


def test_a_huge_configuration_is_refused_before_reading(saved):
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (saving.PARTS["config.json"] + 1))
    with pytest.raises(NucleiError, match=r"small\.keras: config\.json has 16,777,217 bytes"):
        saving.load_model(saved)


@pytest.mark.parametrize("ending", [".h5", ".tf", ""])
def test_other_formats_are_refused(ending, tmp_path):
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"x")
    with pytest.raises(NucleiError, match=r"expected \.keras"):
        saving.load_model(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NucleiError, match=r"missing\.keras is missing"):
        saving.load_model(tmp_path / "missing.keras")


@pytest.mark.parametrize("size", [0, 30, 1000, -1])
def test_a_truncated_file_is_named(size, saved):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(NucleiError, match=r"small\.keras"):
        saving.load_model(saved)


def test_an_unreadable_file_of_a_newer_keras_names_both_versions(saved):
    rewrite(saved, change_setting("option_of_the_future", 1), metadata={"keras_version": "99.0.0"})
    with pytest.raises(NucleiError, match=rf"99\.0\.0.*{keras.__version__}"):
        saving.load_model(saved)
