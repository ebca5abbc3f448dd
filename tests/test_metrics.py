"""Metrics score each answer on its own, offline."""

import pytest

from tasks import metrics
from tasks.metrics import METRICS


def scores(name: str, predictions: list[str], references: list[str]) -> list[float]:
    return metrics.load(name).compute(predictions=predictions, references=references)[name]


def test_exact_match_forgives_space_at_the_ends_and_nothing_else():
    assert scores("exact_match", [" Paris\n", "paris", "Paris.", ""], ["Paris"] * 4) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat", "the cat sat", 0.8),  # precision 1, recall 2/3
        ("sat the cat", "the cat sat", 2 / 3),  # the longest common subsequence has 2 of 3 words
        ("北京市", "北京", 0.8),  # by character: precision 2/3, recall 1
        ("东京", "北京", 0.5),
        ("The CAT", "the cat", 1.0),
        ("", "the cat", 0.0),
    ],
)
def test_rouge_l(prediction: str, reference: str, expected: float):
    assert scores("rouge_l", [prediction], [reference]) == [pytest.approx(expected)]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_scores_each_row_and_states_its_range(name: str):
    values = scores(name, ["a", "b", "c"], ["a", "x", "c"])
    assert values == [1.0, 0.0, 1.0]
    assert "Range 0 to 1, higher is better." in metrics.load(name).description
