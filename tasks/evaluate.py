"""Evaluate: ask base and tuned model for the answers of the test split, and score them."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tasks import metrics, templates
from tasks.config import EvaluateConfig
from tasks.families import find, load_family
from tasks.held_out import class_names, held_out_rows
from tasks.ledger import ShardWriter, Summary
from tasks.schema import PREDICTION

log = logging.getLogger("attune.evaluate")

SAMPLES = 24
"""Test rows whose answers are shown, spread over the tasks."""

Row = dict[str, Any]
Table = dict[str, dict[str, dict[str, float | int]]]


def evaluate(config: EvaluateConfig, inputs: dict[str, Path], out: Path, family: str = "auto") -> Summary:
    """Write `predictions` (columns PREDICTION) of every system; figures hold `evaluation` and `samples`, a few answers.

    `evaluation` is {system: {part: {metric: {value, rows}}}} with systems base, tuned and, where fine_tune made one,
    scratch; parts are `test` (all rows), `source:<name>` and `task:<name>`; `loss` is the mean per supervised token.
    The base of a classifier whose labels it does not know has a head with random weights: it shows chance.
    """
    tokenizer = AutoTokenizer.from_pretrained(inputs["format"] / "tokenizer", trust_remote_code=False)
    rows = held_out_rows(inputs, config.max_rows)
    model = load_family(find(inputs["base"]) if family == "auto" else family)
    labels = class_names(inputs["format"])
    chosen = config.metrics or model.METRICS
    folders = {
        "base": inputs["base"],
        "scratch": inputs["fine_tune"] / "scratch",
        "tuned": inputs["fine_tune"] / "tuned",
    }
    evaluation: dict[str, Table] = {}
    samples: list[Row] = []
    writer = ShardWriter(out / "predictions", PREDICTION)
    for system, folder in folders.items():
        if folder.exists():
            answers = _answers(system, model, model.load(folder, labels=labels), tokenizer, rows, config)
            _score(answers, [name for name in chosen if name not in metrics.OF_A_GROUP])
            writer.write(pa.Table.from_pylist(answers, schema=PREDICTION))
            evaluation[system] = _table(answers, chosen)
            samples = _add_samples(samples, answers)
            log.info("%s: %s", system, _words(evaluation[system]["test"]))
    writer.close()
    return Summary(rows_in=len(rows), rows_kept=len(rows), figures={"evaluation": evaluation, "samples": samples})


def _answers(
    system: str,
    family: ModuleType,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    config: EvaluateConfig,
) -> list[Row]:
    """One row of PREDICTION, without scores, per test row."""
    losses = family.example_losses(model, rows)
    generation = family.generation_config(tokenizer, config.max_new_tokens)
    answers = family.answers(model, rows, generation, config.batch_size, f"evaluate {system}")
    return [
        {
            "id": row["id"],
            "source": row["source"],
            "task": row["task"],
            "system": system,
            "prompt": templates.question(row),
            "reference": family.reference(row, tokenizer, model),
            "prediction": family.text(answer, tokenizer, model),
            "supervised_tokens": supervised,
            "loss": loss / supervised,
        }
        for row, answer, (loss, supervised) in zip(rows, answers, losses, strict=True)
    ]


def _score(answers: list[Row], names: Sequence[str]) -> None:
    """Add `scores` to each answer."""
    values = {name: metrics.scores(name, *_texts(answers)) for name in names}
    for index, row in enumerate(answers):
        row["scores"] = {name: values[name][index] for name in names}


def _texts(answers: list[Row]) -> tuple[list[str], list[str]]:
    return [row["prediction"] for row in answers], [row["reference"] for row in answers]


def _table(answers: list[Row], names: Sequence[str]) -> Table:
    """The loss and every metric over all rows, per source and per task."""
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in answers:
        for part in ("test", f"source:{row['source']}", f"task:{row['task']}"):
            parts[part].append(row)
    return {part: _values(parts[part], names) for part in sorted(parts, key=lambda part: (part != "test", part))}


def _values(answers: list[Row], names: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Means over the answers; a metric of a group is told its rows."""
    rows = len(answers)
    tokens = sum(row["supervised_tokens"] for row in answers)
    values = {"loss": sum(row["loss"] * row["supervised_tokens"] for row in answers) / tokens}
    for name in names:
        if name in metrics.OF_A_GROUP:
            values[name] = metrics.value(name, *_texts(answers))
        else:
            values[name] = sum(row["scores"][name] for row in answers) / rows
    return {name: {"value": value, "rows": rows} for name, value in values.items()}


def _add_samples(samples: list[Row], answers: list[Row]) -> list[Row]:
    """The samples with this system's answers too; the first system chooses the rows, taking the tasks in turn."""
    by_id = {answer["id"]: answer for answer in answers}
    if not samples:
        rank: dict[str, int] = defaultdict(int)
        ranked = []
        for answer in answers:
            rank[answer["task"]] += 1
            ranked.append((rank[answer["task"]], len(ranked), answer))
        chosen = [answer for _, _, answer in sorted(ranked, key=lambda entry: entry[:2])[:SAMPLES]]
        samples = [
            {name: row[name] for name in ("id", "task", "prompt", "reference")} | {"answers": {}} for row in chosen
        ]
    for sample in samples:
        sample["answers"][answers[0]["system"]] = by_id[sample["id"]]["prediction"]
    return samples


def _words(means: dict[str, dict[str, float | int]]) -> str:
    return ", ".join(f"{name} {value['value']:.3f}" for name, value in means.items())
