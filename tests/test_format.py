"""Format: tokens, labels, refusals, packs."""

import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.config import FormatConfig
from tasks.errors import TrainingError
from tasks.format import format
from tasks.layout import SPLITS
from tasks.ledger import ShardWriter, read
from tasks.schema import EXAMPLE, IGNORE_INDEX


def example(line: int, instruction: str, output: str, **others: str) -> dict[str, object]:
    blank = dict.fromkeys(EXAMPLE.names, "") | {"history": []}
    row = {"id": f"{line:016x}", "source": "s", "line": line, "task": "t", "instruction": instruction, "output": output}
    return blank | row | others


def run(tmp_path: Path, base: Path, rows: dict[str, list[dict[str, object]]], **settings: object):
    for name in SPLITS:
        writer = ShardWriter(tmp_path / "split" / name, EXAMPLE)
        writer.write(pa.Table.from_pylist(rows.get(name, [example(999, "Say red.", "red")]), schema=EXAMPLE))
        writer.close()
    out = tmp_path / "out"
    out.mkdir()
    return format(FormatConfig(**settings), {"split": tmp_path / "split", "base": base}, out), out


def test_labels_are_the_tokens_of_the_answer_and_its_stop(tmp_path, tiny_base):
    from transformers import AutoTokenizer

    summary, out = run(tmp_path, tiny_base, {"train": [example(1, "Say red.", "red")]}, max_seq_length=64)
    (row,) = read(out / "train").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert row["labels"][: row["prompt_tokens"]] == [IGNORE_INDEX] * row["prompt_tokens"]
    assert tokenizer.decode(row["labels"][row["prompt_tokens"] :]) == "red<|im_end|>"
    assert row["labels"][row["prompt_tokens"] :] == row["input_ids"][row["prompt_tokens"] :]
    assert summary.figures["train"]["supervised_tokens"] == len(row["labels"]) - row["prompt_tokens"]


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path, tiny_base):
    rows = [
        example(1, "Say red.", "red"),
        example(2, "Say red. " * 30, "red"),
        example(3, "Say <|im_end|>.", "red"),
        example(4, "Say red.", "blue<|im_end|>"),
    ]
    summary, out = run(tmp_path, tiny_base, {"train": rows}, max_seq_length=64)
    assert summary.rejected == {"special_token_in_text": 2, "too_many_tokens": 1}
    assert summary.rows_in == summary.rows_kept + 3
    reasons = {row["line"]: row["reason"] for row in read(out / "rejected").to_pylist()}
    assert reasons == {2: "too_many_tokens", 3: "special_token_in_text", 4: "special_token_in_text"}


@pytest.mark.parametrize("packing", [True, False])
def test_packs_hold_whole_examples_and_stand_together(tmp_path, tiny_base, packing):
    rows = [example(i, f"Say red {'and green ' * (i % 5)}.", "red") for i in range(1, 41)]
    summary, out = run(tmp_path, tiny_base, {"train": rows}, max_seq_length=64, packing=packing)
    kept = read(out / "train").to_pylist()
    assert sorted(row["line"] for row in kept) == list(range(1, 41))
    if not packing:
        assert {row["pack"] for row in kept} == {-1}
        return
    packs = [row["pack"] for row in kept]
    assert packs == sorted(packs)
    assert summary.figures["train"]["packed_rows"] == len(set(packs)) < 40
    for _, pack in itertools.groupby(kept, key=lambda row: row["pack"]):
        assert sum(len(row["input_ids"]) for row in pack) <= 64


def test_nothing_to_train_on_is_an_error(tmp_path, tiny_base):
    with pytest.raises(TrainingError, match=r"no example of train can be used: \{'too_many_tokens': 1\}"):
        run(tmp_path, tiny_base, {"train": [example(1, "Say red. " * 30, "red")]}, max_seq_length=32)
