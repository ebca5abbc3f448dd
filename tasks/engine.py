"""What works on shards: processes of this machine, or a Ray cluster.  The only place that knows Ray.

A function that is mapped must be importable, and takes and returns small things; rows travel as files.  All machines of
a cluster see the same files under the same paths, and have attune installed.
"""

import itertools
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

from tasks.config import EngineConfig
from tasks.errors import AttuneError
from tasks.parent import end_with
from tasks.progress import progress

Result = TypeVar("Result")

PATIENCE_SECONDS = 3.0
"""Starting processes costs as much; less work than this is done sooner without them."""


@contextmanager
def using(config: EngineConfig) -> Iterator[None]:
    """Every `map_shards` inside is done by this engine.  Raises AttuneError when a cluster cannot be reached."""
    engine = _Ray(config) if config.kind == "ray" else _Local(config)
    token = _current.set(engine)
    try:
        yield
    finally:
        _current.reset(token)
        engine.close()


def map_shards(function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], title: str) -> list[Result]:
    """`[function(*each) for each in arguments]`, several at a time; outside `using` one after another, here."""
    engine = _current.get()
    results = engine.map(function, arguments) if engine else itertools.starmap(function, arguments)
    return list(progress(results, title, total=len(arguments), unit="shards"))


class _Local:
    """This process, and processes beside it once there is work for them."""

    def __init__(self, config: EngineConfig) -> None:
        self.processes = config.processes or _cores()
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
        """Work here for PATIENCE_SECONDS, since most work is done by then, and give what is left to processes."""
        began, waiting = time.monotonic(), list(arguments)
        while waiting:
            if min(self.processes, len(waiting)) > 1 and time.monotonic() - began >= PATIENCE_SECONDS:
                yield from self._in_processes(function, waiting)
                return
            yield function(*waiting.pop(0))

    def _in_processes(self, function: Callable[..., Result], arguments: list[tuple[Any, ...]]) -> Iterator[Result]:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads and locks of Prefect
            self._pool = ProcessPoolExecutor(self.processes, spawn, _begin_worker, (os.getpid(),))
        try:
            yield from self._pool.map(partial(_apply, function), arguments)
        except BrokenProcessPool as error:
            raise AttuneError(
                f"a process that worked on shards ended suddenly ({error}). If the machine ran out of memory, set "
                "engine.processes lower. A script that calls attune needs `if __name__ == '__main__':`"
            ) from None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use; where the system does not say, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _apply(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    return function(*arguments)


def _begin_worker(parent: int) -> None:
    """A worker uses one thread, shows no bars, leaves Ctrl-C to its parent, and does not outlive it."""
    os.environ["TQDM_DISABLE"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    import pyarrow as pa

    pa.set_cpu_count(1)


class _Ray:
    """A Ray cluster that is already running."""

    def __init__(self, config: EngineConfig) -> None:
        try:
            import ray
        except ImportError:
            raise AttuneError("engine.kind: ray needs Ray: pip install 'attune[ray]'") from None
        try:
            _knock(config.address)
            ray.init(address=config.address, logging_level="error", log_to_driver=False)
        except (ConnectionError, TimeoutError) as error:
            raise AttuneError(f"engine.address: no Ray cluster answers at {config.address!r}: {error}") from None
        self._ray = ray
        self._call = ray.remote(_in_folder)

    def map(self, function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
        waiting = [self._call.remote(os.getcwd(), function, each) for each in arguments]
        return (self._result(reference) for reference in waiting)

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def close(self) -> None:
        self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise at once what Ray would find out after minutes: that nobody listens at host:port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _in_folder(folder: str, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    """Relative paths mean the same on every machine of the cluster."""
    os.chdir(folder)
    return _apply(function, arguments)


_current: ContextVar[_Local | _Ray | None] = ContextVar("engine", default=None)
