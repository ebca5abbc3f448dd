"""Peak memory of a piece of work."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the process's peak resident memory in bytes since the block began.

    Where the kernel cannot begin anew (Linux can), it is the peak since the process began.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    else:
        yield _peak_since_reset


def _peak_since_reset() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
