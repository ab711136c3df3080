"""Settings for all tests: the smallest profile, the drawn sample, and the comparison of notebooks.

The settings are made here, not in the Makefile, so that a plain `pytest --nbval notebooks/` gives the same result
everywhere, with and without the real data.
"""

import os
import shutil
import sys

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is not a fault of the code
settings.register_profile("course", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("course")

os.environ.update(
    NUCLEI_PROFILE="smoke",
    NUCLEI_DATA="sample",  # the stored outputs of the notebooks are those of the sample
    TF_CPP_MIN_LOG_LEVEL="3",
)

# the workers share the cores, so more threads would only slow each other down
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1", OMP_NUM_THREADS="1")

NETWORKS = tuple(f"notebooks/0{number}_" for number in range(4, 8))
CELL_TIMEOUT = 300  # seconds; nbval's default of 2000 seconds would let a dead kernel block a run


def pytest_configure(config):
    """Run notebooks with the Python that runs pytest, and limit the time of a cell."""
    if (config.option.nbval or config.option.nbval_lax) and config.option.nbval_kernel_name is None:
        config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = min(config.option.nbval_cell_timeout, CELL_TIMEOUT)
    if config.option.nbval and not hasattr(config, "workerinput"):
        # an older Keras cannot load the networks that a newer Keras left in an earlier run
        for folder in (config.rootpath / "notebooks" / "runs").glob("*_sample_smoke"):
            shutil.rmtree(folder)


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file on one worker, and notebooks 04 to 07 together: 07 loads the trained networks."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "networks" if file.startswith(NETWORKS) else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Start notebooks before unit tests, because they take the longest."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb")


def pytest_collectstart(collector):
    """Leave stderr out of the comparison of notebooks: TensorFlow writes different messages on each machine."""
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr",)


@pytest.fixture(autouse=True)
def _doctest_in_an_empty_folder(request, tmp_path_factory, monkeypatch):
    """Run a doctest in an empty folder, so that an example may write files, and close its figures."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    monkeypatch.chdir(tmp_path_factory.mktemp("doctest"))
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
