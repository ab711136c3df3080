"""Put a trained network into the package as the included network: `python -m tools.release_network MODEL.keras`.

`benchmarks.train_included_network` trains the network, and `benchmarks.score_included_network` scores it. Release a
network only after a look at its scores. Afterwards, run the tests and `make outputs`.
"""

import argparse
from pathlib import Path

from nuclei_utils import models, saving
from nuclei_utils.errors import NucleiError, first_line
from nuclei_utils.files import atomic_write
from tools.setup_cell import ROOT

WEIGHTS = ROOT / "nuclei_utils" / "assets" / "included_network.weights.h5"


def release(model_path: Path, weights_path: Path = WEIGHTS) -> None:
    """Write the weights of a network from `models.instance_unet` as the package needs them.

    Raises
    ------
    errors.NucleiError
        If the network in the file has other weights than `models.instance_unet`.
    """
    model = saving.load_model(model_path)
    released = models.instance_unet(weights=None, fixed_statistics=True)
    try:
        released.set_weights(model.get_weights())
    except ValueError as error:
        raise NucleiError(
            f"{model_path}: expected a network from models.instance_unet, as benchmarks.train_included_network trains "
            f"it; the weights differ: {first_line(error)}"
        ) from error
    with atomic_write(weights_path) as partial_path:
        released.save_weights(partial_path)


def main() -> None:
    """Read the arguments, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="the file best.keras of the training")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="file to write; default: the file of the package")
    args = parser.parse_args()
    release(args.model, args.weights)
    print(f"wrote {args.weights}")


if __name__ == "__main__":
    main()
