"""The store's own writes: killed before each system call, failed at each of them (F01, F10, F11, F12)."""

import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from store_process import publish

from faults.matrix import Outcome, fault, sample
from faults.syscalls import NAMING, WRITING, Traced, points, traced
from tasks.store import ArtifactRef, ArtifactStore, Manifest

SHARDS = {
    **{f"examples/part-{number:05d}.parquet": b"kept %d " % number * 15 for number in range(4)},
    "rejected/part-00000.parquet": b"rejected " * 15,
}
WEIGHTS = "resume/step-1/weights"


def make(root: Path) -> Manifest:
    """Make and commit the artifact."""
    store = ArtifactStore(root)
    return store.find("clean", "key") or publish(store, "key", SHARDS)


def make_anew(root: Path) -> Manifest:
    """Make it without looking whether it is there."""
    return publish(ArtifactStore(root), "key", SHARDS)


def nothing(root: Path) -> None:
    """A store that is not there yet."""


def left_over(root: Path) -> None:
    """What a run that was killed in the middle left: half a shard, and an hour of training."""
    with ArtifactStore(root).work_folder("clean", "key") as work:
        (work / WEIGHTS).parent.mkdir(parents=True)
        (work / WEIGHTS).write_bytes(b"an hour of work")
        (work / "examples").mkdir()
        (work / "examples" / "part-00000.parquet").write_bytes(b"PAR1")


def published(root: Path) -> None:
    """Another run was faster."""
    make(root)


def damaged(root: Path) -> None:
    """An artifact with a byte too few, which is to be put into quarantine first."""
    make(root)
    file = root / "clean" / "key" / "examples" / "part-00001.parquet"
    file.write_bytes(file.read_bytes()[:-1])


SCENES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Manifest]]] = {
    "new": (nothing, make),
    "left over": (left_over, make),
    "already there": (published, make_anew),
    "damaged": (damaged, make),
}


def after(root: Path, scene: str, golden: Manifest) -> str:
    """Whether "all" or "nothing" of an artifact is visible, after checking that; then it is made again, and checked."""
    store = ArtifactStore(root)
    visible = store.find("clean", "key")
    if visible is None:
        assert store.folders() == [], "a reader sees a folder that is no artifact"
        _checkpoint_is_kept(store, scene)
    else:
        _is(store, visible, golden)
    _is(store, make(root), golden)
    make_anew(root)  # whoever finds the artifact looks at nothing else; whoever works on it again tidies up
    assert _is_tidy(root), "what the killed process left is still there"
    assert scene == "damaged" or not (root / ".quarantine").exists(), "a sound artifact was put into quarantine"
    return "all" if visible else "nothing"


def _is(store: ArtifactStore, manifest: Manifest, golden: Manifest) -> None:
    assert [(file.path, file.sha256) for file in manifest.files] == [(file.path, file.sha256) for file in golden.files]
    assert manifest.digest == golden.digest
    assert store.verify(ArtifactRef(manifest.stage, manifest.key, manifest.digest))


def _checkpoint_is_kept(store: ArtifactStore, scene: str) -> None:
    if scene == "left over":
        with store.work_folder("clean", "key") as work:
            left = {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}
            assert left == {WEIGHTS: b"an hour of work"}, "the checkpoints are gone"


def _is_tidy(root: Path) -> bool:
    """Nothing is left of the work but the lock."""
    return all(path.suffix == ".lock" for path in (root / ".work").iterdir())


Point = tuple[str, str, int, str]


def sweep(folder: Path, calls: tuple[str, ...]) -> Iterator[Point]:
    """Scene, call, its number and its arguments: for every scene every such call that an undisturbed process makes."""
    found = []
    for scene, (_, work) in SCENES.items():
        found.append([(scene, *point) for point in points(work, _set(folder, scene), folder / "calm.log", calls)])
    return chain.from_iterable(found)


def strike(folder: Path, point: Point, injury: str, calls: tuple[str, ...] = WRITING) -> tuple[Path, Traced]:
    """Do a scene's work with one call injured, such as `error=ENOSPC`; the store's root, and how it ended."""
    scene, call, number, _ = point
    root = _set(folder, scene)
    return root, traced(SCENES[scene][1], root, folder / "struck.log", calls, f"{call}:{injury}:when={number}")


def _set(folder: Path, scene: str) -> Path:
    """A store in which a scene begins."""
    root = folder / "store"
    shutil.rmtree(root, ignore_errors=True)
    SCENES[scene][0](root)
    return root


@fault("F01.store", "SIGKILL before every system call of the store that writes")
def killed(folder: Path) -> Outcome:
    """Swept until a process ends by itself; afterwards all or nothing is visible, and the same call ends the same."""
    outcome, golden, seen = Outcome(), make(folder / "golden"), Counter()
    every = list(sweep(folder, WRITING))
    for point in sample(every):
        with outcome.attempt(point):
            root, ended = strike(folder, point, "signal=SIGKILL")
            assert ended.exit_code == -signal.SIGKILL, f"it was not killed: {ended}"
            seen[after(root, point[0], golden)] += 1
    for scene in SCENES:
        with outcome.attempt(f"{scene}: one call more"):
            last = max((point for point in every if point[0] == scene and point[1] == "openat"), key=lambda p: p[2])
            root, ended = strike(folder, (scene, "openat", last[2] + 1, ""), "signal=SIGKILL")
            assert ended.exit_code == 0, f"the sweep was not complete: {ended}"
    outcome.figures = {"calls": dict(sorted(Counter(call for _, call, *_ in every).items())), "visible": dict(seen)}
    return outcome


def refused(folder: Path, every: list[Point], injury: str, errno: str) -> Outcome:
    """Fail each of these calls: the process says so, or it did not matter; nothing partial is seen, and it heals."""
    outcome, golden, seen = Outcome(), make(folder / "golden"), Counter()
    for point in sample(every):
        with outcome.attempt(point):
            root, ended = strike(folder, point, injury)
            if ended.exit_code == 0:
                assert point[1] in NAMING, "a write failed, and the process knows nothing of it"
                found = ArtifactStore(root).find("clean", "key")
                assert found and found.digest == golden.digest, "a success without its artifact"
            else:
                assert (ended.exit_code, errno in ended.error) == (1, True), f"no clear error: {ended}"
            seen["succeeded all the same" if ended.exit_code == 0 else "told"] += 1
            after(root, point[0], golden)
    outcome.figures = {"calls": dict(sorted(Counter(call for _, call, *_ in every).items())), "ended": dict(seen)}
    return outcome


@fault("F10.calls", "no space left at every system call of the store that writes")
def full(folder: Path) -> Outcome:
    """ENOSPC from write, and from what makes a file, a folder or a name."""
    calls = ("openat", "write", "pwrite64", *NAMING)
    every = [point for point in sweep(folder, calls) if point[1] != "openat" or "O_CREAT" in point[3]]
    return refused(folder, every, "error=ENOSPC", "No space left on device")


@fault("F11.manifest", "no space left while the manifest is written")
def full_at_manifest(folder: Path) -> Outcome:
    """ENOSPC from every call that names manifest.json or writes to it."""
    calls = ("openat", "write", "fsync")
    every = [point for point in sweep(folder, calls) if "manifest.json" in point[3] and "O_RDONLY" not in point[3]]
    return refused(folder, every, "error=ENOSPC", "No space left on device")


@fault("F12", "fsync answers with an input/output error")
def broken_sync(folder: Path) -> Outcome:
    """EIO from every fsync: a failed write, which is not tried again on the same file, since that would succeed."""
    calls = ("fsync", "fdatasync")
    every = list(sweep(folder, calls))
    outcome = refused(folder, every, "error=EIO", "Input/output error")
    for point in sample(every):
        with outcome.attempt(f"{point}: not tried again"):
            _, ended = strike(folder, point, "error=EIO", calls)
            after_it = [arguments for _, arguments in ended.calls[point[2] :]]
            assert point[3].partition(")")[0] not in [arguments.partition(")")[0] for arguments in after_it]
    return outcome
