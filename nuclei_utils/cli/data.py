"""The command `data`: download, verify and unpack the real images. The work is done in `download`."""

import argparse
import shlex
from pathlib import Path

import nuclei_utils as nu

HELP = "download, verify and unpack the images of the 2018 Data Science Bowl"

EXAMPLES = """\
examples:
  python -m nuclei_utils data                           download the images, 92 MB; run it again after an interruption
  python -m nuclei_utils data --fixes                   download the corrected labels too
  python -m nuclei_utils data --source ~/Downloads      unpack stage1_train.zip and stage1_test.zip from a folder
  python -m nuclei_utils data --dest /big/disk/dsb2018  put the images into another folder

The command never changes a folder of images that exists. Delete the folder to download its images again. The original
labels stay as they are. With --fixes, the corrected labels are in stage1_train_fixes. Choose between the two with
NUCLEI_DATA=stage1 or NUCLEI_DATA=stage1_fixed.

The course reads the images from the folder dsb2018 in NUCLEI_HOME. Without NUCLEI_HOME, it reads them from data/dsb2018
in the repository, or in the working directory if there is no repository. After --dest /big/disk/dsb2018, run:
export NUCLEI_HOME=/big/disk
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add description, examples and options of the command to a parser."""
    parser.description = (
        "Download the images of the 2018 Data Science Bowl (BBBC038v1, CC0; no account needed), verify every file, and "
        "unpack them: 670 training images with 29,461 nuclei, and 65 test images."
    )
    parser.epilog = EXAMPLES
    text = (
        "folder or address of stage1_train.zip and stage1_test.zip (default: the Broad Bioimage Benchmark Collection)"
    )
    parser.add_argument("--source", metavar="FOLDER_OR_URL", help=text)
    text = "folder for the images (default: dsb2018 in NUCLEI_HOME, see below)"
    parser.add_argument("--dest", type=_folder, metavar="DIR", help=text)
    text = (
        "download the corrected labels too (664 images, 28,986 nuclei): stage1_train_fixes.zip from the source, 3 MB, "
        "or the community's repository on GitHub, which is a copy of the whole training set"
    )
    parser.add_argument("--fixes", action="store_true", help=text)
    parser.set_defaults(interrupted="finished folders are kept; the same command downloads the others")


def run(args: argparse.Namespace) -> int:
    """Download the images, and print a line for each folder.

    The exit status is 0.
    """
    for report in nu.download.fetch(args.source or nu.download.BROAD, args.dest, args.fixes):
        state = f"{report.seconds:.1f} s" if report.is_new else "already there"
        counts = f"{report.images:>4,} images  {report.masks:>6,} masks  {report.size / 1e6:>5.1f} MB"
        print(f"{report.folder.name:<18}  {counts}  {state:<13}  {report.folder}")
    if args.dest:
        _explain_home(Path(args.dest).expanduser().resolve())
    return 0


def _folder(text):
    try:
        Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: this user does not exist: write the full path") from error
    return text


def _explain_home(dest):
    """Print how the course finds images in another folder."""
    if dest == (nu.datasets.home() / "dsb2018").resolve():
        return
    expected = dest.with_name("dsb2018")
    if dest != expected:
        print(f"the course reads a folder with the name dsb2018: rename {dest} to {expected}")
    print(f"to use these images:  export NUCLEI_HOME={shlex.quote(str(expected.parent))}")
