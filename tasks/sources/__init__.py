"""Readers of raw data: one row at a time, with its place, and with a reason where it cannot be read."""

from collections.abc import Iterator
from io import BufferedReader
from types import ModuleType

from tasks.config import SourceConfig
from tasks.errors import SourceError
from tasks.sources import local
from tasks.sources.endings import KNOWN, ending_of
from tasks.sources.place import is_remote, redacted, troubles
from tasks.sources.row import Row, SourceFile, Unreadable


def files(source: SourceConfig) -> list[SourceFile]:
    """The files of a source, sorted by name: of a folder or a glob those with a known ending that are not hidden.

    Raises SourceError where there is none.
    """
    if source.hub is not None:
        from tasks.sources import hub

        return hub.files(source.hub)
    found = _store(source.path).files(source.path)
    known = sorted(file for file in found if ending_of(file.name)[0])
    if not known:
        raise SourceError(redacted(f"source {source.path}: no name there says what the file is; {KNOWN}"))
    return known


def read_rows(source: SourceConfig, file: SourceFile, max_row_bytes: int) -> Iterator[Row]:
    """Every row of a file, in order; the ending of its name says how it is read.

    Raises SourceError where it is unreadable, empty, damaged, or not what its name says; the rows before a damage come
    first.
    """
    if source.hub is not None:
        from tasks.sources import hub

        yield from hub.read(source.hub, file.place, max_row_bytes)
        return
    try:
        with _store(source.path).open_file(source.path, file) as stored:
            yield from _rows(stored, *ending_of(file.name), max_row_bytes)
    except Unreadable as error:
        raise SourceError(redacted(f"source {file.place}: {error}")) from None
    except troubles() as error:
        raise SourceError(redacted(f"source {file.place}: cannot be read: {error}")) from None


def digest(source: SourceConfig) -> str:
    """One digest of a whole source: of the names and contents of its files, or of the commit of a Hub dataset.

    Raises SourceError as `files` does, and where a file cannot be read.
    """
    if source.hub is not None:
        from tasks.sources import hub

        return hub.digest(source.hub)
    return _store(source.path).digest(source.path, files(source))


def _store(path: str) -> ModuleType:
    """The module that lists and opens what is at a path."""
    if is_remote(path):
        from tasks.sources import remote

        return remote
    return local


def _rows(stored: BufferedReader, ending: str, compression: str, max_row_bytes: int) -> Iterator[Row]:
    from tasks.sources import delimited, json_text, parquet, stream

    if ending == ".parquet":
        with stream.seekable(stored, ending, compression) as whole:
            yield from parquet.read(whole, max_row_bytes)
        return
    readers = {
        ".jsonl": json_text.read_lines,
        ".json": json_text.read_json,
        ".csv": delimited.read_csv,
        ".tsv": delimited.read_tsv,
    }
    yield from readers[ending](stream.read_text(stored, ending, compression), max_row_bytes)
