"""Format: turn the examples into tokens, mark what is supervised, and pack the training rows."""

import json
from collections.abc import Sequence
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


def format(config: FormatConfig, inputs: dict[str, Path], out: Path, family: str = "auto") -> Summary:
    """Write `train`, `validation`, `test` (columns TOKENIZED) and `tokenizer/`, which carries the chat template.

    Where rows are packed, `packs` (column PACKS) says which of train share a row; a classifier has `labels.json`, the
    names of its classes.  Rejects examples that cannot be used; their reasons stand at the family's `encode`.  Raises
    TrainingError when nothing of a split is left, or when more than max_reject_ratio of all rows was rejected.
    """
    model = load_family(find(inputs["base"]) if family == "auto" else family)
    tokenizer = load_tokenizer(inputs["base"], config.template)
    tokenizer.save_pretrained(out / "tokenizer")
    labels = label_names(inputs["split"] / "train") if model.__name__.endswith("classifier") else []
    if labels:
        (out / LABELS).write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    figures: dict[str, Any] = {}
    with Ledger(out) as ledger:
        for name in SPLITS:
            ledger.table(name, TOKENIZED)
            lengths, figures[name] = _encode(inputs["split"] / name, model, tokenizer, config, labels, ledger)
            if not len(lengths):
                raise TrainingError(f"format: no example of {name} can be used: {dict(ledger.rejected)}")
            if name == "train" and config.packing and model.PACKS:
                figures[name]["packed_rows"] = _write_packs(lengths, config.max_seq_length, out / PACKS)
    _check_rejected(ledger, config)
    return ledger.summary(**figures)


def load_tokenizer(base: Path, template: str) -> Any:
    """The tokenizer of the base model, with the chosen chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokenizer.chat_template = choose(template, tokenizer)
    return tokenizer


def label_names(train: Path) -> list[str]:
    """The classes of a split, sorted; rows without a label do not count."""
    found = {label for table in batches(train, columns=["label"]) for label in pc.unique(table["label"]).to_pylist()}
    return sorted(found - {"", None})


def _encode(
    examples: Path, model: ModuleType, tokenizer: Any, config: FormatConfig, labels: Sequence[str], ledger: Ledger
) -> tuple[np.ndarray, dict[str, int]]:
    """Write one split; returns the length of each row in tokens, and figures."""
    lengths: list[int] = []
    supervised = truncated = 0
    for table in progress(batches(examples, rows=1000), f"format {examples.name}", unit="batches"):
        ledger.enter(by_source(table))
        rows = table.to_pylist()
        encoded = model.encode(rows, tokenizer, config, labels)
        pairs = list(zip(rows, encoded, strict=True))
        ledger.reject([rejection(row, *refused) for row, refused in pairs if isinstance(refused, Refused)])
        kept = [_row(row, found) for row, found in pairs if isinstance(found, Encoded)]
        ledger.keep(examples.name, pa.Table.from_pylist(kept, schema=TOKENIZED))
        lengths += [len(row["input_ids"]) for row in kept]
        supervised += sum(label != IGNORE_INDEX for row in kept for label in row["labels"])
        truncated += sum(row["truncated"] for row in kept)
    figures = {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "supervised_tokens": supervised,
        "longest_tokens": max(lengths, default=0),
        "truncated": truncated,
    }
    return np.array(lengths, np.int32), figures


def _row(example: dict[str, Any], encoded: Encoded) -> dict[str, Any]:
    return {name: example[name] for name in ("id", *PLACE, "task")} | encoded._asdict()


def _write_packs(lengths: np.ndarray, capacity: int, folder: Path) -> int:
    """Write which packed row each training row is in; returns how many packed rows there are."""
    packs = np.asarray(pack(lengths.tolist(), capacity), np.int32)
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
