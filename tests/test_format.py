"""Format: tokens, labels, refusals, truncation, packs."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from tasks import format as stage
from tasks.config import FormatConfig
from tasks.errors import ModelError, TrainingError
from tasks.families import decoder_only
from tasks.format import format, load_tokenizer
from tasks.layout import PACKS, SPLITS
from tasks.ledger import ShardWriter, read
from tasks.schema import EXAMPLE, IGNORE_INDEX, TOKENIZED
from tasks.templates import TEMPLATES

LONG = "Say red. " * 30


def example(line: int, instruction: str, output: str, **others: object) -> dict[str, object]:
    blank = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []}
    row = {"id": f"{line:016x}", "source": "s", "line": line, "task": "t", "instruction": instruction, "output": output}
    return blank | row | others


def turn(role: str, content: str, tool_calls: str = "") -> dict[str, str]:
    return {"role": role, "content": content, "tool_calls": tool_calls}


GLAIVE = example(
    1,
    "Weather?",
    "Red.",
    history=[turn("user", "Hi."), turn("assistant", "Hello.")],
    tool_turns=[turn("assistant", "", '[{"name": "look", "arguments": {"at": "sky"}}]'), turn("tool", '{"is": "red"}')],
    tools='[{"type": "function", "function": {"name": "look"}}]',
)
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'


def run(tmp_path: Path, base: Path, rows: dict[str, list[dict[str, object]]], **settings: object):
    for name in SPLITS:
        writer = ShardWriter(tmp_path / "split" / name, EXAMPLE)
        writer.write(pa.Table.from_pylist(rows.get(name, [example(999, "Say red.", "red")]), schema=EXAMPLE))
        writer.close()
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"split": tmp_path / "split", "base": base}
    return format(FormatConfig(**{"max_reject_ratio": 1} | settings), inputs, out), out


def one(tmp_path: Path, base: Path, row: dict[str, object], **settings: object):
    """The summary, the row of train, and a function that writes its supervised tokens as text."""
    summary, out = run(tmp_path, base, {"train": [row]}, **settings)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    (found,) = read(out / "train").to_pylist()
    return summary, found, tokenizer


def reasons(summary, out: Path) -> dict[int, str]:
    assert summary.rows_in == summary.rows_kept + sum(summary.rejected.values())
    found = read(out / "rejected").to_pylist()
    assert Counter(row["reason"] for row in found) == summary.rejected
    return {row["line"]: row["reason"] for row in found}


def supervised(row: dict[str, object], tokenizer) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX])


def test_labels_are_the_tokens_of_the_answer_and_its_stop(tmp_path, tiny_base):
    summary, row, tokenizer = one(tmp_path, tiny_base, example(1, "Say red.", "red"), max_seq_length=64)
    assert row["labels"][: row["prompt_tokens"]] == [IGNORE_INDEX] * row["prompt_tokens"]
    assert tokenizer.decode(row["labels"][row["prompt_tokens"] :]) == "red<|im_end|>"
    assert row["labels"][row["prompt_tokens"] :] == row["input_ids"][row["prompt_tokens"] :]
    assert row["truncated"] is False
    assert summary.figures["train"] == {
        "rows": 1,
        "tokens": len(row["input_ids"]),
        "supervised_tokens": len(row["labels"]) - row["prompt_tokens"],
        "longest_tokens": len(row["input_ids"]),
        "truncated": 0,
        "packed_rows": 1,
    }


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path, tiny_base):
    rows = [
        example(1, "Say red.", "red"),
        example(2, LONG, "red"),
        example(3, "Say <|im_end|>.", "red"),
        example(4, "Say red.", "blue<|im_end|>"),
        example(5, "Say green.", "green"),
    ]
    summary, out = run(tmp_path, tiny_base, {"train": rows}, max_seq_length=64)
    assert reasons(summary, out) == {2: "too_many_tokens", 3: "special_token_in_text", 4: "special_token_in_text"}
    table = read(out / "train")
    assert table.schema.remove_metadata() == TOKENIZED
    kept = table.to_pylist()
    assert [(row["line"], row["id"]) for row in kept] == [(1, f"{1:016x}"), (5, f"{5:016x}")]
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert [supervised(row, tokenizer) for row in kept] == ["red<|im_end|>", "green<|im_end|>"]


@pytest.mark.parametrize("packing", [True, False])
def test_packs_hold_whole_examples_and_stand_beside_train(tmp_path, tiny_base, packing):
    rows = [example(i, f"Say red {'and green ' * (i % 5)}.", "red") for i in range(1, 41)]
    summary, out = run(tmp_path, tiny_base, {"train": rows}, max_seq_length=64, packing=packing)
    kept = read(out / "train").to_pylist()
    assert [row["line"] for row in kept] == list(range(1, 41))
    if not packing:
        assert not (out / PACKS).exists() and "packed_rows" not in summary.figures["train"]
        return
    packs = read(out / PACKS)["pack"].to_pylist()
    assert summary.figures["train"]["packed_rows"] == len(set(packs)) == max(packs) + 1 < 40
    filled: Counter[int] = Counter()
    for row, pack in zip(kept, packs, strict=True):
        filled[pack] += len(row["input_ids"])
    assert max(filled.values()) <= 64


def test_rows_come_out_the_same_however_few_are_in_tokens_at_a_time(tmp_path, tiny_base, monkeypatch):
    rows = [example(i, f"Say red {'and green ' * (i % 7)}.", "red") for i in range(1, 41)]
    rows += [example(41, "Say <|im_end|>.", "red"), *(example(i, "Say blue.", "blue") for i in range(42, 60))]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    summary, out = run(tmp_path / "a", tiny_base, {"train": rows}, max_seq_length=64)
    sizes: list[int] = []
    encode = decoder_only.encode
    monkeypatch.setattr(stage, "PIECE_BYTES", 1000)
    monkeypatch.setattr(decoder_only, "encode", lambda rows, *others: sizes.append(len(rows)) or encode(rows, *others))
    again, other = run(tmp_path / "b", tiny_base, {"train": rows}, max_seq_length=64)
    assert max(sizes) < 20
    assert again == summary
    assert all(read(out / name).equals(read(other / name)) for name in (*SPLITS, PACKS, "rejected"))


def test_nothing_to_train_on_is_an_error(tmp_path, tiny_base):
    with pytest.raises(TrainingError, match=r"no example of train can be used: \{'too_many_tokens': 1\}"):
        run(tmp_path, tiny_base, {"train": [example(1, LONG, "red")]}, max_seq_length=32)


def test_too_many_rejected_rows_stop_the_run(tmp_path, tiny_base):
    rows = [*(example(i, "Say red.", "red") for i in range(6)), example(7, LONG, "red"), example(8, LONG, "red")]
    with pytest.raises(TrainingError, match=r"2 of 10 rows cannot be used: .*max_reject_ratio is 0\.19"):
        run(tmp_path, tiny_base, {"train": rows}, max_seq_length=64, max_reject_ratio=0.19)
    (tmp_path / "again").mkdir()
    summary, _ = run(tmp_path / "again", tiny_base, {"train": rows}, max_seq_length=64, max_reject_ratio=0.2)
    assert summary.rejected == {"too_many_tokens": 2}


def test_the_tokenizers_own_cutting_and_padding_are_not_ours(tmp_path, tiny_base):
    tokenizer = load_tokenizer(tiny_base, "auto")
    rows = [example(1, "Say red.", "red"), example(2, "Say both of red and green.", "red green")]
    expected = decoder_only.encode(rows, tokenizer, FormatConfig())
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert decoder_only.encode(rows, tokenizer, FormatConfig()) == expected


def test_a_tokenizer_without_offsets_is_refused():
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = TEMPLATES["plain"]
    with pytest.raises(ModelError, match="ByT5Tokenizer cannot tell where its tokens stand"):
        decoder_only.encode([example(1, "Say red.", "red")], tokenizer, FormatConfig())


# --- train_on ---


def test_all_supervises_each_turn_of_the_assistant_its_calls_included_and_nothing_else(tmp_path, tiny_base):
    summary, row, tokenizer = one(tmp_path, tiny_base, GLAIVE, max_seq_length=1000, train_on="all")
    assert supervised(row, tokenizer) == f"Hello.<|im_end|>{CALL}<|im_end|>Red.<|im_end|>"
    assert tokenizer.decode(row["input_ids"][row["prompt_tokens"] :]) == "Red.<|im_end|>"
    assert summary.figures["train"]["supervised_tokens"] == sum(label != IGNORE_INDEX for label in row["labels"])


def test_last_supervises_the_last_answer_only_of_the_same_tokens(tmp_path, tiny_base):
    (tmp_path / "all").mkdir()
    _, every, _ = one(tmp_path / "all", tiny_base, GLAIVE, max_seq_length=1000, train_on="all")
    _, row, tokenizer = one(tmp_path, tiny_base, GLAIVE, max_seq_length=1000)
    assert supervised(row, tokenizer) == "Red.<|im_end|>"
    assert (row["input_ids"], row["prompt_tokens"]) == (every["input_ids"], every["prompt_tokens"])


# --- truncation ---


def test_cut_output_keeps_the_prompt_and_cuts_the_end_of_the_answer(tmp_path, tiny_base):
    rows = [example(1, "Say red.", LONG), example(2, LONG, "red"), example(3, "Say red.", "red")]
    summary, out = run(tmp_path, tiny_base, {"train": rows}, max_seq_length=48, truncation="cut_output")
    assert reasons(summary, out) == {2: "no_supervised_tokens"}
    cut, whole = read(out / "train").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert len(cut["input_ids"]) == 48 and cut["truncated"] and not whole["truncated"]
    assert summary.figures["train"]["truncated"] == 1 and summary.figures["test"]["truncated"] == 0
    assert cut["input_ids"][: cut["prompt_tokens"]] == whole["input_ids"][: whole["prompt_tokens"]]
    assert cut["labels"][cut["prompt_tokens"] :] == cut["input_ids"][cut["prompt_tokens"] :]
    assert LONG.startswith(supervised(cut, tokenizer)) and len(supervised(cut, tokenizer)) > 20


def test_cut_output_never_keeps_a_row_without_its_last_answer(tmp_path, tiny_base):
    """Though turns before it would be supervised: what the model is asked with would not be whole."""
    history = [turn("user", "Say red."), turn("assistant", "red")]
    rows = [example(1, LONG, "red", history=history), example(2, "Say red.", "red")]
    settings = {"max_seq_length": 64, "truncation": "cut_output", "train_on": "all"}
    summary, out = run(tmp_path, tiny_base, {"train": rows}, **settings)
    assert reasons(summary, out) == {1: "no_supervised_tokens"}


def test_cut_prompt_keeps_the_answer_and_what_was_asked_last(tmp_path, tiny_base):
    rows = [
        example(1, "Say red.", "red", input=LONG),
        example(2, "Say red.", LONG),
        example(3, "Say red.", "red"),
        example(4, "Say red.", "red", system=LONG),
    ]
    summary, out = run(tmp_path, tiny_base, {"train": rows}, max_seq_length=64, truncation="cut_prompt")
    assert reasons(summary, out) == {2: "too_many_tokens", 4: "too_many_tokens"}
    cut, whole = read(out / "train").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert (cut["truncated"], whole["truncated"], summary.figures["train"]["truncated"]) == (True, False, 1)
    assert supervised(cut, tokenizer) == "red<|im_end|>"
    begin, asked = tokenizer.decode(cut["input_ids"][: cut["prompt_tokens"]]).split("Say red.\n\n")
    asked, end = asked.split("<|im_end|>")
    assert (begin, end) == ("<|im_start|>user\n", "\n<|im_start|>assistant\n")
    assert LONG.startswith(asked) and asked
    assert 62 <= len(cut["input_ids"]) <= 64


def test_a_row_without_a_supervised_token_is_never_kept(tmp_path, tiny_base):
    """A template without a stop token, and an empty answer; and an answer that stands first, which nothing predicts."""
    tokenizer = load_tokenizer(tiny_base, "auto")
    rows = [example(1, "Say red.", ""), example(2, "Say red.", "red")]
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    empty, kept = decoder_only.encode(rows, tokenizer, FormatConfig())
    assert empty.reason == "no_supervised_tokens" and kept.labels.count(IGNORE_INDEX) < len(kept.labels)
    tokenizer.chat_template = "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}"
    one_token = decoder_only.encode([example(1, "Say red.", "a")], tokenizer, FormatConfig())
    assert one_token[0].reason == "no_supervised_tokens"
