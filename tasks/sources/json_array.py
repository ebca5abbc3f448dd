"""A JSON array of objects, read item by item: a bad item is one bad row, and no item is held beyond the cap."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from tasks.sources.row import Row
from tasks.sources.strict_json import SPACE, BadText, read_row, rejected

_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1, ord(","): 0}
_QUOTE, _COMMA, _BRACE = b'",}'
_STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_PIECE = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[][{},]', re.DOTALL)


def read_array(chunks: Iterator[bytes], max_row_bytes: int) -> Iterator[Row]:
    """The items of an array, numbered from 1; where the array itself breaks off, the rest of it is one bad row."""
    head = next(chunks)
    begin = head.index(b"[") + 1
    array = _Array(max_row_bytes, begin)
    for chunk, marks in _marks(_with_whole_escapes(chain([head[begin:]], chunks))):
        yield from array.read(chunk, marks)
    yield from array.end()


class _Array:
    """How far the reading of an array has come: an item may begin in one chunk and end in another."""

    def __init__(self, max_row_bytes: int, offset: int) -> None:
        self.max_row_bytes = max_row_bytes
        self.offset = self.item_offset = offset  # bytes of text before the chunk, and before the item
        self.item = bytearray()  # as much of it as the cap allows
        self.items = 0
        self.depth = 0  # of brackets inside the array; -1 behind its end

    def read(self, chunk: bytes, marks: list[int]) -> Iterator[Row]:
        """The rows of the items that end in `chunk`, whose commas and brackets stand at `marks`."""
        start = 0
        for at in marks:
            if self.depth < 0:
                break
            self.depth += _STEP[chunk[at]]
            if self.depth < 0 or (self.depth == 0 and chunk[at] == _COMMA):
                self._add(chunk[start : at + (chunk[at] == _BRACE)])  # a brace cannot end an array
                yield from self._item(is_last=chunk[at] != _COMMA)
                start = at + 1
                self.item_offset = self.offset + start
        self._add(chunk[start:])
        self.offset += len(chunk)

    def end(self) -> Iterator[Row]:
        """What is left where the file ends: nothing, if it ends with the array."""
        if self.depth < 0:
            if self.item:
                detail = f"text behind the end of the array, from byte {self.item_offset} on"
                yield rejected(self.item, self.items + 1, BadText("invalid_json", detail))
            return
        if self.depth == 0 and self.item:
            yield from self._item(is_last=True)
            self.item_offset = self.offset
        detail = f"the array is not closed; nothing from byte {self.item_offset} on could be read"
        yield rejected(self.item, self.items + 1, BadText("truncated_array", detail))

    def _add(self, piece: bytes) -> None:
        piece = piece if self.item else piece.lstrip(SPACE)
        self.item += piece[: max(0, self.max_row_bytes + 1 - len(self.item))]

    def _item(self, *, is_last: bool) -> Iterator[Row]:
        raw = self.item.rstrip(SPACE)
        self.item.clear()
        if raw or self.items or not is_last:
            self.items += 1
            yield read_row(bytes(raw), self.items, self.max_row_bytes)


def _marks(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, list[int]]]:
    """Each chunk with the positions of the commas and brackets that stand outside of strings."""
    in_string = False
    for chunk in chunks:
        marks, at = [], 0
        if in_string:
            rest = _STRING_REST.match(chunk)
            in_string, at = not rest[1], rest.end()
        for piece in _PIECE.finditer(chunk, at):
            if chunk[piece.start()] == _QUOTE:
                in_string = not piece[1]
            else:
                marks.append(piece.start())
        yield chunk, marks


def _with_whole_escapes(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks that never part a backslash from what it escapes."""
    held = b""
    for chunk in chunks:
        joined = held + chunk
        backslashes = len(joined) - len(joined.rstrip(b"\\"))
        held = joined[-1:] if backslashes % 2 else b""
        yield joined[: len(joined) - len(held)]
    yield held
