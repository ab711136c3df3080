"""Tools for maintainers of the course: run them from the repository's root as `python -m tools.NAME`."""
