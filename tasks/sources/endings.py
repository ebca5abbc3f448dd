"""What the ending of a file's name says, and what its first bytes say."""

from pathlib import PurePosixPath

from tasks.sources.row import Unreadable

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "Zstandard"}
KNOWN = f"known endings: {', '.join(ENDINGS)}, each also with {' or '.join(COMPRESSIONS)} behind it"

_MAGIC = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ\0": "xz",
    b"\xff\xfe\0\0": "UTF-32 text",
    b"\0\0\xfe\xff": "UTF-32 text",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer (fetch the data with git lfs pull)",
}


def ending_of(name: str) -> tuple[str, str]:
    """Ending and compression of a file's name, such as (".jsonl", ".gz"); empty texts where there is none known."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    ending = suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else ""
    return ending, compression


def check_magic(head: bytes, expected: str, ending: str) -> None:
    """Raise Unreadable where the first bytes of a file are of another kind than `expected` ("" for text)."""
    holds = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if holds != expected:
        raise Unreadable(f"its name says {ending}, but it holds {holds or f'no {expected} data'}")
