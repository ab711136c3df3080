"""Take the pictures of the README and of the notebooks' openings out of executed notebooks: `python -m tools.picture`.

`make outputs` does it at its end.
"""

import base64
import shutil
import sys

import nbformat

from nuclei_utils.files import written_whole
from tools.setup_cell import ROOT

PICTURES = {
    ROOT / "docs" / "unet_on_the_sample.png": "03_unet_from_scratch",
    ROOT / "docs" / "transfer_on_the_sample.png": "04_unet_with_transfer_learning",
    ROOT / "docs" / "unet_plus_plus_on_the_sample.png": "05_unet_plus_plus",
    ROOT / "docs" / "nuclei_on_the_sample.png": "07_from_masks_to_nuclei",
    ROOT / "docs" / "measurements_on_the_sample.png": "08_use_your_own_images",
}
"""For each picture the notebook with the cell that shows it, which has the tag `TAG`."""
TAG = "readme-picture"
FILM = ROOT / "docs" / "training_on_the_sample.gif"
"""The film of notebook 06, whole; the notebook shows a shorter one."""
MADE = ROOT / "notebooks" / "runs" / "unet_sample_laptop" / "film.gif"


def of_notebook(name):
    """Return the picture that the tagged cell of a notebook shows, the bytes of a PNG file."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if TAG in cell.metadata.get("tags", []))
    (code,) = (output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    return base64.b64decode(code)


def main():
    """Write the pictures."""
    for path, name in PICTURES.items():
        with written_whole(path) as aside:
            aside.write_bytes(of_notebook(name))
    if MADE.exists():
        with written_whole(FILM) as aside:
            shutil.copyfile(MADE, aside)


if __name__ == "__main__":
    sys.exit(main())
