"""The artifact store among other processes, killed processes and full disks."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from store_process import CONTENT, KEYS, described, publish

from tasks.store import ArtifactStore, Manifest, locked, reference

PROCESS = Path(__file__).with_name("store_process.py")


@contextmanager
def process(verb: str, root: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(PROCESS), verb, str(root), *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def race(verb: str, root: Path, racers: int) -> list[list[str]]:
    """What each of several processes said that did the same at the same time."""
    with ExitStack() as stack:
        running = [stack.enter_context(process(verb, root)) for _ in range(racers)]
        assert [racer.stdout.readline() for racer in running] == ["ready\n"] * racers
        for racer in running:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        said = [racer.communicate() for racer in running]
    assert [racer.returncode for racer in running] == [0] * racers, said
    return [out.splitlines() for out, _ in said]


def test_processes_that_commit_the_same_key_agree_on_one_artifact(tmp_path):
    answers = race("race", tmp_path, racers=6)
    store = ArtifactStore(tmp_path)
    manifests = list(store.manifests())
    assert [manifest.key for manifest in manifests] == KEYS
    assert answers == [[manifest.digest for manifest in manifests]] * 6
    assert all(store.verify(reference(manifest)) for manifest in manifests)
    assert not (tmp_path / ".quarantine").exists()


def test_a_work_folder_that_its_holder_publishes_just_now_is_no_failure(tmp_path, monkeypatch):
    """While the lock is free, the folder may vanish at any moment, also between two calls of the file system."""
    store = ArtifactStore(tmp_path)
    with store.work_folder("clean", "key") as work:
        (work / "resume").mkdir()
    mkdir = os.mkdir

    def vanishing(path: Path, *mode: int) -> None:
        try:
            mkdir(path, *mode)
        except FileExistsError:
            if Path(path) == work and lock_is_free(tmp_path / ".work" / "clean-key.lock"):
                shutil.rmtree(work)
            raise

    monkeypatch.setattr(os, "mkdir", vanishing)
    assert publish(store, "key") == store.find("clean", "key")


def lock_is_free(path: Path) -> bool:
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_lock_whose_file_was_removed_while_one_waited_is_taken_anew(tmp_path, monkeypatch):
    """Otherwise two would hold a lock of one name: who waited for the old file, and who made a new one."""
    flock, path = fcntl.flock, tmp_path / "lock"
    removals = [path.unlink]

    def late(file: int, how: int) -> None:
        flock(file, how)
        if removals:
            removals.pop()()

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(path, fcntl.LOCK_EX):
        assert not lock_is_free(path)
    assert lock_is_free(path)


def test_processes_that_find_the_same_damage_quarantine_it_once(tmp_path):
    store = ArtifactStore(tmp_path)
    for key in KEYS:
        publish(store, key)
        (tmp_path / "clean" / key / "manifest.json").write_text("{")
    assert race("find", tmp_path, racers=4) == [["None"] * len(KEYS)] * 4
    assert len(list((tmp_path / ".quarantine").iterdir())) == len(KEYS)


@pytest.mark.timeout(60)
def test_a_killed_holder_of_a_work_folder_blocks_nobody(tmp_path):
    with process("hold", tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    manifest = publish(ArtifactStore(tmp_path), "key")
    assert [entry.path for entry in manifest.files] == sorted(CONTENT)


def test_a_process_killed_at_any_moment_leaves_all_or_nothing(tmp_path):
    undisturbed = publish(ArtifactStore(tmp_path / "undisturbed"), "key")
    with process("sweep", tmp_path / "killed") as sweep:
        assert sweep.communicate() == ("", "")
        assert sweep.returncode == 0
    outcomes = [_after_the_kill(root, undisturbed) for root in (tmp_path / "killed").iterdir()]
    assert outcomes.count("nothing") > 40
    assert outcomes.count("all") > 4


def _after_the_kill(root: Path, undisturbed: Manifest) -> str:
    """What a killed process left; also checks that the same commit works now and ends in the same artifact."""
    store = ArtifactStore(root)
    outcome = "all" if store.folders() else "nothing"
    if outcome == "nothing":
        assert store.find("clean", "key") is None
        with store.work_folder("clean", "key") as work:
            left = {path.relative_to(work).as_posix(): path for path in work.rglob("*") if path.is_file()}
            assert list(left) == ["resume/step-1/weights"]
            assert left["resume/step-1/weights"].read_bytes() == b"an hour of work"
        publish(store, "key")
    manifest = store.find("clean", "key")
    assert manifest is not None
    assert manifest.digest == undisturbed.digest
    assert [(file.path, file.sha256) for file in manifest.files] == [
        (file.path, file.sha256) for file in undisturbed.files
    ]
    assert store.verify(reference(manifest))
    assert not (root / ".quarantine").exists()
    return outcome


@pytest.mark.parametrize(
    ("limit_bytes", "file"), [(120, "a file of the stage"), (400, "the manifest")], ids=["data", "manifest"]
)
def test_a_full_disk_publishes_nothing_and_the_next_try_works(tmp_path, limit_bytes, file):
    assert (max(map(len, CONTENT.values())) > limit_bytes) == (file == "a file of the stage")
    with process("starve", tmp_path, limit_bytes) as starved:
        _, said = starved.communicate()
    assert starved.returncode == 1
    assert "File too large" in said
    store = ArtifactStore(tmp_path)
    assert store.folders() == []
    assert store.find("clean", "key") is None
    manifest = publish(store, "key")
    assert store.verify(reference(manifest))
    assert manifest.rows_in == described("key")["rows_in"]
