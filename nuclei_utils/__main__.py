"""Run the command line: `python -m nuclei_utils`."""

from nuclei_utils.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
