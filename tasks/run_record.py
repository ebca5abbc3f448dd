"""The record of a run: `run.json`, which says for machines what the closing table says for people."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.disk import write_whole
from tasks.layout import CURVES
from tasks.store import ArtifactRef, Manifest

SHOWN = ("fine_tune", "export")
"""Stages of whose artifacts a run keeps something: the loss curves, and the link to the model."""


class StageRecord(BaseModel):
    """What one stage did in this run."""

    model_config = ConfigDict(extra="forbid")

    stage: str = Field(description="Name of the stage.")
    key: str = Field(description="Key of its artifact.")
    digest: str = Field(description="Digest of the artifact's content.")
    cached: bool = Field(description="True when the artifact was there and the stage did not run.")
    why: str = Field(description="Why it ran, or `cached`.")
    rows_in: int = Field(description="Rows that entered.")
    rows_kept: int = Field(description="Rows that were kept.")
    rejected: dict[str, int] = Field(description="Rows rejected, by reason.")
    seconds: float = Field(description="Wall time when it ran, which may have been in an earlier run.")
    peak_memory_bytes: int = Field(description="Peak resident memory of the process while it ran.")
    figures: dict[str, Any] = Field(description="Figures of the stage's own, such as tokens or best step.")

    @property
    def ref(self) -> ArtifactRef:
        """Reference to its artifact."""
        return ArtifactRef(self.stage, self.key, self.digest)


class Score(BaseModel):
    """A mean over rows."""

    value: float
    rows: int


class ExportRecord(BaseModel):
    """Where the deliverable lies."""

    path: str = Field(description="Folder of the export artifact.")
    formats: list[str] = Field(description="Formats in it, each a folder of that name.")


class RunRecord(BaseModel):
    """A whole run; later versions only add fields."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Name in the config.")
    state: Literal["running", "completed", "failed"] = Field(description="How it ended; `running` if it was killed.")
    error: str = Field(description="What failed, or an empty text.")
    started: str = Field(description="UTC, ISO 8601.")
    ended: str = Field(description="UTC, ISO 8601; empty while it runs.")
    config: dict[str, Any] = Field(description="The whole config, defaults included.")
    skipped_runs: int = Field(0, description="Scheduled runs of its deployment that were skipped since the last run.")
    stages: list[StageRecord] = Field(description="The stages that ended, in order.")
    evaluation: dict[str, dict[str, dict[str, Score]]] = Field(
        description="system (base, scratch, tuned) → test, source:… or task:… → metric → value and rows."
    )
    export: ExportRecord | None = Field(description="The deliverable, once it is published.")


def stage_record(manifest: Manifest, *, cached: bool, why: str) -> StageRecord:
    """The record of a stage whose artifact has this manifest."""
    return StageRecord(
        cached=cached, why=why, **manifest.model_dump(include=set(StageRecord.model_fields) - {"cached", "why"})
    )


class RunFolder:
    """`<runs>/<name>-<time>/`, with run.json, report.md and links to the model; `<runs>/latest` points to it."""

    def __init__(self, runs: str | Path, name: str, config: dict[str, Any]) -> None:
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.path = _new_folder(Path(runs), f"{name}-{moment}")
        self.record = RunRecord(
            name=name,
            state="running",
            error="",
            started=_now(),
            ended="",
            config=config,
            stages=[],
            evaluation={},
            export=None,
        )
        self._save()
        _point(self.path.parent / "latest", self.path.name)

    def add(self, record: StageRecord, artifact: Path) -> None:
        """Note a stage that ended, run or cached."""
        self.record.stages = [stage for stage in self.record.stages if stage.stage != record.stage] + [record]
        if record.stage == "evaluate":
            self.record.evaluation = {
                system: {
                    part: {name: Score(**score) for name, score in scores.items()} for part, scores in table.items()
                }
                for system, table in record.figures.pop("evaluation").items()
            }
        if record.stage == "fine_tune":
            shutil.copyfile(artifact / CURVES, self.path / CURVES)
        if record.stage == "export":
            self.record.export = ExportRecord(path=str(artifact), formats=record.figures["formats"])
            _point(self.path / "model", os.path.relpath(artifact / "huggingface", self.path))
        self._save()

    def end(self, error: str = "") -> None:
        """Close the record; with `error` the run has failed."""
        self.record.state, self.record.error, self.record.ended = "failed" if error else "completed", error, _now()
        self._save()

    def _save(self) -> None:
        text = json.dumps(self.record.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(self.path / "run.json", text + "\n")


def _new_folder(runs: Path, name: str) -> Path:
    """A folder that did not exist before; two runs may begin in the same second."""
    runs.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        path = runs / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return path


def _point(link: Path, target: str) -> None:
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
