"""Precision over classes."""

import evaluate
from sklearn.metrics import precision_score

from tasks.metrics.text_pair import info, macro


class Precision(evaluate.Metric):
    """Of the rows that are predicted to be of a class, the share that is; mean over the references' classes.

    Range 0 to 1, higher is better.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(str(self.__doc__))

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"precision": float(precision_score(references, predictions, **macro(references)))}
