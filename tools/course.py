"""Execute the course's notebooks in order: `make course`, or `python -m tools.course [NOTEBOOK ...]`.

Each notebook runs in a fresh kernel in its own folder. The executed copy is written to `build/course/`. If a cell
fails, the command still runs the other notebooks, names the failed cell, and exits with status 1.
"""

import argparse
import base64
import os
import sys
import time
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image
from tqdm import tqdm

from tools.setup_cell import METADATA, ROOT, notebooks, write

OUT = ROOT / "build" / "course"
LARGE = 2**18  # bytes of a picture


def first_line(source):
    """Return the first line of code of a cell, at most 60 characters."""
    lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return lines[0].strip()[:60] if lines else "(no code)"


def execute(notebook, folder, log):
    """Execute a notebook in place, and show a progress bar.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Notebook that receives the outputs, up to the first cell that fails.
    folder : path-like
        Working directory of the kernel.
    log : path-like
        File for the messages of the kernel's process, which would disturb the progress bar.

    Returns
    -------
    str
        Description of the failure, or "" if all cells ran.
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
            timeout=None,  # a training may take hours
            kernel_name="python3",
            record_timing=False,  # time stamps would change the file with each run
            coalesce_streams=True,  # one output for all lines that a cell prints
            store_widget_state=False,  # GitHub does not show notebooks with an incomplete widget state
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
            return f"{where(notebook, running)}\nthe kernel died, often because of too little memory; its log: {log}"
    return ""


def where(notebook, index):
    """Describe a cell: its number (text cells count, the first cell is 0) and its first line."""
    if index is None:
        return "before the first cell"
    return f"cell {index}: {first_line(notebook.cells[index].source)}"


def run(path, in_place=False):
    """Execute one notebook, write its copy, and print the result.

    Parameters
    ----------
    path : pathlib.Path
        Path of the notebook.
    in_place : bool
        If True and no cell fails, the outputs are also stored in the notebook itself.

    Returns
    -------
    str
        Description of the failure, or "" if all cells ran.
    """
    name = path.relative_to(ROOT / "notebooks").as_posix()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # after a failure, the later cells must not show old outputs
            cell.update(outputs=[], execution_count=None)
    copy = OUT / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    try:
        failure = execute(notebook, path.parent, copy.with_suffix(".log"))
    finally:  # keep the outputs even if the user stops the run
        tidy(notebook)
        write(notebook, copy)
    if in_place and not failure:
        write(notebook, path)
    print(f"{name} {'FAILED' if failure else 'done'} after {clock(time.monotonic() - start)}", flush=True)
    return failure


def tidy(notebook):
    """Remove paths of this machine from tracebacks, and compress PNG images."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "traceback" in output:
                output.traceback = [line.replace(f"{ROOT}{os.sep}", "") for line in output.traceback]
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = packed(output.data["image/png"])
    notebook.metadata = nbformat.from_dict(METADATA)


def packed(code):
    """Compress a PNG image; input and output are base64 text.

    A picture of more than `LARGE` bytes gets a palette of 256 colours, so that GitHub still shows the notebook. Other
    pictures keep each pixel.
    """
    before = base64.b64decode(code)
    picture = Image.open(BytesIO(before))
    if picture.mode == "RGBA" and picture.getextrema()[3] == (255, 255):  # opaque
        picture = picture.convert("RGB")
    stream = BytesIO()
    picture.save(stream, "PNG", optimize=True)
    if stream.tell() > LARGE:
        stream = BytesIO()
        picture.convert("RGB").quantize(256).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii") if len(stream.getvalue()) < len(before) else code


def clock(seconds):
    """Return a duration as minutes and seconds."""
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def main(argv=None):
    """Run the named notebooks, or all notebooks; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.course", description="Execute the course's notebooks in order."
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all notebooks, then the solutions"
    )
    parser.add_argument("--in-place", action="store_true", help="store the outputs in the notebooks themselves")
    args = parser.parse_args(argv)
    chosen = [path.resolve() for path in args.notebooks] or notebooks()
    if not chosen:
        parser.error(f"there is no notebook in {ROOT / 'notebooks'}")
    for path in chosen:
        if not (path.is_file() and path.is_relative_to(ROOT / "notebooks")):
            parser.error(f"{path} is not a notebook in {ROOT / 'notebooks'}")

    # Use the kernel of this environment, even if the user has installed another kernel of the same name.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    start = time.monotonic()
    failures = {path: run(path, args.in_place) for path in chosen}
    took = clock(time.monotonic() - start)
    print(f"{len(chosen)} notebooks in {took}; copies are in {OUT.relative_to(ROOT)}/")
    for path, failure in failures.items():
        if failure:
            print(f"\n{path.relative_to(ROOT)} failed in {failure}", file=sys.stderr)
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
