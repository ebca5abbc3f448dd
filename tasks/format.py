"""Format: turn the examples into tokens, mark what is supervised, and pack the training rows."""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config import FormatConfig
from tasks.encoded import Encoded, Refused
from tasks.errors import TrainingError
from tasks.families import find, load_family
from tasks.layout import LABELS, PACKS, SPLITS
from tasks.ledger import Ledger, ShardWriter, Summary, batches, by_source, rejection
from tasks.packing import pack
from tasks.progress import progress
from tasks.schema import IGNORE_INDEX, PLACE, TOKENIZED
from tasks.schema import PACKS as PACK_COLUMNS
from tasks.templates import choose

PIECE_BYTES = 4 << 20
"""About as many bytes of examples are in tokens at a time."""


def format(config: FormatConfig, inputs: dict[str, Path], out: Path, family: str = "auto") -> Summary:
    """Write `train`, `validation`, `test` (columns TOKENIZED) and `tokenizer/`, which carries the chat template.

    Where rows are packed, `packs` (column PACKS) says which of train share a row; a classifier has `labels.json`, the
    names of its classes.  Rejects examples that cannot be used; their reasons stand at the family's `encode`.  Raises
    TrainingError when nothing of a split is left, or when more than max_reject_ratio of all rows was rejected.
    """
    model = load_family(find(inputs["base"]) if family == "auto" else family)
    tokenizer = load_tokenizer(inputs["base"], config.template, model.chat_template)
    tokenizer.save_pretrained(out / "tokenizer")
    labels = label_names(inputs["split"] / "train") if model.__name__.endswith("classifier") else []
    if labels:
        (out / LABELS).write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    figures: dict[str, Any] = {}
    with _loaded_objects_left_alone(), Ledger(out) as ledger:
        for name in SPLITS:
            ledger.table(name, TOKENIZED)
            lengths, figures[name] = _encode(inputs["split"] / name, model, tokenizer, config, labels, ledger)
            if not len(lengths):
                raise TrainingError(f"format: no example of {name} can be used: {dict(ledger.rejected)}")
            if name == "train" and config.packing and model.PACKS:
                figures[name]["packed_rows"] = _write_packs(lengths, config.max_seq_length, out / PACKS)
    _check_rejected(ledger, config)
    return ledger.summary(**figures)


def load_tokenizer(base: Path, template: str, chat_template: Callable[[str, Any], str | None] = choose) -> Any:
    """The tokenizer of the base model, with the chat template that its family chooses."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokenizer.chat_template = chat_template(template, tokenizer)
    return tokenizer


def label_names(train: Path) -> list[str]:
    """The classes of a split, sorted; rows without a label do not count."""
    found = {label for table in batches(train, columns=["label"]) for label in pc.unique(table["label"]).to_pylist()}
    return sorted(found - {"", None})


def _encode(
    examples: Path, model: ModuleType, tokenizer: Any, config: FormatConfig, labels: Sequence[str], ledger: Ledger
) -> tuple[np.ndarray, dict[str, int]]:
    """Write one split; returns the length of each row in tokens, and figures."""
    lengths = [np.empty(0, np.int32)]
    supervised = truncated = 0
    for table in progress(_pieces(examples), f"format {examples.name}", unit="batches"):
        ledger.enter(by_source(table))
        rows = table.to_pylist()
        encoded = model.encode(rows, tokenizer, config, labels)
        pairs = zip(rows, encoded, strict=True)
        ledger.reject([rejection(row, *refused) for row, refused in pairs if isinstance(refused, Refused)])
        kept = _tokenized(table, encoded)
        ledger.keep(examples.name, kept)
        lengths.append(pc.list_value_length(kept["input_ids"]).to_numpy())
        supervised += pc.sum(pc.not_equal(pc.list_flatten(kept["labels"]), IGNORE_INDEX)).as_py() or 0
        truncated += pc.sum(kept["truncated"]).as_py() or 0
    every = np.concatenate(lengths)
    figures = {
        "rows": len(every),
        "tokens": int(every.sum()),
        "supervised_tokens": supervised,
        "longest_tokens": int(every.max(initial=0)),
        "truncated": truncated,
    }
    return every, figures


@contextmanager
def _loaded_objects_left_alone() -> Iterator[None]:
    """Python's search for cycles would go through all that libraries hold, a tenth of the stage's time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _pieces(examples: Path) -> Iterator[pa.Table]:
    """The rows of a split, 1,000 at a time or fewer where they are long: in tokens they take tens of times the room."""
    for table in batches(examples, rows=1000):
        rows = max(1, PIECE_BYTES * table.num_rows // max(1, table.nbytes))
        for begin in range(0, table.num_rows, rows):
            yield table.slice(begin, rows)


def _tokenized(examples: pa.Table, encoded: Sequence[Encoded | Refused]) -> pa.Table:
    """The rows that can be used, with the columns TOKENIZED."""
    kept = [found for found in encoded if isinstance(found, Encoded)]
    places = examples.select(["id", *PLACE, "task"]).filter(pa.array(isinstance(found, Encoded) for found in encoded))
    return pa.table(
        {name: places[name] for name in places.column_names}
        | {
            "input_ids": _lists([found.input_ids for found in kept]),
            "labels": _lists([found.labels for found in kept]),
            "prompt_tokens": pa.array([found.prompt_tokens for found in kept], pa.int32()),
            "truncated": pa.array([found.truncated for found in kept], pa.bool_()),
        },
        TOKENIZED,
    )


def _lists(rows: Sequence[Sequence[int]]) -> pa.ListArray:
    """A column of int32 lists; pyarrow's own way from Python lists takes several times as long."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.fromiter(chain.from_iterable(rows), np.int32, offsets[-1]))


def _write_packs(lengths: np.ndarray, capacity: int, folder: Path) -> int:
    """Write which packed row each training row is in; returns how many packed rows there are."""
    packs = pack(lengths, capacity)
    writer = ShardWriter(folder, PACK_COLUMNS)
    writer.write(pa.table({"pack": packs}))
    writer.close()
    return int(packs.max()) + 1


def _check_rejected(ledger: Ledger, config: FormatConfig) -> None:
    rejected = sum(ledger.rejected.values())
    if rejected > config.max_reject_ratio * ledger.rows_in:
        raise TrainingError(
            f"format: {rejected} of {ledger.rows_in} rows cannot be used: {dict(ledger.rejected)}; "
            f"format.max_reject_ratio is {config.max_reject_ratio:g}.  Raise format.max_seq_length or it, or see "
            "format.truncation"
        )
