"""The record of a run: complete, documented, written for failed runs too."""

import json
from pathlib import Path

import pytest

from tasks.report import write_report
from tasks.run_record import RunFolder, RunRecord, StageRecord, stage_record
from tasks.store import Manifest

DOCS = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text()

MANIFEST = Manifest(
    stage="clean", key="k" * 32, digest="d" * 64, settings={}, inputs={}, code={}, versions={}, rows_in=10, rows_kept=8,
    rejected={"empty": 2}, figures={}, seconds=1.5, peak_memory_bytes=123, created="2026-01-01T00:00:00Z",
    created_by="attune 0", files=[],
)  # fmt: skip


@pytest.mark.parametrize("model", [RunRecord, StageRecord, Manifest])
def test_every_field_is_documented(model):
    missing = [name for name in model.model_fields if f"`{name}`" not in DOCS]
    assert not missing


def test_a_run_can_be_read_at_any_moment(tmp_path):
    folder = RunFolder(tmp_path, "nightly", {"name": "nightly"})
    begun = RunRecord.model_validate_json((folder.path / "run.json").read_text())
    assert (begun.state, begun.stages, begun.ended) == ("running", [], "")
    folder.add(stage_record(MANIFEST, cached=False, why="never ran"), tmp_path / "artifact")
    (stage,) = json.loads((folder.path / "run.json").read_text())["stages"]
    assert stage["rejected"] == {"empty": 2} and stage["rows_in"] == 10 and stage["peak_memory_bytes"] == 123
    folder.end("source x.jsonl: is empty")
    write_report(folder)
    ended = RunRecord.model_validate_json((tmp_path / "latest" / "run.json").read_text())
    assert (ended.state, ended.error) == ("failed", "source x.jsonl: is empty")
    assert "source x.jsonl: is empty" in (tmp_path / "latest" / "report.md").read_text()


def test_two_runs_in_one_second_have_folders_of_their_own(tmp_path):
    first, second = (RunFolder(tmp_path, "nightly", {}) for _ in range(2))
    assert first.path != second.path
    assert (tmp_path / "latest").resolve() == second.path.resolve()


def test_evaluation_and_export_are_told_in_their_own_fields(tmp_path):
    folder = RunFolder(tmp_path, "nightly", {})
    evaluation = {"tuned": {"test": {"loss": {"value": 1.0, "rows": 3}}}}
    evaluated = MANIFEST.model_copy(update={"stage": "evaluate", "figures": {"evaluation": evaluation, "samples": []}})
    folder.add(stage_record(evaluated, cached=False, why=""), tmp_path / "e")
    exported = MANIFEST.model_copy(update={"stage": "export", "figures": {"formats": ["huggingface"]}})
    (tmp_path / "x" / "huggingface").mkdir(parents=True)
    folder.add(stage_record(exported, cached=False, why=""), tmp_path / "x")
    record = json.loads((folder.path / "run.json").read_text())
    assert record["evaluation"] == evaluation
    assert record["export"] == {"path": str(tmp_path / "x"), "formats": ["huggingface"]}
    assert (folder.path / "model").resolve() == (tmp_path / "x" / "huggingface").resolve()
