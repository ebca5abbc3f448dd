"""Peak memory belongs to the work that needed it."""

import subprocess
import sys

from tasks.memory import peak_memory


def test_the_peak_is_that_of_the_block():
    with peak_memory() as before:
        pass
    quiet = before()
    with peak_memory() as peak:
        block = bytearray(200_000_000)
        block[::4096] = b"x" * len(block[::4096])
        del block
    assert peak() - quiet > 150_000_000
    with peak_memory() as after:
        pass
    assert after() - quiet < 100_000_000


def test_freed_memory_is_kept_for_the_next_tensors():
    """Page faults of a tensor of 20 MB that is made ten times, in a process of its own."""
    count = (
        "import resource, torch\n"
        "from tasks.memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): torch.ones(20_000_000, dtype=torch.uint8)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults(), keep_freed_memory() or faults())"
    )
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split())
    assert kept < plain / 4
