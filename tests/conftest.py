"""Fixtures of the tests of the command `predict`."""

import pytest

from nuclei_utils import exported
from nuclei_utils.cli import predict_images
from tests.commands import frozen_bright_network


@pytest.fixture
def included_network(monkeypatch):
    """Replace the included network by one that needs no training."""
    monkeypatch.setattr(exported, "included_network", frozen_bright_network)
    monkeypatch.setattr(predict_images, "_GPU_FILES", ())  # a GPU of the machine would choose the other network


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"
