"""The flow process killed alone, its children alive (F02): they die with it, and the next run is the only writer."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
from small_training import SETTINGS, formatted

from faults.kills import command, environment, latest, visible, wait_for, written
from faults.matrix import Outcome, fault, tries
from faults.pipeline import SERVER, settings
from tasks import engine
from tasks.config import EngineConfig, FineTuneConfig
from tasks.disk import digest_file
from tasks.fine_tune import fine_tune
from tasks.store import ArtifactStore

SECONDS_TO_DIE = 10.0


def orphans_of(pid: int, least: int, seconds: float) -> float:
    """Kill a process once it has so many descendants; how long they lived.  Raises TimeoutError when they live on."""
    parent, children = psutil.Process(pid), []

    def has_children() -> bool:
        children[:] = [child for child in parent.children(recursive=True) if not _is_tracker(child)]
        return len(children) >= least

    wait_for(has_children, seconds, f"it never had {least} children")
    time.sleep(0.5)  # let them begin
    has_children()
    os.kill(pid, signal.SIGKILL)
    try:
        return wait_for(lambda: not any(map(_lives, children)), SECONDS_TO_DIE, "children live on")
    except TimeoutError as error:
        names = [" ".join(child.cmdline()[1:4]) for child in children if _lives(child)]
        raise TimeoutError(f"{error}: {names}") from None
    finally:
        for child in filter(_lives, children):
            child.kill()


def _is_tracker(process: psutil.Process) -> bool:
    """A helper of multiprocessing that ends once nobody speaks to it any more."""
    try:
        return any("resource_tracker" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@fault("F02.engine", "a process killed whose shards are worked on by others")
def engine_killed(folder: Path) -> Outcome:
    """No worker outlives it."""
    outcome, lived = Outcome(), []
    for number in range(tries(3)):
        with outcome.attempt(number):
            process = SERVER.Process(target=_shards)
            process.start()
            lived.append(orphans_of(process.pid, 2, 60))
            process.join()
    outcome.figures = {"longest_seconds": round(max(lived, default=0.0), 2)}
    return outcome


def _shards() -> None:
    engine.PATIENCE_SECONDS = 0.0
    with engine.using(EngineConfig(processes=2)):
        engine.map_shards(time.sleep, [(60.0,), (60.0,)], "shards")


@fault("F02.processes", "a training in two processes whose launcher's parent is killed")
def launcher_killed(folder: Path) -> Outcome:
    """Neither accelerate nor its processes go on; the next training alone writes, and ends as an undisturbed one."""
    outcome, lived = Outcome(), []
    base = Path(settings(folder)["model"]["base"])
    made = formatted(folder / "format", base)
    asked = SETTINGS | {"processes": 2, "epochs": 6.0, "evals_per_epoch": 1, "per_device_batch_size": 2}
    golden = _trained(made, base, folder / "golden", asked)
    for number in range(tries(3)):
        out = folder / str(number)
        with outcome.attempt(number):
            process = SERVER.Process(target=_train, args=(made, base, out, asked))
            process.start()
            wait_for(lambda out=out: list(out.glob("resume/tuned/checkpoint-*")), 120, "no checkpoint")
            try:
                lived.append(orphans_of(process.pid, 3, 60))
            finally:
                process.join()
            assert _trained(made, base, out, asked) == golden, "another model than that of an undisturbed training"
    outcome.figures = {"longest_seconds": round(max(lived, default=0.0), 2)}
    return outcome


def _train(made: Path, base: Path, out: Path, asked: dict[str, Any]) -> None:
    out.mkdir(exist_ok=True)
    fine_tune(FineTuneConfig(**asked), {"base": base, "format": made}, out)


def _trained(made: Path, base: Path, out: Path, asked: dict[str, Any]) -> str:
    """Train to the end in a process of its own; the digest of the weights."""
    for path in ("tuned", "history"):
        shutil.rmtree(out / path, ignore_errors=True)
    process = SERVER.Process(target=_train, args=(made, base, out, asked))
    process.start()
    process.join()
    assert process.exitcode == 0, f"it ended with {process.exitcode}"
    return digest_file(out / "tuned" / "model.safetensors")


@fault("F02.flow", "the process of `attune run` killed alone")
def flow_killed(folder: Path) -> Outcome:
    """Prefect's temporary server ends with it; the run after it has the store for itself."""
    outcome, lived, raw = Outcome(), [], settings(folder)
    config, store = written(raw, folder / "config.yaml"), ArtifactStore(raw["store"])
    for number in range(tries(2)):
        shutil.rmtree(store.root, ignore_errors=True)
        with outcome.attempt(number):
            process = subprocess.Popen(
                command(config), env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            wait_for(lambda: list((store.root / ".work").glob("fine_tune-*")), 120, "fine_tune never began")
            try:
                lived.append(orphans_of(process.pid, 1, 60))
            finally:
                process.wait()
            before = visible(store)
            again = subprocess.run(
                command(config), env=environment(folder), capture_output=True, text=True, timeout=280, check=False
            )
            assert again.returncode == 0, again.stderr[-1500:]
            cached = {stage.stage for stage in latest(Path(raw["runs"])).stages if stage.cached}
            assert cached == set(before) and len(visible(store)) == 7
    outcome.figures = {"longest_seconds": round(max(lived, default=0.0), 2)}
    return outcome
