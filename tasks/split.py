"""Split: divide the examples so that nothing learnt is asked again, and so that new rows never move old ones.

Where a row goes is decided by a hash of its group.  What the last split of the same pipeline decided stands.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import leak
from tasks.config import SplitConfig
from tasks.engine import map_shards
from tasks.errors import EmptySplitError, LeakError
from tasks.layout import SPLITS
from tasks.ledger import Ledger, Summary, batches, by_source, rejection, total
from tasks.ledger import shards as shards_of
from tasks.near_pairs import near_pairs
from tasks.placing import NONE, Rows, place_all, rejection_of, rows_of
from tasks.schema import EXAMPLE


def split(config: SplitConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write the examples of clean as `train`, `validation` and `test` (columns EXAMPLE).

    `inputs["previous"]`, where there is one, is the last split of this pipeline with these settings.  A row that
    belongs to two splits at once is rejected.  The figure `leak` says how much of validation and test stands in train
    as well. Raises EmptySplitError, and LeakError where the leak is more than `max_leak_ratio`.
    """
    shards = shards_of(inputs["clean"] / "examples")
    memory = inputs.get("previous")
    old = [(shard, home) for home, name in enumerate(SPLITS) if memory for shard in shards_of(memory / name)]
    tables = [*old, *((shard, NONE) for shard in shards)]
    parts = map_shards(_rows, [(shard, home, config) for shard, home in tables], "groups")
    pairs = np.empty((0, 2), np.int64)
    if config.method == "grouped":
        pairs = near_pairs([shard for shard, _ in tables], config.similarity, out / "scratch" / "groups").rows
    answers = place_all(Rows(*map(np.concatenate, zip(*parts, strict=True))), pairs, config)
    ends = np.cumsum([len(part.ids) for part in parts])
    placed = np.split(answers, ends[:-1])[len(old) :]
    work = [(shard, mine, number, out) for number, (shard, mine) in enumerate(zip(shards, placed, strict=True))]
    summaries = map_shards(_divide, work, "split")
    sizes = _sizes(np.concatenate(placed), config)
    leaks = leak.measure(out, config.similarity, out / "scratch" / "leak")
    shutil.rmtree(out / "scratch")
    _refuse_leak(leaks, config)
    return total(summaries, **sizes, leak=leaks)


def _rows(shard: Path, home: int, config: SplitConfig) -> Rows:
    """What decides where the rows of a shard go; `home` is the split that they lie in, or NONE."""
    columns = ["id", "group", "task", "label", "split"]
    parts = [rows_of(table, home, config) for table in batches(shard, columns=columns)]
    return Rows(*map(np.concatenate, zip(rows_of(EXAMPLE.empty_table(), home, config), *parts, strict=True)))


def _divide(shard: Path, placed: np.ndarray, number: int, out: Path) -> Summary:
    """Write the rows of one shard to where they go."""
    begin = 0
    with Ledger(out, f"{number:05d}-") as ledger:
        for name in SPLITS:
            ledger.table(name, EXAMPLE)
        for table in batches(shard):
            ledger.enter(by_source(table))
            mine = placed[begin : begin + table.num_rows]
            begin += table.num_rows
            homeless = np.flatnonzero(mine >= len(SPLITS))
            bad = zip(table.take(pa.array(homeless)).to_pylist(), mine[homeless].tolist(), strict=True)
            ledger.reject([rejection(row, *rejection_of(answer, row["group"])) for row, answer in bad])
            for split, name in enumerate(SPLITS):
                ledger.keep(name, table.filter(pa.array(mine == split)))
    return ledger.summary()


def _sizes(placed: np.ndarray, config: SplitConfig) -> dict[str, int]:
    """The rows of each split; raises EmptySplitError where there are none."""
    sizes = {name: int((placed == split).sum()) for split, name in enumerate(SPLITS)}
    if empty := [name for name in SPLITS if sizes[name] == 0]:
        raise EmptySplitError(
            f"split: no row of {len(placed)} went to {empty[0]} "
            f"(validation {config.validation:g}, test {config.test:g}); "
            "give it a larger share, add rows, or bind a source to it with 'split:'"
        )
    return sizes


def _refuse_leak(leaks: dict[str, dict[str, Any]], config: SplitConfig) -> None:
    for name, found in leaks.items():
        if found["ratio"] > config.max_leak_ratio:
            counts = ", ".join(f"{test.replace('_', '-')} {found[test]}" for test in leak.TESTS)
            raise LeakError(
                f"split: {found['ratio']:.2%} of the {found['rows']} rows of {name} stand in train as well ({counts}), "
                f"more than split.max_leak_ratio = {config.max_leak_ratio:g} allows. First: {found['first'][0]}. "
                "Use 'method: grouped', clean near-duplicates away, or allow more"
            )
