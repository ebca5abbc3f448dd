"""Processes that use a store while another collects its garbage: `gc_process.py hold | run | collect <root> …`."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from store_process import CONTENT, edited, publish

from tasks.errors import AttuneError
from tasks.gc import DAY, collect_garbage
from tasks.run_record import RunFolder, stage_record
from tasks.store import ArtifactStore, Manifest, reference

LONG_AGO = "2000-01-01T00:00:00Z"


def hold(root: str) -> None:
    """A run that never ends."""
    with ArtifactStore(root).in_use():
        print("held", flush=True)
        time.sleep(600)


def run(root: str, runs: str, number: str) -> None:
    """That many runs: each finds or makes two artifacts that are old at once, and reads both at its end.

    One of them is named in every record, the other by this run alone, whose record is as old as the artifact.
    """
    store = ArtifactStore(root)
    for each in range(int(number)):
        with store.in_use():
            manifests = [_bring(store, "shared"), _bring(store, f"own-{each}")]
            time.sleep(0.02)
            if not all(store.verify(reference(manifest)) for manifest in manifests):
                sys.exit(f"run {each}: something is gone")
            _record(runs, manifests[:1])
        time.sleep(0.02)
        found = store.find("clean", "shared")
        if found is None or found.files != manifests[0].files:
            sys.exit(f"run {each}: what its record names is gone")
    print(f"{number} runs")


def _bring(store: ArtifactStore, key: str) -> Manifest:
    if (found := store.find("clean", key)) is not None:
        return found
    made = publish(store, key, CONTENT)
    edited(store.path(reference(made)), created=LONG_AGO)
    return made


def _record(runs: str, manifests: list[Manifest]) -> None:
    folder = RunFolder(runs, "nightly", {})
    for manifest in manifests:
        folder.add(stage_record(manifest, cached=True, why="cached"), Path("nowhere"))
    folder.end()


def collect(root: str, runs: str) -> None:
    """Collect without pause until SIGTERM; then say how many things went, and how often a run was on."""
    counts = {"went": 0, "refused": 0, "ended": 0}

    def end(number: int, frame: FrameType | None) -> None:
        counts["ended"] = 1

    signal.signal(signal.SIGTERM, end)
    while not counts["ended"]:
        try:
            counts["went"] += len(collect_garbage(ArtifactStore(root), Path(runs), 1000 / DAY, dry_run=False))
        except AttuneError as refused:
            if "a run is going on" not in str(refused):
                raise
            counts["refused"] += 1
            time.sleep(0.001)
    counts["went"] += len(collect_garbage(ArtifactStore(root), Path(runs), 1000 / DAY, dry_run=False))
    print(counts["went"], counts["refused"])


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    {"hold": hold, "run": run, "collect": collect}[verb](*rest)
