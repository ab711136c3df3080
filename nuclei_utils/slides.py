"""Find and measure the nuclei of a slide, an image that never has to fit into memory.

The file is read in blocks with context: tiled TIFF and OME-TIFF, and OME-Zarr. A `Job` has four steps, each of which is
made of tasks for `cluster.run_tasks`: the range of intensities, the candidates of each block, the labels and rows of
each block, and the smaller levels of the label image. The tasks write into a work folder, which all workers must see.
A job that is started again does only the tasks that are not finished. The nuclei are those of `predict.predict_labels`.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from nuclei_utils import _label_images, blocks, cluster, export, io, predict, preprocess
from nuclei_utils._decode import Refusal
from nuclei_utils._intensities import GAP, RING
from nuclei_utils._stacks import can_be_slide, import_zarr, is_zarr
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import atomic_write
from nuclei_utils.microscopy import open_planes

SLIDE_PIXELS = 100_000_000
"""Height x width above which the command `predict` takes an image as a slide."""

_RING = 2 * GAP + RING  # pixels around a nucleus that decide about its local background
_MIDDLE = 1024  # side of the part for the consistency, as in `predict.tta_consistency`


class Slide(NamedTuple):
    """A file that is read in blocks, and the choice of scene, level, channel, plane and time in it."""

    path: Path
    choice: dict[str, Any]
    """Options of `microscopy.open_planes`."""
    shape: tuple[int, int]
    names: list[str]
    """Names of the channels."""
    pixel_size: float | None
    pixel_size_source: str

    def open(self):
        """Open the file, as `microscopy.open_planes` does."""
        return open_planes(self.path, **self.choice, max_pixels=math.inf, in_parts=True)


def find_slide(path: str | PathLike, min_pixels: int = SLIDE_PIXELS, **choice: Any) -> Slide | None:
    """Return a file as a slide, or None if it is smaller or cannot be read in parts.

    Without the extra `[large]`, an image up to `io.MAX_PIXELS` is no slide, because it may fit into memory. `choice`
    are options of `microscopy.open_planes`. The errors are those of `microscopy.read_planes`.

    Examples
    --------
    >>> import tifffile
    >>> tifffile.imwrite("slide.tif", np.zeros((300, 400), np.uint16))
    >>> find_slide("slide.tif") is None
    True
    """
    path = Path(path)
    if not can_be_slide(path):
        return None
    with open_planes(path, **choice, max_pixels=math.inf, in_parts=True) as planes:
        if not planes.in_parts or math.prod(planes.shape) <= min_pixels:
            return None
        try:
            import_zarr("a slide", is_tiff=not is_zarr(path))
        except Refusal:
            if math.prod(planes.shape) <= io.MAX_PIXELS:
                return None
            raise
        return Slide(path, choice, planes.shape, planes.names, planes.pixel_size, planes.pixel_size_source)


class Result(NamedTuple):
    """What `Job.run` has found. The files are in the work folder."""

    count: int
    """Number of nuclei."""
    consistency: float
    """`predict.tta_consistency` of the middle of the slide."""
    labels: Path
    """The label image: an OME-Zarr folder, or an OME-TIFF file."""


@dataclass(frozen=True)
class Job:
    """Search for the nuclei of a slide, in tasks that can be repeated."""

    slide: Slide
    folder: Path
    """Work folder. A killed job continues with the finished files in it."""
    load_model: Callable[[], Any]
    """Function that returns the network. It is called for each block, and must keep the network."""
    name: str
    """Name of the image, for the tables."""
    n_tta: int = 1
    options: dict[str, float] = field(default_factory=dict)
    """`prob_thresh`, `min_prominence`, `min_size` and `min_confidence` of `segmentation.maps_to_labels`."""
    block: int = predict.BLOCK
    context: int = predict.CONTEXT

    @property
    def places(self) -> list[blocks.Block]:
        """Return the blocks of the slide, row by row."""
        return _places(self.slide.shape, self.block, self.context)

    def run(self, label_format: str = "zarr", client=None, progress: bool | None = False) -> Result:
        """Find and measure the nuclei, and write label image and rows into the work folder.

        Parameters
        ----------
        label_format : {"zarr", "tif"}
            OME-Zarr 0.4, or tiled OME-TIFF. Both are pyramids.
        client : distributed.Client, optional
            From `cluster.connect`.
        progress
            Show a progress bar on stderr. None: if stderr is a terminal.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = range(len(self.places))
        with tqdm(
            total=2 * len(numbers),
            desc=self.name,
            unit="block",
            leave=False,
            disable=None if progress is None else not progress,
        ) as bar:
            self._survey(client)
            self._run_all(self.find_block, numbers, self._found, client, bar)
            count = self._settle()
            labels = self.folder / "labels.zarr"
            if not labels.exists():  # rows without their labels are not finished
                for number in numbers:
                    self._rows(number).unlink(missing_ok=True)
            _label_images.create(labels, self.slide.shape, self.block, self.slide.pixel_size)
            self._run_all(self.finish_block, numbers, self._rows, client, bar)
        for level in range(1, _label_images.n_levels(self.slide.shape, self.block)):
            rows = [(level, row) for row in range(_label_images.n_chunk_rows(self.slide.shape, self.block, level))]
            for _, task in cluster.run_tasks(self.shrink, rows, client):
                task.result()
        consistency = cluster.run_task(self.consistency, client)
        if label_format == "tif":
            labels = _label_images.write_tiff(labels, self.folder / "labels.ome.tif", self.slide.pixel_size)
        return Result(count, consistency, labels)

    def rows(self) -> Iterator[bytes]:
        """Yield the rows of `nuclei.csv` without its header, block by block."""
        return (self._rows(number).read_bytes() for number in range(len(self.places)))

    def codes(self) -> Iterator[bytes]:
        """Yield the rows of `submission.csv` without its header, block by block."""
        is_empty = True
        for number in range(len(self.places)):
            content = self._codes(number).read_bytes()
            is_empty = is_empty and not content
            yield content
        if is_empty:
            yield export.csv_bytes(export.submission_table({self.name: np.zeros((1, 1), np.int32)}), header=False)

    def _run_all(self, function, numbers, path_of, client, bar):
        missing = [number for number in numbers if not path_of(number).exists()]
        bar.update(len(numbers) - len(missing))
        for _, task in cluster.run_tasks(function, missing, client):
            task.result()
            bar.update()

    # the range of intensities, of the whole slide

    def _survey(self, client):
        if self._scale.exists():
            return
        samples, counts, lowest, highest = {}, 0, np.inf, 0
        firsts = sorted({place.rows.first for place in self.places})
        for first, task in cluster.run_tasks(self.survey, firsts, client):
            samples[first], row_counts, row_lowest, row_highest = task.result()
            counts = counts + row_counts
            lowest, highest = min(lowest, row_lowest), max(highest, row_highest)
        dtype = samples[firsts[0]].dtype
        brightest = io.brightest_value(counts) if dtype == np.uint16 else None
        extremes = io.to_rgb8(np.array([[[lowest], [highest]]], dtype), brightest)
        sample = io.to_rgb8(np.concatenate([samples[first] for first in firsts]), brightest)
        range_ = preprocess.sampled_range(sample, lambda: (extremes.min(), extremes.max()))
        with atomic_write(self._scale) as partial:
            partial.write_text(json.dumps({"brightest": brightest, "intensity_range": range_}))

    def survey(self, first: int) -> tuple[np.ndarray, np.ndarray | int, int, int]:
        """Return the sample, the counts of 16-bit values, the minimum and the maximum of a row of blocks.

        `first` is the first row of pixels.
        """
        step = preprocess.sampling_step(self.slide.shape)
        samples, counts, lowest, highest = [], 0, np.inf, 0
        with self.slide.open() as planes:
            for place in self.places:
                if place.rows.first != first:
                    continue
                part = _grow(place.inside, io.FRAME, self.slide.shape)
                raw = planes.read_image(*part)
                inside = _within(place.inside, part)
                if raw.dtype == np.uint16:
                    counts = counts + io.count_values(raw, inside)
                raw = raw[inside]
                lowest, highest = min(lowest, int(raw.min())), max(highest, int(raw.max()))
                top, left = (-span.start % step for span in place.inside)
                samples.append(raw[top::step, left::step].copy())
        return np.concatenate(samples, axis=1), counts, lowest, highest

    def _read_scale(self):
        scale = json.loads(self._scale.read_text())
        return scale["brightest"], tuple(scale["intensity_range"])

    # candidates

    def find_block(self, number: int) -> None:
        """Find the candidates of a block."""
        place = self.places[number]
        brightest, intensity_range = self._read_scale()
        with self.slide.open() as planes:
            image = io.to_rgb8(planes.read_image(*place.seen), brightest)
        try:
            found = predict.predict_block(self.load_model(), image, place, intensity_range, self.n_tta, **self.options)
        except NucleiError as error:
            raise NucleiError(f"{self.slide.path}: {error}") from error
        with atomic_write(self._found(number)) as partial:
            np.savez(partial, **found._asdict())

    def _load_found(self, number):
        with np.load(self._found(number)) as file:
            return blocks.Candidates(file["boxes"], file["bits"])

    def _settle(self):
        """Decide which candidates stay. Return the number of nuclei."""
        if not self._settled.exists():
            candidates = (self._load_found(number) for number in range(len(self.places)))
            stays = list(blocks.settle(self.places, candidates))
            counts = [np.count_nonzero(flags) for flags in stays]
            flags, ends = np.concatenate(stays), np.cumsum([len(flags) for flags in stays])
            with atomic_write(self._settled) as partial:
                np.savez(partial, flags=np.packbits(flags), ends=ends, counts=np.cumsum(counts))
        with np.load(self._settled) as file:
            return int(file["counts"][-1])

    # labels and rows

    def finish_block(self, number: int) -> None:
        """Write the labels and the rows of a block."""
        place = self.places[number]
        brightest, _ = self._read_scale()
        settled = self._read_settled()
        found, labels = self._labelled(number, settled)
        own = labels[labels > 0]
        boxes = found.boxes[labels > 0]
        first = np.minimum(boxes[:, :2].min(axis=0, initial=2**62), [side.start for side in place.inside])
        last = np.maximum(boxes[:, 2:].max(axis=0, initial=0), [side.stop for side in place.inside])
        part = _grow(tuple(map(slice, first.tolist(), last.tolist())), _RING, self.slide.shape)
        corner = (part[0].start, part[1].start)
        label_map = self._paint(part, settled)
        with self.slide.open() as planes:
            raw, channels = planes.read(*part)
        inside = _within(place.inside, part)
        overview = io.to_rgb8(np.ascontiguousarray(raw[inside]), brightest)
        _label_images.write_block(self.folder / "labels.zarr", place.inside, label_map[inside], overview)
        rows = codes = b""
        if len(own):
            # scikit-image makes a list up to the highest label: number from 1 (hashing is faster than sorting)
            local, numbers = pd.factorize(label_map.ravel(), sort=True)
            local = local.reshape(label_map.shape).astype(np.int32) + (numbers[0] > 0)
            table = export.measure_nuclei(channels, local, self.name, self.slide.pixel_size, corner=corner)
            table["label"] = numbers[numbers > 0][table["label"] - 1]
            table = table[table["label"].between(own[0], own[-1])]
            table = table.assign(pixel_size=self.slide.pixel_size, pixel_size_source=self.slide.pixel_size_source)
            rows = export.csv_bytes(table, header=False)
            is_own = (label_map >= own[0]) & (label_map <= own[-1])
            codes = export.csv_bytes(
                export.submission_table({self.name: np.where(is_own, label_map, 0)}, corner, self.slide.shape[0]),
                header=False,
            )
        for path, content in ((self._codes(number), codes), (self._rows(number), rows)):
            with atomic_write(path) as partial:
                partial.write_bytes(content)

    def _read_settled(self):
        """Return which candidates of each block stay, and the number of nuclei before each block."""
        with np.load(self._settled) as file:
            ends, counts = file["ends"], file["counts"]
            flags = np.unpackbits(file["flags"], count=int(ends[-1]))
        return np.split(flags, ends[:-1]), np.concatenate([[0], counts[:-1]])

    def _labelled(self, number, settled):
        """Return the candidates of a block and their labels, 0 for those that do not stay."""
        flags, before = settled[0][number], settled[1][number]
        return self._load_found(number), np.where(flags, before + np.cumsum(flags, dtype=np.int64), 0)

    def _paint(self, part, settled):
        label_map = np.zeros([side.stop - side.start for side in part], np.int32)
        for number, place in enumerate(self.places):
            if blocks.overlap(part, place.seen):
                blocks.paint(label_map, (part[0].start, part[1].start), *self._labelled(number, settled))
        return label_map

    def shrink(self, level_and_row: tuple[int, int]) -> None:
        """Write a row of chunks of a smaller level."""
        _label_images.shrink(self.folder / "labels.zarr", *level_and_row)

    def consistency(self) -> float:
        """Measure the consistency of the middle of the slide, as `predict.tta_consistency` does."""
        sizes = [min(side, _MIDDLE) for side in self.slide.shape]
        starts = [(side - size) // 2 for side, size in zip(self.slide.shape, sizes, strict=True)]
        middle = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        with self.slide.open() as planes:
            image = io.to_rgb8(planes.read_image(*middle), self._read_scale()[0])
        label_map = self._paint(middle, self._read_settled())
        return predict.tta_consistency(self.load_model(), image, label_map, n_tta=self.n_tta, **self.options)

    # files in the work folder

    @property
    def _scale(self):
        return self.folder / "scale.json"

    @property
    def _settled(self):
        return self.folder / "settled.npz"

    def _found(self, number):
        return self.folder / f"found_{number:06}.npz"

    def _rows(self, number):
        return self.folder / f"nuclei_{number:06}.csv"

    def _codes(self, number):
        return self.folder / f"submission_{number:06}.csv"


@lru_cache(maxsize=4)
def _places(shape, block, context):
    return blocks.place_blocks(shape, block, context)


def _grow(part, width, shape):
    return tuple(slice(max(s.start - width, 0), min(s.stop + width, side)) for s, side in zip(part, shape, strict=True))


def _within(part, whole):
    """Return the place of a part within a larger part."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(part, whole, strict=True))
