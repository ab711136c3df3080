"""Tests of Dask clusters: the same files as one process, killed workers, and schedulers that are not there."""

import functools
import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nuclei_utils import cluster
from nuclei_utils.errors import NucleiError
from tests.commands import bright_network, run, three_nuclei, write_image
from tests.test_slides import slide_pixels, write_slide

distributed = pytest.importorskip("distributed")
pytest.importorskip("zarr", minversion="3")
pytest.importorskip("tifffile", minversion="2025.5.21")  # reads TIFF for zarr 3

SMALL = ("--slide-pixels", 100_000, "--block", 192)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of small images and a slide of 12 blocks, and the file of a network."""
    folder = tmp_path_factory.mktemp("cluster")
    for number in range(6):
        write_image(folder / "in" / f"image{number}.png", three_nuclei(number))
    (folder / "in" / "broken.png").write_bytes(b"no image")
    write_slide(folder / "in" / "slide.tif", slide_pixels(700, 900, np.uint8))
    bright_network().save(folder / "bright.keras")
    return folder


def predict(images, out, *words):
    return run("predict", images / "in", "--out", out, "--model", images / "bright.keras", *SMALL, *words)


@pytest.fixture(scope="module")
def whole(images):
    """The results of one process."""
    assert predict(images, images / "whole") == 1  # of the broken image
    return contents(images / "whole")


def contents(out):
    """Return the content of each file, the tables with their images in the order of their names."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in ("images.csv", "nuclei.csv", "submission.csv"):
        header, *rows = files[name].splitlines()
        files[name] = header, sorted(rows, key=lambda row: row.split(b",")[0])  # the order within an image stays
    return files


def test_workers_write_the_files_of_one_process(images, whole, tmp_path, capsys):
    assert predict(images, tmp_path / "out", "--workers", 2) == 1
    assert contents(tmp_path / "out") == whole
    output = capsys.readouterr()
    assert "workers: 2, dashboard at http://127.0.0.1:" in output.err
    assert "broken.png" in output.err
    assert "7 of 8 images" in output.out


@pytest.fixture(scope="module")
def local_cluster():
    env = {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", env=env) as started:
        yield started


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_nothing_is_lost_if_a_worker_is_killed(images, whole, tmp_path, local_cluster):
    out, killed = tmp_path / "out", []

    def kill():
        """Kill one worker among the first blocks, and one while blocks are finished."""
        for pattern, worker in (("found_*.npz", 0), ("nuclei_*.csv", 1)):
            while len(list(out.glob(f".predict_work/slides/slide/{pattern}"))) < 3:
                time.sleep(0.01)
            nanny = local_cluster.workers[worker]
            os.kill(nanny.pid, signal.SIGKILL)
            killed.append(nanny.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert predict(images, out, "--scheduler", local_cluster.scheduler_address) == 1
    thread.join(timeout=5)
    assert len(killed) == 2
    assert contents(out) == whole


def test_a_task_that_kills_its_workers_is_given_up(local_cluster, monkeypatch):
    def exit_if_three(number):  # a local function is sent as it is, so that workers need not import this module
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    monkeypatch.setattr(local_cluster.scheduler, "allowed_failures", 1)
    with cluster.connect(scheduler=local_cluster.scheduler_address) as client:
        ((_, outcome),) = cluster.run_tasks(exit_if_three, [3], client)
        with pytest.raises(NucleiError, match=r"2 workers died .* out of memory"):
            outcome.result()
        outcomes = dict(cluster.run_tasks(exit_if_three, [1, 2], client))
        assert [outcomes[number].result() for number in (1, 2)] == [1, 2], "the cluster works on"


def test_errors_of_tasks_reach_the_caller(local_cluster):
    def full_disk():
        raise OSError(28, "full")

    for address in (None, local_cluster.scheduler_address):
        with cluster.connect(scheduler=address) as client:
            outcomes = dict(cluster.run_tasks(functools.partial(divmod, 6), [0, 4], client))
            assert outcomes[4].result() == (1, 2)
            with pytest.raises(ZeroDivisionError):
                outcomes[0].result()
            with pytest.raises(OSError, match="full") as caught:
                cluster.run_task(full_disk, client)
            assert caught.value.errno == 28


@pytest.fixture(scope="module")
def empty_cluster():
    """A scheduler without workers. Its workers are threads of this process, which start quickly."""
    options = {"threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(n_workers=0, **options) as started:
        yield started


_HAS_WORKER = threading.Event()
"""Set by each message of `said`. The workers of `empty_cluster` are threads of this process: tasks can wait for it."""


@pytest.fixture
def said(monkeypatch, empty_cluster):
    """The messages about missing workers. Each message starts a worker."""
    messages = []

    def write(message, file):
        messages.append(message)
        _HAS_WORKER.set()
        empty_cluster.scale(1)

    monkeypatch.setattr(cluster, "tqdm", SimpleNamespace(write=write))
    monkeypatch.setattr(cluster, "_LOOK_EVERY", 0.1)
    return messages


def test_the_command_waits_for_the_first_worker(images, tmp_path, monkeypatch, capsys, empty_cluster, said):
    address = empty_cluster.scheduler_address
    monkeypatch.chdir(images)
    words = ["in/image0.png", "--out", tmp_path / "out", "--model", "bright.keras", "--scheduler", address]
    assert run("predict", *words) == 0
    (message,) = said
    assert f"dask worker --nthreads 1 {address}" in message
    assert "workers: 1," in capsys.readouterr().err, "a worker with two threads is one worker"
    assert pd.read_csv(tmp_path / "out" / "images.csv")["file"].tolist() == ["in/image0.png"], "as the user gave it"


def wait(number):
    """Return a number. All but the first wait for a message."""
    assert number == 0 or _HAS_WORKER.wait(60), "no other task is finished when the worker leaves"
    return number


def test_tasks_go_on_if_no_worker_was_left(empty_cluster, said):
    empty_cluster.scale(1)
    outcomes = []
    with cluster.connect(scheduler=empty_cluster.scheduler_address) as client:
        said.clear()  # of the time before the first worker
        _HAS_WORKER.clear()
        for number, outcome in cluster.run_tasks(wait, range(4), client):
            outcomes.append((number, outcome.result()))
            if len(outcomes) == 1:
                empty_cluster.scale(0)
    assert sorted(outcomes) == [(number, number) for number in range(4)]
    (message,) = said
    assert "no worker is left: waiting for new workers" in message
    assert "--resume" in message


def test_local_workers_share_the_memory_of_a_gpu(monkeypatch):
    for variable, expected in ((None, "true"), ("false", "false")):
        if variable:
            monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", variable)
        else:
            monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
        with cluster.connect(workers=1) as client:
            assert cluster.run_task(lambda: os.environ["TF_FORCE_GPU_ALLOW_GROWTH"], client) == expected


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "missing.json"])
def test_a_scheduler_that_is_not_there_is_named(images, tmp_path, monkeypatch, capsys, address):
    monkeypatch.setattr(cluster, "connect", functools.partial(cluster.connect, timeout=1))
    assert predict(images, tmp_path / "out", "--scheduler", address) == 1
    assert f"no Dask scheduler answers at {address}" in capsys.readouterr().err
    assert not (tmp_path / "out" / "nuclei.csv").exists()


def test_without_dask_the_extra_is_named(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert predict(images, tmp_path / "out", "--workers", 2) == 1
    assert 'pip install "nuclei-utils[large]"' in capsys.readouterr().err
