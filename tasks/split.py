"""Split: divide the examples so that nothing learnt is asked again, and so that new rows never move old ones.

Where a row goes is decided by a hash of its group.  What the last split of the same pipeline decided stands.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import leak
from tasks.config import SplitConfig
from tasks.engine import map_shards
from tasks.errors import EmptySplitError, LeakError
from tasks.ledger import Ledger, Summary, batches, by_source, rejection, total
from tasks.ledger import shards as shards_of
from tasks.near_pairs import near_pairs
from tasks.placing import Placed, Row, place_all
from tasks.schema import EXAMPLE, SPLITS


def split(config: SplitConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write the examples of clean as `train`, `validation` and `test` (columns EXAMPLE).

    `inputs["previous"]`, where there is one, is the last split of this pipeline with these settings.  A row that
    belongs to two splits at once is rejected.  The figure `leak` says how much of validation and test stands in train
    as well. Raises EmptySplitError, and LeakError where the leak is more than `max_leak_ratio`.
    """
    shards = shards_of(inputs["clean"] / "examples")
    before = [
        (shard, name) for name in SPLITS if "previous" in inputs for shard in shards_of(inputs["previous"] / name)
    ]
    tables = [*before, *((shard, "") for shard in shards)]
    rows = [_rows(config, shard, home) for shard, home in tables]
    pairs = np.empty((0, 2), np.int64)
    if config.method == "grouped":
        pairs = near_pairs([shard for shard, _ in tables], config.similarity, out / "scratch" / "groups").rows
    placed = iter(place_all([row for part in rows for row in part], pairs, config))
    answers = [[next(placed) for _ in part] for part in rows][len(before) :]
    work = [(shard, mine, number, out) for number, (shard, mine) in enumerate(zip(shards, answers, strict=True))]
    summaries = map_shards(_divide, work, "split")
    sizes = _sizes([answer for mine in answers for answer in mine], config)
    leaks = leak.measure(out, config.similarity, out / "scratch" / "leak")
    shutil.rmtree(out / "scratch")
    _refuse_leak(leaks, config)
    return total(summaries, **sizes, leak=leaks)


def _rows(config: SplitConfig, shard: Path, home: str) -> list[Row]:
    """What decides where the rows of a shard go; with unseen_instructions a whole task is one group."""
    group = "task" if config.method == "unseen_instructions" else "group"
    names = ["id", group, "split", config.stratify_by]
    columns = ([table[name].to_pylist() for name in names] for table in batches(shard, columns=sorted(set(names))))
    return [Row(*values, home) for table in columns for values in zip(*table, strict=True)]


def _divide(shard: Path, placed: Sequence[Placed], number: int, out: Path) -> Summary:
    """Write the rows of one shard to where they go."""
    begin = 0
    with Ledger(out, f"{number:05d}-") as ledger:
        for name in SPLITS:
            ledger.table(name, EXAMPLE)
        for table in batches(shard):
            ledger.enter(by_source(table))
            mine = placed[begin : begin + table.num_rows]
            begin += table.num_rows
            homeless = [row for row, answer in enumerate(mine) if answer.reason]
            bad = table.take(pa.array(homeless, pa.int64())).to_pylist()
            ledger.reject([rejection(row, *mine[at][1:]) for row, at in zip(bad, homeless, strict=True)])
            for name in SPLITS:
                ledger.keep(name, table.filter(pa.array([answer.split == name for answer in mine], pa.bool_())))
    return ledger.summary()


def _sizes(placed: Sequence[Placed], config: SplitConfig) -> dict[str, int]:
    """The rows of each split; raises EmptySplitError where there are none."""
    splits = [answer.split for answer in placed]
    sizes = {name: splits.count(name) for name in SPLITS}
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
