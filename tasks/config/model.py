"""Sections of the model stages: the base model, format, fine_tune, evaluate, export."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.config.section import Section
from tasks.metrics import METRICS
from tasks.templates import TEMPLATES


class ModelConfig(Section):
    """The pre-trained model that is tuned."""

    base: str = Field(
        "data/quickstart/base",
        min_length=1,
        description="Local folder, name of a model on the Hugging Face Hub, or package:NAME/FOLDER of a package.",
    )
    revision: str = Field(
        "main", min_length=1, description="Branch, tag or commit of a Hub model; a commit makes runs repeatable."
    )
    family: Literal["auto", "decoder_only", "encoder_decoder", "encoder_classifier"] = Field(
        "auto", description="Model family; auto: as the base's config.json says."
    )
    init: Literal["pretrained", "scratch"] = Field(
        "pretrained",
        description="scratch: only the tokenizer of base is used, and a model is built with random weights.",
    )
    architecture: str = Field(
        "", description="With scratch: its model type, such as llama, t5, bart or bert; empty: that of base."
    )
    sizes: dict[str, bool | int | float | str] = Field(
        {}, description="With scratch: fields of its config.json, such as hidden_size and num_hidden_layers."
    )
    seed: int = Field(0, ge=0, description="With scratch: seed of the random weights.")

    @model_validator(mode="after")
    def _sizes_are_for_scratch(self) -> Self:
        if self.init == "pretrained" and (self.sizes or self.architecture):
            raise ValueError("'architecture' and 'sizes' belong to 'init: scratch'; a pre-trained model has its own")
        return self


class FormatConfig(Section):
    """Render and tokenise the examples."""

    template: str = Field(
        "auto",
        description="Chat template; auto: the tokenizer's own, else what suits it.",
        json_schema_extra={"enum": ["auto", *TEMPLATES]},
    )
    max_seq_length: int = Field(512, ge=8, description="Longest example and packed row, in tokens; see truncation.")
    packing: bool = Field(
        True,
        description="Put several short training examples into one row; attention stays inside each. Decoders only.",
    )
    train_on: Literal["last", "all"] = Field(
        "last", description="Assistant turns that are supervised: the last one, or all (decoders only)."
    )
    truncation: Literal["reject", "cut_prompt", "cut_output"] = Field(
        "reject",
        description=(
            "What to do with a longer example: reject it, shorten its history and input, or cut the end of its answer."
        ),
    )
    max_reject_ratio: float = Field(
        0.2, ge=0, le=1, description="Stop when more than this share of the rows cannot be used."
    )

    @field_validator("template")
    @classmethod
    def _template_is_known(cls, template: str) -> str:
        if template != "auto" and template not in TEMPLATES:
            raise ValueError(f"unknown template {template!r}; known: auto, {', '.join(TEMPLATES)}")
        return template


class LoraConfig(Section):
    """The adapter of the methods lora, dora and qlora (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(16, ge=1, description="Rank of the update of each matrix.")
    alpha: float = Field(32.0, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the update.")
    target_modules: list[str] = Field(
        [], description="Names of the linear layers that get one; empty: all but the output layer."
    )


class FineTuneConfig(Section):
    """Tune the base model on the formatted examples."""

    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    epochs: float = Field(3.0, gt=0, description="Passes over the training split.")
    per_device_batch_size: int = Field(
        8, ge=1, description="Rows (packed rows with packing) per forward pass and device; halved when memory runs out."
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="Forward passes per optimizer step.")
    max_steps: int = Field(0, ge=0, description="Stop after this many optimizer steps; 0: no limit but epochs.")
    method: Literal["full", "lora", "dora", "qlora"] = Field(
        "full", description="Train all weights, or an adapter; qlora: on a base of 4 bits, which needs CUDA."
    )
    runs_on: Literal["here", "gpu"] = Field(
        "here", description="here: in the process of the run; gpu: on a worker of the work pool gpu."
    )
    scratch_control: bool = Field(
        False,
        description="Also tune a randomly initialised copy, to show what pre-training contributed.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the forward pass; auto: bf16 where a short measurement finds it faster."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, about a third slower."
    )
    optimizer: Literal["adamw", "adam", "sgd", "adafactor", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit needs bitsandbytes and CUDA."
    )
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="Learning rate after the warm-up."
    )
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises from 0."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay; decoupled in adamw, adamw_8bit and adafactor.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread evenly over the vocabulary, or over the labels."
    )
    neftune_noise_alpha: float = Field(
        0.0, ge=0, description="Noise on the embeddings while training (NEFTune); 0: none, 5 is usual."
    )
    attn_implementation: Literal["sdpa", "flex_attention"] = Field(
        "sdpa",
        description="Attention kernel; flex_attention skips what packed documents do not see of each other, on CUDA.",
    )
    evals_per_epoch: int = Field(2, ge=1, description="Validations, each with a checkpoint, per epoch.")
    validation_max_rows: int | None = Field(
        1000, ge=1, description="Validate on at most this many rows, chosen by hash; empty: all."
    )
    metric_for_best_model: str = Field(
        "loss",
        description="What of the validation decides which checkpoint is kept: loss, or a metric.",
        json_schema_extra={"enum": ["loss", *METRICS]},
    )
    early_stopping_patience: int = Field(
        3, ge=0, description="Stop after this many validations without improvement; 0: never."
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="Least change of metric_for_best_model that counts as improvement."
    )
    processes: int = Field(1, ge=1, description="Training processes; more than one run under accelerate launch.")
    accelerate: str = Field(
        "", description="With several processes: a config file of accelerate; empty: configs/accelerate/ddp.yaml."
    )
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        [], description="Experiment trackers that are told of losses; each must be installed."
    )
    seed: int = Field(0, ge=0, description="Seed of data order, dropout and random initialisation.")
    lora: LoraConfig = Field(LoraConfig(), description="The adapter, with lora, dora and qlora.")

    @field_validator("metric_for_best_model")
    @classmethod
    def _metric_is_known(cls, metric: str) -> str:
        if metric != "loss" and metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; known: loss, {', '.join(METRICS)}")
        return metric


class EvaluateConfig(Section):
    """Ask base and tuned model for the answers of the test split."""

    metrics: list[Annotated[str, Field(json_schema_extra={"enum": list(METRICS)})]] = Field(
        [], description="What the answers are scored with; empty: the metrics of the model family."
    )
    max_rows: int | None = Field(None, ge=1, description="Evaluate at most this many rows, chosen by hash; empty: all.")
    max_new_tokens: int = Field(128, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(32, ge=1, description="Prompts answered at a time.")

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, metrics: list[str]) -> list[str]:
        if unknown := [metric for metric in metrics if metric not in METRICS]:
            raise ValueError(f"unknown metric {unknown[0]!r}; known: {', '.join(METRICS)}")
        return metrics


class ExportConfig(Section):
    """Write the tuned model in the formats that are asked for."""

    formats: list[Literal["huggingface"]] = Field(["huggingface"], min_length=1, description="Formats to write.")
    parity_rows: int = Field(
        64, ge=1, description="Test rows whose answers must be identical before the export is published."
    )
