"""Choose the devices of a training, and its precision.

Several devices train one network together. Each device has a copy of the network, and computes its share of every
batch. The gradients are averaged, so the copies stay equal. `tf.distribute.MirroredStrategy` does this with the
TensorFlow backend of Keras, and `keras.distribution.DataParallel` with the JAX backend.

With JAX, every number is that of one device, apart from rounding. With TensorFlow, each device computes two values from
its own share: the statistics of batch normalisation, and the Dice loss, which are then averaged over the devices.

All devices are in one machine. Keras 3 does not support TensorFlow's MultiWorkerMirroredStrategy
(keras-team/keras#20585). For several machines, write a script for the JAX backend that calls
`jax.distributed.initialize` and sets `keras.distribution.DataParallel`.
"""

import contextlib
import functools
import json
from collections.abc import Iterator

import keras

from nuclei_utils.errors import NucleiError

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
"""Names of Keras' dtype policies for a training."""


def find_devices(text: str = "auto") -> list[str]:
    """Return the names of devices, such as "gpu:0".

    Parameters
    ----------
    text : str
        "cpu", or "gpu" for the first GPU, or "gpu:0,1" for GPUs by number. "auto" is the choice of the backend, for
        which the list is empty: the first GPU, or the CPU.

    Raises
    ------
    errors.NucleiError
        If a device does not exist.

    Examples
    --------
    >>> find_devices("cpu")
    ['cpu:0']
    """
    kind, _, numbers = text.lower().partition(":")
    if text.lower() == "auto":
        return []
    numbers = [number.strip() for number in numbers.split(",")] if numbers else ["0"]
    if kind not in ("cpu", "gpu") or not all(number.isdecimal() for number in numbers):
        raise NucleiError(f"found the devices {text!r}, expected auto, cpu, gpu, or gpu:0,1 with the numbers of GPUs")
    names = list(dict.fromkeys(f"{kind}:{int(number)}" for number in numbers))
    existing = [*_list_devices("gpu"), *_list_devices("cpu")]
    if not existing:
        raise NucleiError(f"Keras lists no devices for the {keras.backend.backend()} backend: use auto")
    missing = [name for name in names if name not in existing]
    if missing:
        raise NucleiError(
            f"found no device {', '.join(missing)} for the {keras.backend.backend()} backend, expected one of "
            f"{', '.join(existing)}: choose other devices, or check the driver and the installation"
        )
    return names


def _list_devices(kind):
    try:
        return keras.distribution.list_devices(kind)
    except (RuntimeError, AttributeError):  # JAX without devices of this kind; Keras has no list for PyTorch
        return []


@contextlib.contextmanager
def use_devices(devices: str = "auto", precision: str = "float32") -> Iterator[int]:
    """Build and train networks on devices, and in a precision.

    Build, compile and fit the network in the context. The value of the context is the number of devices. The size of a
    batch is that of all devices together, and must be a multiple of this number (`input_pipeline.pad_batches`). With
    TensorFlow, choose the same set of several devices for all trainings of a process.

    Parameters
    ----------
    devices
        As for `find_devices`, with the same errors.
    precision : {"float32", "mixed_bfloat16", "mixed_float16"}
        Keras' dtype policy. In mixed precision, convolutions use 16 bits. Weights, batch normalisation, the last layers
        and the losses use 32 bits. Mixed precision saves memory and time on a GPU, and is slow on a CPU.
        `mixed_bfloat16` needs a GPU of the year 2020 or later (compute capability 8.0). `mixed_float16` needs
        compute capability 7.0, and Keras then scales the loss.

    Examples
    --------
    >>> with use_devices("cpu") as count:
    ...     print(count, keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).count_params())
    1 3
    """
    if precision not in PRECISIONS:
        raise ValueError(f"found precision={precision!r}, expected one of {', '.join(PRECISIONS)}")
    names = find_devices(devices)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        with _strategy(names) if names else contextlib.nullcontext():
            yield max(len(names), 1)
    finally:
        keras.config.set_dtype_policy(before)


def _strategy(names):
    """Return a context in which variables are copied to all devices."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _mirrored_strategy(tuple(names)).scope()
    if backend == "jax":
        return keras.distribution.DataParallel(devices=names).scope()
    raise NucleiError(f"found the {backend} backend, expected tensorflow or jax to choose devices: use auto")


@functools.cache
def _mirrored_strategy(names):
    """Return the same strategy for the same devices: two strategies would confuse their messages between devices."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names)


def in_float32(model: keras.Model) -> keras.Model:
    """Return a network for float32 with the weights of a network in mixed precision.

    The weights have 32 bits in both. On a CPU, mixed precision is slow. A network without mixed precision is returned
    as it is.

    Examples
    --------
    >>> with use_devices(precision="mixed_bfloat16"):
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compute_dtype, in_float32(model).compute_dtype
    ('bfloat16', 'float32')
    """
    config = json.dumps(keras.saving.serialize_keras_object(model))
    changed = config
    for name in PRECISIONS[1:]:
        changed = changed.replace(f'"{name}"', '"float32"')
    if changed == config:
        return model
    model_in_float32 = keras.saving.deserialize_keras_object(json.loads(changed))
    model_in_float32.set_weights(model.get_weights())
    return model_in_float32
