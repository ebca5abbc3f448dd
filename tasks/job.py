"""A training as it is told to a process: what it reads, its settings, and what was decided on the way."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainingArguments

from tasks import adapters, precision
from tasks.config import FineTuneConfig
from tasks.disk import digest_json, write_whole
from tasks.errors import ConfigError, TrainingError
from tasks.families import load_family
from tasks.held_out import class_names


@dataclass(frozen=True)
class Job:
    """One training: everything that a process needs to do its part of it."""

    system: str  # tuned or scratch
    family: str
    base: Path
    formatted: Path  # the artifact of format
    config: FineTuneConfig
    checkpoints: Path  # folder that survives a kill

    @property
    def settings(self) -> str:
        """Digest of what it trains with; a checkpoint of other settings does not count."""
        return digest_json(self.config.model_dump(mode="json"))


@dataclass
class Choices:
    """What was decided while training and must be the same when it goes on; `choices.json` beside the checkpoints."""

    precision: str
    batch_size: int  # rows per forward pass and device
    accumulation: int  # forward passes per optimizer step
    out_of_memory: int = 0  # how often memory ran out

    @classmethod
    def read(cls, job: Job) -> "Choices":
        """Those of the training that goes on, or those of the settings, which are kept from now on."""
        config, path = job.config, job.checkpoints / "choices.json"
        if path.exists():
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        rows, passes = config.per_device_batch_size, config.gradient_accumulation_steps
        chosen = cls(precision.choose(config.precision), rows, passes)
        chosen.write(job)
        return chosen

    def write(self, job: Job) -> None:
        """Keep them."""
        job.checkpoints.mkdir(parents=True, exist_ok=True)
        write_whole(job.checkpoints / "choices.json", json.dumps(vars(self)))

    def with_less_memory(self, error: BaseException) -> "Choices":
        """Half of the rows per pass (or the next smaller part that keeps the global batch)."""
        part = next((part for part in range(2, self.batch_size + 1) if self.batch_size % part == 0), 0)
        if not part:
            raise TrainingError(
                f"fine_tune: memory runs out with one row per forward pass ({error}). Lower format.max_seq_length, or "
                "set fine_tune.gradient_checkpointing or fine_tune.method: lora"
            ) from None
        return Choices(self.precision, self.batch_size // part, self.accumulation * part, self.out_of_memory + 1)


def starting_model(job: Job, precision: str) -> PreTrainedModel:
    """The model that training begins with: the base, also with an adapter, or a random initialisation."""
    model = _initial(job, precision)
    if job.config.attn_implementation != "sdpa":  # what every family loads with
        try:
            model.set_attn_implementation(job.config.attn_implementation)
        except ValueError as error:
            raise ConfigError(f"fine_tune.attn_implementation: {error}") from None
    return model


def _initial(job: Job, precision: str) -> PreTrainedModel:
    family, labels = load_family(job.family), class_names(job.formatted)
    torch.manual_seed(job.config.seed)
    if job.system == "scratch":
        return family.from_scratch(job.base, job.config.seed, labels)
    if job.config.method == "full":
        return family.load(job.base, torch.float32, labels)
    return adapters.add(adapters.load_base(job.base, job.family, labels, job.config, precision), job.family, job.config)


def steps(config: FineTuneConfig, rows: int) -> int:
    """Optimizer steps of a whole training over `rows` rows (packed rows with packing)."""
    in_batch = config.per_device_batch_size * config.gradient_accumulation_steps * config.processes
    return config.max_steps or math.ceil(math.ceil(rows / in_batch) * config.epochs)


def arguments(job: Job, choices: Choices, rows: int) -> TrainingArguments:
    """The settings as the Trainer knows them, for so many rows."""
    config = job.config
    total = steps(config, rows)
    validations = max(1, round(config.evals_per_epoch * (config.epochs if not config.max_steps else 1)))
    every = max(1, math.ceil(total / validations))
    return TrainingArguments(
        output_dir=str(job.checkpoints),
        per_device_train_batch_size=choices.batch_size,
        gradient_accumulation_steps=choices.accumulation,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type="constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        neftune_noise_alpha=config.neftune_noise_alpha or None,
        activation_checkpointing=config.gradient_checkpointing,
        bf16=choices.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        metric_for_best_model=config.metric_for_best_model,
        greater_is_better=config.metric_for_best_model != "loss",
        logging_steps=1,  # so that a history that was interrupted is the same as one that was not
        logging_nan_inf_filter=False,
        seed=config.seed,
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
