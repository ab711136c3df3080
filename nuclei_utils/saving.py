"""Load a network from a `.keras` file of any origin, after a check of the file.

A `.keras` file names the classes and functions that Keras calls to build the network. Keras' safe mode refuses Python
code in the file. But a file can name any function of Keras, and a few of these functions write files. `load_model`
accepts only the layers and functions of the lists in this module.

`load_model` also checks the links and sizes of the weights, and the names and sizes of the parts of the file. It does
not check the quality of the network, its time and memory, and errors in the libraries that read the file (Keras, HDF5).
"""

import io
import json
import os
import textwrap
import zipfile
from pathlib import Path

import h5py
import keras

from nuclei_utils import models
from nuclei_utils.errors import NucleiError, first_line

# the classes and functions that a file may hold
# fmt: off
_LAYERS = {
    "Activation", "Add", "Average", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D",
    "Conv2DTranspose", "Cropping2D", "Dense", "DepthwiseConv2D", "Dropout", "ELU", "Flatten", "GaussianDropout",
    "GaussianNoise", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "GroupNormalization", "Identity", "InputLayer",
    "LayerNormalization", "LeakyReLU", "MaxPooling2D", "Maximum", "Multiply", "Normalization", "PReLU", "Permute",
    "ReLU", "Rescaling", "Reshape", "Resizing", "SeparableConv2D", "Softmax", "SpatialDropout2D", "Subtract",
    "UpSampling2D", "ZeroPadding2D",
}
_INITIALIZERS = {
    "Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform", "Ones",
    "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling", "Zeros",
}
_ACTIVATIONS = {
    "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "leaky_relu", "linear", "mish", "relu", "relu6", "selu",
    "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh",
}
# fmt: on
_REGULARIZERS = {"L1", "L2", "L1L2", "OrthogonalRegularizer"}
_CONSTRAINTS = {"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}
_MODELS = {"Functional", "Model", "Sequential"}
_COURSE_MODELS = {models.FixedStatistics.__name__, models.DeepSupervision.__name__}  # the import registers them

PARTS = {"config.json": 2**24, "metadata.json": 2**24, "model.weights.h5": 2**30}
"""Parts that a file may have, with their largest sizes in bytes when unpacked."""

_MAX_BYTES = PARTS["model.weights.h5"]  # of all weights when unpacked
_MAX_ENTRIES = 100_000  # groups and arrays of the weights; an entry counts once for each name that leads to it

_MARKERS = {"__keras_tensor__", "__tuple__"}  # Keras marks values that are no objects with these names
_SLOTS = {"_initializer": _INITIALIZERS, "_regularizer": _REGULARIZERS, "_constraint": _CONSTRAINTS}
_MODULES = {
    "keras.layers": _LAYERS,
    "keras.initializers": _INITIALIZERS,
    "keras.regularizers": _REGULARIZERS,
    "keras.constraints": _CONSTRAINTS,
    "keras.src.models.functional": _MODELS,
    "keras.src.models.sequential": _MODELS,
    "keras.src.models.model": _MODELS,
    "keras.models": _MODELS,
    "keras": _MODELS | {"DTypePolicy"},
    "nuclei_utils.models": _COURSE_MODELS,
}


def load_model(path: str | os.PathLike) -> keras.Model:
    """Load a network from a `.keras` file after a check.

    No class of the course needs to be imported before. The network is not compiled: call `training.compile_model`, or
    `compile`, before the network is trained or evaluated.

    Raises
    ------
    NucleiError
        If the file is missing, broken, or from a version of Keras that this version cannot read; or if it points to
        other files, or names a class or function outside of the lists of this module.

    Examples
    --------
    >>> models.unet(filters=2, depth=1).save("small.keras")
    >>> load_model("small.keras").name
    'unet'
    """
    path = Path(path)
    if not path.is_file():
        raise NucleiError(f"{path} is missing: give the path of a model file, as `nuclei-utils train` writes")
    if path.suffix != ".keras":
        raise NucleiError(f"{path}: found a file that ends in {path.suffix!r}, expected .keras: save the model again")
    saved_by = ""
    try:
        saved_by = _check_file(path)
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except NucleiError:
        raise
    except Exception as error:  # a broken byte can raise any error in Keras, zipfile or h5py
        reason = textwrap.shorten(first_line(error), 300)
        hint = ""
        if saved_by and saved_by != keras.__version__:
            hint = (
                f". The file was saved by Keras {saved_by}, this is {keras.__version__}: save it again, or update Keras"
            )
        raise NucleiError(f"{path} cannot be loaded as a Keras model: {reason}{hint}") from error


def _check_file(path):
    """Check a file, and return the Keras version that saved it."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename not in PARTS:
                raise NucleiError(f"{path}: found the part {info.filename!r}, expected only {', '.join(PARTS)}")
            if info.file_size > PARTS[info.filename]:
                raise NucleiError(
                    f"{path}: {info.filename} has {info.file_size:,} bytes, expected at most {PARTS[info.filename]:,}"
                )
        config = json.loads(archive.read("config.json"))
        if not isinstance(config, dict):
            raise NucleiError(f"{path}: found no network in its config.json: save the model again")
        config.pop("compile_config", None)  # Keras ignores it because the network is not compiled
        _check_config(config, path)
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            _check_weights(file, path)
        return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))


def _check_config(value, path, key=""):
    """Refuse a configuration with classes or functions that are not listed."""
    if isinstance(value, list):
        for item in value:
            _check_config(item, path, key)
    elif isinstance(value, dict):
        if "class_name" in value:
            _check_object(value, path, key)
        for name, item in value.items():
            _check_config(item, path, name)
    elif isinstance(value, str):
        if key == "activation" and value not in _ACTIVATIONS:
            raise _refusal(path, f"the activation {value!r}")
        for ending, names in _SLOTS.items():
            if key.endswith(ending) and value not in names:
                raise _refusal(path, f"{value!r} as {key}")


def _check_object(value, path, key):
    name, module = value["class_name"], value.get("module")
    registered = value.get("registered_name")
    if name == "function":
        known = key == "activation" and module == "builtins" and value.get("config") in _ACTIVATIONS
        known = known and registered in ("function", None, value["config"])
    elif name in _MARKERS:
        known = module is None
    else:
        known = isinstance(module, str) and isinstance(name, str) and name in _MODULES.get(module, ())
        known = known and registered in (name, None, f"nuclei_utils>{name}" if name in _COURSE_MODELS else name)
    if not known:
        raise _refusal(path, f"{module}.{name}" if module else str(name))


def _refusal(path, item):
    return NucleiError(
        f"{path}: found {item}, expected only the listed layers and functions (nuclei_utils.saving): build the network "
        "in Python, and load its weights"
    )


def _check_weights(file, path):
    """Refuse weights that are too large or lie in another file."""
    total = entries = 0

    def check(group):
        nonlocal total, entries
        for name in group:
            entries += 1
            if entries > _MAX_ENTRIES:
                raise NucleiError(f"{path}: its weights have more than {_MAX_ENTRIES:,} entries, the largest number")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise NucleiError(f"{path}: its weights hold a link, {group.name}/{name}, to another file or group")
            item = group[name]
            if isinstance(item, h5py.Group):
                check(item)
                continue
            if item.external or item.is_virtual:
                raise NucleiError(f"{path}: its weights {item.name} lie in another file")
            total += item.nbytes
            if total > _MAX_BYTES:
                raise NucleiError(f"{path}: its weights have more than {_MAX_BYTES:,} bytes, the largest size")

    check(file)
