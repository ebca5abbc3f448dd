"""Metrics: those of one answer score each on its own, those of a group score all rows together; all offline."""

import pytest
from sklearn.metrics import classification_report

from tasks import metrics
from tasks.metrics import METRICS, OF_A_GROUP

PREDICTIONS = ["ham", "ham", "spam", "ham", "eggs", "spam"]
REFERENCES = ["ham", "spam", "spam", "ham", "spam", "spam"]
"""ham: 2 of 3 predicted are right, both of 2 are found; spam: 2 of 2 are right, 2 of 4 are found; eggs: nobody's."""


def test_exact_match_forgives_space_at_the_ends_and_nothing_else():
    found = metrics.scores("exact_match", [" Paris\n", "paris", "Paris.", ""], ["Paris"] * 4)
    assert found == [1.0, 0.0, 0.0, 0.0]


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
    assert metrics.scores("rouge_l", [prediction], [reference]) == [pytest.approx(expected)]


def test_accuracy_scores_each_answer():
    assert metrics.scores("accuracy", PREDICTIONS, REFERENCES) == [1, 0, 1, 1, 0, 1]
    assert metrics.value("accuracy", PREDICTIONS, REFERENCES) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("name", "of_ham", "of_spam"), [("precision", 2 / 3, 1.0), ("recall", 1.0, 0.5), ("f1", 0.8, 2 / 3)]
)
def test_a_metric_of_a_group_is_the_mean_over_the_classes_that_were_asked_for(name: str, of_ham: float, of_spam: float):
    """A class that nobody asked for, eggs, takes part in no mean; computed by hand, and by scikit-learn's report."""
    assert metrics.value(name, PREDICTIONS, REFERENCES) == pytest.approx((of_ham + of_spam) / 2)
    report = classification_report(REFERENCES, PREDICTIONS, labels=["ham", "spam"], output_dict=True, zero_division=0)
    theirs = report["macro avg"]["f1-score" if name == "f1" else name]
    assert metrics.value(name, PREDICTIONS, REFERENCES) == pytest.approx(theirs)


@pytest.mark.parametrize("name", sorted(OF_A_GROUP))
def test_a_class_that_is_never_predicted_counts_as_zero(name: str):
    assert metrics.value(name, ["ham", "ham"], ["spam", "eggs"]) == 0.0
    assert metrics.value(name, ["spam", "spam"], ["spam", "eggs"]) < metrics.value(name, ["spam"], ["spam"]) == 1.0


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_states_its_range_and_its_direction(name: str):
    assert "Range 0 to 1, higher is better." in metrics.load(name).description


@pytest.mark.parametrize("name", METRICS)
def test_the_value_of_a_group_is_one_number_between_none_and_all_right(name: str):
    assert metrics.value(name, ["a", "b", "c"], ["a", "b", "c"]) == 1.0
    assert metrics.value(name, ["x", "y", "z"], ["a", "b", "c"]) == 0.0


@pytest.mark.parametrize("name", sorted(METRICS.keys() - OF_A_GROUP))
def test_every_other_metric_scores_each_row(name: str):
    assert metrics.scores(name, ["a", "b", "c"], ["a", "x", "c"]) == [1.0, 0.0, 1.0]
    assert metrics.value(name, ["a", "b", "c"], ["a", "x", "c"]) == pytest.approx(2 / 3)
