"""Read one image from the file of a microscope: choose scene, channel, z plane and time, and find the pixel size.

Formats: TIFF stacks, ImageJ hyperstacks, OME-TIFF and Aperio SVS; OME-Zarr with the extra `[large]`; ND2 and LIF with
the extra `[formats]`, and CZI with the package bioio-czi. Other files are read as `io.read_raw` does. Only the planes
that are needed are read, and each plane must fit into memory.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nuclei_utils import io
from nuclei_utils._decode import Refusal, check_size
from nuclei_utils._stacks import Stack, is_of_microscope, is_zarr, open_stack

NUCLEAR_STAINS = (
    *("dapi", "hoechst", "draq5", "draq7", "nucblue", "nucred", "nucspot", "sytox", "syto", "topro", "propidium"),
    *("h2b", "histone", "nuclei", "nucleus", "nuclear", "405"),
)
"""Parts of the names of channels that show nuclei, in small letters without spaces and signs."""

_COLOURS = ("red", "green", "blue")
_MAX_RATIO = 1.01  # of the width and height of a pixel that counts as square


class Planes(NamedTuple):
    """An image for the network, and its channels for measurements."""

    image: np.ndarray
    """uint8 or uint16 (H, W, 1) or (H, W, 3): the values of the file, or mapped from `value_range`."""
    channels: dict[str, np.ndarray]
    """Name of each channel, and its (H, W) values as the file has them."""
    pixel_size: float | None
    """Micrometres per pixel. None: not known."""
    pixel_size_source: str
    """"file", "option", or "" if the pixel size is not known."""


class OpenPlanes(NamedTuple):
    """One plane of each channel of an open file, of which parts can be read."""

    shape: tuple[int, int]
    """Height and width."""
    names: list[str]
    """Names of the channels."""
    read: Callable[[slice, slice], tuple[np.ndarray, dict[str, np.ndarray]]]
    """Function of rows and columns: `image` and `channels` of `Planes` for this part."""
    read_image: Callable[[slice, slice], np.ndarray]
    """Function of rows and columns: `image` alone."""
    pixel_size: float | None
    pixel_size_source: str
    in_parts: bool
    """Whether `read` reads a part without reading the whole planes."""


def read_planes(
    path: str | os.PathLike,
    channel: str | int | None = None,
    z: str | int | None = None,
    time: int | None = None,
    value_range: tuple[float, float] | None = None,
    pixel_size: float | None = None,
    max_pixels: int = io.MAX_PIXELS,
    level: int = 0,
    scene: int | None = None,
) -> Planes:
    """Read one plane of each channel from a microscopy file.

    Parameters
    ----------
    path : path
        A file, or the folder of an OME-Zarr image.
    channel : str or int, optional
        Name or index (from 0) of the channel with the nuclei, for the network. "auto" takes the only one with a name
        of `NUCLEAR_STAINS`. An RGB image stays RGB if no channel is named.
    z : "max" or int, optional
        Index of a z plane, or "max" for the maximum of all planes, which is the default.
    time : int, optional
        Index of a time. A file with several times needs it.
    value_range : (float, float), optional
        The values of the file that become 0 and 65,535 of a uint16 image, for files with fractions or negative values.
        Values beyond are clipped. The channels keep the values of the file.
    pixel_size : float, optional
        Micrometres per pixel of the level, instead of the size in the file.
    max_pixels : int
        Limit of height x width.
    level : int
        Level of a pyramid (TIFF or OME-Zarr), 0 is the largest. A file without a pyramid has only the level 0.
    scene : int, optional
        Index (from 0) of an image of the file. A TIFF, CZI, ND2 or LIF file with several images needs it. Pictures of
        the glass beside a slide are not counted.

    Returns
    -------
    Planes
        `image`, `channels`, `pixel_size` and `pixel_size_source`. A grey image without a name for its channel has the
        channels "red", "green" and "blue", all equal, as an RGB image has. Several channels without names are
        "channel_0", "channel_1", ... The pixel size comes from the OME, ImageJ, Aperio or bioio description, and
        never from the resolution for printing (dpi). The size is that of the level.

    Raises
    ------
    NucleiError
        If the file is damaged, has no such image, plane or level, or leaves a choice; if a package is missing, or
        pixels are not square and `pixel_size` is not given.

    Examples
    --------
    >>> import tifffile
    >>> stack = np.zeros((5, 2, 20, 30), np.uint16)
    >>> metadata = {"axes": "ZCYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "Channel": {"Name": ["DAPI", "GFP"]}}
    >>> tifffile.imwrite("cells.ome.tif", stack, metadata=metadata)
    >>> planes = read_planes("cells.ome.tif", channel="dapi")
    >>> planes.image.shape, list(planes.channels), planes.pixel_size
    ((20, 30, 1), ['DAPI', 'GFP'], 0.25)
    """
    with open_planes(path, channel, z, time, value_range, pixel_size, max_pixels, level=level, scene=scene) as planes:
        image, channels = planes.read(slice(None), slice(None))
        return Planes(image, channels, planes.pixel_size, planes.pixel_size_source)


@contextmanager
def open_planes(
    path: str | os.PathLike,
    channel: str | int | None = None,
    z: str | int | None = None,
    time: int | None = None,
    value_range: tuple[float, float] | None = None,
    pixel_size: float | None = None,
    max_pixels: float = io.MAX_PIXELS,
    in_parts: bool = False,
    level: int = 0,
    scene: int | None = None,
) -> Iterator[OpenPlanes]:
    """Open a microscopy file, to read parts of one plane of each channel.

    The parts can be read until the end of the block. Parameters and errors are those of `read_planes`. With `in_parts`,
    parts of a TIFF or OME-Zarr file are read without reading a whole plane, if the file allows it (`in_parts` of the
    result). Compressed TIFF files then need the extra `[large]`.

    Examples
    --------
    >>> import tifffile
    >>> tifffile.imwrite("slide.tif", np.zeros((3000, 4000), np.uint16))
    >>> with open_planes("slide.tif", in_parts=True) as planes:
    ...     image, channels = planes.read(slice(0, 500), slice(1000, 1600))
    >>> planes.shape, image.shape
    ((3000, 4000), (500, 600, 1))
    """
    if not (z in (None, "max") or isinstance(z, int)):
        raise ValueError(f'expected "max" or the index of a plane, found z={z!r}')
    if value_range is not None and not (np.isfinite(value_range).all() and value_range[0] < value_range[1]):
        raise ValueError(f"expected two numbers, the lower first, found value_range={value_range}")
    with open_stack(Path(path), max_pixels, in_parts, level, scene) as stack:
        stack = _name_unknown_axis(stack, channel, z, time)
        sizes = dict(zip(stack.axes, stack.shape, strict=True))
        check_size(sizes["Y"], sizes["X"], max_pixels)
        fixed = {axis: 0 for axis in stack.axes if axis not in "CZYXS"}
        fixed["T"] = _choose_time(sizes.get("T", 1), time)
        depths = _choose_depths(sizes.get("Z", 1), z)
        is_colour = sizes.get("S", 1) > 1
        names = _name_channels(stack.names, sizes, is_colour)
        chosen = _choose_channel(names, channel, is_colour)

        def read_pixels(rows, columns, number):
            return _project(stack, fixed | {"Y": rows, "X": columns, "C": number}, depths)

        def choose(colours):
            return colours if chosen is None else colours[..., chosen : chosen + 1]

        def read_image(rows, columns):
            plane = (
                choose(read_pixels(rows, columns, 0)) if is_colour else read_pixels(rows, columns, chosen)[..., None]
            )
            return _to_network(plane, value_range)

        def read(rows, columns):
            if is_colour:
                colours = read_pixels(rows, columns, 0)
                channels = {name: colours[..., number] for number, name in enumerate(names)}
                return _to_network(choose(colours), value_range), channels
            channels = {name: read_pixels(rows, columns, number) for number, name in enumerate(names)}
            image = _to_network(channels[names[chosen]][..., None], value_range)
            return image, dict.fromkeys(_COLOURS, channels["grey"]) if names == ["grey"] else channels

        source = "file"
        if pixel_size is not None:
            source = "option"
        elif (pixel_size := _square(*stack.pixel_size)) is None:
            source = ""
        columns = list(_COLOURS) if names == ["grey"] else names
        yield OpenPlanes((sizes["Y"], sizes["X"]), columns, read, read_image, pixel_size, source, stack.in_parts)


def list_images(folder: Path) -> list[Path]:
    """List the images of a folder that an optional package reads: OME-Zarr, SVS, CZI, ND2 and LIF.

    The list is sorted and without hidden files. If the folder itself is an OME-Zarr image, the list holds the folder.
    `datasets.list_images` lists the other images.
    """
    if is_zarr(folder):
        return [folder]
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and is_of_microscope(path))


def _name_unknown_axis(stack: Stack, channel, z, time) -> Stack:
    """Name the axis whose meaning the file leaves open. It is what the user chooses from."""
    open_axes = [axis for axis, size in zip(stack.axes, stack.shape, strict=True) if axis not in "TCZYXS" and size > 1]
    if not open_axes:
        return stack
    n_planes = stack.shape[stack.axes.index(open_axes[0])]
    meanings = [axis for axis, choice in zip("ZCT", (z, channel, time), strict=True) if choice is not None]
    meanings = [axis for axis in meanings if axis not in stack.axes and not (axis == "C" and "S" in stack.axes)]
    if len(open_axes) > 1 or stack.axes.count(open_axes[0]) > 1:
        raise Refusal(
            f"found the axes {stack.axes} of {stack.shape}: save the file as OME-TIFF or as ImageJ hyperstack"
        )
    if len(meanings) != 1:
        raise Refusal(
            f"found {n_planes} planes, and the file does not say what they are: choose with one of --z (max, or an "
            "index), --channel and --time (an index)"
        )
    return stack._replace(axes=stack.axes.replace(open_axes[0], meanings[0]))


def _check_index(index, size, what):
    if not 0 <= index < size:
        raise Refusal(f"found {size} {what}, expected an index from 0 to {size - 1} instead of {index}")
    return index


def _choose_time(size, time):
    if time is None and size > 1:
        raise Refusal(f"found {size} times: choose the index of one, from 0 to {size - 1}, with --time")
    return _check_index(time or 0, size, "times")


def _choose_depths(size, z):
    return range(size) if z in (None, "max") else [_check_index(z, size, "z planes")]


def _name_channels(names, sizes, is_colour):
    """Return a name for each channel, each name once."""
    if is_colour:
        if sizes.get("C", 1) > 1 or sizes["S"] not in (3, 4):
            raise Refusal(f"found {sizes['S']} samples and {sizes.get('C', 1)} channels, expected grey or RGB")
        return list(_COLOURS)
    size = sizes.get("C", 1)
    names = [" ".join((name or "").split()) for name in names] if len(names) == size else [""] * size
    if size == 1 and names[0].casefold() in ("", "grey", "gray"):
        return ["grey"]
    names = [name or f"channel_{number}" for number, name in enumerate(names)]
    return [f"{name}_{number}" if names.count(name) > 1 else name for number, name in enumerate(names)]


def _choose_channel(names, channel, is_colour):
    """Return the index of the channel for the network. None: the three colours together."""
    listing = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    if is_colour and channel in (None, "auto"):
        return None
    if channel is None:
        if len(names) > 1:
            raise Refusal(
                f"found {len(names)} channels ({listing}): choose the one with the nuclei with --channel, by name, by "
                "index, or auto"
            )
        return 0
    if channel == "auto":
        plain = [re.sub(r"[^a-z0-9]", "", name.casefold()) for name in names]
        matches = [number for number, name in enumerate(plain) if any(stain in name for stain in NUCLEAR_STAINS)]
        matches = matches if len(names) > 1 else [0]
        problem = f"{len(matches) or 'none'} of the channels ({listing}) named like a nuclear stain"
    else:
        matches = [number for number, name in enumerate(names) if name.casefold() == str(channel).casefold()]
        if not matches and str(channel).isdecimal() and int(channel) < len(names):
            matches = [int(channel)]
        problem = f"the channels {listing}, and not {channel!r}"
    if len(matches) != 1:
        raise Refusal(f"found {problem}: choose one with --channel, by name or index")
    return matches[0]


def _project(stack, index, depths):
    """Read the maximum of z planes, (H, W) or (H, W, 3)."""
    projection = None
    for depth in depths:
        plane = stack.read(tuple((index | {"Z": depth}).get(axis, slice(None)) for axis in stack.axes))
        rest = [axis for axis in stack.axes if axis in "YXS"]
        plane = plane.transpose([rest.index(axis) for axis in "YXS" if axis in rest])
        plane = plane.astype(plane.dtype.newbyteorder("="), copy=False)
        projection = plane if projection is None else np.maximum(projection, plane)
    if projection.dtype == bool:
        projection = projection * np.uint8(255)
    if projection.ndim == 3:  # without an alpha channel
        projection = projection[..., 0] if projection.shape[2] == 1 else projection[..., :3]
    return projection


def _to_network(plane, value_range):
    """Return a plane as uint8 or uint16."""
    if value_range is None:
        if plane.dtype not in (np.uint8, np.uint16):
            raise Refusal(
                f"found pixels of type {plane.dtype}, expected 8- or 16-bit unsigned integers: name the values that "
                "become black and white with --value-range LOW HIGH"
            )
        return np.ascontiguousarray(plane)
    if plane.dtype.kind not in "iuf":
        raise Refusal(f"found pixels of type {plane.dtype}, expected numbers: convert the file")
    low, high = value_range
    scaled = (np.clip(plane, low, high, dtype=np.float64) - low) * (2**16 - 1) / (high - low)
    if not np.isfinite(scaled).all():
        raise Refusal("found pixels without a number (NaN): replace them by a number")
    return np.round(scaled).astype(np.uint16)


def _square(width, height):
    """Return the width of a square pixel, or None if it is not known."""
    if width is None or height is None:
        return None
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise Refusal(
            f"found pixels of {width:g} x {height:g} micrometres, expected squares: resample the image, or measure in "
            "units of one of them with --pixel-size"
        )
    return width
