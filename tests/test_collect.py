"""Collect: every row becomes an example or has a reason, and nothing is guessed."""

import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
        assert sorted(path.name for path in Path(out).iterdir()) == ["examples", "rejected"]
    assert (examples.schema, rejected.schema) == (EXAMPLE, REJECTED)
    assert summary.rows_in == summary.rows_kept + sum(summary.rejected.values())
    assert (summary.rows_kept, summary.rejected) == (examples.num_rows, Counter(rejected["reason"].to_pylist()))
    return summary, examples.to_pylist(), rejected.to_pylist()


@pytest.fixture
def source(tmp_path: Path):
    def make(rows: list[object], file: str = "colours", **settings: Any) -> SourceConfig:
        return SourceConfig(path=str(write_jsonl(tmp_path / f"{file}.jsonl", rows)), **settings)

    return make


FULL = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "tools": ""}
FULL |= {"task": "sums", "group": "g1", "label": "three"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi."},
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
        ("messages", {"messages": TURNS, "task": "sums", "group": "g1", "label": "three"},
         {"input": "", "history": [turn | {"tool_calls": ""} for turn in TURNS[1:3]]}),
        ("fields", RENAMED, {}),
    ],
)  # fmt: skip
def test_each_shape_fills_the_same_columns(source, shape, row, differs, auto):
    if auto:
        row = {name: value for name, value in row.items() if value != 1}
    fields = MAP if shape == "fields" else None
    chosen = shape if fields or not auto else "auto"
    summary, examples, _ = run(source([row], format=chosen, fields=fields))
    place = {"source": "colours.jsonl", "file": "colours.jsonl", "line": 1, "split": ""}
    blank = {"id": "", "history": [], "tool_turns": [], "tool_calls": ""}
    assert [example | {"id": ""} for example in examples] == [blank | FULL | place | differs]
    found = summary.figures["sources"]["colours.jsonl"]
    assert (found["format"], found["rows"], found["files"]) == (shape, 1, 1)
    assert set(found["columns"]) == set(row)


def test_auto_looks_at_all_rows_and_refuses_to_guess(source):
    two = [GOOD] * 50 + [GOOD | {"prompt": "p", "completion": "c"}]
    with pytest.raises(SourceError, match=r"colours.*fits alpaca and prompt_completion: set 'format'"):
        run(source(two))
    assert run(source(two, limit=50))[0].rows_kept == 50
    with pytest.raises(SourceError, match=r"its fields are answer, frage; set 'format: fields'.*alpaca \(instr"):
        run(source([{"frage": "q", "answer": "a"}]))


def test_a_row_without_the_shape_is_rejected_with_reason_and_place(source):
    row = {"instruction": "a", "output": 3}
    _, examples, [entry] = run(source(["", row], format="alpaca"), max_reject_ratio=1.0)
    assert examples == []
    place = {"source": "colours.jsonl", "file": "colours.jsonl", "line": 2, "id": ""}
    assert entry == place | {
        "reason": "wrong_type", "detail": "output is a number, not text", "row": json.dumps(row),
    }  # fmt: skip


def test_a_field_map_that_names_what_no_row_has_is_refused(source):
    fields = {"instruction": "instruction", "output": "output", "system": "sytem"}
    with pytest.raises(
        SourceError, match=r"fields\.system: no row has a field 'sytem'; its fields are .*output, system"
    ):
        run(source([GOOD | {"system": "Be brief."}], format="fields", fields=fields))


def test_a_source_of_which_nothing_can_be_told_says_why(tmp_path, source):
    with pytest.raises(SourceError, match=r"no row of it can be read\. First: line 1: invalid_json"):
        run(source(["{broken", "{too"]))
    (tmp_path / "a.csv").write_text("instruction;output\na;b\n")
    with pytest.raises(SourceError, match=r"are its columns separated by ';'\?"):
        run(SourceConfig(path=str(tmp_path / "a.csv")))


def test_too_many_bad_rows_of_one_source_stop_the_run(source):
    good, bad = source([GOOD] * 90, "good"), source([GOOD, "{broken", *[GOOD] * 7, "[]"], "bad")
    summary, _, rejected = run(good, bad, max_reject_ratio=0.2)
    assert summary.rejected == {"invalid_json": 1, "not_an_object": 1}
    assert [(row["source"], row["line"]) for row in rejected] == [("bad.jsonl", 2), ("bad.jsonl", 10)]
    with pytest.raises(SourceError) as refusal:
        run(good, bad, max_reject_ratio=0.19)
    for said in (bad.label, "2 of 10 rows are bad", "collect.max_reject_ratio = 0.19", "not_an_object 1",
                 "First: bad.jsonl:2: invalid_json"):  # fmt: skip
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
    spaces = run(source([GOOD, GOOD | {"instruction": "Say  it."}], "spaces"))[1]
    assert (len({row["id"] for row in spaces}), len({row["group"] for row in spaces})) == (2, 1)
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
            _, examples, rejected = run(source, max_reject_ratio=1.0, max_row_bytes=60)
        except SourceError:
            return
    places = sorted(row["line"] for row in examples + rejected)
    assert len(set(places)) == len(places)
    assert all(row["reason"] for row in rejected)
    if ending == "jsonl":
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert places == [number for number, line in enumerate(lines, start=1) if line.strip()]


def test_an_array_that_breaks_off_stops_the_run_however_few_rows_that_is(tmp_path):
    text = json.dumps([GOOD] * 200)
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    with pytest.raises(SourceError, match=r"cut\.json:101: the JSON array is broken"):
        run(SourceConfig(path=str(tmp_path / "cut.json")))


@pytest.mark.parametrize("path", ["s3://user:secret@bucket/a.jsonl", "https://host/a.jsonl?token=secret"])
def test_a_path_with_a_secret_is_refused(path):
    with pytest.raises(ValueError, match="give it in the environment") as refusal:
        SourceConfig(path=path)
    assert "secret" not in str(refusal.value)


def test_nulls_that_only_arrow_put_there_are_not_learnt(tmp_path):
    calls = [{"name": "f", "arguments": {"city": "Bern"}}, {"name": "f", "arguments": {"unit": "m"}}]
    rows = [
        {"messages": [{"role": "user", "content": "Do."}, {"role": "assistant", "tool_calls": [
            {"type": "function", "function": call}]}]} for call in calls
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "calls.parquet")
    _, examples, _ = run(SourceConfig(path=str(tmp_path / "calls.parquet")))
    assert [json.loads(row["tool_calls"]) for row in examples] == [[call] for call in calls]


def test_a_folder_keeps_the_place_of_every_row(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write_jsonl(tmp_path / "in" / "b.jsonl", [GOOD, "{broken"])
    write_jsonl(tmp_path / "in" / "deep" / "a.jsonl", [GOOD])
    _, examples, rejected = run(SourceConfig(path=str(tmp_path / "in")), max_reject_ratio=0.5)
    assert [(row["source"], row["file"], row["line"]) for row in examples] == [
        ("in", "b.jsonl", 1), ("in", "deep/a.jsonl", 1),
    ]  # fmt: skip
    assert [(row["source"], row["file"], row["line"]) for row in rejected] == [("in", "b.jsonl", 2)]


def test_many_files_are_read_in_parts_and_the_rows_are_the_same(tmp_path, monkeypatch):
    for number in range(7):
        write_jsonl(tmp_path / f"{number}.jsonl", [GOOD | {"input": str(number)}] * 3)
    source = SourceConfig(path=str(tmp_path / "*.jsonl"), name="numbers")
    whole = run(source)
    monkeypatch.setattr("tasks.collect.PART_BYTES", 300)
    parts = run(source)
    assert whole[1:] == parts[1:] and whole[0] == parts[0]
    assert [row["input"] for row in run(source.model_copy(update={"limit": 8}))[1]] == list("00011122")


def test_the_columns_of_a_source_are_noted_with_their_kinds(source):
    rows = [GOOD | {"input": None}, GOOD | {"extra": 3}, GOOD | {"extra": [1]}, GOOD]
    found = run(source(rows))[0].figures["sources"]["colours.jsonl"]
    assert found["columns"] == {
        "extra": ["a list", "a number"], "input": [], "instruction": ["text"], "output": ["text"],
    }  # fmt: skip


def test_the_columns_of_all_files_of_a_source_are_noted_however_they_are_read(tmp_path, monkeypatch):
    for number, more in enumerate(({"a": 1}, {"a": "text", "b": [1]}, {"a": None})):
        write_jsonl(tmp_path / f"{number}.jsonl", [GOOD | more])
    source = SourceConfig(path=str(tmp_path / "*.jsonl"), name="all", format="alpaca")
    whole = run(source)[0].figures["sources"]["all"]
    monkeypatch.setattr("tasks.collect.PART_BYTES", 1)
    monkeypatch.setattr("tasks.collect.BATCH_ROWS", 1)
    assert run(source)[0].figures["sources"]["all"] == whole
    assert (whole["columns"]["a"], whole["columns"]["b"], whole["files"]) == (["a number", "text"], ["a list"], 3)


MIX = {"instruction": "i", "output": "o"}


def tasks_of(rows: Rows) -> Counter[str]:
    return Counter(row["task"] for row in rows)


def test_max_per_task_keeps_the_same_rows_every_time_and_most_of_them_when_data_grows(source):
    rows = [MIX | {"input": str(n), "task": "ab"[n % 10 == 0]} for n in range(1000)]
    summary, first, rejected = run(source(rows), max_per_task=150)
    assert tasks_of(first) == {"a": 150, "b": 100}
    assert summary.rejected == {"over_max_per_task": 750}
    assert rejected[0]["detail"] == "task a: 150 rows"
    assert run(source(rows), max_per_task=150)[1] == first
    other = run(source(rows), max_per_task=150, seed=1)[1]
    assert len({row["line"] for row in first} & {row["line"] for row in other}) < 200
    grown = run(source(rows + [MIX | {"input": "new", "task": "a"}] * 100), max_per_task=150)[1]
    assert len({row["line"] for row in first} & {row["line"] for row in grown}) > 220
    shifted = run(source([MIX | {"input": "new", "task": "a"}, *rows]), max_per_task=150)[1]
    assert len({row["input"] for row in first} & {row["input"] for row in shifted}) >= 248
    alike = run(source([MIX | {"task": "a"}] * 400), max_per_task=150)[1]
    assert len(alike) == 150, "equal rows are told apart by their place"


def test_weights_give_the_largest_mix_of_their_proportions(source):
    sources = [
        source([MIX | {"input": f"{name}{n}"} for n in range(size)], name, weight=weight)
        for name, size, weight in (("small", 100, 1.0), ("large", 1000, 3.0), ("free", 50, None))
    ]
    summary, examples, _ = run(*sources)
    assert tasks_of(examples) == {"small.jsonl": 100, "large.jsonl": 300, "free.jsonl": 50}
    assert summary.rejected == {"over_weight": 700}


def test_a_held_out_source_has_no_weight_in_the_mix(source):
    with pytest.raises(ValueError, match="a source bound to validation or test has none"):
        source([MIX], split="test", weight=1.0)


def test_caps_come_before_weights_and_held_out_sources_are_left_alone(source):
    learnt = source([MIX | {"input": f"l{n}", "task": "t"} for n in range(100)], "learnt", weight=1.0)
    other = source([MIX | {"input": f"o{n}", "task": "u"} for n in range(100)], "other", weight=2.0)
    held_out = source([MIX | {"input": f"h{n}", "task": "t"} for n in range(100)], "held_out", split="test")
    _, examples, _ = run(learnt, other, held_out, max_per_task=30)
    assert Counter(row["source"] for row in examples) == {
        "learnt.jsonl": 15, "other.jsonl": 30, "held_out.jsonl": 100,
    }  # fmt: skip


def damaged(rng: random.Random) -> bytes:
    """One malformed line: a good row with an accident, or what looks like a row."""
    good = json.dumps(GOOD | {"input": "é" * rng.randrange(4)}, ensure_ascii=False).encode()
    at = rng.randrange(1, len(good))
    accidents = [
        good[:at],
        good[:at] + good[at + 1 :],
        good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :],
        good[:at] + rng.randbytes(rng.randrange(1, 4)) + good[at:],
        good[:-1] + b', "output": "again"}',
        good[:-1] + b', "n": ' + rng.choice([b"NaN", b"-Infinity", b"1e999", b"9" * 5000]) + b"}",
        good[:-1] + b', "n": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        good.replace(b"Say", rng.choice([b"\\ud800", b"\\u0000", b"\x00", b"\xff\xfe", b"\xed\xa0\x80"])),
        json.dumps(GOOD | {rng.choice(["instruction", "output"]): rng.choice([None, 1, True, [], {}])}).encode(),
        rng.choice([b"null", b"[]", b"3", b'"text"', b"{}", b"{", b"\xef\xbb\xbf{}", b"=" * 2000]),
    ]
    return rng.choice(accidents).replace(b"\n", b" ").replace(b"\r", b" ")


def test_of_ten_thousand_malformed_rows_every_one_is_accounted_for_and_no_good_one_is_lost(tmp_path):
    rng = random.Random(0)  # noqa: S311
    good = json.dumps(GOOD).encode()
    (tmp_path / "in").mkdir()
    expected = []
    for number in range(30):
        lines = [line for _ in range(550) for line in (damaged(rng), good)]
        (tmp_path / "in" / f"{number:02d}.jsonl").write_bytes(b"\n".join(lines))
        expected += [(f"{number:02d}.jsonl", at) for at, line in enumerate(lines, start=1) if line.strip()]
    source = SourceConfig(path=str(tmp_path / "in"), format="alpaca")
    summary, examples, rejected = run(source, max_reject_ratio=1.0, max_row_bytes=20_000)
    places = [(row["file"], row["line"]) for row in [*examples, *rejected]]
    assert sorted(places) == expected and summary.rows_in == len(expected)
    survivors = [row for row in examples if row["line"] % 2 == 0]
    assert len(survivors) == 16_500 and {(row["instruction"], row["output"]) for row in survivors} == {
        ("Say it.", "It.")
    }
    assert len(rejected) > 10_000 and len(summary.rejected) >= 12


def test_rows_that_a_source_binds_to_train_are_in_the_mix(source):
    bound = source([MIX | {"input": f"b{n}", "task": "t"} for n in range(100)], "bound", weight=1.0, split="train")
    free = source([MIX | {"input": f"f{n}", "task": "u"} for n in range(100)], "free", weight=4.0)
    _, examples, _ = run(bound, free, max_per_task=80)
    assert Counter(row["source"] for row in examples) == {"bound.jsonl": 20, "free.jsonl": 80}


def test_rows_on_the_same_line_of_two_sources_are_chosen_apart(source):
    rows = [[MIX | {"input": f"{name}{n}", "task": "t"} for n in range(100)] for name in "ab"]
    _, examples, _ = run(source(rows[0], "a"), source(rows[1], "b"), max_per_task=51)
    assert len(examples) == 51
    lines = {name: {row["line"] for row in examples if row["source"] == f"{name}.jsonl"} for name in "ab"}
    assert lines["a"] != lines["b"]


def test_bad_rows_of_a_source_that_is_sampled_stay_in_the_ledger(source):
    rows = [MIX | {"input": str(n)} for n in range(40)]
    summary, examples, _ = run(source([*rows, "{broken"], name="s"), max_per_task=10)
    assert summary.rejected == {"invalid_json": 1, "over_max_per_task": 30} and len(examples) == 10
    assert summary.funnel == {"s": {"rows_in": 41, "invalid_json": 1, "over_max_per_task": 30}}
