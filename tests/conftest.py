"""Fixtures of the tests of the command `predict`."""

import pytest

from nuclei_utils import models
from tests.commands import bright_network


@pytest.fixture
def included_network(monkeypatch):
    """Replace the included network by one that needs no training."""
    model = bright_network()
    monkeypatch.setattr(models, "included_network", lambda: model)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"
