"""Garbage collection: what no recent run refers to goes, and so does what killed runs left.

It removes nothing while a run is going on, and everything in one step: a folder is renamed out of sight before it is
deleted, so that a kill leaves no half artifact.  Of a store in a bucket, only the copies on this machine are collected.
"""

import fcntl
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tasks.errors import AttuneError, DamagedArtifactError
from tasks.layout import MANIFEST, RESUME
from tasks.stages import STAGES
from tasks.store import TRASH, ArtifactStore, Manifest, locked, read_manifest

log = logging.getLogger("attune")

DAY = 86_400
GRACE_SECONDS = DAY
"""How long what was never finished may lie about; `attune check` builds models without being a run."""

KEPT_STAGES = {"collect", *(stage.name for stage in STAGES.values() if stage.remembers)}
"""Of these the last artifact of each pipeline stays: the contract with the sources, and what split remembers."""


class Leftover(NamedTuple):
    """Something that nobody needs any more."""

    what: str
    path: Path
    why: str
    size_bytes: int


def collect_garbage(store: ArtifactStore, runs: Path, keep_days: float, *, dry_run: bool) -> list[Leftover]:
    """Remove from the folder of `store` what is older than `keep_days` and named in no run record that is younger.

    runs: the folder of the run records.  Returns what was removed, or with `dry_run` what would be.  Raises AttuneError
    while a run is going on, or when a run record cannot be read.
    """
    oldest = time.time() - keep_days * DAY
    found = []
    with store.unused():
        for leftover in _leftovers(store.root, _named_since(runs, oldest), oldest):
            found.append(leftover)
            if not dry_run:
                store.trash(leftover.path)
        if not dry_run:
            _remove_locks(store.root / ".work")
    if not dry_run:
        _empty(store.root / TRASH)
    return sorted(found)


def _leftovers(root: Path, named: set[tuple[str, str]], oldest: float) -> Iterator[Leftover]:
    yield from _artifacts(root, named, oldest)
    yield from _quarantined(root, oldest)
    yield from _unfinished(root, oldest)
    for path in root.glob(".scratch/tmp*"):
        if (age := _newest(path)) < time.time() - GRACE_SECONDS:
            yield _leftover("a model that was being built", path, f"since {_day(age)}")


def _artifacts(root: Path, named: set[tuple[str, str]], oldest: float) -> Iterator[Leftover]:
    folders = [path for path in root.glob("[!.]*/*") if path.is_dir()]
    manifests = {folder: _manifest(folder) for folder in folders}
    kept = _last_of_pipelines(manifest for manifest in manifests.values() if manifest)
    for folder, manifest in manifests.items():
        key = (folder.parent.name, folder.name)
        if not (folder / MANIFEST).exists():
            if (age := _newest(folder)) < time.time() - GRACE_SECONDS:
                yield _leftover("a folder without manifest", folder, f"since {_day(age)}")
        elif key not in named | kept and (age := _made(folder, manifest)) < oldest:
            yield _leftover("an artifact", folder, f"of {_day(age)}, in no recent run")


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DamagedArtifactError:
        return None


def _made(folder: Path, manifest: Manifest | None) -> float:
    """When an artifact was made; of one whose manifest cannot be read, the time of its newest file."""
    return datetime.fromisoformat(manifest.created).timestamp() if manifest else _newest(folder)


def _last_of_pipelines(manifests: Iterable[Manifest]) -> set[tuple[str, str]]:
    """Stage and key of the last artifacts of each pipeline, and of what these were made to remember."""
    lasting = sorted((each for each in manifests if each.stage in KEPT_STAGES), key=lambda each: each.created)
    last = {(each.stage, each.pipeline): each for each in lasting}.values()
    remembered = {(each.stage, each.inputs["previous"]) for each in last if "previous" in each.inputs}
    before = [each for each in lasting if (each.stage, each.digest) in remembered]
    return {(each.stage, each.key) for each in (*last, *before)}


def _named_since(runs: Path, oldest: float) -> set[tuple[str, str]]:
    """Stage and key of every artifact that a run record younger than that names."""
    named: set[tuple[str, str]] = set()
    for path in runs.rglob("run.json"):
        try:
            record = json.loads(path.read_bytes())
            if datetime.fromisoformat(record["ended"] or record["started"]).timestamp() >= oldest:
                named |= {(stage["stage"], stage["key"]) for stage in record["stages"]}
        except (ValueError, KeyError, TypeError) as error:
            raise AttuneError(
                f"{path}: is no run record ({error}), so nobody knows what it needs; remove it and try again"
            ) from None
    return named


def _quarantined(root: Path, oldest: float) -> Iterator[Leftover]:
    for path in root.glob(".quarantine/*"):
        moment = path.name.rpartition("-")[2]
        if (since := int(moment) / 1e9 if moment.isdecimal() else _newest(path)) < oldest:
            yield _leftover("in quarantine", path, f"since {_day(since)}")


def _unfinished(root: Path, oldest: float) -> Iterator[Leftover]:
    """What its process left in `.work`; checkpoints to go on from stay as long as artifacts do.

    The lock of a work folder is held until the next step, so that nobody begins to work there meanwhile.
    """
    for path in sorted(each for each in root.glob(".work/*") if each.suffix != ".lock"):
        keeps = path.suffix == f".{RESUME}" or (path / RESUME).exists()
        try:
            with locked(_lock_of(path), fcntl.LOCK_EX | fcntl.LOCK_NB):
                if path.exists() and (age := _newest(path)) < (oldest if keeps else time.time() - GRACE_SECONDS):
                    what = "checkpoints of a killed run" if keeps else "left by a killed run"
                    yield _leftover(what, path, f"since {_day(age)}")
        except BlockingIOError:  # somebody works there
            continue


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix(f'.{RESUME}')}.lock")


def _remove_locks(work: Path) -> None:
    """Files of locks that nobody holds and that have no folder any more; who waits for one takes a new one."""
    held = {_lock_of(path) for path in work.glob("*") if path.suffix != ".lock"}
    for path in set(work.glob("*.lock")) - held:
        with suppress(BlockingIOError), locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            path.unlink()


def _empty(trash: Path) -> None:
    for path in trash.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if left := list(trash.glob("*")):
        log.warning("%s cannot be deleted", left[0])


def _leftover(what: str, path: Path, why: str) -> Leftover:
    return Leftover(what, path, why, sum(file.lstat().st_size for file in _files(path)))


def _files(path: Path) -> Iterator[Path]:
    yield from (each for each in path.rglob("*") if not each.is_dir()) if path.is_dir() else [path]


def _newest(path: Path) -> float:
    return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
