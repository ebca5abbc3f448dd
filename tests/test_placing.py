"""Placing: who comes first when rows that belong together are wanted in several splits."""

from typing import NamedTuple

import numpy as np
import pytest

from tasks.config import SplitConfig
from tasks.layout import SPLITS
from tasks.placing import JOINS, NONE, TEST, TRAIN, VALIDATION, Rows, place_all, rejection_of

CONFIG = SplitConfig(validation=0.25, test=0.25)
SHARES = {TEST: 0.1, VALIDATION: 0.3, TRAIN: 0.9}
"""Shares whose hash alone would decide so."""


class Row(NamedTuple):
    """A row as it is placed; one of the last split has a `home`."""

    id: int
    group: int = 0  # 0: a group of its own
    wanted: int = TRAIN
    bound: int = NONE
    home: int = NONE
    stratum: int = 0


def place(*rows: Row, near: list[tuple[int, int]] | None = None, config: SplitConfig = CONFIG) -> list[str]:
    """Split or reason of each row; `near` are pairs of places in `rows`."""
    columns = Rows(
        ids=np.array([row.id for row in rows], np.uint64),
        groups=np.array([row.group or 1000 + row.id for row in rows], np.uint64),
        shares=np.array([SHARES[row.wanted] for row in rows]),
        strata=np.array([row.stratum for row in rows], np.uint64),
        bound=np.array([row.bound for row in rows], np.int8),
        homes=np.array([row.home for row in rows], np.int8),
    )
    pairs = np.array(near or [], np.int64).reshape(-1, 2)
    return [told(answer) for answer in place_all(columns, pairs, config).tolist()]


def told(answer: int) -> str:
    return SPLITS[answer] if answer < len(SPLITS) else " ".join(rejection_of(answer, "")).strip().removesuffix(" group")


OLD_TRAIN, OLD_TEST = Row(1, group=1, home=TRAIN), Row(2, group=2, home=TEST)


@pytest.mark.parametrize("turned", [False, True])
def test_a_new_row_joins_what_it_belongs_to_and_is_rejected_between_two_splits(turned):
    new = [Row(5, group=1, wanted=TEST), Row(6), Row(7, group=1), Row(8, wanted=VALIDATION)]
    near = [(1, 3), (1, 4)]
    near = [pair[::-1] for pair in near] if turned else near
    assert place(OLD_TRAIN, OLD_TEST, *new, near=near)[2:] == [
        "train", "test", "joins_two_splits train and test", "validation",
    ]  # fmt: skip


def test_a_known_row_stays_where_it_was_whatever_lies_beside_it():
    known = [Row(1, group=2, wanted=TEST), Row(2, group=1, wanted=VALIDATION)]  # their groups have changed places
    assert place(OLD_TRAIN, OLD_TEST, *known, near=[(0, 3), (1, 2)])[2:] == ["train", "test"]


def test_known_rows_are_placed_before_new_ones():
    """The group of a known row may be another one today: what is new there follows it."""
    assert place(OLD_TEST, Row(5, group=9), Row(2, group=9))[1:] == ["test", "test"]


def test_a_bound_row_comes_before_a_known_one_which_is_rejected():
    known, bound = Row(1, group=3), Row(5, group=3, bound=TEST)
    assert place(OLD_TRAIN, known, bound)[1:] == ["group_in_test", "test"]
    near = place(OLD_TRAIN, Row(1), Row(5, bound=TEST), near=[(1, 2)])
    assert near[1:] == ["near_duplicate_in_test", "test"]


def test_a_known_row_of_test_is_not_moved_to_train_by_a_bound_source():
    assert place(OLD_TEST, Row(2, group=3), Row(5, group=3, bound=TRAIN))[1:] == ["group_in_train", "train"]
    known = Row(1, group=3)
    assert place(OLD_TRAIN, known, Row(5, group=3, bound=TRAIN))[1:] == ["train", "train"]


def test_what_a_source_bound_in_the_last_split_binds_nobody_today():
    gone = Row(4, group=1, bound=TEST, home=TEST)
    assert place(OLD_TRAIN, gone, Row(1, group=1), near=[(1, 2)])[2:] == ["train"]


def test_of_bound_rows_test_beats_validation_beats_train_in_any_order():
    rows = [Row(1, 1, bound=TRAIN), Row(2, 1, bound=VALIDATION), Row(3, 1, bound=TEST), Row(4, 1, bound=TEST)]
    places = ["group_in_test", "group_in_test", "test", "test"]
    assert place(*rows) == places and place(*rows[::-1]) == places[::-1]
    rows = [Row(1, bound=TRAIN), Row(2, bound=VALIDATION), Row(3, bound=TEST), Row(4)]
    near = [(0, 1), (1, 3), (2, 3)]
    assert place(*rows, near=near) == ["near_duplicate_in_validation", "validation", "test", "near_duplicate_in_test"]


def test_the_reason_tells_the_group_from_the_near_duplicate():
    """In the group of one bound row and near to another: the stronger split is told, with what leads to it."""
    validation, test = Row(1, group=1, bound=VALIDATION), Row(2, group=2, bound=TEST)
    assert place(validation, test, Row(3, group=1), near=[(1, 2)])[2] == "near_duplicate_in_test"
    assert place(validation, test, Row(3, group=2), near=[(0, 2)])[2] == "group_in_test"


def test_a_rejected_row_draws_nobody_anywhere():
    rejected = Row(3, group=2, bound=TRAIN)
    rows = [Row(2, group=2, bound=TEST), rejected, Row(4, wanted=VALIDATION)]
    assert place(*rows, near=[(1, 2)]) == ["test", "group_in_test", "validation"]


def test_a_bound_row_goes_where_it_is_bound_even_beside_old_rows_of_other_splits():
    assert place(OLD_TEST, Row(5, group=2, bound=TRAIN, wanted=TEST))[1] == "train"


def test_an_answer_that_joins_names_its_splits():
    assert rejection_of(JOINS + 0b101, "g") == ("joins_two_splits", "train and test")
    assert rejection_of(JOINS + 0b111, "g") == ("joins_two_splits", "train and validation and test")


def test_a_stratum_is_filled_from_its_new_groups_by_what_is_missing_and_bound_rows_do_not_count():
    config = SplitConfig(method="stratified", validation=0.25, test=0.25)
    old = [Row(n, home=home) for n, home in enumerate([TEST, TEST, TRAIN, TRAIN])]
    known = [Row(n) for n in range(4)]
    new = [Row(10 + n, wanted=TEST) for n in range(4)]
    places = place(*old, *known, *new, config=config)
    assert places[4:8] == ["test", "test", "train", "train"]
    assert places[8:] == ["validation", "validation", "train", "train"], "test has its share already"
    bound = [Row(20 + n, bound=TRAIN) for n in range(8)]
    assert place(*old, *known, *new, *bound, config=config)[: len(places)] == places


def test_in_a_stratum_the_groups_of_lowest_hash_are_held_out_and_strata_are_filled_apart():
    config = SplitConfig(method="stratified", validation=0.25, test=0.25)
    rows = [Row(1), Row(2, wanted=TEST), Row(3), Row(4, wanted=VALIDATION)]
    assert place(*rows, config=config) == ["train", "test", "train", "validation"]
    other = [Row(row.id + 10, wanted=row.wanted, stratum=1) for row in rows]
    assert place(*rows, *other, config=config) == ["train", "test", "train", "validation"] * 2
