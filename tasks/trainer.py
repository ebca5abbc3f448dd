"""What we add to the Hugging Face Trainer: a loss per supervised token, checkpoints that hold, and ways to stop."""

import contextvars
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, EarlyStoppingCallback, PrinterCallback, Trainer

from tasks import checkpoints, metrics
from tasks.errors import Interrupted, TrainingError
from tasks.families import load_family
from tasks.interrupts import StopRequest
from tasks.job import Choices, Job, arguments, starting_model
from tasks.optimizers import optimizer
from tasks.schema import IGNORE_INDEX
from tasks.training_log import TrainingLog
from tasks.training_rows import Order, TrainingRows, validation_rows

PLACES_SHOWN = 5

Watcher = Callable[[int, float], None]
_watcher: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar("watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Inside, `watcher(step, value)` hears of each validation of the tuned system; what it raises ends the training.

    `value` is that of metric_for_best_model.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class OutOfMemory(Exception):
    """Memory ran out within a step; what was done before it is saved."""


class _Finished(Exception):
    """Nothing is left to train."""


class TokenTrainer(Trainer):
    """Trainer whose losses are means over supervised tokens, in training over the whole global batch.

    Its checkpoints are sealed; it can stop between any two steps, and within one, without a trace in the result.
    """

    def __init__(self, job: Job, choices: Choices, stop: StopRequest) -> None:
        self.job, self.stop, self.family = job, stop, load_family(job.family)
        self._saving_in: str | None = None
        self._saved_step = 0
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.rows = TrainingRows(job.formatted, choices.batch_size * processes if processes > 1 else 1)
        self.order = Order(self.rows, job.config.seed)
        self._tokens_in_step = 0
        callbacks: list[Any] = [TrainingLog(job.system)]
        if job.config.early_stopping_patience:
            callbacks.append(
                EarlyStoppingCallback(job.config.early_stopping_patience, job.config.early_stopping_threshold)
            )
        super().__init__(
            model=starting_model(job, choices.precision),
            args=arguments(job, choices, self.rows.rows),
            data_collator=self._collate,
            train_dataset=self.rows,
            eval_dataset=validation_rows(job.formatted, job.config.validation_max_rows),
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer(job.config),
        )
        self.remove_callback(PrinterCallback)
        self.tokenizer = AutoTokenizer.from_pretrained(job.formatted / "tokenizer", trust_remote_code=False)

    def run(self, checkpoint: Path | None) -> None:
        """Train to the end."""
        self._saved_step = checkpoints.state(checkpoint)["global_step"] if checkpoint else 0
        with self.stop.waiting(), suppress(_Finished):
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.stop.raise_if_asked()

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens = sum(len(row["input_ids"]) for row in rows)
        numbers = [row["row"] for row in rows]
        return self.family.collate(rows) | {"rows": torch.tensor(numbers), "tokens": torch.tensor(tokens)}

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        self.order.epoch = epoch
        super()._run_epoch(epoch=epoch, **kwargs)

    # The loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Supervised tokens of the global batch: of all passes and all processes."""
        count = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in batch_samples)
        return self.accelerator.gather(torch.as_tensor(count, device=device)).sum().clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The part of `inputs` in the mean over the supervised tokens of the global batch."""
        loss = self.family.summed_loss(model, inputs, self.job.config.label_smoothing) / num_items_in_batch
        return loss * self.accelerator.num_processes  # gradients are averaged over the processes, not summed

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass."""
        rows, tokens = inputs.pop("rows").tolist(), inputs.pop("tokens").item()
        if self.stop.asked and self.accelerator.num_processes == 1:
            self._leave_step()
            raise self._interrupted()
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or self.accelerator.num_processes > 1:
                raise
            self._leave_step()
            raise OutOfMemory(str(error).splitlines()[0]) from None
        if not torch.isfinite(loss):
            raise self._not_finite(f"the loss is {loss.item()}", rows)
        self._last_rows = rows
        self._tokens_in_step += tokens
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm before clipping; the weights must not take a step that is no number."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(norm):
            raise self._not_finite(f"the gradients' norm is {float(norm)}", self._last_rows)
        return norm

    def _not_finite(self, what: str, rows: list[int]) -> TrainingError:
        places = self.rows.places(rows)
        more = f" and {len(places) - PLACES_SHOWN} more" if len(places) > PLACES_SHOWN else ""
        return TrainingError(
            f"fine_tune: {what} at step {self.state.global_step + 1}, on {', '.join(places[:PLACES_SHOWN])}{more}; "
            "nothing was published, and the last checkpoint stays. Lower fine_tune.learning_rate, or look at the rows"
        )

    # Validation

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss per supervised token as `eval_loss`, and metric_for_best_model as `eval_<name>`."""
        name, step = self.job.config.metric_for_best_model, self.state.global_step
        with self.stop.waiting(self.accelerator.num_processes > 1):
            values = self._values(name)
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"fine_tune: the validation loss is {values['loss']} at step {step}; nothing was published"
            )
        found = {f"eval_{each}": value for each, value in values.items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        if self.job.system == "tuned" and (watcher := _watcher.get()):
            watcher(step, values[name])
        return found

    def _values(self, name: str) -> dict[str, float]:
        model = self.model.eval()
        losses = self.family.example_losses(model, self.eval_dataset)
        values = {"loss": sum(total for total, _ in losses) / sum(count for _, count in losses)}
        if name != "loss":
            longest = max(len(row["labels"]) for row in self.eval_dataset)
            generation = self.family.generation_config(self.tokenizer, longest)
            answers = self.family.answers(model, self.eval_dataset, generation, 32, "fine_tune validation")
            predictions = [self.family.text(answer, self.tokenizer, model) for answer in answers]
            references = [self.family.reference(row, self.tokenizer, model) for row in self.eval_dataset]
            values[name] = metrics.value(name, predictions, references)
        return values

    # Checkpoints

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint and validation_is_due(vars(self.state)):
            self._load_rng_state(resume_from_checkpoint)
            self.control.should_training_stop = self.state.global_step >= max_steps
            self.control.should_evaluate = self.control.should_save = True
            self._globalstep_last_logged = self.state.global_step
            self._maybe_log_save_evaluate(torch.zeros(()), None, prepared[0], None, 0, None, 0.0)
            if self.control.should_training_stop:
                raise _Finished
        return prepared

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._after_step = _random_states()
        self.state.num_input_tokens_seen += self._tokens_in_step  # without padding, of this process
        self._tokens_in_step = 0
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except Interrupted:  # while validating: that is done first when it goes on
            self._save_checkpoint(self.model_wrapped, None)
            raise
        if self._everyone_stops():
            if self._saved_step != self.state.global_step:
                self._save_checkpoint(self.model_wrapped, None)
            raise self._interrupted()

    def _leave_step(self) -> None:
        """Give up a step in the middle: what it began is forgotten, and what was done before is saved."""
        self.model_wrapped.zero_grad()
        self._tokens_in_step = 0
        if self._saved_step != self.state.global_step:
            _set_random_states(self._after_step)
            self._save_checkpoint(self.model_wrapped, None)

    def _interrupted(self) -> Interrupted:
        return Interrupted(
            f"fine_tune: stopped by SIGTERM after step {self.state.global_step} of {self.state.max_steps}, which is "
            "saved; run the same command again and it goes on"
        )

    def _everyone_stops(self) -> bool:
        """Whether one of the processes was asked to stop."""
        if self.accelerator.num_processes == 1:
            return self.stop.asked
        return bool(self.accelerator.gather(torch.tensor(self.stop.asked, device=self.args.device)).any())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer does, but sealed, and under its name only once it is whole."""
        folder, main = self.job.checkpoints, self.args.should_save
        self.accelerator.wait_for_everyone()
        with checkpoints.writing(folder, self.state.global_step, self.job.settings, main=main) as parent:
            self._saving_in = str(parent)
            with checkpoints.disk_trouble_told(f"the checkpoint of step {self.state.global_step}"):
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            self._saving_in = None
            if main:  # a pickle that nobody reads
                (parent / f"checkpoint-{self.state.global_step}" / "training_args.bin").unlink(missing_ok=True)
        if main:
            checkpoints.remove_old(folder, self.state.best_global_step)
        self.accelerator.wait_for_everyone()
        self._saved_step = self.state.global_step

    def _get_output_dir(self, trial: Any) -> str:
        return self._saving_in or super()._get_output_dir(trial)


def validation_is_due(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was saved where the validation of its step had not ended."""
    step = state["global_step"]
    if not step or (step % state["eval_steps"] and step < state["max_steps"]):
        return False
    return not any(record["step"] == step and "eval_loss" in record for record in state["log_history"])


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.random.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.random.set_rng_state_all(states["cuda"])
