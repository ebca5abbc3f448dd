"""Peak memory belongs to the work that needed it."""

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
