"""Clean: repair what can be repaired, drop what would teach the model something wrong, and say which rows and why."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks import decontaminate, duplicates, layout
from tasks.config import CleanConfig, FilterConfig, RepairConfig
from tasks.duplicates import Removed
from tasks.engine import map_shards
from tasks.filters import FILTERS
from tasks.ledger import Ledger, ShardWriter, Summary, batches, by_source, rejection, total
from tasks.ledger import shards as shards_of
from tasks.profile import Profile, add_profile, merged
from tasks.repairs import REPAIRS
from tasks.schema import EXAMPLE, PLACE, REPAIRED
from tasks.texts import has_turns, turns_of

_TEXTS = ("system", "instruction", "input", "output")
_TURNS = ("history", "tool_turns")
REPAIRED_SAMPLES = 100
"""Changed texts of each repair, in each shard, that are written down before and after."""


def clean(config: CleanConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write the `examples` (columns EXAMPLE) of collect that are fit to learn from, repaired.

    Each shard of collect becomes one shard.  Order: repairs, filters, decontamination; then over all rows that are left
    equal rows, conflicts and near-duplicates.  `repaired/` (columns REPAIRED) shows texts before and after.
    """
    scratch = out / "scratch"
    benchmarks = (
        decontaminate.load(config.decontaminate, config.near_duplicates) if config.decontaminate.against else None
    )
    sources = shards_of(inputs["collect"] / "examples")
    work = [(config, benchmarks, shard, number, out) for number, shard in enumerate(sources)]
    screened = map_shards(_screen, work, "clean")
    shards = [shard for part in screened for shard in part.shards]
    removed, figures = duplicates.find(config, shards, scratch)
    work = [(*each, number, out) for number, each in enumerate(zip(shards, removed, strict=True))]
    divided = map_shards(_divide, work, "clean")
    shutil.rmtree(scratch)
    return total(
        [*(part.summary for part in screened), *(summary for summary, _ in divided)],
        repaired=dict(_sum(part.repaired for part in screened)),
        contaminated=dict(_sum(part.contaminated for part in screened)),
        before=merged(part.before for part in screened),
        after=merged(profile for _, profile in divided),
        **figures,
    )


class Screened(NamedTuple):
    """What became of one shard before its rows are compared with others."""

    shards: list[Path]  # the rows that are left
    summary: Summary  # which rows are kept is not decided yet
    repaired: Counter[str]  # texts changed, by repair
    contaminated: Counter[str]  # rows, by benchmark and reason
    before: Profile  # of the rows that came in


def first_failed(table: pa.Table, filters: list[FilterConfig]) -> tuple[pd.Series, pd.Series]:
    """For each row the name of the first filter that rejects it and what it found, or two empty texts."""
    frame = table.select(["system", "task", "instruction", "input", "output", "label", "tool_calls"]).to_pandas()
    frame["history"] = turns_of(table).to_pandas()
    reasons, details = (pd.Series("", index=frame.index, dtype=object) for _ in range(2))
    for chosen in filters:
        found = FILTERS[chosen.name](frame, **chosen.params)
        fails = (found if found.dtype == bool else found != "").astype(bool) & (reasons == "")
        reasons = reasons.mask(fails, chosen.name)
        if found.dtype != bool:
            details = details.mask(fails, found)
    return reasons, details


def repair(table: pa.Table, repairs: list[RepairConfig]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The table with every text repaired, and what was changed (columns REPAIRED)."""
    functions = [(chosen.name, partial(REPAIRS[chosen.name], **chosen.params)) for chosen in repairs]
    changes = []
    for column in (*_TEXTS, *(name for name in _TURNS if has_turns(table[name]))):
        values = original = table[column].to_pylist()
        for name, function in functions:
            fixed = [_repaired(value, function) if value else value for value in values]
            if fixed != values:
                pairs = enumerate(zip(values, fixed, strict=True))
                changes += [(row, name, column, old, new) for row, (old, new) in pairs if old != new]
                values = fixed
        if values is not original:
            at = table.schema.get_field_index(column)
            table = table.set_column(at, column, pa.array(values, EXAMPLE.field(column).type))
    return table, _placed(changes, table)


def _repaired(value: Any, function: Callable[[str], str]) -> Any:
    """A text, or the contents of a list of turns, repaired."""
    if isinstance(value, str):
        return function(value)
    return [turn | {"content": function(turn["content"])} for turn in value]


def _placed(changes: list[tuple[int, str, str, Any, Any]], table: pa.Table) -> list[dict[str, Any]]:
    """Changes by row of the table as rows of REPAIRED; turns stand there as JSON."""
    places = table.select([*PLACE, "id"]).take(pa.array([row for row, *_ in changes], pa.int64())).to_pylist()
    return [
        where | {"repair": name, "column": column, "before": _shown(before), "after": _shown(after)}
        for where, (_, name, column, before, after) in zip(places, changes, strict=True)
    ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _screen(
    config: CleanConfig, benchmarks: decontaminate.Benchmarks | None, shard: Path, number: int, out: Path
) -> Screened:
    """Repair and filter one shard into the scratch folder, and take what is found in a benchmark out of it."""
    repaired, contaminated, before = Counter[str](), Counter[str](), defaultdict[str, Counter[str]](Counter)
    samples = ShardWriter(out / layout.REPAIRED, REPAIRED, f"{number:05d}-")
    with Ledger(out, f"{number:05d}-screen-") as ledger, closing(samples):
        ledger.table("examples", EXAMPLE, out / "scratch")
        for table in batches(shard):
            ledger.enter(by_source(table))
            add_profile(before, table)
            table, changes = repair(table, config.repairs)
            samples.write(pa.Table.from_pylist(_first(changes, repaired), schema=REPAIRED))
            table = _filter(table, config.filters, ledger)
            if benchmarks is not None:
                table = _decontaminate(table, benchmarks, config, ledger, contaminated)
            ledger.keep("examples", table)
    return Screened(
        ledger.paths("examples"), replace(ledger.summary(), rows_kept=0), repaired, contaminated, dict(before)
    )


def _first(changes: list[dict[str, Any]], counts: Counter[str]) -> list[dict[str, Any]]:
    """The changes that are shown, the first of each repair; all are counted."""
    shown = []
    for change in changes:
        counts[change["repair"]] += 1
        if counts[change["repair"]] <= REPAIRED_SAMPLES:
            shown.append(change)
    return shown


def _filter(table: pa.Table, filters: list[FilterConfig], ledger: Ledger) -> pa.Table:
    reasons, details = first_failed(table, filters)
    fails = reasons != ""
    bad = table.filter(pa.array(fails)).to_pylist()
    found = zip(bad, reasons[fails], details[fails], strict=True)
    ledger.reject([rejection(row, reason, detail) for row, reason, detail in found])
    return table.filter(pa.array(~fails))


def _decontaminate(
    table: pa.Table,
    benchmarks: decontaminate.Benchmarks,
    config: CleanConfig,
    ledger: Ledger,
    counts: Counter[str],
) -> pa.Table:
    found = decontaminate.contaminated(table, benchmarks, config.decontaminate, config.near_duplicates)
    rows = [each.row for each in found]
    bad = table.take(pa.array(rows, pa.int64())).to_pylist()
    ledger.reject([rejection(row, each.reason, each.detail) for row, each in zip(bad, found, strict=True)])
    counts.update(f"{each.benchmark}: {each.reason}" for each in found)
    clean = np.ones(table.num_rows, bool)
    clean[rows] = False
    return table.filter(pa.array(clean))


def _divide(shard: Path, removed: Removed, number: int, out: Path) -> tuple[Summary, Profile]:
    """Write the rows of one screened shard that stay, and reject the others."""
    after, begin = defaultdict[str, Counter[str]](Counter), 0
    rows, reasons = np.array(removed.rows, np.int64), list(zip(removed.reasons, removed.details, strict=True))
    with Ledger(out, f"{number:05d}-") as ledger:
        ledger.table("examples", EXAMPLE)
        for table in batches(shard):
            mine = slice(*np.searchsorted(rows, [begin, begin + table.num_rows]))
            bad = table.take(pa.array(rows[mine] - begin)).to_pylist()
            ledger.reject([rejection(row, *why) for row, why in zip(bad, reasons[mine], strict=True)])
            stays = np.ones(table.num_rows, bool)
            stays[rows[mine] - begin] = False
            begin += table.num_rows
            table = table.filter(pa.array(stays))
            add_profile(after, table)
            ledger.keep("examples", table)
    return ledger.summary(), dict(after)


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter[str]())
