"""Accuracy."""

import evaluate

from tasks.metrics.text_pair import info


class Accuracy(evaluate.Metric):
    """1 where the predicted class is the reference, else 0.  Range 0 to 1, higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        return info(str(self.__doc__))

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, list[float]]:
        return {"accuracy": [float(predicted == true) for predicted, true in zip(predictions, references, strict=True)]}
