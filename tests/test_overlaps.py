"""Schedules that are faster than their jobs, and places that killed runs held: F29 and F30 with few tries."""

import pytest
from faults import overlaps  # noqa: F401  (registers its faults)
from faults.matrix import FAULTS, is_survived, run, scaled

from flows.overlaps import skipped_since_last_run


def test_a_run_that_no_deployment_started_has_skipped_none():
    assert skipped_since_last_run() == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("id", ["F29", "F30"])  # F30.pending waits for minutes: make faults
def test_places_are_taken_once_and_freed(id, tmp_path):
    with scaled(0.1):
        line = run(FAULTS[id], tmp_path)
    assert is_survived(line), line
