"""What attune adds to the Hugging Face Trainer: a loss per supervised token, a stop when it is not finite, a log."""

import json
import logging
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.config import FineTuneConfig
from tasks.errors import TrainingError

log = logging.getLogger("attune.fine_tune")


class TokenTrainer(Trainer):
    """Trainer whose losses are means over supervised tokens, in training over the whole global batch.

    `eval_dataset` holds unpacked rows (input_ids, labels); its loss is exact, whatever the batch size.
    """

    def __init__(self, *, family: ModuleType, label_smoothing: float, **kwargs: Any) -> None:
        super().__init__(compute_loss_func=family.summed_loss, data_collator=family.collate, **kwargs)
        self.family, self.label_smoothing = family, label_smoothing
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The mean over the supervised tokens of the global batch, of which `inputs` is a part."""
        loss = self.family.summed_loss(model, inputs, self.label_smoothing) / num_items_in_batch
        return loss * self.accelerator.num_processes  # gradients are averaged over the processes, not summed

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; raises TrainingError when its loss is not finite."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"fine_tune: the loss is {loss.item()} at step {self.state.global_step + 1}; nothing was published. "
                "Lower fine_tune.learning_rate, or look at the rows with `attune check`"
            )
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss per supervised token over the validation rows, as `eval_loss`."""
        losses = self.family.example_losses(self.model, self.eval_dataset)
        mean = sum(total for total, _ in losses) / sum(count for _, count in losses)
        if not math.isfinite(mean):
            raise TrainingError(
                f"fine_tune: the validation loss is {mean} at step {self.state.global_step}; nothing was published"
            )
        metrics = {"eval_loss": mean}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class TrainingLog(TrainerCallback):
    """Shows training: a bar at a terminal, one line per validation; and validates after the last step."""

    def __init__(self, system: str) -> None:
        self.system = system
        self._last: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin the bar where training begins or goes on."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=f"fine_tune {self.system}",
            unit=" steps",
            disable=None,
            leave=False,
            file=sys.stderr,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar; ask for a validation and a checkpoint of the last step."""
        self._bar.update()
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Show the newest figures."""
        shown = {"loss": "loss", "eval_loss": "val", "learning_rate": "lr"}
        self._last |= {shown[name]: value for name, value in logs.items() if name in shown}
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in self._last.items()})
        if "eval_loss" in logs:
            loss = self._last.get("loss", float("nan"))
            log.info(
                "%s: step %d of %d, loss %.4f, validation loss %.4f",
                self.system,
                state.global_step,
                state.max_steps,
                loss,
                logs["eval_loss"],
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the bar."""
        self._bar.close()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; torn ones are removed with a warning.

    The Trainer writes trainer_state.json last, so a checkpoint with a readable one is complete.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            log.warning("%s is torn and was removed; training goes on from the one before", checkpoint)
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def history(system: str, records: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The Trainer's log as rows of HISTORY."""
    names = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
    return [
        {"system": system, "step": record["step"], "epoch": record["epoch"]}
        | {column: record.get(name) for name, column in names.items()}
        for record in records
        if "loss" in record or "eval_loss" in record
    ]


def steps(config: FineTuneConfig, rows: int) -> int:
    """Optimizer steps of a whole training over `rows` rows (packed rows with packing)."""
    batches = math.ceil(rows / config.per_device_batch_size)
    return config.max_steps or math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.epochs)
