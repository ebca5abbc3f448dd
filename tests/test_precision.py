"""bf16 where it pays, fp32 elsewhere."""

import pytest

from tasks import precision


def test_what_is_asked_for_is_taken(monkeypatch):
    monkeypatch.setattr(precision, "_seconds", lambda bf16: pytest.fail("nothing is measured"))
    assert precision.choose("fp32") == "fp32" and precision.choose("bf16") == "bf16"


@pytest.mark.parametrize(("fp32", "bf16", "chosen"), [(2.0, 1.0, "bf16"), (1.0, 3.0, "fp32"), (1.1, 1.0, "fp32")])
def test_the_faster_one_is_chosen_whatever_else_the_machine_does(monkeypatch, fp32, bf16, chosen):
    """One disturbed round of eight does not decide: the best of each counts."""
    noise = iter([9.0, 1.0] * 8)
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_seconds", lambda half: (bf16 if half else fp32) * (next(noise) if half else 1.0))
    monkeypatch.setattr(precision, "ROUNDS", 8)
    assert precision.choose("auto") == chosen


def test_the_measurement_runs_and_leaves_the_threads_as_they_were():
    before = precision.torch.get_num_threads()
    assert precision.choose("auto") in ("fp32", "bf16")
    assert precision.torch.get_num_threads() == before
