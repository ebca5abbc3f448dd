"""Packing: no item cut, no row overfull, little room left, always the same."""

import math
from collections import Counter
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.packing import pack


@settings(deadline=None, max_examples=300, derandomize=True)
@given(data=st.data(), capacity=st.integers(1, 70))
def test_every_item_has_one_row_and_no_row_is_overfull(data, capacity):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    rows = pack(lengths, capacity)
    assert len(rows) == len(lengths)
    assert sorted(set(rows)) == list(range(len(set(rows))))
    filled: Counter[int] = Counter()
    for row, length in zip(rows, lengths, strict=True):
        filled[row] += length
    assert all(tokens <= capacity for tokens in filled.values())
    # Best fit never opens a row while another has room: two rows that fit into one would be such a case.
    assert sum(2 * tokens <= capacity for tokens in filled.values()) <= 1
    assert pack(lengths, capacity) == rows


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
    assert pack(lengths, capacity) == rows


@pytest.mark.parametrize("capacity", [512, 2048])
def test_hardly_any_room_is_left_on_a_realistic_mix_of_lengths(capacity):
    normal = NormalDist(4.8, 0.8)
    lengths = [max(8, min(capacity, round(math.exp(normal.inv_cdf((item + 0.5) / 5000))))) for item in range(5000)]
    rows = max(pack(lengths, capacity)) + 1
    assert sum(lengths) / (rows * capacity) >= 0.99
