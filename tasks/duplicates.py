"""Rows that go because of another row: equal ones, conflicts, and near-duplicates.

Rows are numbered through all shards, in their order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from tasks.config import CleanConfig, NearDuplicatesConfig, Policy
from tasks.engine import map_shards
from tasks.ledger import batches, cut, place, rows_at
from tasks.near_duplicates import resolve
from tasks.near_pairs import Pairs, near_pairs, similarities
from tasks.schema import PLACE
from tasks.texts import CONTENT, PROMPT, asked_and_answered, hashes, spoken

REASONS = ("duplicate_of", "conflicts_with", "near_duplicate_of")
CLUSTERS = 10
"""Clusters of near-duplicates that are shown in the data report, largest first."""


class Removed(NamedTuple):
    """The rows of one shard that go: three lists of equal length, sorted by row."""

    rows: list[int]  # counted from the shard's first row
    reasons: list[str]
    details: list[str]  # where the row stands that each goes for


class _Marks(NamedTuple):
    """What is compared of the rows of a shard."""

    content: np.ndarray  # uint64 [rows, 2]
    prompt: np.ndarray  # uint64 [rows, 2]
    answer_chars: np.ndarray  # int64 [rows]


def find(config: CleanConfig, shards: Sequence[Path], scratch: Path) -> tuple[list[Removed], dict[str, Any]]:
    """What the policies of `config` remove from each shard (columns EXAMPLE), and the figures of the three tests."""
    marks = map_shards(_marks, [(shard,) for shard in shards], "compare")
    starts = np.concatenate([[0], np.cumsum([len(each.answer_chars) for each in marks])]).astype(np.int64)
    content, prompt, chars = (np.concatenate(column) for column in zip(*marks, strict=True))
    everyone = np.arange(starts[-1])
    reason, other = np.full(len(everyone), -1), np.full(len(everyone), -1)

    equal = equal_rows(content, _rank(config.duplicates, chars), np.ones(len(everyone), bool))
    _note(0, goes(equal, config.duplicates), reason, other)
    # Equal rows that stay do not contradict each other: the first is compared, and the others share its fate.
    first = np.where(equal >= 0, equal, everyone)
    alive = (equal < 0) & (reason < 0)
    conflict = equal_rows(prompt, _rank(config.conflicts, chars), alive)
    _note(1, goes(conflict, config.conflicts)[first], reason, other)
    near = config.near_duplicates
    rank = _rank(near.policy, chars)
    pairs = _asked_alike(near_pairs(shards, near, scratch, alive & (reason < 0), rank), shards, starts, near, scratch)
    cluster = resolve(pairs.rows, rank, len(everyone))
    _note(2, goes(cluster, near.policy)[first], reason, other)

    figures = {
        "duplicates": int((equal >= 0).sum()),
        "conflicts": int((conflict >= 0).sum()),
        "near_duplicates": int((cluster >= 0).sum()),
        "near_duplicate_pairs": len(pairs.rows),
        "clusters": _clusters(cluster, shards),
    }
    return _by_shard(reason, other, pairs, shards, starts), figures


def _asked_alike(
    pairs: Pairs, shards: Sequence[Path], starts: np.ndarray, config: NearDuplicatesConfig, scratch: Path
) -> Pairs:
    """The pairs that are alike without their inputs as well: a passage that two rows share makes them no duplicates."""
    asked = config.model_copy(update={"threshold": config.asked_threshold})
    alike = similarities(pairs.rows, shards, starts, asked, scratch, asked_and_answered) >= config.asked_threshold
    return Pairs(pairs.rows[alike], pairs.jaccard[alike])


def equal_rows(hashes: np.ndarray, rank: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """For each row the row of lowest rank with the same hash, or -1 for that row itself and for rows not alive.

    hashes: uint64 [rows, 2].  rank: int64 [rows].  alive: bool [rows].
    """
    rows = np.flatnonzero(alive)
    order = rows[np.lexsort((rank[rows], hashes[rows, 1], hashes[rows, 0]))]
    begins = np.ones(len(order), bool)
    begins[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    first = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    found = np.full(len(hashes), -1)
    found[order] = np.where(begins, -1, first)
    return found


def goes(kept: np.ndarray, policy: Policy) -> np.ndarray:
    """For each row the row that it goes for, or -1 where it stays.

    kept: int64 [rows], for each row the one of its like that comes first, or -1 for that one and for rows alone.
    """
    if policy == "keep_all":
        return np.full_like(kept, -1)
    removed = kept.copy()
    if policy == "drop_all":
        followers = np.flatnonzero(kept >= 0)[::-1]
        removed[kept[followers]] = followers  # the first one goes for the first of its followers
    return removed


def _rank(policy: Policy, answer_chars: np.ndarray) -> np.ndarray:
    """The order in which rows are preferred: as they stand, or by the length of the answer."""
    rank = np.arange(len(answer_chars))
    if policy == "keep_longest":
        rank[np.lexsort((rank.copy(), -answer_chars))] = np.arange(len(answer_chars))
    return rank


def _note(number: int, gone: np.ndarray, reason: np.ndarray, other: np.ndarray) -> None:
    """Write down which rows go, unless an earlier reason has taken them."""
    fresh = (gone >= 0) & (reason < 0)
    reason[fresh], other[fresh] = number, gone[fresh]


def _marks(shard: Path) -> _Marks:
    parts = []
    for table in batches(shard):
        content, prompt = hashes(table, CONTENT, normalise=True), hashes(table, PROMPT, normalise=True)
        parts.append(
            (_integers(content), _integers(prompt), pc.utf8_length(table["output"]).to_numpy().astype(np.int64))
        )
    empty = np.empty((0, 2), np.uint64)
    columns = zip((empty, empty, np.empty(0, np.int64)), *parts, strict=True)
    return _Marks(*(np.concatenate(column) for column in columns))


def _integers(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).astype(np.uint64)


def _by_shard(
    reason: np.ndarray, other: np.ndarray, pairs: Pairs, shards: Sequence[Path], starts: np.ndarray
) -> list[Removed]:
    rows = np.flatnonzero(reason >= 0)
    places = _places(np.unique(other[rows]), shards)
    details = [places[each]["place"] for each in other[rows].tolist()]
    similar = _similarity(pairs, rows, other[rows], len(reason))
    details = [
        f"{detail} (Jaccard similarity {j:.2f})" if j else detail for detail, j in zip(details, similar, strict=True)
    ]
    cuts = np.searchsorted(rows, starts)
    return [
        Removed((rows[a:b] - start).tolist(), [REASONS[number] for number in reason[rows[a:b]]], details[a:b])
        for start, a, b in zip(starts, cuts, cuts[1:], strict=False)
    ]


def _similarity(pairs: Pairs, rows: np.ndarray, others: np.ndarray, everyone: int) -> list[float]:
    """Jaccard similarity of each row with the other where they are a pair, else 0."""
    known = np.sort(pairs.rows, axis=1) @ np.array([everyone, 1])
    order = np.argsort(known)
    asked = np.minimum(rows, others) * everyone + np.maximum(rows, others)
    at = np.searchsorted(known[order], asked)
    found = np.append(known[order], -1)[at] == asked
    return np.where(found, np.append(pairs.jaccard[order], 0.0)[at], 0.0).tolist()


def _clusters(cluster: np.ndarray, shards: Sequence[Path]) -> list[dict[str, Any]]:
    """The largest clusters of near-duplicates: how many rows, and the row that stands for them."""
    firsts, followers = np.unique(cluster[cluster >= 0], return_counts=True)
    largest = np.lexsort((firsts, -followers))[:CLUSTERS]
    shown = _places(np.sort(firsts[largest]), shards)
    return [{"rows": int(followers[at]) + 1, **shown[int(firsts[at])]} for at in largest]


def _places(rows: np.ndarray, shards: Sequence[Path]) -> dict[int, dict[str, str]]:
    """Place and beginning of some rows (sorted), by row."""
    if not len(rows):
        return {}
    table = rows_at(shards, rows)
    texts = (cut(text.strip()) for text in spoken(table).to_pylist())
    found = zip(map(place, table.select(PLACE).to_pylist()), texts, strict=True)
    return {row: {"place": where, "text": text} for row, (where, text) in zip(rows.tolist(), found, strict=True)}
