"""The test split as evaluate and export read it: tokens of format joined with the texts of split."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tasks.layout import LABELS
from tasks.ledger import place, read


def held_out_rows(inputs: dict[str, Path], max_rows: int | None) -> list[dict[str, Any]]:
    """Rows with the columns of TOKENIZED and EXAMPLE, at most `max_rows` of them, chosen by the hash of their id."""
    texts = {place(row): row for row in read(inputs["split"] / "test").to_pylist()}
    rows = [texts[place(row)] | row for row in read(inputs["format"] / "test").to_pylist()]
    return chosen_by_id(rows, max_rows)


def chosen_by_id(rows: list[dict[str, Any]], max_rows: int | None) -> list[dict[str, Any]]:
    """At most `max_rows` rows, chosen by the hash of their id; all of them in their order where there are no more."""
    if max_rows is None or len(rows) <= max_rows:
        return rows
    return sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())[:max_rows]


def class_names(formatted: Path) -> list[str]:
    """The names of a classifier's classes, in their order; other families have none."""
    path = formatted / LABELS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
