"""A small training to test on: examples of different lengths, in rows or in packs."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from conftest import COLOURS

from tasks.config import FineTuneConfig
from tasks.fine_tune import fine_tune
from tasks.format import load_tokenizer
from tasks.layout import PACKS
from tasks.ledger import ShardWriter, Summary, read
from tasks.schema import IGNORE_INDEX, TOKENIZED
from tasks.schema import PACKS as PACK_COLUMNS

SETTINGS = {"precision": "fp32", "learning_rate": 0.01, "warmup_ratio": 0.0, "early_stopping_patience": 0}


def tokenized(count: int) -> pa.Table:
    """A prompt of some tokens, then its first token twice."""
    rows = []
    for i in range(count):
        prompt = [10 + (i * 7 + j * 3) % 200 for j in range(3 + i % len(COLOURS))]
        ids = [*prompt, prompt[0], prompt[0]]
        row = {"id": str(i), "source": "s", "file": "s", "line": i + 1, "task": "t", "input_ids": ids}
        labels = [IGNORE_INDEX] * len(prompt) + ids[len(prompt) :]
        rows.append(row | {"labels": labels, "prompt_tokens": len(prompt), "truncated": False})
    return pa.Table.from_pylist(rows, schema=TOKENIZED)


def formatted(folder: Path, base: Path, *, packed: bool = True, rows: int = 48) -> Path:
    """An artifact of format; three examples share a row where it is packed."""
    tables = {"train": tokenized(rows), "validation": tokenized(12)}
    if packed:
        tables[PACKS] = pa.table({"pack": pa.array([i // 3 for i in range(rows)], pa.int32())})
    for name, table in tables.items():
        writer = ShardWriter(folder / name, PACK_COLUMNS if name == PACKS else TOKENIZED)
        writer.write(table)
        writer.close()
    load_tokenizer(base, "chatml").save_pretrained(folder / "tokenizer")
    return folder


def run(made: Path, base: Path, out: Path, **settings: Any) -> tuple[Summary, list[dict[str, Any]]]:
    """Fine-tune; the summary and the rows of the history."""
    out.mkdir(exist_ok=True)
    summary = fine_tune(FineTuneConfig(**{**SETTINGS, **settings}), {"format": made, "base": base}, out)
    return summary, read(out / "history").to_pylist()


def losses(history: list[dict[str, Any]]) -> list[float]:
    """The training loss of each step."""
    return [row["loss"] for row in history if row["loss"] is not None]
