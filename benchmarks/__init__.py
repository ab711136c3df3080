"""Published results: a script here writes the result file behind every number in the README and the notebooks."""
