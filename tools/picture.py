"""Extract pictures from executed notebooks: those that notebooks show at their top, and those of the README.

`python -m tools.picture`; `make outputs` runs this command as its last step. The pictures are part of the package, so
they are small JPEG files.
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
    "learning.jpg": "03_how_a_network_learns",
    "unet.jpg": "04_unet_from_scratch",
    "transfer.jpg": "05_transfer_learning",
    "unet_plus_plus.jpg": "06_unet_plus_plus",
    "nuclei.jpg": "08_separate_touching_nuclei",
    "measurements.jpg": "09_use_your_own_images",
}
"""Notebook of each picture. The cell that shows the picture has the tag `TAG`."""
TAG = "readme-picture"
ANIMATION = ROOT / "docs" / "training_on_the_sample.gif"
"""Animation of notebook 07, for the README. Notebook 07 opens with the last frame, `LAST_FRAME`."""
LAST_FRAME = "training.jpg"
NEW_ANIMATION = ROOT / "notebooks" / "runs" / "unet_sample_laptop" / "animation.gif"
QUALITY = 85


def notebook_picture(name):
    """Return the PNG file that the tagged cell of a notebook shows, as bytes."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if TAG in cell.metadata.get("tags", []))
    (code,) = (output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    return base64.b64decode(code)


def last_frame(path):
    """Return the last frame of a GIF file, a `PIL.Image.Image`."""
    animation = Image.open(path)
    animation.seek(animation.n_frames - 1)
    return animation


def save(picture, name):
    """Write a picture into the package as a JPEG file."""
    with atomic_write(notebook.PICTURES / name) as partial_path:
        picture.convert("RGB").save(partial_path, quality=QUALITY, optimize=True)


def main():
    """Write the pictures."""
    for name, source in SOURCES.items():
        save(Image.open(BytesIO(notebook_picture(source))), name)
    if NEW_ANIMATION.exists():
        with atomic_write(ANIMATION) as partial_path:
            shutil.copyfile(NEW_ANIMATION, partial_path)
    save(last_frame(ANIMATION), LAST_FRAME)


if __name__ == "__main__":
    sys.exit(main())
