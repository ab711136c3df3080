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
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results_file
from nuclei_utils import datasets, labels, preprocess
from nuclei_utils.errors import NucleiError, first_line
from nuclei_utils.files import atomic_write

STEPS = 50  # of a turn
AVERAGE = 0.999  # decay of the moving average of the weights


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
    """Build the network, and load the weights of a training.

    Raises
    ------
    errors.NucleiError
        If the file has other weights than those of `models.instance_unet`.
    """
    from nuclei_utils import models

    network = models.instance_unet(weights=None, fixed_statistics=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns if the file lacks the weights of a layer
            network.load_weights(weights)
    except Exception as error:  # h5py and Keras raise many kinds
        raise NucleiError(
            f"{weights}: expected the weights of a network from models.instance_unet, as "
            f"benchmarks.train_included_network writes them; the weights differ: {first_line(error)}"
        ) from error
    return network


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


def train(trainings: list[Training], minutes: float, size: int, batch: int, rate: float, out: Path):
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
    import keras
    from jax import numpy as jnp

    from benchmarks import jax_crops
    from nuclei_utils import losses, models

    deadline = time.perf_counter() + 60 * minutes
    keras.layers.DepthwiseConv2D.call = jax_crops.shifted_depthwise
    mask_loss = losses.BinaryCrossentropyDice()

    def loss_of(trainable, fixed, images, targets, training):
        outputs, fixed = model.stateless_call(trainable, fixed, images, training=training)
        loss = sum(mask_loss.call(targets[name], outputs[name])[0] for name in ("mask", "boundary"))
        return loss + jnp.mean(jnp.abs(targets["distance"] - outputs["distance"])), fixed

    def step(data, zoom, learning_rate, state, key):
        trainable, fixed, optimizer_state, average, count = state
        crop_key, colour_key = jax.random.split(key)
        images, label_maps, distances = jax_crops.random_crops(data, crop_key, batch, size, zoom)
        images = jax_crops.random_colours(images, colour_key)
        targets = jax_crops.targets_of(label_maps, distances)
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, fixed), gradients = gradient(trainable, fixed, images, targets, True)
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
    data = dict(zip(packed, jax_crops.to_gpu(list(packed.values())), strict=True))
    crops = {path: center_crops(arrays, 2 * size) for path, arrays in packed.items()}
    for training in trainings:
        keras.utils.set_random_seed(training.seed)
        model = models.instance_unet()
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
                record["trainings"] = {
                    training.name: {
                        "images": training.path.stem,
                        "seed": training.seed,
                        "zoom": training.zoom,
                        "history": training.history,
                    }
                    for training in trainings
                }
                partial_path.write_text(json.dumps(record), encoding="utf-8")


def center_crops(arrays, size, batch=16):
    """Return batches of the centers of the validation images, and their targets.

    The last, smaller batch is left out.
    """
    from jax import numpy as jnp

    from benchmarks.jax_crops import targets_of

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
    parser.add_argument("--size", type=int, default=192, help="side of a crop, pixels")
    parser.add_argument("--batch", type=int, default=24, help="crops in a batch")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    args = parser.parse_args()
    if args.pack:
        write_packed(args.pack, {split: datasets.load(split=split) for split in ("train", "validation")})
        return
    args.out.mkdir(parents=True, exist_ok=True)
    trainings = [Training(*training.split(",")) for training in args.trainings]
    train(trainings, args.minutes, args.size, args.batch, args.rate, args.out)


if __name__ == "__main__":
    main()
