"""Hand nuclei on: a table of measurements, pictures, and files for QuPath, ImageJ and Kaggle; and read labels back.

Positions count from the upper left corner of the image, as in ImageJ and QuPath: the first pixel reaches from 0 to 1,
its centre is at (0.5, 0.5). So the centroids of the table lie in the middle of the outlines of the other files.
"""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi, roiwrite
from scipy import ndimage
from skimage.measure import regionprops_table

from nuclei_utils import io, plots
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write, printable_name
from nuclei_utils.labels import check_label_map, decode_rle, encode_label_map

CLASS = {"name": "Nucleus", "color": [int(value) for value in plots.rgb(plots.ORANGE)]}  # as QuPath shows it


WIDEST_FOR_IMAGEJ = 60535  # its ROI files hold 16-bit positions, of which the last 5,000 stand for negative ones


FORMULA = r"[=+\-@\t\r\n]"  # how a text begins that spreadsheets calculate


STRIP = 1024  # rows of an overlay that are drawn at a time


_MEASURES = {
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
    "intensity_mean-0": "mean_red",
    "intensity_mean-1": "mean_green",
    "intensity_mean-2": "mean_blue",
}


def measure_nuclei(image, labels, name, pixel_size=None):
    """Measure each nucleus: where it is, how large, of what shape and how bright.

    Parameters
    ----------
    image : uint8 or uint16 array (H, W, 1) or (H, W, 3)
        Grey or RGB. Give the values of the file (`io.read_raw`): the values that networks see (`io.read_image`) are
        scaled by a factor that differs between 16-bit images.
    labels : int array (H, W)
        Label map.
    name : str
        Name of the image, for the first column. Bytes that are not UTF-8 are escaped (`files.printable_name`).
    pixel_size : float, optional
        Micrometres per pixel, the same in both directions.

    Returns
    -------
    pandas.DataFrame
        One row per nucleus, in the order of the labels, with the columns `image`, `label`, `area`, `centroid_x`,
        `centroid_y`, `bbox_left`, `bbox_top`, `bbox_width`, `bbox_height`, `major_axis` and `minor_axis` (of the
        ellipse with the same second moments), `eccentricity` (0 circle .. 1 line), `solidity` (area over convex area,
        0..1), `mean_red`, `mean_green`, `mean_blue` (in the units of `image`; all three are equal if the image is
        grey) and `unit`. Areas, lengths and positions are in pixels (`unit` is "pixel"), or in micrometres and their
        squares where `pixel_size` is given ("micrometre", spelt out so that no spreadsheet garbles it).

    Raises
    ------
    ValueError
        If `labels` is no label map, the shapes do not agree, or `pixel_size` is not a positive number.
    """
    image, labels = np.asarray(image), check_label_map(labels)
    if image.shape not in ((*labels.shape, 1), (*labels.shape, 3)):
        raise ValueError(
            f"{name}: expected an image {(*labels.shape, 3)} or {(*labels.shape, 1)} for labels {labels.shape}, found "
            f"{image.shape}"
        )
    if pixel_size is not None and not 0 < pixel_size < np.inf:
        raise ValueError(f"expected micrometres per pixel above 0, found a pixel size of {pixel_size}")
    properties = dict.fromkeys(column.split("-")[0] for column in _MEASURES)
    colours = np.broadcast_to(image, (*labels.shape, 3))
    table = pd.DataFrame(regionprops_table(labels, colours, properties=properties)).rename(columns=_MEASURES)
    table[["bbox_width", "bbox_height"]] -= table[["bbox_left", "bbox_top"]].to_numpy()
    table[["centroid_x", "centroid_y"]] += 0.5  # scikit-image counts from the centre of the first pixel
    table["area"] = table["area"].astype(int)
    if pixel_size is not None:
        lengths = [column for column in table if column.startswith(("centroid_", "bbox_")) or column.endswith("_axis")]
        table[lengths] = table[lengths] * pixel_size
        table["area"] = table["area"] * pixel_size**2
    table = table[list(_MEASURES.values())]
    table.insert(0, "image", printable_name(name))
    return table.assign(unit="pixel" if pixel_size is None else "micrometre")


def write_table(path, table):
    """Write a table as CSV: UTF-8, commas, a first line of column names, numbers in full.

    Spreadsheets calculate a text that begins with =, +, -, @, a tab or a new line. Such a text, which may be the name
    of a file, is written with an apostrophe before it.

    Parameters
    ----------
    path : path-like
    table : pandas.DataFrame
        Such as several of `nuclei_table` in one (`pandas.concat`).
    """
    with atomic_write(path) as aside:
        aside.write_bytes(csv_bytes(table))


def csv_bytes(table, header=True):
    """Return a table as the content of a CSV file: the format of `write_table`.

    Parameters
    ----------
    table : pandas.DataFrame
    header : bool
        Whether the line of column names comes first.

    Returns
    -------
    bytes
        UTF-8.
    """
    texts = table.select_dtypes(["object", "string"]).columns
    table = table.assign(**{column: table[column].map(_as_text) for column in texts})
    return table.to_csv(index=False, header=header, lineterminator="\n").encode()


def _as_text(cell):
    """Put an apostrophe before a text that a spreadsheet would calculate, or would take for such a text."""
    return f"'{cell}" if isinstance(cell, str) and re.match(f"'*{FORMULA}", cell) else cell


def _from_text(cell):
    """Undo `_as_text`."""
    return cell[1:] if re.match(f"'+{FORMULA}", cell) else cell


def write_overlay(path, image, labels):
    """Write an image with the outlines of its nuclei, in a colour that colour-blind readers can tell from it.

    Parameters
    ----------
    path : path-like
        PNG, JPEG or TIFF, by the ending of the name.
    image : uint8 array (H, W, 3)
        RGB.
    labels : int array (H, W)
        Label map.

    Raises
    ------
    ValueError
        If the shapes do not agree, or the ending is of no kind that can be written.
    """
    path, image, labels = Path(path), np.asarray(image), np.asarray(labels)
    io._ending(path, (*io.LOSSLESS, ".jpg", ".jpeg"))
    if image.shape[:2] != labels.shape:
        raise ValueError(f"{path}: the image is {image.shape[:2]}, its labels {labels.shape}; they must agree")
    height, width = labels.shape
    picture = Image.new("RGB", (width, height))
    # by strips, because outlines take many times the memory of the image; a row more on both sides shows the borders
    for top in range(0, height, STRIP):
        above = min(top, 1)
        rows = slice(top - above, top + STRIP + 1)
        strip = plots.overlay(image[rows], labels[rows])[above : above + STRIP]
        picture.paste(Image.fromarray(strip), (0, top))
    with atomic_write(path) as aside:
        picture.save(aside, compress_level=1)  # of PNG: a quarter of the time, for files that are a sixth larger


def outlines(labels):
    """Trace the outer edges of each nucleus' pixels, as ImageJ's wand and QuPath do: they enclose exactly its area.

    OpenCV's own contours run through the centres of the outermost pixels, which makes a nucleus of 10 pixels across
    smaller by a fifth; scikit-image's cut its corners.

    Parameters
    ----------
    labels : int array (H, W)
        Label map.

    Yields
    ------
    label : int
    pieces : list of list of int array (K, 2)
        For each 4-connected piece of the nucleus (one, if it is whole) its rings: the outer one, then one for each
        hole. A ring lists its corners (x, y), the first not repeated at the end; by the numbers, outer rings turn
        counter-clockwise, holes clockwise, as GeoJSON has it (RFC 7946).
    """
    labels = check_label_map(labels)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        corner = box[1].start, box[0].start
        count, parts = cv2.connectedComponents((labels[box] == label).astype(np.uint8), connectivity=4)
        yield label, [[ring + corner for ring in _rings(parts == part)] for part in range(1, count)]


def _rings(piece):
    # OpenCV lists the outermost pixels, not their edges. Of a piece drawn twice as large, the left of the two pixels
    # 2x and 2x + 1 is the outermost one along a left edge, which is at x, the right one along a right edge, at x + 1.
    doubled = piece.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer_first = np.argsort(hierarchy[0, :, 3], kind="stable")  # the parent; an outer ring has -1
    return [_corners((contours[index][:, 0] + 1) // 2) for index in outer_first]


def _corners(points):
    """Leave out points that repeat the one before or lie on a straight edge; turn the ring round as GeoJSON has it."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)].astype(np.int64)
    upright = points[:, 0] == np.roll(points[:, 0], 1)  # the edge that leads to the point
    return points[upright != np.roll(upright, -1)][::-1]


def write_geojson(path, labels):
    """Write the outlines of nuclei as GeoJSON, which QuPath opens (File > Import objects from file, or by dropping).

    Parameters
    ----------
    path : path-like
        Usually ends in .geojson.
    labels : int array (H, W)
        Label map. Each nucleus becomes a detection of the class "Nucleus" with its label as name: a Polygon, or a
        MultiPolygon if it is in pieces. Coordinates are pixels along their outer edges (see `outlines`), closed.
    """
    features = [
        {
            "type": "Feature",
            "geometry": _geometry(pieces),
            "properties": {"objectType": "detection", "name": str(label), "classification": CLASS},
        }
        for label, pieces in outlines(labels)
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    with atomic_write(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def _geometry(pieces):
    polygons = [[[*ring.tolist(), ring[0].tolist()] for ring in rings] for rings in pieces]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def write_imagej_rois(path, labels):
    """Write the outlines of nuclei as a zip of ImageJ ROIs, which its ROI Manager opens (More > Open).

    Parameters
    ----------
    path : path-like
        Usually ends in .zip.
    labels : int array (H, W)
        Label map. Each nucleus becomes a polygon of the kind that ImageJ's wand makes ("traced", along the pixels'
        outer edges), named by its label; further pieces of a nucleus are named "7-2", "7-3". Holes are filled: one
        polygon of ImageJ cannot have any.

    Raises
    ------
    ValueError
        If `labels` is no label map, or larger than the positions that the format holds.
    """
    labels = check_label_map(labels)
    if max(labels.shape) > WIDEST_FOR_IMAGEJ:
        raise ValueError(
            f"{path}: the image is {labels.shape}, ImageJ's ROI files reach to {WIDEST_FOR_IMAGEJ} pixels: "
            "write GeoJSON, or cut the image"
        )
    rois = []
    for label, pieces in outlines(labels):
        for part, rings in enumerate(pieces, start=1):
            roi = ImagejRoi.frompoints(rings[0], name=str(label) if part == 1 else f"{label}-{part}")
            roi.roitype = ROI_TYPE.TRACED  # of which ImageJ knows that the steps are pixels, when it takes a perimeter
            rois.append(roi)
    with atomic_write(path) as aside:
        roiwrite(aside, rois, mode="w")


def submission_table(labels_by_name):
    """Make the table that the Kaggle competition takes.

    Parameters
    ----------
    labels_by_name : mapping of str to int array (H, W)
        Label map of each image.

    Returns
    -------
    pandas.DataFrame
        Columns `ImageId` and `EncodedPixels`, one row per nucleus; an image without any has one row with "".
    """
    rows = [
        (printable_name(name), code)
        for name, labels in labels_by_name.items()
        for code in encode_label_map(labels).values() or [""]
    ]
    return pd.DataFrame(rows, columns=["ImageId", "EncodedPixels"], dtype=object)


def write_submission(path, table):
    """Write the table of `submission`, or several in one, as the CSV file that the competition takes.

    The competition's own ids are hexadecimal numbers, which are written as they are. Of other names, those that a
    spreadsheet would calculate get an apostrophe, as in `write_table`; `read_submission` takes it away again.

    Parameters
    ----------
    path : path-like
    table : pandas.DataFrame
        With the columns `ImageId` and `EncodedPixels`; others are left out.
    """
    write_table(path, table[["ImageId", "EncodedPixels"]])


def read_submission(path, shapes):
    """Read the label maps of a submission: the inverse of `submission`.

    Parameters
    ----------
    path : path-like
        CSV with the columns ImageId and EncodedPixels.
    shapes : mapping of str to tuple of int
        (H, W) of each image, which the file does not tell. Images that the file lacks may be among them.

    Returns
    -------
    dict of str to int32 array (H, W)
        Label maps by ImageId; nuclei are numbered from 1 in the order of the file.

    Raises
    ------
    errors.NucleiError
        Naming the file and the line: if the file is missing, is no such table, names an image without a shape, has a
        run-length code that is malformed or leaves the image, or nuclei that overlap, which the competition forbids.
    """
    path, label_maps = Path(path), {}
    for name, rows in _read_codes(path, ["ImageId", "EncodedPixels"]).groupby("ImageId", sort=False):
        if name not in shapes:
            raise NucleiError(
                f"{path}, line {rows.index[0]}: the image {name!r} is not known, so neither is its size: add it, "
                "or remove its rows"
            )
        label_maps[name], covered = _paint(rows["EncodedPixels"], shapes[name], path)
        if covered:
            raise NucleiError(
                f"{path}, line {covered[0]}: the nucleus overlaps with another one of {name!r}, but each pixel must "
                "belong to one nucleus: make the table of a label map"
            )
    return label_maps


def read_solution(path):
    """Read the true nuclei from the solution file that the competition published.

    Parameters
    ----------
    path : path-like
        CSV with the columns ImageId, EncodedPixels, Height, Width and, if at hand, Usage: rows with "Ignored", which
        the competition did not score, are left out.

    Returns
    -------
    dict of str to int32 array (H, W)
        Label maps by ImageId; nuclei are numbered from 1 in the order of the file. Where they overlap the smaller one
        stays on top, as in `labels.merge_masks`; one that is wholly hidden leaves a gap in the numbers.

    Raises
    ------
    errors.NucleiError
        Naming the file and the line: if the file is missing, is no such table, has a size that is no whole number or
        differs within an image, or a run-length code that is malformed or leaves the image.
    """
    path, label_maps = Path(path), {}
    table = _read_codes(path, ["ImageId", "EncodedPixels", "Height", "Width"])
    if "Usage" in table:
        table = table[table["Usage"] != "Ignored"]
    for name, rows in table.groupby("ImageId", sort=False):
        sizes = list(zip(rows["Height"].str.strip(), rows["Width"].str.strip(), strict=True))
        for line, size in zip(rows.index, sizes, strict=True):
            if not all(number.isdecimal() and len(number) < 10 and int(number) for number in size):
                raise NucleiError(f"{path}, line {line}: Height and Width must be whole numbers above 0, found {size}")
            if int(size[0]) * int(size[1]) > io.MAX_PIXELS:
                raise NucleiError(
                    f"{path}, line {line}: found an image of {size[0]} x {size[1]} pixels, more than the limit of "
                    f"{io.MAX_PIXELS:,}: check Height and Width"
                )
            if size != sizes[0]:
                raise NucleiError(
                    f"{path}, line {line}: {name!r} has the size {size} here, {sizes[0]} in line {rows.index[0]} "
                    "(height, width); they must agree"
                )
        label_maps[name], _ = _paint(rows["EncodedPixels"], tuple(map(int, sizes[0])), path)
    return label_maps


def _read_codes(path, needed):
    """Read a CSV as text, indexed by the lines of the file."""
    try:
        # empty lines are kept, so that the lines count as they do in an editor; an empty code stays ""
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            index_col=False,
            encoding="utf-8-sig",
            compression=None,  # whatever the ending of the name
        )
    except FileNotFoundError as error:
        raise NucleiError(f"{path} is missing: check its name") from error
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise NucleiError(f"{path} cannot be read as a table ({error}): expected CSV") from error
    missing = [column for column in needed if column not in table]
    if missing:
        raise NucleiError(
            f"{path}, line 1: found the columns {', '.join(map(str, table.columns))}; {', '.join(missing)} is missing, "
            f"expected {', '.join(needed)}"
        )
    table = table.set_axis(range(2, len(table) + 2)).fillna("")
    table = table[(table != "").any(axis=1)]
    nameless = table.index[table["ImageId"] == ""]
    if len(nameless):
        raise NucleiError(f"{path}, line {nameless[0]}: ImageId is empty, expected the name of an image")
    return table.assign(ImageId=table["ImageId"].map(_from_text))


def _paint(codes, shape, path):
    """Paint the nuclei of one image, smaller ones on top; return the map, and the lines of nuclei that are covered."""
    pixels = {}
    for line, code in codes.items():
        try:
            mask = decode_rle(code, shape)
        except ValueError as error:
            raise NucleiError(f"{path}, line {line}: {error}") from error
        if code.strip():
            pixels[line] = np.flatnonzero(mask.ravel(order="F"))
    painted = np.zeros(shape[0] * shape[1], np.int32)
    numbers = {line: number for number, line in enumerate(pixels, start=1)}
    for line in sorted(pixels, key=lambda line: -len(pixels[line])):
        painted[pixels[line]] = numbers[line]
    covered = [line for line, own in pixels.items() if (painted[own] != numbers[line]).any()]
    return np.ascontiguousarray(painted.reshape(shape, order="F")), covered
