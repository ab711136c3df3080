"""What holds for every test: the small profile, the bundled sample, and how notebooks are compared.

Set here rather than in the Makefile, so that a plain `pytest --nbval notebooks/` gives the same result everywhere,
whether or not the real data are there.
"""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no fault of the code
settings.register_profile("course", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("course")

os.environ.update(
    NUCLEI_PROFILE="smoke",
    NUCLEI_DATA="sample",  # the committed outputs are of the sample
    TF_CPP_MIN_LOG_LEVEL="3",
)

# the workers share the cores: more threads would only stand in each other's way
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1", OMP_NUM_THREADS="1")

NETWORKS = tuple(f"notebooks/0{number}_" for number in range(3, 7))
CELL_TIMEOUT = 300  # seconds; nbval's own 2000 would let a dead kernel hold up a run for half an hour


def pytest_configure(config):
    """Run notebooks with the Python that runs pytest, whatever kernels the user has, and give up on a hanging cell."""
    if (config.option.nbval or config.option.nbval_lax) and config.option.nbval_kernel_name is None:
        config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = min(config.option.nbval_cell_timeout, CELL_TIMEOUT)
    if config.option.nbval and not hasattr(config, "workerinput"):
        # networks of an earlier run: notebooks would load them, and an older Keras cannot read those of a newer one
        for folder in (config.rootpath / "notebooks" / "runs").glob("*_sample_smoke"):
            shutil.rmtree(folder)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Keep a file on one worker; and notebooks 03 to 06, because the last takes the networks that the others train."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "networks" if file.startswith(NETWORKS) else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Let notebooks start before unit tests: they take longest."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb")


def pytest_collectstart(collector):
    """Leave stderr out of the comparison: TensorFlow writes to it on import, differently on each machine."""
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr",)
