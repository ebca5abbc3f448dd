"""Sections of the data stages: collect, clean, split."""

from pathlib import PurePosixPath
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.config.section import Section
from tasks.filters import FILTERS
from tasks.registry import Registry
from tasks.repairs import REPAIRS

Params = dict[str, bool | int | float | str | list[str]]


class FieldMap(Section):
    """Which field of a row holds what; an empty name means that the source has no such field."""

    instruction: str = Field("instruction", min_length=1, description="Field with the instruction.")
    input: str = Field("", description="Field with the input that the instruction speaks of.")
    output: str = Field("output", min_length=1, description="Field with the answer.")
    system: str = Field("", description="Field with the system message.")
    task: str = Field("", description="Field with the name of the task.")
    group: str = Field("", description="Field with the group; rows of one group never straddle two splits.")
    label: str = Field("", description="Field with the class label.")


class HubDataset(Section):
    """A dataset on the Hugging Face Hub; it is streamed, not kept."""

    dataset: str = Field(min_length=1, description="Name on the Hub, such as owner/name.")
    config: str = Field("", description="Configuration (subset); empty: the dataset's only one.")
    split: str = Field("train", min_length=1, description="Split of the dataset that is read.")
    revision: str = Field("main", min_length=1, description="Branch, tag or commit; a commit makes runs repeatable.")


class SourceConfig(Section):
    """One source of raw instruction data: files, or a dataset on the Hub."""

    path: str = Field(
        "",
        description=(
            "File, folder or glob: .jsonl, .json, .csv, .tsv or .parquet, each also as .gz or .zst; relative to the "
            "working directory, or a URL that fsspec opens, such as s3://bucket/folder."
        ),
    )
    format: Literal[
        "auto",
        "alpaca",
        "prompt_completion",
        "question_answer",
        "messages",
        "sharegpt",
        "history",
        "classification",
        "fields",
    ] = Field(
        "auto",
        description="Shape of a row; auto looks at the field names of all rows and refuses to guess between two.",
    )
    limit: int | None = Field(None, ge=1, description="Read at most this many rows; empty: all.")
    weight: float | None = Field(
        None,
        gt=0,
        description=(
            "Share of the mix, relative to the weights of the other sources: the most rows that give these "
            "proportions are kept, none twice, after max_per_task; empty: all rows, outside the mix."
        ),
    )
    name: str = Field("", description="Name in artifacts and reports; empty: the last part of the path.")
    task: str = Field("", description="Task of the rows that name none; empty: the source's name.")
    split: Literal["auto", "train", "validation", "test"] = Field(
        "auto", description="Split of all its rows; auto: by the hash of each row's group."
    )
    fields: FieldMap | None = Field(
        None, title="Fields", description="With format: fields, which field of a row holds what."
    )
    hub: HubDataset | None = Field(None, title="Hub", description="Instead of path: a dataset on the Hugging Face Hub.")

    @model_validator(mode="after")
    def _fields_go_with_their_format(self) -> Self:
        if (self.fields is not None) != (self.format == "fields"):
            raise ValueError("'fields' and 'format: fields' go together: give both or neither")
        return self

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        if bool(self.path) == (self.hub is not None):
            raise ValueError("a source has either a 'path' or a 'hub' dataset")
        return self

    @model_validator(mode="after")
    def _held_out_rows_are_outside_the_mix(self) -> Self:
        if self.weight is not None and self.split in ("validation", "test"):
            raise ValueError("'weight' is a share of what is trained on: a source bound to validation or test has none")
        return self

    @field_validator("path")
    @classmethod
    def _has_no_secret(cls, path: str) -> str:
        scheme, mark, rest = path.partition("://")
        if mark and ("@" in rest.split("/", 1)[0] or (scheme.startswith("http") and "?" in rest)):
            raise ValueError("holds a password or a token, which manifests would show: give it in the environment")
        return path

    @property
    def label(self) -> str:
        """The name it goes by."""
        place = self.hub.dataset if self.hub else self.path
        return self.name or PurePosixPath(place.rstrip("/")).name


class CollectConfig(Section):
    """Read the sources into one table of examples."""

    sources: list[SourceConfig] = Field(min_length=1, description="The files and datasets to read.")
    max_per_task: int | None = Field(
        None, ge=1, description="Keep at most this many rows of a task, chosen by hash; empty: all."
    )
    seed: int = Field(0, ge=0, description="Another seed makes another choice for max_per_task and weight.")
    max_reject_ratio: float = Field(
        0.05, ge=0, le=1, description="Stop when more than this share of a source's rows is unreadable."
    )
    max_row_bytes: int = Field(
        4_000_000, ge=1, le=1_000_000_000, description="Reject a row longer than this, in bytes of UTF-8."
    )
    max_shrink_ratio: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Stop when a source has lost more than this share of its rows since it was last read.",
    )
    on_source_change: Literal["stop", "accept"] = Field(
        "stop",
        description="What to do when a source lost a column, changed a type or its format, or shrank: stop, or go on.",
    )

    @field_validator("sources")
    @classmethod
    def _names_are_unique(cls, sources: list[SourceConfig]) -> list[SourceConfig]:
        labels = [source.label for source in sources]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two sources go by the name {twice[0]!r}: give one of them another 'name'")
        return sources


class Chosen(Section):
    """Something chosen by name; `registry` knows the names and their parameters."""

    registry: ClassVar[Registry]

    name: str = Field(description="Its name.")
    params: Params = Field({}, description="Its parameters; defaults hold for the others.")

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        self.registry.check(self.name, self.params)
        return self


class RepairConfig(Chosen):
    """One repair of the clean stage."""

    registry = REPAIRS

    name: str = Field(description="Its name.", json_schema_extra={"enum": REPAIRS.names()})


class FilterConfig(Chosen):
    """One filter of the clean stage."""

    registry = FILTERS

    name: str = Field(
        description="Its name, and the reason of the rows that it rejects.", json_schema_extra={"enum": FILTERS.names()}
    )


Policy = Literal["keep_first", "keep_longest", "drop_all", "keep_all"]
"""Which of several rows stay: the first, the one with the longest answer, none of them, or all."""


class Similarity(Section):
    """When two texts are near-duplicates: by the Jaccard similarity of their sets of n-grams."""

    threshold: float = Field(0.8, gt=0, le=1, description="Least Jaccard similarity (0 to 1) of two near-duplicates.")
    unit: Literal["words", "characters"] = Field("words", description="What an n-gram is made of.")
    ngram: int = Field(3, ge=1, le=64, description="Words or characters in an n-gram.")


class NearDuplicatesConfig(Similarity):
    """Rows that are nearly the same: found by MinHash, verified by exact Jaccard similarity."""

    policy: Policy = Field("keep_first", description="Which of several near-duplicates stay.")
    asked_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description=(
            "Least similarity of instruction and output alone: other questions about one long input are no duplicates."
        ),
    )


class DecontaminateConfig(Section):
    """Drop the rows that hold a piece of a benchmark."""

    against: list[str] = Field(
        [], description="Files, folders or globs of benchmarks, of any format that collect reads."
    )
    ngram_words: int = Field(
        13, ge=1, description="A row that shares this many words in a row with a benchmark is dropped."
    )


class CleanConfig(Section):
    """Repair what can be repaired, and drop the rows that would teach the model something wrong."""

    filters: list[FilterConfig] = Field(
        [
            FilterConfig(name="empty"),
            FilterConfig(name="placeholder"),
            FilterConfig(name="broken_text"),
            FilterConfig(name="too_short"),
            FilterConfig(name="too_long"),
            FilterConfig(name="truncated"),
        ],
        description="Filters in order; a row is rejected with the name of the first one that it fails.",
    )
    duplicates: Policy = Field(
        "keep_first",
        description="Rows whose whole content is equal after Unicode and space normalisation: which stay.",
    )
    near_duplicates: NearDuplicatesConfig = Field(NearDuplicatesConfig(), description="Rows that are nearly the same.")
    conflicts: Policy = Field("keep_all", description="Rows with the same prompt and different answers: which stay.")
    decontaminate: DecontaminateConfig = Field(DecontaminateConfig(), description="Benchmarks to keep out of the data.")
    repairs: list[RepairConfig] = Field(
        [
            RepairConfig(name="fix_text"),
            RepairConfig(name="normalise_newlines"),
            RepairConfig(name="remove_control_characters"),
            RepairConfig(name="remove_invisible"),
            RepairConfig(name="drop_placeholder"),
        ],
        description="Changes of the text, in order, before any filter looks at it; they are counted.",
    )


class SplitConfig(Section):
    """Divide the examples by a hash of their group."""

    validation: float = Field(0.05, ge=0, lt=1, description="Share of the groups that goes to validation.")
    test: float = Field(
        0.05, ge=0, lt=1, description="Share of the groups that goes to test, beside sources bound to it."
    )
    method: Literal["random", "stratified", "grouped", "unseen_instructions"] = Field(
        "grouped",
        description=(
            "grouped: rows of one group, one prompt or nearly the same text share a split; random: only those of one "
            "group or prompt; stratified: as random, with the same shares in each stratum; unseen_instructions: "
            "whole tasks."
        ),
    )
    stratify_by: Literal["task", "label"] = Field("task", description="With stratified: what makes a stratum.")
    seed: int = Field(0, ge=0, description="Another seed gives another division.")
    similarity: Similarity = Field(
        Similarity(threshold=0.7), description="When two texts are nearly the same, for grouped and for the leak."
    )
    max_leak_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Stop when more than this share of validation or test is found again, or nearly, in train.",
    )

    @model_validator(mode="after")
    def _train_gets_something(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation + test must stay below 1 so that train gets rows, got {self.validation + self.test:g}"
            )
        return self
