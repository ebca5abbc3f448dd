"""Collect: read the sources into one table of examples."""

import itertools
import logging
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tasks import formats, sampling
from tasks.config import CollectConfig, SourceConfig
from tasks.engine import map_shards
from tasks.errors import SourceError
from tasks.ledger import ROW_CHARS, Ledger, Summary, batches, rejection, total
from tasks.progress import progress
from tasks.schema import EXAMPLE, PLACE
from tasks.sources import SourceFile, files, read_rows
from tasks.sources.row import Row
from tasks.texts import CONTENT, PROMPT, hashes

BATCH_ROWS = 5_000
_BLANK = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []}
PART_BYTES = 64_000_000
"""Files of a source are read together until they are so large; each such part is one piece of work."""

Fields = dict[str, Any]
Columns = dict[str, set[str]]
"""Field of a source's rows -> kinds of its values."""

log = logging.getLogger("attune.collect")


class Part(NamedTuple):
    """Files of one source that are read together."""

    source: SourceConfig
    files: list[SourceFile]


class Collected(NamedTuple):
    """What became of one part."""

    shards: list[Path]
    summary: Summary
    columns: Columns


def collect(config: CollectConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write `examples` (columns EXAMPLE) from all sources, in their order.

    The figure `sources` holds for each source its format, its columns with the kinds of their values, files and rows.
    Raises SourceError for a source that cannot be read, has no row, or has too many bad ones.
    """
    parts = [part for source in config.sources for part in _parts(source)]
    shapes = {source.label: shape_of(source, config.max_row_bytes) for source in config.sources}
    sampled = sampling.wanted(config)
    folder = out / ("scratch" if sampled else "examples")
    work = [(part, shapes[part.source.label], config, number, folder, out) for number, part in enumerate(parts)]
    read = map_shards(_collect_part, work, "collect")
    summaries = [part.summary for part in read]
    sources = {
        source.label: _checked(source, shapes[source.label], config, [
            (part, done) for part, done in zip(parts, read, strict=True) if part.source is source
        ])
        for source in config.sources
    }  # fmt: skip
    if sampled:
        shards = [shard for part in read for shard in part.shards]
        limits = sampling.limits(config, shards)
        chosen = map_shards(
            _sample, [(config, limits, shard, number, out) for number, shard in enumerate(shards)], "sample"
        )
        shutil.rmtree(folder)
        summaries = [*(replace(summary, rows_kept=0) for summary in summaries), *chosen]
    return total(summaries, sources=sources)


def shape_of(source: SourceConfig, max_row_bytes: int) -> str:
    """The name of the shape of a source's rows; `auto` looks at the field names of all its rows."""
    if source.format != "auto":
        return source.format
    names, bad = set[str](), ""
    for _, row in rows_of(source, files(source), max_row_bytes):
        names.update(row.value or ())
        bad = bad or (f"line {row.line}: {row.reason} ({row.detail})" if row.value is None else "")
    if bad and not names:
        raise SourceError(f"source {source.label}: no row of it can be read. First: {bad}")
    try:
        name = formats.recognise(names)
    except ValueError as error:
        hint = next((f"; are its columns separated by {mark!r}?" for mark in ";\t" if mark in "".join(names)), "")
        raise SourceError(f"source {source.label}: cannot tell its format: {error}{hint}") from None
    log.info("source %s: took it for %s", source.label, name)
    return name


def rows_of(source: SourceConfig, chosen: Iterable[SourceFile], max_row_bytes: int) -> Iterator[tuple[str, Row]]:
    """The rows of files of a source, at most `limit` of them, each with the name of its file."""
    rows = ((file.name, row) for file in chosen for row in read_rows(source, file, max_row_bytes))
    return itertools.islice(rows, source.limit)


def examples(
    source: SourceConfig, shape: str, rows: Iterable[tuple[str, Row]]
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows that became examples (columns EXAMPLE), and the ledger's lines for those that did not."""
    to_fields = formats.mapped(source.fields) if source.fields is not None else formats.SHAPES[shape]
    own = {"source": source.label, "split": "" if source.split == "auto" else source.split}
    task = source.task or source.label
    kept, rejected = [], []
    for file, row in rows:
        where = own | {"file": file, "line": row.line}
        reason, detail = row.reason, row.detail
        if row.value is not None:
            try:
                fields = _BLANK | to_fields(row.value) | where
                kept.append(fields if fields["task"] else fields | {"task": task})
                continue
            except formats.BadRow as bad:
                reason, detail = bad.reason, bad.detail
        why = {"id": "", "reason": reason, "detail": detail, "row": row.shown[:ROW_CHARS]}
        rejected.append({name: where[name] for name in PLACE} | why)
    return _identified(pa.Table.from_pylist(kept, schema=EXAMPLE)), rejected


def _parts(source: SourceConfig) -> Iterator[Part]:
    """A source in pieces of about PART_BYTES; one whose rows are limited is one piece, since its rows are counted."""
    part: list[SourceFile] = []
    for file in files(source):
        part.append(file)
        if source.limit is None and sum(each.size_bytes for each in part) >= PART_BYTES:
            yield Part(source, part)
            part = []
    if part:
        yield Part(source, part)


def _collect_part(part: Part, shape: str, config: CollectConfig, number: int, folder: Path, out: Path) -> Collected:
    """Read one part into shards in `folder`."""
    source, columns = part.source, defaultdict[str, set[str]](set)
    rows = progress(rows_of(source, part.files, config.max_row_bytes), source.label, unit="rows")
    with Ledger(out, f"{number:05d}-") as ledger:
        ledger.table("examples", EXAMPLE, folder)
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            ledger.enter({source.label: len(batch)})
            _note_columns(columns, batch)
            kept, rejected = examples(source, shape, batch)
            ledger.reject(rejected)
            ledger.keep("examples", kept)
    return Collected(ledger.paths("examples"), ledger.summary(), dict(columns))


def _note_columns(columns: Columns, rows: Iterable[tuple[str, Row]]) -> None:
    """Add the fields of rows, each with the kinds of its values; null is none."""
    found = {(name, type(value)): value for _, row in rows for name, value in (row.value or {}).items()}
    for (name, _), value in found.items():
        columns[name] |= set() if value is None else {formats.kind(value)}


def _identified(table: pa.Table) -> pa.Table:
    """The table with `id`, and with the prompt's hash for `group` where a row names none."""
    ids = [digest.hex()[:16] for digest in hashes(table, CONTENT, normalise=False)]
    prompts = [digest.hex()[:16] for digest in hashes(table, PROMPT, normalise=True, fold=True)]
    groups = [own or prompt for own, prompt in zip(table["group"].to_pylist(), prompts, strict=True)]
    for name, values in (("id", ids), ("group", groups)):
        table = table.set_column(EXAMPLE.get_field_index(name), name, pa.array(values, pa.string()))
    return table


def _checked(source: SourceConfig, shape: str, config: CollectConfig, read: Sequence[tuple[Part, Collected]]) -> Fields:
    """What a source turned out to be.  Raises SourceError where it is empty, or too many of its rows are bad."""
    summary = total(done.summary for _, done in read)
    if summary.rows_in == 0:
        raise SourceError(f"source {source.label}: has no rows")
    if lost := summary.samples.get("truncated_array"):  # one row of the ledger stands for the rest of a file
        raise SourceError(f"{lost[0]['place']}: the JSON array is broken: {lost[0]['detail']}")
    bad = summary.rows_in - summary.rows_kept
    if bad > config.max_reject_ratio * summary.rows_in:
        reasons = ", ".join(f"{reason} {rows}" for reason, rows in summary.rejected.items())
        reason, [first, *_] = next(iter(summary.samples.items()))
        raise SourceError(
            f"source {source.label}: {bad} of {summary.rows_in} rows are bad, more than collect.max_reject_ratio = "
            f"{config.max_reject_ratio:g} allows. Reasons: {reasons}. "
            f"First: {first['place']}: {reason} ({first['detail']})"
        )
    columns: Columns = defaultdict(set)
    for _, done in read:
        for name, kinds in done.columns.items():
            columns[name] |= kinds
    _check_fields(source, columns)
    return {
        "format": shape,
        "columns": {name: sorted(kinds) for name, kinds in sorted(columns.items())},
        "files": sum(len(part.files) for part, _ in read),
        "rows": summary.rows_in,
    }


def _check_fields(source: SourceConfig, columns: Columns) -> None:
    """A name in the field map that no row has is a mistake, or was renamed: its texts would be lost in silence."""
    for name, field in (source.fields.model_dump() if source.fields else {}).items():
        if field and field not in columns:
            raise SourceError(
                f"source {source.label}: fields.{name}: no row has a field {field!r}; "
                f"its fields are {', '.join(sorted(columns))}"
            )


def _sample(config: CollectConfig, limits: sampling.Limits, shard: Path, number: int, out: Path) -> Summary:
    """Keep the rows of a shard that the mix has room for."""
    with Ledger(out, f"{number:05d}-sample-") as ledger:
        ledger.table("examples", EXAMPLE)
        for table in batches(shard):
            reasons = sampling.over(table, limits, config)
            bad = [number for number, reason in enumerate(reasons) if reason]
            rows = table.take(pa.array(bad, pa.int64())).to_pylist()
            ledger.reject([rejection(row, *reasons[at]) for row, at in zip(rows, bad, strict=True)])
            ledger.keep("examples", table.filter(pa.array([not reason for reason in reasons])))
    return ledger.summary()
