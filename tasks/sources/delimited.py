"""CSV and TSV with a header line."""

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tasks.errors import SourceError
from tasks.sources.row import Row


def _read(path: Path, max_row_chars: int, *, delimiter: str) -> Iterator[Row]:
    """Rows as mappings from header to text; `line` is where the record begins."""
    csv.field_size_limit(max_row_chars)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(fields for fields in reader if fields)
        except (csv.Error, StopIteration) as error:
            raise SourceError(f"source {path}: has no header line: {error}") from None
        if not all(map(_is_text, header)):
            raise SourceError(f"source {path}: its header is no UTF-8")
        if len(set(header)) < len(header):
            raise SourceError(f"source {path}: its header names a column twice: {', '.join(header)}")
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # A quote that is never closed swallows the rows behind it: say how far.
                reason = "too_long_row" if "field limit" in str(error) else "invalid_csv"
                yield Row(line, None, "", reason, f"{error}, lines {line} to {reader.line_num}")
                continue
            if fields:
                yield _row(header, fields, line, max_row_chars)


read_csv = partial(_read, delimiter=",")
read_tsv = partial(_read, delimiter="\t")


def _row(header: list[str], fields: list[str], line: int, max_row_chars: int) -> Row:
    text = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")
    if len(fields) != len(header):
        return Row(line, None, text, "wrong_number_of_fields", f"{len(fields)} fields, the header has {len(header)}")
    if len(text) > max_row_chars:
        return Row(line, None, text, "too_long_row", f"more than {max_row_chars} characters")
    if not all(field.isprintable() or _is_text(field) for field in fields):
        return Row(line, None, text, "invalid_utf8", "bytes that are no UTF-8")
    return Row(line, dict(zip(header, fields, strict=True)), text)


def _is_text(field: str) -> bool:
    """False where a byte could not be decoded and stands as a lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in field)
