"""CSV and TSV with a header line."""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

from tasks.sources.lines import universal_lines, without_end
from tasks.sources.row import TEXT_CHARS, Row, Unreadable
from tasks.sources.strict_json import BadText, decode, rejected, too_long


def _read(chunks: Iterable[bytes], max_row_bytes: int, *, delimiter: str) -> Iterator[Row]:
    """Rows as mappings from header to text; `line` is where the record begins; raises Unreadable for a bad header.

    Where a quote is not closed, within the cap or at all, only the first line of the record is rejected, and reading
    goes on with the line behind it.
    """
    csv.field_size_limit(max(csv.field_size_limit(), max_row_bytes))
    lines = _Lines(universal_lines(chunks, max_row_bytes), max_row_bytes)
    records = _records(csv.reader(lines, delimiter=delimiter, strict=True), lines)
    header = _header(records)
    for number, raw, fields in records:
        if isinstance(fields, BadText):
            yield rejected(raw, number, fields)
        elif fields:
            yield _row(header, number, raw, fields)


read_csv = partial(_read, delimiter=",")
read_tsv = partial(_read, delimiter="\t")


class _Lines:
    """The lines of a file, from which csv.reader takes a record at a time, and which can be put back."""

    def __init__(self, lines: Iterator[bytes], max_row_bytes: int) -> None:
        self._lines, self._max_row_bytes = lines, max_row_bytes
        self._waiting = deque[bytes]()  # put back
        self._bytes = 0  # of the present record
        self._open_to = 0  # the last line of a record that did not end: what is open on the way there ends no better
        self.taken: list[bytes] = []  # of the present record
        self.number = 1  # of its first line

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.taken and self.number + len(self.taken) <= self._open_to:
            raise BadText("invalid_csv", f"a quote is not closed up to line {self._open_to}")
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        self._bytes = self._bytes + len(line) if self.taken else len(line)
        self.taken.append(line)
        if self._bytes - len(line) + len(without_end(line)) > self._max_row_bytes:
            raise too_long(self._max_row_bytes)
        return line.decode("utf-8", "replace")

    def next_record(self) -> None:
        """Go on behind the lines taken."""
        self.number += len(self.taken)
        self.taken.clear()

    def put_back(self) -> None:
        """Keep the first line of the present record, and read the others again."""
        self._open_to = max(self._open_to, self.number + len(self.taken) - 1)
        self._waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _records(reader: Iterator[list[str]], lines: _Lines) -> Iterator[tuple[int, bytes, list[str] | BadText]]:
    """Line, bytes and fields of each record; where it does not end as it should, what is wrong with its first line."""
    while True:
        lines.next_record()
        try:
            fields: list[str] | BadText = next(reader)
        except StopIteration:
            return
        except BadText as bad:
            fields = bad
        except csv.Error as error:
            fields = BadText("invalid_csv", f"{error}, in line {lines.number + len(lines.taken) - 1}")
        if isinstance(fields, BadText):
            lines.put_back()
        yield lines.number, b"".join(lines.taken), fields


def _header(records: Iterator[tuple[int, bytes, list[str] | BadText]]) -> list[str]:
    _, raw, fields = next((record for record in records if record[2]), (0, b"", BadText("empty", "no line")))
    if isinstance(fields, BadText):
        raise Unreadable(f"has no header line: {fields.detail}")
    try:
        decode(raw)
    except BadText as bad:
        raise Unreadable(f"its header cannot be read: {bad}") from None
    if len(set(fields)) < len(fields):
        raise Unreadable(f"its header names a column twice: {', '.join(fields)}")
    return fields


def _row(header: list[str], number: int, raw: bytes, fields: list[str]) -> Row:
    try:
        text = decode(raw)
        if len(fields) != len(header):
            raise BadText("wrong_number_of_fields", f"{len(fields)} fields, the header has {len(header)}")
    except BadText as bad:
        return rejected(raw, number, bad)
    return Row(number, dict(zip(header, fields, strict=True)), text[:TEXT_CHARS].rstrip("\r\n"))
