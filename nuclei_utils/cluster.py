"""Run tasks in this process, or on a Dask cluster (the extra `[large]`): local workers, or an existing scheduler."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from nuclei_utils.errors import NucleiError

if TYPE_CHECKING:
    from distributed import Client

TIMEOUT = 20
"""Seconds to wait for the answer of an existing scheduler."""

_LOOK_EVERY = 5  # seconds; how often to look whether a scheduler has workers
_TASKS_AT_ONCE = 1000  # that the scheduler knows, which bounds its memory; more workers than that would wait


@contextmanager
def connect(workers: int = 0, scheduler: str | None = None, timeout: float = TIMEOUT) -> Iterator["Client | None"]:
    """Start or find a Dask cluster for the block.

    Parameters
    ----------
    workers : int
        Number of processes on this machine. Each gets an equal part of the cores and of the memory. 0: no cluster, and
        None as the client.
    scheduler : str, optional
        Address of an existing scheduler, such as "tcp://10.0.0.1:8786", or path of a scheduler file (JSON). The cluster
        stays when the block ends. The function waits for the first worker without an end. A line on stderr says so, and
        another line says when no worker is left.
    timeout : float
        Seconds to wait for the answer of an existing scheduler.

    Raises
    ------
    NucleiError
        If Dask is not installed, or the scheduler does not answer.

    Examples
    --------
    >>> with connect() as client:
    ...     [task.result() for _, task in run_tasks(abs, [-1, 2], client)]
    [1, 2]
    """
    if not workers and scheduler is None:
        yield None
        return
    try:
        import distributed
    except ImportError as error:
        raise NucleiError('several workers need Dask: pip install "nuclei-utils[large]"') from error
    import dask
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    with contextlib.ExitStack() as stack:
        if scheduler is None:
            threads = str(max(CPU_COUNT // workers, 1))
            # otherwise the first worker reserves nearly all memory of a GPU
            growth = os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH", "true")
            # A worker holds no data that it could write to disk. If it paused at a limit, it would wait forever.
            limits = dict.fromkeys(
                (f"distributed.worker.memory.{name}" for name in ("target", "spill", "pause")), False
            )
            stack.enter_context(dask.config.set(limits))
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,  # of Dask; the libraries have threads of their own
                memory_limit=int(MEMORY_LIMIT / workers),
                dashboard_address="127.0.0.1:0",
                env=dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
                | {"TF_NUM_INTEROP_THREADS": "1", "TF_FORCE_GPU_ALLOW_GROWTH": growth},
            )
            yield stack.enter_context(distributed.Client(stack.enter_context(cluster)))
            return
        where = {"scheduler_file": scheduler} if scheduler.endswith(".json") else {"address": scheduler}
        try:
            if "scheduler_file" in where:
                Path(scheduler).stat()  # Dask would wait for the file without an end
            client = stack.enter_context(distributed.Client(**where, timeout=timeout, set_as_default=False))
        except (OSError, ValueError) as error:  # asyncio.TimeoutError is an OSError
            raise NucleiError(
                f"no Dask scheduler answers at {scheduler} within {timeout:g} seconds ({error}): check the address, "
                "start one with 'dask scheduler', or use --workers"
            ) from error
        words = f"--scheduler-file {scheduler}" if "scheduler_file" in where else scheduler
        with _say_without_workers(
            client,
            f"no worker has joined the scheduler {scheduler} yet: waiting for 'dask worker --nthreads 1 {words}'; stop "
            "with Ctrl-C",
        ):
            client.wait_for_workers(1)
        with _say_without_workers(
            client, "no worker is left: waiting for new workers; Ctrl-C stops, and --resume continues later"
        ):
            yield client


@contextmanager
def _say_without_workers(client, message):
    """Write a message on stderr, once each time, while the scheduler has no worker."""
    ended = threading.Event()

    def watch():
        had_workers = True
        while not ended.wait(_LOOK_EVERY) and client.status == "running":
            try:
                has_workers = bool(client.nthreads())
            except Exception:  # the scheduler is lost, or the client closes: the tasks say so
                return
            if had_workers and not has_workers:
                tqdm.write(f"nuclei-utils: {message}", file=sys.stderr)
            had_workers = has_workers

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1)  # a lost scheduler must not hold up Ctrl-C


def run_tasks(
    function: Callable[[Any], Any], items: Iterable, client: "Client | None" = None
) -> Iterator[tuple[Any, Future]]:
    """Call a function for each item, and yield the items with finished futures.

    Without a client, the function is called in this process, in the order of the items. On a cluster, a task whose
    worker dies is repeated on another worker, so that the function must write files as a whole or not at all.

    Parameters
    ----------
    function : callable
        A function of an item. On a cluster, function, items and results are sent as pickles, so keep them small.
    items : iterable
    client : distributed.Client, optional

    Yields
    ------
    item
    concurrent.futures.Future
        `result()` returns the result or raises the error of the function. It raises `NucleiError` if workers died
        again and again, or if the scheduler is lost.

    Examples
    --------
    >>> [(item, task.result()) for item, task in run_tasks(abs, [-1, 2])]
    [(-1, 1), (2, 2)]
    """
    if client is None:
        for item in items:
            yield item, _outcome(lambda item=item: function(item))
        return
    from distributed import as_completed

    items, waiting, running = iter(items), {}, as_completed(loop=client.loop)

    def submit(count):
        for item in islice(items, count):
            future = client.submit(function, item, pure=False)
            waiting[future.key] = item, future
            running.add(future)

    try:
        submit(_TASKS_AT_ONCE)
        for future in running:
            item, _ = waiting.pop(future.key)
            yield item, _outcome(lambda future=future: _result(future))
            submit(1)
    finally:
        client.cancel([future for _, future in waiting.values()])


def run_task(function: Callable[[], Any], client: "Client | None" = None) -> Any:
    """Call a function in this process or on a worker, and return its result.

    Examples
    --------
    >>> run_task(list)
    []
    """
    ((_, task),) = run_tasks(lambda _: function(), [None], client)
    return task.result()


def _outcome(call):
    future = Future()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    return future


def _result(future):
    from distributed import CancelledError, KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        raise NucleiError(
            f"a task was given up because {error.allowed_failures + 1} workers died while they ran it, the last one at "
            f"{error.last_worker.address}: most often a worker runs out of memory. Use fewer --workers, give each "
            "worker more memory, and read the log of the workers"
        ) from error
    except CancelledError as error:
        raise NucleiError("the connection to the Dask scheduler is lost: start it again, then use --resume") from error
