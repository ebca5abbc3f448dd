"""A real Prefect server for tests: started on a free port of loopback with a home of its own, and ended afterwards."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
START_SECONDS = 90
SERVE = "import json, sys; from flows.pipeline import pipeline; pipeline.serve(**json.loads(sys.argv[1]))"


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """The URL of the API of a server whose home and log lie in `folder`; the UI is the same URL without `/api`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running([bin_path("prefect"), *command], folder / "server.log", environment(folder, url)) as process:
        _wait_for(f"{url}/health", process, folder / "server.log")
        yield url


def environment(folder: Path, url: str) -> dict[str, str]:
    """The environment of a process that speaks to the server at `url`; its own files of Prefect lie in `folder`."""
    return os.environ | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(ROOT),
        "DO_NOT_TRACK": "1",
    }


@contextmanager
def served_pipeline(folder: Path, url: str, config: dict[str, Any], name: str = "tiny") -> Iterator[None]:
    """Inside, the deployment `pipeline/<name>` has `config` in its form, and runs go on in `folder`."""
    told = json.dumps({"name": name, "parameters": {"config": config}, "pause_on_shutdown": False})
    command = [sys.executable, "-c", SERVE, told]
    env = environment(folder, url) | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with running(command, folder / "serve.log", env) as process:
        _wait_for(f"{url}/deployments/name/pipeline/{name}", process, folder / "serve.log")
        yield


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, in the folder of its log, that is ended at the end, whatever it is doing by then."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=log.parent, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def bin_path(name: str) -> str:
    """A command that lies beside the interpreter."""
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once `url` answers with success."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass  # not yet
        time.sleep(0.2)
    raise RuntimeError(f"{url} never answered:\n{log.read_text()[-3000:]}")
