"""Helpers for a course on nucleus segmentation. Each subject is a module, such as `nuclei_utils.models`.

`import nuclei_utils` is quick and loads no TensorFlow. A module is loaded when it is first used, by
`from nuclei_utils import models` or by `nuclei_utils.models`.
"""

import importlib
import os
import pkgutil

__version__ = "0.1.0"
__all__ = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))

# TensorFlow's start-up messages do not help a reader. Set the variable to 0 to see them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def __getattr__(name):
    """Import a module of the package when it is first used."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
