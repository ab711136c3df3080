"""Helpers that only a notebook needs: a quiet start, and the picture of what the notebook arrives at."""

import os
import sys
import tempfile
from base64 import b64encode
from contextlib import contextmanager
from pathlib import Path

__all__ = ["quiet_stderr", "show_goal", "start"]


PICTURES = Path(__file__).resolve().parent / "pictures"
"""Folder of the goal pictures. They come with the package, because Colab has no other file of the repository."""


def start():
    """Load Keras and TensorFlow without their messages, and print what the notebook runs on."""
    with quiet_stderr():
        from nuclei_utils import training

        line = training.banner()
    print(line)


@contextmanager
def quiet_stderr():
    """Hide what the process writes to standard error in the block; show it if the block fails.

    TensorFlow writes its start-up messages to file descriptor 2, past `sys.stderr`, and no setting stops all of them.
    So the descriptor itself points to a temporary file during the block.

    Yields
    ------
    None
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


def _flush():
    if sys.stderr is not None:
        sys.stderr.flush()


def show_goal(name, alt):
    """Show a picture that comes with the package: what the notebook arrives at.

    Parameters
    ----------
    name : str
        File name of the picture in `nuclei_utils/pictures`, for example `"unet.jpg"`.
    alt : str
        Describes the picture to a reader who does not see it.

    Raises
    ------
    FileNotFoundError
        If the package has no such picture; the message names those that it has.
    """
    from IPython.display import display

    path = PICTURES / name
    if not path.is_file():
        known = ", ".join(sorted(picture.name for picture in PICTURES.glob("*.jpg")))
        raise FileNotFoundError(f"{path} is not there; the package has these pictures: {known}")
    # As the output of a cell, the picture shows in JupyterLab, on GitHub, in Colab and in the HTML pages alike.
    picture = {"image/jpeg": b64encode(path.read_bytes()).decode("ascii"), "text/plain": alt}
    display(picture, raw=True, metadata={"image/jpeg": {"alt": alt}})
