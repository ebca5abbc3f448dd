"""`make server`, `make worker`, `make gpu-worker`: Prefect's own programs with the settings that attune relies on."""

import ipaddress
import os
import sys
from pathlib import Path
from typing import NoReturn

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)
from tasks.errors import ConfigError

DEFAULT_API = "http://127.0.0.1:4200/api"
"""Where `attune server` answers."""

HEARTBEAT_SECONDS = 30
"""How often a run says that it is alive; Prefect allows no shorter time."""


def start_server(host: str, port: int, database: str) -> NoReturn:
    """Become a Prefect server with its UI, on SQLite in PREFECT_HOME or on the `database` of a URL.

    Raises ConfigError when others could reach it without a password.
    """
    if not _is_loopback(host) and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise ConfigError(
            f"--host {host}: everyone who reaches it could start runs; set PREFECT_SERVER_API_AUTH_STRING=user:password"
            " (and PREFECT_API_AUTH_STRING where workers and callers run), or stay on 127.0.0.1"
        )
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    api = f"http://{host}:{port}/api"
    own = {"PREFECT_API_URL": api, "PREFECT_UI_API_URL": os.environ.get("PREFECT_UI_API_URL", api)}
    if database:
        own["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
    print(
        f"Prefect server and UI: http://{host}:{port}\nfor workers and callers: export PREFECT_API_URL={api}",
        flush=True,
    )
    _become(["server", "start", "--host", host, "--port", str(port)], own)


def find_server() -> str:
    """The URL of the API that workers and deployments speak to; raises AttuneError when nobody answers there."""
    os.environ.setdefault("PREFECT_API_URL", DEFAULT_API)
    from flows.connection import require_server

    require_server()
    return os.environ["PREFECT_API_URL"]


def start_worker(pool: str, limit: int | None) -> NoReturn:
    """Become a worker of a pool that runs flows as processes in this folder, `limit` of them at a time.

    First it ends what an earlier worker of this machine left unended.
    """
    from flows.recovery import WORKER_PID, reconcile, worker_name

    for name in reconcile(pool):
        print(f"marked as crashed, its process is gone: {name}", flush=True)
    own = {
        "ATTUNE_HOME": str(Path.cwd()),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        WORKER_PID: str(os.getpid()),  # it stays the same
    }
    print(f"worker of the pool {pool} at {os.environ['PREFECT_API_URL']}", flush=True)
    at_a_time = ["--limit", str(limit)] if limit else []
    name = worker_name(pool)
    _become(["worker", "start", "--pool", pool, "--type", "process", "--name", name, *at_a_time], own)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _become(arguments: list[str], own: dict[str, str]) -> NoReturn:
    """Prefect's program in place of this process, so that signals reach it."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "prefect", *arguments], os.environ | own)  # noqa: S606
