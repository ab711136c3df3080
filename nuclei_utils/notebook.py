"""Helpers for notebooks only: a quiet start, and the picture of the result at the top."""

import os
import platform
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import nuclei_utils

__all__ = ["banner", "quiet_stderr", "show_goal", "start"]

PICTURES = files("nuclei_utils") / "assets" / "pictures"
"""Folder of the goal pictures. They are part of the package, because Colab has no other file of the repository."""


def start() -> None:
    """Load Keras and TensorFlow without their messages, and print `banner`."""
    with quiet_stderr():
        line = banner()
    print(line)


def banner() -> str:
    """Return one line with the versions, the device, the data and the profile."""
    import keras

    backend = keras.backend.backend()
    return (
        f"nuclei_utils {nuclei_utils.__version__}, Keras {keras.__version__} on {backend} "
        f"{sys.modules[backend].__version__}, Python {platform.python_version()} | "
        f"device: {keras.distribution.list_devices()[0]} | "
        f"data: {nuclei_utils.datasets.current()} | profile: {nuclei_utils.training.profile().name}"
    )


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hide what the process writes to standard error in the block; show the text if the block fails.

    TensorFlow writes its start-up messages to file descriptor 2, not to `sys.stderr`, and no setting stops all of
    them. Therefore the descriptor points to a temporary file during the block.
    """
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
    """Show a picture of the package: the result of the notebook.

    Parameters
    ----------
    name : str
        File name of the picture in `nuclei_utils/assets/pictures`, for example `"unet.jpg"`.
    alt : str
        Description for a reader who does not see the picture.

    Raises
    ------
    FileNotFoundError
        If the package has no such picture. The message lists the pictures.
    """
    from IPython.display import display

    path = PICTURES / name
    if not path.is_file():
        known = ", ".join(sorted(picture.name for picture in PICTURES.iterdir()))
        raise FileNotFoundError(f"{path} does not exist; the package has these pictures: {known}")
    # JupyterLab, GitHub, Colab and the HTML pages all show the output of a cell.
    picture = {"image/jpeg": b64encode(path.read_bytes()).decode("ascii"), "text/plain": alt}
    display(picture, raw=True, metadata={"image/jpeg": {"alt": alt}})
