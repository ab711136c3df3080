"""The command line: `python -m nuclei_utils`, or `nuclei-utils` where the package is installed.

One function for each command. A command imports what it needs when it is called, so that `--help` answers at once.
Results go to stdout, progress and complaints to stderr; the exit status is 0 (done), 1 (failed) or 2 (wrong usage).
"""

import argparse
import math
import shlex
import sys
import warnings
from pathlib import Path

from nuclei_utils.cli import train

DATA_EXAMPLES = """\
examples:
  python -m nuclei_utils data                           download the images, 92 MB; if it breaks off, run it again
  python -m nuclei_utils data --fixes                   the same, and the corrected labels
  python -m nuclei_utils data --source ~/Downloads      unpack stage1_train.zip and stage1_test.zip from a folder
  python -m nuclei_utils data --dest /big/disk/dsb2018  put the images somewhere else

What is there already is left alone: to fetch a folder again, delete it. The original labels always stay as they are;
with --fixes the corrected ones lie beside them in stage1_train_fixes, and NUCLEI_DATA=stage1 or stage1_fixed chooses.

The course looks for the images in the folder dsb2018 below NUCLEI_HOME; where that is not set, below the repository's
folder data, or ./data without a repository. After --dest /big/disk/dsb2018, export NUCLEI_HOME=/big/disk.
"""

PREDICT_EXAMPLES = """\
examples:
  python -m nuclei_utils predict photo.png --out result              one image, with the network that is included
  python -m nuclei_utils predict photos --out result                 all images of a folder
  python -m nuclei_utils predict a.tif b.jpg --out result --pixel-size 0.325
                                                                     measure in micrometres
  python -m nuclei_utils predict photos --out result --format geojson --format rois
                                                                     outlines for QuPath and for ImageJ as well
  python -m nuclei_utils predict photos --out result --model mine.keras
                                                                     with a network that 'train' wrote
  python -m nuclei_utils predict photos --out result --resume        go on after an interruption, or add new images

Images may have any size: grey, RGB or RGBA, 8 or 16 bits, PNG, JPEG, TIFF or BMP, nuclei bright or dark. Of a folder
without images, those of the competition's layout, NAME/images/*.png, are taken.

Written, for each image:
  NAME_labels.png   label map, 16 bits: 0 background, 1..N one nucleus each (more than 65,535: NAME_labels.tif)
  NAME_mask.png     0 background, 255 nucleus
  NAME_overlay.png  the image with the outlines of its nuclei: look at it first
  NAME.geojson      outlines for QuPath (--format geojson)
  NAME_rois.zip     outlines for ImageJ and Fiji (--format rois)
and for all images:
  nuclei.csv        one row for each nucleus: place, size, shape, colour
  submission.csv    run lengths, as the 2018 Data Science Bowl wants them
  predict_settings.json  the options that the results depend on

The tables grow with each image. If a run ends early (Ctrl-C, a full disk, the machine goes down), all finished images
are in the tables, and the same command with --resume does the rest. --resume skips finished images and keeps all rows,
so it also adds new images to a folder of results; the options must be those of the first run.
No file that exists is overwritten. --replace overwrites the results of the images that are named, and keeps the rows
of other images. With both options, finished images are skipped, and only the others are replaced.

An image that cannot be read is named on stderr, the others are done, and the exit status is 1. An image is named, too,
whose nuclei change when it is mirrored and made smaller: do not trust its result before you have seen the overlay.
"""

EVALUATE_EXAMPLES = """\
examples:
  python -m nuclei_utils evaluate result --truth mine/labels                   against label maps
  python -m nuclei_utils evaluate result --truth data/dsb2018/stage1_train     against NAME/masks/*.png
  python -m nuclei_utils evaluate result --truth stage1_solution.csv           against the competition's solution
  python -m nuclei_utils evaluate result --truth mine/labels --json > scores.json

PREDICTED_DIR is what 'predict' wrote, or what another tool did: NAME_labels.png or NAME.png (or .tif), 0 background,
1..N one nucleus each. The truth is a folder of such label maps, a folder of folders of masks (NAME/masks/*.png, one
file for each nucleus), or a CSV file with the columns ImageId, EncodedPixels, Height, Width.

Pixels: dice, iou, precision and recall of nucleus against background, averaged over images. Nuclei: the competition's
score, averaged over images, and the average precision TP / (TP + FP + FN) over the nuclei of all images together.
Scored are the images that both sides have. The others are named on stderr; where predictions are missing, the exit
status is 1.
"""


def main(argv=None):
    """Run one command.

    Parameters
    ----------
    argv : list of str, optional
        The words of the command line; default those of this process.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed, in whole or in part, with a message on stderr. Wrong usage raises
        `SystemExit(2)`, as argparse does.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks have other streams
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show
    arguments = _parser().parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return arguments.run(arguments)
        except (ValueError, OSError) as error:
            from nuclei_utils.errors import NucleiError

            if not isinstance(error, NucleiError | OSError):
                raise  # a mistake in the program: its traceback is what helps
            return _failed(arguments.command, error)
        except KeyboardInterrupt:
            return _failed(arguments.command, f"interrupted; {arguments.interrupted}")


def _failed(command, reason):
    print(f"nuclei-utils {command}: {reason}", file=sys.stderr)
    return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="nuclei-utils",
        description="Find cell nuclei in microscope images: the helpers of the course, from the shell.",
        epilog="'python -m nuclei_utils COMMAND --help' explains a command and gives examples.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_data, _add_train, _add_predict, _add_evaluate):
        add(commands)
    return parser


def _add_data(commands):
    command = commands.add_parser(
        "data",
        help="fetch, verify and unpack the images of the 2018 Data Science Bowl",
        description="Fetch the images of the 2018 Data Science Bowl (BBBC038v1, CC0; no account needed), verify every "
        "file, and unpack them: 670 training images with 29,461 nuclei, and 65 test images.",
        epilog=DATA_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--source",
        metavar="FOLDER_OR_URL",
        help="where stage1_train.zip and stage1_test.zip are (default: the Broad Bioimage Benchmark Collection)",
    )
    command.add_argument(
        "--dest", type=_folder, metavar="DIR", help="where the folders go (default: dsb2018 in NUCLEI_HOME, see below)"
    )
    command.add_argument(
        "--fixes",
        action="store_true",
        help="also fetch the corrected labels (664 images, 28,986 nuclei): stage1_train_fixes.zip from the source, "
        "3 MB, or the community's repository on GitHub, which is a copy of the whole training set",
    )
    command.set_defaults(run=_data, interrupted="finished folders are kept; the same command fetches the others")


def _add_train(commands):
    command = commands.add_parser("train", help=train.HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    train.add_arguments(command)
    command.set_defaults(run=train.run)


def _add_predict(commands):
    command = commands.add_parser(
        "predict",
        help="find the nuclei in images: label maps, overlays and a table of measurements",
        description="Find the nuclei in images of any size: label maps, overlays and a table of measurements.",
        epilog=PREDICT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="image files, and folders of images"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    command.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="a .keras file, which is checked before it is loaded (default: the network that comes with the package)",
    )
    command.add_argument(
        "--pixel-size",
        type=_length,
        metavar="UM",
        help="width of a pixel in micrometres; nuclei.csv then has micrometres instead of pixels",
    )
    command.add_argument(
        "--format",
        action="append",
        choices=("geojson", "rois"),
        default=[],
        help="write outlines as well: GeoJSON for QuPath, a zip of ROIs for ImageJ; may be given twice",
    )
    command.add_argument(
        "--tta",
        dest="n_tta",
        type=int,
        choices=(1, 4, 8),
        default=1,
        help="look at each image so many times, mirrored and turned, and take the mean: better, and as much slower "
        "(default: 1)",
    )
    command.add_argument(
        "--max-pixels",
        type=_whole_number,
        metavar="N",
        help="refuse images of more pixels, height times width (default: 1,000,000,000)",
    )
    command.add_argument(
        "--resume", action="store_true", help="skip the images that are finished, and add the others to the tables"
    )
    command.add_argument("--replace", action="store_true", help="overwrite the results of these images")
    command.set_defaults(
        run=_predict,
        interrupted="the tables hold the images that are done; the same command with --resume does the others",
    )


def _add_evaluate(commands):
    command = commands.add_parser(
        "evaluate",
        help="score label maps against the truth",
        description="Score label maps against the truth, pixel by pixel and nucleus by nucleus.",
        epilog=EVALUATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("predicted", type=Path, metavar="PREDICTED_DIR", help="a folder of label maps")
    command.add_argument(
        "--truth", type=Path, required=True, metavar="DIR_OR_CSV", help="label maps, masks, or a solution CSV"
    )
    command.add_argument("--json", action="store_true", help="print JSON, with the scores of each image")
    command.set_defaults(run=_evaluate, interrupted="nothing was written")


def _folder(text):
    try:
        Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such user") from error
    return text


def _whole_number(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def _length(text):
    try:
        length = float(text)
    except ValueError:
        length = math.nan
    if not 0 < length < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a length above 0, such as 0.325")
    return length


def _data(arguments):
    from nuclei_utils import download

    reports = download.fetch(arguments.source or download.BROAD, arguments.dest, arguments.fixes)
    for report in reports:
        done = f"{report.seconds:.1f} s" if report.is_new else "already there"
        counts = f"{report.images:>4,} images  {report.masks:>6,} masks  {report.size / 1e6:>5.1f} MB"
        print(f"{report.folder.name:<18}  {counts}  {done:<13}  {report.folder}")
    if arguments.dest:
        _say_how_to_use(Path(arguments.dest).expanduser().resolve())
    return 0


def _predict(arguments):
    from nuclei_utils.commands import predict

    return predict.run(arguments)


def _evaluate(arguments):
    from nuclei_utils.commands import evaluate

    return evaluate.run(arguments)


def _say_how_to_use(dest):
    """Say how the course finds images that were put somewhere else."""
    from nuclei_utils import datasets

    if dest == (datasets.home() / "dsb2018").resolve():
        return
    place = dest.with_name("dsb2018")
    if dest != place:
        print(f"the course looks for a folder named dsb2018: rename {dest} to {place}")
    print(f"to use these images:  export NUCLEI_HOME={shlex.quote(str(place.parent))}")


def _show_warning(message, *_details, **_more):
    print(f"warning: {message}", file=sys.stderr)
