"""The published results: every figure in the README and the notebooks comes from a file that one of these wrote."""
