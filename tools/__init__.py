"""Tools for those who keep the course: run from the repository's root as `python -m tools.NAME`."""
