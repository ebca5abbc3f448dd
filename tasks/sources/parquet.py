"""Parquet, a batch at a time."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import SourceError
from tasks.sources.row import Row


def read(path: Path, max_row_chars: int) -> Iterator[Row]:
    """Rows as mappings from column to value, numbered from 1."""
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise SourceError(f"source {path}: names a column twice: {', '.join(names)}")
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    text = json.dumps(value, ensure_ascii=False, default=str)
                    if len(text) > max_row_chars:
                        yield Row(
                            number, None, text[:max_row_chars], "too_long_row", f"more than {max_row_chars} characters"
                        )
                    else:
                        yield Row(number, value, text)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise SourceError(f"source {path}: is damaged or no Parquet file: {error}") from None
