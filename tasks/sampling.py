"""The mix: at most so many rows of a task, and sources in given proportions, chosen by hash.

The rows of lowest rank are kept, and a row's rank is a hash of the seed and its content: the same rows every time, and
most of the same rows when the data grows, wherever the new ones stand.  Caps come before weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tasks.config import CollectConfig
from tasks.ledger import batches, place
from tasks.schema import PLACE
from tasks.texts import numbers

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
    sources, tasks, ranks = _Codes(), _Codes(), [np.empty(0, np.uint64)]
    for table in batches(*shards, columns=["id", *PLACE, "task", "split"]):
        table = table.filter(_in_mix(table))
        sources.add(table["source"].to_pylist())
        tasks.add(table["task"].to_pylist())
        ranks.append(_ranks(table, config.seed))
    rank = np.concatenate(ranks)
    task_limits = _by_task(tasks, rank, config.max_per_task)
    stays = np.ones(len(rank), bool)
    for task, limit in task_limits.items():
        stays &= ~tasks.mask(task) | (rank < limit)
    return Limits(task_limits, _by_source(sources, rank, stays, config))


class _Codes:
    """A long column of few different texts."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self._parts = [np.empty(0, np.int32)]

    def add(self, texts: list[str]) -> None:
        self._parts.append(np.array([self.names.setdefault(text, len(self.names)) for text in texts], np.int32))

    def mask(self, name: str) -> np.ndarray:
        """Where the column holds `name`."""
        self._parts = [np.concatenate(self._parts)]
        return self._parts[0] == self.names.get(name, -1)


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
    """48 bits of the content, so that rows may move; and 16 of the place, so that equal rows differ."""
    rows = table.select(["id", *PLACE]).to_pylist()
    by_content = numbers([f"{seed}\0{row['id']}" for row in rows])
    return by_content >> np.uint64(16) << np.uint64(16) | numbers([place(row) for row in rows]) >> np.uint64(48)


def _by_task(tasks: _Codes, rank: np.ndarray, most: int | None) -> dict[str, int]:
    limits = {task: _limit(rank[tasks.mask(task)], most) for task in tasks.names if most is not None}
    return {task: limit for task, limit in limits.items() if limit < _EVERY}


def _by_source(sources: _Codes, rank: np.ndarray, stays: np.ndarray, config: CollectConfig) -> dict[str, int]:
    """The scarcest source, for its weight, gives all its rows; the others as many as the proportions ask for."""
    weights = {source.label: source.weight for source in config.sources if source.weight is not None}
    ranks = {label: rank[sources.mask(label) & stays] for label in weights}
    scale = min((len(ranks[label]) / weight for label, weight in weights.items()), default=0.0)
    return {label: _limit(ranks[label], round(scale * weight)) for label, weight in weights.items()}


def _limit(ranks: np.ndarray, most: int) -> int:
    """The rank below which `most` of `ranks` lie."""
    return _EVERY if len(ranks) <= most else int(np.partition(ranks, most)[most])
