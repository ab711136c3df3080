"""Execute the course's notebooks in order: `make course`, or `python -m tools.course [NOTEBOOK ...]`.

Each notebook runs from a fresh kernel in its own folder. The executed copy and an HTML page go to `build/course/`, also
when a cell breaks, as far as it ran. The others run all the same; the command ends non-zero and names the cell.
"""

import argparse
import base64
import os
import re
import sys
import time
from copy import deepcopy
from html import escape
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from PIL import Image
from tqdm import tqdm

from nuclei_utils.files import atomic_write
from tools.setup_cell import METADATA, ROOT, notebooks, write

OUT = ROOT / "build" / "course"
FILM = "A film, as the text beside this picture says"
"""Describes an animated picture to a reader who does not see it."""
NOTEBOOK_LINK = re.compile(r'href="(?!https?:)([^"#]+)\.ipynb(#[^"]*)?"')


def first_line(source):
    """Return the first line of a cell that holds code, shortened to fit on a line of the terminal."""
    lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return lines[0].strip()[:60] if lines else "(no code)"


def execute(notebook, folder, log):
    """Execute a notebook in place, with a bar that shows the cell being run.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Gets the outputs, up to the cell that broke if one does.
    folder : path-like
        The working directory of the kernel.
    log : path-like
        Takes what the kernel itself says, such as TensorFlow's remarks on the machine, which would break up the bar.

    Returns
    -------
    str
        What broke and where, in words; empty if nothing did.
    """
    running = None
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=cells, unit="cell", leave=False, disable=None) as bar:

        def start(cell, cell_index):
            nonlocal running
            if cell.cell_type == "code":
                running = cell_index
                bar.set_postfix_str(first_line(cell.source))

        client = NotebookClient(
            notebook,
            timeout=None,  # training takes as long as it takes
            kernel_name="python3",
            record_timing=False,  # time stamps would change the file at each run
            store_widget_state=False,  # GitHub refuses to show notebooks with a part of it
            resources={"metadata": {"path": str(folder)}},
            on_cell_start=start,
            on_cell_executed=lambda **_: bar.update(),
        )
        try:
            with Path(log).open("w", encoding="utf-8") as stream:
                client.execute(stderr=stream)
        except CellExecutionError as error:
            return f"{where(notebook, running)}\n{error.ename}: {error.evalue}"
        except DeadKernelError:
            return f"{where(notebook, running)}\nthe kernel died, often for want of memory; its last words: {log}"
    return ""


def where(notebook, index):
    """Say which cell it was, counting from 0 and text cells too, and how it begins."""
    if index is None:
        return "before the first cell"
    return f"cell {index}, which begins: {first_line(notebook.cells[index].source)}"


def page(notebook, path):
    """Write a notebook as an HTML page; links to other notebooks become links to their pages.

    Pictures are outputs of cells, so they are in the page. `embed_images=True` must stay off: it closes each `<div>` of
    a text cell where the `<div>` opens, and so empties the boxes.
    """
    notebook = deepcopy(notebook)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        for kind, alt in (("image/gif", FILM), ("image/jpeg", None)):
            alt = output.get("metadata", {}).get(kind, {}).get("alt", alt)
            if alt and kind in output.get("data", {}):  # nbconvert drops films, and the descriptions of pictures
                output.data["text/html"] = f'<img alt="{escape(alt)}" src="data:{kind};base64,{output.data[kind]}">'
    resources = {"metadata": {"path": str(path.parent), "name": path.stem}}
    body, _ = HTMLExporter().from_notebook_node(notebook, resources=resources)
    body = NOTEBOOK_LINK.sub(r'href="\1.html\2"', body)
    with atomic_write(path) as aside:
        aside.write_text(body, encoding="utf-8")


def run(path, in_place=False):
    """Execute one notebook, keep its copy and page, and print how it went.

    Parameters
    ----------
    path : pathlib.Path
        The notebook.
    in_place : bool
        Also put the outputs into the notebook itself, if no cell broke.

    Returns
    -------
    str
        What broke and where; empty if nothing did.
    """
    name = path.relative_to(ROOT / "notebooks").as_posix()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # where a cell breaks, those after it are not to look as if they had been run
            cell.update(outputs=[], execution_count=None)
    copy = OUT / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    try:
        trouble = execute(notebook, path.parent, copy.with_suffix(".log"))
    finally:  # stopped by hand or broken, what was reached is worth a look
        tidy(notebook)
        write(notebook, copy)
    page(notebook, copy.with_suffix(".html"))
    if in_place and not trouble:
        write(notebook, path)
    print(f"{name} {'BROKE' if trouble else 'done'} after {clock(time.monotonic() - start)}", flush=True)
    return trouble


def tidy(notebook):
    """Drop what depends on the machine, and make the pictures small without a change of their pixels."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "traceback" in output:
                output.traceback = [line.replace(f"{ROOT}{os.sep}", "") for line in output.traceback]
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = packed(output.data["image/png"])
    notebook.metadata = nbformat.from_dict(METADATA)


def packed(code):
    """Return a PNG picture with the same pixels in as few bytes as Pillow can; input and output are base64 text."""
    before = base64.b64decode(code)
    picture = Image.open(BytesIO(before))
    if picture.mode == "RGBA" and picture.getextrema()[3] == (255, 255):  # nothing shines through
        picture = picture.convert("RGB")
    stream = BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii") if len(stream.getvalue()) < len(before) else code


def clock(seconds):
    """Return a duration as minutes and seconds."""
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def main(arguments=None):
    """Run the notebooks that are named, or all of them; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.course", description="Execute the course's notebooks in order."
    )
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all, then the solutions")
    parser.add_argument(
        "--in-place", action="store_true", help="keep the outputs in the notebooks themselves, to be committed"
    )
    options = parser.parse_args(arguments)
    chosen = [path.resolve() for path in options.notebooks] or notebooks()
    if not chosen:
        parser.error(f"there is no notebook in {ROOT / 'notebooks'}")
    for path in chosen:
        if not (path.is_file() and path.is_relative_to(ROOT / "notebooks")):
            parser.error(f"{path} is not a notebook in {ROOT / 'notebooks'}")

    # The kernel of this environment, also where another one is installed under the same name for the user.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    start = time.monotonic()
    troubles = {path: run(path, options.in_place) for path in chosen}
    took = clock(time.monotonic() - start)
    print(f"{len(chosen)} notebooks in {took}; copies and pages are in {OUT.relative_to(ROOT)}/")
    for path, trouble in troubles.items():
        if trouble:
            print(f"\n{path.relative_to(ROOT)} broke in {trouble}", file=sys.stderr)
    return int(any(troubles.values()))


if __name__ == "__main__":
    sys.exit(main())
