"""Measure the command `predict` on one image in each format that this package's libraries can write.

    python -m benchmarks.measure_formats

The image is drawn: two channels (Actin, DAPI), 16 bits, 1,024 x 1,024 pixels. Formats that hold stacks get three z
planes. Formats of photographs get the channel DAPI in 8 bits. The command runs in a process of its own, so that the
time includes the start of TensorFlow. These libraries cannot write ND2, LIF and CZI files: `--file` measures a file
that you have.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile
from scipy import ndimage

from benchmarks import results_file
from benchmarks.measure_memory import MEGABYTE, run_command
from tools import draw_sample

SIDE = 1024
NAMES = ["Actin", "DAPI"]
PIXEL_SIZE = 0.25  # micrometres
PRECISION = "int8"  # as the command chooses without a GPU
TILES = {"tile": (256, 256), "compression": "zlib"}


def main() -> None:
    """Write each file, run the command, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--file", type=Path, help="measure this file instead")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of predict for --file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.file:
            add(args.file.suffix.lstrip(".").upper(), measure(args.file, Path(folder) / "out", args.options))
            return
        stack = draw()
        for name in args.formats:
            path, options = FORMATS[name](Path(folder), stack)
            add(name, measure(path, Path(folder) / f"results of {path.name}", options))


def add(name: str, run: dict) -> None:
    """Print a run, and write it to the result file."""
    print(name, *(f"{key}: {value}" for key, value in run.items()), sep="\n  ")
    results_file.add("formats", name, run)


def measure(path: Path, out: Path, options: list[str]) -> dict:
    """Run the command. Return time, memory and the number of nuclei."""
    seconds, peak = run_command("predict", path, "--out", out, "--precision", PRECISION, *options)
    table = pd.read_csv(out / "nuclei.csv", keep_default_na=False)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {
        "options": " ".join(options),
        "precision": PRECISION,
        "file_mb": round(sum(file.stat().st_size for file in files) / MEGABYTE, 1),
        "nuclei": len(table),
        "channels": [name.removeprefix("mean_") for name in table if name.startswith("mean_")],
        "pixel_size_source": table["pixel_size_source"].iloc[0] if len(table) else "",
        "seconds": round(seconds, 1),
        "peak_mb": peak,
        "load_average": results_file.load_average(),
    }


def draw() -> np.ndarray:
    """Draw a stack, uint16 (z, channel, row, column). The middle plane is sharp."""
    grey = draw_sample.draw("fluorescence_small", size=(SIDE, SIDE))[0][..., 0].astype(np.float32)
    nuclei = np.stack([ndimage.gaussian_filter(grey, sigma) for sigma in (3, 0, 3)])
    cells = ndimage.gaussian_filter(grey, 12)[None].repeat(3, axis=0)
    return (16 * np.stack([cells, nuclei], axis=1)).astype(np.uint16)


def write_photo(ending: str) -> Callable:
    """Return a function that writes the sharp plane of DAPI in 8 bits with OpenCV."""

    def write(folder, stack):
        path = folder / f"photo.{ending}"
        cv2.imwrite(str(path), (stack[1, 1] >> 4).astype(np.uint8))
        return path, []

    return write


def write_png16(folder: Path, stack: np.ndarray):
    """Write the sharp plane of DAPI in 16 bits."""
    cv2.imwrite(str(folder / "grey16.png"), stack[1, 1])
    return folder / "grey16.png", []


def write_tiff(name: str, **options) -> Callable:
    """Return a function that writes the sharp plane of DAPI as a plain TIFF file."""

    def write(folder, stack):
        tifffile.imwrite(folder / f"{name}.tif", stack[1, 1], photometric="minisblack", **options)
        return folder / f"{name}.tif", []

    return write


def write_imagej(folder: Path, stack: np.ndarray):
    """Write an ImageJ hyperstack."""
    metadata = {"axes": "ZCYX", "unit": "um", "Labels": NAMES * len(stack)}
    resolution = (1 / PIXEL_SIZE, 1 / PIXEL_SIZE)
    tifffile.imwrite(folder / "imagej.tif", stack, imagej=True, metadata=metadata, resolution=resolution)
    return folder / "imagej.tif", ["--channel", "1"]


def write_ome(name: str, levels: int = 1, **options) -> Callable:
    """Return a function that writes an OME-TIFF file, with smaller levels if `levels` is above 1."""

    def write(folder, stack):
        path = folder / f"{name}.ome.tif"
        unit = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
        metadata = {"axes": "ZCYX", "Channel": {"Name": NAMES}, **unit}
        metadata |= {"PhysicalSizeX": PIXEL_SIZE, "PhysicalSizeY": PIXEL_SIZE}
        with tifffile.TiffWriter(path, ome=True) as file:
            file.write(stack, subifds=levels - 1, metadata=metadata, photometric="minisblack", **options)
            for level in range(1, levels):
                small = stack[..., :: 2**level, :: 2**level]
                file.write(small, subfiletype=1, photometric="minisblack", **options)
        return path, ["--channel", "auto"]

    return write


def write_zarr(version: str) -> Callable:
    """Return a function that writes OME-Zarr of two levels."""

    def write(folder, stack):
        path = folder / f"v{version}.ome.zarr"
        write_ome_zarr(path, stack, "zcyx", version, NAMES, PIXEL_SIZE)
        return path, ["--channel", "auto"]

    return write


def write_ome_zarr(
    path: Path,
    array: np.ndarray,
    axes: str,
    version: str,
    names: Sequence[str] = (),
    scale: float = PIXEL_SIZE,
    unit: str = "micrometer",
    chunk: int = 256,
) -> None:
    """Write OME-Zarr 0.4 or 0.5 of two levels. `scale` is the size of a pixel in `unit`."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version == "0.4" else {}
    types, datasets = {"t": "time", "c": "channel"}, []
    for level in range(2):
        step = 2**level
        data = array[..., ::step, ::step]
        chunks = (1,) * (data.ndim - 2) + (chunk, chunk)
        group.create_array(str(level), shape=data.shape, chunks=chunks, dtype=data.dtype, **options)[...] = data
        sizes = [scale * step if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": sizes}]})
    described = [
        {"name": axis, "type": types.get(axis, "space")} | ({"unit": unit} if axis in "yx" else {}) for axis in axes
    ]
    ome = {"multiscales": [{"version": version, "axes": described, "datasets": datasets}]}
    if names:
        ome["omero"] = {"channels": [{"label": name, "color": "FFFFFF"} for name in names]}
    group.attrs.update(ome if version == "0.4" else {"ome": ome | {"version": version}})


FORMATS = {
    "PNG, 8 bits": write_photo("png"),
    "PNG, 16 bits": write_png16,
    "JPEG": write_photo("jpg"),
    "BMP": write_photo("bmp"),
    "TIFF": write_tiff("strips"),
    "TIFF, tiles, zlib": write_tiff("tiles", **TILES),
    "ImageJ hyperstack": write_imagej,
    "OME-TIFF": write_ome("stack"),
    "OME-TIFF, pyramid of tiles, zlib": write_ome("pyramid", levels=3, **TILES),
    "OME-Zarr 0.4": write_zarr("0.4"),
    "OME-Zarr 0.5": write_zarr("0.5"),
}
if find_spec("imagecodecs"):
    FORMATS["TIFF, LZW"] = write_tiff("lzw", compression="lzw")
    FORMATS["OME-TIFF, pyramid of tiles, JPEG 2000"] = write_ome(
        "jpeg2000", levels=3, tile=(256, 256), compression="jpeg2000"
    )


if __name__ == "__main__":
    main()
