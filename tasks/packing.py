"""Packing: several short examples in one row, so that little of a batch is padding."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[int]:
    """Put items of `lengths` tokens into rows of `capacity` tokens; returns the row of each item, counted from 0.

    Best-fit decreasing: the longest items first, each into the fullest row that still has room.  No item is cut.
    `lengths` must lie in 1..capacity.  Equal input gives equal output.
    """
    rooms: list[list[int]] = [[] for _ in range(capacity + 1)]  # rooms[r]: the rows with r tokens left
    open_rooms = 0  # bit r is set while rooms[r] holds a row, so that the smallest room is found without a search
    rows = [0] * len(lengths)
    count = 0
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        length = lengths[item]
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rooms[room].pop()
            if not rooms[room]:
                open_rooms &= ~(1 << room)
        else:
            room, row, count = capacity, count, count + 1
        rows[item] = row
        if left := room - length:
            rooms[left].append(row)
            open_rooms |= 1 << left
    return rows
