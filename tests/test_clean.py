"""Clean: texts repaired and shown, the first failing filter as the reason, each double with the row that stays."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import ledger
from tasks.clean import clean
from tasks.config import CleanConfig, FilterConfig
from tasks.duplicates import equal_rows
from tasks.ledger import Summary, read
from tasks.schema import EXAMPLE
from tasks.texts import CONTENT, PROMPT, hashes

TURNS = [
    {"role": "user", "content": "Hello.", "tool_calls": ""},
    {"role": "assistant", "content": "Hi.", "tool_calls": ""},
]
Rows = list[dict[str, Any]]


def example(line: int, **fields: Any) -> dict[str, Any]:
    empty = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []}
    return empty | {"id": f"{line:016x}", "source": "s", "file": "s", "line": line} | fields


def run(tmp_path: Path, *shards: Rows, **config: Any) -> tuple[Summary, Rows, Rows]:
    """The summary, the examples and the rejections of the stage over the rows that collect left."""
    examples, out = tmp_path / "collect" / "examples", tmp_path / "out"
    for folder in (examples, out):
        shutil.rmtree(folder, ignore_errors=True)
    examples.mkdir(parents=True)
    for number, rows in enumerate(shards):
        pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE), examples / f"part-{number:05d}.parquet")
    summary = clean(CleanConfig(**config), {"collect": tmp_path / "collect"}, out)
    kept, rejected = read(out / "examples"), read(out / "rejected").to_pylist()
    assert kept.schema == EXAMPLE
    assert summary.rows_in == sum(map(len, shards)) == summary.rows_kept + sum(summary.rejected.values())
    assert (summary.rows_kept, summary.rejected) == (kept.num_rows, Counter(row["reason"] for row in rejected))
    assert sum(counts["rows_in"] for counts in summary.funnel.values()) == summary.rows_in
    assert sorted(path.name for path in out.iterdir()) == ["examples", "rejected", "repaired"]
    return summary, kept.to_pylist(), rejected


GOOD = {"instruction": "Say it.", "output": "It."}
ALONE = {"near_duplicates": {"policy": "keep_all"}}
"""Texts of a few words are soon near-duplicates."""


@pytest.mark.parametrize("order", [["empty", "too_short", "broken_text"], ["broken_text", "too_short", "empty"]])
def test_the_first_filter_that_a_row_fails_is_the_reason(tmp_path, order):
    row = example(1, instruction="\ufffd", output="")
    summary, _, _ = run(tmp_path, [row], filters=[FilterConfig(name=name) for name in order])
    assert summary.rejected == {order[0]: 1}


SAME = [
    GOOD | {"task": "other", "group": "g", "split": "test", "source": "t", "file": "t"},  # what is not content
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
    _, kept, rejected = run(tmp_path, first, second, repairs=[], **ALONE)
    assert kept == [*first, second[2], second[4]]
    assert {row["line"]: row["detail"] for row in rejected} == {
        101: "s:1", 102: "s:1", 104: "s:103", 106: "s:105", 107: f"s:{len(first)}",
    }  # fmt: skip
    assert {row["reason"] for row in rejected} == {"duplicate_of"}
    assert rejected[0]["source"] == "t"


def test_keep_all_keeps_duplicates(tmp_path):
    rows = [example(line, **GOOD) for line in range(1, 4)]
    assert run(tmp_path, rows, duplicates="keep_all", conflicts="drop_all")[1] == rows


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
    assert json.loads(entry.pop("row")) == {"history": TURNS, "output": "It."}
    assert entry == {"source": "s", "line": 7, "file": "s", "id": f"{7:016x}", "reason": "empty"} | {
        "detail": "instruction"
    }


LONG = " ".join(f"word{number}" for number in range(200))


def doubles(*outputs: str, **fields: str) -> Rows:
    return [
        example(line, instruction="Say it.", output=output, **fields) for line, output in enumerate(outputs, start=1)
    ]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("keep_first", [1, 4]), ("keep_longest", [2, 4]), ("drop_all", [4]), ("keep_all", [1, 2, 3, 4])],
)
@pytest.mark.parametrize("test", ["conflicts", "near_duplicates"])
def test_a_policy_says_which_of_several_stay(tmp_path, test, policy, kept):
    outputs = {"conflicts": ["b", "ccc", "dd"], "near_duplicates": [LONG, f"{LONG} and some", f"{LONG} more"]}[test]
    rows = [*doubles(*outputs), example(4, instruction="Say something else.", output="quite different from all others")]
    chosen = {"conflicts": policy, **ALONE} if test == "conflicts" else {"near_duplicates": {"policy": policy}}
    summary, found, rejected = run(tmp_path, rows[:2], rows[2:], **chosen)
    assert [row["line"] for row in found] == kept
    assert summary.figures[test] == 2, "what was found is told whatever the policy does"
    reason = {"conflicts": "conflicts_with", "near_duplicates": "near_duplicate_of"}[test]
    assert {row["reason"] for row in rejected} <= {reason}
    for row in rejected:
        other = int(row["detail"].split()[0].removeprefix("s:"))
        assert other != row["line"] and (other in kept or policy == "drop_all")
        assert ("Jaccard similarity" in row["detail"]) == (test == "near_duplicates")


def test_equal_rows_with_drop_all_go_together(tmp_path):
    rows = [example(line, **GOOD) for line in (1, 2, 3)]
    rejected = run(tmp_path, rows, duplicates="drop_all")[2]
    assert {row["line"]: row["detail"] for row in rejected} == {1: "s:2", 2: "s:1", 3: "s:1"}


def test_copies_that_stay_share_the_fate_of_the_first_of_them(tmp_path):
    """duplicates: keep_all must not be a way around the other two policies."""
    rows = doubles("a", "b", "b", "b")
    kept = run(tmp_path, rows, duplicates="keep_all", conflicts="keep_first", **ALONE)[1]
    assert [row["line"] for row in kept] == [1]
    kept = run(tmp_path, doubles("a", "a", "b"), duplicates="keep_all", conflicts="drop_all", **ALONE)[1]
    assert kept == []


def test_other_questions_about_one_long_passage_are_no_duplicates(tmp_path):
    rows = [
        example(1, instruction="Who founded the town?", input=LONG, output="A miller and his three sons did."),
        example(2, instruction="How many people lived there in 1900?", input=LONG, output="About four thousand."),
        example(3, instruction="Who founded the town?", input=LONG, output="A miller and his three sons did so."),
    ]
    kept = run(tmp_path, rows)[1]
    assert [row["line"] for row in kept] == [1, 2]
    strict = {"near_duplicates": {"asked_threshold": 0.0}}
    assert [row["line"] for row in run(tmp_path, rows, **strict)[1]] == [1]


def test_another_answer_about_one_long_passage_is_no_duplicate(tmp_path):
    answers = ("A miller and his three sons did.", "Nobody has ever found out who it could have been.")
    rows = [
        example(line, instruction="Who founded the town?", input=LONG, output=answer)
        for line, answer in enumerate(answers, start=1)
    ]
    assert run(tmp_path, rows)[1] == rows


@pytest.mark.parametrize("column", ["history", "tool_turns", "tool_calls"])
def test_what_was_said_before_the_answer_makes_rows_different(tmp_path, column):
    other = " ".join(f"other{number}" for number in range(200))
    said = {"tool_calls": lambda text: text}.get(column, lambda text: [TURNS[0] | {"content": text}])
    rows = [
        example(line, instruction="And now?", output="Go on.", **{column: said(text)})
        for line, text in enumerate((LONG, other, f"{LONG} more"), start=1)
    ]
    chosen = {"repairs": [], "filters": [], "near_duplicates": {"asked_threshold": 0.0}}
    assert [row["line"] for row in run(tmp_path, rows, **chosen)[1]] == [1, 2]


@pytest.mark.parametrize("text", [" Say it.", "Say  it.", "Say it. ", "Say\tit.", "Say\nit.", "Say\u00a0it."])
def test_each_kind_of_space_counts_as_one_or_none(text):
    table = pa.Table.from_pylist([example(1, instruction="Say it."), example(2, instruction=text)], schema=EXAMPLE)
    one, other = hashes(table, PROMPT, normalise=True)
    assert one == other
    one, other = hashes(table, PROMPT, normalise=False)
    assert one != other


@pytest.mark.parametrize("column", ["tool_calls", "label", "output"])
def test_an_answer_is_its_text_its_calls_and_its_label(column):
    table = pa.Table.from_pylist([example(1), example(1, **{column: "x"})], schema=EXAMPLE)
    assert len(set(hashes(table, CONTENT, normalise=True))) == 2
    assert len(set(hashes(table, PROMPT, normalise=True))) == 1


def test_a_repaired_text_is_kept_repaired_counted_and_shown(tmp_path):
    turn = {"role": "user", "content": "zero\u200bwidth", "tool_calls": ""}
    rows = [
        example(1, instruction="sch\u00c3\u00b6n", output="gut"),
        example(2, instruction="Say it.", output="soft\u200b space", history=[turn]),
        example(3, **GOOD),
    ]
    summary, kept, rejected = run(tmp_path, rows)
    assert [(row["instruction"], row["output"]) for row in kept] == [
        ("sch\u00f6n", "gut"), ("Say it.", "soft space"), ("Say it.", "It."),
    ]  # fmt: skip
    assert kept[1]["history"] == [turn | {"content": "zerowidth"}]
    assert summary.figures["repaired"] == {"fix_text": 1, "remove_invisible": 2}
    shown = read(tmp_path / "out" / "repaired").to_pylist()
    assert [(row["line"], row["repair"], row["column"], row["before"], row["after"]) for row in shown][:2] == [
        (1, "fix_text", "instruction", "sch\u00c3\u00b6n", "sch\u00f6n"),
        (2, "remove_invisible", "output", "soft\u200b space", "soft space"),
    ]
    assert rejected == []


def test_the_profile_counts_every_row_before_and_after(tmp_path):
    rows = [example(line, instruction="Say it.", output="x" * line, task=f"t{line % 40}") for line in range(1, 200)]
    summary, kept, _ = run(tmp_path, rows, filters=[{"name": "too_long", "params": {"max_output_chars": 99}}], **ALONE)
    before, after = summary.figures["before"], summary.figures["after"]
    for name in ("tasks", "prompt_chars", "answer_chars"):
        assert sum(before[name].values()) == 199 and sum(after[name].values()) == len(kept) == 99
    assert before["answer_chars"] == {"2": 1, "4": 2, "8": 4, "16": 8, "32": 16, "64": 32, "128": 64, "256": 72}
    assert "(other)" in before["tasks"]


def test_a_row_that_is_gone_takes_no_other_row_with_it(tmp_path):
    """Each test looks only at the rows that the tests before it left."""
    kept = run(tmp_path, doubles("a", "a", "b"), duplicates="drop_all", conflicts="keep_first", **ALONE)[1]
    assert [row["line"] for row in kept] == [3]
    rows = [*doubles("yes", LONG), example(3, instruction="Please say it.", output=LONG)]
    kept = run(tmp_path, rows, conflicts="keep_first")[1]
    assert [row["line"] for row in kept] == [1, 3]


def test_the_first_reason_of_a_row_stands(tmp_path):
    rejected = run(tmp_path, doubles("a", "b", "b"), conflicts="keep_first", **ALONE)[2]
    assert {row["line"]: (row["reason"], row["detail"]) for row in rejected} == {
        2: ("conflicts_with", "s:1"), 3: ("duplicate_of", "s:2"),
    }  # fmt: skip


def test_prompts_that_differ_in_spaces_contradict_each_other_and_prompts_that_differ_in_a_column_do_not(tmp_path):
    rows = [example(1, instruction="Say it.", output="a"), example(2, instruction=" Say  it. ", output="b")]
    other = {"system": "x", "history": TURNS, "input": "x", "tool_turns": TURNS, "tools": "x"}
    rows += [
        example(line, instruction="Say it.", output=f"c{line}", **{column: value})
        for line, (column, value) in enumerate(other.items(), start=3)
    ]
    summary, kept, _ = run(tmp_path, rows, conflicts="keep_first", **ALONE)
    assert [row["line"] for row in kept] == [1, 3, 4, 5, 6, 7]
    assert summary.figures["conflicts"] == 1


def test_what_is_found_equal_is_told_whatever_the_policy_does(tmp_path):
    for policy in ("keep_first", "keep_longest", "drop_all", "keep_all"):
        assert run(tmp_path, doubles("a", "a", "a", "b"), duplicates=policy, **ALONE)[0].figures["duplicates"] == 2


def test_rows_are_equal_when_both_halves_of_their_hash_are():
    halves = np.array([[1, 1], [1, 2], [2, 1], [1, 1], [2, 1]], np.uint64)
    assert equal_rows(halves, np.arange(5), np.ones(5, bool)).tolist() == [-1, -1, -1, 0, 2]
    assert equal_rows(halves, np.arange(5)[::-1], np.arange(5) != 4).tolist() == [3, -1, -1, -1, -1]


def test_copies_of_a_near_duplicate_share_its_fate_and_name_the_row_that_stays(tmp_path):
    rows = doubles(LONG, f"{LONG} more", f"{LONG} more")
    _, kept, rejected = run(tmp_path, rows, duplicates="keep_all")
    assert [row["line"] for row in kept] == [1]
    assert [(row["line"], row["detail"].split()[0]) for row in rejected] == [(2, "s:1"), (3, "s:1")]


@pytest.mark.parametrize("test", ["duplicates", "conflicts", "near_duplicates"])
def test_of_equally_long_answers_the_first_stays(tmp_path, test):
    outputs = {"duplicates": ["aa", "aa"], "conflicts": ["aa", "bb"], "near_duplicates": [f"{LONG} x", f"{LONG} y"]}
    policy = {"policy": "keep_longest"} if test == "near_duplicates" else "keep_longest"
    kept = run(tmp_path, doubles(*outputs[test]), **({} if test == "near_duplicates" else ALONE) | {test: policy})[1]
    assert [row["line"] for row in kept] == [1]


def test_the_largest_clusters_are_shown_with_the_rows_that_stand_for_them(tmp_path):
    texts = {name: " ".join(f"{name}{number}" for number in range(60)) for name in "abcdefghijkl"}
    sizes = {name: 2 + (name == "c") + 2 * (name == "l") for name in texts}
    rows = []
    for name, text in texts.items():
        for number in range(sizes[name]):
            rows.append(example(len(rows) + 1, instruction="Say it.", output=f"{text} {number}"))
    figures = run(tmp_path, rows[:9], rows[9:])[0].figures
    first = {name: next(row["line"] for row in rows if row["output"].startswith(f"{name}0 ")) for name in texts}
    assert [(each["rows"], each["place"]) for each in figures["clusters"]] == [
        (sizes[name], f"s:{first[name]}") for name in "lcabdefghi"
    ]
    assert figures["clusters"][0]["text"].split()[:4] == ["Say", "it.", "l0", "l1"]
    assert figures["near_duplicates"] == sum(sizes.values()) - len(texts)


@pytest.mark.parametrize("column", ["history", "tool_turns"])
def test_turns_are_repaired_and_filtered_like_other_texts(tmp_path, column):
    turns = [TURNS[0] | {"content": "zero\u200bwidth"}, TURNS[1]]
    told = [TURNS[0] | {"content": "Write to ann.miller@gmail.com."}]
    rows = [
        example(1, **GOOD),
        example(2, instruction="Say this.", output="This.", **{column: turns}),
        example(3, instruction="Write.", output="Done.", **{column: told}),
    ]
    fixed = [turns[0] | {"content": "zerowidth"}, TURNS[1]]
    summary, kept, rejected = run(tmp_path, rows, filters=[FilterConfig(name="personal_data")], **ALONE)
    assert [(row["line"], row[column]) for row in kept] == [(1, []), (2, fixed)]
    assert [(row["line"], row["reason"]) for row in rejected] == [(3, "personal_data")]
    [shown] = read(tmp_path / "out" / "repaired").to_pylist()
    assert (shown["line"], shown["id"], shown["column"]) == (2, f"{2:016x}", column)
    assert json.loads(shown["before"]) == turns and summary.figures["repaired"] == {"remove_invisible": 1}


def test_all_repairs_are_counted_and_the_first_of_each_shard_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.clean.REPAIRED_SAMPLES", 2)
    texts = [f"soft\u200b {number}" if number % 2 else f"plain {number}" for number in range(12)]
    rows = [example(line, instruction="Say it.", output=text) for line, text in enumerate(texts)]
    summary = run(tmp_path, rows[:8], rows[8:], **ALONE)[0]
    assert summary.figures["repaired"] == {"remove_invisible": 6}
    assert [row["line"] for row in read(tmp_path / "out" / "repaired").to_pylist()] == [1, 3, 9, 11]


def test_the_profile_after_holds_only_rows_that_stay(tmp_path):
    rows = [*doubles("a", "a", "b", task="t"), example(4, instruction="", output="c", task="t")]
    figures = run(tmp_path, rows, conflicts="keep_first", filters=[FilterConfig(name="empty")], **ALONE)[0].figures
    assert (figures["before"]["tasks"], figures["after"]["tasks"]) == ({"t": 4}, {"t": 1})


def test_rows_read_in_small_batches_go_where_they_went_before(tmp_path, monkeypatch):
    rows = [
        example(line, instruction=f"Say {line % 40}.", output=f"It is {line % 60}." if line % 11 else "")
        for line in range(1, 200)
    ]
    chosen = {"conflicts": "keep_first", "filters": [FilterConfig(name="empty")]} | ALONE
    whole = run(tmp_path, rows[:90], rows[90:], **chosen)
    monkeypatch.setitem(ledger.batches.__kwdefaults__, "rows", 7)
    assert run(tmp_path, rows[:90], rows[90:], **chosen) == whole
    assert set(whole[0].rejected) == {"empty", "duplicate_of", "conflicts_with"}


def test_the_profile_adds_shards_up_and_counts_characters_of_the_whole_prompt(tmp_path):
    def rows(first: int, tasks: str, output: str) -> Rows:
        return [
            example(line, instruction=f"a{line}", input="cdef", output=output, task=task)
            for line, task in enumerate(tasks, start=first)
        ]

    texts = {"ä" * 3: rows(1, "ab", "ä" * 3), "x" * 9: rows(3, "bbcb", "x" * 9), "y": rows(7, "a", "y")}
    unasked = [row | {"id": f"0001{row['id'][4:]}"} for row in texts["y"]]
    figures = run(tmp_path, texts["ä" * 3], texts["x" * 9], unasked, filters=[], repairs=[], **ALONE)[0].figures
    assert figures["before"] == figures["after"]
    assert list(figures["after"]["tasks"].items()) == [("b", 4), ("a", 2), ("c", 1)]
    assert figures["after"]["prompt_chars"] == {"8": 7}
    assert list(figures["after"]["answer_chars"].items()) == [("2", 1), ("4", 2), ("16", 4)]
    assert sum(figures["after"]["languages"].values()) == 6, "a sample by id: one row is not asked"
