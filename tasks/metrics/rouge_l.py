"""ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013)."""

import re

import evaluate
from rouge_score import rouge_scorer, tokenizers

from tasks.metrics.text_pair import info

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_]+")


class Words(tokenizers.Tokenizer):
    """Lower-cased words; scripts written without spaces count by character."""

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`, in order."""
        spaced = re.sub(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])", r" \1 ", text.lower())
        return _WORD.findall(spaced)


class RougeL(evaluate.Metric):
    """F1 of the longest common subsequence of words of answer and reference.  Range 0 to 1, higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        return info(str(self.__doc__))

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, list[float]]:
        scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words())
        pairs = zip(predictions, references, strict=True)
        return {"rouge_l": [scorer.score(reference, prediction)["rougeL"].fmeasure for prediction, reference in pairs]}
