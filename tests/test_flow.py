"""The flow as Prefect sees it."""

import inspect
import json
from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema

from flows import pipeline as module
from flows.runtime import Run
from tasks.config import CleanConfig, CollectConfig, PipelineConfig, SourceConfig
from tasks.errors import TrainingError
from tasks.plan import look_up
from tasks.stages import STAGES
from tasks.store import ArtifactRef, ArtifactStore


def test_the_flow_calls_the_seven_stages_in_order():
    source = inspect.getsource(module.pipeline.fn)
    places = [source.index(f"{name}(run") for name in STAGES]
    assert len(places) == 7 and places == sorted(places)


def test_the_form_of_the_flow_is_the_config_schema_with_defaults_bounds_and_descriptions():
    schema = parameter_schema(module.pipeline).model_dump_for_openapi()
    assert list(schema["properties"]) == ["config"]
    fine_tune = schema["definitions"]["FineTuneConfig"]["properties"]
    assert fine_tune["learning_rate"]["default"] == 2e-4
    assert fine_tune["learning_rate"]["maximum"] == 1 and fine_tune["learning_rate"]["exclusiveMinimum"] == 0
    assert fine_tune["lr_scheduler"]["enum"] == ["linear", "cosine", "constant"]
    assert all("description" in field for field in fine_tune.values())
    filters = schema["definitions"]["CleanConfig"]["properties"]["filters"]
    assert [chosen["name"] for chosen in filters["default"]] == [chosen.name for chosen in CleanConfig().filters]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    collect = CollectConfig(sources=[SourceConfig(path="x.jsonl")])
    return Run(PipelineConfig(collect=collect, store=str(tmp_path / "store"), runs=str(tmp_path / "runs")))


def test_a_config_that_cannot_be_is_told_in_one_line_and_starts_nothing(tmp_path: Path):
    given = {
        "collect": {"sources": [{"path": "x.jsonl"}]},
        "split": {"validation": 0.6, "test": 0.6},
        "evaluate": {"metrics": ["beauty"]},
        "runs": str(tmp_path / "runs"),
    }
    state = module.pipeline.fn(given)
    assert state.is_failed() and "\n" not in state.message
    assert state.message.startswith("split: validation + test must stay below 1") and "'beauty'" in state.message
    assert not (tmp_path / "runs").exists()


def ended(run: Run) -> tuple[str, str]:
    record = json.loads((run.folder.path / "run.json").read_text())
    return record["state"], record["error"]


def test_an_interrupted_run_has_failed_and_the_interrupt_goes_on(run):
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    assert ended(run) == ("failed", "KeyboardInterrupt")


def test_an_explained_failure_becomes_the_state_of_the_flow_and_a_bug_keeps_its_traceback(run):
    with run:
        raise TrainingError("the loss is nan")
    assert ended(run) == ("failed", "the loss is nan")
    assert run.result().is_failed() and run.result().message == "the loss is nan"
    with pytest.raises(ZeroDivisionError), run:
        raise ZeroDivisionError("a bug")
    assert ended(run) == ("failed", "a bug")


def test_a_gpu_worker_that_would_train_something_else_says_what_differs(tmp_path: Path, tiny_base: Path):
    from flows.fine_tune import fine_tune

    config = PipelineConfig(
        model={"base": str(tiny_base)},
        collect=CollectConfig(sources=[SourceConfig(path="x.jsonl")]),
        store=str(tmp_path / "store"),
        runs=str(tmp_path / "runs"),
    )
    ref = ArtifactRef("format", "key", "digest")
    parts = look_up(STAGES["fine_tune"], config, {"format": ref}, ArtifactStore(config.store)).parts
    asked = parts | {"code": parts["code"] | {"tasks.losses": "another"}}
    state = fine_tune.fn(config, {"format": ref._asdict()}, asked)
    assert state.is_failed()
    assert state.message == "fine_tune: this worker would train something else: code of tasks.losses changed"
