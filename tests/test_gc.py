"""Garbage collection: what goes, what stays, and that nobody loses what they read."""

import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.garbage import collect_while_runs_go_on, process
from store_process import described, edited
from typer.testing import CliRunner

from flows.cli import app
from tasks.errors import AttuneError
from tasks.gc import DAY, collect_garbage
from tasks.run_record import RunFolder, stage_record
from tasks.store import ArtifactStore, Manifest, reference

OLD, YOUNG = 20, 1  # days; 14 are kept


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def made(store: ArtifactStore, stage: str, key: str, days: float, **changes: Any) -> Manifest:
    """An artifact that was made so many days ago."""
    with store.work_folder(stage, key) as work:
        (work / "examples").mkdir()
        (work / "examples" / "part-00000.parquet").write_bytes(f"{stage} {key}".encode())
        manifest = store.commit(work, described(key, **({"stage": stage} | changes)))
    edited(store.path(reference(manifest)), created=moment(days))
    aged(store.path(reference(manifest)), days)
    return manifest


def moment(days: float) -> str:
    return datetime.fromtimestamp(time.time() - days * DAY, UTC).isoformat().replace("+00:00", "Z")


def aged(path: Path, days: float) -> Path:
    """Everything there, as if it had lain untouched for so many days."""
    then = time.time() - days * DAY
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then), follow_symlinks=False)
    return path


def run_of(runs: Path, manifests: list[Manifest], days: float, *, ended: bool = True) -> Path:
    """The record of a run so many days ago that used these artifacts."""
    folder = RunFolder(runs, "nightly", {})
    for manifest in manifests:
        folder.add(stage_record(manifest, cached=True, why="cached"), Path("nowhere"))
    folder.record.started, folder.record.ended = moment(days), moment(days) if ended else ""
    folder._save()
    return folder.path / "run.json"


def collected(store: ArtifactStore, runs: Path, *, dry_run: bool = False, keep_days: float = 14) -> set[str]:
    found = collect_garbage(store, runs, keep_days, dry_run=dry_run)
    return {str(leftover.path.relative_to(store.root)) for leftover in found}


def left_in(root: Path) -> set[str]:
    """Folders of artifacts and of what lies beside them."""
    found = {path for path in root.glob("*/*") if path.suffix != ".lock"}
    return {str(path.relative_to(root)) for path in found}


def test_an_artifact_goes_when_it_is_old_and_in_no_recent_run(store, runs):
    used, forgotten, unused = (made(store, "clean", name, OLD) for name in ("used", "forgotten", "unused"))
    fresh = made(store, "clean", "fresh", YOUNG)
    run_of(runs, [used], YOUNG)
    run_of(runs, [used, forgotten], OLD)
    assert collected(store, runs, dry_run=True) == {"clean/forgotten", "clean/unused"}
    assert left_in(store.root) == {"clean/used", "clean/forgotten", "clean/unused", "clean/fresh"}
    assert collected(store, runs) == {"clean/forgotten", "clean/unused"}
    assert left_in(store.root) == {"clean/used", "clean/fresh"}
    assert all(store.verify(reference(manifest)) for manifest in (used, fresh))
    assert store.find("clean", unused.key) is None and not store.is_quarantined("clean", unused.key)
    assert collected(store, runs) == set()


def test_what_a_killed_run_used_counts_from_when_it_began(store, runs):
    used = made(store, "clean", "used", OLD)
    run_of(runs, [used], YOUNG, ended=False)
    run_of(runs / "fine-tune", [made(store, "clean", "worker", OLD)], YOUNG, ended=False)
    assert collected(store, runs) == set()


def test_the_last_split_of_each_pipeline_stays_and_what_it_remembers(store, runs):
    before = made(store, "split", "before", OLD + 2, pipeline="nightly")
    made(store, "split", "lost", OLD + 3, pipeline="nightly")
    made(store, "split", "last", OLD, pipeline="nightly", inputs={"previous": before.digest})
    made(store, "split", "other", OLD + 9, pipeline="other")
    made(store, "collect", "sources", OLD, pipeline="nightly")
    made(store, "collect", "sources-before", OLD + 1, pipeline="nightly")
    assert collected(store, runs) == {"split/lost", "collect/sources-before"}


def test_what_cannot_be_an_artifact_goes_after_a_day(store, runs):
    for days in (0.5, 2):
        folder = store.root / "clean" / f"headless-{days}"
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
        aged(folder, days)
    torn = made(store, "clean", "torn", OLD)
    (store.path(reference(torn)) / "manifest.json").write_text("{")
    made(store, "clean", "newer", OLD)
    unreadable = store.root / "clean" / "newer"
    (unreadable / "manifest.json").write_text('{"of": "a later version"}')
    aged(unreadable, 2)
    assert collected(store, runs) == {"clean/headless-2"}
    aged(unreadable, OLD)
    assert collected(store, runs) == {"clean/newer"}


def test_old_quarantine_goes(store, runs):
    for days in (OLD, YOUNG):
        aside = store.root / ".quarantine" / f"clean-key-{time.time_ns() - int(days * DAY * 1e9)}"
        aside.mkdir(parents=True)
        (aside / "manifest.json").write_text("{")
    assert len(collected(store, runs)) == 1
    assert len(list((store.root / ".quarantine").iterdir())) == 1


def test_work_of_dead_runs_goes_but_checkpoints_last_as_long_as_artifacts(store, runs):
    def left(key: str, days: float, *names: str) -> None:
        with store.work_folder("fine_tune", key) as work:
            for name in names:
                (work / name).parent.mkdir(exist_ok=True)
                (work / name).write_bytes(b"1")
        aged(work, days)

    left("half", 2, "half.parquet")
    left("just-now", 0.5, "half.parquet")
    left("training", 2, "resume/step-1", "half.parquet")
    left("given-up", OLD, "resume/step-1")
    left("set-aside", 2, "resume/step-1")
    work = store.root / ".work"
    os.rename(work / "fine_tune-set-aside" / "resume", work / "fine_tune-set-aside.resume")
    aged(work / "fine_tune-set-aside", 2)
    assert collected(store, runs) == {".work/fine_tune-half", ".work/fine_tune-given-up", ".work/fine_tune-set-aside"}
    assert sorted(path.name for path in work.iterdir()) == [
        *("fine_tune-just-now", "fine_tune-just-now.lock"),
        *("fine_tune-set-aside.lock", "fine_tune-set-aside.resume"),
        *("fine_tune-training", "fine_tune-training.lock"),
    ]
    with store.work_folder("fine_tune", "set-aside") as again:
        assert (again / "resume" / "step-1").exists()


def test_a_work_folder_that_is_held_stays(store, runs):
    with store.work_folder("clean", "key") as work:
        (work / "half").write_bytes(b"x")
        aged(work, OLD)
        assert collected(store, runs) == set()
        assert (work / "half").exists()


def test_half_built_models_go_and_built_ones_stay(store, runs):
    for name in ("tmpabc", "0123456789abcdef"):
        (store.root / ".scratch" / name).mkdir(parents=True)
        aged(store.root / ".scratch" / name, 2)
    assert collected(store, runs) == {".scratch/tmpabc"}


def test_what_a_killed_collection_left_is_deleted_by_the_next(store, runs):
    old = made(store, "clean", "old", OLD)
    store.trash(store.path(reference(old)))
    assert store.folders() == []
    assert collected(store, runs) == set()
    assert list((store.root / ".trash").iterdir()) == []


def test_an_unreadable_record_stops_everything(store, runs):
    made(store, "clean", "old", OLD)
    run_of(runs, [], YOUNG).write_text('{"started": ')
    with pytest.raises(AttuneError, match=r"run\.json: is no run record"):
        collected(store, runs)
    assert left_in(store.root) == {"clean/old"}


def test_nothing_goes_while_a_run_is_on(store, runs):
    made(store, "clean", "old", OLD)
    with store.in_use(), store.in_use(), pytest.raises(AttuneError, match="a run is going on"):
        collected(store, runs)
    assert collected(store, runs) == {"clean/old"}


def test_a_killed_run_holds_nothing(store, runs):
    made(store, "clean", "old", OLD)
    with process("hold", store.root) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AttuneError, match="a run is going on"):
            collected(store, runs)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert collected(store, runs) == {"clean/old"}


@pytest.mark.slow
def test_collecting_all_the_time_takes_nothing_from_runs(store, runs):
    """Runs use old artifacts and make new ones, which are old at once; another process collects without pause."""
    went, refused = collect_while_runs_go_on(store.root, runs, 50)
    assert went >= 50 and refused > 0


def test_the_command_says_what_goes_and_how_many_bytes(store, runs, tmp_path):
    old = made(store, "clean", "old", OLD)
    made(store, "clean", "fresh", YOUNG)
    size = sum(path.stat().st_size for path in store.path(reference(old)).rglob("*") if path.is_file())
    config = tmp_path / "config.yaml"
    raw = {"collect": {"sources": [{"path": "x"}]}, "store": str(store.root), "runs": str(runs)}
    config.write_text(yaml.safe_dump(raw))
    dry = CliRunner().invoke(app, ["gc", str(config), "--dry-run"])
    assert dry.exit_code == 0 and f"1 would be removed, {size:,} bytes" in dry.stdout
    assert store.find("clean", "old") is not None
    wet = CliRunner().invoke(app, ["gc", str(config)])
    assert wet.exit_code == 0 and f"1 removed, {size:,} bytes" in wet.stdout
    assert store.folders() == [store.root / "clean" / "fresh"]
    every = CliRunner().invoke(app, ["gc", str(config), "--keep-days", "0"])
    assert every.exit_code == 0 and "1 removed" in every.stdout
    assert store.folders() == []
