"""Clean: drop the rows that would teach the model something wrong, and say which and why."""

import hashlib
from pathlib import Path

import pandas as pd
import pyarrow as pa

from tasks.config import CleanConfig, FilterConfig
from tasks.filters import FILTERS
from tasks.ledger import Ledger, Summary, batches, rejection
from tasks.normal_form import normal_form
from tasks.schema import EXAMPLE

_CONTENT = ("system", "history", "instruction", "input", "output", "tools", "label")


def clean(config: CleanConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write the `examples` (columns EXAMPLE) of collect that pass every filter, without exact duplicates."""
    seen: dict[bytes, str] = {}
    with Ledger(out) as ledger:
        ledger.table("examples", EXAMPLE)
        for table in batches(inputs["collect"] / "examples"):
            ledger.enter(table.num_rows)
            table = _filter(table, config.filters, ledger)
            if config.duplicates == "keep_first":
                table = _drop_duplicates(table, seen, ledger)
            ledger.keep("examples", table)
    return ledger.summary()


def first_failed(table: pa.Table, filters: list[FilterConfig]) -> pd.Series:
    """For each row the name of the first filter that rejects it, or ""."""
    frame = table.select(["system", "task", "instruction", "input", "output"]).to_pandas()
    reasons = pd.Series("", index=frame.index, dtype=object)
    for chosen in filters:
        rejected = FILTERS[chosen.name](frame, **chosen.params)
        reasons = reasons.mask(rejected & (reasons == ""), chosen.name)
    return reasons


def _filter(table: pa.Table, filters: list[FilterConfig], ledger: Ledger) -> pa.Table:
    reasons = first_failed(table, filters)
    bad = table.filter(pa.array(reasons != "")).to_pylist()
    ledger.reject([rejection(row, reason) for row, reason in zip(bad, reasons[reasons != ""], strict=True)])
    return table.filter(pa.array(reasons == ""))


def _drop_duplicates(table: pa.Table, seen: dict[bytes, str], ledger: Ledger) -> pa.Table:
    """Keep the first row of each content; `seen` maps a content's hash to the place of the row that was kept."""
    kept, duplicates = [], []
    for index, row in enumerate(table.to_pylist()):
        content = repr(normal_form([row[column] for column in _CONTENT]))
        fingerprint = hashlib.blake2b(content.encode(), digest_size=16).digest()
        place = f"{row['source']}:{row['line']}"
        first = seen.setdefault(fingerprint, place)
        if first == place:
            kept.append(index)
        else:
            duplicates.append(rejection(row, "duplicate_of", first))
    ledger.reject(duplicates)
    return table.take(pa.array(kept, pa.int64()))
