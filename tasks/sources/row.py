"""One row of a raw file."""

from typing import Any, NamedTuple


class Row(NamedTuple):
    """A row with its place; `value` is None where it could not be read, and then `reason` says why."""

    line: int  # from 1
    value: dict[str, Any] | None
    text: str  # as it stands in the file
    reason: str = ""
    detail: str = ""
