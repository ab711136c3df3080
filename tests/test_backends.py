"""Models, losses and metrics stand on `keras.ops`: their tests must pass under another backend as well."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_rooms_of_keras_run_under_another_backend(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    rooms = [HERE / f"test_{room}.py" for room in ("models", "unet_plus_plus", "losses", "metrics")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *rooms],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
