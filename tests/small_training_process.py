"""A training in a process of its own, which can be killed; the fork server imports it, as imports cost seconds."""

import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tasks import checkpoints
from tasks.config import FineTuneConfig
from tasks.errors import AttuneError
from tasks.families import decoder_only
from tasks.fine_tune import fine_tune
from tasks.trainer import TokenTrainer

MOMENTS = {
    "passes": (TokenTrainer, "training_step"),
    "step": (TokenTrainer, "_get_grad_norm"),  # all passes are done, the weights have not moved
    "validation": (decoder_only, "example_losses"),
    "saving": (checkpoints, "_seal"),
    "saved": (checkpoints, "remove_old"),
}


def train(
    told: Connection, moment: str, waits: float, base: Path, made: Path, out: Path, settings: dict[str, Any]
) -> None:
    """Fine-tune; at a moment such as "step:3" say "here" and wait for a signal.

    Its exit code is the command line's, its last word the failure's.
    """
    where, _, number = moment.partition(":")
    owner, name = MOMENTS[where]
    honest, left = getattr(owner, name), [int(number)]

    def wrapped(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            told.send("here")
            time.sleep(waits)
        return honest(*given, **named)

    setattr(owner, name, wrapped)
    out.mkdir(exist_ok=True)
    try:
        fine_tune(FineTuneConfig(**settings), {"base": base, "format": made}, out)
    except AttuneError as error:
        told.send(str(error))
        sys.exit(error.exit_code)
