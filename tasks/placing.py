"""Which split each row goes to, decided for all rows together.

Splits are numbers here: the place of their names in SPLITS.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tasks.compiled import compiled
from tasks.config import SplitConfig
from tasks.layout import SPLITS
from tasks.texts import numbers

NONE = -1
TRAIN, VALIDATION, TEST = range(len(SPLITS))
JOINS = 100
GROUP_IN, NEAR_IN = 10, 20
"""An answer below GROUP_IN is a split; GROUP_IN + split and NEAR_IN + split are rejections, and so is JOINS + splits,
where splits has a bit for each."""


class Rows(NamedTuple):
    """What decides where rows go, one array each."""

    ids: np.ndarray  # uint64, a hash
    groups: np.ndarray  # uint64, a hash; rows of one group belong together
    shares: np.ndarray  # float64, from 0 to 1, the same for all rows of a group
    strata: np.ndarray  # uint64, a hash
    bound: np.ndarray  # int8, the split that the row's source is bound to, or NONE
    homes: np.ndarray  # int8, of a row of the last split: where it was; NONE for a row that is to be placed


def rows_of(table: pa.Table, home: int, config: SplitConfig) -> Rows:
    """The rows of a table (columns EXAMPLE); with unseen_instructions a whole task is one group."""
    names = table["task" if config.method == "unseen_instructions" else "group"].to_pylist()
    splits = np.array(["", *SPLITS], object)
    bound = [np.flatnonzero(splits == split)[0] - 1 for split in table["split"].to_pylist()]
    return Rows(
        ids=numbers(table["id"].to_pylist()),
        groups=numbers(names),
        shares=np.array([_share(name, config) for name in names]),
        strata=numbers(table[config.stratify_by].to_pylist()),
        bound=np.array(bound, np.int8),
        homes=np.full(table.num_rows, home, np.int8),
    )


def place_all(rows: Rows, pairs: np.ndarray, config: SplitConfig) -> np.ndarray:
    """For each row a split or a rejection: int64 [rows]; the rows of the last split come back where they were.

    pairs: int64 [n, 2], rows that belong together because they are nearly the same.

    First come the rows that a source binds, test before validation before train.  They are a promise of the config: a
    row of another split that belongs to them is rejected, wherever it was before.  Then every row that the last split
    knew stays where it was.  A new row joins the split that its group and its near-duplicates lie in; it is rejected
    where these are two; and where there is none, its group's hash decides.
    """
    old = rows.homes != NONE
    homes = _known_homes(rows, old)
    wanted = _stratified(rows, homes, config) if config.method == "stratified" else _by_share(rows.shares, config)
    turn = np.select([old, rows.bound != NONE, homes != NONE], [0, 3 - rows.bound, 4], 5)
    _, groups = np.unique(rows.groups, return_inverse=True)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    starts = np.searchsorted(both[:, 0], np.arange(len(old) + 1))
    answers = np.full(len(old), NONE)
    order = np.argsort(turn, kind="stable")
    masks = np.zeros((2, len(groups)), np.int64)
    _place(order, old, rows.bound, homes, wanted, groups, starts, both[:, 1].copy(), masks[0], masks[1], answers)
    return answers


def by_hash(group: str, config: SplitConfig) -> str:
    """The split of a group whose hash alone decides."""
    return SPLITS[_by_share(np.array([_share(group, config)]), config)[0]]


def rejection_of(answer: int, group: str) -> tuple[str, str]:
    """Reason and detail of an answer that is no split."""
    if answer >= JOINS:
        return "joins_two_splits", " and ".join(name for at, name in enumerate(SPLITS) if (answer - JOINS) >> at & 1)
    if answer >= NEAR_IN:
        return f"near_duplicate_in_{SPLITS[answer - NEAR_IN]}", ""
    return f"group_in_{SPLITS[answer - GROUP_IN]}", f"group {group}"


@compiled
def _place(order, old, bound, homes, wanted, groups, starts, near, lie_in, bound_in, answers):
    """Place row after row; lie_in and bound_in hold the splits of each group, a bit for each, of all and of bound rows.

    order, groups, starts, near, lie_in, bound_in, answers: int64.  old: bool.  bound, homes, wanted: int8.
    """
    for row in order:
        group = groups[row]
        near_splits = near_fixed = 0
        for other in near[starts[row] : starts[row + 1]]:
            if 0 <= answers[other] < GROUP_IN:
                near_splits |= 1 << answers[other]
                if bound[other] != NONE and not old[other]:
                    near_fixed |= 1 << answers[other]
        fixed, splits = near_fixed | bound_in[group], near_splits | lie_in[group]
        answer = np.int64(homes[row])
        if old[row]:
            pass
        elif fixed:
            # A fixed validation or test set is not added to, and what is like it must not be trained on.
            answer = np.int64(bound[row])
            if answer == NONE and (homes[row] == NONE or homes[row] == TRAIN):
                answer = TRAIN
            others = fixed & ~(1 << answer) if answer != NONE else fixed
            if others:
                owner = TEST if others >> TEST else VALIDATION if others >> VALIDATION else TRAIN
                answer = owner + (GROUP_IN if bound_in[group] >> owner & 1 else NEAR_IN)
        elif bound[row] != NONE:
            answer = np.int64(bound[row])
        elif answer == NONE and splits == 0:
            answer = np.int64(wanted[row])
        elif answer == NONE:
            answer = TEST if splits == 1 << TEST else VALIDATION if splits == 1 << VALIDATION else TRAIN
            if splits & (splits - 1):
                answer = JOINS + splits
        answers[row] = answer
        if answer < GROUP_IN:
            lie_in[group] |= 1 << answer
            if bound[row] != NONE and not old[row]:
                bound_in[group] |= 1 << answer


def _known_homes(rows: Rows, old: np.ndarray) -> np.ndarray:
    """Where the last split had each row, by its id: int8 [rows], NONE for new rows."""
    ids, first = np.unique(rows.ids[old], return_index=True)
    at = np.minimum(np.searchsorted(ids, rows.ids), max(0, len(ids) - 1))
    if not len(ids):
        return np.full(len(old), NONE, np.int8)
    return np.where(ids[at] == rows.ids, rows.homes[old][first[at]], NONE).astype(np.int8)


def _by_share(shares: np.ndarray, config: SplitConfig) -> np.ndarray:
    chosen = np.select([shares < config.test, shares < config.test + config.validation], [TEST, VALIDATION], TRAIN)
    return chosen.astype(np.int8)


def _stratified(rows: Rows, homes: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Where new groups go, so that each stratum as a whole comes as near to the shares as it can: int8 [rows].

    What is missing in test, then in validation, is taken from the new groups in the order of their hashes.
    """
    free = np.flatnonzero(rows.bound == NONE)
    groups, first, inverse = np.unique(rows.groups[free], return_index=True, return_inverse=True)
    split_of = np.full(len(groups), NONE)
    known = homes[free] != NONE
    split_of[inverse[known]] = homes[free][known]
    strata = rows.strata[free][first]
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        fresh = members[split_of[members] == NONE]
        fresh = fresh[np.argsort(rows.shares[free][first[fresh]], kind="stable")]
        for split, share in ((TEST, config.test), (VALIDATION, config.validation)):
            missing = max(0, round(share * len(members)) - int((split_of[members] == split).sum()))
            split_of[fresh[:missing]] = split
            fresh = fresh[missing:]
        split_of[fresh] = TRAIN
    wanted = np.full(len(rows.ids), TRAIN, np.int8)
    wanted[free] = split_of[inverse]
    return wanted


def _share(group: str, config: SplitConfig) -> float:
    """A number from 0 to 1 that depends on the group and the seed alone."""
    digest = hashlib.sha256(f"{config.seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
