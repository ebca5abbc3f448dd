"""Sweep: search settings whose trainings end with the best validation metric, and go on where a search was killed.

The study is a file of Optuna's in the folder of the sweep.  What a trial tries depends on the seed, its number and the
trials before it alone, so a sweep that was killed anywhere ends with the same trials as one that was not.
"""

import fcntl
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError

from tasks import fingerprint
from tasks.config import PipelineConfig, SweepParameter
from tasks.config.sweep import SEARCHABLE, place
from tasks.disk import digest_json
from tasks.errors import AttuneError, ConfigError, EmptySplitError, LeakError, TrainingError
from tasks.plan import outside_inputs
from tasks.stages import STAGES
from tasks.sweep_report import TrialRecord, best, line, smaller_is_better, write_record, write_results

log = logging.getLogger("attune.sweep")

STUDY, DATABASE = "sweep", "study.db"

UNGUIDED_TRIALS = 5
"""Trials that are drawn at random, and whose trainings are never ended early, before there is something to go by."""

TRIAL_FAILURES = (TrainingError, ConfigError, EmptySplitError, LeakError)
"""Failures that the tried settings are to blame for.  After any other, the same trial is tried again."""

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Pruned(AttuneError):
    """A training was ended early, because it did worse than the median of those before it."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    value: float  # of metric_for_best_model
    cached: bool
    key: str  # of the artifact of fine_tune


Watcher = Callable[[int, float], None]
Train = Callable[[PipelineConfig, Watcher], Outcome]


NOT_SEARCHED = {"evaluate", "export", "engine", "runs", "cache", "secrets", "max_restarts"}
"""Sections and settings that no trial depends on."""


def folder(config: PipelineConfig) -> Path:
    """`<runs>/sweeps/<name>-<digest>`: another for each search whose trials could end differently.

    Raises ConfigError when nothing is to be searched.
    """
    if not config.sweep.searched:
        raise ConfigError("sweep.parameters: is empty; name a setting, such as fine_tune.learning_rate, and its values")
    settings = config.model_dump(mode="json", exclude=NOT_SEARCHED)
    del settings["sweep"]["trials"]  # a larger number goes on with the same search
    del settings["fine_tune"]["runs_on"]
    stages = [STAGES[name] for name in SEARCHABLE if name in STAGES]
    parts = {
        "settings": settings,
        "inputs": {stage.name: outside_inputs(stage, config) for stage in stages},
        "code": {stage.name: fingerprint.code_digests(stage.module) for stage in stages},
        "versions": {stage.name: fingerprint.versions(stage.versions) for stage in stages},
    }
    return Path(config.runs) / "sweeps" / f"{config.name}-{digest_json(parts)[:12]}"


def ended(config: PipelineConfig, home: Path) -> list[TrialRecord]:
    """The trials of the sweep in `home` that have ended."""
    return records(config, _study(config, _storage(home))) if (home / DATABASE).exists() else []


def conclude(config: PipelineConfig, home: Path) -> None:
    """Write down in `home` what the trials found.  Raises TrainingError when all failed."""
    trials = ended(config, home)
    write_results(config, home, trials)
    if best(config, trials) is None:
        failed = [trial for trial in trials if trial.state == "failed"]
        raise TrainingError(f"sweep: all {len(trials)} trials failed, the last with: {failed[-1].message}")


def search(config: PipelineConfig, home: Path, train: Train) -> None:
    """Run the trials that are left, and write down in `home` what they found.

    `train` runs a training, and raises Pruned when the watcher does.  Raises TrainingError when all trials failed,
    AttuneError when another process works on this sweep, and what `train` raises beside TRIAL_FAILURES.
    """
    home.mkdir(parents=True, exist_ok=True)
    with _alone(home):
        storage = _storage(home)
        study = _study(config, storage)
        while (trial := _next(study, storage, config)) is not None:
            _try(study, trial, config, home, train)
            log.info("%s", line(config, records(config, study)))
            write_record(config, home, records(config, study))
    conclude(config, home)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the folder; the lock is the kernel's, so it dies with its holder."""
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AttuneError(f"sweep: another process works on {home}; wait for it, or end it") from None
        yield


def _storage(home: Path) -> RDBStorage:
    """SQLite: unlike Optuna's journal it survives a kill in the middle of a write."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return RDBStorage(f"sqlite:///{home / DATABASE}")


def _study(config: PipelineConfig, storage: RDBStorage) -> Study:
    return optuna.create_study(
        storage=storage,
        study_name=STUDY,
        direction="minimize" if smaller_is_better(config) else "maximize",
        pruner=MedianPruner(n_startup_trials=UNGUIDED_TRIALS, n_warmup_steps=1),
        load_if_exists=True,
    )


def _next(study: Study, storage: RDBStorage, config: PipelineConfig) -> Trial | None:
    """The trial that was interrupted, else a new one, else None."""
    known = study.get_trials(deepcopy=False)
    interrupted = next((trial.number for trial in known if not trial.state.is_finished()), None)
    if interrupted is None and len(known) >= config.sweep.trials:
        return None
    if interrupted is None:
        return study.ask()
    of_study = storage.get_study_id_from_name(STUDY)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(of_study, interrupted))


def _sampler(config: PipelineConfig, *what: object) -> TPESampler:
    """A sampler that draws the same after a kill, since it begins anew with each parameter of each trial.

    So each is drawn by itself: what is drawn together would be drawn again for those that a kill left over.
    """
    seed = int(digest_json([config.sweep.seed, *what])[:8], 16)
    return TPESampler(seed=seed, n_startup_trials=UNGUIDED_TRIALS, multivariate=False)


def _try(study: Study, trial: Trial, config: PipelineConfig, home: Path, train: Train) -> None:
    """One trial; the study is told at its very end, so that a kill before that repeats it."""
    began = time.perf_counter()
    values = {field: _drawn(study, trial, field, config) for field in config.sweep.searched}
    state, value, notes = _trained(
        trial, config, values | {"runs": str(home / "trials"), "sweep.parameters": {}}, train
    )
    for name, note in (notes | {"seconds": round(time.perf_counter() - began, 2)}).items():
        trial.set_user_attr(name, note)
    study.tell(trial, value, state=state)


def _trained(
    trial: Trial, config: PipelineConfig, values: dict[str, Any], train: Train
) -> tuple[TrialState, float | None, dict[str, Any]]:
    """How the training with these values ended: its state, its value, and what is noted of it."""
    try:
        outcome = train(with_values(config, values), _pruning(trial))
    except Pruned:
        return TrialState.PRUNED, None, {}
    except TRIAL_FAILURES as failure:
        return TrialState.FAIL, None, {"message": str(failure)}
    return TrialState.COMPLETE, outcome.value, {"cached": outcome.cached, "key": outcome.key}


def _drawn(study: Study, trial: Trial, field: str, config: PipelineConfig) -> Any:
    study.sampler = _sampler(config, trial.number, field)
    return _suggested(trial, field, config.sweep.searched[field])


def _suggested(trial: Trial, field: str, parameter: SweepParameter) -> Any:
    if parameter.choices:  # as JSON, since Optuna knows no lists
        return json.loads(trial.suggest_categorical(field, [json.dumps(choice) for choice in parameter.choices]))
    if parameter.whole:
        return trial.suggest_int(field, parameter.low, parameter.high, step=parameter.step or 1, log=parameter.log)
    return trial.suggest_float(field, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def with_values(config: PipelineConfig, values: dict[str, Any]) -> PipelineConfig:
    """The config with other values of some dotted fields.  Raises ConfigError when they do not go together."""
    raw = config.model_dump()
    for field, value in values.items():
        place(raw, field.split("."), value)
    try:
        return PipelineConfig.model_validate(raw)
    except ValidationError as error:
        told = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError("; ".join(told)) from None


def _pruning(trial: Trial) -> Watcher:
    """A watcher that ends a training which is worse than the median of those before it, validation by validation.

    Validations count by their number: trainings with other batch sizes or epochs have other steps, but as many.
    A training that goes on after a kill may repeat one.
    """

    def watch(step: int, value: float) -> None:
        seen = trial.user_attrs.get("validated_at", [])
        if step not in seen:
            trial.report(value, len(seen))
            trial.set_user_attr("validated_at", [*seen, step])
        if trial.should_prune():
            raise Pruned(f"fine_tune: pruned at step {step} with {value:.4g}, worse than the median of other trials")

    return watch


def records(config: PipelineConfig, study: Study) -> list[TrialRecord]:
    """The trials up to the first that has not ended."""
    ended = takewhile(lambda trial: trial.state.is_finished(), study.get_trials(deepcopy=False))
    return [_record(config, trial) for trial in ended]


def _record(config: PipelineConfig, trial: FrozenTrial) -> TrialRecord:
    tried, notes = trial.params, trial.user_attrs
    return TrialRecord(
        number=trial.number + 1,
        parameters={
            field: json.loads(tried[field]) if parameter.choices else tried[field]
            for field, parameter in config.sweep.searched.items()
        },
        value=trial.value,
        state=STATES[trial.state],
        seconds=notes["seconds"],
        cached=notes.get("cached", False),
        key=notes.get("key", ""),
        message=notes.get("message", ""),
    )
