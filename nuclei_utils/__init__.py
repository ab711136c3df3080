"""Helpers for the course on nucleus segmentation; each subject is a module, such as `nuclei_utils.models`.

Importing the package is quick and loads no TensorFlow: a module loads what it needs when it is imported itself.
"""

import os

import wrapt

__version__ = "0.1.0"

# TensorFlow's start-up messages say nothing that a reader needs; whoever wants them sets the variable to 0
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@wrapt.when_imported("tensorflow_datasets")
def _register_with_tfds(module):
    """Make `tfds.load("dsb2018/…")` work, whichever of the two packages is imported first."""
    if hasattr(module, "core"):  # TFDS logs an error of its own imports and goes on without its functions
        import nuclei_utils.dsb2018  # noqa: F401
