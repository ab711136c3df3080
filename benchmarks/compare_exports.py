"""Export the included network to ONNX and LiteRT, and compare the files with the original on validation images.

    NUCLEI_DATA=stage1_fixed python -m benchmarks.compare_exports

The first table has the upper left corners of the images, because a LiteRT file takes images of one size. The second
table has whole images and the time of `predict.predict_maps`. The ONNX file in 8 bits is that of the package, unless
`--model` names another network. Needs `pip install -e .[deploy]`. Run the command on a machine that is not busy,
because it measures times.
"""

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import joblib
import keras
import numpy as np
import tensorflow as tf

from benchmarks import results_file
from benchmarks.score_included_network import METHOD, score, separate
from nuclei_utils import datasets, deploy, exported, models, predict, saving

SIZE = 256
CALIBRATION_IMAGES = 64
"""Number of training images from which the files in 8 bits learn their ranges."""


def calibration_images(name: str | None = None) -> list[np.ndarray]:
    """Return the training images of a data set from which files in 8 bits learn their ranges."""
    records = datasets.load(name, split="train")[:CALIBRATION_IMAGES]  # ids are in random order
    return [record.image for record in records]


def export(model: keras.Model, folder: Path, int8_path: Path | None) -> dict[str, Path]:
    """Write all files, and return their paths by name. An ONNX file in 8 bits may exist already."""
    images = calibration_images()
    files = {"onnx": folder / "network.onnx", "onnx int8": int8_path or folder / "int8.onnx"}
    deploy.export_onnx(model, files["onnx"])
    if not int8_path:
        deploy.export_onnx(model, files["onnx int8"], "int8", images)
    for precision in deploy.PRECISIONS:
        path = files[f"litert {precision}"] = folder / f"{precision}.tflite"
        deploy.export_litert(model, path, SIZE, precision, images)
    return files


def compare_whole_images(networks: dict, records: list[datasets.Record], rounds: int) -> dict[str, dict]:
    """Score networks on whole images, and measure their speed in turns."""
    maps, seconds = {}, {name: [] for name in networks}
    for network in networks.values():
        predict.predict_maps(network, records[0].image)  # sets up the network
    for _ in range(rounds):
        for name, network in networks.items():
            start = time.perf_counter()
            maps[name] = [predict.predict_maps(network, record.image) for record in records]
            seconds[name].append(time.perf_counter() - start)
    megapixels = sum(record.label_map.size for record in records) / 1e6
    label_maps, image_types = [r.label_map for r in records], [r.image_type for r in records]
    rows = {}
    for name in networks:
        scores = score(label_maps, separate(METHOD, maps[name]), image_types)
        rows[name] = {
            "score": scores["score"],
            "type_mean": scores["type_mean"],
            "megapixels_per_second": round(megapixels / float(np.median(seconds[name])), 2),
        }
    return rows


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
    all_records = datasets.load(split="validation")
    records = all_records[: args.images]
    images, label_maps = [record.image for record in records], [record.label_map for record in records]
    load = results_file.load_average()
    with tempfile.TemporaryDirectory() as folder:
        files = export(model, Path(folder), None if args.model else datasets.asset(exported.INCLUDED["int8"]))
        table = deploy.compare_exports(model, files, images, label_maps, SIZE, args.rounds, args.threads)
        networks = {"keras": deploy.freeze(model)}
        networks |= {name: exported.load(files[name], args.threads) for name in ("onnx", "onnx int8")}
        whole_images = {
            split: compare_whole_images(networks, split_records, args.rounds)
            for split, split_records in [("validation", all_records), ("test", datasets.load(split="test"))]
        }
    table = table.map(lambda value: float(f"{value:.4g}"))
    print(table.to_string(), *whole_images.items(), sep="\n")
    run = {
        "model": args.model,
        "images": len(records),
        "size": SIZE,
        "rounds": args.rounds,
        "threads": args.threads,
        "load_average_before": load,
        "packages": {name: version(name) for name in ("tf2onnx", "onnxruntime", "ai-edge-litert")},
        "runtimes": table.to_dict("index"),
        "whole_images": whole_images,
    }
    results_file.add("deploy", args.model or "included network", run, data=datasets.current())


if __name__ == "__main__":
    main()
