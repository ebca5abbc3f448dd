"""The flow of a search: each trial is a pipeline up to fine_tune, from the store where it was trained before."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import State, flow
from prefect.states import Completed

from flows import artifacts
from flows.connection import at_work
from flows.pipeline import clean, collect, fine_tune, format, split
from flows.runtime import Run, explained
from tasks import sweep as search
from tasks.config import PipelineConfig
from tasks.plan import look_up
from tasks.stages import STAGES
from tasks.trainer import watched_by


@flow(name="sweep", flow_run_name=artifacts.run_name, persist_result=False, validate_parameters=False)
@explained
def sweep(config: PipelineConfig) -> State[str]:
    """Search the settings of `config.sweep` by the validation split.  Returns the folder of the sweep."""
    home = search.folder(config)
    search.search(config, home, train)
    return Completed(data=str(home))


def train(config: PipelineConfig, watcher: search.Watcher) -> search.Outcome:
    """One trial, in this process; raises what ended its training.  Test is not looked at: no evaluate, no export."""
    here = config.model_copy(update={"fine_tune": config.fine_tune.model_copy(update={"runs_on": "here"})})
    with _quiet(), watched_by(watcher), at_work(), Run(here) as run:
        formatted = format(run, split(run, clean(run, collect(run))))
        fine_tune(run, formatted)
    if isinstance(run.failure, (search.Pruned, *search.TRIAL_FAILURES)):
        _forget_checkpoints(run)
    if run.failure:
        raise run.failure
    record = run.folder.record.stages[-1]
    return search.Outcome(record.figures["tuned"]["best_value"], record.cached, record.key)


@contextmanager
def _quiet() -> Iterator[None]:
    """A trial has one line, its own: neither its stages nor the state of a pruned task are told."""
    levels = {"attune": logging.WARNING, "prefect.task_runs": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _forget_checkpoints(run: Run) -> None:
    """A training that was given up does not go on, so what it would go on from only fills the disk."""
    stage = STAGES["fine_tune"]
    if set(stage.inputs) <= set(run.refs):
        key = look_up(stage, run.config, run.refs, run.store).key
        with run.store.work_folder(stage.name, key) as work:
            shutil.rmtree(work)
