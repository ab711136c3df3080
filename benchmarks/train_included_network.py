"""Train the network of the package on a GPU: Keras on JAX, with crops that the GPU cuts and augments as well.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.train_included_network --pack runs/gpu/fixed.npz
    KERAS_BACKEND=jax python -m benchmarks.train_included_network runs/gpu/fixed.npz,0.5,0 runs/gpu/fixed.npz,0.5,1

The first command packs the training and validation images of the data set into one file. The second command needs this
file, Keras and JAX, but no TensorFlow. It runs several trainings in turns, so that they share the GPU and the compiled
functions. It writes weights, which every backend of Keras reads, and the history. `benchmarks.score_included_network`
scores the weights, and `tools.release_network` puts them into the package.

Crops and targets are as for `input_pipeline.training_batches(targets="instances")`, with four differences. The largest
zoom is an argument. The contrast of a crop can also fall. A fifth of the crops is blurred. An image type is drawn with
a probability in proportion to the square root of its number of images. The learning rate follows
`training.warmup_cosine`, but over the time of the training, not over its steps. The weights are an exponential moving
average over the steps.
"""

import argparse
import functools
import json
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results_file
from nuclei_utils import datasets, labels, preprocess
from nuclei_utils.files import atomic_write

STEPS = 50  # of a turn
AVERAGE = 0.999  # decay of the moving average of the weights
MAPS = ("mask", "boundary", "distance")


def pack(splits: dict[str, list[datasets.Record]]) -> dict[str, np.ndarray]:
    """Pack the images of splits into flat arrays.

    Returns
    -------
    dict of str to array
        For each split: `shapes` (n, 2), `image_types` (n,), `images` uint8 (pixels, 3), normalised, `label_maps` uint16
        (pixels,) and `distances` uint8 (pixels,). The pixels of all images are stacked row by row.
    """
    arrays = {}
    for split, records in splits.items():
        images = [np.round(255 * preprocess.normalize(record.image)).astype(np.uint8) for record in records]
        distances = [np.round(255 * labels.distance_map(record.label_map)).astype(np.uint8) for record in records]
        arrays |= {
            f"{split}_shapes": np.array([record.label_map.shape for record in records], np.int32),
            f"{split}_image_types": np.array([record.image_type for record in records]),
            f"{split}_images": np.concatenate([image.reshape(-1, 3) for image in images]),
            f"{split}_label_maps": np.concatenate([record.label_map.ravel() for record in records]).astype(np.uint16),
            f"{split}_distances": np.concatenate([distance.ravel() for distance in distances]),
        }
    return arrays


def write_packed(path: Path, splits: dict[str, list[datasets.Record]]) -> None:
    """Write the packed images of splits."""
    with atomic_write(path) as partial_path, partial_path.open("wb") as file:
        np.savez_compressed(file, **pack(splits))
    print(f"wrote {path}")


def read_course(weights: Path) -> dict:
    """Read the settings and the history of a training from the folder of its weights; every tenth of the history."""
    record = json.loads((weights.parent / "history.json").read_text(encoding="utf-8"))
    course = record.pop("trainings")[weights.name.removesuffix(".weights.h5")]
    course["history"] = [row for row in course["history"] if "val_loss" in row]
    return {"training": {**record, **course}}


def read_network(weights: Path) -> Any:
    """Build the network, and load the weights of a training."""
    from nuclei_utils import models

    network = models.instance_unet(weights=None, fixed_statistics=True)
    network.load_weights(weights)
    return network


def to_gpu(arrays: dict[str, np.ndarray], sizes: dict[str, int] | None = None, power: float = 0.5) -> dict:
    """Move the training images to the GPU, with what `random_crops` needs to draw crops.

    Parameters
    ----------
    arrays : dict of str to array
        From `pack`.
    sizes : dict of str to int, optional
        Length to which each array is filled up, so that one compiled function serves several data sets.
    power : float
        An image type is drawn with a probability in proportion to its number of images to this power.
    """
    import jax.numpy as jnp

    shapes, distances = arrays["train_shapes"], arrays["train_distances"]
    offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])
    places = np.flatnonzero(distances == 255)  # the middle of each nucleus
    _, types, counts = np.unique(arrays["train_image_types"], return_inverse=True, return_counts=True)
    bounds = np.cumsum(counts[types] ** (power - 1.0))
    data = {
        "shapes": shapes,
        "offsets": offsets.astype(np.int32),
        "bounds": (bounds / bounds[-1]).astype(np.float32),  # image i is drawn by a number between bounds i - 1 and i
        "places": places.astype(np.int32),
        "first_places": np.searchsorted(places, offsets).astype(np.int32),
        "images": np.column_stack([arrays["train_images"], distances]),
        "label_maps": arrays["train_label_maps"],
    }
    for name, size in (sizes or {}).items():
        missing = size - len(data[name])
        data[name] = np.pad(data[name], [(0, missing)] + [(0, 0)] * (data[name].ndim - 1), mode="edge")
    return {name: jnp.asarray(values) for name, values in data.items()}


def reflect(index, side):
    """Reflect indices outside of 0..side-1 at the middle of the first and last pixel."""
    import jax.numpy as jnp

    period = jnp.maximum(2 * (side - 1), 1)
    index = jnp.abs(index) % period
    return jnp.minimum(index, period - index)


def random_crops(data, key, count, size, zoom):
    """Cut random crops, rotated, mirrored and zoomed by `2**-zoom` to `2**zoom`.

    Returns images (count, size, size, 3) in [0, 1], label maps and distances (count, size, size).
    """
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(key, 8)
    number = jnp.searchsorted(data["bounds"], jax.random.uniform(keys[0], (count,)))
    number = jnp.minimum(number, len(data["bounds"]) - 1)
    height, width = data["shapes"][number].T
    offset, first = data["offsets"][number], data["first_places"][number]
    centers = data["first_places"][number + 1] - first
    scale = 2.0 ** jax.random.uniform(keys[1], (count,), minval=-zoom, maxval=zoom)
    angle = jax.random.uniform(keys[2], (count,), maxval=2 * math.pi)
    mirror = jax.random.rademacher(keys[3], (count,), jnp.float32)
    radius = size / scale / 2

    def anywhere(key, side):
        margin = jnp.minimum(radius, side / 2)
        return margin + jax.random.uniform(key, (count,)) * (side - 2 * margin)

    random_y, random_x = anywhere(keys[4], height), anywhere(keys[5], width)
    place = data["places"][first + (jax.random.uniform(keys[6], (count,)) * centers).astype(jnp.int32)] - offset
    is_near, shift_y, shift_x = jax.random.uniform(keys[7], (3, count))
    is_near = (is_near < 0.5) & (centers > 0)
    y = jnp.where(is_near, place // width + (shift_y - 0.5) * radius, random_y)
    x = jnp.where(is_near, place % width + (shift_x - 0.5) * radius, random_x)
    # each crop's coordinates (count, size, size) in its image
    rows, columns = jnp.meshgrid(*2 * [jnp.arange(size) - (size - 1) / 2], indexing="ij")
    cos, sin, mirror, y, x, scale, height, width, offset = (
        values[:, None, None] for values in (jnp.cos(angle), jnp.sin(angle), mirror, y, x, scale, height, width, offset)
    )
    across = x + (mirror * cos * columns - sin * rows) / scale
    down = y + (mirror * sin * columns + cos * rows) / scale

    def pixel(row, column):
        return offset + reflect(row, height) * width + reflect(column, width)

    top, left = jnp.floor(down).astype(jnp.int32), jnp.floor(across).astype(jnp.int32)
    images = 0
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - jnp.abs(down - top - row)) * (1 - jnp.abs(across - left - column))
        images += weight[..., None] * data["images"][pixel(top + row, left + column)][..., :3]
    nearest = pixel(jnp.round(down).astype(jnp.int32), jnp.round(across).astype(jnp.int32))
    return images / 255, data["label_maps"][nearest].astype(jnp.int32), data["images"][nearest][..., 3] / 255


def random_colours(images, key):
    """Change the colours of each image at random, as `input_pipeline.random_colours` does, and blur some images."""
    import jax
    import jax.numpy as jnp

    count = len(images)
    keys = jax.random.split(key, 10)

    def uniform(number, low, high):
        return jax.random.uniform(keys[number], (count, 1, 1, 1), minval=low, maxval=high)

    images = jnp.where(uniform(0, 0, 1) < 0.1, 1 - images, images)
    # a rotation around the grey axis changes the hue, a stretch from the grey axis changes the saturation
    angle = 2 * math.pi * uniform(1, -0.05, 0.05)
    grey = images @ jnp.array([0.299, 0.587, 0.114])[:, None]
    colour = images - grey
    turned = (jnp.roll(colour, 1, axis=-1) - jnp.roll(colour, -1, axis=-1)) / math.sqrt(3)
    mean = images.mean(axis=-1, keepdims=True) - grey
    colour = jnp.cos(angle) * colour + jnp.sin(angle) * turned + (1 - jnp.cos(angle)) * mean
    strength = uniform(2, 0.3, 0.7)
    images = grey + strength / (1 - strength) * colour
    average = images.mean(axis=(1, 2), keepdims=True)
    images = jnp.clip(average + uniform(3, 0.75, 1.25) * (images - average), 0, 1)
    images = jnp.clip(images + uniform(4, -0.1, 0.1), 0, 1)
    images = images ** jnp.exp(uniform(5, -0.4, 0.4))
    # a Gaussian of 7 pixels
    sigma = uniform(6, 0.4, 1.5)
    window = jnp.exp(-(jnp.arange(-3, 4) ** 2) / (2 * sigma**2))
    window /= window.sum(axis=-1, keepdims=True)
    blurred = images
    for axis in (1, 2):
        edges = [(3, 3) if side == axis else (0, 0) for side in range(4)]
        padded = jnp.pad(blurred, edges, mode="reflect")
        parts = [jax.lax.slice_in_dim(padded, i, i + images.shape[axis], axis=axis) for i in range(7)]
        blurred = sum(window[..., i : i + 1] * part for i, part in enumerate(parts))
    images = jnp.where(uniform(7, 0, 1) < 0.2, blurred, images)
    noise = uniform(8, 0, 0.05) * jax.random.normal(keys[9], images.shape)
    return jnp.clip(images + noise, 0, 1)


def targets_of(label_maps, distances):
    """Return the three targets (batch, H, W, 1): mask, boundary (as `labels.boundary_map`) and distance."""
    import jax.numpy as jnp

    padded = jnp.pad(label_maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbours = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    boundary = functools.reduce(jnp.logical_or, [label_maps != neighbour for neighbour in neighbours])
    maps = label_maps > 0, boundary, distances
    return {name: values.astype(jnp.float32)[..., None] for name, values in zip(MAPS, maps, strict=True)}


def shifted_depthwise(self, inputs):
    """Compute a 3x3 depthwise convolution as a sum of nine shifted products, which JAX trains faster on a GPU."""
    import jax.numpy as jnp

    stride = self.strides[0]
    if stride == 1:
        inputs = jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = ((side - 3) // stride + 1 for side in inputs.shape[1:3])
    kernel = jnp.asarray(self.kernel)[..., 0]
    parts = [
        inputs[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride] * kernel[i, j]
        for i in range(3)
        for j in range(3)
    ]
    return sum(parts)


class Training:
    """State and history of one training.

    Parameters
    ----------
    path : str
        File of packed images.
    zoom : str
        Largest zoom of a crop, as a power of two.
    seed : str
    """

    def __init__(self, path: str, zoom: str = "1", seed: str = "0"):
        self.path, self.zoom, self.seed = Path(path), float(zoom), int(seed)
        self.name = f"{self.path.stem}_zoom{self.zoom:g}_seed{self.seed}"
        self.history = []

    def describe(self) -> dict:
        """Return settings and history for the result file."""
        return {"images": self.path.stem, "seed": self.seed, "zoom": self.zoom, "history": self.history}


def train(trainings: list[Training], minutes: float, filters: int, size: int, batch: int, rate: float, out: Path):
    """Run trainings in turns of `STEPS` steps, and write their averaged weights and histories.

    Parameters
    ----------
    minutes : float
        Time of all trainings together, with the compilation, which takes about a minute.
    size, batch : int
        Side of a crop in pixels, and crops in a batch.
    rate : float
        Peak learning rate.
    """
    import jax
    import jax.numpy as jnp
    import keras

    from nuclei_utils import losses, models

    deadline = time.perf_counter() + 60 * minutes
    keras.layers.DepthwiseConv2D.call = shifted_depthwise
    mask_loss = losses.BinaryCrossentropyDice()

    def loss_of(trainable, fixed, images, targets, training):
        outputs, fixed = model.stateless_call(trainable, fixed, images, training=training)
        loss = sum(mask_loss.call(targets[name], outputs[name])[0] for name in ("mask", "boundary"))
        return loss + jnp.mean(jnp.abs(targets["distance"] - outputs["distance"])), fixed

    def step(data, zoom, learning_rate, state, key):
        trainable, fixed, optimizer_state, average, count = state
        crop_key, colour_key = jax.random.split(key)
        images, label_maps, distances = random_crops(data, crop_key, batch, size, zoom)
        images = random_colours(images, colour_key)
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, fixed), gradients = gradient(trainable, fixed, images, targets_of(label_maps, distances), True)
        optimizer_state[1] = learning_rate
        trainable, optimizer_state = optimizer.stateless_apply(optimizer_state, gradients, trainable)
        decay = jnp.minimum(AVERAGE, (1 + count) / (10 + count))
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, [trainable, fixed])
        return (trainable, fixed, optimizer_state, average, count + 1), loss

    @functools.partial(jax.jit, donate_argnums=1)
    def run(data, state, key, zoom, learning_rate):
        keys = jax.random.split(key, STEPS)
        return jax.lax.scan(functools.partial(step, data, zoom, learning_rate), state, keys)

    @jax.jit
    def validate(weights, images, targets):
        return loss_of(*weights, images, targets, False)[0]

    packed = {}
    for path in {training.path for training in trainings}:
        with np.load(path) as file:
            packed[path] = dict(file)
    lengths = [{name: len(values) for name, values in to_gpu(arrays).items()} for arrays in packed.values()]
    sizes = {name: max(length[name] for length in lengths) for name in lengths[0]}
    data = {path: to_gpu(arrays, sizes) for path, arrays in packed.items()}
    crops = {path: center_crops(arrays, 2 * size) for path, arrays in packed.items()}
    for training in trainings:
        keras.utils.set_random_seed(training.seed)
        model = models.instance_unet(filters=filters)
        optimizer = keras.optimizers.Adam(rate, global_clipnorm=1.0)
        optimizer.build(model.trainable_variables)
        groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables
        values = [[jnp.array(variable.value) for variable in group] for group in groups]
        training.state = (*values, jax.tree.map(jnp.copy, values[:2]), jnp.zeros(()))
        training.key = jax.random.key(training.seed)

    def turn(training, done):
        training.key, key = jax.random.split(training.key)
        learning_rate = rate * min((0.05 + done) / 0.1, 0.5 * (1 + math.cos(math.pi * done)))
        settings = jnp.float32(training.zoom), jnp.float32(learning_rate)
        training.state, step_losses = run(data[training.path], training.state, key, *settings)
        loss = float(step_losses.mean())
        if not math.isfinite(loss):
            raise ValueError(f"{training.name} diverged after {len(training.history)} turns")
        return {"loss": round(loss, 4), "learning_rate": float(f"{learning_rate:.3g}")}

    def finish_tenth(training):
        losses = [float(validate(training.state[3], *part)) for part in crops[training.path]]
        for variables, averaged in zip(groups, training.state[3], strict=False):
            for variable, value in zip(variables, averaged, strict=True):
                variable.assign(value)
        with atomic_write(out / f"{training.name}.weights.h5") as partial_path:
            model.save_weights(partial_path)
        return round(float(np.mean(losses)), 4)

    start = time.perf_counter()
    for training in trainings:  # the first call compiles
        training.history.append({"step": STEPS, "seconds": 0.0, **turn(training, 0.0)})
        finish_tenth(training)
    compiled = time.perf_counter()
    print(f"compiled in {compiled - start:.0f} s", flush=True)
    record = {
        "command": results_file.command(),
        "hardware": jax.devices()[0].device_kind,
        "versions": {name: version(name) for name in ("keras", "jax", "numpy")},
        "minutes": minutes,
        "filters": filters,
        "size": size,
        "batch": batch,
        "rate": rate,
        "seconds_of_compilation": round(compiled - start),
    }
    done = 0.0
    while done < 1:
        tenth = int(10 * done)
        for training in trainings:
            row = {"step": STEPS * (len(training.history) + 1), **turn(training, done)}
            row["seconds"] = round(time.perf_counter() - compiled, 1)
            training.history.append(row)
        done = min((time.perf_counter() - compiled) / max(deadline - compiled, 1), 1.0)
        if int(10 * done) > tenth:
            for training in trainings:
                training.history[-1]["val_loss"] = finish_tenth(training)
                print(training.name, json.dumps(training.history[-1]), flush=True)
            with atomic_write(out / "history.json") as partial_path:
                record["trainings"] = {training.name: training.describe() for training in trainings}
                partial_path.write_text(json.dumps(record), encoding="utf-8")


def center_crops(arrays, size, batch=16):
    """Return batches of the centers of the validation images, and their targets.

    The last, smaller batch is left out.
    """
    import jax.numpy as jnp

    crops, start = [], 0
    for height, width in arrays["validation_shapes"]:
        stop = start + height * width
        image, label_map, distance = (
            preprocess.center_crop(
                preprocess.pad_to(arrays[f"validation_{name}"][start:stop].reshape(height, width, -1), (size, size)),
                (size, size),
            )
            for name in ("images", "label_maps", "distances")
        )
        crops.append((image / np.float32(255), label_map[..., 0].astype(np.int32), distance[..., 0] / np.float32(255)))
        start = stop
    batches = [map(np.stack, zip(*crops[i : i + batch], strict=True)) for i in range(0, len(crops) - batch + 1, batch)]
    return [(jnp.asarray(images), targets_of(*map(jnp.asarray, maps))) for images, *maps in batches]


def main() -> None:
    """Pack images, or train with one seed and write weights and history."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    text = "file of packed images, largest zoom of a crop (as a power of two), and seed"
    parser.add_argument("trainings", nargs="*", metavar="FILE,ZOOM,SEED", help=text)
    parser.add_argument("--pack", type=Path, metavar="FILE", help="pack the images of the data set, and end")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of weights and histories")
    parser.add_argument("--minutes", type=float, default=8, help="time of all trainings together")
    parser.add_argument("--filters", type=int, default=16, help="feature maps of the decoder at full size")
    parser.add_argument("--size", type=int, default=192, help="side of a crop, pixels")
    parser.add_argument("--batch", type=int, default=24, help="crops in a batch")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    args = parser.parse_args()
    if args.pack:
        write_packed(args.pack, {split: datasets.load(split=split) for split in ("train", "validation")})
        return
    args.out.mkdir(parents=True, exist_ok=True)
    trainings = [Training(*training.split(",")) for training in args.trainings]
    train(trainings, args.minutes, args.filters, args.size, args.batch, args.rate, args.out)


if __name__ == "__main__":
    main()
