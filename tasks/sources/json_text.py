"""JSON Lines, and JSON arrays of objects, read strictly."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tasks.errors import SourceError
from tasks.sources.row import Row

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path, max_row_chars: int) -> Iterator[Row]:
    """One JSON object per line; blank lines are no rows.  A line over the cap is never held as a whole."""
    max_bytes = 4 * max_row_chars  # the most that UTF-8 takes for that many characters
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(max_bytes + 1):
            number += 1
            cut = len(raw) > max_bytes and not raw.endswith(b"\n")
            raw = raw.removeprefix(_BOM) if number == 1 else raw
            if cut:
                _skip_line(file)
                yield _too_long(number, raw[:max_row_chars].decode("utf-8", "replace"), max_row_chars)
            elif raw.strip():
                yield _row(raw, number, max_row_chars)


def read_json(path: Path, max_row_chars: int) -> Iterator[Row]:
    """The objects of a JSON array, numbered from 1; a file that starts otherwise is read as JSON Lines."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BOM).lstrip()
    if not head.startswith(b"["):
        yield from read_lines(path, max_row_chars)
        return
    try:
        for number, text in enumerate(_array_items(path.read_bytes().removeprefix(_BOM).decode("utf-8")), start=1):
            yield _row(text.encode("utf-8"), number, max_row_chars)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"source {path}: is not a JSON array: {error}") from None


def _array_items(text: str) -> Iterator[str]:
    """The text of each item of a JSON array; raises ValueError where the array itself is broken."""
    decoder, at = json.JSONDecoder(), _next(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        _, end = decoder.raw_decode(text, at)
        yield text[at:end]
        at = _next(text, end)
        if text[at : at + 1] not in {",", "]"}:
            raise ValueError(f"expected ',' or ']' at character {at}")
        if text[at] == ",":
            at = _next(text, at + 1)
            if text[at : at + 1] == "]":
                raise ValueError(f"',' before the end at character {at}")
    if text[at + 1 :].strip():
        raise ValueError(f"text behind its end at character {at + 1}")


def _next(text: str, at: int) -> int:
    """The position of the next character that is no space."""
    while text[at : at + 1].isspace():
        at += 1
    return at


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


def _too_long(number: int, text: str, max_row_chars: int) -> Row:
    return Row(number, None, text, "too_long_row", f"more than {max_row_chars} characters")


class _Strict(ValueError):
    """What the JSON parser lets pass and attune does not."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def _row(raw: bytes, number: int, max_row_chars: int) -> Row:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return Row(
            number, None, raw.decode("utf-8", "replace").strip(), "invalid_utf8", f"byte {error.start} of the line"
        )
    if len(text) > max_row_chars:
        return _too_long(number, text, max_row_chars)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _Strict as error:
        return Row(number, None, text, error.reason, error.detail)
    except UnicodeEncodeError:
        return Row(number, None, text, "lone_surrogate", "half of a surrogate pair")
    except (ValueError, RecursionError) as error:
        return Row(number, None, text, "invalid_json", str(error))
    if not isinstance(value, dict):
        return Row(number, None, text, "not_an_object", f"is of type {type(value).__name__}")
    return Row(number, value, text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Strict("duplicate_key", repr(next(key for key in keys if keys.count(key) > 1)))
    return value


def _finite(constant: str) -> float:
    raise _Strict("not_a_finite_number", constant)
