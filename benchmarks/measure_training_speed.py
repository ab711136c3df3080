"""Measure the speed of the input pipeline, of a training step with and without XLA, and of the machine.

NUCLEI_DATA=stage1_fixed python -m benchmarks.measure_training_speed
"""

import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks import results_file
from nuclei_utils import datasets, input_pipeline, models, training

SIZE, BATCH, FILTERS, ROUNDS = 256, 8, 16, 10


def build(jit_compile: bool) -> keras.Model:
    """Build the U-Net, compiled for training."""
    model = training.compile_model(models.unet((SIZE, SIZE, 3), filters=FILTERS), steps=1000)
    model.compile(model.optimizer, model.loss, jit_compile=jit_compile)
    return model


def convolution() -> tuple[Callable, int]:
    """Return a function that runs one convolution as in the middle of the U-Net, and its operations."""
    maps = tf.random.normal((BATCH, 64, 64, 128))
    kernel = tf.random.normal((3, 3, 128, 128))
    operations = 2 * BATCH * 64 * 64 * 9 * 128 * 128
    return tf.function(lambda: tf.nn.conv2d(maps, kernel, 1, "SAME")), operations


def median_seconds(functions: dict[str, Callable]) -> dict[str, float]:
    """Time functions in turns, so that a busy moment of the machine slows all of them; return the median seconds."""
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()  # compile
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def pipeline_seconds(augment: str | None) -> float:
    """Return the seconds per image of the input pipeline in its second epoch, when the cache is full."""
    batches = input_pipeline.training_batches(input_pipeline.read(split="train"), SIZE, BATCH, augment=augment)
    for _ in range(2):
        start = time.perf_counter()
        count = sum(len(images) for images, _ in batches)
    return (time.perf_counter() - start) / count


def laptop_minutes(model: keras.Model, step_seconds: float) -> float:
    """Return the minutes of the `laptop` profile: its training steps, and a validation after each epoch."""
    profile = training.PROFILES["laptop"]
    train = input_pipeline.training_batches(
        input_pipeline.read(split="train"), SIZE, BATCH, profile.augment, min_crops=profile.crops
    )
    validation = input_pipeline.validation_batches(input_pipeline.read(split="validation"), SIZE, BATCH)
    for _ in range(2):  # the first pass compiles and fills the cache
        start = time.perf_counter()
        model.evaluate(validation, verbose=0)
    return profile.epochs * (len(train) * step_seconds + time.perf_counter() - start) / 60


def main() -> None:
    """Measure, and write the results."""
    keras.utils.set_random_seed(0)
    pipelines = {"augmented": pipeline_seconds(augment="all"), "not augmented": pipeline_seconds(augment=None)}
    images = np.random.default_rng(0).random((BATCH, SIZE, SIZE, 3)).astype(np.float32)
    masks = (images[..., :1] > 0.8).astype(np.float32)
    model, xla_model = build(jit_compile=False), build(jit_compile=True)
    one_convolution, convolution_operations = convolution()
    tiny = training.compile_model(models.unet((16, 16, 3), filters=1, depth=4), steps=1000)
    seconds = median_seconds(
        {
            "step": lambda: model.train_on_batch(images, masks),
            "XLA step": lambda: xla_model.train_on_batch(images, masks),
            "tiny step": lambda: tiny.train_on_batch(images[:, :16, :16], masks[:, :16, :16]),
            "convolution": lambda: one_convolution().numpy(),
        }
    )
    step_seconds = seconds["step"] / BATCH
    # forward, and twice as much for the gradients; a multiplication comes with an addition
    step_operations = 3 * 2 * models.count_multiplications(model)
    run = {
        "crop_size": SIZE,
        "batch_size": BATCH,
        "filters": FILTERS,
        "rounds": ROUNDS,
        "pipeline_ms_per_image": {name: round(1000 * value, 2) for name, value in pipelines.items()},
        "step_ms_per_image": round(1000 * step_seconds, 1),
        "step_ms_per_image_xla": round(1000 * seconds["XLA step"] / BATCH, 1),
        "laptop_profile_minutes": round(laptop_minutes(model, seconds["step"]), 1),
        "xla_over_plain": round(seconds["XLA step"] / seconds["step"], 2),
        "pipeline_over_step": round(pipelines["augmented"] / step_seconds, 3),
        # time of Python and Keras, which does not depend on the network
        "overhead_over_step": round(seconds["tiny step"] / seconds["step"], 3),
        "gflops_of_the_step": round(step_operations / step_seconds / 1e9, 1),
        "gflops_of_one_convolution": round(convolution_operations / seconds["convolution"] / 1e9, 1),
    }
    print(*(f"{name}: {value}" for name, value in run.items()), sep="\n")
    data = datasets.current()
    results_file.add("training_speed", data, run, data=data)


if __name__ == "__main__":
    main()
