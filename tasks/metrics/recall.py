"""Recall over classes."""

import evaluate
from sklearn.metrics import recall_score

from tasks.metrics.text_pair import info, macro


class Recall(evaluate.Metric):
    """Of the rows of a class, the share that is predicted to be; mean over the references' classes.

    Range 0 to 1, higher is better.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(str(self.__doc__))

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"recall": float(recall_score(references, predictions, **macro(references)))}
