"""A small work in a process of its own, with `strace` at its side: killed, or failed, at its n-th system call."""

import ctypes
import logging
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from faults.matrix import NotRun
from faults.pipeline import SERVER

NAMING = ("rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "link", "linkat")
WRITING = ("openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "symlink", "symlinkat", *NAMING)
"""Every call with which a process changes what is on a disk; a machine that does not know one has no such call."""

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)")
_PR_SET_PTRACER, _ANY = 0x59616D61, -1
PATIENCE_SECONDS = 30

Work = Callable[[Path], object]


@dataclass(frozen=True)
class Traced:
    """How a work ended under strace."""

    exit_code: int  # negative: the signal that ended it
    error: str  # what it raised, or ""
    calls: list[tuple[str, str]]  # name and arguments of each traced call, files with their paths


def traced(work: Work, root: Path, log: Path, calls: tuple[str, ...], inject: str = "") -> Traced:
    """Do `work(root)` in a process of its own and trace `calls`; `inject` is what strace is to do to one of them."""
    hears, tells = Pipe()
    process = SERVER.Process(target=_begin, args=(tells, work, root))
    process.start()
    tells.close()
    hears.recv()
    with _strace(process.pid, log, calls, inject) as tracer:
        hears.send("go")
        try:
            error = hears.recv() if hears.poll(PATIENCE_SECONDS) else "it hangs"
        except EOFError:
            error = ""
        process.join(PATIENCE_SECONDS)
        tracer.wait(PATIENCE_SECONDS)
    return Traced(process.exitcode, error, list(_calls(log)))


def _begin(tells: Connection, work: Work, root: Path) -> None:
    """Wait until strace is there, then work, and end without any call of the interpreter's own."""
    logging.getLogger("attune").setLevel(logging.ERROR)
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)  # where only parents may trace
    tells.send("ready")
    tells.recv()
    try:
        work(root)
    except OSError as error:
        tells.send(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def _strace(pid: int | None, log: Path, calls: tuple[str, ...], inject: str) -> "subprocess.Popen[str]":
    """strace beside a process, once it is attached."""
    if shutil.which("strace") is None:
        raise NotRun("there is no strace here (apt-get install strace)")
    command = ["strace", "-f", "-y", "-s0", "-o", str(log), "-e", "trace=" + ",".join(f"?{call}" for call in calls)]
    command += ["-e", f"inject={inject}"] if inject else []
    tracer = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    said = tracer.stderr.readline()
    if "attached" not in said:
        tracer.kill()
        tracer.wait()
        os.kill(pid, 9)
        raise NotRun(f"strace may not trace here: {said.strip()}")
    return tracer


def _calls(log: Path) -> Iterator[tuple[str, str]]:
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if found := _CALL.match(line):
            yield found[1], found[2]


def points(work: Work, root: Path, log: Path, calls: tuple[str, ...] = WRITING) -> list[tuple[str, int, str]]:
    """Every such call of an undisturbed work: its name, the how manieth of that name it is (from 1), its arguments."""
    calm = traced(work, root, log, calls)
    if calm.exit_code:
        raise RuntimeError(f"the work does not even work undisturbed: {calm}")
    seen: Counter[str] = Counter()
    found = []
    for name, arguments in calm.calls:
        seen[name] += 1
        found.append((name, seen[name], arguments))
    return found
