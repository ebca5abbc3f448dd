"""Training: from the newest checkpoint to the last, smaller passes when memory runs out, a way to leave at SIGTERM."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks import checkpoints
from tasks.interrupts import on_sigterm
from tasks.job import Choices, Job
from tasks.memory import keep_freed_memory
from tasks.trainer import OutOfMemory, TokenTrainer, validation_is_due

log = logging.getLogger("attune.fine_tune")


def train(job: Job) -> Path:
    """Train to the end, from the newest checkpoint if there is one; returns the last checkpoint.

    When memory runs out, the rows per forward pass are halved and the passes per step doubled, so that the global batch
    stays, and it goes on from the last finished step.  Raises TrainingError when the loss or a gradient is not finite
    or when not even one row fits, Interrupted after SIGTERM.
    """
    keep_freed_memory()
    choices = Choices.read(job)
    with on_sigterm() as stop:
        while True:
            checkpoint = checkpoints.newest(job.checkpoints, job.settings)
            if checkpoint and _is_finished(checkpoints.state(checkpoint)):
                return checkpoint
            if checkpoint:
                log.info("%s: goes on from %s", job.system, checkpoint.name)
            try:
                TokenTrainer(job, choices, stop).run(checkpoint)
            except OutOfMemory as error:
                choices = choices.with_less_memory(error)
                choices.write(job)
                log.warning("%s: out of memory; goes on with %d rows per pass", job.system, choices.batch_size)


def _is_finished(state: Mapping[str, Any]) -> bool:
    stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return stopped and not validation_is_due(state)
