"""Processes that want the same key at the same time, and one that dies with the lock in its hand (F21, F22)."""

import logging
import os
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from store_process import publish

from faults.kills import all_said, stages, start, visible
from faults.matrix import Outcome, fault, tries
from faults.pipeline import SERVER, in_store, settings
from tasks.store import ArtifactRef, ArtifactStore

RACERS = 8
SECONDS_TO_GO_ON = 5.0


@fault("F21.store", "8 processes publish the same key")
def racing(folder: Path) -> Outcome:
    """A barrier before every round; each process makes its own file, so that only one of them can stand."""
    outcome, rounds = Outcome(), tries(200)
    barrier = SERVER.Barrier(RACERS)
    ends = [Pipe(duplex=False) for _ in range(RACERS)]
    racers = [
        SERVER.Process(target=_race, args=(folder, rounds, number, barrier, tells))
        for number, (_, tells) in enumerate(ends)
    ]
    for racer in racers:
        racer.start()
    for _, tells in ends:
        tells.close()
    said = [all_said(hears) for hears, _ in ends]
    store = ArtifactStore(folder)
    winners: Counter[str] = Counter()
    for number in range(rounds):
        with outcome.attempt(f"round {number}"):
            answers = {each[number] if len(each) > number else "died" for each in said}
            manifest = store.find("clean", f"key-{number}")
            assert manifest is not None, "nobody won"
            assert answers == {manifest.digest}, f"they do not agree: {answers}"
            assert store.verify(ArtifactRef("clean", manifest.key, manifest.digest))
            winners[manifest.pipeline] += 1
    with outcome.attempt("afterwards"):
        for racer in racers:
            racer.join()
        assert [racer.exitcode for racer in racers] == [0] * RACERS
        assert len(store.folders()) == rounds and not (folder / ".quarantine").exists()
        assert {path.suffix for path in (folder / ".work").iterdir()} == {".lock"}, "a work folder is left"
    outcome.figures = {"processes": RACERS, "rounds": rounds, "won": dict(sorted(winners.items()))}
    return outcome


def _race(root: Path, rounds: int, number: int, barrier: Barrier, tells: Connection) -> None:
    store = ArtifactStore(root)
    for each in range(rounds):
        barrier.wait(60)
        content = {"examples/part-00000.parquet": b"%d " % number * 40}
        tells.send(publish(store, f"key-{each}", content, pipeline=f"racer-{number}").digest)


@fault("F21.pipeline", "three runs of one config at the same time")
def racing_runs(folder: Path) -> Outcome:
    """Each stage is made by one of them, once; all end with the same artifacts."""
    outcome, raw = Outcome(), settings(folder)
    for number in range(tries(10)):
        with outcome.attempt(number):
            config = in_store(raw, folder / str(number) / "artifacts")
            running = [start(config) for _ in range(3)]
            said = [all_said(hears) for _, hears in running]
            for process, _ in running:
                process.join()
            assert [process.exitcode for process, _ in running] == [0] * 3
            assert len(visible(ArtifactStore(config.store))) == 7
            assert all(len(stages(each, "made")) + len(stages(each, "cached")) == 7 for each in said)
            left = [path.name for path in (Path(config.store) / ".work").glob("*/*")]
            assert left == [], "something is left in a work folder"
    return outcome


@fault("F22", "the holder of a lock killed with SIGKILL")
def killed_holder(folder: Path) -> Outcome:
    """Somebody waits for the lock already; how long it takes until it has published."""
    outcome, waits = Outcome(), []
    for number in range(tries(20)):
        with outcome.attempt(number):
            with _holder(folder, f"key-{number}") as holder:
                waiter = threading.Thread(target=publish, args=(ArtifactStore(folder), f"key-{number}"))
                waiter.start()
                time.sleep(0.1)
                assert waiter.is_alive(), "it did not wait"
                killed = time.monotonic()
                os.kill(holder, signal.SIGKILL)
                waiter.join(60)
                waits.append(time.monotonic() - killed)
            assert waits[-1] < SECONDS_TO_GO_ON, f"it went on after {waits[-1]:.1f} s"
            assert ArtifactStore(folder).find("clean", f"key-{number}")
    outcome.figures = {"longest_seconds": round(max(waits), 3)}
    return outcome


@contextmanager
def _holder(root: Path, key: str):
    """The id of a process that holds the work folder of a key."""
    hears, tells = Pipe()
    process = SERVER.Process(target=_hold, args=(root, key, tells))
    process.start()
    tells.close()
    hears.recv()
    yield process.pid
    process.join()


def _hold(root: Path, key: str, tells: Connection) -> None:
    logging.getLogger("attune").setLevel(logging.ERROR)
    with ArtifactStore(root).work_folder("clean", key) as work:
        (work / "half").write_bytes(b"half")
        tells.send("held")
        tells.recv()
