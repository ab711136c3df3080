"""Helpers for notebooks only: start without TensorFlow's messages, and show the target picture at the top."""

import logging
import os
import platform
import sys
import tempfile
import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import nuclei_utils

# part of the package, because Colab has no other file of the repository
PICTURES = files("nuclei_utils") / "assets" / "pictures"


def start() -> None:
    """Load Keras and TensorFlow without their messages.

    One line shows versions, device, data and profile.
    """
    # pooch and other libraries use tqdm's widgets, which need `ipywidgets`; the bars are text without it
    warnings.filterwarnings("ignore", "IProgress not found")
    # several short trainings in one notebook compile several functions on purpose
    logging.getLogger("tensorflow").addFilter(lambda record: "tf.function retracing" not in record.getMessage())
    # otherwise the notebook reserves nearly all memory of a GPU, and other processes get none
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with quiet_stderr():
        import keras

        backend = keras.backend.backend()
        line = (
            f"nuclei_utils {nuclei_utils.__version__}, Keras {keras.__version__} on {backend} "
            f"{sys.modules[backend].__version__}, Python {platform.python_version()} | "
            f"device: {keras.distribution.list_devices()[0]} | "
            f"data: {nuclei_utils.datasets.current()} | profile: {nuclei_utils.training.profile().name}"
        )
    print(line)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hide the standard error of this process, and of the processes that it starts, in the block.

    If the block fails, the text is shown. Messages of Python code in a notebook stay visible.
    """
    # TensorFlow writes to file descriptor 2, not to `sys.stderr`, and no setting stops all of its start-up messages
    try:
        original = os.dup(2)
    except OSError:  # the process has no standard error, for example under pythonw on Windows
        yield
        return
    with tempfile.TemporaryFile() as messages:
        failed = True
        _flush()
        os.dup2(messages.fileno(), 2)
        try:
            yield
            failed = False
        finally:
            _flush()
            os.dup2(original, 2)
            os.close(original)
            if failed and sys.stderr is not None:
                messages.seek(0)
                sys.stderr.write(messages.read().decode(errors="replace"))


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()


def show_goal(name: str, alt: str) -> None:
    """Show a picture of `PICTURES` with a description.

    The text `alt` is for readers who do not see the picture.
    """
    from IPython.display import display

    path = PICTURES / name
    if not path.is_file():
        known = ", ".join(sorted(picture.name for picture in PICTURES.iterdir()))
        raise FileNotFoundError(f"{path} does not exist; the package has these pictures: {known}")
    # JupyterLab, GitHub, Colab and the HTML pages all show the output of a cell.
    picture = {"image/jpeg": b64encode(path.read_bytes()).decode("ascii"), "text/plain": alt}
    display(picture, raw=True, metadata={"image/jpeg": {"alt": alt}})
