"""Which split each row goes to, decided for all rows together."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tasks.config import SplitConfig
from tasks.schema import SPLITS


class Row(NamedTuple):
    """What decides where a row goes."""

    id: str
    group: str  # rows of one group belong together
    bound: str  # the split that its source is bound to, or ""
    stratum: str
    home: str  # of a row of the last split: where it was; "" for a row that is to be placed


class Placed(NamedTuple):
    """Where a row goes: a split, or "" and why not."""

    split: str
    reason: str = ""
    detail: str = ""


def place_all(rows: Sequence[Row], pairs: np.ndarray, config: SplitConfig) -> list[Placed]:
    """One answer per row; those of the last split come back where they were.

    pairs: int64 [n, 2], rows that belong together because they are nearly the same.

    First come the rows that a source binds, test before validation before train.  They are a promise of the config: a
    row of another split that belongs to them is rejected, wherever it was before.  Then every row that the last split
    knew stays where it was.  A new row joins the split that its group and its near-duplicates lie in; it is rejected
    where these are two; and where there is none, its group's hash decides.
    """
    homes = {row.id: row.home for row in rows if row.home}
    fresh = _stratified(rows, homes, config) if config.method == "stratified" else None
    links = _Links(rows, pairs)
    placed = [Placed("")] * len(rows)
    for number in sorted(range(len(rows)), key=lambda number: _turn(rows[number], homes)):
        row = rows[number]
        home = homes.get(row.id, "")
        if row.home:
            answer = Placed(row.home)
        elif fixed := links.fixed(number):
            answer = _beside_fixed(row, home, fixed)
        elif row.bound or home:
            answer = Placed(row.bound or home)
        else:
            answer = _new(row, links.known(number), fresh, config)
        placed[number] = answer
        links.add(number, answer.split)
    return placed


def by_hash(group: str, config: SplitConfig) -> str:
    """The split of a group: decided by its hash alone."""
    share = _share(group, config)
    if share < config.test:
        return "test"
    return "validation" if share < config.test + config.validation else "train"


def _turn(row: Row, homes: Mapping[str, str]) -> int:
    """The last split itself, then bound rows, then rows that it knew, then new ones."""
    if row.home:
        return 0
    if row.bound:
        return 3 - SPLITS.index(row.bound)
    return 4 if row.id in homes else 5


def _beside_fixed(row: Row, home: str, fixed: Mapping[str, str]) -> Placed:
    """A row that belongs to rows of bound splits: a fixed validation or test set is not added to, or trained on."""
    wanted = row.bound or ("train" if home in {"", "train"} else "")
    owners = [split for split in reversed(SPLITS) if split in fixed and split != wanted]
    if not owners:
        return Placed(wanted)
    return Placed("", f"{fixed[owners[0]]}_in_{owners[0]}", f"group {row.group}" if fixed[owners[0]] == "group" else "")


def _new(row: Row, known: Mapping[str, str], fresh: Mapping[str, str] | None, config: SplitConfig) -> Placed:
    """A row that no source binds and that the last split did not know."""
    if len(known) > 1:
        return Placed("", "joins_two_splits", " and ".join(f"{tie} in {split}" for split, tie in sorted(known.items())))
    if known:
        return Placed(next(iter(known)))
    return Placed(fresh[row.group] if fresh is not None else by_hash(row.group, config))


def _stratified(rows: Sequence[Row], homes: Mapping[str, str], config: SplitConfig) -> dict[str, str]:
    """Where new groups go, so that each stratum as a whole comes as near to the shares as it can.

    What is missing in test, then in validation, is taken from the new groups in the order of their hashes.
    """
    strata: dict[str, dict[str, str]] = defaultdict(dict)  # stratum -> group -> the split it lies in, or ""
    for row in rows:
        if not row.bound and not strata[row.stratum].get(row.group):
            strata[row.stratum][row.group] = homes.get(row.id, "")
    found: dict[str, str] = {}
    for groups in strata.values():
        fresh = sorted((group for group, split in groups.items() if not split), key=lambda group: _share(group, config))
        for split, share in (("test", config.test), ("validation", config.validation)):
            missing = max(0, round(share * len(groups)) - list(groups.values()).count(split))
            found |= dict.fromkeys(fresh[:missing], split)
            fresh = fresh[missing:]
        found |= dict.fromkeys(fresh, "train")
    return found


def _share(group: str, config: SplitConfig) -> float:
    """A number from 0 to 1 that depends on the group and the seed alone."""
    digest = hashlib.sha256(f"{config.seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class _Links:
    """What rows that are placed already say of a row: the splits of its group and of its near-duplicates."""

    def __init__(self, rows: Sequence[Row], pairs: np.ndarray) -> None:
        self.rows = rows
        self.near: dict[int, list[int]] = defaultdict(list)
        for one, other in pairs.tolist():
            self.near[one].append(other)
            self.near[other].append(one)
        self.splits: dict[int, str] = {}
        self.groups: dict[str, set[str]] = defaultdict(set)
        self.bound_groups: dict[str, set[str]] = defaultdict(set)

    def add(self, number: int, split: str) -> None:
        """The row `number` was put into `split`."""
        if split:
            row = self.rows[number]
            self.splits[number] = split
            self.groups[row.group].add(split)
            if row.bound and not row.home:
                self.bound_groups[row.group].add(split)

    def fixed(self, number: int) -> dict[str, str]:
        """Splits that bound rows of its kind lie in, with `near_duplicate` or `group` as the tie."""
        near = (each for each in self._near(number) if self.rows[each].bound and not self.rows[each].home)
        groups = self.bound_groups.get(self.rows[number].group, ())
        return {self.splits[each]: "near_duplicate" for each in near} | dict.fromkeys(groups, "group")

    def known(self, number: int) -> dict[str, str]:
        """Splits that rows of its kind lie in."""
        near = {self.splits[each]: "near_duplicate" for each in self._near(number)}
        return near | dict.fromkeys(self.groups.get(self.rows[number].group, ()), "group")

    def _near(self, number: int) -> Iterator[int]:
        return (each for each in self.near.get(number, ()) if each in self.splits)
