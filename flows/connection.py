"""The way to a Prefect server: the configured one, or one of this process's own; and what is done when it is gone."""

import atexit
import gc
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
import httpx
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import Abort, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.errors import AttuneError
from tasks.interrupts import on_sigterm

log = logging.getLogger("attune")

ROOT = Path(__file__).parent.parent
KNOCK_SECONDS = 4.0
"""How long a server has to take a connection, and again to answer."""
START_SECONDS = 90.0
"""How long a server of our own has to start; a loaded machine with an empty database takes half of it."""
PATIENCE_SECONDS = 60.0
"""How long a run waits for a server that was there; one that is restarted is back by then."""
END_SECONDS = 15.0
"""How much longer Prefect may go on trying before the process is ended."""
LOOK_SECONDS = 5.0


class ServerGoneError(AttuneError):
    """The Prefect server does not answer."""


def require_server() -> str:
    """The URL of the configured Prefect API, by PREFECT_API_URL or a profile of Prefect, once it has answered.

    Raises ServerGoneError within 10 s when none is configured, or it does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ServerGoneError("no Prefect server is configured; start one with make server, and set PREFECT_API_URL")
    if trouble := _trouble():
        raise ServerGoneError(
            f"the Prefect server at {url} does not answer ({trouble}); nothing was started. Start it, or do without: "
            "make pipeline needs no server when PREFECT_API_URL is not set"
        )
    return url


@contextmanager
def connected() -> Iterator[None]:
    """Inside, a flow finds a server: the configured one, or one of this process that ends with it.

    Raises ServerGoneError when it is not there or goes away, Interrupted after SIGTERM, and what is raised inside.
    """
    url = require_server() if PREFECT_API_URL.value() else _start_server()
    atexit.register(gc.freeze)  # else the interpreter looks for cycles among all that torch made: 2 to 4 s at exit
    _watch(url)
    _quiet()
    try:
        with on_sigterm():  # Prefect hands the signal on once it has noted that the run was ended
            yield
    except KeyboardInterrupt:
        print("attune: interrupted; run the same command again and it goes on from where it was", file=sys.stderr)
        raise
    except httpx.TransportError:
        if trouble := _trouble():  # else it was another server, of a source or a model
            raise _gone(url, trouble) from None
        raise
    except (PrefectHTTPStatusError, Abort) as error:
        raise ServerGoneError(
            f"the Prefect server at {url} refused ({_in_words(error)}); what was done is kept"
        ) from None


def _quiet() -> None:
    """The terminal hears of a failure once, from attune; Prefect tells of it in the run's logs at the server."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).propagate = False
    for name in ("prefect.events", "prefect._internal"):  # each event that could not be sent
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.raiseExceptions = False  # lines that could not be sent


@contextmanager
def at_work() -> Iterator[None]:
    """Inside, this process has work to do that needs no server, so its absence does not end it.

    Afterwards it may, also in a process that a worker started for this run alone.
    """
    if (url := PREFECT_API_URL.value()) and os.environ.get("PREFECT__FLOW_RUN_ID"):
        _watch(url)
    _working.set()
    try:
        yield
    finally:
        _working.clear()


def wait_for_server() -> None:
    """Between two stages: return when the server answers; raises ServerGoneError after PATIENCE_SECONDS without."""
    url = PREFECT_API_URL.value()
    if not url or not (trouble := _trouble()):
        return
    log.warning("the Prefect server at %s does not answer (%s); waiting up to %.0f s", url, trouble, PATIENCE_SECONDS)
    began = time.monotonic()
    while trouble := _trouble():
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise _gone(url, trouble)
        time.sleep(1)
    log.info("the Prefect server is back")


def _trouble() -> str:
    """Why the configured server cannot be used; empty when it can."""
    once, briefly = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), {"timeout": httpx.Timeout(KNOCK_SECONDS)}
    with once, get_client(sync_client=True, httpx_settings=briefly) as client:
        error = client.api_healthcheck()
    return _in_words(error) if error else ""


def _in_words(error: BaseException) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return f"no answer within {KNOCK_SECONDS:.0f} s" if isinstance(error, httpx.TimeoutException) else str(error)


def _gone(url: str, trouble: str) -> ServerGoneError:
    return ServerGoneError(
        f"the Prefect server at {url} is gone ({trouble}) and was not told how the run ended. What was done is kept: "
        "run the same command again and it goes on from where it was"
    )


def _watch(url: str) -> None:
    watch = threading.Thread(target=_end_when_gone, args=(url,), daemon=True)
    _watches.append(watch)
    watch.start()


@atexit.register  # before Prefect registers what it still has to tell at exit, so this comes after that
def _stop_watching() -> None:
    """A thread that the interpreter takes down in the middle of a request can take the process down with it."""
    _ending.set()
    for watch in _watches:
        watch.join()


def _end_when_gone(url: str) -> None:
    """End this process when the server has been silent for long and there is nothing left to do but to tell it.

    Prefect would go on trying for many minutes: states, logs and events are each retried, also at exit.
    """
    heard = time.monotonic()
    while not _ending.wait(LOOK_SECONDS):
        if not (trouble := _trouble()):
            heard = time.monotonic()
        elif time.monotonic() - heard > PATIENCE_SECONDS + END_SECONDS and not _working.is_set():
            print(f"attune: {_gone(url, trouble)}", file=sys.stderr, flush=True)
            os._exit(ServerGoneError.exit_code)


def _start_server() -> str:
    """Start a server for this process on a free port of loopback; returns its URL once it answers."""
    log_file = Path(os.environ["PREFECT_HOME"]) / "temporary-server.log"
    with socket.create_server(("127.0.0.1", 0)) as door, log_file.open("ab") as said:
        command = [sys.executable, "-m", "flows.temporary_server", str(door.fileno()), str(os.getpid())]
        own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        own |= {"PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "0", "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(  # noqa: S603
            command,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=[door.fileno()],
            start_new_session=True,  # Ctrl-C is for the run, which has something to tell it still
        )
        url = f"http://127.0.0.1:{door.getsockname()[1]}/api"
    atexit.register(_stop, server)
    try:
        httpx.get(f"{url}/health", timeout=START_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        raise AttuneError(f"Prefect's temporary server did not start ({error!r}); see {log_file}") from None
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_UI_ENABLED": "0"}  # nobody can look, so no pages are drawn
    refresh_global_settings_context()
    return url


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()


_working, _ending = threading.Event(), threading.Event()
_watches: list[threading.Thread] = []
