"""Metrics, chosen by name: each a small `evaluate.Metric`, offline.

`compute(predictions=…, references=…)` of most returns `{name: [one float per answer]}`, so that a mean can be taken
over any group of rows.  Those of OF_A_GROUP say nothing of one answer: they return `{name: one float}` for all rows.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

METRICS = {
    "exact_match": "ExactMatch",
    "rouge_l": "RougeL",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
}
"""Metric -> its class, which stands in the module of the metric's name.  Of all of them a higher value is better."""

OF_A_GROUP = {"precision", "recall", "f1"}
"""Metrics that have a value for a group of rows only."""


def load(name: str) -> "evaluate.Metric":
    """The metric of that name; importing `evaluate` takes seconds, so it is done only where answers are scored."""
    module = importlib.import_module(f"tasks.metrics.{name}")
    return getattr(module, METRICS[name])(keep_in_memory=True)


def scores(name: str, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """The value of a metric, none of OF_A_GROUP, for each answer."""
    return load(name).compute(predictions=predictions, references=references)[name]


def value(name: str, predictions: Sequence[str], references: Sequence[str]) -> float:
    """The value of any metric for a group of at least one row: the mean of its answers' values, or the group's own."""
    found = load(name).compute(predictions=predictions, references=references)[name]
    return found if name in OF_A_GROUP else sum(found) / len(found)
