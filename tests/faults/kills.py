"""The whole pipeline, killed at random times: through its stages, through `attune run`, and the flow process alone."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from faults.matrix import ROOT, Outcome, fault, tries
from faults.pipeline import SERVER, in_store, run, settings
from tasks.config import PipelineConfig
from tasks.run_record import RunRecord
from tasks.stages import STAGES
from tasks.store import ArtifactRef, ArtifactStore

Said = tuple[str, str, float]
"""begins, cached or made; the stage; when, in seconds of a clock that all processes share."""


def start(config: PipelineConfig) -> tuple[BaseProcess, Connection]:
    """A run of all stages in a process of its own, and where it says how far it is."""
    hears, tells = Pipe(duplex=False)
    process = SERVER.Process(target=_run, args=(config, tells))
    process.start()
    tells.close()
    return process, hears


def _run(config: PipelineConfig, tells: Connection) -> None:
    logging.getLogger("attune").setLevel(logging.ERROR)
    run(config, lambda *said: tells.send((*said, time.monotonic())))


def to_the_end(config: PipelineConfig) -> list[Said]:
    """Run, and what it said; raises when it failed."""
    process, hears = start(config)
    said = all_said(hears)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run ended with {process.exitcode} after {said}")
    return said


def all_said(hears: Connection) -> list[Said]:
    """Everything that a process has said, once it has ended."""
    said = []
    try:
        while True:
            said.append(hears.recv())
    except EOFError:
        return said


def stages(said: list[Said], verb: str) -> list[str]:
    """The stages of which it said so."""
    return [stage for word, stage, _ in said if word == verb]


def visible(store: ArtifactStore) -> dict[str, str]:
    """Stage and digest of every artifact that a reader sees, each read to its last byte."""
    found = {}
    for folder in store.folders():
        manifest = store.find(folder.parent.name, folder.name)
        assert manifest is not None, f"{folder} is there, but is no whole artifact"
        assert store.verify(ArtifactRef(manifest.stage, manifest.key, manifest.digest)), f"{folder} is damaged"
        found[manifest.stage] = manifest.digest
    assert not (store.root / ".quarantine").exists(), "something was put into quarantine"
    return found


def golden(config: PipelineConfig) -> tuple[dict[str, str], dict[str, float]]:
    """Digests of an undisturbed run, and how long each stage took; of two runs, which must agree."""
    runs = []
    for _ in range(2):  # the first one is slower: its files are not in memory
        shutil.rmtree(config.store, ignore_errors=True)
        said = to_the_end(config)
        runs.append(visible(ArtifactStore(config.store)))
    assert runs[0] == runs[1], "two undisturbed runs differ"
    began = {stage: moment for word, stage, moment in said if word == "begins"}
    return runs[0], {stage: moment - began[stage] for word, stage, moment in said if word == "made"}


def kill_in(config: PipelineConfig, stage: str, seconds: float) -> list[Said]:
    """Kill a run so long after the beginning of a stage; what it had said."""
    process, hears = start(config)
    said: list[Said] = []
    while stage not in stages(said, "begins"):
        said.append(hears.recv())
    time.sleep(max(0.0, said[-1][2] + seconds - time.monotonic()))
    process.kill()
    process.join()
    return said + all_said(hears)


@fault("F01.pipeline", "SIGKILL at a random time of the whole pipeline")
def at_random_times(folder: Path) -> Outcome:
    """Each stage is hit as often as any other, at a random share of its time; the seed is fixed."""
    outcome, chance, hit, ended = Outcome(), random.Random(0), Counter(), 0  # noqa: S311
    config = in_store(settings(folder), folder / "killed" / "artifacts")
    digests, seconds = golden(config)
    for number in range(tries(200, least=len(STAGES))):
        shutil.rmtree(folder / "killed")
        stage = list(STAGES)[number % len(STAGES)]
        after = chance.random() * seconds[stage]
        with outcome.attempt(f"{stage} {after:.3f} s"):
            said = kill_in(config, stage, after)
            ended += "export" in stages(said, "made")
            hit[_interrupted(said)] += 1
            survives(config, said, digests)
    outcome.figures = {"hit": {name: hit[name] for name in [*STAGES, "ended"]}, "golden_seconds": seconds}
    return outcome


def _interrupted(said: list[Said]) -> str:
    """The stage that was running, or "ended"."""
    return next((stage for stage in stages(said, "begins") if stage not in stages(said, "made")), "ended")


def survives(config: PipelineConfig, said: list[Said], digests: dict[str, str]) -> None:
    """No partial artifact is seen; the next run repeats only what was not published, and ends with equal digests."""
    before = visible(ArtifactStore(config.store))
    assert before == {stage: digests[stage] for stage in before}, "an artifact with other content"
    assert set(stages(said, "made")) <= set(before), "a stage that had ended is gone"
    assert len(before) <= len(stages(said, "made")) + 1
    again = to_the_end(config)
    assert set(stages(again, "cached")) == set(before), (
        "a stage that had ended was repeated, or one that had not was not"
    )
    assert visible(ArtifactStore(config.store)) == digests, "the next run ended with other digests"


def command(config: Path, *overrides: str) -> list[str]:
    """`attune run`, as this interpreter finds it."""
    return [sys.executable, "-m", "flows.cli", "run", str(config), *overrides]


def environment(home: Path) -> dict[str, str]:
    """Prefect's files in `home`, our code first, no server but its own."""
    ours = {
        "PREFECT_HOME": str(home / "prefect"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | ours


def written(raw: dict[str, Any], path: Path) -> Path:
    """A config as the file that a user has."""
    path.write_text(yaml.safe_dump(raw))
    return path


def attune_run(config: Path, *overrides: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`attune run` to its end."""
    options = {
        "env": environment(config.parent),
        "timeout": 280,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    } | options
    return subprocess.run(command(config, *overrides), text=True, check=False, **options)


def latest(runs: Path) -> RunRecord:
    """The record of the newest run."""
    return RunRecord.model_validate_json((runs / "latest" / "run.json").read_bytes())


@fault("F01.run", "SIGKILL of `attune run` with all its processes, at a random time")
def command_killed(folder: Path) -> Outcome:
    """Through Prefect, as a user starts it; the next run is `attune run` again."""
    outcome, chance, hit = Outcome(), random.Random(1), Counter()  # noqa: S311
    raw = settings(folder)
    digests, _ = golden(in_store(raw, folder / "golden" / "artifacts"))
    store = ArtifactStore(raw["store"])
    config = written(raw, folder / "config.yaml")
    for number in range(tries(5)):
        shutil.rmtree(store.root, ignore_errors=True)
        stage = ["fine_tune", "clean", "evaluate", "format", "export"][number % 5]
        with outcome.attempt(stage):
            _kill_group(config, store, stage, chance.random())
            before = visible(store)
            hit[next((name for name in STAGES if name not in before), "ended")] += 1
            again = attune_run(config)
            assert again.returncode == 0, again.stderr[-2000:]
            assert visible(store) == digests, "the next run ended with other digests"
            cached = [stage.stage for stage in latest(Path(raw["runs"])).stages if stage.cached]
            assert set(cached) == set(before), "a stage that had ended was repeated, or one that had not was not"
    outcome.figures = {"hit": dict(hit)}
    return outcome


def _kill_group(config: Path, store: ArtifactStore, stage: str, seconds: float) -> None:
    """Kill `attune run` and all of its children some time after a stage has begun."""
    process = subprocess.Popen(
        command(config),
        env=environment(config.parent),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: list((store.root / ".work").glob(f"{stage}-*")), 120, f"{stage} never began")
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait until something is true; how long that took.  Raises TimeoutError."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"{what} (after {seconds:.0f} s)")
        time.sleep(0.02)
    return time.monotonic() - began
