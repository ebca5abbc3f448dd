"""Clean: each filter at its edge, the first failing one as the reason, and each duplicate with its original's place."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.clean import clean
from tasks.config import CleanConfig, FilterConfig
from tasks.ledger import Summary, read
from tasks.schema import EXAMPLE

TURNS = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
Rows = list[dict[str, Any]]


def example(line: int, **fields: Any) -> dict[str, Any]:
    empty = dict.fromkeys(EXAMPLE.names, "")
    return empty | {"id": f"id{line}", "source": "s", "line": line, "history": []} | fields


def run(tmp_path: Path, *shards: Rows, **config: Any) -> tuple[Summary, Rows, Rows]:
    """The summary, the examples and the rejections of the stage over the rows that collect left."""
    examples, out = tmp_path / "collect" / "examples", tmp_path / "out"
    examples.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE), examples / f"part-{number:05d}.parquet")
    summary = clean(CleanConfig(**config), {"collect": tmp_path / "collect"}, out)
    kept, rejected = read(out / "examples"), read(out / "rejected").to_pylist()
    assert kept.schema == EXAMPLE
    assert summary.rows_in == sum(map(len, shards)) == summary.rows_kept + sum(summary.rejected.values())
    assert (summary.rows_kept, summary.rejected) == (kept.num_rows, Counter(row["reason"] for row in rejected))
    return summary, kept.to_pylist(), rejected


GOOD = {"instruction": "Say it.", "output": "It."}


@pytest.mark.parametrize(
    ("name", "params", "bad", "good"),
    [
        (
            "empty",
            {},
            [GOOD | {"instruction": ""}, GOOD | {"output": " \n\t"}, GOOD | {"instruction": "\u3000"}],
            [GOOD, GOOD | {"output": "0"}, GOOD | {"input": "", "system": ""}],
        ),
        (
            "too_short",
            {"min_output_chars": 3},
            [GOOD | {"output": "ab"}, GOOD | {"output": "  ab \n"}, GOOD | {"output": "你好"}],
            [GOOD | {"output": "abc"}, GOOD | {"output": "你好吗"}, {"instruction": "", "output": "abc"}],
        ),
        (
            "too_long",
            {"max_chars": 9},
            [{"instruction": "1234", "input": "567", "output": "890"}, {"output": "é" * 10}],
            [{"instruction": "123", "input": "456", "output": "789"}, {"output": "é" * 9, "system": "x" * 99}],
        ),
        (
            "broken_text",
            {},
            [
                GOOD | {"output": "caf\ufffd"},
                GOOD | {"input": "a\x00b"},
                GOOD | {"instruction": "bell\x07"},
                GOOD | {"output": "del\x7f"},
                GOOD | {"output": "le cafÃ© est trÃ¨s bon"},
                GOOD | {"output": "donâ€™t"},
            ],
            [
                GOOD | {"output": "le café est très bon, don’t 👍🏽"},
                GOOD | {"output": "def f(x):\r\n\treturn x ** 2"},
                GOOD | {"output": "你好，世界。これは。한국어 العربية"},
            ],
        ),
    ],
)
def test_a_filter_rejects_what_lies_beyond_its_edge_and_nothing_else(tmp_path, name, params, bad, good):
    rows = [example(line, **fields) for line, fields in enumerate([*bad, *good], start=1)]
    chosen = FilterConfig(name=name, params=params)
    _, kept, rejected = run(tmp_path, rows, filters=[chosen], duplicates="keep_all")
    assert kept == rows[len(bad) :]
    assert [(row["line"], row["reason"]) for row in rejected] == [(row["line"], name) for row in rows[: len(bad)]]


@pytest.mark.parametrize("order", [["empty", "too_short", "broken_text"], ["broken_text", "too_short", "empty"]])
def test_the_first_filter_that_a_row_fails_is_the_reason(tmp_path, order):
    row = example(1, instruction="\ufffd", output="")
    summary, _, _ = run(tmp_path, [row], filters=[FilterConfig(name=name) for name in order])
    assert summary.rejected == {order[0]: 1}


SAME = [
    GOOD | {"task": "other", "group": "g", "split": "test", "source": "t"},  # what is not content
    {"instruction": "  Say\n it. ", "output": "It.\n"},  # space
    GOOD | {"instruction": "Caf\u00e9"},
    GOOD | {"instruction": "Cafe\u0301"},  # one text in two Unicode forms
    GOOD | {"history": TURNS},
    GOOD | {"history": [TURNS[0], TURNS[1] | {"content": "Hi. "}]},
]
DIFFERENT = [
    {"instruction": "Say it.", "output": "Else."},
    {"instruction": "say it.", "output": "It."},
    {"instruction": "Say", "input": "it.", "output": "It."},
    *(GOOD | {column: "x"} for column in ("system", "input", "tools", "label")),
    GOOD | {"history": TURNS[:1]},
    GOOD | {"history": [TURNS[0] | {"role": "tool"}]},
]


def test_a_duplicate_names_the_place_of_the_row_that_was_kept_also_across_batches(tmp_path):
    first = [example(line, **fields) for line, fields in enumerate([GOOD, *DIFFERENT], start=1)]
    second = [example(line, **fields) for line, fields in enumerate([*SAME, DIFFERENT[-1]], start=101)]
    _, kept, rejected = run(tmp_path, first, second)
    assert kept == [*first, second[2], second[4]]
    assert {row["line"]: row["detail"] for row in rejected} == {
        101: "s:1", 102: "s:1", 104: "s:103", 106: "s:105", 107: f"s:{len(first)}",
    }  # fmt: skip
    assert {row["reason"] for row in rejected} == {"duplicate_of"}
    assert rejected[0]["source"] == "t"


def test_keep_all_keeps_duplicates(tmp_path):
    rows = [example(line, **GOOD) for line in range(1, 4)]
    assert run(tmp_path, rows, duplicates="keep_all")[1] == rows


def test_a_row_that_a_filter_rejected_is_nobodys_original(tmp_path):
    rows = [example(1, **GOOD | {"output": "It." + " " * 50}), example(2, **GOOD)]
    filters = [FilterConfig(name="too_long", params={"max_chars": 40})]
    summary, kept, _ = run(tmp_path, rows, filters=filters)
    assert kept == rows[1:]
    assert summary.rejected == {"too_long": 1}


def test_the_ledger_holds_the_whole_rejected_row_and_nothing_kept_is_a_table_still(tmp_path):
    row = example(7, instruction="", output="It.", history=TURNS)
    _, kept, [entry] = run(tmp_path, [row])
    assert kept == []
    assert json.loads(entry.pop("row")) == row
    assert entry == {"source": "s", "line": 7, "id": "id7", "reason": "empty", "detail": ""}
