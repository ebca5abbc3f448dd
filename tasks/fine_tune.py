"""Fine-tune: tune the base model on the formatted examples; the checkpoint with the lowest validation loss is kept."""

import logging
import math
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import AutoConfig, EarlyStoppingCallback, PreTrainedModel, TrainingArguments

from tasks.config import FineTuneConfig
from tasks.families import find, load_family
from tasks.held_out import class_names
from tasks.layout import PACKS, RESUME
from tasks.ledger import ShardWriter, Summary, read
from tasks.schema import HISTORY, IGNORE_INDEX
from tasks.training import TokenTrainer, TrainingLog, history, last_checkpoint, steps

log = logging.getLogger("attune.fine_tune")

STARTS = {"tuned": "the base model", "scratch": "a random initialisation"}


def fine_tune(config: FineTuneConfig, inputs: dict[str, Path], out: Path, family: str = "auto") -> Summary:
    """Write `tuned/` (a Hugging Face folder), with scratch_control also `scratch/`, and `history` (columns HISTORY).

    Goes on from the last complete checkpoint in `out/resume`.  Raises TrainingError when a loss is not finite.
    """
    kind = load_family(find(inputs["base"]) if family == "auto" else family)
    labels = class_names(inputs["format"])
    examples = read(inputs["format"] / "train", columns=["input_ids", "labels"])
    packs = inputs["format"] / PACKS
    train = packed_rows(examples, read(packs)["pack"].to_numpy()) if packs.exists() else Dataset(examples)
    validation = read(inputs["format"] / "validation", columns=["input_ids", "labels"]).to_pylist()
    records: list[dict[str, Any]] = []
    figures: dict[str, Any] = {"packed_rows": train.num_rows, "precision": "bf16" if uses_bf16(config) else "fp32"}
    for system in ("tuned", "scratch") if config.scratch_control else ("tuned",):
        log.info("%s: %d rows, from %s", system, train.num_rows, STARTS[system])
        began = time.perf_counter()
        make = kind.load if system == "tuned" else partial(kind.from_scratch, seed=config.seed)
        trainer = _train(system, kind, make(inputs["base"], labels=labels), config, train, validation, out / RESUME)
        _save(trainer.model, inputs["base"], out / system)
        records += history(system, trainer.state.log_history)
        figures[system] = {
            "steps": trainer.state.global_step,
            "best_step": int(Path(trainer.state.best_model_checkpoint).name.rpartition("-")[2]),
            "best_validation_loss": trainer.state.best_metric,
            "seconds": round(time.perf_counter() - began, 2),
        }
    writer = ShardWriter(out / "history", HISTORY)
    writer.write(pa.Table.from_pylist(records, schema=HISTORY))
    writer.close()
    return Summary(rows_in=examples.num_rows, rows_kept=examples.num_rows, figures=figures)


def packed_rows(examples: pa.Table, packs: np.ndarray) -> Dataset:
    """Join the examples (input_ids, labels) of each pack into one row: input_ids, labels, position_ids.

    Positions begin anew with each example, and the first token of an example is not supervised, since the one before
    it belongs to another document.
    """
    rows: list[dict[str, list[int]]] = [
        {"input_ids": [], "labels": [], "position_ids": []} for _ in range(packs.max() + 1)
    ]
    for example, pack in zip(examples.to_pylist(), packs, strict=True):
        row = rows[pack]
        row["input_ids"] += example["input_ids"]
        row["labels"] += [IGNORE_INDEX, *example["labels"][1:]]
        row["position_ids"] += range(len(example["input_ids"]))
    return Dataset(pa.Table.from_pylist(rows))


def _save(model: PreTrainedModel, base: Path, folder: Path) -> None:
    """Write `model` as safetensors in the precision that the base model is stored in."""
    stored = AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or torch.float32
    model.to(stored).save_pretrained(folder)


def uses_bf16(config: FineTuneConfig) -> bool:
    """Whether the forward pass runs in bfloat16; `auto` is yes where the machine has instructions for it."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _train(
    system: str,
    family: ModuleType,
    model: PreTrainedModel,
    config: FineTuneConfig,
    train: Dataset,
    validation: list[dict[str, Any]],
    resume: Path,
) -> TokenTrainer:
    """Train to the end and load the best checkpoint."""
    checkpoints = resume / system
    callbacks = [TrainingLog(system)]
    if config.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience, config.early_stopping_threshold))
    trainer = TokenTrainer(
        family=family,
        model=model,
        args=_arguments(config, train.num_rows, checkpoints),
        train_dataset=train,
        eval_dataset=validation,
        label_smoothing=config.label_smoothing,
        callbacks=callbacks,
    )
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint:
        log.info("%s: goes on from %s", system, checkpoint.name)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def _arguments(config: FineTuneConfig, rows: int, checkpoints: Path) -> TrainingArguments:
    total = steps(config, rows)
    validations = max(1, round(config.evals_per_epoch * (config.epochs if not config.max_steps else 1)))
    every = max(1, math.ceil(total / validations))
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=config.per_device_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type="constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        bf16=uses_bf16(config),
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, every // 4),
        logging_nan_inf_filter=False,
        seed=config.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
