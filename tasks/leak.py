"""The leak: how much of validation and test stands in train as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tasks.config import Similarity
from tasks.ledger import batches, place, rows_at, shards
from tasks.near_pairs import near_pairs
from tasks.schema import PLACE
from tasks.texts import CONTENT, hashes

TESTS = ("exact", "normalised", "near_duplicate")
SHOWN = 5


def measure(folder: Path, similarity: Similarity, scratch: Path) -> dict[str, dict[str, Any]]:
    """For validation and test in `folder`: rows, how many of them train holds, by each of TESTS, and their share.

    exact: the whole content is equal.  normalised: equal but for Unicode form, spaces and the case of letters.
    near_duplicate: as similar as `similarity` says.  `first` shows a few, each with the row of train.
    """
    train = shards(folder / "train")
    known = {test: _contents(train, test) for test in TESTS[:2]}
    found = {}
    for name in ("validation", "test"):
        held_out = shards(folder / name)
        twins = {test: _equal(_contents(held_out, test), known[test]) for test in known}
        twins["near_duplicate"] = _near(held_out, train, similarity, scratch / name)
        found[name] = _described(twins, held_out, train)
    return found


def _described(twins: dict[str, dict[int, int]], held_out: Sequence[Path], train: Sequence[Path]) -> dict[str, Any]:
    rows = sum(pq.read_metadata(shard).num_rows for shard in held_out)
    leaked = {row: twin for found in twins.values() for row, twin in found.items()}
    return {
        "rows": rows,
        **{test: len(found) for test, found in twins.items()},
        "ratio": len(leaked) / max(1, rows),
        "first": [f"{_place(held_out, row)} ~ {_place(train, leaked[row])}" for row in sorted(leaked)[:SHOWN]],
    }


def _contents(shards: Sequence[Path], test: str) -> np.ndarray:
    """A hash of the content of each row, as `test` compares it: 16 bytes each."""
    normalise = test == "normalised"
    parts = [hashes(table, CONTENT, normalise=normalise, fold=normalise) for table in batches(*shards)]
    return np.concatenate([np.empty(0, "S16"), *(np.array(part, "S16") for part in parts)])


def _equal(held_out: np.ndarray, train: np.ndarray) -> dict[int, int]:
    """Rows of `held_out` with a row of `train` that has the same content."""
    order = np.argsort(train, kind="stable")
    at = np.searchsorted(train[order], held_out)
    rows = np.flatnonzero(at < len(train))
    rows = rows[train[order[at[rows]]] == held_out[rows]]
    return dict(zip(rows.tolist(), order[at[rows]].tolist(), strict=True))


def _near(held_out: Sequence[Path], train: Sequence[Path], similarity: Similarity, scratch: Path) -> dict[int, int]:
    """Rows of `held_out` with a near-duplicate in `train`."""
    rows = sum(pq.read_metadata(shard).num_rows for shard in held_out)
    pairs = np.sort(near_pairs([*held_out, *train], similarity, scratch).rows, axis=1)
    crossing = pairs[(pairs[:, 0] < rows) & (pairs[:, 1] >= rows)]
    return dict(zip(crossing[:, 0].tolist(), (crossing[:, 1] - rows).tolist(), strict=True))


def _place(shards: Sequence[Path], row: int) -> str:
    return place(rows_at(shards, np.array([row])).select(PLACE).to_pylist()[0])
