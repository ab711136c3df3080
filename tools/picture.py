"""Take the README's picture out of an executed notebook: `python -m tools.picture`, after `make outputs`."""

import base64
import sys

import nbformat

from tools.setup_cell import ROOT

NOTEBOOK = ROOT / "notebooks" / "03_unet_from_scratch.ipynb"
PICTURE = ROOT / "docs" / "unet_on_the_sample.png"


def main():
    """Write the picture of the cell that is tagged `readme-picture`."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    (cell,) = (cell for cell in cells if "readme-picture" in cell.metadata.get("tags", []))
    (png,) = (output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
    PICTURE.parent.mkdir(exist_ok=True)
    aside = PICTURE.with_suffix(".part")
    aside.write_bytes(base64.b64decode(png))
    aside.replace(PICTURE)


if __name__ == "__main__":
    sys.exit(main())
