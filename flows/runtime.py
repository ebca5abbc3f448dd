"""Where a plain stage becomes a Prefect task: look up, run, commit, report.  The only place that applies @task."""

import functools
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.states import Completed, Crashed, Failed

from flows import artifacts, connection, gpu, recovery
from flows.secrets import load_secrets
from tasks import base_model, contract, engine
from tasks.config import PipelineConfig
from tasks.config_file import checked
from tasks.data_report import write_data_report
from tasks.errors import AttuneError, DamagedArtifactError, Interrupted, SourceError, is_disk_trouble
from tasks.ledger import Summary
from tasks.memory import peak_memory
from tasks.plan import Step, look_up, outside_inputs
from tasks.report import write_report
from tasks.run_record import SHOWN, RunFolder, StageRecord, stage_record
from tasks.stages import STAGES, Stage
from tasks.store import ArtifactRef, ArtifactStore, open_store

log = logging.getLogger("attune")
log.setLevel(logging.INFO)

_STOPPED = "stopped by SIGTERM; run the same command again and it goes on from where it was"


class Run:
    """One run of the pipeline: its config, its store, its folder, and the stages that have ended.

    As a context manager it closes the run's record, whatever happens inside.  A failure that attune can explain ends
    there, and `result` tells Prefect of it without a traceback; any other exception goes on.
    """

    def __init__(self, config: PipelineConfig) -> None:
        recovery.end_with_worker()
        load_secrets(config.secrets)
        self.config = config
        self.store = open_store(config)
        self.folder = RunFolder(config.runs, config.name, config.model_dump(mode="json"))
        self.refs: dict[str, ArtifactRef] = {}
        self.pages: dict[str, str] = {}  # stage -> address in the UI
        self._held = ExitStack()
        self.failure: AttuneError | None = None

    def __enter__(self) -> Self:
        self._held.enter_context(self.store.in_use())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self.failure = error if isinstance(error, AttuneError) else None
        with self._held:
            self.folder.end((_STOPPED if kind is TerminationSignal else str(error) or kind.__name__) if kind else "")
            write_report(self.folder)
            write_data_report(self.folder)
            artifacts.show_run(self.folder, self.pages)
        return self.failure is not None

    def result(self) -> State[str]:
        """The flow's final state; its data is the folder of the run's record."""
        if self.failure is not None:
            return _failed(self.failure)
        return Completed(data=str(self.folder.path))

    def stage(self, stage: Stage, inputs: dict[str, ArtifactRef]) -> ArtifactRef:
        """Bring one stage to its artifact: the cached one, or a new one made from verified inputs."""
        step = look_up(stage, self.config, inputs, self.store)
        if step.ref is None:
            damaged = [name for name, ref in inputs.items() if not self.store.verify(ref)]
            inputs = inputs | {name: self._make_again(name) for name in damaged}
            while damaged or (step.memory and not self.store.verify(step.memory)):
                if not damaged:
                    log.warning(
                        "%s: what it remembered was damaged; an older artifact counts, if there is one", stage.name
                    )
                step, damaged = look_up(stage, self.config, inputs, self.store), []
        state = _TASKS[stage.name](self.config, step, inputs, return_state=True)
        record = state.result()
        self.refs[stage.name] = record.ref
        needed = stage.name in SHOWN or (stage.name == "format" and artifacts.looked_at())
        if needed and not self.store.fetch(record.ref):  # damaged in the bucket, and now in quarantine
            return self.stage(stage, inputs)
        folder = self.store.path(record.ref)
        self.folder.add(record, folder)
        connection.wait_for_server()
        task_run = state.state_details.task_run_id
        self.pages[stage.name] = artifacts.show_stage(self.folder.record, stage.name, folder, task_run)
        return record.ref

    def _make_again(self, name: str) -> ArtifactRef:
        """An artifact was damaged behind its manifest's back, and verify has put it into quarantine."""
        stage = STAGES[name]
        if missing := [each for each in stage.inputs if each not in self.refs]:
            raise DamagedArtifactError(
                f"{name}: its artifact {self.refs[name].key} is damaged, and {missing[0]} is not known here to make it "
                "again; run the pipeline again"
            )
        return self.stage(stage, {each: self.refs[each] for each in stage.inputs})


def explained(body: Callable[..., State[str]]) -> Callable[..., State[str]]:
    """The function of a flow, its config checked first; a failure that attune explains becomes its state, in one line.

    Prefect's own check would tell of a mistake in several lines and log every parameter with it.
    """

    @functools.wraps(body)
    def run(config: PipelineConfig, *others: Any, **more: Any) -> State[str]:
        try:
            return body(checked(config), *others, **more)
        except AttuneError as failure:
            return _failed(failure)

    return run


def _failed(failure: AttuneError) -> State[Any]:
    """The state of a flow that could not go on; an interrupted one has crashed, so an automation begins it again."""
    state = Crashed if isinstance(failure, Interrupted) else Failed
    return state(message=str(failure), data=failure)


def as_task(stage: Stage) -> Callable[..., ArtifactRef]:
    """The call of a stage inside the flow: `call(run, *inputs) -> ArtifactRef`, inputs as `stage.inputs` lists them."""

    def call(run: Run, *inputs: ArtifactRef) -> ArtifactRef:
        return run.stage(stage, dict(zip(stage.inputs, inputs, strict=True)))

    return call


def _prefect_task(stage: Stage) -> Task[..., State[StageRecord]]:
    """The Prefect task of a stage: a state named Cached, Completed or Failed, its data the record or the failure."""

    @task(name=stage.name, task_run_name=stage.name, cache_policy=NO_CACHE, persist_result=False)
    def run_task(config: PipelineConfig, step: Step, inputs: dict[str, ArtifactRef]) -> State[StageRecord]:
        if step.manifest is not None:
            log.info("%s: cached %s", stage.name, step.key)
            record = stage_record(step.manifest, cached=True, why=step.why)
            return Completed(name="Cached", message=f"cached {step.key}", data=record)
        log.info("%s: runs (%s)", stage.name, step.why)
        try:
            record = _bring_about(stage, config, step, inputs)
        except AttuneError as error:
            return Failed(message=str(error), data=error)
        except OSError as error:
            if not is_disk_trouble(error):
                raise
            failure = AttuneError(f"{stage.name}: {error}; nothing was published")
            return Failed(message=str(failure), data=failure)
        rejected = record.rows_in - record.rows_kept
        log.info("%s: %d rows in, %d rejected, %.1f s", stage.name, record.rows_in, rejected, record.seconds)
        return Completed(message=f"made {step.key}", data=record)

    return run_task


_TASKS = {stage.name: _prefect_task(stage) for stage in STAGES.values()}


def _bring_about(stage: Stage, config: PipelineConfig, step: Step, inputs: dict[str, ArtifactRef]) -> StageRecord:
    """Run a stage here, or have it run where the config says."""
    if stage.name == "fine_tune" and config.fine_tune.runs_on == "gpu":
        manifest = gpu.fine_tune(config, step, inputs, open_store(config))
        return stage_record(manifest, cached=False, why=step.why)
    return run_stage(stage, config, step, inputs)


def run_stage(stage: Stage, config: PipelineConfig, step: Step, inputs: dict[str, ArtifactRef]) -> StageRecord:
    """Run a stage's function on its inputs and publish what it made."""
    store = open_store(config)
    folders = {name: store.path(ref) for name, ref in inputs.items()}
    if stage.base:
        folders["base"] = base_model.resolve(config.model, config.store_folder)
    if step.memory is not None:
        folders["previous"] = store.path(step.memory)
    with store.work_folder(stage.name, step.key) as work:
        if (manifest := store.find(stage.name, step.key)) is not None:
            return stage_record(manifest, cached=True, why="another run made it meanwhile")
        began = time.perf_counter()
        with peak_memory() as peak, engine.using(config.engine), artifacts.training_shown(stage.name, config):
            family = {"family": step.parts["inputs"]["family"]} if stage.base else {}
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(config.runs) / "tensorboard"))
            summary = stage.function(getattr(config, stage.name), folders, work, **family)
        _check_outside(stage, config, step, summary, store)
        manifest = store.commit(
            work,
            {
                "stage": stage.name,
                "key": step.key,
                "pipeline": config.name,
                **step.parts,
                "rows_in": summary.rows_in,
                "rows_kept": summary.rows_kept,
                "rejected": summary.rejected,
                "figures": summary.figures | {"funnel": summary.funnel, "rejected_samples": summary.samples},
                "seconds": round(time.perf_counter() - began, 3),
                "peak_memory_bytes": peak(),
                "created_by": f"attune {version('attune')}",
            },
        )
    return stage_record(manifest, cached=False, why=step.why)


def _check_outside(stage: Stage, config: PipelineConfig, step: Step, summary: Summary, store: ArtifactStore) -> None:
    """What no stage made must be what it was when the run began, and what it was in the last run."""
    if stage.base:  # hashing a large model again would cost minutes
        return
    now = outside_inputs(stage, config)
    if changed := [name for name in now if now[name] != step.parts["inputs"][name]]:
        raise SourceError(f"{changed[0]}: changed while it was read; nothing was published, run again")
    if stage.name == "collect":
        contract.hold(config.collect, summary.figures["sources"], store.manifests("collect"))
