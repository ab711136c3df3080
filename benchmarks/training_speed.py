"""What limits the speed of training? Times the pipeline, the training step with and without XLA, and the machine.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.training_speed

The variants are timed in turn, round after round, so that a machine that is busy at times disturbs all of them alike.
"""

import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks import results
from nuclei_utils import data, models, pipeline, training

SIZE, BATCH, FILTERS, ROUNDS = 256, 8, 16, 10


def step_flops(model):
    """Floating-point operations of a training step on one image: forward, and twice that for the gradients."""
    forward = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.Conv2DTranspose):
            feature_map = layer.input if isinstance(layer, layers.Conv2DTranspose) else layer.output
            forward += 2 * np.prod(feature_map.shape[1:3]) * np.prod(layer.kernel.shape)
    return 3 * int(forward)


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
    """Time functions in turn; return the median seconds of each."""
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main():
    """Time, and write what came out."""
    keras.utils.set_random_seed(0)
    batches = pipeline.training_batches(pipeline.read(split="train"), SIZE, BATCH).repeat()
    plain = pipeline.training_batches(pipeline.read(split="train"), SIZE, BATCH, augment=False).repeat()
    augmented, unchanged = iter(batches), iter(plain)
    for _ in range(70):  # one epoch, so that the cache is full
        images, masks = next(augmented)
        next(unchanged)
    step, model = trainer(jit_compile=False)
    xla_step, _ = trainer(jit_compile=True)
    one_convolution, convolution_flops = convolution()
    seconds = median_times(
        {
            "pipeline, augmented": lambda: [next(augmented) for _ in range(4)],
            "pipeline, not augmented": lambda: [next(unchanged) for _ in range(4)],
            "training step": lambda: step(images, masks),
            "training step, XLA": lambda: xla_step(images, masks),
            "one convolution": lambda: one_convolution().numpy(),
        }
    )
    images_in = {"pipeline, augmented": 4 * BATCH, "pipeline, not augmented": 4 * BATCH}
    per_image = {name: value / images_in.get(name, BATCH) for name, value in seconds.items()}
    figures = {
        "data": data.current(),
        "crop": SIZE,
        "batch": BATCH,
        "filters": FILTERS,
        "rounds": ROUNDS,
        "milliseconds_per_image": {name: round(1000 * value, 1) for name, value in per_image.items()},
        "xla_over_plain": round(seconds["training step, XLA"] / seconds["training step"], 2),
        "pipeline_over_step": round(per_image["pipeline, augmented"] / per_image["training step"], 3),
        "gflops_of_the_step": round(step_flops(model) / per_image["training step"] / 1e9, 1),
        "gflops_of_one_convolution": round(convolution_flops / seconds["one convolution"] / 1e9, 1),
    }
    print(*(f"{name}: {value}" for name, value in figures.items()), sep="\n")
    print(f"wrote {results.write('training_speed', figures)}")


if __name__ == "__main__":
    main()
