"""RemoteStore: artifacts in an S3 bucket, under the contract of the store on disk.

    <url>/<stage>/<key>/manifest.json           put last, and only where there is none: it makes the artifact exist
    <url>/<stage>/<key>/<content>/<path>        the files, in a folder named after the bytes of all of them
    <url>/.quarantine/<stage>/<key>/<time>/…    copies of what was found damaged

Two writers of one key with different bytes write into two folders, and the first manifest decides.  Nothing but the
manifest of a damaged artifact is ever removed from the bucket.  What a stage reads is fetched into a folder of this
machine, every byte is checked there, and only then does it stand under its name.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.disk import digest_json, sync
from tasks.errors import AttuneError, ConfigError, DamagedArtifactError, is_disk_trouble
from tasks.layout import MANIFEST
from tasks.sources.place import redacted, troubles
from tasks.store import ArtifactRef, ArtifactStore, FileEntry, Manifest, check_file, locked, parse_manifest, reference

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger("attune.store")

OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 12,
        "retries": {"mode": "standard", "total_max_attempts": 2},
    },
    "max_concurrency": 1,  # pieces of a file at a time; each is at most 100 MB and held in memory
    "use_listings_cache": False,
}
"""A server that accepts and never answers is given up after 2 tries of botocore in each of 2 of s3fs: 50 s."""
TRIES = 2
FILES_AT_A_TIME = 4

_MANIFEST_PLACE = re.compile(rf"[\w-]+/[\w-]+/{re.escape(MANIFEST)}", re.ASCII)


class _Found(NamedTuple):
    """What the bucket holds of an artifact."""

    manifest: Manifest | None
    voucher: str  # changes with the manifest; "" when there is none


class RemoteStore(ArtifactStore):
    """The artifacts below a URL; `root` is the folder of this machine for their copies and for work.

    Every method raises AttuneError when the bucket cannot be reached.
    """

    def __init__(self, url: str, copies: Path) -> None:
        super().__init__(copies)
        self.url = url.rstrip("/")
        self._copies = ArtifactStore(copies)

    def fetch(self, ref: ArtifactRef) -> bool:
        """Have an artifact's files in its folder; False when the bucket does not hold them, or holds them damaged."""
        copy = self._copies.find(ref.stage, ref.key)
        return (copy is not None and copy.digest == ref.digest) or self.verify(ref)

    def find(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a complete artifact, or None.

        Checks that every file is in the bucket with its size.  An artifact that fails is moved to quarantine with a
        warning.  One that is whole on this machine and not in the bucket, as a kill before the upload leaves it, is
        published now.
        """
        manifest = self._look(stage, key).manifest
        if manifest is None and (made := self._copies.find(stage, key)) is not None:
            return self._publish(made)
        return manifest

    def verify(self, ref: ArtifactRef) -> bool:
        """True when the copy on this machine is as published in every byte; it is fetched when it is not."""
        here = self.path(ref).exists() and self._copies.verify(ref)
        return here or self._bring(ref)

    def manifests(self, stage: str | None = None) -> Iterator[Manifest]:
        """Every readable manifest in the bucket, of one stage or of all; unreadable ones are passed over."""
        for place, data in self._manifest_bytes(self._manifest_places(stage or "")).items():
            try:
                yield parse_manifest(data, f"{self.url}/{place}")
            except DamagedArtifactError as damage:
                log.warning("passed over: %s", damage)

    def folders(self) -> list[Path]:
        """The folders that the copies of all artifacts in the bucket have, or would have."""
        return [self.root / Path(place).parent for place in self._manifest_places()]

    def commit(self, work: Path, manifest: dict[str, Any]) -> Manifest:
        """Publish `work` as an artifact: on this machine, then in the bucket, where the first manifest stands."""
        with self._placing(manifest["stage"], manifest["key"]):
            made = self._copies.commit(work, manifest)
        return self._publish(made)

    def is_quarantined(self, stage: str, key: str) -> bool:
        """Whether an artifact of that key was found damaged in the bucket before."""
        return bool(self._list(f".quarantine/{stage}", f"{key}/"))

    def _reread(self, ref: ArtifactRef) -> bool:
        with self._fetched(ref) as folder:
            return folder is not None

    # The bucket

    @cached_property
    def _bucket(self) -> "tuple[AbstractFileSystem, str]":
        """What opens the bucket, and the path of the store as it knows it."""
        from fsspec.core import url_to_fs

        try:
            filesystem, root = url_to_fs(self.url, **OPTIONS)
        except ImportError:
            raise ConfigError("store: s3:// needs a package that is missing: run pip install 'attune[s3]'") from None
        filesystem.retries, filesystem.batch_size = TRIES, FILES_AT_A_TIME
        return filesystem, root

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong on the way to the bucket is told in one line; a full disk of ours stays what it is."""
        try:
            yield
        except (ValueError, *troubles()) as error:  # ValueError: an endpoint that is no address
            if isinstance(error, OSError) and is_disk_trouble(error):
                raise
            raise AttuneError(
                f"the store {self.url} cannot be reached: {redacted(str(error))}; check the network, the bucket, and "
                "endpoint and keys in the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            ) from None

    def _list(self, folder: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        """What the bucket says of every object below a folder of the store, by its path there; one listing."""
        filesystem, root = self._bucket
        with self._telling():
            found = filesystem.find(f"{root}/{folder}".rstrip("/"), prefix=prefix, detail=True)
        return {name.removeprefix(f"{root}/"): info for name, info in found.items()}

    def _manifest_places(self, stage: str = "") -> dict[str, str]:
        """The places of all manifests with their vouchers."""
        return {place: _voucher(info) for place, info in self._list(stage).items() if _MANIFEST_PLACE.fullmatch(place)}

    def _manifest_bytes(self, vouchers: Mapping[str, str]) -> dict[str, bytes]:
        """Manifests by their places; one that has vanished meanwhile is missing.

        Copies are kept on this machine, each under the voucher of what it is a copy of and with its own digest.
        """
        kept = {place: self._kept(place, voucher) for place, voucher in vouchers.items()}
        found = {place: data for place, path in kept.items() if (data := _checked(path)) is not None}
        missing = [place for place in vouchers if place not in found]
        fresh = self._get(missing) if missing else {}
        for place, data in fresh.items():
            self._keep(kept[place], data)
        return {place: (found | fresh)[place] for place in vouchers if place in found or place in fresh}

    def _kept(self, place: str, voucher: str) -> Path:
        stage, key, _ = place.split("/")
        return self.root / ".manifests" / stage / f"{key}-{digest_json(voucher)[:16]}"

    def _keep(self, path: Path, data: bytes) -> None:
        for folder in (path.parent, self.root / ".work"):
            folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=self.root / ".work", delete=False) as file:
            file.write(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        os.replace(file.name, path)

    def _get(self, places: list[str]) -> dict[str, bytes]:
        """Small objects, many at a time; those that are gone are missing."""
        filesystem, root = self._bucket
        with self._telling():
            answers = filesystem.cat([f"{root}/{place}" for place in places], on_error="return", batch_size=32)
            for answer in answers.values():
                if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                    raise answer
        return {name.removeprefix(f"{root}/"): data for name, data in answers.items() if isinstance(data, bytes)}

    def _look(self, stage: str, key: str) -> _Found:
        """What the bucket holds of an artifact; a damaged one is set aside."""
        present = self._list(stage, f"{key}/")
        place = f"{stage}/{key}/{MANIFEST}"
        if place not in present:
            return _Found(None, "")
        voucher = _voucher(present[place])
        data = self._manifest_bytes({place: voucher}).get(place)
        if data is None:
            return _Found(None, "")
        try:
            manifest = parse_manifest(data, f"{self.url}/{place}")
            self._check(manifest, stage, key, present)
        except DamagedArtifactError as damage:
            self._set_aside(stage, key, voucher, damage)
            return _Found(None, "")
        return _Found(manifest, voucher)

    def _check(self, manifest: Manifest, stage: str, key: str, present: Mapping[str, Mapping[str, Any]]) -> None:
        if (manifest.stage, manifest.key) != (stage, key):
            raise DamagedArtifactError(f"{self._name(stage, key)}: its manifest is of {manifest.stage} {manifest.key}")
        for place, entry in _places(manifest).items():
            if place not in present:
                raise DamagedArtifactError(f"{self.url}/{place} is missing")
            if (size := present[place]["size"]) != entry.size_bytes:
                raise DamagedArtifactError(f"{self.url}/{place} has {size} bytes, its manifest says {entry.size_bytes}")

    def _set_aside(self, stage: str, key: str, voucher: str, damage: DamagedArtifactError) -> None:
        """Copy a damaged artifact to where a person can look at it, and remove its manifest.

        Its files stay: somebody may be uploading sound ones in their place at this moment.
        """
        place = f"{stage}/{key}"
        present = self._list(stage, f"{key}/")
        if _voucher(present.get(f"{place}/{MANIFEST}", {})) != voucher:  # another process was first
            return
        filesystem, root = self._bucket
        aside = f".quarantine/{place}/{time.time_ns()}"
        copies = [name.replace(place, aside, 1) for name in present]
        with self._telling():
            filesystem.copy([f"{root}/{name}" for name in present], [f"{root}/{name}" for name in copies])
            filesystem.rm_file(f"{root}/{place}/{MANIFEST}")
        log.warning("%s; it was moved to %s and will be replaced", damage, f"{self.url}/{aside}")

    def _publish(self, made: Manifest) -> Manifest:
        """Bring the artifact on this machine into the bucket; returns the manifest that stands there.

        If another machine published the same key first, its artifact stands, and a copy of other content is dropped.
        """
        if (standing := self._look(made.stage, made.key).manifest) is None:
            self._upload(made)
            standing = self._look(made.stage, made.key).manifest
        if standing is None:
            raise AttuneError(f"{self._name(made.stage, made.key)}: was published and is gone again; run again")
        if standing.digest != made.digest:
            self._drop(made)
        return standing

    def _drop(self, lost: Manifest) -> None:
        """Remove the copy of an artifact that another one has forestalled."""
        with self._placing(lost.stage, lost.key):
            copy = self._copies.find(lost.stage, lost.key)
            if copy is not None and copy.digest == lost.digest:
                shutil.rmtree(self.trash(self.path(reference(lost))))

    def _upload(self, made: Manifest) -> None:
        """Put the files, then the manifest."""
        filesystem, root = self._bucket
        folder = self.path(reference(made))
        places = _places(made)
        log.info("%s: uploading %s", made.stage, made.key)
        with self._telling():
            filesystem.put(
                [str(folder / entry.path) for entry in places.values()], [f"{root}/{place}" for place in places]
            )
            self._create(f"{made.stage}/{made.key}/{MANIFEST}", (folder / MANIFEST).read_bytes())

    def _create(self, place: str, data: bytes) -> None:
        """Put an object where there is none.

        When that fails and the object is there, another process was first, or the answer to our own try was lost.
        """
        filesystem, root = self._bucket
        for last in (False, False, True):
            try:
                filesystem.pipe_file(f"{root}/{place}", data, mode="create")
            except troubles() as error:
                if filesystem.exists(f"{root}/{place}"):
                    return
                if last or getattr(error, "errno", None) != errno.EBUSY:  # two at the same moment: neither may count
                    raise
                time.sleep(1)
            else:
                return

    # Copies on this machine

    def _placing(self, stage: str, key: str) -> AbstractContextManager[None]:
        """Held while the copy of an artifact is put into its place."""
        (self.root / ".work").mkdir(parents=True, exist_ok=True)
        return locked(self.root / ".work" / f"fetch-{stage}-{key}.lock", fcntl.LOCK_EX)

    def _bring(self, ref: ArtifactRef) -> bool:
        """Fetch an artifact; True when its copy stands."""
        folder = self.path(ref)
        with self._fetched(ref) as fresh:
            if fresh is None:
                return False
            if folder.exists():  # another process brought it meanwhile
                return self._copies.verify(ref)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(fresh, folder)
            sync(folder.parent)
        return True

    @contextmanager
    def _fetched(self, ref: ArtifactRef) -> Iterator[Path | None]:
        """A folder with what the bucket holds, every byte checked, which is removed when it was not moved.

        None when the bucket does not hold that content, or holds it damaged: then it is set aside.
        """
        found = self._look(ref.stage, ref.key)
        if found.manifest is None or found.manifest.digest != ref.digest:
            yield None
            return
        with self.work_folder(f"fetch-{ref.stage}", ref.key) as work:
            try:
                self._fetch(found.manifest, work)
            except DamagedArtifactError as damage:
                told = str(damage).replace(str(work), self._name(ref.stage, ref.key))
                self._set_aside(ref.stage, ref.key, found.voucher, DamagedArtifactError(told))
                yield None
            else:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _fetch(self, manifest: Manifest, folder: Path) -> None:
        filesystem, root = self._bucket
        places = _places(manifest)
        log.info("%s: fetching %s", manifest.stage, manifest.key)
        for path in {folder / entry.path for entry in manifest.files}:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._telling():
            try:
                filesystem.get(
                    [f"{root}/{place}" for place in places], [str(folder / entry.path) for entry in places.values()]
                )
            except FileNotFoundError as error:
                raise DamagedArtifactError(f"{self._name(manifest.stage, manifest.key)}: {error}") from None
        for entry in manifest.files:
            check_file(folder, entry, trust_time=False)
            os.utime(folder / entry.path, ns=(entry.modified_ns, entry.modified_ns))
            sync(folder / entry.path)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        for path in [folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
            sync(path)

    def _name(self, stage: str, key: str) -> str:
        return f"{self.url}/{stage}/{key}"


def _places(manifest: Manifest) -> dict[str, FileEntry]:
    """The files of an artifact by their paths in the store."""
    content = digest_json([[entry.path, entry.sha256] for entry in manifest.files])[:32]
    return {f"{manifest.stage}/{manifest.key}/{content}/{entry.path}": entry for entry in manifest.files}


def _voucher(info: Mapping[str, Any]) -> str:
    """What a bucket says of an object that changes with it; "" for none."""
    return f"{info['ETag']} {info['size']}" if info else ""


def _checked(kept: Path) -> bytes | None:
    """What was kept in a file, when it is what was written into it."""
    try:
        digest, _, data = kept.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    return data if hashlib.sha256(data).hexdigest().encode() == digest else None
