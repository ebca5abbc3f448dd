"""The row ledger: every row that enters a stage leaves it as kept or as rejected, and is written down.

Layout of a stage's folder: `<name>/part-00000.parquet` for each named table, `rejected/part-00000.parquet`.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import layout
from tasks.schema import REJECTED

ROW_CHARS = 20_000
"""A rejected row's text is cut here; source and line say where the rest is."""

SHARD_ROWS = 50_000


@dataclass
class Summary:
    """What a stage says of itself; rows_in = rows_kept + sum(rejected.values()), or the artifact is not published."""

    rows_in: int
    rows_kept: int
    rejected: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


class ShardWriter:
    """Write tables of one schema into `folder` as numbered Parquet files."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self._writer: pq.ParquetWriter | None = None
        self._shards = self._rows = 0

    def write(self, table: pa.Table) -> None:
        """Append `table`; a shard that has reached SHARD_ROWS is closed first."""
        if self._writer is not None and self._rows >= SHARD_ROWS:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"part-{self._shards:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self.schema, compression="zstd", write_page_checksum=True)
            self._shards, self._rows = self._shards + 1, 0
        self._writer.write_table(table.cast(self.schema))
        self._rows += table.num_rows

    def close(self) -> None:
        """Finish the last shard; a folder without rows gets one empty shard, so that readers find its columns."""
        if self._shards == 0:
            self.write(self.schema.empty_table())
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Ledger:
    """Counts rows in, kept and rejected, and writes the kept and the rejected ones; use as a context manager."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows_in = self.rows_kept = 0
        self.rejected: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._tables: dict[str, ShardWriter] = {}
        self._rejected = ShardWriter(out / layout.REJECTED, REJECTED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in [*self._tables.values(), self._rejected]:
            writer.close()

    def enter(self, rows: int) -> None:
        """`rows` rows have entered the stage."""
        self.rows_in += rows

    def table(self, name: str, schema: pa.Schema) -> None:
        """Open the table `name`; it exists afterwards even if no row is kept in it."""
        self._tables[name] = ShardWriter(self.out / name, schema)

    def keep(self, name: str, rows: pa.Table) -> None:
        """Write `rows` to the table `name` and count them as kept."""
        self._tables[name].write(rows)
        self.rows_kept += rows.num_rows

    def reject(self, rows: list[dict[str, Any]]) -> None:
        """Write rejections (dicts with the columns of REJECTED) and count them by reason."""
        if rows:
            self._rejected.write(pa.Table.from_pylist(rows, schema=REJECTED))
            self.rejected.update(row["reason"] for row in rows)
            for row in rows:
                self._first.setdefault(row["source"], f"line {row['line']}: {row['reason']} ({row['detail']})")

    def first_rejected(self, source: str) -> str:
        """Place and reason of the first row of `source` that was rejected."""
        return self._first[source]

    def summary(self, **figures: Any) -> Summary:
        """The counts so far, with the stage's own figures."""
        return Summary(self.rows_in, self.rows_kept, dict(sorted(self.rejected.items())), figures)


def rejection(row: dict[str, Any], reason: str, detail: str = "") -> dict[str, Any]:
    """The ledger's line for an example that is rejected."""
    return {
        "source": row["source"],
        "line": row["line"],
        "id": row["id"],
        "reason": reason,
        "detail": detail,
        "row": json.dumps(row, ensure_ascii=False)[:ROW_CHARS],
    }


def read(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """All shards of a table, in order."""
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in _shards(folder)])


def batches(folder: Path, rows: int = 10_000) -> Any:
    """The rows of a table in order, as Arrow tables of at most `rows` rows, without holding all of them."""
    for path in _shards(folder):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=rows):
                yield pa.Table.from_batches([batch])


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))
