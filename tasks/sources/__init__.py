"""Readers of raw files: one row at a time, with its place, and with a reason where it cannot be read."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.errors import SourceError
from tasks.sources.row import Row
from tasks.store import digest_file

_MAGIC = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def read_rows(path: str, max_row_chars: int) -> Iterator[Row]:
    """Every row of the file at `path`, in order; the ending of its name says how it is read.

    Raises SourceError when it is missing, unreadable, empty, of an unknown kind or not what its name says.
    """
    file = _existing(path)
    if (reader := _reader(file.suffix.lower())) is None:
        raise SourceError(f"source {path}: its name does not say what it is; known endings: {', '.join(ENDINGS)}")
    _check_magic(file)
    return reader(file, max_row_chars)


def digest(path: str) -> str:
    """SHA-256 of a source file; raises SourceError when it cannot be read."""
    return digest_file(_existing(path))


ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def _reader(ending: str) -> Callable[[Path, int], Iterator[Row]] | None:
    from tasks.sources import delimited, json_text, parquet

    readers = (json_text.read_lines, json_text.read_json, delimited.read_csv, delimited.read_tsv, parquet.read)
    return dict(zip(ENDINGS, readers, strict=True)).get(ending)


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.exists():
        raise SourceError(f"source {path}: there is no such file (looked for {file.absolute()})")
    if not file.is_file():
        raise SourceError(f"source {path}: is not a file")
    try:
        with file.open("rb"):
            return file
    except OSError as error:
        raise SourceError(f"source {path}: cannot be read: {error.strerror}") from None


def _check_magic(file: Path) -> None:
    with file.open("rb") as opened:
        head = opened.read(4096)
    if not head.strip(b" \r\n\t\xef\xbb\xbf") and file.stat().st_size == len(head):
        raise SourceError(f"source {file}: is empty")
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    is_parquet = file.suffix.lower() == ".parquet"
    if is_parquet != (kind == "Parquet"):
        holds = kind or "no Parquet data"
        raise SourceError(f"source {file}: its name says {file.suffix}, but it holds {holds}")
    if kind and not is_parquet:
        raise SourceError(f"source {file}: its name says {file.suffix}, but it holds {kind}")
