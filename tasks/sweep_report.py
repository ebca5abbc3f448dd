"""What a sweep leaves: sweep.json, report.md, parameters.svg, and best.yaml, a config with the best values."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tasks.config import PipelineConfig
from tasks.config.sweep import place
from tasks.disk import write_whole
from tasks.report import Rows, markdown

SWEPT = "swept.json"
"""The whole config that is swept, overrides and defaults included; best.yaml extends it."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, as sweep.json tells it."""

    number: int  # from 1
    parameters: dict[str, Any]
    value: float | None  # of metric_for_best_model; of a pruned trial the last that was seen
    state: str  # complete, pruned or failed
    seconds: float
    cached: bool  # the training was in the store
    key: str  # of the artifact of fine_tune; empty unless complete
    message: str  # why it failed, or an empty text


def smaller_is_better(config: PipelineConfig) -> bool:
    """Of a loss; every metric is better when it is larger."""
    return config.fine_tune.metric_for_best_model == "loss"


def best(config: PipelineConfig, trials: list[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the best value; of equal ones the first."""
    complete = [trial for trial in trials if trial.state == "complete"]
    sign = 1 if smaller_is_better(config) else -1
    return min(complete, key=lambda trial: sign * trial.value, default=None)


def line(config: PipelineConfig, trials: list[TrialRecord]) -> str:
    """The last trial in one line."""
    last, metric = trials[-1], config.fine_tune.metric_for_best_model
    tried = ", ".join(f"{field} {_number(value)}" for field, value in last.parameters.items())
    ended = {
        "complete": f"{metric} {_number(last.value)}" + (" (best)" if best(config, trials) is last else ""),
        "pruned": f"pruned at {metric} {_number(last.value)}",
        "failed": f"failed: {last.message}",
    }[last.state]
    how = "cached" if last.cached else f"{last.seconds:.1f} s"
    return f"trial {last.number} of {config.sweep.trials}: {ended}, {how}, {tried}"


def write_record(config: PipelineConfig, home: Path, trials: list[TrialRecord]) -> None:
    """Write sweep.json: how far the search is."""
    found = best(config, trials)
    record = {
        "name": config.name,
        "metric": config.fine_tune.metric_for_best_model,
        "smaller_is_better": smaller_is_better(config),
        "wanted": config.sweep.trials,
        "best": found.number if found else None,
        "trials": [asdict(trial) for trial in trials],
    }
    write_whole(home / "sweep.json", json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_results(config: PipelineConfig, home: Path, trials: list[TrialRecord]) -> None:
    """Write report.md, and where a trial is complete parameters.svg and best.yaml with the config that it extends."""
    write_record(config, home, trials)
    lines = [f"# Sweep of {config.name}", "", *markdown(rows(config, trials)), ""]
    if found := best(config, trials):
        write_whole(home / SWEPT, json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
        write_whole(home / "best.yaml", best_config(config, found))
        _draw(config, trials, found, home / "parameters.svg")
        lines += ["![Each parameter against the metric](parameters.svg)", "", "The best: [best.yaml](best.yaml)", ""]
    write_whole(home / "report.md", "\n".join(lines))


def _draw(config: PipelineConfig, trials: list[TrialRecord], found: TrialRecord, path: Path) -> None:
    from tasks.curves import Panel, draw_trials

    shown = [trial for trial in trials if trial.value is not None]
    figures = [trial.value for trial in shown]
    ended = ["best" if trial is found else trial.state for trial in shown]
    panels = [
        Panel(field, parameter.log, [trial.parameters[field] for trial in shown], figures, ended)
        for field, parameter in config.sweep.searched.items()
    ]
    draw_trials(panels, config.fine_tune.metric_for_best_model, path)


def table(config: PipelineConfig, trials: list[TrialRecord]) -> Table:
    """The trials for the terminal, the best one in green."""
    header, *body = rows(config, trials)
    made = Table(title=f"Sweep of {config.name}", title_justify="left")
    for name in header:
        made.add_column(name, justify="left" if name in {"state", "message"} else "right", overflow="fold")
    found = best(config, trials)
    for trial, row in zip(trials, body, strict=True):
        made.add_row(*map(Text, row), style="green" if trial is found else None)
    return made


def rows(config: PipelineConfig, trials: list[TrialRecord]) -> Rows:
    """One row a trial, behind a header."""
    fields, found = list(config.sweep.searched), best(config, trials)
    failed = ["message"] if any(trial.message for trial in trials) else []
    header = ["trial", *fields, config.fine_tune.metric_for_best_model, "state", "seconds", *failed]
    return [header] + [
        [
            str(trial.number),
            *(_number(trial.parameters.get(field)) for field in fields),
            "" if trial.value is None else _number(trial.value),
            "best" if trial is found else "cached" if trial.cached else trial.state,
            f"{trial.seconds:.1f}",
            *([trial.message] if failed else []),
        ]
        for trial in trials
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best_config(config: PipelineConfig, found: TrialRecord) -> str:
    """The text of best.yaml."""
    raw, changed = config.model_dump(mode="json"), {}
    for field, value in found.parameters.items():
        _lay_over(changed, raw, field.split("."), value)
    changed["sweep"] = {"parameters": dict.fromkeys(found.parameters)}  # they are found
    metric = f"{config.fine_tune.metric_for_best_model} {found.value:.6g}"
    head = f"# The best of {config.sweep.trials} trials, trial {found.number}: {metric} on the validation split."
    return "\n".join([head, f"extends: {SWEPT}", *_yaml(changed), ""])


def _lay_over(changed: dict[str, Any], raw: Any, path: list[str], value: Any) -> None:
    """Put `value` at `path` into `raw`, and what of it must be written to say so into `changed`.

    A list is written whole, since a list in a config replaces the one that it extends.
    """
    while len(path) > 1 and isinstance(raw[path[0]], dict):
        raw, changed, path = raw[path[0]], changed.setdefault(path[0], {}), path[1:]
    place(raw, path, value)
    changed[path[0]] = raw[path[0]]


def _yaml(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A mapping in YAML; what it holds beside mappings stands there as JSON, which is YAML."""
    for key, inner in value.items():
        name = key if re.fullmatch(r"(?!true$|false$|null$)[a-z_]{4,}", key) else json.dumps(key, ensure_ascii=False)
        if isinstance(inner, dict) and inner:
            yield f"{indent}{name}:"
            yield from _yaml(inner, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(inner, ensure_ascii=False)}"
