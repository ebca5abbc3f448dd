"""One file of a source, and one row of a file."""

import json
from typing import Any, NamedTuple

TEXT_CHARS = 20_000
"""A row's text is cut here; file and line say where the rest is."""


class SourceFile(NamedTuple):
    """One file of a source."""

    name: str  # relative to the source's folder, with slashes; of a Hub dataset, its split
    place: str  # path or URL; of a Hub dataset, the commit
    size_bytes: int  # as stored; 0 where unknown


class Row(NamedTuple):
    """A row with its place; `value` is None where it could not be read, and then `reason` says why."""

    line: int  # from 1; in a JSON array, in Parquet and on the Hub the number of the row
    value: dict[str, Any] | None
    text: str  # as it stands in the file, up to TEXT_CHARS; empty where the file is no text
    reason: str = ""
    detail: str = ""

    @property
    def shown(self) -> str:
        """Its text, or else its value as JSON, up to TEXT_CHARS."""
        return self.text or json.dumps(self.value, ensure_ascii=False, default=str)[:TEXT_CHARS]


class Unreadable(Exception):
    """A file that cannot be read, or no further; the message says why, and the caller adds which file."""
