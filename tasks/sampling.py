"""The mix: at most so many rows of a task, and sources in given proportions, chosen by hash.

The rows of lowest rank are kept, and a row's rank is a hash of the seed and its place: the same rows every time, and
most of the same rows when the data grows.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tasks.config import CollectConfig
from tasks.ledger import batches, place
from tasks.schema import PLACE

_EVERY = 2**64


class Limits(NamedTuple):
    """A row is kept when its rank is below the limits of its task and of its source."""

    tasks: dict[str, int]
    sources: dict[str, int]


def wanted(config: CollectConfig) -> bool:
    """Whether any row may have to go."""
    return config.max_per_task is not None or any(source.weight is not None for source in config.sources)


def limits(config: CollectConfig, shards: Sequence[Path]) -> Limits:
    """The limits that leave max_per_task rows of each task, and the sources in the proportions of their weights.

    Rows of sources that are bound to validation or test are neither counted nor taken away.
    """
    sources, tasks, ranks = [], [], []
    for table in batches(*shards, columns=[*PLACE, "task", "split"]):
        table = table.filter(_in_mix(table))
        sources += table["source"].to_pylist()
        tasks += table["task"].to_pylist()
        ranks.append(_ranks(table, config.seed))
    rank = np.concatenate([np.empty(0, np.uint64), *ranks])
    task_limits = _by_task(np.array(tasks, object), rank, config.max_per_task)
    stays = rank < np.array([task_limits.get(task, _EVERY) for task in tasks], object)
    return Limits(task_limits, _by_source(np.array(sources, object)[stays], rank[stays], config))


def over(table: pa.Table, limits: Limits, config: CollectConfig) -> list[tuple[str, str] | None]:
    """For each row None where it is kept, else reason (over_max_per_task, over_weight) and detail."""
    found: list[tuple[str, str] | None] = []
    rows = zip(
        _in_mix(table).to_pylist(),
        table["task"].to_pylist(),
        table["source"].to_pylist(),
        _ranks(table, config.seed).tolist(),
        strict=True,
    )
    for in_mix, task, source, rank in rows:
        if in_mix and rank >= limits.tasks.get(task, _EVERY):
            found.append(("over_max_per_task", f"task {task}: {config.max_per_task} rows"))
        elif in_mix and rank >= limits.sources.get(source, _EVERY):
            found.append(("over_weight", f"source {source}"))
        else:
            found.append(None)
    return found


def _in_mix(table: pa.Table) -> pa.Array:
    return pa.array([split in {"", "train"} for split in table["split"].to_pylist()], pa.bool_())


def _ranks(table: pa.Table, seed: int) -> np.ndarray:
    places = [f"{seed}\0{place(row)}".encode() for row in table.select(PLACE).to_pylist()]
    digests = b"".join(hashlib.blake2b(each, digest_size=8).digest() for each in places)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _by_task(tasks: np.ndarray, rank: np.ndarray, most: int | None) -> dict[str, int]:
    if most is None:
        return {}
    return {task: _limit(rank[tasks == task], most) for task in sorted(set(tasks))}


def _by_source(sources: np.ndarray, rank: np.ndarray, config: CollectConfig) -> dict[str, int]:
    """The scarcest source, for its weight, gives all its rows; the others as many as the proportions ask for."""
    weights = {source.label: source.weight for source in config.sources if source.weight is not None}
    rows = {label: int((sources == label).sum()) for label in weights}
    scale = min((rows[label] / weight for label, weight in weights.items()), default=0.0)
    return {label: _limit(rank[sources == label], round(scale * weight)) for label, weight in weights.items()}


def _limit(ranks: np.ndarray, most: int) -> int:
    """The rank below which `most` of `ranks` lie."""
    return _EVERY if len(ranks) <= most else int(np.partition(ranks, most)[most])
