"""Artifacts that were damaged after they were published: found before use, put aside, made again (F13 to F20)."""

import json
import os
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_training import formatted
from small_training import run as train

from faults.kills import visible
from faults.matrix import Outcome, fault, sample, tries
from faults.pipeline import in_store, run, settings
from tasks.checkpoints import SEAL
from tasks.config import PipelineConfig
from tasks.disk import digest_file
from tasks.errors import TrainingError
from tasks.layout import MANIFEST
from tasks.stages import STAGES
from tasks.store import ArtifactRef, ArtifactStore

READER = {"collect": "clean", "clean": "split", "split": "format", "format": "evaluate"}
READER |= {"fine_tune": "export", "evaluate": "export", "export": ""}
"""For each stage, one that reads its artifact and is soon made again."""


@dataclass
class House:
    """A store in which everything was made, and what it held then."""

    config: PipelineConfig
    store: ArtifactStore
    refs: dict[str, ArtifactRef]

    @classmethod
    def build(cls, folder: Path, **sections: Any) -> "House":
        config = in_store(settings(folder) | sections, folder / "artifacts")
        return cls(config, ArtifactStore(config.store), run(config))

    def folder(self, stage: str) -> Path:
        return self.store.path(self.refs[stage])

    def files(self, stage: str) -> list[Path]:
        """All files of an artifact but its manifest."""
        return sorted(path for path in self.folder(stage).rglob("*") if path.is_file() and path.name != MANIFEST)

    def heals(self, stage: str) -> None:
        """The damaged artifact of a stage is not used: it is put aside and made again, and all is as it was."""
        if READER[stage]:
            shutil.rmtree(self.folder(READER[stage]))  # so that somebody reads the artifact
        else:
            self.store.verify(self.refs[stage])
        said = []
        refs = run(self.config, lambda *words: said.append(words))
        assert ("made", stage) in said, "the damage was not noticed"
        assert refs == self.refs, "other digests than before"
        quarantine = list((self.store.root / ".quarantine").iterdir())
        assert [path.name.partition("-")[0] for path in quarantine] == [stage], "it is not in quarantine"
        shutil.rmtree(self.store.root / ".quarantine")
        assert set(visible(self.store)) == set(STAGES)

    def back(self) -> None:
        """Make everything anew, so that one failed try does not spoil the next."""
        shutil.rmtree(self.store.root, ignore_errors=True)
        run(self.config)


def keeping_time(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file behind its modification time."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def at_random(house: House, count: int, damage: Callable[[Path, random.Random], object]) -> Outcome:
    """Damage a random file of each stage in turn, every other time behind its modification time."""
    outcome, chance, hit, bytes_ = Outcome(), random.Random(2), Counter(), []  # noqa: S311
    for number in range(count):
        stage = list(STAGES)[number % len(STAGES)]
        path = chance.choice([path for path in house.files(stage) if path.stat().st_size])
        bytes_.append(path.stat().st_size)
        survived = outcome.survived
        with outcome.attempt(path.relative_to(house.store.root)):
            if number // len(STAGES) % 2:
                keeping_time(path, lambda path: damage(path, chance))
            else:
                damage(path, chance)
            hit[stage] += 1
            house.heals(stage)
        if outcome.survived == survived:
            house.back()
    outcome.figures = {"hit": dict(hit), "file_bytes": {"least": min(bytes_), "most": max(bytes_)}}
    return outcome


@fault("F13", "one bit of an artifact's file flipped")
def flipped(folder: Path) -> Outcome:
    """Any bit of any file of any stage."""

    def damage(path: Path, chance: random.Random) -> None:
        flip(path, chance.randrange(path.stat().st_size * 8))

    return at_random(House.build(folder), tries(500, least=len(STAGES)), damage)


@fault("F14", "an artifact's file cut short")
def truncated(folder: Path) -> Outcome:
    """At any length."""

    def damage(path: Path, chance: random.Random) -> None:
        os.truncate(path, chance.randrange(path.stat().st_size))

    return at_random(House.build(folder), tries(100, least=len(STAGES)), damage)


@fault("F15", "an artifact's file missing behind its manifest")
def missing_file(folder: Path) -> Outcome:
    """Every file of every stage, one at a time; and all of them."""
    house, outcome = House.build(folder), Outcome()
    every = [(stage, [path]) for stage in STAGES for path in house.files(stage)]
    every += [(stage, house.files(stage)) for stage in STAGES]
    for stage, paths in sample(every):
        with outcome.attempt(paths[0].relative_to(house.store.root)):
            for path in paths:
                path.unlink()
            house.heals(stage)
    return outcome


@fault("F16", "an artifact's manifest missing")
def missing_manifest(folder: Path) -> Outcome:
    """A folder without a manifest is none of the store's artifacts."""
    house, outcome = House.build(folder), Outcome()
    for stage in sample(list(STAGES)):
        with outcome.attempt(stage):
            (house.folder(stage) / MANIFEST).unlink()
            assert house.folder(stage) not in house.store.folders()
            assert all(manifest.stage != stage for manifest in house.store.manifests())
            house.heals(stage)
    return outcome


@fault("F17", "an artifact's manifest torn, empty or no JSON")
def torn_manifest(folder: Path) -> Outcome:
    """Cut at 100 lengths, and replaced by what is no manifest."""
    house, outcome = House.build(folder), Outcome()
    texts = [b"", b"{", b"null", b"[]", b"{}", b'"a"', b"\xff\xfe", b"[" * 100_000, b"1" * 5_000, b"\0" * 4_096]
    for number, cut in enumerate(sample([*texts, *range(100)])):
        stage = list(STAGES)[number % len(STAGES)]
        manifest = house.folder(stage) / MANIFEST
        with outcome.attempt(f"{stage}: {cut!r:.20}"):
            if isinstance(cut, bytes):
                manifest.write_bytes(cut)
            else:
                os.truncate(manifest, manifest.stat().st_size * cut // 100)
            house.heals(stage)
    return outcome


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "digest": lambda manifest: manifest.update(digest="0" * 64),
    "SHA-256 of a file": lambda manifest: manifest["files"][0].update(sha256="0" * 64),
    "a file less": lambda manifest: manifest["files"].pop(),
    "stage": lambda manifest: manifest.update(stage="other"),
    "key": lambda manifest: manifest.update(key="0" * 32),
    "settings": lambda manifest: manifest["settings"].update(seed=7),
    "inputs": lambda manifest: manifest["inputs"].update(other="0" * 64),
    "code": lambda manifest: manifest["code"].update({"tasks.other": "0" * 16}),
    "versions": lambda manifest: manifest["versions"].update(other="1.0"),
    "rows": lambda manifest: manifest.update(rows_in=1_000, rows_kept=1_000, rejected={}),
    "figures": lambda manifest: manifest["figures"].update(invented=1.0),
    "created": lambda manifest: manifest.update(created="2999-01-01T00:00:00.000000Z"),
    "pipeline": lambda manifest: manifest.update(pipeline="other"),
}


@fault("F18.manifest", "a manifest edited so that it is still one")
def edited_manifest(folder: Path) -> Outcome:
    """Every field is what was published, or the artifact does not count."""
    house, outcome = House.build(folder), Outcome()
    for number, (name, edit) in enumerate(sample(list(EDITS.items()))):
        stage = list(STAGES)[number % len(STAGES)]
        path, survived = house.folder(stage) / MANIFEST, outcome.survived
        with outcome.attempt(f"{stage}: {name}"):
            manifest = json.loads(path.read_bytes())
            edit(manifest)
            path.write_text(json.dumps(manifest))
            house.heals(stage)
        if outcome.survived == survived:
            house.back()
    return outcome


@fault("F18.swap", "the files of two artifacts swapped")
def swapped(folder: Path) -> Outcome:
    """Two artifacts of one stage change their files, their manifests or their whole folders; both are made again."""
    house, outcome = House.build(folder), Outcome()
    other = House.build(folder, split={"seed": 1, "validation": 0.2, "test": 0.1}, name="other")
    for stage in sample(["split", "format", "fine_tune", "evaluate", "export"]):
        for what in ("files", MANIFEST, ""):
            with outcome.attempt(f"{stage}: {what or 'folders'}"):
                mine, others = house.folder(stage), other.folder(stage)
                names = [str(path.relative_to(mine)) for path in house.files(stage)] if what == "files" else [what]
                for name in (name for name in names if (others / name).exists()):
                    _swap(mine / name, others / name)
                _both_heal(house, other, stage)
    return outcome


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    for source, target in ((one, aside), (other, one), (aside, other)):
        os.rename(source, target)


def _both_heal(house: House, other: House, stage: str) -> None:
    for each in (house, other):
        if READER[stage]:
            shutil.rmtree(each.folder(READER[stage]))
        else:
            each.store.verify(each.refs[stage])
    for each in (house, other):
        said = []
        assert run(each.config, lambda *words, said=said: said.append(words)) == each.refs, "other digests than before"
        assert ("made", stage) in said, "the damage was not noticed"
    shutil.rmtree(house.store.root / ".quarantine")


class _Payload:
    """Opened as a pickle, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@fault("F19.artifact", "a pickle planted in the store")
def pickle_in_store(folder: Path) -> Outcome:
    """In place of a file, of a manifest, and beside the files, in every artifact; nothing ever opens it."""
    house, outcome, marker = House.build(folder), Outcome(), folder / "marker"
    payload = pickle.dumps(_Payload(marker))
    plants = [(stage, name) for stage in STAGES for name in ("", MANIFEST, "data.pkl")]
    for stage, name in sample(plants):
        with outcome.attempt(f"{stage}: {name or 'a file'}"):
            path = house.folder(stage) / name if name else house.files(stage)[0]
            path.write_bytes(payload)
            house.heals(stage)
            assert not marker.exists(), "it was opened"
    with outcome.attempt("the payload itself"):
        pickle.loads(payload)  # noqa: S301 (it is ours)
        assert marker.exists()
    return outcome


@fault("F19.checkpoint", "a pickle planted in a checkpoint, and its seal renewed")
def pickle_in_checkpoint(folder: Path) -> Outcome:
    """Who can write into the store can seal as well; what torch loads must run nothing."""
    outcome, marker = Outcome(), folder / "marker"
    base = Path(settings(folder)["model"]["base"])
    made = formatted(folder / "format", base)
    once = {"epochs": 2.0, "evals_per_epoch": 1, "per_device_batch_size": 4}
    for name in sample(["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"]):
        with outcome.attempt(name):
            out = folder / name
            train(made, base, out, **once)
            _plant(out, name, pickle.dumps(_Payload(marker)))
            try:
                train(made, base, out, **once)
                outcome.figures[name] = "trained"
            except (pickle.UnpicklingError, TrainingError) as error:
                outcome.figures[name] = f"refused: {str(error).splitlines()[0]:.80}"
            assert not marker.exists(), "it was opened"
    return outcome


def _plant(out: Path, name: str, payload: bytes) -> None:
    """As if the training had been killed after its first checkpoint, and somebody had changed that one."""
    first, last = sorted((out / "resume" / "tuned").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    for path in (last, out / "tuned", out / "history"):
        shutil.rmtree(path)
    (first / name).write_bytes(payload)
    seal = json.loads((first / SEAL).read_text())
    seal["files"][name] = [len(payload), digest_file(first / name)]
    (first / SEAL).write_text(json.dumps(seal))


@fault("F20", "a read-only file altered in place behind its modification time")
def altered_in_place(folder: Path) -> Outcome:
    """The DVC hole: chmod 0444 protects nothing, and size and time say nothing."""
    house, outcome = House.build(folder), Outcome()
    for stage in sample(list(STAGES)):
        for path in sample(house.files(stage)):
            with outcome.attempt(path.relative_to(house.store.root)):
                path.chmod(0o444)
                keeping_time(path, _alter)
                house.heals(stage)
    return outcome


def _alter(path: Path) -> None:
    path.chmod(0o644)
    flip(path, path.stat().st_size * 4)
    path.chmod(0o444)
