"""Rows in batches of similar length."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

Row = Mapping[str, Any]
Result = TypeVar("Result")


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


def by_row(
    rows: Sequence[Row], groups: Iterable[list[int]], work: Callable[[list[Row]], Iterable[Result]]
) -> list[Result]:
    """What `work` gives for each row of a batch, in the order of `rows`; groups: the rows of each batch."""
    found: dict[int, Result] = {}
    for chosen in groups:
        found |= zip(chosen, work([rows[index] for index in chosen]), strict=True)
    return [found[index] for index in range(len(rows))]


def right_padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """int64 of shape (rows, longest)."""
    padded = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(padded)


def left_padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """int64 of shape (rows, longest)."""
    return right_padded([row[::-1] for row in rows], fill).flip(1)
