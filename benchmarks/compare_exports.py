"""Export the included network to ONNX and LiteRT, and compare the files with the original on validation images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.compare_exports

Needs `pip install -e .[deploy]`. Run the command on a machine that is not busy, because it measures times.
"""

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path

import joblib
import keras
import tensorflow as tf

from benchmarks import results_file
from nuclei_utils import datasets, deploy, models, saving

SIZE = 256
CALIBRATION_IMAGES = 64
"""Training images from which the int8 file learns its ranges."""


def export(model: keras.Model, folder: Path) -> dict[str, Path]:
    """Write all files, and return their paths by name."""
    images = [record.image for record in datasets.load(split="train")[:CALIBRATION_IMAGES]]  # ids are in random order
    files = {"onnx": folder / "network.onnx"}
    deploy.export_onnx(model, files["onnx"])
    for precision in deploy.PRECISIONS:
        path = files[f"litert {precision}"] = folder / f"{precision}.tflite"
        deploy.export_litert(model, path, SIZE, precision, images)
    return files


def main() -> None:
    """Export the network, compare the files, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a .keras file; default: the included network")
    parser.add_argument("--images", type=int, default=50, help="number of validation images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=joblib.cpu_count())
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    model = saving.load_model(args.model) if args.model else models.included_network()
    records = datasets.load(split="validation")[: args.images]
    images, label_maps = [record.image for record in records], [record.label_map for record in records]
    load = results_file.load_average()
    with tempfile.TemporaryDirectory() as folder:
        files = export(model, Path(folder))
        table = deploy.compare_exports(model, files, images, label_maps, SIZE, args.rounds, args.threads)
    table = table.map(lambda value: float(f"{value:.4g}"))
    print(table.to_string())
    run = {
        "model": args.model,
        "images": len(records),
        "size": SIZE,
        "rounds": args.rounds,
        "threads": args.threads,
        "load_average_before": load,
        "packages": {name: version(name) for name in ("tf2onnx", "onnxruntime", "ai-edge-litert")},
        "runtimes": table.to_dict("index"),
    }
    results_file.add("deploy", args.model or "included network", run, data=datasets.current())


if __name__ == "__main__":
    main()
