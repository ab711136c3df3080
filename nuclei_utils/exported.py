"""Run networks from exported files, without Keras: ONNX and LiteRT files, and the included network in 8 bits.

`deploy` writes such files. The functions of `predict` take their networks.
"""

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nuclei_utils import datasets
from nuclei_utils.errors import NucleiError, first_line

INCLUDED = {"int8": "included_network.int8.onnx", "float32": "included_network.weights.h5"}
"""Files of the included network, by precision: an ONNX file, and the weights for `models.included_network`."""
SUFFIXES = (".onnx", ".tflite")
"""Endings of the names of exported files."""


class Frozen(NamedTuple):
    """Network with constant weights, from a file or from `deploy.freeze`."""

    name: str
    input_shape: tuple
    function: Callable

    def __call__(self, batch: np.ndarray) -> Any:
        """Compute the outputs for a float32 array (batch, H, W, 3)."""
        return self.function(batch)


def included_network() -> Frozen:
    """Return the included network (`models.included_network`) in 8 bits, which is faster without a GPU.

    Weights and feature maps have 8 bits. Inputs and outputs are float32, as those of the network in Keras. Its scores
    are in the model card, docs/included_network.md.

    Examples
    --------
    >>> sorted(included_network()(np.zeros((1, 64, 64, 3), np.float32)))
    ['boundary', 'distance', 'mask']
    """
    return load(datasets.asset(INCLUDED["int8"]))


def load(path: str | os.PathLike, threads: int | None = None) -> Frozen:
    """Load a file from `deploy.export_onnx` or `deploy.export_litert`, for the functions of `predict`.

    By default, the network uses as many threads as `TF_NUM_INTRAOP_THREADS` says, or all cores that this process may
    use. LiteRT files need ai-edge-litert if TensorFlow has no `tf.lite`.

    Returns
    -------
    Frozen
        The input is a float32 array (batch, H, W, 3) in [0, 1]. The result is a dictionary of float32 arrays (batch, H,
        W, 1) in [0, 1]. A LiteRT file raises `ValueError` for any shape but that of the file, and `predict` cuts images
        into tiles of this shape.
    """
    loaders = {".onnx": _load_onnx, ".tflite": _load_litert}
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write it with `deploy.export_onnx` or `deploy.export_litert`")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)  # `cluster` sets it for workers
    return Frozen(path.stem, *loaders[path.suffix](path, threads or limit or cores))


def _load_onnx(path, threads):
    try:
        import onnxruntime
    except ImportError as error:  # for example a library of the system is missing
        raise NucleiError(
            f"onnxruntime cannot be loaded ({first_line(error)}): install it again, or use a network in Keras; for the "
            "included network, the command has --precision float32"
        ) from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a thread that waits leaves its core
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    shape = tuple(side if isinstance(side, int) else None for side in image.shape)  # open sizes have names
    return shape, lambda batch: dict(zip(names, session.run(names, {image.name: batch}), strict=True))


def _load_litert(path, threads):
    if find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    else:  # the deprecated interpreter of TensorFlow
        import tensorflow as tf

        if not hasattr(tf.lite, "Interpreter"):
            raise ImportError("ai_edge_litert not found: install with `pip install ai_edge_litert`")
        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        runner = Interpreter(os.fspath(path), num_threads=threads).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    shape = tuple(details["shape"].tolist())

    def run(batch):
        if batch.shape != shape:
            raise ValueError(f"{path} takes images of shape {shape}, found {batch.shape}: export it for that size")
        return runner(**{name: batch})

    return shape, run
