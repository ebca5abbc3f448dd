"""Disks that are full: below a limit, on a small file system of its own, those of logs and of Prefect (F10, F11)."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import store_process
from store_process import publish

from faults.kills import attune_run, environment, golden, latest, visible, written
from faults.matrix import ROOT, NotRun, Outcome, fault, sample, tries
from faults.pipeline import in_store, settings
from tasks.store import ArtifactStore

LIMITS = [*range(0, 200, 20), *range(200, 1_000, 80)]
"""Bytes that a file may have: from nothing, through each of the artifact's files, to the middle of the manifest."""


@fault("F10.limit", "files may not grow beyond a limit (RLIMIT_FSIZE)")
def limited(folder: Path) -> Outcome:
    """The failure is told, nothing partial is seen, and the next try works."""
    outcome, ended = Outcome(), Counter()
    for limit in sample(LIMITS):
        with outcome.attempt(f"{limit} bytes"):
            root = folder / str(limit)
            command = [sys.executable, store_process.__file__, "starve", str(root), str(limit)]
            starved = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert starved.returncode == 1 and "File too large" in starved.stderr, starved.stderr[-500:]
            assert ArtifactStore(root).folders() == []
            publish(ArtifactStore(root), "key")
            ended["told"] += 1
            assert len(visible(ArtifactStore(root))) == 1
    outcome.figures = dict(ended)
    return outcome


def on_small_disk(mounted: Path, size: str, script: str) -> list[str]:
    """A command that runs a script with a file system of `size` at `mounted`; the script may say `room` to enlarge it.

    Its user and mount namespaces are its own.  Raises NotRun where that is not allowed.
    """
    mounted.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:  # noqa: S607
        raise NotRun("unshare -Urm is not allowed here: user namespaces are off")
    room = f"room() {{ mount -o remount,size=1g '{mounted}'; }}"
    return ["unshare", "-Urm", "sh", "-c", f"mount -t tmpfs -o size={size} tmpfs '{mounted}'; {room}; {script}"]


@fault("F10.disk", "a whole run on a disk of 64 KiB, and again once it has room")
def small_disk(folder: Path) -> Outcome:
    """`attune run` says that the disk is full, publishes nothing partial, and goes on when there is room."""
    outcome, raw = Outcome(), settings(folder)
    digests, _ = golden(in_store(raw, folder / "golden" / "artifacts"))
    for size in ["64k", "512k", "2m"][: tries(3)]:
        store, copy = folder / size / "artifacts", folder / size / "copy"
        config = written(raw | {"store": str(store), "runs": str(folder / size / "runs")}, folder / f"{size}.yaml")
        run = f"'{sys.executable}' -m flows.cli run '{config}'"
        script = f"{run}; echo first $?; ls '{store}'; room; {run}; echo second $?; cp -a '{store}' '{copy}'"
        with outcome.attempt(size):
            command = on_small_disk(store, size, script)
            done = subprocess.run(
                command, env=environment(folder), cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
            )
            assert "first 1\n" in done.stdout and "second 0\n" in done.stdout, (done.stdout + done.stderr)[-1500:]
            told = ("No space left on device; nothing was published", "could not be written; is the disk full?")
            assert any(words in done.stderr for words in told), done.stderr[-1500:]
            assert "Traceback" not in done.stderr, done.stderr[-1500:]
            assert visible(ArtifactStore(copy)) == digests, "the second run ended with other digests"
            outcome.figures[size] = next(line for line in done.stderr.splitlines() if line.startswith("attune:"))
    return outcome


@fault("F11.logs", "standard output and standard error on a full disk")
def full_logs(folder: Path) -> Outcome:
    """/dev/full takes no byte: the artifacts are right, or the exit code is not 0."""
    outcome, raw = Outcome(), settings(folder)
    digests, _ = golden(in_store(raw, folder / "golden" / "artifacts"))
    for name in ["stdout", "stderr", "both"][: tries(3)]:
        with outcome.attempt(name):
            mine = raw | {"store": str(folder / name / "artifacts"), "runs": str(folder / name / "runs")}
            config, log = written(mine, folder / f"{name}.yaml"), folder / f"{name}.log"
            with open("/dev/full", "w") as full, log.open("w") as good:
                ends = {end: full if name in (end, "both") else good for end in ("stdout", "stderr")}
                done = attune_run(config, **ends)
            whole = visible(ArtifactStore(mine["store"])) == digests
            record = latest(Path(mine["runs"]))
            outcome.figures[name] = {"exit_code": done.returncode, "state": record.state, "whole": whole}
            assert whole == (record.state == "completed"), "the record says something else than the store"
            assert done.returncode == 0 or name != "stderr", "a run fails because nobody reads its log"
            assert whole or done.returncode, "exit code 0 with bad output"
            again = attune_run(config)
            assert again.returncode == 0, again.stderr[-1500:]
            assert visible(ArtifactStore(mine["store"])) == digests
    return outcome


@fault("F11.prefect", "Prefect's database on a full disk")
def full_database(folder: Path) -> Outcome:
    """PREFECT_HOME on 64 KiB and on 1 MiB: it ends, not with exit code 0 and bad output; with room it goes on."""
    outcome, raw = Outcome(), settings(folder)
    digests, _ = golden(in_store(raw, folder / "golden" / "artifacts"))
    for size in ["64k", "1m"][: tries(2)]:
        mine = raw | {"store": str(folder / size / "artifacts"), "runs": str(folder / size / "runs")}
        config = written(mine, folder / f"{size}.yaml")
        run = f"'{sys.executable}' -m flows.cli run '{config}'"
        with outcome.attempt(size):
            command = on_small_disk(folder / "prefect", size, f"{run}; echo first $?; room; {run}; echo second $?")
            done = subprocess.run(
                command, env=environment(folder), cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
            )
            first = done.stdout.partition("first ")[2].partition("\n")[0]
            outcome.figures[size] = {"exit_code": first, "said": done.stderr.strip().splitlines()[-1:]}
            assert "second 0\n" in done.stdout, (done.stdout + done.stderr)[-1500:]
            assert visible(ArtifactStore(mine["store"])) == digests
    return outcome
