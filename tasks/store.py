"""ArtifactStore: immutable, content-addressed, verified folders of files.

`<root>/<stage>/<key>/` exists as an artifact only once its `manifest.json` does, and that is written last: files are
written into a work folder on the same file system, synced, described by the manifest, and the whole folder is renamed
into place.  A reader therefore sees all of an artifact or nothing.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from tasks.disk import digest_file, digest_json, sync
from tasks.errors import AttuneError, DamagedArtifactError, LedgerError
from tasks.layout import MANIFEST, RESUME, UNREAD

if TYPE_CHECKING:
    from tasks.config import PipelineConfig

log = logging.getLogger("attune.store")

TRASH = ".trash"
"""Folder of a store for what is being removed: a folder moves there whole, so that nobody sees a part of it."""


def _inside(path: str) -> str:
    """A manifest that came from elsewhere must not lead out of its folder."""
    if "\0" in path or {"", ".", ".."} & set(path.split("/")):
        raise ValueError("a path that leads out of the artifact")
    return path


class FileEntry(BaseModel):
    """One file of an artifact, as it was when it was published."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: Annotated[str, AfterValidator(_inside)]
    sha256: str
    size_bytes: int
    modified_ns: int


class Manifest(BaseModel):
    """What an artifact is, what it was made from, and what is in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    stage: str
    key: str
    digest: str  # of the content: paths and SHA-256 of all files that stages read
    settings: dict[str, Any]
    inputs: dict[str, str]  # name -> content digest
    code: dict[str, str]  # module -> digest
    versions: dict[str, str]  # library -> version
    rows_in: int
    rows_kept: int
    rejected: dict[str, int]  # reason -> rows
    figures: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    created: str  # UTC, ISO 8601
    created_by: str  # attune's version
    pipeline: str = ""  # name of the run that made it
    files: list[FileEntry]
    seal: str = ""  # SHA-256 of all the fields above, as they are written


class ArtifactRef(NamedTuple):
    """All that travels between stages."""

    stage: str
    key: str
    digest: str


class ArtifactStore:
    """The artifacts under one root folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, ref: ArtifactRef) -> Path:
        """The folder of an artifact; its files are there once `verify` or `fetch` has said True."""
        return self.root / ref.stage / ref.key

    def fetch(self, ref: ArtifactRef) -> bool:
        """Have an artifact's files in its folder, which on disk they are; False when that cannot be."""
        return self.path(ref).exists()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Held by a run for as long as it lasts, so that nothing goes which it may read; many may hold it at once."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".in-use.lock", fcntl.LOCK_SH):
            yield

    @contextmanager
    def unused(self) -> Iterator[None]:
        """Held by who removes artifacts.  Raises AttuneError while a run holds the store in use."""
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.root / ".in-use.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield
        except BlockingIOError:
            raise AttuneError(f"{self.root}: a run is going on and may read it; try again when it has ended") from None

    def find(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a complete artifact, or None.

        Checks each file's size and modification time, and the digest of a file whose time differs.  An artifact that
        fails is moved to quarantine with a warning, so that it is made again.
        """
        folder = self.root / stage / key
        if not folder.exists():
            return None
        try:
            manifest = read_manifest(folder)
            if (manifest.stage, manifest.key) != (stage, key):
                raise DamagedArtifactError(f"{folder}: its manifest is of {manifest.stage} {manifest.key}")
            for entry in manifest.files:
                check_file(folder, entry, trust_time=True)
        except DamagedArtifactError as damage:
            self._quarantine(folder, damage)
            return None
        return manifest

    def verify(self, ref: ArtifactRef) -> bool:
        """True when every byte is as published; otherwise the artifact is quarantined and the answer is False."""
        folder = self.path(ref)
        try:
            manifest = read_manifest(folder)
            if content_digest(manifest.files) != ref.digest:
                raise DamagedArtifactError(f"{folder}: its content is not the one that was asked for")
            for entry in manifest.files:
                check_file(folder, entry, trust_time=False)
            _refuse_strangers(folder, manifest)
        except DamagedArtifactError as damage:
            self._quarantine(folder, damage)
            return False
        return True

    def manifests(self, stage: str | None = None) -> Iterator[Manifest]:
        """Every readable manifest, of one stage or of all; unreadable ones are passed over."""
        for path in sorted(self.root.glob(f"{stage or '[!.]*'}/*/{MANIFEST}")):
            try:
                yield read_manifest(path.parent)
            except DamagedArtifactError as damage:
                log.warning("passed over: %s", damage)

    def folders(self) -> list[Path]:
        """The folders of all artifacts, readable or not."""
        return sorted(path.parent for path in self.root.glob(f"[!.]*/*/{MANIFEST}"))

    def audit(self) -> Iterator[bool]:
        """Read every byte of every artifact: for each, whether it is as published; damaged ones go to quarantine."""
        for folder in self.folders():
            manifest = self.find(folder.parent.name, folder.name)
            yield manifest is not None and self._reread(reference(manifest))

    def _reread(self, ref: ArtifactRef) -> bool:
        return self.verify(ref)

    @contextmanager
    def work_folder(self, stage: str, key: str) -> Iterator[Path]:
        """A folder to make the artifact in, held by one process at a time.

        What a killed run left in it is removed, but for its `resume/`.  The lock is the kernel's: it is freed when its
        holder dies, however it dies.
        """
        work = self.root / ".work" / f"{stage}-{key}"
        work.parent.mkdir(parents=True, exist_ok=True)
        with locked(work.parent / f"{stage}-{key}.lock", fcntl.LOCK_EX):
            aside = _aside(work)
            for link in filter(Path.is_symlink, (work, work / RESUME, aside)):  # nobody of ours makes one
                link.unlink()
            work.mkdir(exist_ok=True)
            if aside.exists():
                os.rename(aside, work / RESUME)
            for leftover in work.iterdir():
                if leftover.name != RESUME:
                    _remove(leftover)
            yield work

    def commit(self, work: Path, manifest: dict[str, Any]) -> Manifest:
        """Publish `work` as an artifact: sync its files, write the manifest, rename.

        `manifest` holds the fields of Manifest without digest, created and files.  If another process published the
        same key first, its artifact stands and this one is dropped.  Raises LedgerError when rows were lost.
        """
        rejected = sum(manifest["rejected"].values())
        if manifest["rows_in"] != manifest["rows_kept"] + rejected:
            raise LedgerError(
                f"{manifest['stage']}: {manifest['rows_in']} rows in, but {manifest['rows_kept']} kept "
                f"and {rejected} rejected; nothing was published"
            )
        resume, aside = work / RESUME, _aside(work)
        paths = [path for path in sorted(work.rglob("*")) if path.is_file() and resume not in path.parents]
        files = [_sync(path, work) for path in paths]
        created = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        complete = Manifest(**manifest, digest=content_digest(files), created=created, files=files)
        complete.seal = seal_of(complete)
        _write_synced(work / MANIFEST, complete.model_dump_json(indent=1))
        for folder in [path for path in work.rglob("*") if path.is_dir()] + [work]:
            sync(folder)
        target = self.root / complete.stage / complete.key
        target.parent.mkdir(parents=True, exist_ok=True)
        if (winner := self.find(complete.stage, complete.key)) is not None:
            shutil.rmtree(work)
            return winner
        # Set aside, not removed: a kill before the artifact stands must not cost the checkpoints.
        if resume.exists():
            os.rename(resume, aside)
        os.rename(work, target)
        sync(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
        return complete

    def is_quarantined(self, stage: str, key: str) -> bool:
        """Whether an artifact of that key was found damaged before."""
        return any((self.root / ".quarantine").glob(f"{stage}-{key}-*"))

    def trash(self, path: Path) -> Path:
        """Move what nobody needs any more out of sight, in one step; returns where to, for who deletes it then."""
        aside = self.root / TRASH / f"{path.parent.name}-{path.name}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        os.rename(path, aside)
        return aside

    def _quarantine(self, folder: Path, damage: DamagedArtifactError) -> None:
        """Move a damaged artifact aside, where nobody reads it and a person can look at it."""
        aside = self.root / ".quarantine" / f"{folder.parent.name}-{folder.name}-{time.time_ns()}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, aside)
        except FileNotFoundError:  # it is gone, or another process was first
            return
        log.warning("%s; it was moved to %s and will be replaced", damage, aside)


def open_store(config: "PipelineConfig") -> ArtifactStore:
    """The store that a config names: a folder, or a bucket with copies in a folder.  The one place that decides."""
    if "://" not in config.store:
        return ArtifactStore(config.store_folder)
    from tasks.remote_store import RemoteStore

    return RemoteStore(config.store, config.store_folder)


def reference(manifest: Manifest) -> ArtifactRef:
    """What travels between stages of the artifact with this manifest."""
    return ArtifactRef(manifest.stage, manifest.key, manifest.digest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`; raises DamagedArtifactError when it is missing, torn or not one."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise DamagedArtifactError(f"{folder}: no readable manifest ({error.strerror})") from None
    return parse_manifest(data, str(folder))


def parse_manifest(data: bytes, place: str) -> Manifest:
    """The manifest of the artifact at `place`; raises DamagedArtifactError when it is torn or not one."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise DamagedArtifactError(f"{place}: its manifest is damaged ({error.error_count()} errors)") from None
    if manifest.digest != content_digest(manifest.files):
        raise DamagedArtifactError(f"{place}: its manifest is damaged (digest and files differ)")
    if manifest.seal != seal_of(manifest):
        raise DamagedArtifactError(f"{place}: its manifest was altered: its seal is not that of its fields")
    return manifest


def seal_of(manifest: Manifest) -> str:
    """SHA-256 of a manifest without its seal: a figure or a setting that was changed behind it is found."""
    return hashlib.sha256(manifest.model_dump_json(exclude={"seal"}).encode()).hexdigest()


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold the kernel's lock of a file, which is made when it is missing: freed when its holder dies, however it dies.

    how: as for flock; raises BlockingIOError with LOCK_NB when another holds it.
    """
    while True:
        with path.open("w") as file:
            fcntl.flock(file, how)
            if not _is_at(file.fileno(), path):  # removed while we waited: others lock a new file of that name
                continue
            yield
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def content_digest(files: list[FileEntry]) -> str:
    """Digest of what later stages read: equal content gives an equal digest, whenever and however it was made."""
    return digest_json([[entry.path, entry.sha256] for entry in files if entry.path.split("/")[0] not in UNREAD])


def check_file(folder: Path, entry: FileEntry, *, trust_time: bool) -> None:
    """Raises DamagedArtifactError unless the file is as published; `trust_time`: an equal size and time will do."""
    path = folder / entry.path
    try:
        status = path.stat()
    except OSError:
        raise DamagedArtifactError(f"{path} is missing") from None
    if status.st_size != entry.size_bytes:
        raise DamagedArtifactError(f"{path} has {status.st_size} bytes, its manifest says {entry.size_bytes}")
    if trust_time and status.st_mtime_ns == entry.modified_ns:
        return
    try:
        altered = digest_file(path) != entry.sha256
    except OSError as error:
        raise DamagedArtifactError(f"{path} cannot be read ({error.strerror})") from None
    if altered:
        raise DamagedArtifactError(f"{path} was altered: its SHA-256 is not the one in the manifest")


def _refuse_strangers(folder: Path, manifest: Manifest) -> None:
    """A file that the manifest does not know would be read by whoever lists the folder."""
    known = {entry.path for entry in manifest.files} | {MANIFEST}
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if strangers := sorted(present - known):
        raise DamagedArtifactError(f"{folder / strangers[0]} is not in the manifest")


def _aside(work: Path) -> Path:
    """Where `resume/` of a work folder waits while the artifact is published."""
    return work.with_name(f"{work.name}.{RESUME}")


def _sync(path: Path, base: Path) -> FileEntry:
    """Flush a file to disk and describe it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    status = path.stat()
    return FileEntry(
        path=path.relative_to(base).as_posix(),
        sha256=digest_file(path),
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
    )


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
