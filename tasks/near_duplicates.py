"""Near-duplicates: MinHash with banding finds the pairs that may be near, exact Jaccard similarity says which are.

In order: `band_keys`, `candidates` of each band, `distinct`, `jaccard` of their shingles, `resolve`.

Two sets of n-grams have the same k-th MinHash with a probability equal to their Jaccard similarity j (Broder, "On the
resemblance and containment of documents", 1997).  With the MinHashes in bands of r rows, two texts share all of at
least one of b bands with probability 1 - (1 - j^r)^b (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
section 3.4).  Results are the same on every machine: hashes are integers, and nothing is drawn at random.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tasks.compiled import compiled
from tasks.config import Similarity
from tasks.shingles import Shingles, Texts, shingle_blocks

HASHES = 128
"""MinHashes of a text."""

HUBS = 64
"""Rows of a bucket that all later rows of it are paired with."""

LEAST_RECALL = 0.98
"""Share of the pairs exactly at the threshold that banding finds; more of those above it."""

NO_KEY = 0
"""Key of a text without any word, which shares a bucket with nothing."""

_NO_KEY = np.uint64(NO_KEY)  # numba makes floating-point numbers of mixed signed and unsigned ones
_NO_PAIRS = np.empty((0, 2), np.int64)
_STEP = np.uint64(0x9FB21C651E98DF25)


@dataclass(frozen=True)
class Bands:
    """`bands` groups of `rows` MinHashes each; two texts are compared when one group is the same in both."""

    bands: int
    rows: int

    def recall(self, jaccard: float | np.ndarray) -> float | np.ndarray:
        """Probability that two texts of this Jaccard similarity are compared."""
        return 1 - (1 - jaccard**self.rows) ** self.bands


def bands_for(threshold: float) -> Bands:
    """The longest bands, which compare the fewest pairs in vain, that still find LEAST_RECALL of those at `threshold`.

    Below a threshold of about 0.04 no bands do; then each MinHash is a band of its own.
    """
    fitting = [
        bands
        for bands in (Bands(HASHES // rows, rows) for rows in range(1, HASHES + 1))
        if bands.recall(threshold) >= LEAST_RECALL
    ]
    return fitting[-1] if fitting else Bands(HASHES, 1)


def band_keys(texts: Texts, similarity: Similarity) -> np.ndarray:
    """The bucket of each text in each band: uint64 [bands, rows]; NO_KEY where a text has no word.

    The texts can be given part by part, since keys do not depend on the other rows.  A key stands for the similarity's
    unit and n-gram, too: compare only keys made with the same.
    """
    bands = bands_for(similarity.threshold)
    keys = np.empty((bands.bands, len(texts)), np.uint64)
    multipliers, addends = _permutations()
    least = np.empty(HASHES, np.uint32)
    row = 0
    for offsets, hashes in shingle_blocks(texts, similarity):
        _write_keys(offsets, hashes, multipliers, addends, least, bands.rows, keys, row)
        row += len(offsets) - 1
    return keys


def candidates(keys: np.ndarray, rank: np.ndarray | None = None) -> np.ndarray:
    """Pairs of rows with the same key in one band: int64 [n, 2], the row of lower rank first.

    keys: uint64 [rows], one band of `band_keys`; rank: [rows], else the row number, which also orders equal ranks.
    Each row is paired with the first HUBS rows of its bucket only, in order of rank.  So the cost stays linear where a
    template puts thousands of rows into one bucket; a pair of two later rows can be missed in this band.
    """
    rows = _sharing(keys)
    if not len(rows):
        return _NO_PAIRS
    rows = rows[np.lexsort((rows, rows if rank is None else rank[rows], keys[rows]))]
    bucket = keys[rows]
    starts = np.flatnonzero(np.insert(bucket[1:] != bucket[:-1], 0, True))
    sizes = np.diff(np.append(starts, len(rows)))
    place = np.arange(len(rows)) - np.repeat(starts, sizes)
    partners = np.minimum(place, HUBS)
    ends = np.cumsum(partners)
    hub = np.arange(ends[-1]) - np.repeat(ends - partners, partners)
    first = np.repeat(np.repeat(starts, sizes), partners) + hub
    return np.stack([rows[first], np.repeat(rows, partners)], axis=1)


def _sharing(keys: np.ndarray) -> np.ndarray:
    """The rows that may share their key, since they share its high bits: the low ones give way to the row's number.

    So one array is sorted, not two, and what follows is for few rows.
    """
    bits = np.uint64(len(keys).bit_length())
    packed = np.sort(keys >> bits << bits | np.arange(len(keys), dtype=np.uint64))
    same = np.zeros(len(keys) + 1, np.bool_)
    same[1:-1] = packed[1:] >> bits == packed[:-1] >> bits
    rows = (packed & ((np.uint64(1) << bits) - np.uint64(1)))[same[1:] | same[:-1]].astype(np.int64)
    return rows[keys[rows] != NO_KEY]


def distinct(found: Iterable[np.ndarray], rows: int) -> np.ndarray:
    """The pairs that any of several bands found, each once, sorted: int64 [n, 2]; rows: how many there are in all."""
    codes = np.sort(np.concatenate([_NO_PAIRS[:, 0], *(pairs[:, 0] * rows + pairs[:, 1] for pairs in found)]))
    # numpy's unique goes through a hash table, which takes tens of times as long
    codes = codes[np.flatnonzero(np.diff(codes, prepend=-1))]
    return np.stack(np.divmod(codes, max(1, rows)), axis=1)


def jaccard(pairs: np.ndarray, sets: Shingles) -> np.ndarray:
    """Jaccard similarity of the n-grams of each pair of rows: float64 [n]; 0 where a row has none."""
    result = np.zeros(len(pairs))
    _jaccard(np.ascontiguousarray(pairs, np.int64), sets.offsets, sets.hashes, result)
    return result


def resolve(pairs: np.ndarray, rank: np.ndarray | None, rows: int) -> np.ndarray:
    """Which rows go: int64 [rows], -1 where a row stays, else the row that is kept for it.

    In order of rank, a row goes when a row that stays is its near-duplicate; it names the one of lowest rank.  So no
    two rows that stay are one of the pairs, and every row that goes is near the one that it names.
    """
    order = np.arange(rows) if rank is None else np.argsort(rank, kind="stable")
    place = np.empty(rows, np.int64)
    place[order] = np.arange(rows)
    placed = np.sort(place[pairs], axis=1)
    edges = np.sort(placed[:, 1] * rows + placed[:, 0])
    kept_for, result = np.full((2, rows), -1, np.int64)
    _resolve(edges, kept_for)
    gone = np.flatnonzero(kept_for >= 0)
    result[order[gone]] = order[kept_for[gone]]
    return result


def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Multipliers, which are odd, and addends of the maps x -> a x + b mod 2^32 that stand for random orders."""
    state = np.arange(1, 2 * HASHES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    drawn = (state >> np.uint64(32)).astype(np.uint32)
    return drawn[:HASHES] | np.uint32(1), drawn[HASHES:]


@compiled
def _write_keys(offsets, hashes, multipliers, addends, least, rows, keys, first):
    """Write the keys of a block of texts to keys[:, first:]; `least` is room for their MinHashes."""
    for text in range(len(offsets) - 1):
        for k in range(HASHES):
            least[k] = np.uint32(0xFFFFFFFF)
        for at in range(offsets[text], offsets[text + 1], 2):  # by twos: half as many loads and stores of `least`
            one = np.uint32(hashes[at] >> np.uint64(32))
            two = np.uint32(hashes[min(at + 1, offsets[text + 1] - 1)] >> np.uint64(32))
            for k in range(HASHES):
                first_of_two = np.uint32(multipliers[k] * one + addends[k])
                second_of_two = np.uint32(multipliers[k] * two + addends[k])
                least[k] = min(least[k], min(first_of_two, second_of_two))
        for band in range(keys.shape[0]):
            key = np.uint64(1)
            for k in range(band * rows, band * rows + rows):
                key = (key ^ np.uint64(least[k])) * _STEP
                key ^= key >> np.uint64(29)
            keys[band, first + text] = key if offsets[text] < offsets[text + 1] else _NO_KEY


@compiled
def _jaccard(pairs, offsets, hashes, result):
    for pair in range(len(pairs)):
        left, left_end = offsets[pairs[pair, 0]], offsets[pairs[pair, 0] + 1]
        right, right_end = offsets[pairs[pair, 1]], offsets[pairs[pair, 1] + 1]
        total = left_end - left + right_end - right
        both = 0
        while left < left_end and right < right_end:
            one, other = hashes[left], hashes[right]
            both += one == other
            left += one <= other
            right += other <= one
        if total:
            result[pair] = both / (total - both)


@compiled
def _resolve(edges, kept_for):
    """edges: later * rows + earlier, ascending, so that what becomes of `earlier` is known when it is asked."""
    rows = len(kept_for)
    for edge in edges:
        later, earlier = edge // rows, edge % rows
        if kept_for[later] < 0 and kept_for[earlier] < 0:
            kept_for[later] = earlier
