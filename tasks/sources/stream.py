"""From a stored file to its text: checked against its name, decompressed, and as UTF-8 without a byte-order mark."""

import codecs
import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from typing import BinaryIO

from tasks.sources.endings import COMPRESSIONS, check_magic
from tasks.sources.row import Unreadable
from tasks.sources.strict_json import SPACE

CHUNK_BYTES = 1 << 18

_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_text(stored: BufferedReader, ending: str, compression: str) -> Iterator[bytes]:
    """The text of a file in chunks of UTF-8; bytes that are no text come through as they are.

    Raises Unreadable for an empty file, a damaged archive, and content of another kind than the name says.
    """
    content = read_content(stored, ending, compression)
    head = next(content, b"")
    check_magic(head, "", ending)
    is_blank = True
    for chunk in _as_utf8(head, content):
        is_blank = is_blank and not chunk.strip(SPACE)
        yield chunk
    if is_blank:
        raise Unreadable("is empty")


def read_content(stored: BufferedReader, ending: str, compression: str) -> Iterator[bytes]:
    """The decompressed content of a file in chunks; raises Unreadable where it is empty or damaged."""
    _check_head(stored.peek(1), COMPRESSIONS.get(compression, ""), ending + compression)
    content = _decompressed(stored, compression)
    try:
        while chunk := content.read(CHUNK_BYTES):
            yield chunk
    except (EOFError, zlib.error, OSError) as error:
        if not compression or getattr(error, "errno", None):
            raise  # the disk or the network is to blame
        raise Unreadable(f"its {COMPRESSIONS[compression]} data is damaged or ends early: {error}") from None


@contextmanager
def seekable(stored: BufferedReader, ending: str, compression: str) -> Iterator[BinaryIO]:
    """A Parquet file to seek in: what is compressed is unpacked into a temporary file."""
    with tempfile.TemporaryFile() if compression else nullcontext(stored) as content:
        if compression:
            content.writelines(read_content(stored, ending, compression))
            content.seek(0)
        _check_head(content.read(16), "Parquet", ending)
        content.seek(0)
        yield content


def _check_head(head: bytes, expected: str, ending: str) -> None:
    if not head:
        raise Unreadable("is empty")
    check_magic(head, expected, ending)


def _decompressed(stored: BufferedReader, compression: str) -> BinaryIO:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=stored)
    if compression == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(stored, "r"), "zstd")
    return stored


def _as_utf8(head: bytes, content: Iterator[bytes]) -> Iterator[bytes]:
    """UTF-16 is recognised by its byte-order mark; half a pair becomes what no UTF-8 has, so that its row is told."""
    if (encoding := _UTF_16.get(head[:2])) is None:
        yield head.removeprefix(codecs.BOM_UTF8)
        yield from content
        return
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    yield decoder.decode(head[2:]).encode("utf-8", "surrogatepass")
    for chunk in content:
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        yield b"\xff"
