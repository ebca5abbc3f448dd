"""Checkpoints that can be trusted: complete on disk before they have their name, and verified before they are loaded.

A checkpoint is a folder `checkpoint-<step>` with a seal: the SHA-256 and size of each of its files, and the digest of
the settings it was trained with.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tasks.disk import digest_file, sync
from tasks.errors import TrainingError

log = logging.getLogger("attune.fine_tune")

SEAL = "seal.json"
KEPT = 2
"""The newest ones that are kept beside the best one: should the last be damaged, the one before is there."""

_SAVING = ".saving"
_DISK_TROUBLE = ("inline_container", "PytorchStreamWriter", "I/O error", "os error")
"""What torch and safetensors write when a file takes no more bytes."""


@contextmanager
def writing(folder: Path, step: int, settings: str, *, main: bool = True) -> Iterator[Path]:
    """A parent folder to write `checkpoint-<step>` in; it moves to `folder` once all of it is on disk.

    `settings` is a digest of what it is trained with.  Of several processes only the `main` one moves it.
    """
    fresh, target = folder / _SAVING, folder / f"checkpoint-{step}"
    if main:
        shutil.rmtree(fresh, ignore_errors=True)
    yield fresh
    if not main:
        return
    _seal(fresh / target.name, settings)
    stale = folder / f".stale-{step}"
    if target.exists():
        os.rename(target, stale)
    os.rename(fresh / target.name, target)
    sync(folder)
    shutil.rmtree(stale, ignore_errors=True)
    fresh.rmdir()


@contextmanager
def disk_trouble_told(what: str) -> Iterator[None]:
    """A full or broken disk ends what is written inside with TrainingError: torch and safetensors raise their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not any(mark in str(error) for mark in _DISK_TROUBLE):
            raise
        told = str(error).partition("\n")[0]
        raise TrainingError(f"fine_tune: {what} could not be written; is the disk full? ({told})") from None


def newest(folder: Path, settings: str) -> Path | None:
    """The newest checkpoint that is whole and was trained with these settings; damaged ones are removed, and told."""
    for checkpoint in reversed(_all(folder)):
        if not (fault := _fault(checkpoint, settings)):
            return checkpoint
        log.warning("%s: %s; training goes on from the one before", checkpoint, fault)
        shutil.rmtree(checkpoint)
    return None


def is_whole(checkpoint: Path, settings: str) -> bool:
    """Whether its files are what was written."""
    return not _fault(checkpoint, settings)


def remove_old(folder: Path, best_step: int | None) -> None:
    """Keep the newest ones and the best one."""
    for checkpoint in _all(folder)[:-KEPT]:
        if checkpoint.name != f"checkpoint-{best_step}":
            shutil.rmtree(checkpoint)


def state(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state in it: global_step, best_global_step, best_metric, log_history, stateful_callbacks …"""
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def _all(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _seal(checkpoint: Path, settings: str) -> None:
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        files[str(path.relative_to(checkpoint))] = [path.stat().st_size, digest_file(path)]
        sync(path)
    seal = checkpoint / SEAL
    seal.write_text(json.dumps({"settings": settings, "files": files}, indent=1), encoding="utf-8")
    for path in (seal, *(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint):
        sync(path)


def _fault(checkpoint: Path, settings: str) -> str:
    """What is wrong with it, or "" """
    try:
        seal = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        for name, (size, digest) in seal["files"].items():
            path = checkpoint / name
            if path.stat().st_size != size or digest_file(path) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"it is torn ({error})"
    return "" if seal.get("settings") == settings else "it was trained with other settings"
