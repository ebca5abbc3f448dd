"""Rows in batches of similar length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

Row = Mapping[str, Any]


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Positions of items in batches of similar length, the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def by_tokens(lengths: Sequence[int], tokens_in_batch: int) -> Iterator[list[int]]:
    """Positions of items in batches of similar length, of at most `tokens_in_batch` tokens with their padding."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        size = max(1, tokens_in_batch // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def right_padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """int64 of shape (rows, longest)."""
    longest = max(map(len, rows))
    return torch.tensor([list(row) + [fill] * (longest - len(row)) for row in rows])


def left_padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """int64 of shape (rows, longest)."""
    longest = max(map(len, rows))
    return torch.tensor([[fill] * (longest - len(row)) + list(row) for row in rows])
