"""The search: refused before it runs when it cannot be meant, the same after any kill, its best a config to run."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROWS, write_jsonl

from tasks import sweep
from tasks.config import PipelineConfig
from tasks.config_file import load
from tasks.errors import AttuneError, ConfigError, TrainingError
from tasks.sweep_report import TrialRecord, best

RATE = "fine_tune.learning_rate"


def written(folder: Path, parameters: dict[str, Any], trials: int = 8, **sections: Any) -> Path:
    """A config file that sweeps `parameters`."""
    raw = {
        "name": "tiny",
        "collect": {"sources": [{"path": str(write_jsonl(folder / "rows.jsonl", ROWS[:40]))}]},
        "runs": str(folder / "runs"),
        "store": str(folder / "store"),
        "sweep": {"trials": trials, "parameters": parameters},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw | sections))
    return path


@pytest.mark.parametrize(
    ("field", "values", "says"),
    [
        ("fine_tune.learning_rat", {"low": 1e-5, "high": 1e-3}, "; did you mean 'fine_tune.learning_rate'?"),
        ("fine_tune.lora.rnk", {"choices": [4]}, "there is no such setting; did you mean 'fine_tune.lora.rank'?"),
        ("finetune.learning_rate", {"choices": [1e-3]}, "only settings of model, collect, clean, split, format"),
        ("evaluate.batch_size", {"choices": [1]}, "only settings of model, collect, clean, split, format"),
        ("fine_tune", {"choices": [1]}, "only settings of model, collect"),
        ("fine_tune.metric_for_best_model", {"choices": ["loss"]}, "trials are compared by it"),
        (RATE, {"low": 0.0, "high": 0.1}, "input should be greater than 0, got 0.0"),
        (RATE, {"low": 0.1, "high": 1.5}, "input should be less than or equal to 1, got 1.5"),
        ("fine_tune.lora.rank", {"low": 1, "high": 8.5}, "input should be a valid integer, got 8.5"),
        ("fine_tune.optimizer", {"choices": ["adamw", "adm"]}, "input should be 'adamw', 'adam', 'sgd', 'adafactor'"),
        ("clean.filters.9.params.min_chars", {"choices": [1]}, "there is no such setting"),
        (RATE, {"low": 0.2, "high": 0.1}, "'low' must be below 'high', got 0.2 and 0.1"),
        (RATE, {"low": 0.1, "high": 0.1}, "'low' must be below 'high'"),
        (RATE, {"low": 0.0, "high": 0.1, "log": True}, "with 'log', 'low' must be above 0, got 0.0"),
        (RATE, {"low": 0.1, "high": 0.2, "log": True, "step": 0.1}, "'log' and 'step' exclude each other"),
        ("fine_tune.seed", {"low": 0, "high": 7, "step": 2}, "'high' must be 'low' and a whole number of steps of 2"),
        (RATE, {"low": 0.1}, "give 'low' and 'high', or 'choices'"),
        (RATE, {"low": 0.1, "high": 0.2, "choices": [0.1]}, "'choices' stand alone"),
        (RATE, {"lo": 0.1, "high": 0.2}, "lo: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_a_line_before_anything_runs(tmp_path, field, values, says):
    with pytest.raises(ConfigError) as refusal:
        load(written(tmp_path, {field: values}))
    (line,) = str(refusal.value).splitlines()
    assert f"sweep.parameters.{field}" in line and says in line
    assert refusal.value.exit_code == 2


def test_all_mistakes_are_told_and_a_mistake_elsewhere_hides_none(tmp_path):
    parameters = {RATE: {"choices": [2.0, 3.0]}, "format.max_seq_length": {"choices": [1]}}
    with pytest.raises(ConfigError) as refusal:
        load(written(tmp_path, parameters), ["split.seed=-1"])
    lines = [line.split(": ", 1)[-1] for line in str(refusal.value).splitlines()]
    assert len(lines) == 4 and sum("got" in line for line in lines) == 4


def test_a_config_can_take_out_what_it_extends_and_a_search_of_nothing_is_refused(tmp_path):
    written(tmp_path, {RATE: {"choices": [1e-3]}})
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: config.yaml\nsweep: {{parameters: {{{RATE}: null}}}}\n")
    assert load(child).sweep.searched == {}
    with pytest.raises(ConfigError, match=r"sweep\.parameters: is empty"):
        sweep.folder(load(child))


# The search alone, with trainings that are a formula


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> PipelineConfig:
    parameters = {
        RATE: {"low": 1e-5, "high": 1e-1, "log": True},
        "fine_tune.lora.rank": {"choices": [4, 8, 16]},
        "fine_tune.warmup_ratio": {"low": 0.0, "high": 0.5, "step": 0.1},
    }
    return load(written(tmp_path_factory.mktemp("search"), parameters, trials=7, model={"base": str(tiny_base)}))


def loss(config: PipelineConfig) -> float:
    """Least at a learning rate of 0.001 and a rank of 8."""
    tune = config.fine_tune
    return abs(math.log10(tune.learning_rate) + 3) + abs(tune.lora.rank - 8) / 4 + tune.warmup_ratio


class Trainings:
    """Trainings of three validations, and what was asked of them."""

    def __init__(self, fails: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self.asked: list[tuple[float, int, float]] = []
        self.fails = fails

    def __call__(self, config: PipelineConfig, watcher: sweep.Watcher) -> sweep.Outcome:
        tune = config.fine_tune
        self.asked.append((tune.learning_rate, tune.lora.rank, tune.warmup_ratio))
        for step in (10, 20, 30):
            watcher(step, loss(config) + 3 - step / 10)
            if step == 10 and (failure := self.fails(len(self.asked))):
                raise failure
        return sweep.Outcome(loss(config), False, "key")


def searched(config: PipelineConfig, home: Path, train: sweep.Train) -> list[TrialRecord]:
    sweep.search(config, home, train)
    return comparable(config, home)


def comparable(config: PipelineConfig, home: Path) -> list[TrialRecord]:
    return [replace(trial, seconds=0.0) for trial in sweep.ended(config, home)]


@pytest.fixture(scope="module")
def undisturbed(
    config: PipelineConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trainings, list[TrialRecord]]:
    trainings = Trainings()
    return trainings, searched(config, tmp_path_factory.mktemp("undisturbed"), trainings)


def test_the_best_of_a_small_grid_is_found_and_a_metric_is_made_large(config, tmp_path):
    grid = {"fine_tune.lora.rank": {"choices": [4, 8, 16]}, "fine_tune.optimizer": {"choices": ["adam", "sgd"]}}
    config = load(written(tmp_path, grid, trials=8, model={"base": config.model.base}))

    def train(config: PipelineConfig, _: sweep.Watcher) -> sweep.Outcome:
        tune = config.fine_tune
        return sweep.Outcome(tune.lora.rank + (tune.optimizer == "sgd"), False, "key")

    trials = searched(config, tmp_path / "least", train)
    assert best(config, trials).parameters == {"fine_tune.lora.rank": 4, "fine_tune.optimizer": "adam"}
    by_metric = sweep.with_values(config, {"fine_tune.metric_for_best_model": "exact_match"})
    trials = searched(by_metric, tmp_path / "most", train)
    assert best(by_metric, trials).parameters == {"fine_tune.lora.rank": 16, "fine_tune.optimizer": "sgd"}


def test_trials_stay_in_their_bounds_and_come_close_to_the_best(config, tmp_path):
    trials = searched(sweep.with_values(config, {"sweep.trials": 16}), tmp_path / "home", Trainings())
    assert [trial.number for trial in trials] == list(range(1, 17))
    for trial in trials:
        rate, rank, warmup = trial.parameters.values()
        assert 1e-5 <= rate <= 1e-1 and rank in (4, 8, 16)
        assert round(warmup * 10) == pytest.approx(warmup * 10)
    assert best(config, trials).value < 0.6
    free = trials[: sweep.UNGUIDED_TRIALS]
    lengths = [(math.log10(trial.parameters[RATE]) + 5) / 4 for trial in free]
    shares = [trial.parameters["fine_tune.warmup_ratio"] / 0.5 for trial in free]
    assert max(abs(one - other) for one, other in zip(lengths, shares, strict=True)) > 0.3, "each is drawn by itself"
    states = [trial.state for trial in trials]
    assert "pruned" in states and "pruned" not in states[: sweep.UNGUIDED_TRIALS]
    assert best(config, trials).value <= min(trial.value for trial in trials if trial.state == "pruned")


def test_a_search_that_was_interrupted_ends_with_the_same_trials(config, tmp_path, undisturbed):
    whole, expected = undisturbed
    first = Trainings(lambda number: KeyboardInterrupt() if number == 6 else None)
    with pytest.raises(KeyboardInterrupt):
        sweep.search(config, tmp_path / "home", first)
    assert len(sweep.ended(config, tmp_path / "home")) == 5
    second = Trainings()
    assert searched(config, tmp_path / "home", second) == expected
    assert first.asked + second.asked[1:] == whole.asked, "no training is repeated"
    assert second.asked[0] == first.asked[-1]


@pytest.mark.parametrize("draw", [5, 20], ids=["second trial", "seventh, which is guided"])
def test_a_search_killed_while_it_draws_draws_the_same(config, tmp_path, monkeypatch, undisturbed, draw):
    _, expected = undisturbed
    drawn, calls = sweep._suggested, []

    def dies_in_the_second_draw(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == draw:
            raise KeyboardInterrupt
        return drawn(*arguments)

    monkeypatch.setattr(sweep, "_suggested", dies_in_the_second_draw)
    with pytest.raises(KeyboardInterrupt):
        sweep.search(config, tmp_path / "home", Trainings())
    assert searched(config, tmp_path / "home", Trainings()) == expected


def test_more_trials_go_on_with_the_same_search_and_none_left_runs_none(config, tmp_path, undisturbed):
    _, expected = undisturbed
    assert searched(sweep.with_values(config, {"sweep.trials": 6}), tmp_path / "home", Trainings()) == expected[:6]
    rest = Trainings()
    assert searched(config, tmp_path / "home", rest) == expected and len(rest.asked) == 1
    assert searched(config, tmp_path / "home", rest) == expected and len(rest.asked) == 1


def test_a_trial_that_fails_is_told_and_the_search_goes_on(config, tmp_path):
    failing = Trainings(lambda number: TrainingError("the loss is nan") if number == 2 else None)
    trials = searched(config, tmp_path / "home", failing)
    assert [trial.state for trial in trials].count("failed") == 1 and len(failing.asked) == 7
    assert trials[1].message == "the loss is nan" and trials[1].value is None
    assert "the loss is nan" in (tmp_path / "home" / "report.md").read_text()


def test_when_all_trials_fail_the_search_fails_also_when_it_is_asked_again(config, tmp_path):
    config = sweep.with_values(config, {"sweep.trials": 3})
    failing = Trainings(lambda number: TrainingError(f"nan {number}"))
    for _ in range(2):
        with pytest.raises(TrainingError, match="all 3 trials failed, the last with: nan 3"):
            sweep.search(config, tmp_path / "home", failing)
    assert len(failing.asked) == 3
    assert not (tmp_path / "home" / "best.yaml").exists()


def test_a_full_disk_is_no_trials_fault_and_the_trial_is_tried_again(config, tmp_path, undisturbed):
    _, expected = undisturbed
    full = Trainings(lambda number: AttuneError("no space left on device") if number == 3 else None)
    with pytest.raises(AttuneError, match="no space left"):
        sweep.search(config, tmp_path / "home", full)
    assert searched(config, tmp_path / "home", Trainings()) == expected


def test_values_that_do_not_go_together_fail_the_trial_and_not_the_search(config, tmp_path):
    shares = {"split.validation": {"choices": [0.1, 0.6]}, "split.test": {"choices": [0.1, 0.6]}}
    config = load(written(tmp_path, shares, trials=5, model={"base": config.model.base}), ["sweep.seed=5"])
    trials = searched(config, tmp_path / "home", lambda *_: sweep.Outcome(1.0, False, ""))
    failed = [trial for trial in trials if trial.state == "failed"]
    assert failed and all(list(trial.parameters.values()) == [0.6, 0.6] for trial in failed)
    assert "must stay below 1" in failed[0].message


def test_two_processes_do_not_work_on_one_search(config, tmp_path):
    def train(config: PipelineConfig, _: sweep.Watcher) -> sweep.Outcome:
        with pytest.raises(AttuneError, match="another process works on"):
            sweep.search(config, tmp_path / "home", train)
        return sweep.Outcome(1.0, False, "")

    sweep.search(sweep.with_values(config, {"sweep.trials": 1}), tmp_path / "home", train)


def test_the_folder_is_another_where_trials_could_end_differently(config, tmp_path):
    config = load(written(tmp_path, {RATE: {"choices": [1e-3]}}, model={"base": config.model.base}))
    home = sweep.folder(config)
    assert home.parent == tmp_path / "runs" / "sweeps" and home.name.startswith("tiny-")
    for same in ({"sweep.trials": 3}, {"evaluate.batch_size": 1}, {"engine.processes": 1}):
        assert sweep.folder(sweep.with_values(config, same)) == home
    others = [{"sweep.seed": 1}, {"fine_tune.epochs": 1.0}, {"split.seed": 1}]
    assert len({home, *(sweep.folder(sweep.with_values(config, other)) for other in others)}) == 4
    write_jsonl(tmp_path / "rows.jsonl", ROWS[:41])
    assert sweep.folder(config) != home


def test_the_best_is_a_config_that_says_only_what_it_changes(config, tmp_path):
    modules = {"fine_tune.lora.target_modules": {"choices": [["q_proj"], ["q_proj", "v_proj"]]}}
    filters = {"clean.filters.2.params.min_output_chars": {"low": 1, "high": 9}}
    raw = {
        "filters": [
            {"name": "empty"},
            {"name": "broken_text"},
            {"name": "too_short", "params": {"min_output_chars": 1}},
        ]
    }
    config = load(written(tmp_path, modules | filters, model={"base": config.model.base}, clean=raw))
    home = tmp_path / "home"
    trials = searched(
        config, home, lambda config, _: sweep.Outcome(-len(config.fine_tune.lora.target_modules), False, "")
    )
    found = best(config, trials)
    expected = sweep.with_values(config, found.parameters)
    loaded = load(home / "best.yaml")
    assert loaded.sweep.searched == {}
    assert loaded.model_copy(update={"sweep": expected.sweep}) == expected
    said = yaml.safe_load((home / "best.yaml").read_text())
    assert set(said) == {"extends", "fine_tune", "clean", "sweep"} and list(said["clean"]) == ["filters"]
    assert said["fine_tune"] == {"lora": {"target_modules": ["q_proj", "v_proj"]}}


def test_what_is_left_of_a_search_can_be_read_by_machines_and_people(config, tmp_path):
    home = tmp_path / "home"
    trials = searched(config, home, Trainings())
    record = json.loads((home / "sweep.json").read_text())
    assert record["best"] == best(config, trials).number and record["metric"] == "loss" and record["wanted"] == 7
    assert [trial["parameters"] for trial in record["trials"]] == [trial.parameters for trial in trials]
    report = (home / "report.md").read_text()
    assert report.count("\n| ") == 9 and "(parameters.svg)" in report and "(best.yaml)" in report
    plot = (home / "parameters.svg").read_text()
    assert all(field in plot for field in config.sweep.searched) and ">0.001<" in plot
    assert not any(name.name.startswith(".") for name in home.iterdir())


# The command, with trainings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def swept(home: Path, tiny_base: Path) -> Path:
    parameters = {
        RATE: {"choices": [0.03, 1e-5]},
        "fine_tune.per_device_batch_size": {"choices": [2, 4]},
    }
    raw = {
        "model": {"base": str(tiny_base)},
        "collect": {"sources": [{"path": str(write_jsonl(home / "colours.jsonl", ROWS))}]},
        "split": {"validation": 0.1, "test": 0.1},
        "format": {"max_seq_length": 64},
        "fine_tune": {"epochs": 2.0, "precision": "fp32", "evals_per_epoch": 3},
        "evaluate": {"max_new_tokens": 4},
        "export": {"parity_rows": 4},
    }
    return written(home, parameters, trials=10, **raw)


def attune(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("attune")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def whole(swept: Path) -> tuple[subprocess.CompletedProcess[str], Path]:
    result = attune("sweep", swept)
    assert result.returncode == 0, result.stderr
    (folder,) = (swept.parent / "runs" / "sweeps").iterdir()
    return result, folder


def trials_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "sweep.json").read_text())["trials"]


@pytest.mark.slow
def test_a_sweep_trains_each_setting_once_and_prunes_without_a_trace(whole, swept):
    result, folder = whole
    trials = trials_of(folder)
    lines = [line for line in result.stderr.splitlines() if " trial " in line]
    assert len(lines) == len(trials) == 10
    assert not {"ERROR", "Traceback", "Trial"} & set(result.stderr.split())
    complete = [trial for trial in trials if trial["state"] == "complete"]
    keys = {str(trial["parameters"]): trial["key"] for trial in complete}
    assert [trial["cached"] for trial in complete].count(False) == len(keys) == len(set(keys.values()))
    assert any(trial["cached"] for trial in complete)
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert pruned and all(trial["parameters"][RATE] == 1e-5 for trial in pruned)
    store = swept.parent / "store"
    assert {path.name for path in (store / "fine_tune").iterdir()} == set(keys.values())
    assert [path for path in (store / ".work").iterdir() if path.is_dir()] == []
    assert not (store / "evaluate").exists(), "test is not looked at"
    assert min(complete, key=lambda trial: trial["value"])["parameters"][RATE] == 0.03


@pytest.mark.slow
def test_the_best_config_runs_and_its_training_is_cached(whole, swept):
    result = attune("run", whole[1] / "best.yaml")
    assert result.returncode == 0, result.stderr
    record = json.loads((swept.parent / "runs" / "latest" / "run.json").read_text())
    cached = {stage["stage"]: stage["cached"] for stage in record["stages"]}
    assert cached.pop("evaluate") is False and cached.pop("export") is False
    assert all(cached.values()) and record["state"] == "completed"


@pytest.mark.slow
def test_a_finished_sweep_does_nothing_again(whole, swept):
    again = attune("sweep", swept)
    assert again.returncode == 0 and "starting Prefect" not in again.stderr
    assert again.stdout == whole[0].stdout


@pytest.mark.slow
@pytest.mark.parametrize("trial", [1, 6])
def test_a_sweep_killed_while_it_trains_ends_with_the_same_trials(whole, swept, tmp_path, trial):
    overrides = [f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}"]
    command = [str(Path(sys.executable).with_name("attune")), "sweep", str(swept), *overrides]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    work = tmp_path / "store" / ".work"
    while process.poll() is None:
        known = list((tmp_path / "runs" / "sweeps").glob("*/sweep.json"))
        reached = len(trials_of(known[0].parent)) if known else 0
        if reached >= trial - 1 and any(work.glob("fine_tune-*/resume/tuned/checkpoint-*")):
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    assert process.wait() == -signal.SIGKILL
    result = attune("sweep", swept, *overrides)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()

    def told(folder: Path) -> list[dict[str, Any]]:
        return [{name: each[name] for name in ("number", "parameters", "value", "state")} for each in trials_of(folder)]

    assert told(folder) == told(whole[1])
