"""The schema of every config section.

`PipelineConfig` is also the one parameter of the flow, so its fields, defaults, bounds and descriptions are the form
in the Prefect UI.  Defaults are plain values because the form shows nothing for a default factory.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

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
    store: str = Field("data/artifacts", min_length=1, description="Folder of the artifacts.")
    runs: str = Field("data/runs", min_length=1, description="Folder of the run records.")
