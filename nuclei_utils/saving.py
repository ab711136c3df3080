"""Open a network from a `.keras` file, from anybody: the file is checked before anything is built from it.

A `.keras` file names the classes and functions that Keras calls to build the network. Keras' own safe mode refuses
Python code in the file, but a file can still name any function of Keras, and some of these write files. `load_model`
therefore accepts only the layers and functions listed here.

What is checked: every class and function that the file names, the links and sizes inside of its weights, and the names
and sizes of its parts. What is not checked: whether the network is any good, how much time and memory the network takes
to build and to predict, and faults of the libraries that read the file (Keras, HDF5). Formats other than `.keras` are
refused.
"""

import io
import json
import zipfile
from pathlib import Path

import h5py
import keras

from nuclei_utils.errors import NucleiError

LAYERS = {
    "Activation",
    "Add",
    "Average",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "Conv2DTranspose",
    "Cropping2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "ELU",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "GroupNormalization",
    "Identity",
    "InputLayer",
    "LayerNormalization",
    "LeakyReLU",
    "MaxPooling2D",
    "Maximum",
    "Multiply",
    "Normalization",
    "PReLU",
    "Permute",
    "ReLU",
    "Rescaling",
    "Reshape",
    "Resizing",
    "SeparableConv2D",
    "Softmax",
    "SpatialDropout2D",
    "Subtract",
    "UpSampling2D",
    "ZeroPadding2D",
}
"""Layers of Keras that a file may hold."""


INITIALIZERS = {
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "LecunNormal",
    "LecunUniform",
    "Ones",
    "Orthogonal",
    "RandomNormal",
    "RandomUniform",
    "TruncatedNormal",
    "VarianceScaling",
    "Zeros",
}


REGULARIZERS = {"L1", "L2", "L1L2", "OrthogonalRegularizer"}


CONSTRAINTS = {"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}


ACTIVATIONS = {
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "leaky_relu",
    "linear",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "swish",
    "tanh",
}
"""Functions that a file may name, and only as the activation of a layer."""


MODELS = {"Functional", "Model", "Sequential"}


OURS = {"FixedStatistics", "DeepSupervision"}
"""Classes of `nuclei_utils.models` that a file may hold."""


MARKERS = {"__keras_tensor__", "__tuple__"}
"""Names by which Keras marks values that are not objects."""


PARTS = {"config.json": 2**24, "metadata.json": 2**24, "model.weights.h5": 2**30}
"""The parts of a file, and the most bytes that each may have when it is unpacked. Keras would unpack further parts."""


LARGEST = PARTS["model.weights.h5"]
"""Most bytes that all weights may have when they are unpacked."""


MOST_ENTRIES = 100_000
"""Most groups and arrays of the weights, each counted once for each name that leads to it."""


_SLOTS = {"_initializer": INITIALIZERS, "_regularizer": REGULARIZERS, "_constraint": CONSTRAINTS}


_MODULES = {
    "keras.layers": LAYERS,
    "keras.initializers": INITIALIZERS,
    "keras.regularizers": REGULARIZERS,
    "keras.constraints": CONSTRAINTS,
    "keras.src.models.functional": MODELS,
    "keras.src.models.sequential": MODELS,
    "keras.src.models.model": MODELS,
    "keras.models": MODELS,
    "keras": MODELS | {"DTypePolicy"},
    "nuclei_utils.models": OURS,
}


def load_model(path):
    """Load a network from a `.keras` file after checking what the file would build.

    No import of the network's own classes is needed. The network is not compiled: it predicts at once, and needs
    `compile` (or `training.compile_model`) before it is trained or evaluated.

    Parameters
    ----------
    path : path-like
        A `.keras` file that `keras.Model.save` or `nuclei-utils train` wrote.

    Returns
    -------
    keras.Model

    Raises
    ------
    errors.NucleiError
        If the file is missing or broken, names a class or function outside of the lists of this module, points to
        other files, or was saved by a Keras that this Keras cannot read.

    Examples
    --------
    >>> from nuclei_utils import models, saving
    >>> models.unet(filters=2, depth=1).save("small.keras")
    >>> saving.load_model("small.keras").name
    'unet'
    """
    path = Path(path)
    if not path.is_file():
        raise NucleiError(f"{path} is missing: name a model file, such as `nuclei-utils train` writes")
    if path.suffix != ".keras":
        raise NucleiError(f"{path}: found a {path.suffix or 'nameless'} file, expected .keras, which can be checked")
    saved_by = ""
    try:
        saved_by = _check_file(path)
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except NucleiError:
        raise
    except Exception as error:  # a broken byte can raise any error in Keras, zipfile or h5py
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        hint = ""
        if saved_by and saved_by != keras.__version__:
            hint = (
                f". Keras {saved_by} saved the file and this is Keras {keras.__version__}: a newer Keras writes files "
                "that an older one may not read; save the file with this version, or update Keras"
            )
        raise NucleiError(f"{path} cannot be loaded as a Keras model: {reason}{hint}") from error


def _check_file(path):
    """Refuse a file that names what it must not; return the version of the Keras that saved it."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename not in PARTS:
                raise NucleiError(f"{path} holds {info.filename!r}, expected no parts other than {', '.join(PARTS)}")
            if info.file_size > PARTS[info.filename]:
                raise NucleiError(
                    f"{path}: {info.filename} has {info.file_size:,} bytes, more than {PARTS[info.filename]:,}"
                )
        config = json.loads(archive.read("config.json"))
        if not isinstance(config, dict):
            raise NucleiError(f"{path}: its config.json describes no network")
        # how the network was trained: Keras ignores this part, because the network is not compiled
        config.pop("compile_config", None)
        _check_config(config, path)
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            _check_weights(file, path)
        return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))


def _check_config(value, path, key=""):
    """Walk through a configuration, and refuse classes and functions that are not listed."""
    if isinstance(value, list):
        for item in value:
            _check_config(item, path, key)
    elif isinstance(value, dict):
        if "class_name" in value:
            _check_object(value, path, key)
        for name, item in value.items():
            _check_config(item, path, name)
    elif isinstance(value, str):
        if key == "activation" and value not in ACTIVATIONS:
            raise _refusal(path, f"the activation {value!r}")
        for ending, names in _SLOTS.items():
            if key.endswith(ending) and value not in names:
                raise _refusal(path, f"{value!r} as {key}")


def _check_object(value, path, key):
    name, module = value["class_name"], value.get("module")
    registered = value.get("registered_name")
    if name == "function":
        known = key == "activation" and module == "builtins" and value.get("config") in ACTIVATIONS
        known = known and registered in ("function", None, value["config"])
    elif name in MARKERS:
        known = module is None
    else:
        known = isinstance(module, str) and isinstance(name, str) and name in _MODULES.get(module, ())
        known = known and registered in (name, None, f"nuclei_utils>{name}" if name in OURS else name)
    if not known:
        raise _refusal(path, f"{module}.{name}" if module else str(name))


def _refusal(path, what):
    return NucleiError(
        f"{path} holds {what}, which is not on the list of layers and functions that a model file may hold "
        "(nuclei_utils.saving): build such a network in Python, and load its weights"
    )


def _check_weights(file, path):
    """Refuse weights that lie in another file, or that are too many or too large."""
    total = entries = 0

    def check(group):
        nonlocal total, entries
        for name in group:
            entries += 1
            if entries > MOST_ENTRIES:
                raise NucleiError(f"{path}: its weights have more than {MOST_ENTRIES:,} entries")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise NucleiError(
                    f"{path}: its weights hold a link, {group.name}/{name}, that can point to another file"
                )
            item = group[name]
            if isinstance(item, h5py.Group):
                check(item)
                continue
            if item.external or item.is_virtual:
                raise NucleiError(f"{path}: its weights {item.name} lie in another file")
            total += item.nbytes
            if total > LARGEST:
                raise NucleiError(f"{path}: its weights have more than {LARGEST:,} bytes")

    check(file)
