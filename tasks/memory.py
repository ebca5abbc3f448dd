"""Peak memory of a piece of work."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the process's peak resident memory in bytes since the block began.

    Where the kernel cannot begin anew (it can on Linux), it is the peak since the process began.
    """
    reset = Path("/proc/self/clear_refs")
    status = Path("/proc/self/status")
    if not reset.exists():
        yield lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return
    reset.write_text("5")
    yield lambda: next(
        1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")
    )
