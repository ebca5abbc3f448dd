"""The rows of a training, as the Trainer takes them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tasks.held_out import chosen_by_id
from tasks.layout import PACKS
from tasks.ledger import place, read
from tasks.schema import IGNORE_INDEX, PLACE


class TrainingRows(torch.utils.data.Dataset):
    """The examples of format's train, several in a row where they are packed.

    A row holds input_ids, labels, its own number as `row`, and where examples are packed position_ids that begin anew
    with each of them; the first token of a packed example is not supervised, as the one before it belongs to another.
    8 bytes a token are held in memory.  With `multiple`, empty rows at the end fill up the last batch of several
    processes.
    """

    def __init__(self, formatted: Path, multiple: int = 1) -> None:
        self.formatted = formatted
        table = read(formatted / "train", columns=["input_ids", "labels"]).combine_chunks()
        self.input_ids, self.labels = _lists(table["input_ids"]), _lists(table["labels"])
        self.packed = (formatted / PACKS).exists()
        packs = read(formatted / PACKS)["pack"].to_numpy() if self.packed else np.arange(table.num_rows)
        self._examples = np.argsort(packs, kind="stable")
        self._bounds = np.searchsorted(packs[self._examples], np.arange(packs.max() + 2))
        self.rows = len(self._bounds) - 1
        self._length = -(-self.rows // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row >= self.rows:
            return {"input_ids": [0], "labels": [IGNORE_INDEX], "row": row}
        examples = self.examples(row)
        ids, labels = [_at(self.input_ids, each) for each in examples], [_at(self.labels, each) for each in examples]
        if not self.packed:
            return {"input_ids": ids[0], "labels": labels[0], "row": row}
        labels = [np.concatenate([[IGNORE_INDEX], each[1:]]) for each in labels]
        positions = np.concatenate([np.arange(len(each)) for each in ids])
        return {
            "input_ids": np.concatenate(ids),
            "labels": np.concatenate(labels),
            "position_ids": positions,
            "row": row,
        }

    def examples(self, row: int) -> np.ndarray:
        """The numbers of the examples in a row."""
        return self._examples[self._bounds[row] : self._bounds[row + 1]]

    def places(self, rows: Sequence[int]) -> list[str]:
        """Where the examples of some rows were read."""
        numbers = np.sort(np.concatenate([self.examples(row) for row in rows if row < self.rows]))
        return [place(each) for each in read(self.formatted / "train", columns=list(PLACE)).take(numbers).to_pylist()]


class Order(torch.utils.data.Sampler):
    """Another order of the rows in each epoch, the same however many processes there are; empty rows stay last."""

    def __init__(self, rows: TrainingRows, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        shuffled = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows.rows)
        return iter([*shuffled.tolist(), *range(self.rows.rows, len(self.rows))])


def validation_rows(formatted: Path, max_rows: int | None) -> list[dict[str, Any]]:
    """Rows of format's validation, at most `max_rows` of them, chosen by the hash of their id."""
    columns = ["id", "input_ids", "labels", "prompt_tokens"]
    return chosen_by_id(read(formatted / "validation", columns=columns).to_pylist(), max_rows)


Lists = tuple[np.ndarray, np.ndarray]
"""All items of a column of lists one behind the other, and where each list begins."""


def _lists(column: pa.ChunkedArray) -> Lists:
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    return array.values.to_numpy(), array.offsets.to_numpy()


def _at(lists: Lists, number: int) -> np.ndarray:
    items, offsets = lists
    return items[offsets[number] : offsets[number + 1]]
