"""The leak: how much of validation and test stands in train as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tasks.config import Similarity
from tasks.ledger import batches, place, shards
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
    places = _places(train)
    known = {test: _first_rows(train, normalise=test == "normalised") for test in ("exact", "normalised")}
    found = {}
    for name in ("validation", "test"):
        held_out = shards(folder / name)
        twins = {test: _equal(held_out, rows, normalise=test == "normalised") for test, rows in known.items()}
        twins["near_duplicate"] = _near(held_out, train, similarity, scratch / name)
        found[name] = _described(twins, _places(held_out), places)
    return found


def _described(twins: dict[str, dict[int, int]], places: list[str], train_places: list[str]) -> dict[str, Any]:
    leaked = {row: twin for found in twins.values() for row, twin in found.items()}
    return {
        "rows": len(places),
        **{test: len(found) for test, found in twins.items()},
        "ratio": len(leaked) / max(1, len(places)),
        "first": [f"{places[row]} ~ {train_places[leaked[row]]}" for row in sorted(leaked)[:SHOWN]],
    }


def _first_rows(shards: Sequence[Path], *, normalise: bool) -> dict[bytes, int]:
    """The first row of each content."""
    rows = list(enumerate(_contents(shards, normalise)))
    return {content: row for row, content in reversed(rows)}


def _equal(held_out: Sequence[Path], train: dict[bytes, int], *, normalise: bool) -> dict[int, int]:
    """Rows of `held_out` with a row of `train` that has the same content."""
    return {row: train[content] for row, content in enumerate(_contents(held_out, normalise)) if content in train}


def _contents(shards: Sequence[Path], normalise: bool) -> list[bytes]:
    return [each for table in batches(*shards) for each in hashes(table, CONTENT, normalise=normalise, fold=normalise)]


def _near(held_out: Sequence[Path], train: Sequence[Path], similarity: Similarity, scratch: Path) -> dict[int, int]:
    """Rows of `held_out` with a near-duplicate in `train`."""
    rows = sum(pq.read_metadata(shard).num_rows for shard in held_out)
    pairs = np.sort(near_pairs([*held_out, *train], similarity, scratch).rows, axis=1)
    crossing = pairs[(pairs[:, 0] < rows) & (pairs[:, 1] >= rows)]
    return dict(zip(crossing[:, 0].tolist(), (crossing[:, 1] - rows).tolist(), strict=True))


def _places(shards: Sequence[Path]) -> list[str]:
    return [place(row) for table in batches(*shards, columns=list(PLACE)) for row in table.to_pylist()]
