"""Exact match."""

import evaluate

from tasks.metrics.text_pair import info


class ExactMatch(evaluate.Metric):
    """1 where the answer equals the reference, space at both ends aside, else 0.  Range 0 to 1, higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        return info(str(self.__doc__))

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, list[float]]:
        pairs = zip(predictions, references, strict=True)
        return {"exact_match": [float(prediction.strip() == reference.strip()) for prediction, reference in pairs]}
