"""The schema of every config section, and `load`, the only reader of YAML.

`PipelineConfig` is also the one parameter of the flow, so its fields, defaults, bounds and descriptions are the form
in the Prefect UI.  Defaults are plain values because the form shows nothing for a default factory.
"""

import math
import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks.errors import ConfigError
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


def load(path: str | Path, overrides: list[str] | None = None) -> PipelineConfig:
    """Read a YAML config with what it extends, apply `section.field=value` overrides, and check all of it.

    Raises ConfigError with one line per mistake: the field's path, what was given and what is allowed.
    """
    raw = _read(Path(path), ())
    for override in overrides or []:
        _apply(raw, override)
    try:
        return PipelineConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "\n".join(_explain(e) for e in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 3e-4 as a number (YAML 1.1 wants 3.0e-4) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in `path`, laid over the one that its `extends:` names (relative to it)."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself")
    try:
        raw = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such config; the shipped ones are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, got {type(raw).__name__}")
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: takes the path of another config, got {parent!r}")
    return _merge(_read(path.parent / parent, (*seen, path.resolve())), raw)


def _yaml(text: str) -> Any:
    """The value that `text` holds; raises YAMLError, also where PyYAML fails otherwise, as on the date 2020-13-45."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (_Loader is a SafeLoader)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: mappings merge key by key, everything else replaces."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"override {override!r}: write section.field=value, such as fine_tune.learning_rate=3e-4")
    *sections, field = path.split(".")
    node: Any = raw
    for section in sections:
        node = _child(node, section, override)
    try:
        value = _yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    if isinstance(node, list):
        node[_position(node, field, override)] = value
    else:
        node[field] = value


def _child(node: Any, name: str, override: str) -> Any:
    """What `name` (a key, or a position in a list) leads to from `node`; a missing section is made."""
    child = node[_position(node, name, override)] if isinstance(node, list) else node.setdefault(name, {})
    if not isinstance(child, (dict, list)):
        raise ConfigError(f"override {override!r}: {name} is not a section")
    return child


def _position(items: list[Any], text: str, override: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise ConfigError(f"override {override!r}: {text!r} is no position in a list of {len(items)}; the first is 0")
    return int(text)


def _explain(error: Any) -> str:
    """One line for one mistake: where, what was given, what is allowed."""
    where = ".".join(str(part) for part in error["loc"]) or "config"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(error['loc'])}"
    if error["type"] == "missing":
        return f"{where}: is required"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = error["input"]
    return f"{where}: {message}" if isinstance(given, (dict, list)) else f"{where}: {message}, got {given!r}"


def _nearest(loc: tuple[int | str, ...]) -> str:
    """`; did you mean …?` or the list of known keys of the section that holds the unknown one."""
    from difflib import get_close_matches

    section: Any = PipelineConfig
    for part in loc[:-1]:
        if isinstance(part, str) and part in getattr(section, "model_fields", {}):
            section = _section_of(section.model_fields[part].annotation)
    known = list(getattr(section, "model_fields", {}))
    close = get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _section_of(annotation: Any) -> Any:
    """The Section inside `annotation`, such as SourceConfig in list[SourceConfig]."""
    inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, Section)]
    return inner[0] if inner else annotation
