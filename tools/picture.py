"""Take the README's picture out of an executed notebook: `python -m tools.picture`; `make outputs` does it."""

import base64
import sys

import nbformat

from nuclei_utils.files import written_whole
from tools.setup_cell import ROOT

NOTEBOOK = ROOT / "notebooks" / "03_unet_from_scratch.ipynb"
PICTURE = ROOT / "docs" / "unet_on_the_sample.png"


def of_notebook():
    """Return the picture of the cell that is tagged `readme-picture`, the bytes of a PNG file."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    (cell,) = (cell for cell in cells if "readme-picture" in cell.metadata.get("tags", []))
    (png,) = (output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    return base64.b64decode(png)


def main():
    """Write the picture."""
    PICTURE.parent.mkdir(exist_ok=True)
    with written_whole(PICTURE) as path:
        path.write_bytes(of_notebook())


if __name__ == "__main__":
    sys.exit(main())
