"""Put a trained network into the package as the included network: `python -m tools.release_network WEIGHTS`.

`benchmarks.train_included_network` trains the network, and `benchmarks.score_included_network` scores it. Release a
network only after a look at its scores. Afterwards, run the tests and `make outputs`, and update the model card.
"""

import argparse
from pathlib import Path

from benchmarks.train_included_network import read_network
from nuclei_utils.files import atomic_write
from tools.setup_cell import ROOT

RELEASED = ROOT / "nuclei_utils" / "assets" / "included_network.weights.h5"


def release(path: Path, released_path: Path = RELEASED) -> None:
    """Write the weights of a network from `models.instance_unet` as the package needs them.

    Raises
    ------
    errors.NucleiError
        If the file has other weights than those of `models.instance_unet`.
    """
    network = read_network(path)
    with atomic_write(released_path) as partial_path:
        network.save_weights(partial_path)


def main() -> None:
    """Read the arguments, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path, help="file NAME.weights.h5 of the training")
    parser.add_argument("--out", type=Path, default=RELEASED, help="file to write; default: the file of the package")
    args = parser.parse_args()
    release(args.weights, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
