"""The schema of every config section.

`PipelineConfig` is also the one parameter of the flow, so its fields, defaults, bounds and descriptions are the form
in the Prefect UI.  Defaults are plain values because the form shows nothing for a default factory.
"""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.filters import FILTERS
from tasks.metrics import METRICS
from tasks.templates import TEMPLATES

Params = dict[str, bool | int | float | str]


class Section(BaseModel):
    """A config section: strict types, no unknown keys, never changed after it was read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The pre-trained model that is tuned."""

    base: str = Field(
        "data/quickstart/base",
        min_length=1,
        description="Local folder, or the name of a model on the Hugging Face Hub.",
    )
    revision: str = Field(
        "main", min_length=1, description="Branch, tag or commit of a Hub model; a commit makes runs repeatable."
    )


class FieldMap(Section):
    """Which field of a row holds what; an empty name means that the source has no such field."""

    instruction: str = Field("instruction", min_length=1, description="Field with the instruction.")
    input: str = Field("", description="Field with the input that the instruction speaks of.")
    output: str = Field("output", min_length=1, description="Field with the answer.")
    system: str = Field("", description="Field with the system message.")
    task: str = Field("", description="Field with the name of the task.")
    group: str = Field("", description="Field with the group; rows of one group never straddle two splits.")
    label: str = Field("", description="Field with the class label.")


class SourceConfig(Section):
    """One file of raw instruction data."""

    path: str = Field(
        min_length=1, description="File: .jsonl, .json, .csv, .tsv or .parquet; relative to the working directory."
    )
    name: str = Field("", description="Name in artifacts and reports; empty: the name of the file.")
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "fields"] = Field(
        "auto",
        description="Shape of a row; auto looks at the field names of all rows and refuses to guess between two.",
    )
    fields: FieldMap | None = Field(None, description="With format: fields, which field of a row holds what.")
    task: str = Field("", description="Task of the rows that name none; empty: the source's name.")
    split: Literal["auto", "train", "validation", "test"] = Field(
        "auto", description="Split of all its rows; auto: by the hash of each row's group."
    )
    limit: int | None = Field(None, ge=1, description="Read at most this many rows; empty: all.")

    @model_validator(mode="after")
    def _fields_go_with_their_format(self) -> Self:
        if (self.fields is not None) != (self.format == "fields"):
            raise ValueError("'fields' and 'format: fields' go together: give both or neither")
        return self

    @property
    def label(self) -> str:
        """The name it goes by."""
        return self.name or Path(self.path).name


class CollectConfig(Section):
    """Read the sources into one table of examples."""

    sources: list[SourceConfig] = Field(min_length=1, description="The files to read.")
    max_reject_ratio: float = Field(
        0.05, ge=0, le=1, description="Stop when more than this share of a source's rows is rejected."
    )
    max_row_chars: int = Field(
        1_000_000, ge=1, le=1_000_000_000, description="Reject a row longer than this, in characters."
    )

    @field_validator("sources")
    @classmethod
    def _names_are_unique(cls, sources: list[SourceConfig]) -> list[SourceConfig]:
        labels = [source.label for source in sources]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two sources go by the name {twice[0]!r}: give one of them another 'name'")
        return sources


class FilterConfig(Section):
    """One filter of the clean stage."""

    name: str = Field(description=f"One of: {', '.join(FILTERS.names())}.")
    params: Params = Field({}, description="Parameters of the filter; its defaults hold for the others.")

    @model_validator(mode="after")
    def _filter_is_known(self) -> Self:
        FILTERS.check(self.name, self.params)
        return self


class CleanConfig(Section):
    """Drop the rows that would teach the model something wrong."""

    filters: list[FilterConfig] = Field(
        [
            FilterConfig(name="empty"),
            FilterConfig(name="broken_text"),
            FilterConfig(name="too_short"),
            FilterConfig(name="too_long"),
        ],
        description="Filters in order; a row is rejected with the name of the first one that it fails.",
    )
    duplicates: Literal["keep_first", "keep_all"] = Field(
        "keep_first",
        description="What to do with rows whose whole content is equal after Unicode and space normalisation.",
    )


class SplitConfig(Section):
    """Divide the examples by a hash of their group."""

    validation: float = Field(0.05, ge=0, lt=1, description="Share of the groups that goes to validation.")
    test: float = Field(
        0.05, ge=0, lt=1, description="Share of the groups that goes to test, beside sources bound to it."
    )
    seed: int = Field(0, ge=0, description="Another seed gives another division.")

    @model_validator(mode="after")
    def _train_gets_something(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation + test must stay below 1 so that train gets rows, got {self.validation + self.test:g}"
            )
        return self


class FormatConfig(Section):
    """Render and tokenise the examples."""

    template: str = Field(
        "auto", description=f"Chat template: auto (the tokenizer's own, else what suits it) or {', '.join(TEMPLATES)}."
    )
    max_seq_length: int = Field(
        512, ge=8, description="Longest example and packed row, in tokens; longer examples are rejected."
    )
    packing: bool = Field(
        True, description="Put several short training examples into one row; attention stays inside each."
    )

    @field_validator("template")
    @classmethod
    def _template_is_known(cls, template: str) -> str:
        if template != "auto" and template not in TEMPLATES:
            raise ValueError(f"unknown template {template!r}; known: auto, {', '.join(TEMPLATES)}")
        return template


class FineTuneConfig(Section):
    """Tune the base model on the formatted examples."""

    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate of AdamW.")
    epochs: float = Field(3.0, gt=0, description="Passes over the training split.")
    max_steps: int = Field(0, ge=0, description="Stop after this many optimizer steps; 0: no limit but epochs.")
    per_device_batch_size: int = Field(
        8, ge=1, description="Rows (packed rows with packing) per forward pass and device."
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="Forward passes per optimizer step.")
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises from 0."
    )
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="Learning rate after the warm-up."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread evenly over the vocabulary."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the forward pass; auto: bf16 where the machine has it."
    )
    evals_per_epoch: int = Field(2, ge=1, description="Validations, each with a checkpoint, per epoch.")
    early_stopping_patience: int = Field(
        3, ge=0, description="Stop after this many validations without improvement; 0: never."
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="Least fall of the validation loss, in nats, that counts as improvement."
    )
    scratch_control: bool = Field(
        False,
        description="Also tune a randomly initialised copy, to show what pre-training contributed.",
    )
    seed: int = Field(0, ge=0, description="Seed of data order, dropout and random initialisation.")

    def steps(self, rows: int) -> int:
        """Optimizer steps of a whole training over `rows` rows (packed rows with packing)."""
        batches = math.ceil(rows / self.per_device_batch_size)
        return self.max_steps or math.ceil(math.ceil(batches / self.gradient_accumulation_steps) * self.epochs)


class EvaluateConfig(Section):
    """Ask base and tuned model for the answers of the test split."""

    metrics: list[str] = Field(["exact_match", "rouge_l"], min_length=1, description=f"Some of: {', '.join(METRICS)}.")
    max_new_tokens: int = Field(128, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(32, ge=1, description="Prompts answered at a time.")
    max_rows: int | None = Field(None, ge=1, description="Evaluate at most this many rows, chosen by hash; empty: all.")

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


class PipelineConfig(Section):
    """A whole run, from raw data to the exported model."""

    name: str = Field(
        "pipeline",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="Name of the run: lower case, digits, dash, underscore.",
    )
    model: ModelConfig = Field(ModelConfig(), description="The base model.")
    collect: CollectConfig = Field(description="Raw data.")
    clean: CleanConfig = Field(CleanConfig(), description="Filters and duplicates.")
    split: SplitConfig = Field(SplitConfig(), description="Train, validation and test.")
    format: FormatConfig = Field(FormatConfig(), description="Template, tokens and packing.")
    fine_tune: FineTuneConfig = Field(FineTuneConfig(), description="Training.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Metrics and answers.")
    export: ExportConfig = Field(ExportConfig(), description="The deliverable.")
    store: str = Field("data/artifacts", min_length=1, description="Folder of the artifacts.")
    runs: str = Field("data/runs", min_length=1, description="Folder of the run records.")
