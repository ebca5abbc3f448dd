"""The seven stages on small data and a tiny model, as the flow runs them but without its server; a run can be killed.

The fork server imports this module, so that a run begins without the seconds that its imports cost.
"""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from conftest import ROWS, SIZES, write_jsonl

from faults.matrix import ROOT
from flows.runtime import run_stage
from tasks import base_model
from tasks.config import ModelConfig, PipelineConfig
from tasks.plan import look_up
from tasks.stages import STAGES, Stage
from tasks.store import ArtifactRef, ArtifactStore

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["faults.imports", "faults.pipeline"])


def settings(home: Path) -> dict[str, Any]:
    """The config of a run in `home`: 273 rows, three of them bad, and a model of 130,000 parameters."""
    home.mkdir(parents=True, exist_ok=True)
    sizes = ModelConfig(
        base=str(ROOT / "data/quickstart/base"), init="scratch", architecture="llama", sizes=SIZES["llama"]
    )
    dirty = [*ROWS, "{broken", ROWS[0], {"instruction": "Say nothing.", "output": " "}]
    return {
        "name": "tiny",
        "model": {"base": str(base_model.resolve(sizes, home))},
        "collect": {"sources": [{"path": str(write_jsonl(home / "colours.jsonl", dirty))}]},
        "split": {"validation": 0.1, "test": 0.1},
        "format": {"max_seq_length": 64},
        "fine_tune": {"epochs": 1.0, "learning_rate": 0.01, "precision": "fp32", "scratch_control": False},
        "evaluate": {"max_new_tokens": 8},
        "export": {"parity_rows": 8},
        "engine": {"processes": 1},
        "store": str(home / "artifacts"),
        "runs": str(home / "runs"),
    }


def in_store(raw: dict[str, Any], store: Path) -> PipelineConfig:
    """The same run in another store."""
    return PipelineConfig.model_validate(raw | {"store": str(store), "runs": str(store.parent / "runs")})


def run(config: PipelineConfig, say: Callable[..., None] = lambda *_: None) -> dict[str, ArtifactRef]:
    """Bring every stage to its artifact, from verified inputs; says "begins", "cached" or "made" with the stage."""
    store, refs = ArtifactStore(config.store), {}
    for stage in STAGES.values():
        say("begins", stage.name)
        refs[stage.name] = _run(stage, config, store, refs, say)
    return refs


def _run(
    stage: Stage, config: PipelineConfig, store: ArtifactStore, refs: dict[str, ArtifactRef], say: Callable[..., None]
) -> ArtifactRef:
    inputs = {name: refs[name] for name in stage.inputs}
    step = look_up(stage, config, inputs, store)
    if step.ref is not None:
        say("cached", stage.name)
        return step.ref
    for name in [name for name, ref in inputs.items() if not store.verify(ref)]:
        inputs[name] = refs[name] = _run(STAGES[name], config, store, refs, say)
    ref = run_stage(stage, config, look_up(stage, config, inputs, store), inputs).ref
    say("made", stage.name)
    return ref
