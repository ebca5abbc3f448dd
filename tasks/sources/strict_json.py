"""One row of JSON, read strictly: what other readers let pass and trip over later has a reason of its own."""

import json
import math
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from tasks.sources.row import TEXT_CHARS, Row

MAX_DEPTH = 100
"""Levels of lists and objects: far more than data has, far fewer than the stack of any later reader bears."""

MAX_NUMBER_CHARS = 1_000

SPACE = b" \t\r\n"
"""What JSON takes for space."""

_SUSPECT_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadText(ValueError):
    """Text that is no row, with the reason."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_row(raw: bytes, line: int, max_bytes: int) -> Row:
    """The row that stands in `raw`; a bad one has a reason and no value."""
    try:
        if len(raw) > max_bytes:
            raise too_long(max_bytes)
        text = decode(raw.strip(SPACE))
        value = _parse(text, raw)
    except BadText as bad:
        return rejected(raw, line, bad)
    return Row(line, value, text[:TEXT_CHARS])


def rejected(raw: bytes, line: int, bad: BadText) -> Row:
    """The row of `raw` where it cannot be read."""
    text = raw[: 4 * TEXT_CHARS].decode("utf-8", "replace").strip()  # a character takes at most four bytes
    return Row(line, None, text[:TEXT_CHARS], bad.reason, bad.detail)


def too_long(max_bytes: int) -> BadText:
    """What is wrong with a row of more bytes than allowed."""
    return BadText("too_long_row", f"more than {max_bytes} bytes")


def decode(raw: bytes) -> str:
    """The text of UTF-8; raises BadText where it is none, or holds a NUL."""
    if b"\0" in raw:
        raise BadText("nul_character", f"at byte {raw.index(0)}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadText(_what_is_wrong(raw), f"at byte {error.start}") from None


def _what_is_wrong(raw: bytes) -> str:
    try:
        raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return "invalid_utf8"
    return "lone_surrogate"  # in UTF-16, or written as if it were a character


def _parse(text: str, raw: bytes) -> dict[str, Any]:
    try:
        value, end = _DECODER.raw_decode(text)
    except RecursionError:
        raise BadText("nested_too_deep", f"more than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise BadText("invalid_json", str(error)) from None
    if end < len(text):
        raise BadText("invalid_json", f"more behind the end of the value, at character {end}")
    if not isinstance(value, dict):
        raise BadText("not_an_object", f"is of type {type(value).__name__}")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH or _SUSPECT_ESCAPE.search(raw):
        check_value(value)
    return value


def check_value(value: Any) -> None:
    """Raise BadText where a value is nested too deeply, or a text in it holds a NUL or half of a surrogate pair."""
    for depth, level in enumerate(_levels(value)):
        if depth > MAX_DEPTH:
            raise BadText("nested_too_deep", f"more than {MAX_DEPTH} levels")
        for text in level:
            if isinstance(text, str):
                _check_text(text)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise BadText("nul_character", f"in {text[:100]!r}")
    if not text.isascii() and _SURROGATE.search(text):
        raise BadText("lone_surrogate", f"in {text[:100]!r}")


def _levels(value: Any) -> Iterator[list[Any]]:
    """All that a value is made of, from the outside in, a level at a time; keys stand beside their values."""
    level = [value]
    while level:
        yield level
        level = list(chain.from_iterable(map(_members, level)))


def _members(value: Any) -> Any:
    if isinstance(value, dict):
        return chain(value, value.values())
    return value if isinstance(value, (list, tuple)) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise BadText("duplicate_key", repr(twice[:100]))
    return value


def _constant(name: str) -> float:
    raise BadText("not_a_finite_number", name)


def _integer(digits: str) -> int:
    _check_number(digits)
    return int(digits)


def _float(digits: str) -> float:
    _check_number(digits)
    if not math.isfinite(value := float(digits)):
        raise BadText("not_a_finite_number", digits)
    return value


def _check_number(digits: str) -> None:
    if len(digits) > MAX_NUMBER_CHARS:
        raise BadText("number_too_long", f"{len(digits)} characters")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
