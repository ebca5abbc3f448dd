"""Packing: no item cut, no row overfull, little room left, always the same."""

import math
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.packing import pack


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """The same in plain words: of the rows with the least room that is enough, the one that was filled last."""
    rooms: list[int] = []
    filled_last: list[int] = []
    rows = [0] * len(lengths)
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        fitting = [row for row in filled_last if rooms[row] >= lengths[item]]
        if fitting:
            least = min(rooms[row] for row in fitting)
            row = next(row for row in reversed(fitting) if rooms[row] == least)
            filled_last.remove(row)
        else:
            row = len(rooms)
            rooms.append(capacity)
        rooms[row] -= lengths[item]
        filled_last.append(row)
        rows[item] = row
    return rows


@settings(deadline=None, max_examples=300, derandomize=True)
@given(data=st.data(), capacity=st.integers(1, 200))
def test_every_item_has_one_row_and_no_row_is_overfull(data, capacity):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    rows = pack(lengths, capacity)
    assert rows.dtype == np.int32 and rows.shape == (len(lengths),)
    assert sorted(set(rows.tolist())) == list(range(len(set(rows.tolist()))))
    filled: Counter[int] = Counter()
    for row, length in zip(rows.tolist(), lengths, strict=True):
        filled[row] += length
    assert all(tokens <= capacity for tokens in filled.values())
    # Best fit never opens a row while another has room: two rows that fit into one would be such a case.
    assert sum(2 * tokens <= capacity for tokens in filled.values()) <= 1
    assert rows.tolist() == best_fit_decreasing(lengths, capacity)


@pytest.mark.parametrize("capacity", [1, 63, 64, 65, 127, 128, 512, 1000])
def test_the_compiled_way_is_the_plain_one(capacity):
    """Also where the rooms fill one word of bits, or begin the next."""
    drawn = np.random.default_rng(capacity)
    for lengths in (
        drawn.integers(1, capacity + 1, 300),
        np.minimum(capacity, drawn.geometric(0.05, 300)),
        np.full(9, capacity),
        np.ones(2 * capacity + 1, np.int64),
    ):
        assert pack(lengths, capacity).tolist() == best_fit_decreasing(lengths.tolist(), capacity)


@pytest.mark.parametrize(
    ("lengths", "capacity", "rows"),
    [
        ([], 8, []),
        ([8, 8], 8, [0, 1]),
        ([1, 1, 1], 8, [0, 0, 0]),
        ([5, 6, 2, 3], 8, [1, 0, 0, 1]),  # the 3 fits only beside the 5, and the 2 into the fuller row
        ([4, 6, 2], 10, [0, 0, 1]),  # in order of length, 6 and 4 fill a row; first come would leave both half full
        ([7, 5, 3, 2], 10, [0, 1, 0, 1]),  # 3 goes to the 7, where it fits exactly, though the 5 has room too
    ],
)
def test_the_longest_come_first_each_into_the_fullest_row_with_room(lengths, capacity, rows):
    assert pack(lengths, capacity).tolist() == rows


@pytest.mark.parametrize(
    ("lengths", "item", "length"), [([3, 0], 1, 0), ([9], 0, 9), ([1, -1], 1, -1), ([2**40], 0, 2**40)]
)
def test_a_length_that_no_row_can_hold_is_named(lengths, item, length):
    with pytest.raises(ValueError, match=rf"cannot pack item {item}: its length is {length}, and must be in 1\.\.8"):
        pack(np.array(lengths), 8)


@pytest.mark.parametrize(("capacity", "least"), [(512, 0.995), (1024, 0.997), (2048, 0.998)])
def test_hardly_any_room_is_left_on_a_realistic_mix_of_lengths(capacity, least):
    normal = NormalDist(4.4, 0.7)
    lengths = [max(8, min(capacity, round(math.exp(normal.inv_cdf((item + 0.5) / 52000))))) for item in range(52000)]
    rows = int(pack(lengths, capacity).max()) + 1
    assert sum(lengths) / (rows * capacity) >= least
