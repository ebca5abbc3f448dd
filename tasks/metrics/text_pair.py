"""What the metrics over pairs of texts have in common."""

import datasets
import evaluate


def info(description: str) -> evaluate.MetricInfo:
    """The description of a metric that compares one predicted text with one reference text."""
    features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
    return evaluate.MetricInfo(description=description, citation="", features=features)
