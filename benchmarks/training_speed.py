"""What limits the speed of training? Times the pipeline, the training step with and without XLA, and the machine.

NUCLEI_DATA=stage1_fixed python -m benchmarks.training_speed
"""

import time

import keras
import numpy as np
import tensorflow as tf

from benchmarks import results
from nuclei_utils import datasets, input_pipeline, models, training

SIZE, BATCH, FILTERS, ROUNDS = 256, 8, 16, 10


def step_flops(model):
    """Floating-point operations of a training step on one image: forward, and twice that for the gradients."""
    return 3 * 2 * models.count_multiplications(model)  # a multiplication goes with an addition


def trainer(jit_compile):
    """Make a function that trains one batch."""
    model = training.compile_model(models.unet((SIZE, SIZE, 3), filters=FILTERS), steps=1000)
    model.compile(model.optimizer, model.loss, jit_compile=jit_compile)
    return model.train_on_batch, model


def convolution():
    """Make a function that runs one convolution of the network's middle, the best case for its arithmetic."""
    maps = tf.random.normal((BATCH, 64, 64, 128))
    kernel = tf.random.normal((3, 3, 128, 128))
    flops = 2 * BATCH * 64 * 64 * 9 * 128 * 128
    return tf.function(lambda: tf.nn.conv2d(maps, kernel, 1, "SAME")), flops


def median_times(functions):
    """Time functions in turn, so that a machine that is busy at times disturbs all alike; return median seconds."""
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()  # compile
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def pipeline_seconds(augment):
    """Return the seconds per image of the pipeline alone: its second epoch, when the cache is full."""
    batches = input_pipeline.training_batches(input_pipeline.read(split="train"), SIZE, BATCH, augment=augment)
    for _ in range(2):
        start = time.perf_counter()
        count = sum(len(images) for images, _ in batches)
    return (time.perf_counter() - start) / count


def laptop_minutes(model, step_seconds):
    """Return how long the `laptop` profile takes on the data: its steps, and validation after each epoch."""
    profile = training.PROFILES["laptop"]
    train = input_pipeline.training_batches(
        input_pipeline.read(split="train"), SIZE, BATCH, profile.augment, min_crops=profile.crops
    )
    validation = input_pipeline.validation_batches(input_pipeline.read(split="validation"), SIZE, BATCH)
    for _ in range(2):  # the first compiles, and fills the cache
        start = time.perf_counter()
        model.evaluate(validation, verbose=0)
    return profile.epochs * (len(train) * step_seconds + time.perf_counter() - start) / 60


def main():
    """Time, and write what came out."""
    keras.utils.set_random_seed(0)
    pipelines = {"augmented": pipeline_seconds(augment="all"), "not augmented": pipeline_seconds(augment=None)}
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, SIZE, SIZE, 3)).astype(np.float32)
    masks = (images[..., :1] > 0.8).astype(np.float32)
    step, model = trainer(jit_compile=False)
    xla_step, _ = trainer(jit_compile=True)
    one_convolution, convolution_flops = convolution()
    few = images[:, :16, :16], masks[:, :16, :16]
    small = models.unet((16, 16, 3), filters=1, depth=4)
    training.compile_model(small, steps=1000)
    seconds = median_times(
        {
            "training step": lambda: step(images, masks),
            "training step, XLA": lambda: xla_step(images, masks),
            "step of a network of 1 map on 16 pixels": lambda: small.train_on_batch(*few),
            "one convolution": lambda: one_convolution().numpy(),
        }
    )
    step_seconds = seconds["training step"] / BATCH
    figures = {
        "data": datasets.current(),
        "crop": SIZE,
        "batch": BATCH,
        "filters": FILTERS,
        "rounds": ROUNDS,
        "pipeline_ms_per_image": {name: round(1000 * value, 2) for name, value in pipelines.items()},
        "step_ms_per_image": round(1000 * step_seconds, 1),
        "step_ms_per_image_xla": round(1000 * seconds["training step, XLA"] / BATCH, 1),
        # step by step, on a machine that does nothing else
        "laptop_profile_minutes": round(laptop_minutes(model, seconds["training step"]), 1),
        "xla_over_plain": round(seconds["training step, XLA"] / seconds["training step"], 2),
        "pipeline_over_step": round(pipelines["augmented"] / step_seconds, 3),
        # what Python and Keras take for a step, whatever the network computes
        "overhead_over_step": round(seconds["step of a network of 1 map on 16 pixels"] / seconds["training step"], 3),
        "gflops_of_the_step": round(step_flops(model) / step_seconds / 1e9, 1),
        "gflops_of_one_convolution": round(convolution_flops / seconds["one convolution"] / 1e9, 1),
    }
    print(*(f"{name}: {value}" for name, value in figures.items()), sep="\n")
    print(f"wrote {results.write('training_speed', figures)}")


if __name__ == "__main__":
    main()
