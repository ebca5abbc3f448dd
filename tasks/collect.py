"""Collect: read the sources into one table of examples."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks import formats
from tasks.config import CollectConfig, SourceConfig
from tasks.errors import SourceError
from tasks.ledger import ROW_CHARS, Ledger, Summary
from tasks.normal_form import normal_form
from tasks.progress import progress
from tasks.schema import EXAMPLE
from tasks.sources import read_rows
from tasks.sources.row import Row

BATCH_ROWS = 5_000
log = logging.getLogger("attune.collect")


def collect(config: CollectConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write `examples` (columns EXAMPLE) from all sources, in their order.

    Raises SourceError for a source that cannot be read, has no row, or has too many bad ones.
    """
    shapes = {}
    with Ledger(out) as ledger:
        ledger.table("examples", EXAMPLE)
        for source in config.sources:
            shapes[source.label], shape = choose_shape(source, config.max_row_chars)
            _collect_source(source, shape, config, ledger)
    return ledger.summary(formats=shapes)


def choose_shape(source: SourceConfig, max_row_chars: int) -> tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """Name and function of the shape of a source's rows; `auto` looks at the field names of all its rows."""
    if source.fields is not None:
        return "fields", formats.mapped(source.fields)
    name = source.format
    if name == "auto":
        names = set[str]()
        for row in limited_rows(source, max_row_chars):
            names.update(row.value or ())
        try:
            name = formats.recognise(names)
        except ValueError as error:
            raise SourceError(f"source {source.path}: cannot tell its format: {error}") from None
        log.info("source %s: took it for %s", source.label, name)
    return name, formats.SHAPES[name]


def limited_rows(source: SourceConfig, max_row_chars: int) -> Iterator[Row]:
    """The rows of a source, at most `limit` of them."""
    return itertools.islice(read_rows(source.path, max_row_chars), source.limit)


def example(source: SourceConfig, shape: Callable[[dict[str, Any]], dict[str, Any]], row: Row) -> dict[str, Any]:
    """The example (columns EXAMPLE) of a readable row; raises BadRow where it has not got the shape."""
    fields = dict.fromkeys(EXAMPLE.names, "") | {"history": []} | shape(row.value or {})
    content = [fields[name] for name in ("system", "history", "instruction", "input", "output", "tools", "label")]
    prompt = json.dumps(normal_form(content[:4]), ensure_ascii=False).casefold()
    return fields | {
        "id": _hash(json.dumps(content, ensure_ascii=False)),
        "source": source.label,
        "line": row.line,
        "task": fields["task"] or source.task or source.label,
        "group": fields["group"] or _hash(prompt),
        "split": "" if source.split == "auto" else source.split,
    }


def _collect_source(
    source: SourceConfig, shape: Callable[[dict[str, Any]], dict[str, Any]], config: CollectConfig, ledger: Ledger
) -> None:
    rows = progress(limited_rows(source, config.max_row_chars), f"collect {source.label}", unit="rows")
    rows_before, rejected_before = ledger.rows_in, ledger.rejected.total()
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        ledger.enter(len(batch))
        kept, rejected = examples(source, shape, batch)
        ledger.reject(rejected)
        ledger.keep("examples", pa.Table.from_pylist(kept, schema=EXAMPLE))
    read = ledger.rows_in - rows_before
    bad = ledger.rejected.total() - rejected_before
    if read == 0:
        raise SourceError(f"source {source.path}: has no rows")
    if bad > config.max_reject_ratio * read:
        reasons = ", ".join(f"{reason} {rows}" for reason, rows in ledger.rejected.most_common())
        raise SourceError(
            f"source {source.path}: {bad} of {read} rows are bad, more than collect.max_reject_ratio = "
            f"{config.max_reject_ratio:g} allows. Reasons so far: {reasons}. "
            f"First: {ledger.first_rejected(source.label)}"
        )


def examples(
    source: SourceConfig, shape: Callable[[dict[str, Any]], dict[str, Any]], rows: list[Row]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows that became examples, and the ledger's lines for those that did not."""
    kept, rejected = [], []
    for row in rows:
        reason, detail = row.reason, row.detail
        if row.value is not None:
            try:
                kept.append(example(source, shape, row))
                continue
            except formats.BadRow as bad:
                reason, detail = bad.reason, bad.detail
        place = {"source": source.label, "line": row.line, "id": ""}
        rejected.append(place | {"reason": reason, "detail": detail, "row": row.text[:ROW_CHARS]})
    return kept, rejected


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
