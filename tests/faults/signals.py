"""A training that is asked to stop (F05): it saves itself in time, and the next one goes on from there."""

import shutil
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import small_training_process
from small_training import SETTINGS, formatted

from faults.matrix import Outcome, fault, sample
from faults.pipeline import SERVER, settings
from tasks.disk import digest_file

MOMENTS = [f"{name}:{number}" for name in ("passes", "step", "validation", "saving") for number in (1, 2, 3)]
SECONDS_TO_SAVE = 25.0
"""Of the 30 seconds that orchestrators give."""

TRAINING = {**SETTINGS, "epochs": 3.0, "evals_per_epoch": 1, "per_device_batch_size": 2}
WAITS_SECONDS = 0.5


@fault("F05", "SIGTERM while a model is trained: in a pass, a step, a validation, a save")
def asked_to_stop(folder: Path) -> Outcome:
    """It ends with exit code 75, "try again", within the grace; the next training ends as an undisturbed one."""
    outcome, took = Outcome(), []
    base = Path(settings(folder)["model"]["base"])
    made = formatted(folder / "format", base)
    golden = _to_the_end(base, made, folder / "golden")
    for moment in sample(MOMENTS):
        with outcome.attempt(moment):
            out = folder / moment.replace(":", "-")
            process, hears = _start(base, made, out, moment)
            assert hears.recv() == "here"
            began = time.monotonic()
            process.terminate()
            told = hears.recv()
            process.join()
            took.append(time.monotonic() - began)
            assert process.exitcode == 75 and "stopped by SIGTERM" in told, told
            assert took[-1] < SECONDS_TO_SAVE, f"it took {took[-1]:.1f} s"
            assert _to_the_end(base, made, out) == golden, "another model than that of an undisturbed training"
    outcome.figures = {"longest_seconds": round(max(took, default=0.0), 2)}
    return outcome


def _start(base: Path, made: Path, out: Path, moment: str) -> tuple[BaseProcess, Connection]:
    hears, tells = Pipe(duplex=False)
    given = (tells, moment, WAITS_SECONDS, base, made, out, TRAINING)
    process = SERVER.Process(target=small_training_process.train, args=given)
    process.start()
    tells.close()
    return process, hears


def _to_the_end(base: Path, made: Path, out: Path) -> str:
    """Train until it ends; the digest of the weights."""
    shutil.rmtree(out / "tuned", ignore_errors=True)
    process, _ = _start(base, made, out, "step:0")
    process.join()
    assert process.exitcode == 0, f"it ended with {process.exitcode}"
    return digest_file(out / "tuned" / "model.safetensors")
