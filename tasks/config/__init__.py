"""The schema of every config section.

`PipelineConfig` is also the one parameter of the flow, so its fields, defaults, bounds and descriptions are the form
in the Prefect UI.  Defaults are plain values because the form shows nothing for a default factory.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tasks.config.data import (
    CleanConfig,
    CollectConfig,
    DecontaminateConfig,
    FieldMap,
    FilterConfig,
    HubDataset,
    NearDuplicatesConfig,
    Policy,
    RepairConfig,
    Similarity,
    SourceConfig,
    SplitConfig,
)
from tasks.config.model import EvaluateConfig, ExportConfig, FineTuneConfig, FormatConfig, LoraConfig, ModelConfig
from tasks.config.section import Section
from tasks.config.sweep import SweepConfig, SweepParameter, allowed_in
from tasks.disk import digest_json

__all__ = [
    "CleanConfig",
    "CollectConfig",
    "DecontaminateConfig",
    "EngineConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FieldMap",
    "FilterConfig",
    "FineTuneConfig",
    "FormatConfig",
    "HubDataset",
    "LoraConfig",
    "ModelConfig",
    "NearDuplicatesConfig",
    "PipelineConfig",
    "Policy",
    "RepairConfig",
    "Section",
    "Similarity",
    "SourceConfig",
    "SplitConfig",
    "SweepConfig",
    "SweepParameter",
]


_SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*:[a-z0-9][a-z0-9-]*")
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/(?!\.{1,2}(/|$))[\w.=-]+)*/?", re.ASCII)


class EngineConfig(Section):
    """What the shards of collect, clean and split are worked on with; the artifacts are the same for each."""

    kind: Literal["local", "ray"] = Field("local", description="local: processes of this machine; ray: a Ray cluster.")
    processes: int = Field(0, ge=0, description="With local: most processes at a time; 0: one per core.")
    address: str = Field("auto", min_length=1, description="With ray: address of the running cluster.")


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
    engine: EngineConfig = Field(EngineConfig(), description="Where shards are worked on.")
    sweep: Annotated[SweepConfig, AfterValidator(allowed_in)] = Field(
        SweepConfig(), description="The search of `attune sweep`; a run does not use it."
    )
    secrets: dict[str, str] = Field(
        {}, description="Environment variable -> Prefect Secret block that it is loaded from when it is not set."
    )
    max_restarts: int = Field(
        2, ge=0, description="How often a deployed run that crashed is begun again; it goes on from where it was."
    )
    store: str = Field("data/artifacts", min_length=1, description="Folder of the artifacts, or s3://bucket/prefix.")
    cache: str = Field(
        "data/cache", min_length=1, description="Folder of the copies of artifacts, where the store is a bucket."
    )
    runs: str = Field("data/runs", min_length=1, description="Folder of the run records.")

    @model_validator(mode="after")
    def _plain_bucket(self) -> Self:
        """Checked here and not at the field, whose value would stand in the message: it may hold a password."""
        if "://" in self.store and not _BUCKET.fullmatch(self.store):
            raise ValueError(
                "store: is a folder or s3://bucket/prefix (letters, digits and . _ - = /), without a user, a password "
                "or a query; endpoint and keys come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …)"
            )
        return self

    @model_validator(mode="after")
    def _secrets_by_name(self) -> Self:
        """Checked here for the same reason."""
        if wrong := [name for name, block in self.secrets.items() if not _SECRET.fullmatch(f"{name}:{block}")]:
            raise ValueError(
                f"secrets.{wrong[0]}: takes the name of a Secret block (lower case, digits, dashes), not the secret; "
                "its key is the name of an environment variable"
            )
        return self

    @property
    def store_folder(self) -> Path:
        """The folder on this machine of the artifacts, or of the copies of those in the bucket."""
        if "://" not in self.store:
            return Path(self.store)
        url = self.store.rstrip("/")
        return Path(self.cache) / f"{re.sub('[^a-z0-9]+', '-', url)}-{digest_json(url)[:8]}"
