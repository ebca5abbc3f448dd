"""What the metrics over pairs of texts have in common."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate


def info(description: str) -> evaluate.MetricInfo:
    """The description of a metric that compares one predicted text with one reference text."""
    features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
    return evaluate.MetricInfo(description=description, citation="", features=features)


def macro(references: Sequence[str]) -> dict[str, Any]:
    """Settings of scikit-learn's scores: the mean over the classes that are asked for, each counting alike."""
    return {"labels": sorted(set(references)), "average": "macro", "zero_division": 0}
