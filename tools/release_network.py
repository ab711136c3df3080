"""Put a trained network into the package as the included network: `python -m tools.release_network WEIGHTS`.

The package has the network twice: its weights, and an ONNX file in 8 bits. The command needs the real images, from
which the ONNX file learns its ranges, and `pip install -e .[deploy]`.

`benchmarks.train_included_network` trains the network, and `benchmarks.score_included_network` scores it. Release a
network only after a look at its scores. Afterwards, run the tests and `make outputs`, and update the model card.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.compare_exports import calibration_images
from benchmarks.train_included_network import read_network
from nuclei_utils import deploy, exported
from nuclei_utils.files import atomic_write
from tools.setup_cell import ROOT

ASSETS = ROOT / "nuclei_utils" / "assets"


def release(path: Path, images: Sequence[np.ndarray], folder: Path = ASSETS) -> None:
    """Write a network from `models.instance_unet` as the package needs it: weights, and an ONNX file in 8 bits.

    `images` are as for `deploy.export_onnx`.

    Raises
    ------
    errors.NucleiError
        If the file has other weights than those of `models.instance_unet`.
    """
    network = read_network(path)
    deploy.export_onnx(network, folder / exported.INCLUDED["int8"], "int8", images)
    with atomic_write(folder / exported.INCLUDED["float32"]) as partial_path:
        network.save_weights(partial_path)


def main() -> None:
    """Read the arguments, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path, help="file NAME.weights.h5 of the training")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the files; default: that of the package")
    args = parser.parse_args()
    release(args.weights, calibration_images("stage1_fixed"), args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
