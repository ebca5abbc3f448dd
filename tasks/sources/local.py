"""Sources on this machine: a file, a folder with all below it, or a glob.

A link to a file is read as a file of its own name, wherever it leads.  A linked folder is read too, but none is read
twice.
"""

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from tasks.disk import digest_file, digest_json
from tasks.errors import SourceError
from tasks.sources.endings import ending_of
from tasks.sources.place import fixed_parts, is_glob, is_hidden, redacted
from tasks.sources.row import SourceFile


def files(path: str) -> list[SourceFile]:
    """The files of a source: a single one of any ending; raises SourceError where there is nothing at that path."""
    root = Path(path.removeprefix("file://")).expanduser()
    with _telling(path):
        if root.is_dir():
            return _files(root, _walk(root))
        if root.exists():
            return [_file(root.name, root)]
        if is_glob(str(root)):
            return _matches(root)
        raise SourceError(redacted(f"source {path}: there is no such file (looked for {root.absolute()})"))


def open_file(path: str, file: SourceFile) -> BufferedReader:
    """The stored bytes of a file; raises OSError."""
    return Path(file.place).open("rb")


def digest(path: str, found: Iterable[SourceFile]) -> str:
    """SHA-256 of the names and contents of the files."""
    digests = []
    for file in found:
        with _telling(file.place):
            digests.append([file.name, digest_file(Path(file.place))])
    return digest_json(digests)


def _matches(pattern: Path) -> list[SourceFile]:
    """The files that a glob matches, and those in the folders that it matches."""
    fixed = fixed_parts(pattern.parts)
    folder, wild = Path(*pattern.parts[:fixed]), "/".join(pattern.parts[fixed:])
    matches = [folder / match for match in glob.glob(wild, root_dir=folder, recursive=True)]
    places = {inner for match in matches for inner in (_walk(match) if match.is_dir() else [match])}
    return _files(folder, places, hidden=is_hidden(wild))


def _files(folder: Path, places: Iterable[Path], *, hidden: bool = False) -> list[SourceFile]:
    names = {place.relative_to(folder).as_posix(): place for place in places if ending_of(place.name)[0]}
    return [_file(name, place) for name, place in names.items() if hidden or not is_hidden(name)]


def _walk(root: Path) -> Iterator[Path]:
    """What is no folder, in `root` and all visible folders below it."""
    seen = set[tuple[int, int]]()
    for at, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        here = os.stat(at)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(folder for folder in folders if not is_hidden(folder))
        yield from (Path(at, name) for name in names)


def _file(name: str, place: Path) -> SourceFile:
    status = place.stat()
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"source {redacted(str(place))}: is not a file")
    return SourceFile(os.fsencode(name).decode("utf-8", "replace"), str(place), status.st_size)


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"source {redacted(path)}: cannot be read: {error.strerror}") from None
