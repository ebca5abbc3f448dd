"""JSON Lines, and the choice between them and a JSON array."""

from collections.abc import Iterable, Iterator
from itertools import chain

from tasks.sources.json_array import read_array
from tasks.sources.lines import lines, without_end
from tasks.sources.row import Row
from tasks.sources.strict_json import SPACE, read_row


def read_lines(chunks: Iterable[bytes], max_row_bytes: int, first_line: int = 1) -> Iterator[Row]:
    """One JSON object per line; blank lines are no rows."""
    for number, line in enumerate(lines(chunks, max_row_bytes), start=first_line):
        raw = without_end(line)
        if raw.strip(SPACE):
            yield read_row(raw, number, max_row_bytes)


def read_json(chunks: Iterator[bytes], max_row_bytes: int) -> Iterator[Row]:
    """The items of a JSON array; what starts otherwise is read as JSON Lines."""
    line = 1
    for chunk in chunks:
        text = chain([chunk], chunks)
        if chunk.lstrip(SPACE).startswith(b"["):
            yield from read_array(text, max_row_bytes)
        elif chunk.strip(SPACE):
            yield from read_lines(text, max_row_bytes, line)
        line += chunk.count(b"\n")
