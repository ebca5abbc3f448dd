"""Parquet, a batch at a time."""

import datetime
import decimal
import math
import uuid
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.sources.row import Row, Unreadable
from tasks.sources.strict_json import BadText, check_value, rejected, too_long

BATCH_ROWS = 1_000
BATCH_BYTES = 1 << 20


def read(stored: BinaryIO, max_row_bytes: int) -> Iterator[Row]:
    """Rows as mappings from column to value, numbered from 1; raises Unreadable for a damaged file."""
    try:
        with pq.ParquetFile(stored, buffer_size=BATCH_BYTES, pre_buffer=False) as file:
            check_names(file.schema_arrow)
            number = 1
            for group in range(file.num_row_groups):
                rows = _batch_rows(file.metadata.row_group(group))
                for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                    yield from batch_rows(batch, number, max_row_bytes)
                    number += batch.num_rows
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        if getattr(error, "errno", None):
            raise  # the disk or the network is to blame
        raise Unreadable(f"is damaged or no Parquet file: {error}") from None


def check_names(schema: pa.Schema) -> None:
    """Raise Unreadable where two columns have one name."""
    if len(set(schema.names)) < len(schema.names):
        raise Unreadable(f"names a column twice: {', '.join(schema.names)}")


def batch_rows(batch: pa.RecordBatch, number: int, max_row_bytes: int) -> Iterator[Row]:
    """The rows of a batch, numbered from `number`; dates and decimals become text, and what is no number None."""
    values = None
    if batch.nbytes <= max_row_bytes:
        with suppress(ValueError, OverflowError):
            values = _values(batch)
    if values is not None:
        yield from map(_row, values, count(number))
        return
    for at in range(batch.num_rows):
        yield _single_row(batch.slice(at, 1), number + at, max_row_bytes)


def _single_row(batch: pa.RecordBatch, number: int, max_row_bytes: int) -> Row:
    """The row of a batch of one."""
    if batch.nbytes > max_row_bytes:
        return rejected(b"", number, too_long(max_row_bytes))
    try:
        return _row(_values(batch)[0], number)
    except UnicodeDecodeError as error:
        return rejected(b"", number, BadText("invalid_utf8", str(error)))
    except (ValueError, OverflowError) as error:
        return rejected(b"", number, BadText("invalid_value", str(error)))


def _row(value: dict[str, Any], number: int) -> Row:
    try:
        check_value(value)
    except BadText as bad:
        return Row(number, None, Row(number, value, "").shown, bad.reason, bad.detail)
    return Row(number, value, "")


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as plain values; raises ValueError or OverflowError where a cell has none."""
    values = batch.to_pylist()
    if nested := [field.name for field in batch.schema if pa.types.is_nested(field.type)]:
        values = [row | {name: _given(row[name]) for name in nested} for row in values]
    return values if all(_is_json(field.type) for field in batch.schema) else [_plain(value) for value in values]


def _given(value: Any) -> Any:
    """A nested value without the nulls that Arrow puts where an object has no such field, but another row's has."""
    if isinstance(value, dict):
        return {key: _given(inner) for key, inner in value.items() if inner is not None}
    return [_given(inner) for inner in value] if isinstance(value, list) else value


def _is_json(kind: pa.DataType) -> bool:
    """Whether JSON has all values of a type."""
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return all(_is_json(kind.field(at).type) for at in range(kind.num_fields))
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return texts or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta, uuid.UUID)):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """Rows that are read at a time: fewer where rows are long."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
