"""Models, losses and metrics use `keras.ops`: their tests must pass under the other backends as well."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_models_losses_and_metrics_pass_under_another_backend(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    files = [Path(__file__).with_name(f"test_{name}.py") for name in ("models", "unet_plus_plus", "losses", "metrics")]
    command = [sys.executable, "-m", "pytest", "-q", *files]
    run = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
