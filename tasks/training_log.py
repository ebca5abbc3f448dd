"""What a training shows while it runs, and what stays of it."""

import contextvars
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger("attune.fine_tune")

_SHOWN = {"loss": "loss", "eval_loss": "val", "learning_rate": "lr"}
_COLUMNS = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}


class Progress(NamedTuple):
    """How far the training of a system is."""

    system: str
    step: int
    steps: int  # the last step; at the end of a training that stopped early, its own
    loss: float  # of the last step, nats per supervised token
    learning_rate: float
    tokens_per_second: float  # since this process began or went on, without padding
    seconds_left: float  # at the pace so far, validations included


Listener = Callable[[Progress], None]
_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("listener", default=None)


@contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Inside, `listener` hears of every step of a training in this process, and of its end."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class TrainingLog(TrainerCallback):
    """Shows training: a bar at a terminal, one line per validation; and validates after the last step."""

    def __init__(self, system: str) -> None:
        self.system = system
        self._last: dict[str, float] = {}
        self._bar: tqdm | None = None
        self._began, self._tokens_before, self._steps_before = time.perf_counter(), 0, 0  # a validation may come first

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin the bar where training begins or goes on."""
        self._began, self._tokens_before = time.perf_counter(), state.num_input_tokens_seen
        self._steps_before = state.global_step
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
            self._bar.set_postfix(shown | {"tok/s": f"{self._rate(state):,.0f}"})
        self._tell(state, state.max_steps)
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
        self._tell(state, state.global_step)

    def _rate(self, state: TrainerState) -> float:
        """Tokens per second since training began or went on."""
        return (state.num_input_tokens_seen - self._tokens_before) / (time.perf_counter() - self._began)

    def _tell(self, state: TrainerState, steps: int) -> None:
        """Tell the listener, if there is one, once a step is done."""
        done = state.global_step - self._steps_before
        if (listener := _listener.get()) and done and "loss" in self._last:
            left = (time.perf_counter() - self._began) / done * (steps - state.global_step)
            figures = self._last["loss"], self._last["lr"], self._rate(state), left
            listener(Progress(self.system, state.global_step, steps, *figures))


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
