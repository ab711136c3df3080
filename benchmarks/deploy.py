"""Export the network that separates nuclei, and compare the files with the original on real validation images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.deploy

Needs `pip install -e .[deploy]`. It measures times: run it on a machine that does nothing else.
"""

import argparse
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import joblib
import keras
import tensorflow as tf

from benchmarks import results
from nuclei_utils import datasets, deploy, predict

SIZE = 256
CALIBRATION = 64
"""Training images that int8 finds its ranges from."""


def export(model, folder):
    """Write every image_type of file.

    Returns
    -------
    dict of str to pathlib.Path
    """
    training = [
        record.image for record in datasets.load(split="train")[:CALIBRATION]
    ]  # in the order of their random ids
    files = {"onnx": folder / "network.onnx"}
    deploy.export_onnx(model, files["onnx"])
    for precision in deploy.PRECISIONS:
        path = files[f"litert {precision}"] = folder / f"{precision}.tflite"
        deploy.export_litert(model, path, SIZE, precision, training)
    return files


def main():
    """Export, compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a .keras file; the network that comes with the package if not given")
    parser.add_argument("--images", type=int, default=50, help="validation images that are compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=joblib.cpu_count())
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    model = keras.models.load_model(arguments.model, compile=False) if arguments.model else predict.default_model()
    records = datasets.load(split="validation")[: arguments.images]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as folder:
        table = deploy.compare_exports(
            model,
            export(model, Path(folder)),
            [record.image for record in records],
            [record.label_map for record in records],
            SIZE,
            arguments.rounds,
            arguments.threads,
        )
    numbers = table.map(lambda value: float(f"{value:.4g}"))
    figures = {
        "data": datasets.current(),
        "model": arguments.model,
        "images": len(records),
        "size": SIZE,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "load_average_before": load,
        "packages": {name: version(name) for name in ("tf2onnx", "onnxruntime", "ai-edge-litert")},
        "runtimes": numbers.to_dict("index"),
    }
    print(numbers.to_string())
    print(f"wrote {results.write('deploy', figures)}")


if __name__ == "__main__":
    main()
