"""The command line: `python -m nuclei_utils`, or `nuclei-utils` where the package is installed.

One function for each command. A command imports what it needs when it is called, so that `--help` answers at once.
Results go to stdout, progress and complaints to stderr; the exit status is 0 (done), 1 (failed) or 2 (wrong usage).
"""

import argparse
import shlex
import sys
import warnings
from pathlib import Path

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


def main(argv=None):
    """Run one command.

    Parameters
    ----------
    argv : list of str, optional
        The words of the command line; default those of this process.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed with a message on stderr. Wrong usage raises `SystemExit(2)`, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            arguments.run(arguments)
        except (ValueError, OSError) as error:
            from nuclei_utils.data import DataError

            if not isinstance(error, DataError | OSError):
                raise  # a mistake in the program: its traceback is what helps
            return _failed(arguments.command, error)
        except KeyboardInterrupt:
            return _failed(arguments.command, "interrupted; the same command goes on from what is there")
    return 0


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
    _add_data(commands)
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
        "--dest", metavar="DIR", help="where the folders go (default: dsb2018 in NUCLEI_HOME, see below)"
    )
    command.add_argument(
        "--fixes",
        action="store_true",
        help="also fetch the corrected labels (664 images, 28,986 nuclei): stage1_train_fixes.zip from the source, "
        "3 MB, or the community's repository on GitHub, which is a copy of the whole training set",
    )
    command.set_defaults(run=_data)


def _data(arguments):
    from nuclei_utils import download

    reports = download.fetch(arguments.source or download.BROAD, arguments.dest, arguments.fixes)
    for report in reports:
        done = f"{report.seconds:.1f} s" if report.is_new else "already there"
        counts = f"{report.images:>4,} images  {report.masks:>6,} masks  {report.size / 1e6:>5.1f} MB"
        print(f"{report.folder.name:<18}  {counts}  {done:<13}  {report.folder}")
    if arguments.dest:
        _say_how_to_use(Path(arguments.dest).expanduser().resolve())


def _say_how_to_use(dest):
    """Say how the course finds images that were put somewhere else."""
    from nuclei_utils import data

    if dest == (data.home() / "dsb2018").resolve():
        return
    place = dest.with_name("dsb2018")
    if dest != place:
        print(f"the course looks for a folder named dsb2018: rename {dest} to {place}")
    print(f"to use these images:  export NUCLEI_HOME={shlex.quote(str(place.parent))}")


def _show_warning(message, *_details, **_more):
    print(f"warning: {message}", file=sys.stderr)
