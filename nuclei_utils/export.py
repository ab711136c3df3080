"""Measure nuclei, and write results for other programs.

`measure_nuclei` makes the table of `nuclei.csv`. Other functions write overlays, outlines for QuPath and ImageJ, and
the run lengths of the competition, and read outlines and run lengths back. (`deploy` exports networks.)

Positions are in pixels from the upper left corner of the image, as in ImageJ and QuPath. The first pixel reaches from
0 to 1, and its centre is at (0.5, 0.5).
"""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from skimage.measure import label as connected_components
from skimage.measure import regionprops_table
from skimage.segmentation import find_boundaries

from nuclei_utils import io
from nuclei_utils._intensities import channels_of, measure_intensities
from nuclei_utils._outline_files import (
    OUTLINE_COLOUR,
    WIDEST_FOR_IMAGEJ,
    read_geojson,
    read_imagej_rois,
    write_geojson,
    write_imagej_rois,
)
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, printable_name
from nuclei_utils.labels import check_label_map, decode_rle, encode_label_map

__all__ = [
    "WIDEST_FOR_IMAGEJ",
    "csv_bytes",
    "measure_nuclei",
    "read_geojson",
    "read_imagej_rois",
    "read_solution",
    "read_submission",
    "submission_table",
    "write_geojson",
    "write_imagej_rois",
    "write_overlay",
    "write_table",
]

STRIP = 1024  # rows of an overlay that are drawn at a time

_FORMULA = r"[=+\-@\t\r\n]"  # first characters of a text that spreadsheets calculate
_COLUMNS = {
    "label": "label",
    "area": "area",
    "centroid-1": "centroid_x",
    "centroid-0": "centroid_y",
    "bbox-1": "bbox_left",
    "bbox-0": "bbox_top",
    "bbox-3": "bbox_width",
    "bbox-2": "bbox_height",
    "axis_major_length": "major_axis",
    "axis_minor_length": "minor_axis",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
}
_QUALITY_COLUMNS = {"equivalent_diameter_area": "diameter", "image_filled": "holes", "image": "parts"}


def measure_nuclei(
    image: np.ndarray | Mapping[str, np.ndarray] | None,
    label_map: np.ndarray,
    name: str,
    pixel_size: float | None = None,
    quality: bool = False,
    corner: tuple[int, int] = (0, 0),
) -> pd.DataFrame:
    """Measure position, size, shape and intensity of each nucleus.

    Parameters
    ----------
    image : uint8 or uint16 array (H, W, 1) or (H, W, 3), or dict, or None
        Grey or RGB values of the file (`io.read_raw`), or the name and the values (H, W) of each channel
        (`microscopy.read_planes`). The values that networks see (`io.read_image`) have another scale in each 16-bit
        image. Without an image, intensities are nan.
    label_map : int array (H, W)
    name : str
        Name of the image, for the first column. Bytes that are not UTF-8 are escaped.
    pixel_size : float, optional
        Micrometres per pixel, the same in both directions.
    quality : bool
        Add the columns `diameter` (of the circle of equal area), `holes` (enclosed background, always in pixels) and
        `parts` (connected components). Holes and several parts are signs of an error in the label map.
    corner : (int, int)
        First row and column, if the image is a part of a larger image. Positions are those in the larger image.

    Returns
    -------
    pandas.DataFrame
        One row per nucleus, in the order of the labels. The columns are `image` and `label`; `area`, `centroid_x`,
        `centroid_y`; `bbox_left`, `bbox_top`, `bbox_width`, `bbox_height`; `major_axis` and `minor_axis` of the ellipse
        with the same second moments; `eccentricity` (0 circle, 1 line); `solidity` (area over convex area, 0..1);
        `mean_NAME`, `sum_NAME`, `std_NAME` (standard deviation) and `background_NAME` of each channel, in the units of
        `image`; and `unit`. The channels of an array are red, green and blue, and equal if the image is grey. With
        `pixel_size`, lengths are in micrometres, areas in square micrometres, and `unit` is "micrometre". Otherwise
        `unit` is "pixel".

    Notes
    -----
    The local background is the median in a ring, 3 to 7 pixels away from the nucleus. Pixels of other nuclei, and
    pixels up to 2 pixels away from any nucleus, do not count, because the edges of nuclei are blurred. If no pixel is
    left, the background is nan. Astronomers measure the sky around a star in this way (Stetson 1987,
    doi:10.1086/131977). To correct an intensity, subtract: ``sum - area * background``, with the area in pixels.

    Examples
    --------
    >>> image, label_map = np.full((2, 3, 1), 9, np.uint8), np.array([[1, 1, 0], [0, 0, 4]])
    >>> measure_nuclei(image, label_map, "a.png")[["label", "area", "centroid_x", "mean_red"]].values.tolist()
    [[1.0, 2.0, 1.0, 9.0], [4.0, 1.0, 2.5, 9.0]]
    """
    label_map = check_label_map(label_map)
    channels = channels_of(image, label_map.shape, name)
    if pixel_size is not None and not 0 < pixel_size < np.inf:
        raise ValueError(f"expected micrometres per pixel above 0, found a pixel size of {pixel_size}")
    columns = _COLUMNS | (_QUALITY_COLUMNS if quality else {})
    properties = dict.fromkeys(["slice", *(column.split("-")[0] for column in columns)])
    table = pd.DataFrame(regionprops_table(label_map, properties=properties)).rename(columns=columns)
    if quality:
        # a small nucleus on top of a large nucleus is not a hole
        filled = zip(table["holes"], table["slice"], strict=True)
        table["holes"] = [np.count_nonzero(mask & (label_map[box] == 0)) for mask, box in filled]
        table["parts"] = [connected_components(mask).max() for mask in table["parts"]]
    table = table[list(columns.values())]
    table[["bbox_width", "bbox_height"]] -= table[["bbox_left", "bbox_top"]].to_numpy()
    table[["centroid_x", "centroid_y"]] += 0.5  # scikit-image counts from the centre of the first pixel
    table[["centroid_y", "bbox_top"]] += corner[0]
    table[["centroid_x", "bbox_left"]] += corner[1]
    table["area"] = table["area"].astype(int)
    if pixel_size is not None:
        lengths = table.filter(regex="^(centroid|bbox|diameter)|_axis$").columns
        table[lengths] = table[lengths] * pixel_size
        table["area"] = table["area"] * pixel_size**2
    table.insert(0, "image", printable_name(name))
    table = table.assign(**measure_intensities(channels, label_map))
    return table.assign(unit="pixel" if pixel_size is None else "micrometre")


def write_table(path: str | PathLike, table: pd.DataFrame) -> None:
    """Write a table as CSV.

    The file has UTF-8, commas, a header, and numbers in full precision. Spreadsheets calculate a text that begins with
    =, +, -, @, a tab or a new line. An apostrophe is written before such a text, for example the name of a file.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(csv_bytes(table))


def csv_bytes(table: pd.DataFrame, header: bool = True) -> bytes:
    """Return the content of the CSV file of `write_table`.

    `header` adds the names of the columns.

    Examples
    --------
    >>> csv_bytes(pd.DataFrame({"image": ["=a", "b"], "area": [1, 2]})).splitlines()
    [b'image,area', b"'=a,1", b'b,2']
    """
    texts = table.select_dtypes(["object", "string"]).columns
    table = table.assign(**{column: table[column].map(_escape_formula) for column in texts})
    return table.to_csv(index=False, header=header, lineterminator="\n").encode()


def _escape_formula(cell):
    # a text with apostrophes before the formula gets one more, so that `_read_codes` restores every text
    return f"'{cell}" if isinstance(cell, str) and re.match(f"'*{_FORMULA}", cell) else cell


def write_overlay(path: str | PathLike, image: np.ndarray, label_map: np.ndarray) -> None:
    """Write an image with the outlines of its nuclei.

    The image is uint8 (H, W, 3), and the label map is int (H, W). The file is PNG, JPEG or TIFF. The function raises
    `ValueError` if the shapes differ or the name has another ending.

    Examples
    --------
    >>> write_overlay("overlay.png", np.zeros((3, 3, 3), np.uint8), np.eye(3, dtype=int))
    >>> io.read_image("overlay.png")[0, 0].tolist()
    [230, 159, 0]
    """
    path, image, label_map = Path(path), np.asarray(image), np.asarray(label_map)
    io.check_ending(path, (*io.LOSSLESS, ".jpg", ".jpeg"))
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"{path}: the image is {image.shape[:2]}, its label map {label_map.shape}; they must agree")
    height, width = label_map.shape
    overlay = Image.new("RGB", (width, height))
    # Strips, because outlines take many times the memory of the image. One more row on each side shows the borders.
    for top in range(0, height, STRIP):
        above = min(top, 1)
        rows = slice(top - above, top + STRIP + 1)
        strip = image[rows].copy()
        strip[find_boundaries(label_map[rows], mode="inner")] = OUTLINE_COLOUR
        overlay.paste(Image.fromarray(strip[above : above + STRIP]), (0, top))
    with atomic_write(path) as temporary:
        overlay.save(temporary, compress_level=1)  # PNG: a quarter of the time, for files that are a sixth larger


def submission_table(
    label_maps: Mapping[str, np.ndarray], corner: tuple[int, int] = (0, 0), height: int | None = None
) -> pd.DataFrame:
    """Encode label maps as a submission to the Kaggle competition.

    `label_maps` gives the int array (H, W) of each image by name. The table, for `write_table`, has the columns
    `ImageId` and `EncodedPixels` and one row per nucleus. An image without nuclei has one row with "". For a part of
    a larger image, `corner` is its first row and column, and `height` the height of the larger image.

    Examples
    --------
    >>> submission_table({"a": np.array([[1, 0, 2]]), "b": np.array([[0]])}).values.tolist()
    [['a', '1 1'], ['a', '3 1'], ['b', '']]
    """
    rows = [
        (printable_name(name), code)
        for name, label_map in label_maps.items()
        for code in encode_label_map(label_map, corner, height).values() or [""]
    ]
    return pd.DataFrame(rows, columns=["ImageId", "EncodedPixels"], dtype=object)


def read_submission(path: str | PathLike, shapes: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Read the label maps of a submission to the competition.

    The file is a CSV with the columns ImageId and EncodedPixels. The label maps are int32 (H, W). The file does not
    hold the shapes {name: (height, width)} of the images. Other images may be included. Nuclei are numbered from 1 in
    the order of the file.

    Raises
    ------
    NucleiError
        If the file is malformed, an image is not in `shapes`, or nuclei overlap, which the competition forbids.

    Examples
    --------
    >>> write_table("submission.csv", submission_table({"a": np.array([[1, 0, 2]])}))
    >>> read_submission("submission.csv", {"a": (1, 3)})["a"].tolist()
    [[1, 0, 2]]
    """
    path, label_maps = Path(path), {}
    for name, rows in _read_codes(path, ["ImageId", "EncodedPixels"]).groupby("ImageId", sort=False):
        if name not in shapes:
            advice = "add it, or remove the rows"
            raise NucleiError(f"{path}, line {rows.index[0]}: the size of {name!r} is not known: {advice}")
        label_maps[name], overlapping = _decode_nuclei(path, rows["EncodedPixels"], shapes[name])
        if overlapping:
            advice = "each pixel must belong to one nucleus: make the table of a label map"
            raise NucleiError(f"{path}, line {overlapping[0]}: overlaps with another nucleus of {name!r}; {advice}")
    return label_maps


def read_solution(path: str | PathLike) -> dict[str, np.ndarray]:
    """Read the true label maps from the competition's solution file.

    The label maps are int32 (H, W), by ImageId. The file is a CSV with the columns ImageId, EncodedPixels, Height,
    Width and optionally Usage. Rows with the usage "Ignored", which the competition did not score, are left out. Nuclei
    are numbered from 1 in the order of the file. If nuclei overlap, the smaller nucleus stays on top. A nucleus that is
    wholly hidden leaves a gap in the numbers.

    Raises
    ------
    NucleiError
        If the file is malformed, or a size is too large or differs within an image.

    Examples
    --------
    >>> table = pd.DataFrame({"ImageId": ["a"], "EncodedPixels": ["1 2"], "Height": [2], "Width": [2]})
    >>> write_table("solution.csv", table)
    >>> read_solution("solution.csv")["a"].tolist()
    [[1, 0], [1, 0]]
    """
    path = Path(path)
    table = _read_codes(path, ["ImageId", "EncodedPixels", "Height", "Width"])
    if "Usage" in table:
        table = table[table["Usage"] != "Ignored"]
    return {
        name: _decode_nuclei(path, rows["EncodedPixels"], _read_shape(path, rows))[0]
        for name, rows in table.groupby("ImageId", sort=False)
    }


def _read_shape(path: Path, rows: pd.DataFrame) -> tuple[int, int]:
    """Return the (height, width) that all rows of an image agree on."""
    sizes = list(zip(rows["Height"].str.strip(), rows["Width"].str.strip(), strict=True))
    for line, size in zip(rows.index, sizes, strict=True):
        if not all(number.isdecimal() and len(number) < 10 and int(number) for number in size):
            problem = f"Height and Width must be whole numbers above 0, found {size}"
        elif int(size[0]) * int(size[1]) > io.MAX_PIXELS:
            problem = f"Height and Width are {size}, more than the limit of {io.MAX_PIXELS:,} pixels"
        elif size != sizes[0]:
            problem = f"Height and Width are {size}, but {sizes[0]} in line {rows.index[0]} for the same image"
        else:
            continue
        raise NucleiError(f"{path}, line {line}: {problem}")
    return int(sizes[0][0]), int(sizes[0][1])


def _read_codes(path: Path, needed: list[str]) -> pd.DataFrame:
    """Read a CSV file as text, indexed by its lines."""
    try:
        # an empty code stays "", lines count as in an editor, and a file that ends in .zip is not unpacked
        options = {"keep_default_na": False, "skip_blank_lines": False, "compression": None}
        table = pd.read_csv(path, dtype=str, index_col=False, encoding="utf-8-sig", **options)
    except FileNotFoundError as error:
        raise NucleiError(f"{path} is missing: check its name") from error
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise NucleiError(f"{path} cannot be read as a table ({error}): expected CSV") from error
    if missing := [column for column in needed if column not in table]:
        columns = ", ".join(map(str, table.columns))
        raise NucleiError(f"{path}, line 1: {', '.join(missing)} is missing, found the columns {columns}")
    table = table.set_axis(range(2, len(table) + 2)).fillna("")
    table = table[(table != "").any(axis=1)]
    if nameless := table.index[table["ImageId"] == ""].tolist():
        raise NucleiError(f"{path}, line {nameless[0]}: ImageId is empty, expected the name of an image")
    return table.assign(ImageId=table["ImageId"].map(lambda cell: re.sub(f"^'('*{_FORMULA})", r"\1", cell)))


def _decode_nuclei(path: Path, codes: pd.Series, shape: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Decode nuclei into a label map, smaller nuclei on top. Also return the lines of covered nuclei."""
    pixels = {}
    for line, code in codes.items():
        try:
            mask = decode_rle(code, shape)
        except ValueError as error:
            raise NucleiError(f"{path}, line {line}: {error}") from error
        if mask.any():
            pixels[line] = np.flatnonzero(mask)
    label_map = np.zeros(shape[0] * shape[1], np.int32)
    labels = {line: label for label, line in enumerate(pixels, start=1)}
    for line in sorted(pixels, key=lambda line: -len(pixels[line])):
        label_map[pixels[line]] = labels[line]
    covered = [line for line, indices in pixels.items() if (label_map[indices] != labels[line]).any()]
    return label_map.reshape(shape), covered
