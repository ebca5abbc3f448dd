"""Sources that fsspec opens, such as s3://bucket/folder: a file, a folder with all below it, or a glob."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from tasks.disk import digest_json
from tasks.errors import SourceError
from tasks.sources.place import WEB, fixed_parts, is_glob, is_hidden, redacted, troubles
from tasks.sources.row import SourceFile

EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Protocol to the extra of attune that brings its package."""

VOUCHERS = ("ETag", "etag", "blob_id")
"""What a store says of an object that changes with its content; blob_id is the Hub's."""


def files(path: str) -> list[SourceFile]:
    """The files of a source, of any ending; raises SourceError where there is nothing at that path."""
    with _telling(path):
        fs, root = _filesystem(path)
        fs.invalidate_cache()  # a process that runs every night must see what came since
        try:
            info = fs.info(root)
        except FileNotFoundError:
            if not is_glob(root):
                raise
            return _matches(fs, root)
        if info["type"] == "directory":
            return _files(fs, len(root.rstrip("/").split("/")), fs.find(root, detail=True))
        return [_file(fs, _base_name(root), root, info)]


def open_file(path: str, file: SourceFile) -> BufferedReader:
    """The stored bytes of a file; raises one of troubles()."""
    fs, _ = _filesystem(path)
    return BufferedReader(fs.open(file.place, "rb"))


def digest(path: str, found: Iterable[SourceFile]) -> str:
    """SHA-256 of names, sizes and strong ETags as the store states them; of contents where it states no ETag."""
    fs, _ = _filesystem(path)
    digests = []
    for file in found:
        with _telling(file.place):
            digests.append([file.name, _stated(fs.info(file.place)) or _content_digest(fs, file.place)])
    return digest_json(digests)


def _stated(info: dict[str, Any]) -> str:
    stated = next((str(info[key]) for key in VOUCHERS if info.get(key)), "")
    return "" if not stated or stated.startswith("W/") else f"{info['size']} {stated}"


def _content_digest(fs: AbstractFileSystem, place: str) -> str:
    with fs.open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _filesystem(path: str) -> tuple[AbstractFileSystem, str]:
    """What opens the path, and the path as it knows it."""
    protocol = path.split(":", 1)[0]
    try:
        return url_to_fs(path)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"run pip install 'attune[{extra}]'" if extra else f"install its package ({error})"
        raise SourceError(f"source {redacted(path)}: {protocol}:// needs a package that is missing: {remedy}") from None
    except ValueError as error:
        raise SourceError(f"source {redacted(path)}: {redacted(str(error))}") from None


def _matches(fs: AbstractFileSystem, pattern: str) -> list[SourceFile]:
    """The files that a glob matches, and those in the folders that it matches."""
    parts = pattern.split("/")
    depth = fixed_parts(parts)
    found: dict[str, dict[str, Any]] = {}
    for place, info in fs.glob(pattern, detail=True).items():
        found |= fs.find(place, detail=True) if info["type"] == "directory" else {place: info}
    return _files(fs, depth, found, hidden=is_hidden("/".join(parts[depth:])))


def _files(
    fs: AbstractFileSystem, depth: int, found: dict[str, dict[str, Any]], *, hidden: bool = False
) -> list[SourceFile]:
    names = {"/".join(place.split("/")[depth:]): place for place in found}
    return [_file(fs, name, place, found[place]) for name, place in names.items() if hidden or not is_hidden(name)]


def _file(fs: AbstractFileSystem, name: str, place: str, info: dict[str, Any]) -> SourceFile:
    return SourceFile(name, fs.unstrip_protocol(place), info.get("size") or 0)


def _base_name(place: str) -> str:
    """Of a web address without its query."""
    path = urlsplit(place).path if place.startswith(WEB) else place
    return path.rsplit("/", 1)[-1]


@contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"source {redacted(path)}: there is no such file or folder, or no answer") from None
    except troubles() as error:
        raise SourceError(f"source {redacted(path)}: cannot be read: {redacted(str(error))}") from None
