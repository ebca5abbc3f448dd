"""Metrics, chosen by name: each a small `evaluate.Metric` that scores every answer on its own, offline.

A metric's `compute(predictions=…, references=…)` returns `{name: [one float per answer]}`, so that a mean can be taken
over any group of rows.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

METRICS = {"exact_match": "ExactMatch", "rouge_l": "RougeL"}
"""Metric -> its class, which stands in the module of the metric's name."""


def load(name: str) -> "evaluate.Metric":
    """The metric of that name; importing `evaluate` takes seconds, so it is done only where answers are scored."""
    module = importlib.import_module(f"tasks.metrics.{name}")
    return getattr(module, METRICS[name])(keep_in_memory=True)
