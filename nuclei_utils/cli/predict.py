"""The command `predict`: find the nuclei in images; write label maps, overlays and tables."""

import argparse
import contextlib
import errno
import hashlib
import math
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

import nuclei_utils as nu
from nuclei_utils.cli import predict_images, results
from nuclei_utils.cli.arguments import number, positive_integer
from nuclei_utils.errors import NucleiError
from nuclei_utils.files import file_lock, printable_name

HELP = "find the nuclei in images: label maps, overlays and a table of measurements"

EXAMPLES = """\
examples:
  python -m nuclei_utils predict photo.png --out result              one image, with the included network
  python -m nuclei_utils predict photos --out result                 all images of a folder
  python -m nuclei_utils predict a.tif b.jpg --out result --pixel-size 0.325
                                                                     measure in micrometres
  python -m nuclei_utils predict photos --out result --diameter 80
                                                                     nuclei much larger than usual, about 80 pixels wide
  python -m nuclei_utils predict photos --out result --format geojson --format rois
                                                                     write outlines for QuPath and for ImageJ too
  python -m nuclei_utils predict photos --out result --model mine.keras
                                                                     use a network that 'train' wrote
  python -m nuclei_utils predict stack.ome.tif --out result --channel DAPI --z max
                                                                     maximum of a z-stack, nuclei in the channel DAPI
  python -m nuclei_utils predict cells.zarr --out result --channel auto --time 0
                                                                     first time, channel named like a nuclear stain
  python -m nuclei_utils predict cells.lif --out result --scene 2    third image of a file with several images
  python -m nuclei_utils predict photos --out result --resume        resume an interrupted run, or add new images
  python -m nuclei_utils predict slide.ome.tif --out result --channel DAPI --workers 4
                                                                     a slide, block by block, in four processes
  python -m nuclei_utils predict slide.ome.tif --out result --level 1
                                                                     a smaller level, if nuclei are too large in level 0
  python -m nuclei_utils predict photos --out result --scheduler tcp://10.0.0.1:8786
                                                                     the workers of a Dask cluster, see docs/scale.md

Images may have any size: grey, RGB or RGBA, 8 or 16 bits, nuclei bright or dark. If a folder has no images, the command
reads the layout of the competition in it, NAME/images/*.png.

Formats:
  PNG, JPEG, BMP, TIFF, OME-TIFF, ImageJ hyperstacks    always
  OME-Zarr 0.4 and 0.5 (a folder)                       pip install "nuclei-utils[large]"
  ND2, LIF, and TIFF stacks with LZW or JPEG inside,     pip install "nuclei-utils[formats]"
  such as most slides of Aperio (SVS)
  CZI                                                   pip install bioio bioio-czi (its licence is the GPL)
The network sees one plane of one channel, or the colours of an RGB image. If the file leaves a choice, the message
names the images, the channels or the number of times. For all images of a file, call the command once for each --scene,
with another --out. All channels of the plane are measured. Images with fractions (float) or negative values need
--value-range. The pixel size comes from the file (OME, ImageJ or Aperio) unless you give --pixel-size.

Output files for each image:
  NAME_labels.png   label map, 16 bits: 0 background, 1..N one number for each nucleus (above 65,535: NAME_labels.tif)
  NAME_mask.png     0 background, 255 nucleus
  NAME_overlay.png  the image with the outlines of its nuclei: look at it first
  NAME.geojson      outlines for QuPath (--format geojson)
  NAME_rois.zip     outlines for ImageJ and Fiji (--format rois)
Output files for all images:
  images.csv        one row for each finished image: file, height, width, number of nuclei, median diameter in pixels
                    (empty for a slide), consistency, pixel size and its source, and the warning of the command, if any
  nuclei.csv        one row for each nucleus: position, size, shape; mean, sum, standard deviation and local background
                    of each channel in the units of the file; pixel size and its source. Grey and RGB images without
                    names of channels have red, green and blue. All images of a table have the same channels.
  submission.csv    run lengths in the format of the 2018 Data Science Bowl
  predict_settings.json  the options that the results depend on

Slides: a TIFF or OME-Zarr image of more than --slide-pixels is never in memory as a whole. Instead of label map, mask
and overlay, the command writes NAME_labels.ome.zarr (OME-Zarr 0.4 for napari and QuPath: the labels, and a small image
of the slide) or NAME_labels.ome.tif (--label-format tif). Save slides in tiles, not in strips. Slides and several
workers need pip install "nuclei-utils[large]". Workers on other machines must see the images, the network and --out
under the same names.

The tables grow with each image. If a run ends early (Ctrl-C, a full disk, a crash), the tables hold all finished
images, and the same command with --resume does the others. --resume skips finished images and the finished blocks of a
slide, and keeps all rows. You can also use it to add new images to a folder of results, with the same options.
Unfinished work is in the hidden folder .predict_work of DIR, which is removed at the end.
The command overwrites no file. With --replace, it overwrites the results of the images that you name, and keeps the
rows of other images. With --resume and --replace, it skips finished images and replaces the results of the others.

If an image cannot be read, a message on stderr names it, the other images are predicted, and the exit status is 1. A
message also names each image whose nuclei change when the image is mirrored and made smaller. Do not trust such a
result before you have seen the overlay. The column warning of images.csv keeps these messages. If you have many images,
sort the table by this column.

The included network was trained on nuclei with a median diameter of 19.6 pixels, most of them between 9 and 52. Without
--diameter and --model, a message names each image whose median diameter is outside of this range. This is the median of
the nuclei that the network found. Look at the overlay, because the network can also take parts of a very large nucleus
for nuclei of the usual size. Slides are not checked, and --diameter is not for slides. For them, choose the --level of
the pyramid in which nuclei are closest to 20 pixels: 0.4 micrometres per pixel for nuclei of 8 micrometres. Labels and
measurements then have the size of that level. If no level is close, export a smaller copy.
"""

# options of the command that are those of `microscopy.open_planes`
_PLANES = ("channel", "z", "time", "scene", "level", "value_range")

_length = number(float, lambda length: 0 < length < math.inf, "a length above 0, such as 0.325")


def _diameter(text):
    """Return a diameter as a number and its unit."""
    if text.endswith(("um", "µm", "μm")):  # micro sign and Greek letter
        return _length(text[:-2]), "um"
    return _length(text), "pixels"


_probability = number(float, lambda probability: 0 < probability < 1, "a number between 0 and 1, such as 0.6")
_whole = number(int, lambda value: value >= 0, "a whole number, 0 or more")
_block = number(int, lambda side: side > 0 and side % 32 == 0, "a multiple of 32, such as 768")
_value = number(float, math.isfinite, "a number")

# errors of writing that every further image would meet too
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def _depth(text):
    return text if text == "max" else _whole(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add description, examples and options of the command to a parser."""
    parser.description = "Find the nuclei in images of any size: label maps, overlays and a table of measurements."
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="image files, and folders of images")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    text = "a .keras file, which is checked before it is loaded, or a file from deploy.export_onnx or export_litert, "
    text += "which is not checked (default: the included network)"
    add("--model", type=Path, metavar="FILE", help=text)
    text = "of the included network: int8 is faster without a GPU, and its score is almost the same (default: float32 "
    text += "with a GPU, otherwise int8; with --resume, that of the results)"
    add("--precision", choices=("int8", "float32"), help=text)
    text = "name or index (from 0) of the channel with the nuclei; auto: the one named like a nuclear stain"
    add("--channel", metavar="NAME", help=text)
    text = "max: the maximum of all z planes, which is the default; or the index of one z plane, from 0"
    add("--z", type=_depth, metavar="max|INDEX", help=text)
    add("--time", type=_whole, metavar="INDEX", help="index of a time, from 0; needed for files with several times")
    text = "index of an image in the file, from 0; needed for TIFF, CZI, ND2 and LIF files with several images"
    add("--scene", type=_whole, metavar="INDEX", help=text)
    text = "level of a pyramid (TIFF or OME-Zarr) that is read: 0, the default, is the largest"
    add("--level", type=_whole, default=0, metavar="INDEX", help=text)
    text = "values of the file that become black and white for the network; measurements keep the values of the file"
    add("--value-range", type=_value, nargs=2, metavar=("LOW", "HIGH"), help=text)
    text = (
        "width of a pixel in micrometres, at the --level that is read (default: the size in the file); nuclei.csv "
        "then has micrometres, not pixels"
    )
    add("--pixel-size", type=_length, metavar="UM", help=text)
    text = (
        "usual diameter of a nucleus, in pixels (30) or in micrometres (12um, if the pixel size is known): the image "
        "is resized to nuclei that the network knows, and the label map back; for much smaller or larger nuclei, "
        "see below"
    )
    add("--diameter", type=_diameter, metavar="LENGTH", help=text)
    text = "write outlines too: GeoJSON for QuPath, a zip of ROIs for ImageJ; may be given twice"
    add("--format", action="append", choices=("geojson", "rois"), default=[], help=text)
    text = "number of mirrored and turned copies of an image; more copies are better and take longer (default: 1)"
    add("--tta", type=int, choices=(1, 4, 8), default=1, help=text)
    text = "pixels with a probability of nucleus above P belong to nuclei (default: 0.5)"
    add("--prob-thresh", type=_probability, default=0.5, metavar="P", help=text)
    add("--min-size", type=_whole, default=25, metavar="PIXELS", help="leave out smaller nuclei (default: 25)")
    text = "leave out nuclei whose mean probability is lower (default: 0.8, or 0 for a network with one output)"
    add("--min-confidence", type=_probability, metavar="P", help=text)
    text = "take TIFF and OME-Zarr images with more pixels, height times width, as slides (default: 100,000,000)"
    add("--slide-pixels", type=positive_integer, default=100_000_000, metavar="N", help=text)
    text = "file for the labels of a slide: OME-Zarr or OME-TIFF, both pyramids (default: zarr)"
    add("--label-format", choices=("zarr", "tif"), default="zarr", help=text)
    text = "height and width of a block, a multiple of 32; smaller blocks need less memory and more time (default: 768)"
    add("--block", type=_block, default=768, metavar="PIXELS", help=text)
    text = "number of processes that share the work; needs the extra [large] (default: this process alone)"
    cluster = parser.add_mutually_exclusive_group()
    cluster.add_argument("--workers", type=positive_integer, default=0, metavar="N", help=text)
    text = "address of a Dask scheduler whose workers do the work, or its scheduler file; needs the extra [large]"
    cluster.add_argument("--scheduler", metavar="ADDRESS", help=text)
    text = "refuse images with more pixels, height times width (default: 1,000,000,000; slides: no limit)"
    add("--max-pixels", type=positive_integer, metavar="N", help=text)
    add("--resume", action="store_true", help="skip finished images, and add the other images to the tables")
    add("--replace", action="store_true", help="overwrite the results of these images")
    text = "the tables hold the finished images; the same command with --resume does the others"
    parser.set_defaults(interrupted=text)


def run(args: argparse.Namespace) -> int:
    """Find the nuclei in images, and write the results.

    The exit status is 1 if an image fails, otherwise 0.
    """
    if args.value_range and args.value_range[0] >= args.value_range[1]:
        low, high = args.value_range
        raise NucleiError(f"--value-range {low:g} {high:g}: expected two numbers, the lower first")
    if args.model and args.precision:
        raise NucleiError(f"--precision {args.precision} is for the included network: leave it out with --model")
    if args.model and not args.model.is_file():
        raise NucleiError(f"{args.model} is missing: give the path of a file, as `nuclei-utils train` writes")
    paths, empty = _find_images(args.images)
    _check_names(paths, args)
    for folder in empty:
        _complain(f"{folder} holds no image: expected one of the formats in --help, or NAME/images/NAME.png")
    if not paths:
        return 1
    message = f"another `nuclei-utils predict` is writing into {args.out}: wait for its end, or use another --out"
    with file_lock(args.out / ".predict.lock", message):
        work = args.out.absolute() / ".predict_work"
        if (work / "slides").exists() and not (args.resume or args.replace):
            raise NucleiError(
                f"{work} holds finished blocks of a slide: add --resume to use them, or delete the folder"
            )
        tables = results.Tables(args.out, _existing_columns(args.out))
        names = [path.stem for path in paths]
        plan = results.make_plan(args.out, names, args.format, tables, args.resume, args.replace)
        with nu.cluster.connect(args.workers, args.scheduler) as client:
            if client:
                _complain(f"workers: {len(client.nthreads())}, dashboard at {client.dashboard_link}")
            saved = results.read_settings(args.out) if args.resume or plan.others else {}
            network = _choose_network(args, saved.get("--precision"), client)
            nu.cluster.run_task(partial(predict_images.check_network, network), client)
            settings = _settings(args, network)
            if plan.others:
                results.check_settings(args.out, saved, settings)
            tables.drop(plan.outdated)
            results.write_settings(args.out, settings)
            run = _Run(work, paths, tables, plan, settings, network, client, args)
            try:
                run.predict_all()
            finally:
                run.clean()
    return 1 if run.failures or empty else 0


def _existing_columns(folder):
    """Return the columns that an existing nuclei.csv must have, or None."""
    header = results.read_header(folder / "nuclei.csv")
    return None if header is None else predict_images.columns_of(_channels(header))


def _channels(columns):
    return [name.removeprefix("mean_") for name in columns if name.startswith("mean_")]


def _choose_network(args, saved_precision, client):
    """Return the network of the options. The first worker says whether there is a GPU."""
    if args.model:
        return predict_images.Network(args.model.absolute(), None, _digest(args.model))
    precision = args.precision or saved_precision or nu.cluster.run_task(predict_images.default_precision, client)
    if precision not in list(nu.exported.INCLUDED):
        raise NucleiError(f"{args.out / results.SETTINGS} is damaged: use another folder with --out")
    return predict_images.Network(None, precision, _digest(nu.datasets.asset(nu.exported.INCLUDED[precision])))


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _settings(args, network):
    """Return the options that the results depend on."""
    return {
        **({} if network.path else {"--precision": network.precision}),
        "--model": network.digest,
        **{f"--{name.replace('_', '-')}": getattr(args, name) for name in (*_PLANES, "pixel_size")},
        "--diameter": args.diameter and list(args.diameter),
        "--tta": args.tta,
        "--prob-thresh": args.prob_thresh,
        "--min-size": args.min_size,
        "--min-confidence": args.min_confidence,
        "--format": sorted(set(args.format)),
        "--block": args.block,
        "--slide-pixels": args.slide_pixels,
        "--label-format": args.label_format,
    }


def _find_images(inputs):
    """Return the image files, each file once, and the folders without images."""
    paths, empty = {}, []
    for path in inputs:
        images = nu.microscopy.list_images(path) if path.is_dir() else [path]
        if images != [path]:
            images = sorted(images + nu.datasets.list_images(path))
        if not images:  # the layout of the competition
            folders = [folder for folder in sorted(path.glob("*/images")) if folder.is_dir()]
            images = [image for folder in folders for image in nu.datasets.list_images(folder)]
        if not images:
            empty.append(path)
        for image in images:
            # Path.resolve fails on a circle of links: the message about reading names such a file
            paths.setdefault(os.path.realpath(image), image)
    return list(paths.values()), empty


def _check_names(paths, args):
    """Refuse images whose results would share a name or overwrite an image."""
    out = os.path.realpath(args.out)
    for path in args.images:
        if path.is_dir() and os.path.realpath(path) == out:
            raise NucleiError(
                f"{path} would be read and written: use another folder with --out, because results "
                "would be taken for images"
            )
    names = {}
    inputs = {os.path.realpath(path) for path in paths}
    for path in paths:
        # on Windows and macOS, names that differ only in case are the same
        other = names.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise NucleiError(
                f"{other} and {path} would give results of the same name: rename one, or predict one at a time"
            )
        for file in results.result_files(args.out, path.stem).values():
            if os.path.realpath(file) in inputs:
                raise NucleiError(f"{file} is one of the images, and would be overwritten: use another --out")


class _Run:
    """The work on all images: who does it, and what is done."""

    def __init__(self, work, paths, tables, plan, settings, network, client, args):
        self.work, self.tables, self.plan = work, tables, plan
        self.paths = {path.stem: path for path in paths}  # as the user gave them
        self.settings, self.client, self.args = settings, client, args
        self.done, self.failures, self.unknown_sizes = len(plan.finished), 0, 0
        self.nuclei = sum(plan.measured[name] for name in plan.finished)
        self.options = predict_images.Options(
            work=work,
            network=network,
            planes={name: getattr(args, name) for name in _PLANES},
            max_pixels=args.max_pixels,
            slide_pixels=args.slide_pixels,
            pixel_size=args.pixel_size,
            block=args.block,
            formats=args.format,
            diameter=args.diameter,
            tta=args.tta,
            segmentation={name: getattr(args, name) for name in ("prob_thresh", "min_size", "min_confidence")},
            progress=client is None and sys.stderr.isatty(),
        )

    def predict_all(self):
        """Predict the images that are not finished: first images that fit into memory, then slides."""
        paths = self.paths.values()
        if self.plan.finished:
            print(f"{len(self.plan.finished)} of {len(paths)} images were finished before")
        remaining, slides = [path for path in paths if path.stem not in self.plan.finished], []
        if self.args.scheduler:  # workers may have another working directory
            remaining = [path.absolute() for path in remaining]
        find_nuclei = partial(predict_images.find_nuclei, options=self.options)
        tasks = nu.cluster.run_tasks(find_nuclei, remaining, self.client)
        # disable=None: no progress bar if stderr is no terminal
        bar = {"unit": "image", "total": len(remaining), "disable": None if len(remaining) > 1 else True}
        for path, task in tqdm(tasks, "finding nuclei", **bar):
            with self._failures_of(path, len(paths)):
                found = task.result()
                if isinstance(found, predict_images.Found):
                    self._keep(path, found)
                else:
                    slides.append(found)
        for slide in slides:
            with self._failures_of(slide.path, len(paths)):
                self._predict_slide(slide)
        if self.unknown_sizes:
            text = "no pixel size is known, nuclei.csv has pixels (see --pixel-size)"
            print(f"{self.unknown_sizes} of {len(paths)} images: {text}")
        print(f"{self.done} of {len(paths)} images, {self.nuclei:,} nuclei: {self.args.out}")

    def clean(self):
        """Remove the work folder, apart from the finished blocks of slides."""
        shutil.rmtree(self.work / "images", ignore_errors=True)
        predict_images.remove_unused(self.work / "slides")
        for folder in (self.work / "slides", self.work):
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()

    @contextlib.contextmanager
    def _failures_of(self, path, total):
        """Report the errors of an image. An error of the disk ends the run."""
        try:
            yield
        except (NucleiError, OSError) as error:
            if getattr(error, "errno", None) in _DISK_ERRORS:
                raise NucleiError(
                    f"{error}: the results of {path} could not be written. The tables hold the {self.done} finished of "
                    f"{total} images. Free disk space, or allow writing in the folder; then resume with the same "
                    "command and --resume"
                ) from error
            self.failures += 1
            _complain(error)

    def _predict_slide(self, slide):
        """Find the nuclei of a slide, block by block."""
        self._check_columns(slide.path, columns := predict_images.columns_of(slide.names))
        (kind,) = (kind for kind, name in results.SLIDE_LABELS.items() if name == self.args.label_format)
        results.refuse_other_files(self.args.out, slide.path.stem, {kind})
        job = predict_images.prepare_slide(slide, self.options, self.settings)
        result = job.run(self.args.label_format, self.client, progress=None)
        found = predict_images.Found(
            columns=columns,
            rows=job.rows(),
            codes=job.codes(),
            count=result.count,
            consistency=result.consistency,
            diameter=math.nan,
            shape=slide.shape,
            pixel_size=slide.pixel_size,
            pixel_size_source=slide.pixel_size_source,
            files={kind: result.labels},
        )
        self._keep(slide.path, found)
        predict_images.remove_finished(job)

    def _keep(self, path, found):
        """Add the rows of an image to the tables, and move its files to the results."""
        self._check_columns(path, found.columns)
        is_measured = path.stem in self.plan.measured
        warnings = self._warnings(found)
        row = _image_row(self.paths[path.stem], found, "; ".join(warnings))
        # the rows come first: then a file without rows is never from this command, and no run needs to overwrite it
        rows = self.tables.adding(found.columns, [row], found.rows, found.codes)
        with contextlib.nullcontext() if is_measured else rows:
            results.move_results(found.files, self.args.out, path.stem, keep_existing=is_measured)
        self.done += 1
        self.nuclei += found.count
        self.unknown_sizes += found.pixel_size is None
        known = "" if math.isnan(found.consistency) else f"  consistency {found.consistency:.2f}"
        tqdm.write(f"{path.stem}  {found.count:,} nuclei{known}", file=sys.stdout)
        for warning in warnings:
            _complain(f"{path.stem}: {warning}")

    def _warnings(self, found):
        """Return what the user must know about the nuclei of an image."""
        warnings = []
        if math.isnan(found.consistency):
            warnings.append("no nucleus was found; if the image has nuclei, do not trust this result")
        elif found.consistency < nu.predict.MIN_CONSISTENCY:
            warnings.append(
                "do not trust this result. The mirrored, smaller image gives other nuclei (consistency "
                f"{found.consistency:.2f}, below {nu.predict.MIN_CONSISTENCY}): it may be unlike the training images"
            )
        low, high = nu.predict.DIAMETER_RANGE
        is_checked = self.args.diameter is None and self.args.model is None
        if is_checked and (found.diameter < low or found.diameter > high):
            warnings.append(
                f"the median diameter of the nuclei found is {found.diameter:.1f} pixels. Most nuclei of the training "
                f"images have {low:g} to {high:g}: look at the overlay, measure a few nuclei, and try --diameter"
            )
        return warnings

    def _check_columns(self, path, columns):
        existing = self.tables.measured_columns
        if existing not in (None, columns):
            raise NucleiError(
                f"{path}: found the channels {', '.join(_channels(columns))}, but nuclei.csv has "
                f"{', '.join(_channels(existing))} from the images before: predict images with other channels into "
                "another folder with --out"
            )


def _image_row(path, found, warning):
    """Return the row of an image in images.csv."""
    import pandas as pd

    name, file = printable_name(path.stem), printable_name(str(path))
    nuclei = found.count, found.diameter, found.consistency
    row = name, file, *found.shape, *nuclei, found.pixel_size, found.pixel_size_source, warning
    return nu.export.csv_bytes(pd.DataFrame([row], columns=results.IMAGE_COLUMNS), header=False)


def _complain(message):
    tqdm.write(f"nuclei-utils predict: {message}", file=sys.stderr)
