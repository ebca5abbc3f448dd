"""A training in several processes, under accelerate's launcher."""

import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from tasks import checkpoints
from tasks.config import FineTuneConfig
from tasks.errors import AttuneError, ConfigError, Interrupted, TrainingError
from tasks.interrupts import StopRequest, on_sigterm
from tasks.job import Choices, Job
from tasks.parent import end_with
from tasks.progress import LineHandler
from tasks.training import train as train_here

ROOT = Path(__file__).parent.parent


def train(job: Job) -> Path:
    """As training.train, in `fine_tune.processes` processes; SIGTERM is handed on to them.

    Raises what they raise: TrainingError, Interrupted.
    """
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    task, failure = job.checkpoints / "job.json", job.checkpoints / "failure.txt"
    Choices.read(job)  # decided once, for all processes
    task.write_text(json.dumps(vars(job) | {"config": job.config.model_dump()}, default=str), encoding="utf-8")
    failure.unlink(missing_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", _settings(job)]
    command += ["--num_processes", str(job.config.processes), "-m", "tasks.launch", str(task)]
    environment, end_with_us = os.environ | {"PYTHONPATH": str(ROOT)}, partial(end_with, os.getpid())
    with on_sigterm() as stop, stop.waiting():
        status = _wait(subprocess.Popen(command, env=environment, preexec_fn=end_with_us), stop)  # noqa: S603
    if stop.asked:
        raise Interrupted("fine_tune: stopped by SIGTERM; run the same command again and it goes on")
    checkpoint = checkpoints.newest(job.checkpoints, job.settings)
    if status or checkpoint is None:
        told = failure.read_text(encoding="utf-8") if failure.exists() else f"accelerate launch ended with {status}"
        raise TrainingError(told if told.startswith("fine_tune") else f"fine_tune: {told}")
    return checkpoint


def _wait(process: subprocess.Popen[bytes], stop: StopRequest) -> int:
    """Its exit status; it is told of SIGTERM."""
    while True:
        try:
            return process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if stop.asked:
                process.terminate()
                return process.wait()


def _settings(job: Job) -> str:
    """The config file of accelerate."""
    if not job.config.accelerate:
        return str(ROOT / "configs" / "accelerate" / ("ddp.yaml" if torch.cuda.is_available() else "ddp_cpu.yaml"))
    if not Path(job.config.accelerate).is_file():
        raise ConfigError(f"fine_tune.accelerate: there is no file {job.config.accelerate}")
    return job.config.accelerate


def main(path: Path) -> None:
    """What each of the processes does."""
    end_with(os.getppid())  # the launcher, which ends with the flow
    told = json.loads(path.read_text(encoding="utf-8"))
    paths = {name: Path(told[name]) for name in ("base", "formatted", "checkpoints")}
    job = Job(**told | paths | {"config": FineTuneConfig.model_validate(told["config"])})
    logging.getLogger("attune").addHandler(LineHandler())
    logging.getLogger("attune").setLevel(logging.INFO)
    try:
        if os.environ.get("WORLD_SIZE") != str(job.config.processes):
            raise TrainingError("fine_tune.accelerate: its file starts no processes that know of each other")
        train_here(job)
    except AttuneError as error:
        (job.checkpoints / "failure.txt").write_text(str(error), encoding="utf-8")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
