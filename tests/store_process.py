"""A process that publishes artifacts, for the tests to race, to kill and to starve: `store_process.py <verb> <root>`.

It imports nothing but the store, so that it starts fast and can be forked safely.
"""

import itertools
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from tasks.store import ArtifactStore, Manifest, seal_of

CONTENT = {"examples/part-00000.parquet": b"kept " * 20, "rejected/part-00000.parquet": b"rejected " * 20}
KEYS = [f"key-{number:02d}" for number in range(12)]
WRITES = {"open", "write", "flush", "fsync", "rename", "mkdir", "unlink", "rmdir"}


def described(key: str, **changes: Any) -> dict[str, Any]:
    """What a stage says of an artifact: the fields of Manifest without digest, created and files."""
    return {
        "stage": "clean",
        "key": key,
        "settings": {"duplicates": "keep_first"},
        "inputs": {"collect": "0" * 64},
        "code": {"tasks.clean": "1" * 16},
        "versions": {"pyarrow": "26.0"},
        "rows_in": 3,
        "rows_kept": 2,
        "rejected": {"too_short": 1},
        "figures": {"longest": 7},
        "seconds": 0.25,
        "peak_memory_bytes": 1000,
        "created_by": "attune 0.1.0",
    } | changes


def publish(store: ArtifactStore, key: str, content: dict[str, bytes] = CONTENT, **changes: Any) -> Manifest:
    """Make an artifact of `content` (path -> bytes), as a stage does."""
    with store.work_folder("clean", key) as work:
        for name, data in content.items():
            (work / name).parent.mkdir(exist_ok=True)
            with (work / name).open("xb", buffering=0) as file:
                for start in range(0, len(data), 50):
                    file.write(data[start : start + 50])
        return store.commit(work, described(key, **changes))


def barrier() -> None:
    """Say that this process is ready, and wait until all are."""
    print("ready", flush=True)
    sys.stdin.readline()


def race(root: Path) -> None:
    """Publish every key, together with the other racers."""
    barrier()
    for key in KEYS:
        print(publish(ArtifactStore(root), key).digest)


def find(root: Path) -> None:
    """Look up every key, together with the other racers."""
    barrier()
    for key in KEYS:
        print(ArtifactStore(root).find("clean", key))


def hold(root: Path) -> None:
    """Hold the work folder with half a file in it, until killed."""
    with ArtifactStore(root).work_folder("clean", "key") as work:
        (work / "half").write_bytes(b"half")
        print("held", flush=True)
        time.sleep(600)


def starve(root: Path, limit_bytes: str) -> None:
    """Publish while no file may grow beyond the limit, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), int(limit_bytes)))
    publish(ArtifactStore(root), "key")


def sweep(root: Path) -> None:
    """Publish in `<root>/<n>`, killed at the n-th moment around a write, for n = 0, 1, … until one lives."""
    for number in itertools.count():
        store = ArtifactStore(root / str(number))
        with store.work_folder("clean", "key") as work:
            (work / "resume" / "step-1").mkdir(parents=True)
            (work / "resume" / "step-1" / "weights").write_bytes(b"an hour of work")
            (work / "torn.parquet").write_bytes(b"PAR1")
        if (child := os.fork()) == 0:
            sys.setprofile(die_at(number))
            publish(store, "key")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        if status != -signal.SIGKILL:
            sys.exit(f"moment {number}: ended with {status}")


def die_at(moment: int) -> Any:
    """A profiler that kills the process just before or just after a call that writes, at the `moment`-th such time."""
    moments = itertools.count()

    def profiler(_: FrameType, event: str, called: Any) -> None:
        writes = event in ("c_call", "c_return") and called.__name__ in WRITES
        if writes and next(moments) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return profiler


def edited(folder: Path, **fields: Any) -> None:
    """Give the manifest in `folder` other fields, and the seal that goes with them."""
    path = folder / "manifest.json"
    manifest = Manifest.model_validate(json.loads(path.read_text()) | fields)
    manifest.seal = seal_of(manifest)
    path.write_text(manifest.model_dump_json())


if __name__ == "__main__":
    verb, folder, *rest = sys.argv[1:]
    {"race": race, "find": find, "hold": hold, "starve": starve, "sweep": sweep}[verb](Path(folder), *rest)
