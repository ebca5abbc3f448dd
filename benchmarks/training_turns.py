"""Systems as processes: those that train take turns, those that prepare run once a round."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
OURS = "attune"
TASK = "task.json"
FIGURES = "figures.json"
ERRORS = "stderr"

PEERS = {
    "trl": "'trl[peft]==1.16.0' in an environment of its own",
    "llamafactory": "docs/benchmarks.md tells how, in an environment of its own",
}
"""Package -> how it is installed; the name of its systems begins with it."""


@dataclass(frozen=True)
class Task:
    """What is trained, the same for all systems."""

    capacity: int  # tokens in a packed row, and of the longest example
    packed_rows: int  # in a step
    examples: int  # in a step, where rows are padded: as many as hold the same tokens
    warm_up: int  # steps before the first round
    steps: int  # in a round
    method: str = "full"  # or lora

    def write(self, folder: Path) -> None:
        """Write FOLDER/task.json."""
        (folder / TASK).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Task":
        """What `write` wrote."""
        return cls(**json.loads((folder / TASK).read_text()))


class Measured(NamedTuple):
    """What one system did: the figures of each of its rounds."""

    system: str
    version: str
    rounds: list[dict[str, Any]]

    def median(self, name: str) -> float:
        """The median of a figure over the rounds."""
        return statistics.median(each[name] for each in self.rounds)


class Machine(NamedTuple):
    """Where systems run."""

    threads: int
    python: Mapping[str, str]  # package -> its interpreter, where it is not ours


class Running(NamedTuple):
    """A system that trains."""

    process: subprocess.Popen[str]
    errors: Path


class NotMeasured(Exception):
    """A system that is not there, or does not run; all that it said."""


def take_turns(title: str, systems: Sequence[str], rounds: int, folder: Path, machine: Machine) -> list[Measured]:
    """Let the systems warm up one after the other, then give each a round in turn.

    `folder` holds what training_inputs writes, and the task.  One that fails is named and left out; ours has to run.
    """
    with ExitStack() as stack:
        running: list[tuple[Measured, Running]] = []
        for system in systems:
            try:
                process = stack.enter_context(_training(system, folder, machine))
                running.append((Measured(system, _answer(process)["version"], []), process))
            except NotMeasured as why:
                _say_not_measured(title, system, why)
        for _ in range(rounds):
            for measured, process in list(running):
                try:
                    measured.rounds.append(_next_round(process))
                except NotMeasured as why:
                    _say_not_measured(title, measured.system, why)
                    running.remove((measured, process))
        return [measured for measured, _ in running]


def run_each(
    work: str, title: str, systems: Sequence[str], rounds: int, folder: Path, machine: Machine
) -> list[Measured]:
    """Run each system at `work` of training_preparation in a process of its own, `rounds` times in turn."""
    found: dict[str, Measured] = {}
    failed: set[str] = set()
    for _ in range(rounds):
        for system in (name for name in systems if name not in failed):
            try:
                figures = _prepare(work, system, folder, machine)
            except NotMeasured as why:
                _say_not_measured(title, system, why)
                failed.add(system)
            else:
                found.setdefault(system, Measured(system, figures["version"], [])).rounds.append(figures)
    return [each for each in found.values() if each.system not in failed]


def _prepare(work: str, system: str, folder: Path, machine: Machine) -> dict[str, Any]:
    with _own_folder(system, folder) as own:
        command = [*_command("training_preparation.py", system, machine), work, system, str(own)]
        done = subprocess.run(command, env=_environment(own, machine), capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise NotMeasured(done.stderr)
        return json.loads((own / FIGURES).read_text())


@contextmanager
def _training(system: str, folder: Path, machine: Machine) -> Iterator[Running]:
    """A system that trains; it ends when its standard input does."""
    with _own_folder(system, folder) as own, (own / ERRORS).open("w") as errors:
        command = [*_command("training_systems.py", system, machine), system, str(own)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, env=_environment(own, machine), text=True, **pipes)  # noqa: S603
        try:
            yield Running(process, own / ERRORS)
        finally:
            process.communicate()


def _next_round(running: Running) -> dict[str, float]:
    figures = _answer(running, "\n")
    tokens = figures["tokens"]
    return figures | {"tokens_per_s": tokens / figures["wall_s"], "tokens_per_cpu_s": tokens / figures["cpu_s"]}


def _answer(running: Running, asked: str = "") -> dict[str, Any]:
    with suppress(BrokenPipeError):  # it has ended; why stands in its errors
        running.process.stdin.write(asked)
        running.process.stdin.flush()
    line = running.process.stdout.readline()
    if not line:
        raise NotMeasured(running.errors.read_text())
    return json.loads(line)


@contextmanager
def _own_folder(system: str, folder: Path) -> Iterator[Path]:
    """A folder for what a system writes, with links to what all share."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as own:
        for shared in folder.iterdir():
            (Path(own) / shared.name).symlink_to(shared)
        yield Path(own)


def _command(script: str, system: str, machine: Machine) -> list[str]:
    return [machine.python.get(_package(system), sys.executable), str(HERE / script)]


def _package(system: str) -> str:
    """The peer that a system is of, or ""."""
    return next((package for package in PEERS if system.startswith(package)), "")


def _environment(own: Path, machine: Machine) -> dict[str, str]:
    threads = {f"{name}_NUM_THREADS": str(machine.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | threads | quiet | {"HF_HOME": str(own / "cache"), "PYTHONPATH": str(HERE.parent)}


def _say_not_measured(title: str, system: str, why: NotMeasured) -> None:
    """A line for a peer that is not there or fails; ours has to run."""
    said = str(why).strip()
    if system == OURS:
        raise SystemExit(f"{title}: {system} failed:\n{said}")
    install = PEERS.get(_package(system), "it needs nothing that attune does not")
    print(f"not measured: {title}: {system}: {said.rpartition(chr(10))[2]} ({install})", flush=True)
