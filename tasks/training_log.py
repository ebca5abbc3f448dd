"""What a training shows while it runs, and what stays of it."""

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger("attune.fine_tune")

_SHOWN = {"loss": "loss", "eval_loss": "val", "learning_rate": "lr"}
_COLUMNS = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}


class TrainingLog(TrainerCallback):
    """Shows training: a bar at a terminal, one line per validation; and validates after the last step."""

    def __init__(self, system: str) -> None:
        self.system = system
        self._last: dict[str, float] = {}
        self._bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin the bar where training begins or goes on."""
        self._began, self._tokens_before = time.perf_counter(), state.num_input_tokens_seen
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=f"fine_tune {self.system}",
            unit=" steps",
            disable=None if state.is_world_process_zero else True,
            leave=False,
            file=sys.stderr,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar; ask for a validation and a checkpoint of the last step."""
        if self._bar:
            self._bar.update()
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Show the newest figures."""
        self._last |= {_SHOWN[name]: value for name, value in logs.items() if name in _SHOWN}
        if self._bar:
            shown = {name: f"{value:.3g}" for name, value in self._last.items()}
            tokens = state.num_input_tokens_seen - self._tokens_before
            rate = tokens / (time.perf_counter() - self._began)
            self._bar.set_postfix(shown | {"tok/s": f"{rate:,.0f}"})
        if "eval_loss" in logs and state.is_world_process_zero:
            log.info(
                "%s: step %d of %d, loss %.4f, validation loss %.4f",
                self.system,
                state.global_step,
                state.max_steps,
                self._last.get("loss", float("nan")),
                logs["eval_loss"],
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the bar."""
        if self._bar:
            self._bar.close()


def history(system: str, records: Iterable[Mapping[str, float]], metric: str) -> list[dict[str, Any]]:
    """The Trainer's log as rows of HISTORY; `metric` is metric_for_best_model."""
    names = _COLUMNS | ({} if metric == "loss" else {f"eval_{metric}": "validation_metric"})
    columns = [*_COLUMNS.values(), "validation_metric"]
    return [
        {"system": system, "step": record["step"], "epoch": record["epoch"]}
        | dict.fromkeys(columns)
        | {column: record[name] for name, column in names.items() if name in record}
        for record in records
        if "loss" in record or "eval_loss" in record
    ]
