"""Garbage that is collected while runs go on."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.matrix import Outcome, fault, tries

PROCESS = Path(__file__).parent.parent / "gc_process.py"


@contextmanager
def process(verb: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that uses a store, or collects its garbage; it is killed at the end."""
    command = [sys.executable, str(PROCESS), verb, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def collect_while_runs_go_on(store: Path, runs: Path, number: int) -> tuple[int, int]:
    """So many runs, and a process that collects without pause; how many things went, and how often a run was on.

    Fails when a run misses something, or what it makes is not as it was.
    """
    with process("collect", store, runs) as collector:
        with process("run", store, runs, number) as runner:
            out, error = runner.communicate(timeout=200)
        assert (runner.returncode, out, error) == (0, f"{number} runs\n", "")
        collector.send_signal(signal.SIGTERM)
        said, error = collector.communicate(timeout=60)
    assert (collector.returncode, error) == (0, "")
    assert not (store / ".quarantine").exists()
    went, refused = map(int, said.split())
    return went, refused


@fault("F23", "garbage collected without pause while runs go on")
def garbage(folder: Path) -> Outcome:
    outcome, number = Outcome(), tries(50, least=5)
    with outcome.attempt("runs"):
        went, refused = collect_while_runs_go_on(folder / "store", folder / "runs", number)
        outcome.figures = {"collected": went, "refused": refused}
    outcome.tries, outcome.survived = number, number * outcome.survived
    return outcome
