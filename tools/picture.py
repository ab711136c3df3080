"""Take the goal pictures and the README's pictures out of executed notebooks: `python -m tools.picture`.

`make outputs` does it at its end. The pictures come with the package, so they are small: JPEG instead of PNG.
"""

import base64
import shutil
import sys
from io import BytesIO

import nbformat
from PIL import Image

from nuclei_utils import notebook
from nuclei_utils.files import atomic_write
from tools.setup_cell import ROOT

SOURCES = {
    "unet.jpg": "03_unet_from_scratch",
    "transfer.jpg": "04_unet_with_transfer_learning",
    "unet_plus_plus.jpg": "05_unet_plus_plus",
    "nuclei.jpg": "07_from_masks_to_nuclei",
    "measurements.jpg": "08_use_your_own_images",
}
"""For each picture the notebook with the cell that shows it, which has the tag `TAG`."""
TAG = "readme-picture"
FILM = ROOT / "docs" / "training_on_the_sample.gif"
"""The film of notebook 06, for the README. Notebook 06 opens with the last frame, `LAST`."""
LAST = "training.jpg"
MADE = ROOT / "notebooks" / "runs" / "unet_sample_laptop" / "film.gif"
QUALITY = 85


def of_notebook(name):
    """Return the picture that the tagged cell of a notebook shows, the bytes of a PNG file."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if TAG in cell.metadata.get("tags", []))
    (code,) = (output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    return base64.b64decode(code)


def last_frame(path):
    """Return the last frame of a GIF file, a `PIL.Image.Image`."""
    film = Image.open(path)
    film.seek(film.n_frames - 1)
    return film


def keep(picture, name):
    """Write a picture into the package, as a JPEG file."""
    with atomic_write(notebook.PICTURES / name) as aside:
        picture.convert("RGB").save(aside, quality=QUALITY, optimize=True)


def main():
    """Write the pictures."""
    for name, source in SOURCES.items():
        keep(Image.open(BytesIO(of_notebook(source))), name)
    if MADE.exists():
        with atomic_write(FILM) as aside:
            shutil.copyfile(MADE, aside)
    keep(last_frame(FILM), LAST)


if __name__ == "__main__":
    sys.exit(main())
