"""Run the command line: `nuclei-utils`, or `python -m nuclei_utils`.

Each command is a module with `HELP`, `add_arguments` and `run`. A command loads Keras and other large packages when it
runs, so that `--help` answers at once. Results go to stdout. Progress and messages go to stderr. The exit status is 0
(success), 1 (failure) or 2 (wrong usage).
"""

import argparse
import sys
import warnings

from nuclei_utils.cli import data, evaluate, predict, train
from nuclei_utils.errors import NucleiError

COMMANDS = {"data": data, "train": train, "predict": predict, "evaluate": evaluate}


def main(argv: list[str] | None = None) -> int:
    """Run a command, and return the exit status.

    `argv` are the words of the command line, by default those of this process. Wrong usage ends the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the streams of notebooks have no such method
            stream.reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
    args = _parser().parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return args.run(args)
        except (NucleiError, OSError) as error:
            message = error
        except KeyboardInterrupt:
            message = f"interrupted; {args.interrupted}"
    print(f"nuclei-utils {args.command}: {message}", file=sys.stderr)
    return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="nuclei-utils",
        description="Find cell nuclei in microscope images, and train networks that find them.",
        epilog="'python -m nuclei_utils COMMAND --help' explains a command and gives examples.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _show_warning(message, *_details, **_more):
    print(f"warning: {message}", file=sys.stderr)
