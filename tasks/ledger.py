"""The row ledger: every row that enters a stage leaves it as kept or as rejected, and is written down.

Layout of a stage's folder: `<name>/part-….parquet` for each named table, `rejected/part-….parquet`.  Shards may be
worked on apart, each with its own ledger and prefix; `total` adds their summaries up.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import layout
from tasks.schema import PLACE, REJECTED

ROW_CHARS = 20_000
"""A rejected row's text is cut here; source, file and line say where the rest is."""

SAMPLES = 10
"""Rejected rows of each reason that are shown in the data report."""

SAMPLE_CHARS = 300

SHARD_ROWS = 50_000


@dataclass
class Summary:
    """What a stage says of itself; rows_in = rows_kept + sum(rejected.values()), or the artifact is not published."""

    rows_in: int
    rows_kept: int
    rejected: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    funnel: dict[str, dict[str, int]] = field(default_factory=dict)  # source -> "rows_in" or reason -> rows
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # reason -> place, detail, row


class ShardWriter:
    """Write tables of one schema into `folder` as numbered Parquet files."""

    def __init__(self, folder: Path, schema: pa.Schema, prefix: str = "") -> None:
        self.folder, self.schema, self.prefix = folder, schema, prefix
        self.paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        """Append `table`; a shard that has reached SHARD_ROWS is closed first."""
        if self._writer is not None and self._rows >= SHARD_ROWS:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.paths.append(self.folder / f"part-{self.prefix}{len(self.paths):05d}.parquet")
            self._writer = pq.ParquetWriter(self.paths[-1], self.schema, compression="zstd", write_page_checksum=True)
            self._rows = 0
        self._writer.write_table(table.cast(self.schema))
        self._rows += table.num_rows

    def close(self) -> None:
        """Finish the last shard; a folder without rows gets one empty shard, so that readers find its columns."""
        if not self.paths:
            self.write(self.schema.empty_table())
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Ledger:
    """Counts rows in, kept and rejected, and writes the kept and the rejected ones; use as a context manager.

    `prefix` begins the names of its shards, for work that is divided: each part has its own.
    """

    def __init__(self, out: Path, prefix: str = "") -> None:
        self.out, self.prefix = out, prefix
        self.rows_in = self.rows_kept = 0
        self.rejected: Counter[str] = Counter()
        self._funnel: dict[str, Counter[str]] = defaultdict(Counter)
        self._samples: dict[str, list[dict[str, str]]] = defaultdict(list)
        self._tables: dict[str, ShardWriter] = {}
        self._rejected = ShardWriter(out / layout.REJECTED, REJECTED, prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in [*self._tables.values(), self._rejected]:
            writer.close()

    def enter(self, sources: Mapping[str, int]) -> None:
        """So many rows of each source have entered the stage."""
        for source, rows in sources.items():
            self.rows_in += rows
            self._funnel[source]["rows_in"] += rows

    def table(self, name: str, schema: pa.Schema, folder: Path | None = None) -> None:
        """Open the table `name`, in `folder` if given; it exists afterwards even if no row is kept in it."""
        self._tables[name] = ShardWriter(folder or self.out / name, schema, self.prefix)

    def paths(self, name: str) -> list[Path]:
        """The files of the table `name`, complete once the ledger is closed."""
        return self._tables[name].paths

    def keep(self, name: str, rows: pa.Table) -> None:
        """Write `rows` to the table `name` and count them as kept."""
        self._tables[name].write(rows)
        self.rows_kept += rows.num_rows

    def reject(self, rows: list[dict[str, Any]]) -> None:
        """Write rejections (dicts with the columns of REJECTED) and count them by reason."""
        if not rows:
            return
        self._rejected.write(pa.Table.from_pylist(rows, schema=REJECTED))
        for row in rows:
            self.rejected[row["reason"]] += 1
            self._funnel[row["source"]][row["reason"]] += 1
            if len(samples := self._samples[row["reason"]]) < SAMPLES:
                samples.append({"place": place(row), "detail": row["detail"], "row": cut(row["row"])})

    def summary(self, **figures: Any) -> Summary:
        """The counts so far, with the stage's own figures."""
        rejected = dict(sorted(self.rejected.items()))
        funnel = {source: dict(counts) for source, counts in self._funnel.items()}
        return Summary(self.rows_in, self.rows_kept, rejected, figures, funnel, dict(self._samples))


def total(summaries: Iterable[Summary], **figures: Any) -> Summary:
    """The sum of the summaries of a stage's parts, in their order, with the stage's own figures."""
    rejected: Counter[str] = Counter()
    funnel: dict[str, Counter[str]] = defaultdict(Counter)
    samples: dict[str, list[dict[str, str]]] = defaultdict(list)
    rows_in = rows_kept = 0
    for part in summaries:
        rows_in, rows_kept = rows_in + part.rows_in, rows_kept + part.rows_kept
        rejected.update(part.rejected)
        for source, counts in part.funnel.items():
            funnel[source].update(counts)
        for reason, rows in part.samples.items():
            samples[reason] = [*samples[reason], *rows][:SAMPLES]
    sources = {source: dict(counts) for source, counts in funnel.items()}
    return Summary(rows_in, rows_kept, dict(sorted(rejected.items())), figures, sources, dict(samples))


def by_source(table: pa.Table) -> Counter[str]:
    """How many rows of each source a table holds."""
    return Counter(table["source"].to_pylist())


def place(row: Mapping[str, Any]) -> str:
    """Where a row stands, in one word: source, file where the source has several, and line."""
    file = "" if row["file"] == row["source"] else f"/{row['file']}"
    return f"{row['source']}{file}:{row['line']}"


def cut(text: str) -> str:
    """The beginning of a text, for a sample."""
    return text if len(text) <= SAMPLE_CHARS else text[:SAMPLE_CHARS] + "…"


def rejection(row: Mapping[str, Any], reason: str, detail: str = "") -> dict[str, Any]:
    """The ledger's line for an example that is rejected."""
    where = {name: row[name] for name in (*PLACE, "id")}
    shown = {name: value for name, value in row.items() if value and name not in where}
    return where | {"reason": reason, "detail": detail, "row": json.dumps(shown, ensure_ascii=False)[:ROW_CHARS]}


def read(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """All shards of a table, in order."""
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in shards(folder)])


def batches(*paths: Path, rows: int = 10_000, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of shards, or of all shards of folders, in order, as tables of at most `rows` rows."""
    for path in paths:
        for shard in shards(path) if path.is_dir() else [path]:
            with pq.ParquetFile(shard) as file:
                for batch in file.iter_batches(batch_size=rows, columns=columns):
                    yield pa.Table.from_batches([batch])


def rows_at(paths: Iterable[Path], rows: np.ndarray) -> pa.Table:
    """Some rows of shards, by their number through all shards: int64, sorted, at least one."""
    found, begin = [], 0
    for table in batches(*paths):
        mine = rows[(rows >= begin) & (rows < begin + table.num_rows)]
        if len(mine):
            found.append(table.take(pa.array(mine - begin)))
        begin += table.num_rows
    return pa.concat_tables(found)


def shards(folder: Path) -> list[Path]:
    """The files of a table, in order."""
    return sorted(folder.glob("part-*.parquet"))
