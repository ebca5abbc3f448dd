"""Clocks that jump (F28): what is cached, and what split remembers, does not depend on what time it is."""

import logging
import os
import time
from datetime import datetime, timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from conftest import ROWS, write_jsonl

import tasks.store
from faults.kills import visible
from faults.matrix import Outcome, fault, tries
from faults.pipeline import SERVER, in_store, run, settings
from tasks.config import PipelineConfig
from tasks.layout import SPLITS
from tasks.ledger import read
from tasks.stages import STAGES
from tasks.store import ArtifactRef, ArtifactStore

DAY = 86_400
JUMPS = [0, DAY, -DAY, 3_600, -3_600, 365 * DAY, -365 * DAY, 20 * 365 * DAY]
"""Seconds; an hour is what daylight saving takes."""


def set_clock(seconds: float) -> None:
    """Let every clock of this process that tells the date go wrong by so much."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=seconds)

    real = {name: getattr(time, name) for name in ("time", "time_ns", "gmtime", "localtime", "strftime")}
    time.time = lambda: real["time"]() + seconds
    time.time_ns = lambda: real["time_ns"]() + int(seconds * 1e9)
    for name in ("gmtime", "localtime"):
        setattr(time, name, lambda when=None, name=name: real[name](time.time() if when is None else when))
    time.strftime = lambda text, when=None: real["strftime"](text, when or time.localtime())
    tasks.store.datetime = Shifted


def at(seconds: float, config: PipelineConfig) -> tuple[list[str], dict[str, ArtifactRef]]:
    """Run with the clock wrong by so much: the stages that were made, and all artifacts."""
    hears, tells = Pipe(duplex=False)
    process = SERVER.Process(target=_run_at, args=(seconds, config, tells))
    process.start()
    tells.close()
    answer = hears.recv()
    process.join()
    return answer


def _run_at(seconds: float, config: PipelineConfig, tells: Connection) -> None:
    logging.getLogger("attune").setLevel(logging.ERROR)
    set_clock(seconds)
    said: list[tuple[str, str]] = []
    refs = run(config, lambda *words: said.append(words))
    tells.send(([stage for word, stage in said if word == "made"], refs))


@fault("F28", "the clock jumps by an hour, a day, a year, back and forth")
def jumps(folder: Path) -> Outcome:
    """time, datetime and the times of files are changed inside a process, since libfaketime is seldom there."""
    outcome, raw = Outcome(figures={"injected": "patched time and datetime, os.utime"}), settings(folder)
    config = in_store(raw, folder / "now" / "artifacts")
    _, refs = at(0, config)
    for seconds in JUMPS[: tries(len(JUMPS), least=3)]:
        with outcome.attempt(f"{seconds:+} s: made now, found then"):
            assert at(seconds, config) == ([], refs)
        with outcome.attempt(f"{seconds:+} s: made then, found now"):
            then = in_store(raw, folder / str(seconds) / "artifacts")
            assert at(seconds, then) == (list(STAGES), refs)
            assert at(0, then) == ([], refs)
        with outcome.attempt(f"{seconds:+} s: files of another time"):
            for path in Path(config.store).rglob("*"):
                os.utime(path, (time.time() + seconds, time.time() + seconds))
            assert at(0, config) == ([], refs)
            assert set(visible(ArtifactStore(config.store))) == set(STAGES)
        with outcome.attempt(f"{seconds:+} s: between two nights of a growing source"):
            grown(folder / f"grown{seconds}", seconds)
    return outcome


def grown(home: Path, seconds: float) -> None:
    """Three nights, the clock wrong in the second: none runs twice, and no row changes its split."""
    raw, before = settings(home), {}
    config = in_store(raw, home / "artifacts")
    for rows, wrong in ((200, 0.0), (240, seconds), (len(ROWS), 0.0)):
        write_jsonl(home / "colours.jsonl", ROWS[:rows])
        made, refs = at(wrong, config)
        assert made == list(STAGES)
        assert at(wrong, config) == ([], refs), "a second run in the same night runs again"
        places = _places(ArtifactStore(config.store).path(refs["split"]))
        moved = [row for row in before if row in places and places[row] != before[row]]
        assert not moved, f"{len(moved)} rows are in another split than last night"
        before = places


def _places(split: Path) -> dict[str, str]:
    """The split of each row."""
    return {row: name for name in SPLITS for row in read(split / name, columns=["id"])["id"].to_pylist()}
