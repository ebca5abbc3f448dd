"""F1 over classes."""

import evaluate
from sklearn.metrics import f1_score

from tasks.metrics.text_pair import info, macro


class F1(evaluate.Metric):
    """Harmonic mean of a class's precision and recall; mean over the references' classes.

    Range 0 to 1, higher is better.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(str(self.__doc__))

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, **macro(references)))}
