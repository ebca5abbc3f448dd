"""Packing: several short examples in one row, so that little of a batch is padding."""

from collections.abc import Sequence

import numpy as np

from tasks.compiled import compiled

_BIT = np.zeros(67, np.int64)  # the powers of two below 2^64 leave different remainders when divided by 67
_BIT[[(1 << bit) % 67 for bit in range(64)]] = np.arange(64)


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> np.ndarray:
    """Put items of `lengths` tokens into rows of `capacity` tokens; returns the row of each item: int32, from 0.

    Best-fit decreasing: the longest items first, each into the fullest row that still has room.  No item is cut.
    Equal input gives equal output.  Raises ValueError for a length that is not in 1..capacity.
    """
    lengths = np.asarray(lengths)
    if not lengths.size:
        return np.empty(0, np.int32)
    odd = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(odd):
        raise ValueError(f"cannot pack item {odd[0]}: its length is {lengths[odd[0]]}, and must be in 1..{capacity}")
    rows = np.empty(len(lengths), np.int32)
    _place(lengths.astype(np.int32), capacity, _BIT, rows)
    return rows


@compiled
def _place(lengths, capacity, bit, rows):
    """Write the row of each item; `bit` gives the place of the one bit of a word, by its remainder."""
    items = _longest_first(lengths, capacity)
    newest = np.full(capacity + 1, -1, np.int32)  # newest[r]: of the rows with r tokens left, the one filled last
    older = np.empty(len(lengths), np.int32)  # older[row]: the one filled before it; they make a stack
    some = np.zeros((capacity >> 6) + 1, np.uint64)  # bit r is set while a row has r tokens left
    count = 0
    for item in items:
        length = lengths[item]
        room = _least_room(some, bit, length)
        if room < 0:
            room, row, count = capacity, count, count + 1
        else:
            row = newest[room]
            newest[room] = older[row]
            if newest[room] < 0:
                some[room >> 6] ^= np.uint64(1) << np.uint64(room & 63)
        rows[item] = row
        left = room - length
        if left:
            older[row] = newest[left]
            newest[left] = row
            some[left >> 6] |= np.uint64(1) << np.uint64(left & 63)


@compiled
def _longest_first(lengths, capacity):
    """The items by falling length, equal ones in their order: counted by length, then put into place."""
    ends = np.zeros(capacity + 1, np.int64)
    for length in lengths:
        ends[capacity - length] += 1
    ends = np.cumsum(ends)
    items = np.empty(len(lengths), np.int32)
    for item in range(len(lengths) - 1, -1, -1):
        ends[capacity - lengths[item]] -= 1
        items[ends[capacity - lengths[item]]] = item
    return items


@compiled
def _least_room(some, bit, length):
    """The smallest room of at least `length` tokens that some row has, or -1."""
    word = length >> 6
    found = some[word] >> np.uint64(length & 63) << np.uint64(length & 63)
    while not found:
        word += 1
        if word == len(some):
            return -1
        found = some[word]
    lowest = found & (~found + np.uint64(1))
    return (word << 6) + bit[lowest % np.uint64(67)]
