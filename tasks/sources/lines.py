"""Lines of a stream of bytes, none of them held beyond a cap."""

import io
from collections.abc import Callable, Iterable, Iterator


def lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    """Lines with their ends, which are newlines; of a line that is longer than `max_bytes` as much as shows that."""
    return _lines(chunks, max_bytes, lambda chunk: io.BytesIO(chunk).readlines(), (b"\n",))


def universal_lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    """As `lines`, but a carriage return ends a line too, with or without a newline behind it."""
    whole = _with_whole_ends(chunks)
    return _lines(whole, max_bytes, lambda chunk: chunk.splitlines(keepends=True), (b"\n", b"\r"))


def without_end(line: bytes) -> bytes:
    """A line without its end."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _lines(
    chunks: Iterable[bytes], max_bytes: int, split: Callable[[bytes], list[bytes]], ends: tuple[bytes, ...]
) -> Iterator[bytes]:
    most = max_bytes + len(b"\r\n") + 1  # a line that was cut has no end, and is still too long without one
    held = bytearray()  # the start of a line that goes on in the next chunk
    for chunk in filter(None, chunks):
        first, *others = split(chunk)
        held += first[: max(0, most - len(held))]
        if first.endswith(ends):
            yield bytes(held)
            held.clear()
        if others and not others[-1].endswith(ends):
            held += others.pop()[:most]
        yield from others
    if held:
        yield bytes(held)


def _with_whole_ends(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks that never part a carriage return from its newline."""
    held = b""
    for chunk in chunks:
        joined = held + chunk
        held = joined[-1:] if joined.endswith(b"\r") else b""
        yield joined[: len(joined) - len(held)]
    yield held
