"""Collect: every row becomes an example or has a reason, and nothing is guessed."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.collect import collect
from tasks.config import CollectConfig, SourceConfig
from tasks.errors import SourceError
from tasks.ledger import ROW_CHARS, Summary, read
from tasks.schema import EXAMPLE, REJECTED

GOOD = {"instruction": "Say it.", "output": "It."}
Rows = list[dict[str, Any]]


def run(*sources: SourceConfig, **config: Any) -> tuple[Summary, Rows, Rows]:
    """The summary, the examples and the rejections of the stage over `sources`."""
    with tempfile.TemporaryDirectory() as out:
        summary = collect(CollectConfig(sources=list(sources), **config), {}, Path(out))
        examples, rejected = read(Path(out) / "examples"), read(Path(out) / "rejected")
    assert (examples.schema, rejected.schema) == (EXAMPLE, REJECTED)
    assert summary.rows_in == summary.rows_kept + sum(summary.rejected.values())
    assert (summary.rows_kept, summary.rejected) == (examples.num_rows, Counter(rejected["reason"].to_pylist()))
    return summary, examples.to_pylist(), rejected.to_pylist()


@pytest.fixture
def source(tmp_path: Path):
    def make(rows: list[object], file: str = "colours", **settings: Any) -> SourceConfig:
        return SourceConfig(path=str(write_jsonl(tmp_path / f"{file}.jsonl", rows)), **settings)

    return make


FULL = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "tools": "[]"}
FULL |= {"task": "sums", "group": "g1", "label": "three"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi."},
    {"role": "tool", "content": "42"},
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": "3"},
]
MAP = {"instruction": "q", "input": "x", "output": "a", "system": "s", "task": "t", "group": "g", "label": "l"}
RENAMED = {MAP.get(name, name): value for name, value in FULL.items() if name != "tools"}


@pytest.mark.parametrize("auto", [True, False], ids=["auto", "named"])
@pytest.mark.parametrize(
    ("shape", "row", "differs"),
    [
        ("alpaca", FULL, {}),
        ("prompt_completion", FULL | {"prompt": "Add.", "completion": "3", "instruction": 1, "output": 1}, {}),
        ("messages", {"messages": TURNS, "task": "sums", "group": "g1", "label": "three", "tools": "[]"},
         {"input": "", "history": TURNS[1:4]}),
        ("fields", RENAMED, {"tools": ""}),
    ],
)  # fmt: skip
def test_each_shape_fills_the_same_columns(source, shape, row, differs, auto):
    if auto:
        row = {name: value for name, value in row.items() if value != 1}
    fields = MAP if shape == "fields" else None
    chosen = shape if fields or not auto else "auto"
    summary, examples, _ = run(source([row], format=chosen, fields=fields))
    place = {"source": "colours.jsonl", "line": 1, "split": "", "history": []}
    assert [example | {"id": ""} for example in examples] == [FULL | place | differs | {"id": ""}]
    assert summary.figures == {"formats": {"colours.jsonl": shape}}


def test_auto_looks_at_all_rows_and_refuses_to_guess(source):
    two = [GOOD] * 50 + [GOOD | {"prompt": "p", "completion": "c"}]
    with pytest.raises(SourceError, match=r"colours.*fits alpaca and prompt_completion: set 'format'"):
        run(source(two))
    assert run(source(two, limit=50))[0].rows_kept == 50
    with pytest.raises(SourceError, match=r"its fields are answer, question; set 'format: fields'.*alpaca \(instr"):
        run(source([{"question": "q", "answer": "a"}]))


@pytest.mark.parametrize(
    ("shape", "row", "reason", "detail"),
    [
        ("alpaca", {"instruction": "a"}, "missing_field", "output"),
        ("alpaca", {"instruction": None, "output": "b"}, "null_field", "instruction"),
        ("alpaca", {"instruction": "a", "output": 3}, "wrong_type", "output is a number, not text"),
        ("alpaca", GOOD | {"input": ["x"]}, "wrong_type", "input is a list, not text"),
        ("alpaca", GOOD | {"label": True}, "wrong_type", "label is a truth value, not text"),
        ("prompt_completion", {"prompt": "a", "completion": {}}, "wrong_type", "completion is an object, not text"),
        ("messages", GOOD, "missing_field", "messages"),
        ("messages", {"messages": None}, "null_field", "messages"),
        ("messages", {"messages": []}, "wrong_type", "messages is empty, not a list of turns"),
        ("messages", {"messages": "hi"}, "wrong_type", "messages is text, not a list of turns"),
        ("messages", {"messages": ["hi"]}, "wrong_type", "a turn is text, not an object"),
        ("messages", {"messages": [TURNS[1], {"role": "assistant", "content": None}]}, "wrong_type", "is null"),
        ("messages", {"messages": [{"role": "bot", "content": "a"}]}, "unknown_role", "'bot'"),
        ("messages", {"messages": [{"content": "a"}]}, "unknown_role", "None"),
        ("messages", {"messages": [{"role": ["user"], "content": "a"}]}, "unknown_role", "['user']"),
        ("messages", {"messages": TURNS[:2]}, "no_assistant_turn", "the last turn is not the assistant's"),
        ("messages", {"messages": TURNS[:1]}, "no_assistant_turn", ""),
        ("messages", {"messages": TURNS[2:3]}, "no_user_turn", "the turn before the answer is not the user's"),
        ("messages", {"messages": [*TURNS[1:4], TURNS[5]]}, "no_user_turn", ""),
    ],
)
def test_a_row_without_the_shape_is_rejected_with_reason_and_place(source, shape, row, reason, detail):
    _, examples, rejected = run(source(["", row], format=shape), max_reject_ratio=1.0)
    assert examples == []
    [entry] = rejected
    assert detail in entry.pop("detail")
    assert entry == {"source": "colours.jsonl", "line": 2, "id": "", "reason": reason, "row": json.dumps(row)}


def test_too_many_bad_rows_of_one_source_stop_the_run(source):
    good, bad = source([GOOD] * 90, "good"), source([GOOD, "{broken", *[GOOD] * 7, "[]"], "bad")
    summary, _, rejected = run(good, bad, max_reject_ratio=0.2)
    assert summary.rejected == {"invalid_json": 1, "not_an_object": 1}
    assert [(row["source"], row["line"]) for row in rejected] == [("bad.jsonl", 2), ("bad.jsonl", 10)]
    with pytest.raises(SourceError) as refusal:
        run(good, bad, max_reject_ratio=0.19)
    for said in (bad.path, "2 of 10 rows are bad", "collect.max_reject_ratio = 0.19", "not_an_object 1",
                 "First: line 2: invalid_json"):  # fmt: skip
        assert said in str(refusal.value)


def test_limit_reads_only_the_first_rows(source):
    summary, examples, _ = run(source([GOOD, GOOD, "{broken"], limit=2), max_reject_ratio=0.0)
    assert (summary.rows_in, [example["line"] for example in examples]) == (2, [1, 2])


def test_a_source_without_rows_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\n")
    with pytest.raises(SourceError, match=r"a\.csv: has no rows"):
        run(SourceConfig(path=str(tmp_path / "a.csv"), format="alpaca"))


def test_equal_content_has_an_equal_id_and_keeps_its_place(source):
    first = source([GOOD, GOOD | {"output": "Other."}], "first")
    second = source(["", GOOD | {"task": "other", "group": "g"}, GOOD | {"instruction": "\nsay  IT. "}], "second")
    _, examples, _ = run(first, second, max_reject_ratio=1.0)
    a, other_output, same, other_case = examples
    assert (a["id"], a["source"], a["line"]) == (same["id"], "first.jsonl", 1)
    assert (same["source"], same["line"]) == ("second.jsonl", 2)
    assert len({a["id"], other_output["id"], other_case["id"]}) == 3
    assert a["group"] == other_output["group"] == other_case["group"]
    assert same["group"] == "g"


def test_the_most_specific_name_of_the_task_wins_and_a_split_is_bound(source):
    named = source([GOOD | {"task": "of the row"}, GOOD], "named", task="of the source", split="test")
    plain = source([GOOD], "plain", name="label")
    _, examples, _ = run(named, plain)
    assert [example["task"] for example in examples] == ["of the row", "of the source", "label"]
    assert [(example["source"], example["split"]) for example in examples] == [("named.jsonl", "test")] * 2 + [
        ("label", "")
    ]


def test_the_ledger_cuts_a_long_bad_row(source):
    _, _, rejected = run(source([GOOD, "{" + "x" * 3 * ROW_CHARS]), max_reject_ratio=1.0)
    assert len(rejected[0]["row"]) == ROW_CHARS


PIECES = [b'"', b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\t", b"\\ud800", b"\xef\xbb\xbf", b"NaN", b"1e999"]
PIECES += [b'"instruction"', b'"output"', b'"a"', b"instruction,output\n", json.dumps(GOOD).encode(), b"\0", b"\x80"]
ANY_BYTES = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=6)), max_size=40).map(b"".join)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=ANY_BYTES)
def test_any_bytes_are_refused_or_every_row_of_them_is_accounted_for(ending, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"any.{ending}")
        path.write_bytes(data)
        source = SourceConfig(path=str(path), format="alpaca")
        try:
            _, examples, rejected = run(source, max_reject_ratio=1.0, max_row_chars=60)
        except SourceError:
            return
    places = sorted(row["line"] for row in examples + rejected)
    assert len(set(places)) == len(places)
    assert all(row["reason"] for row in rejected)
    if ending == "jsonl":
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert places == [number for number, line in enumerate(lines, start=1) if line.strip()]
