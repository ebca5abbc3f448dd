"""A site for tests: a real Prefect server with our deployments, and machines (folders) whose workers can be killed."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from conftest import ROWS, SIZES, write_jsonl
from prefect_server import ROOT, bin_path, environment, running, running_server

from tasks import base_model
from tasks.config import ModelConfig
from tasks.config_file import load

MACHINES = ("caller", "one", "two")
STEPS = 300
ENDED = {"COMPLETED", "FAILED", "CANCELLED"}
"""States in which a run stays; a crashed one may come back."""


@dataclass
class Site:
    """A server, and the machines (folders) whose workers it speaks to."""

    folder: Path
    url: str
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    open: ExitStack = field(default_factory=ExitStack)
    variables: dict[str, str] = field(default_factory=dict)  # of the environment of every machine

    def env(self, machine: str) -> dict[str, str]:
        return environment(self.folder / machine, self.url) | self.variables

    def attune(self, machine: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        where = cwd or self.folder / machine
        where.mkdir(exist_ok=True)
        command = [bin_path("attune"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=where, env=self.env(machine), timeout=280)

    def start_worker(self, pool: str, machine: str) -> None:
        command = [bin_path("attune"), "worker", "--pool", pool]
        (self.folder / machine).mkdir(exist_ok=True)
        process = running(command, self.log(pool, machine), self.env(machine))
        self.workers[pool] = self.open.enter_context(process)

    def log(self, pool: str, machine: str) -> Path:
        return self.folder / machine / f"{pool}.log"

    def kill(self, pool: str, *more: int) -> None:
        """SIGKILL to the worker of a pool, and to other processes in the same moment."""
        for pid in (self.workers[pool].pid, *more):
            os.kill(pid, signal.SIGKILL)
        self.workers.pop(pool).wait()

    def ask(self, method: str, path: str, **body: Any) -> Any:
        answer = httpx.request(method, f"{self.url}{path}", json=body or None, timeout=75)  # SQLite stalls
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start(self, deployment: str, config: dict[str, Any]) -> str:
        found = self.ask("GET", f"/deployments/name/{deployment}")
        made = self.ask("POST", f"/deployments/{found['id']}/create_flow_run", parameters={"config": config})
        return made["id"]

    def run(self, run: str) -> dict[str, Any]:
        return self.ask("GET", f"/flow_runs/{run}")

    def states(self, run: str) -> list[str]:
        """The states that a run was in, from the first to the last."""
        states = self.ask("GET", f"/flow_run_states/?flow_run_id={run}")
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    def runs_of(self, name: str) -> list[dict[str, Any]]:
        """All runs of a flow, the newest first."""
        return self.ask("POST", "/flow_runs/filter", flows={"name": {"any_": [name]}}, sort="EXPECTED_START_TIME_DESC")

    def ended(self, run: str, seconds: float = 200) -> dict[str, Any]:
        """The run once it has ended for good."""
        return until(lambda: (found := self.run(run))["state_type"] in ENDED and found, seconds, lambda: self.told(run))

    def told(self, run: str) -> str:
        return f"{self.states(run)}\n" + "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*/*.log"))


def until(found: Callable[[], Any], seconds: float, told: Callable[[], str] = lambda: "") -> Any:
    """What `found` returns once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s: {told()}")


@contextmanager
def deployed_site(folder: Path) -> Iterator[Site]:
    """A server with everything that `attune deploy` registers; each machine has the base model in its folder."""
    tokenizer = str(ROOT / "data/quickstart/base")
    sizes = ModelConfig(base=tokenizer, init="scratch", architecture="llama", sizes=SIZES["llama"])
    base = base_model.resolve(sizes, folder)
    for machine in MACHINES:
        shutil.copytree(base, folder / machine / "base")
    with running_server(folder / "server") as url, ExitStack() as stack:
        site = Site(folder, url, open=stack)
        done = site.attune("caller", "deploy", cwd=ROOT)
        if done.returncode:
            raise RuntimeError(done.stderr)
        yield site


def config_of(site: Site) -> dict[str, Any]:
    """A config of a tiny model that trains for some seconds and saves often."""
    raw = {
        "name": "tiny",
        "model": {"base": "base"},
        "collect": {"sources": [{"path": str(write_jsonl(site.folder / "colours.jsonl", ROWS))}]},
        "split": {"validation": 0.1, "test": 0.1},
        "format": {"max_seq_length": 64},
        "fine_tune": {
            "max_steps": STEPS,
            "evals_per_epoch": 10,
            "early_stopping_patience": 0,
            "precision": "fp32",
            "learning_rate": 0.001,
        },
        "evaluate": {"max_new_tokens": 8, "max_rows": 10},
        "export": {"parity_rows": 8},
        "store": str(site.folder / "store"),
    }
    path = site.folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load(path).model_dump(mode="json")


def changed(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A config with other settings: those of its top level, and of fine_tune."""
    top = {name: settings.pop(name) for name in set(settings) & set(config)}
    return config | top | {"fine_tune": config["fine_tune"] | settings}
