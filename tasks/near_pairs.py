"""Pairs of rows of many shards that are nearly the same.

Rows are numbered through all shards, in their order.  Work is divided by shard and by band, through files in a scratch
folder, so that no process holds the texts of more than one shard, or more than one band of the index.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tasks.config import Similarity
from tasks.engine import map_shards
from tasks.ledger import batches
from tasks.near_duplicates import band_keys, bands_for, candidates, distinct, jaccard
from tasks.shingles import Shingles, shingles
from tasks.texts import spoken

Text = Callable[[pa.Table], pa.Array]
"""What of the examples is compared."""

KEYS_IN_PART = 50_000_000
"""A band with more rows is divided by its keys, so that one process holds and sorts about so many at most."""


class Pairs(NamedTuple):
    """Near-duplicates: `rows` int64 [pairs, 2], the row of lower rank first; `jaccard` float64 [pairs]."""

    rows: np.ndarray
    jaccard: np.ndarray


def near_pairs(
    shards: Sequence[Path],
    similarity: Similarity,
    scratch: Path,
    alive: np.ndarray | None = None,
    rank: np.ndarray | None = None,
) -> Pairs:
    """All pairs of rows that MinHash finds and that are as similar as `similarity` asks, each once, sorted.

    alive: bool [rows], the rows that count; rank: int64 [rows], their order (default: as they stand).
    """
    scratch.mkdir(parents=True, exist_ok=True)
    keys = [scratch / f"keys-{number:05d}.npy" for number in range(len(shards))]
    sizes = map_shards(
        _write_keys, [(shard, similarity, path) for shard, path in zip(shards, keys, strict=True)], "keys"
    )
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    _save(scratch / "alive.npy", np.ones(starts[-1], bool) if alive is None else alive)
    _save(scratch / "rank.npy", np.arange(starts[-1]) if rank is None else rank)
    parts = int(starts[-1]) // KEYS_IN_PART + 1
    work = [
        (scratch, keys, band, part, parts)
        for band in range(bands_for(similarity.threshold).bands)
        for part in range(parts)
    ]
    found = (np.load(path) for path in map_shards(_write_candidates, work, "buckets"))
    pairs = distinct(found, int(starts[-1]))
    values = similarities(pairs, shards, starts, similarity, scratch, spoken)
    near = values >= similarity.threshold
    return Pairs(pairs[near], values[near])


def _write_keys(shard: Path, similarity: Similarity, path: Path) -> int:
    """The band keys of one shard, uint64 [bands, rows]; returns its rows."""
    found = [band_keys(spoken(table), similarity) for table in batches(shard)]
    keys = np.concatenate(found, axis=1) if found else np.empty((bands_for(similarity.threshold).bands, 0), np.uint64)
    _save(path, keys)
    return keys.shape[1]


def _write_candidates(scratch: Path, keys: Sequence[Path], band: int, part: int, parts: int) -> Path:
    """Pairs of rows that share a key in one band, of those keys that belong to this part."""
    alive, start = np.load(scratch / "alive.npy", mmap_mode="r"), 0
    keys_of_part, rows_of_part = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for path in keys:
        column = np.load(path, mmap_mode="r")[band]
        mine = np.flatnonzero((column % np.uint64(parts) == part) & alive[start : start + len(column)])
        keys_of_part.append(column[mine])
        rows_of_part.append(mine + start)
        start += len(column)
    column, rows = np.concatenate(keys_of_part), np.concatenate(rows_of_part)
    rank = np.load(scratch / "rank.npy", mmap_mode="r")
    path = scratch / f"candidates-{band:03d}-{part:05d}.npy"
    _save(path, rows[candidates(column, rank[rows])])
    return path


def _save(path: Path, array: np.ndarray) -> None:
    """As np.save, which does not say that a disk is full: its OSError has no errno."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def similarities(
    pairs: np.ndarray,
    shards: Sequence[Path],
    starts: np.ndarray,
    similarity: Similarity,
    scratch: Path,
    text: Text,
) -> np.ndarray:
    """Exact Jaccard similarity of pairs of rows, by their `text`: float64 [pairs].

    pairs: int64 [pairs, 2], sorted.  starts: the first row of each shard, and the number of all rows.
    """
    rows = np.sort(pairs, axis=None)
    rows = rows[np.flatnonzero(np.diff(rows, prepend=-1))]  # np.unique takes tens of times as long
    homes = np.searchsorted(starts, rows, side="right") - 1
    stores = [scratch / f"shingles-{number:05d}.npz" for number in range(len(shards))]
    work = [
        (shard, rows[homes == number] - starts[number], similarity, store, text)
        for number, (shard, store) in enumerate(zip(shards, stores, strict=True))
    ]
    map_shards(_write_shingles, [each for each in work if len(each[1])], "shingles")
    home = np.searchsorted(starts, pairs, side="right") - 1
    work = []
    for number in np.unique(home[:, 0]):
        mine = home[:, 0] == number
        work.append((pairs[mine], [(int(starts[other]), stores[other]) for other in np.unique(home[mine])]))
    return np.concatenate([np.empty(0), *map_shards(_similarities, work, "verify")])


def _write_shingles(shard: Path, rows: np.ndarray, similarity: Similarity, path: Path, text: Text) -> None:
    """The shingles of some rows of a shard."""
    sets, begin = [], 0
    for table in batches(shard):
        mine = rows[(rows >= begin) & (rows < begin + table.num_rows)] - begin
        sets.append(shingles(text(table.take(pa.array(mine))), similarity))
        begin += table.num_rows
    joined = _joined(sets)
    np.savez(path, rows=rows, offsets=joined.offsets, hashes=joined.hashes)


def _similarities(pairs: np.ndarray, stores: Sequence[tuple[int, Path]]) -> np.ndarray:
    """Jaccard similarity of pairs of rows whose shingles lie in `stores` (first row of the shard, file)."""
    loaded = [(start, np.load(path)) for start, path in stores]
    rows = np.concatenate([store["rows"] + start for start, store in loaded])
    sets = _joined([Shingles(store["offsets"], store["hashes"]) for _, store in loaded])
    return jaccard(np.searchsorted(rows, pairs), sets)


def _joined(sets: Sequence[Shingles]) -> Shingles:
    shifts = np.cumsum([0] + [len(each.hashes) for each in sets])
    offsets = [each.offsets[1:] + shift for each, shift in zip(sets, shifts, strict=False)]
    return Shingles(np.concatenate([[0], *offsets]).astype(np.int64), np.concatenate([each.hashes for each in sets]))
