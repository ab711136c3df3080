"""Opening `.keras` files: what the course saves comes back the same; what could run or write is refused."""

import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from nuclei_utils import losses, models, saving
from nuclei_utils.errors import NucleiError

IMAGES = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)


def outputs(model):
    return [np.asarray(tensor) for tensor in keras.tree.flatten(model(IMAGES, training=False))]


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
def test_networks_come_back_the_same(name, tmp_path):
    model = NETWORKS[name]()
    model.save(tmp_path / "saved.keras")
    loaded = saving.load_model(tmp_path / "saved.keras")
    assert type(loaded) is type(model)
    for before, after in zip(outputs(model), outputs(loaded), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_a_compiled_network_opens_without_its_loss(small, tmp_path):
    small.compile("adam", losses.BinaryCrossentropyDice())
    small.save(tmp_path / "compiled.keras")
    np.testing.assert_allclose(outputs(saving.load_model(tmp_path / "compiled.keras"))[0], outputs(small)[0], atol=1e-6)


def rewritten(path, change_config=None, change_weights=None):
    """Write a `.keras` file again, with a changed configuration or changed weights."""
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
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def layer_of(config, class_name="Conv2D"):
    return next(layer for layer in config["config"]["layers"] if layer["class_name"] == class_name)


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def replaces_layer(**changes):
    return lambda config: layer_of(config, "ReLU").update(changes)


def sets(key, value):
    return lambda config: layer_of(config)["config"].update({key: value})


HOSTILE = {
    "lambda layer": replaces_layer(
        class_name="Lambda", config={"function": function("keras.visualization", "plot_image_gallery"), "path": "x"}
    ),
    "layer of another module": replaces_layer(module="keras_hub.evil"),
    "layer of a planted module": replaces_layer(module="os", class_name="system"),
    "saved model of TensorFlow": replaces_layer(class_name="TFSMLayer", config={"filepath": "x"}),
    "other registered name": replaces_layer(registered_name="other>ReLU"),
    "module that is no text": replaces_layer(module=["keras.layers"]),
    "function as activation": sets("activation", function("keras.visualization", "plot_image_gallery")),
    "function of the system as activation": sets("activation", function("os", "system")),
    "builtin that is no activation": sets("activation", function("builtins", "eval")),
    "name that is no activation": sets("activation", "plot_image_gallery"),
    "function as initializer": sets("kernel_initializer", function("keras.utils", "get_file")),
    "name that is no initializer": sets("kernel_initializer", "get_file"),
    "lambda as regularizer": sets("kernel_regularizer", {"class_name": "__lambda__", "config": {"value": "x"}}),
    "type of TensorFlow": sets("name", {"class_name": "__typespec__", "module": "os", "spec_name": "system"}),
    "training of a layer": lambda config: layer_of(config).update(
        compile_config={"optimizer": {"module": "os", "class_name": "system", "config": {}}}
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_names_something_else_is_refused(name, saved, monkeypatch):
    rewritten(saved, HOSTILE[name])
    monkeypatch.setattr(keras.models, "load_model", lambda *args, **kwargs: pytest.fail("something was built"))
    with pytest.raises(NucleiError, match=r"small\.keras.*list of layers"):
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
    """Make groups of which each leads twice to the next: 2**40 names."""
    group = file.create_group("other")
    for number in range(40):
        following = file.create_group(f"group_{number}")
        group["a"] = group["b"] = following
        group = following


@pytest.mark.parametrize(
    "change", [soft_link, external_link, external_storage, virtual_storage, huge_storage, doubling_links]
)
def test_weights_that_lie_elsewhere_or_are_huge_are_refused(change, saved):
    rewritten(saved, change_weights=change)
    with pytest.raises(NucleiError, match=r"small\.keras: its weights"):
        saving.load_model(saved)


@pytest.mark.parametrize("name", ["assets/a.txt", "../a.txt", "model.weights.npz"])
def test_a_file_with_further_parts_is_refused(name, saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(NucleiError, match=f"small.keras holds '{name}'"):
        saving.load_model(saved)


def test_a_configuration_of_many_bytes_is_refused_before_reading(saved):
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
    with pytest.raises(NucleiError, match=r"gone\.keras is missing"):
        saving.load_model(tmp_path / "gone.keras")


@pytest.mark.parametrize("kept", [0, 30, 1000, -1])
def test_a_broken_file_is_named(kept, saved):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(NucleiError, match=r"small\.keras cannot be loaded"):
        saving.load_model(saved)


def test_a_file_of_a_newer_keras_says_so(saved):
    rewritten(saved, sets("an_option_of_tomorrow", 1))
    with zipfile.ZipFile(saved) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["metadata.json"] = json.dumps({"keras_version": "99.0.0"}).encode()
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(NucleiError, match=rf"Keras 99\.0\.0 saved the file and this is Keras {keras.__version__}"):
        saving.load_model(saved)


def test_nothing_is_written_beside_the_file(saved):
    saving.load_model(saved)
    assert [path.name for path in Path(saved.parent).iterdir()] == ["small.keras"]
