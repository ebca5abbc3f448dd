"""The Prefect server is gone, comes back, hangs, or its database is locked; and secrets that must not be seen.

Each try is a real server and a real `attune run` beside it.  What stands before fine_tune was made before, once.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import prefect_server
import yaml

from faults.matrix import ROOT, Outcome, fault
from faults.pipeline import in_store, run, settings

TRAINS = "tuned: step"
IMPATIENT = """
import sys
from flows import connection
connection.PATIENCE_SECONDS, connection.END_SECONDS, connection.LOOK_SECONDS = map(float, sys.argv.pop(1).split(","))
from flows.cli import main
main()
"""
CANARY = "canary0f50never5een"
SECRETS = ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"]
BOUND_SECONDS = 120


class Server:
    """A Prefect server in `home` that can be killed, stopped, and started again on its port and database."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = prefect_server.free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it answers."""
        command = [prefect_server.bin_path("prefect"), "server", "start", "--host", "127.0.0.1"]
        log = self.home / "server.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                cwd=self.home,
                env=prefect_server.environment(self.home, self.url),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        prefect_server._wait_for(f"{self.url}/health", self.process, log)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, if it is there."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, another process holds its database."""
        holder = sqlite3.connect(self.home / "prefect" / "prefect.db", isolation_level=None, timeout=30)
        holder.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            holder.execute("ROLLBACK")
            holder.close()

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """What a POST of the API answers."""
        request = urllib.request.Request(  # noqa: S310
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=75) as answer:  # noqa: S310
            return json.load(answer)

    def states(self) -> tuple[str, dict[str, str]]:
        """The state of the last run, and of each of its stages, once Prefect has noted what it was told."""
        end = time.monotonic() + 20
        while True:
            last = self.ask("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
            tasks = self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [last["id"]]}}})
            found = last["state_type"], {task["name"]: task["state_type"] for task in tasks}
            if set(found[1].values()) <= {"COMPLETED"} or time.monotonic() > end:
                return found
            time.sleep(0.5)


@contextmanager
def serving(home: Path) -> Iterator[Server]:
    """A server that has started, and is ended at the end."""
    home.mkdir(parents=True)
    server = Server(home)
    try:
        server.start()
        yield server
    finally:
        server.signal(signal.SIGCONT)
        server.kill()


class Command:
    """`attune run` in a session of its own; what it prints goes to a file."""

    def __init__(self, home: Path, config: Path, *more: str, env: dict[str, str], patience: str = "") -> None:
        self.said = home / f"said-{len(list(home.glob('said-*')))}.log"
        program = [sys.executable, "-c", IMPATIENT, patience] if patience else [prefect_server.bin_path("attune")]
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                [*program, "run", str(config), *more],
                env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)} | env,
                cwd=home,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def until(self, text: str, seconds: float = 200) -> None:
        """Return once it has said `text`."""
        end = time.monotonic() + seconds
        while text not in self.text:
            assert self.process.poll() is None and time.monotonic() < end, f"never said {text!r}: {self.text[-2000:]}"
            time.sleep(0.1)

    def ended(self, seconds: float = 280) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"still there after {seconds} s: {self.text[-2000:]}") from None


class _Enough(Exception):
    """The stages before fine_tune are done."""


def prepared(home: Path) -> Path:
    """A config whose stages before fine_tune are in its store; `copied` makes more of them."""

    def stop(event: str, stage: str) -> None:
        if (event, stage) == ("begins", "fine_tune"):
            raise _Enough

    raw = settings(home)
    with suppress(_Enough):
        run(in_store(raw, home / "artifacts"), stop)
    return _written(home / "config.yaml", raw)


def copied(config: Path, home: Path) -> Path:
    """The same run with a store of its own in `home`."""
    raw = yaml.safe_load(config.read_text())
    shutil.copytree(raw["store"], home / "artifacts")
    return _written(home / "config.yaml", raw | {"store": str(home / "artifacts"), "runs": str(home / "runs")})


def _written(path: Path, raw: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(raw))
    return path


def record(config: Path) -> dict[str, Any]:
    """What the last run wrote of itself."""
    return json.loads((Path(yaml.safe_load(config.read_text())["runs"]) / "latest" / "run.json").read_text())


def at(url: str, home: Path) -> dict[str, str]:
    """The environment of a run that speaks to the server at `url`."""
    return {"PREFECT_API_URL": url, "PREFECT_HOME": str(home / "client")}


def nobody_listens(home: Path, config: Path) -> float:
    """F24: seconds until the run has said so."""
    began = time.monotonic()
    command = Command(home, config, env=at(f"http://127.0.0.1:{prefect_server.free_port()}/api", home))
    assert command.ended() == 1
    seconds = time.monotonic() - began
    assert "does not answer" in command.text and "make pipeline" in command.text and "Traceback" not in command.text
    assert not (home / "runs").exists()
    return seconds


def is_restarted(home: Path, config: Path, away: float = 5) -> None:
    """F25: killed while the model is trained, and there again: the run completes, and the server knows."""
    with serving(home / "server") as server:
        command = Command(home, config, "fine_tune.epochs=4", env=at(server.url, home))
        command.until(TRAINS)
        server.kill()
        time.sleep(away)
        server.start()
        assert command.ended() == 0, command.text[-2000:]
        state, stages = server.states()
        assert state == "COMPLETED" and set(stages.values()) == {"COMPLETED"} and len(stages) == 7, (state, stages)


def is_gone(home: Path, config: Path, how: signal.Signals, patience: str = "") -> float:
    """F25, F26: killed or stopped for good while the model is trained; seconds from noticing it to the end.

    The training ends and is published, the run says what happened, and without a server it goes on from there.
    """
    with serving(home / "server") as server:
        command = Command(home, config, "fine_tune.epochs=4", env=at(server.url, home), patience=patience)
        command.until(TRAINS)
        server.signal(how)
        command.until("does not answer")
        began = time.monotonic()
        assert command.ended() == 1, command.text[-2000:]
        seconds = time.monotonic() - began
    last = command.text.strip().splitlines()[-1]
    assert last.startswith("attune: the Prefect server at") and "What was done is kept" in last, command.text[-2000:]
    assert "Traceback" not in command.text and "is gone" in record(config)["error"]
    again = Command(home, config, "fine_tune.epochs=4", env={"PREFECT_HOME": str(home / "own")})
    assert again.ended() == 0 and "fine_tune: cached" in again.text, again.text[-2000:]
    assert seconds < BOUND_SECONDS
    return seconds


def is_locked(home: Path, config: Path, seconds: float) -> None:
    """F27: the database is locked while the run wants to tell its state; it waits, and the state is right."""
    with serving(home / "server") as server:
        command = Command(home, config, env=at(server.url, home))
        command.until(TRAINS)
        with server.locked():
            time.sleep(seconds)
        assert command.ended() == 0, command.text[-2000:]
        state, stages = server.states()
        assert state == "COMPLETED" and set(stages.values()) == {"COMPLETED"}, (state, stages)


def seen(canary: str, folders: list[Path]) -> list[str]:
    """The files that a secret stands in."""
    needle = canary.encode()
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if needle in path.read_bytes()]


def keeps_secrets(home: Path, config: Path) -> int:
    """F50: three variables and a Secret block hold a canary; one run completes, one fails; files that were read."""
    with serving(home / "server") as server:
        env = at(server.url, home)
        store = f"from prefect.blocks.system import Secret; Secret(value={CANARY!r}).save('canary', _sync=True)"
        subprocess.run([sys.executable, "-c", store], env=os.environ | env, check=True, capture_output=True)
        given = env | dict.fromkeys(SECRETS, CANARY)
        whole = Command(home, config, "secrets.ATTUNE_CANARY=canary", env=given)
        assert whole.ended() == 0, whole.text[-2000:]
        raw = yaml.safe_load(config.read_text())
        hub = {"hub": {"dataset": "nobody/none"}, "format": "alpaca"}
        failing = _written(home / "failing.yaml", raw | {"collect": {"sources": [hub]}})
        failed = Command(home, failing, "secrets.ATTUNE_CANARY=canary", env=given)
        assert failed.ended() == 1 and "nobody/none" in failed.text, failed.text[-2000:]
    assert not (where := seen(CANARY, [home])), where
    return sum(path.is_file() for path in home.rglob("*"))


def _each(folder: Path, name: str) -> Path:
    """The config of one try, in a folder of its own."""
    first = folder / "first" / "config.yaml"
    if not first.exists():
        prepared(folder / "first")
    home = folder / name
    home.mkdir()
    return copied(first, home)


@fault("F24", "no Prefect server at the start")
def no_server(folder: Path) -> Outcome:
    """Nobody listens at PREFECT_API_URL."""
    outcome = Outcome()
    config = _each(folder, "none")
    with outcome.attempt("nobody listens"):
        seconds = nobody_listens(config.parent, config)
        outcome.figures["seconds_until_told"] = round(seconds, 1)
        assert seconds < 10
    return outcome


@fault("F25", "the Prefect server killed in mid-run: back after 5 s, and for good")
def killed(folder: Path) -> Outcome:
    """SIGKILL while the model is trained."""
    outcome = Outcome()
    with outcome.attempt("back after 5 s"):
        config = _each(folder, "back")
        is_restarted(config.parent, config)
    with outcome.attempt("for good"):
        config = _each(folder, "gone")
        outcome.figures["seconds_until_given_up"] = round(is_gone(config.parent, config, signal.SIGKILL), 1)
    return outcome


@fault("F26", "the Prefect server hangs: it takes connections and never answers")
def hangs(folder: Path) -> Outcome:
    """SIGSTOP while the model is trained: the kernel takes connections, nobody answers."""
    outcome = Outcome()
    with outcome.attempt("hangs for good"):
        config = _each(folder, "hangs")
        outcome.figures["seconds_until_given_up"] = round(is_gone(config.parent, config, signal.SIGSTOP), 1)
    return outcome


@fault("F27", "the SQLite database of the Prefect server locked by another process")
def database_locked(folder: Path) -> Outcome:
    """For 5, 30 and 70 s."""
    outcome = Outcome()
    for seconds in (5, 30, 70):
        with outcome.attempt(f"locked for {seconds} s"):
            config = _each(folder, f"locked-{seconds}")
            is_locked(config.parent, config, seconds)
    return outcome


@fault("F50", "a secret in the environment and in a Secret block")
def secrets(folder: Path) -> Outcome:
    """Its value stands in no file that a run, its store and its server leave."""
    outcome = Outcome()
    with outcome.attempt("canary"):
        config = _each(folder, "secrets")
        outcome.figures["files_read"] = keeps_secrets(config.parent, config)
    return outcome
