"""Write the outlines of nuclei for QuPath (GeoJSON) and ImageJ (ROIs), and read them back.

`export` offers these functions. They stand in a module of their own, because `datasets` reads outlines as well.
"""

import gzip
import json
import zipfile
from os import PathLike
from pathlib import Path

import numpy as np
from roifile import ROI_SUBTYPE, ROI_TYPE, ImagejRoi, roiwrite

from nuclei_utils._outlines import check_ring, paint_named_outlines, trace_outlines
from nuclei_utils.errors import NucleiError, first_line
from nuclei_utils.files import atomic_write
from nuclei_utils.labels import check_label_map

OUTLINE_COLOUR = (230, 159, 0)  # orange, which colour-blind readers can tell from the colours of stains
WIDEST_FOR_IMAGEJ = 60535  # ROI files hold 16-bit positions, and the last 5,000 stand for negative numbers
MAX_BYTES = 2**30  # of a compressed file of outlines; more are not read, because a small file can hold many

_CLOSED_ROIS = {
    ROI_TYPE.POLYGON,
    ROI_TYPE.RECT,
    ROI_TYPE.OVAL,
    ROI_TYPE.FREEHAND,
    ROI_TYPE.TRACED,
}


def write_geojson(path: str | PathLike, label_map: np.ndarray, object_type: str = "annotation") -> None:
    """Write the outlines of nuclei as GeoJSON for QuPath.

    Open the file with File > Import objects from file. Each nucleus is an object of the class "Nucleus" with its label
    as name. A nucleus in several parts is a MultiPolygon, any other nucleus a Polygon. The outlines run along the edges
    of the pixels and enclose exactly the area of the nucleus. Holes stay open. The file does not hold the size of the
    image. The name of the file usually ends in .geojson.

    Parameters
    ----------
    object_type : str
        "annotation", which can be edited in QuPath, or "detection". QuPath is quicker with detections if there are
        more than ten thousand nuclei, but cannot edit them.

    Examples
    --------
    >>> write_geojson("nuclei.geojson", np.array([[0, 7, 7]]))
    >>> json.loads(Path("nuclei.geojson").read_text())["features"][0]["geometry"]["coordinates"]
    [[[3, 0], [3, 1], [1, 1], [1, 0], [3, 0]]]
    """
    nucleus_class = {"name": "Nucleus", "color": list(OUTLINE_COLOUR)}
    features = []
    for label, parts in trace_outlines(label_map):
        polygons = [[[*ring.tolist(), ring[0].tolist()] for ring in rings] for rings in parts]
        if len(polygons) == 1:
            geometry = {"type": "Polygon", "coordinates": polygons[0]}
        else:
            geometry = {"type": "MultiPolygon", "coordinates": polygons}
        properties = {"objectType": object_type, "name": str(label), "classification": nucleus_class}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_imagej_rois(path: str | PathLike, label_map: np.ndarray) -> None:
    """Write the outlines of nuclei as ROIs for ImageJ.

    The file is a zip. Open the file with ROI Manager, More > Open. Each nucleus is a traced polygon, as ImageJ's wand
    draws it, with its label as name. Further parts of a nucleus are named "7-2", "7-3". Holes are filled, because a
    polygon of ImageJ has no holes. The file does not hold the size of the image. An image of more than
    `WIDEST_FOR_IMAGEJ` pixels in one direction raises `ValueError`.

    Examples
    --------
    >>> write_imagej_rois("rois.zip", np.array([[0, 7, 7]]))
    >>> [roi.name for roi in ImagejRoi.fromfile("rois.zip")]
    ['7']
    """
    label_map = check_label_map(label_map)
    if max(label_map.shape) > WIDEST_FOR_IMAGEJ:
        limit = f"ROI files reach to {WIDEST_FOR_IMAGEJ} pixels: write GeoJSON, or cut the image"
        raise ValueError(f"{path}: the image is {label_map.shape}, {limit}")
    rois = []
    for label, parts in trace_outlines(label_map):
        for number, rings in enumerate(parts, start=1):
            roi = ImagejRoi.frompoints(rings[0], name=str(label) if number == 1 else f"{label}-{number}")
            roi.roitype = ROI_TYPE.TRACED  # ImageJ computes the perimeter of a traced ROI from steps of pixels
            rois.append(roi)
    with atomic_write(path) as temporary:
        roiwrite(temporary, rois, mode="w")


def read_geojson(path: str | PathLike, shape: tuple[int, int]) -> np.ndarray:
    """Read outlines from GeoJSON, as QuPath and `write_geojson` write them, into a label map.

    A pixel belongs to a nucleus if its centre lies inside the outline. Holes stay open, and outlines are clipped at
    the edge of the image. The file may be compressed (.geojson.gz, or .zip as by QuPath). Of a QuPath cell the nucleus
    counts, not the cell. Cores of a tissue microarray, and objects of a class that QuPath ignores ("Region*", "Ignore*"
    and others with an asterisk), are left out. A nucleus keeps its label if its name is this whole number. Other
    nuclei, and further nuclei of the same name, get new numbers above. A `LabelWarning` says if outlines overlap (the
    smaller nucleus stays on top) or enclose no pixel.

    Parameters
    ----------
    shape : tuple of int
        (height, width) of the image, which the file does not hold.

    Returns
    -------
    int32 array (H, W)

    Raises
    ------
    NucleiError
        If the file is not GeoJSON, an object is not a polygon, or the objects lie in several planes.

    Examples
    --------
    >>> write_geojson("nuclei.geojson", np.array([[0, 7, 7]]))
    >>> read_geojson("nuclei.geojson", (1, 3)).tolist()
    [[0, 7, 7]]
    """
    path = Path(path)
    try:
        content = json.loads(_uncompressed(path).decode("utf-8-sig"))
    except Exception as error:  # damaged bytes can raise any error
        raise NucleiError(f"{path} cannot be read as GeoJSON ({first_line(error)}): export it again") from error
    is_collection = isinstance(content, dict) and content.get("type") == "FeatureCollection"
    features = content.get("features") if is_collection else content
    nuclei, planes = [], set()
    for number, feature in enumerate(features if isinstance(features, list) else [features], start=1):
        try:
            properties = feature.get("properties") or {}
            if _is_no_nucleus(properties):
                continue
            geometry = feature if "coordinates" in feature else feature.get("nucleusGeometry") or feature["geometry"]
            name = properties.get("name")
            description = repr(name) if isinstance(name, str) else f"object {number}"
            if geometry["type"] not in ("Polygon", "MultiPolygon"):
                raise _not_a_polygon(path, f"object {number}", geometry["type"])
            is_multiple = geometry["type"] == "MultiPolygon"
            polygons = geometry["coordinates"] if is_multiple else [geometry["coordinates"]]
            rings = [[check_ring([point[:2] for point in ring]) for ring in polygon] for polygon in polygons]
            plane = geometry.get("plane") or {}
            planes.add((plane.get("z", 0), plane.get("t", 0)))
        except NucleiError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise NucleiError(f"{path}: object {number} is damaged ({error!r}): export the file again") from error
        nuclei.append((description, name if isinstance(name, str) else None, rings))
    _check_planes(path, planes)
    return paint_named_outlines(path, nuclei, shape)


def _uncompressed(path):
    """Return the bytes of a GeoJSON file, which may be compressed with gzip or zip."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"\x1f\x8b":
        with gzip.open(path) as file:
            return file.read(MAX_BYTES)
    if start == b"PK":
        contents = _zip_contents(path, (".geojson", ".json"))
        if len(contents) != 1:
            raise ValueError(f"found {len(contents)} GeoJSON files in the zip, expected one")
        return contents[0]
    return path.read_bytes()


def _zip_contents(path, endings):
    """Return the bytes of the files in a zip by ending, without the hidden files of macOS."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        names = [name for name in names if name.lower().endswith(endings)]
        contents = []
        for name in names:
            with archive.open(name) as file:
                contents.append(file.read(MAX_BYTES))
        return contents


def _is_no_nucleus(properties):
    classes = properties.get("classification")
    if isinstance(classes, dict):
        classes = classes.get("names") or classes.get("name")
    classes = classes if isinstance(classes, list) else [classes]
    return properties.get("objectType") in ("root", "tmaCore") or any(str(name).endswith("*") for name in classes)


def read_imagej_rois(path: str | PathLike, shape: tuple[int, int]) -> np.ndarray:
    """Read outlines from ImageJ, as its ROI Manager and `write_imagej_rois` write them, into a label map.

    The file is a .zip of several ROIs, or a .roi of one. Polygons, freehand and traced outlines, rectangles, ovals and
    combinations of them are read. "7" and "7-2", the parts of one nucleus in `write_imagej_rois`, become one nucleus.
    Everything else is as in `read_geojson`.

    Examples
    --------
    >>> write_imagej_rois("rois.zip", np.array([[0, 7, 7]]))
    >>> read_imagej_rois("rois.zip", (1, 3)).tolist()
    [[0, 7, 7]]
    """
    path = Path(path)
    try:
        is_zip = path.suffix.lower() == ".zip"
        contents = _zip_contents(path, ".roi") if is_zip else [path.read_bytes()]
        if is_zip and not contents and (others := zipfile.ZipFile(path).namelist()):
            raise ValueError(f"found {others[0]} and no .roi file in the zip")
        rois = [ImagejRoi.frombytes(content) for content in contents]
        outlines = [[check_ring(ring) for ring in roi.coordinates(multi=True)] for roi in rois]
    except Exception as error:  # damaged bytes can raise any error
        problem = f"cannot be read as ROIs of ImageJ ({first_line(error)})"
        raise NucleiError(f"{path} {problem}: save them again in the ROI Manager") from error
    nuclei, parts = [], {}
    for roi, rings in zip(rois, outlines, strict=True):
        if roi.roitype not in _CLOSED_ROIS:
            raise _not_a_polygon(path, repr(roi.name), roi.roitype.name)
        if roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.IMAGE):
            raise _not_a_polygon(path, repr(roi.name), roi.subtype.name)
        label, _, part = (roi.name or "").partition("-")
        if part.isdecimal() and part == str(parts.get(label, 0) + 1):  # the parts follow each other
            parts[label] += 1
            nuclei[-1][2].append(rings)
        else:
            parts = {label: 1} if not part else {}
            nuclei.append((repr(roi.name), roi.name, [rings]))
    _check_planes(path, {(roi.z_position, roi.t_position) for roi in rois if roi.z_position or roi.t_position})
    return paint_named_outlines(path, nuclei, shape)


def _not_a_polygon(path, name, kind):
    return NucleiError(f"{path}: {name} is a {kind}, expected a polygon; keep closed outlines only")


def _check_planes(path, planes):
    if len(planes) > 1:
        raise NucleiError(f"{path}: the outlines lie in {len(planes)} planes (z, time): keep those of one plane")
