"""Readers of raw files: right places, a reason for each bad row, and a plain refusal of a wrong file."""

import datetime
import decimal
import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import HubDataset, SourceConfig
from tasks.errors import SourceError
from tasks.sources import digest, files, read_rows
from tasks.sources.row import TEXT_CHARS, Row

ROW = {"instruction": "Say, twice:", "output": 'a\n"b"'}
CAP = 200
LINE = json.dumps(ROW).encode()
BOM = b"\xef\xbb\xbf"
ROW_AS_CSV = b'"Say, twice:","a\n""b"""\n'


def rows_of(path: Path | str, max_row_bytes: int = CAP) -> list[Row]:
    """The rows of all files of a source, in the order of the files."""
    source = SourceConfig(path=str(path))
    return [row for file in files(source) for row in read_rows(source, file, max_row_bytes)]


def names_of(path: Path | str) -> list[str]:
    return [file.name for file in files(SourceConfig(path=str(path)))]


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue().to_pybytes()


WHOLE = parquet({"instruction": ["Say, twice:"] * 2000, "output": ['a\n"b"'] * 2000})


@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("a.jsonl", LINE + b"\n" + LINE + b"\n", [1, 2]),
        ("a.jsonl", b"\n" * 5000 + LINE + b"\n  \n" + LINE, [5001, 5003]),
        ("a.JSONL", BOM + LINE + b"\r\n\r\n" + LINE + b"\r\n", [1, 3]),
        ("a.jsonl", LINE + b"\n" + LINE + b"\r\n\t\n" + LINE, [1, 2, 4]),
        ("a.json", LINE + b"\n" + LINE + b"\n", [1, 2]),
        ("a.json", BOM + b"[" + LINE + b",\n\n" + LINE + b"]\n", [1, 2]),
        ("a.json", json.dumps([ROW, ROW], indent=2).replace("\n", "\r\n").encode(), [1, 2]),
        ("a.csv", b"instruction,output\n" + ROW_AS_CSV * 2, [2, 4]),
        ("a.csv", BOM + b"\ninstruction,output\n" + ROW_AS_CSV + b"\n" + ROW_AS_CSV, [3, 6]),
        ("a.csv", b'"instruction","output"\r\n' + ROW_AS_CSV.replace(b'""\n', b'""\r\n') * 2, [2, 4]),
        ("a.csv", b"instruction,output\r" + ROW_AS_CSV[:-1] + b"\r" + ROW_AS_CSV[:-1], [2, 4]),
        ("a.tsv", b'instruction\toutput\nSay, twice:\t"a\n""b"""\n', [2]),
        ("a.parquet", WHOLE, range(1, 2001)),
    ],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst", ".GZ"])
def test_every_kind_of_file_gives_the_same_rows_with_their_places(tmp_path, name, data, places, compression):
    stored = {"": bytes, ".gz": gz, ".zst": zstd}[compression.lower()](data)
    rows = rows_of(written(tmp_path / (name + compression), stored))
    assert [row.line for row in rows] == list(places)
    assert all(row.value == ROW for row in rows)
    assert all(row.shown and row.text in {row.shown, ""} for row in rows)


TEXTS = {"instruction": "Übersetze: 日本 😀", "output": "eins\u2028zwei\u0085drei\u2029vier\x0bfünf"}
AS_JSONL = json.dumps(TEXTS, ensure_ascii=False)
AS_FILE = {
    ".jsonl": f"{AS_JSONL}\r\n{AS_JSONL}",
    ".json": f"[{AS_JSONL},\r\n{AS_JSONL}]",
    ".csv": "instruction,output\r\n" + f'{TEXTS["instruction"]},"{TEXTS["output"]}"\r\n' * 2,
    ".tsv": "instruction\toutput\r\n" + "\t".join(TEXTS.values()) + "\r\n" + "\t".join(TEXTS.values()),
}


@pytest.mark.parametrize("ending", AS_FILE)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_is_read_in_any_encoding_that_says_what_it_is(tmp_path, monkeypatch, ending, encoding):
    """Chunks of three bytes part every character and every line end somewhere."""
    monkeypatch.setattr("tasks.sources.stream.CHUNK_BYTES", 3)
    mark = "\ufeff" if encoding in {"utf-16-le", "utf-16-be"} else ""
    rows = rows_of(written(tmp_path / f"a{ending}", (mark + AS_FILE[ending]).encode(encoding)))
    assert [row.value for row in rows] == [TEXTS, TEXTS]
    assert [row.line for row in rows] == ([2, 3] if ending in {".csv", ".tsv"} else [1, 2])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_latin_1_is_not_guessed(tmp_path, name):
    line = {"a.jsonl": '{"a": "é"}\n{"a": "e"}\n', "a.csv": "a\né\ne\n"}[name].encode("latin-1")
    assert [row.reason for row in rows_of(written(tmp_path / name, line))] == ["invalid_utf8", ""]


@pytest.mark.parametrize("byte_order", ["le", "be"])
def test_half_a_pair_and_half_a_character_in_utf_16_cost_their_row_alone(tmp_path, byte_order):
    text = '\ufeff{"a": "\ud83d"}\n{"a": 1}\n{"a": 2'
    data = text.encode(f"utf-16-{byte_order}", "surrogatepass") + b"}"
    rows = rows_of(written(tmp_path / "a.jsonl", data))
    assert [row.reason for row in rows] == ["lone_surrogate", "", "invalid_utf8"]
    assert [row.reason for row in rows_of(written(tmp_path / "b.jsonl", text[1:].encode("utf-16-le", "surrogatepass")))]


DEEP = b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}"
BAD_JSON = {
    b"{broken": "invalid_json",
    b'{"a": 1} {"b": 2}': "invalid_json",
    b'{"a": 01}': "invalid_json",
    b'{"a": "\t"}': "invalid_json",
    b'{"a": 1}\x0c': "invalid_json",
    b"\xc2\xa0": "invalid_json",
    b"\xef\xbb\xbf" * 2 + b"{}": "invalid_json",
    b'["a"]': "not_an_object",
    b"null": "not_an_object",
    b'"text"': "not_an_object",
    b'{"a": NaN}': "not_a_finite_number",
    b'{"a": [-Infinity]}': "not_a_finite_number",
    b'{"a": 1e999}': "not_a_finite_number",
    b'{"a": -1.5E+400}': "not_a_finite_number",
    b'{"a": 1, "a": 2}': "duplicate_key",
    b'{"b": {"\\ud800": 1, "\\ud800": 2}}': "duplicate_key",
    b'{"a": "\xff"}': "invalid_utf8",
    b'{"a": "\xc0\xaf"}': "invalid_utf8",
    b'{"a": "\xed\xa0\xbd"}': "lone_surrogate",
    b'{"a": "\\ud83d"}': "lone_surrogate",
    b'{"a": {"\\uDE00": 1}}': "lone_surrogate",
    b'{"a": "\0"}': "nul_character",
    b'\0{"a": 1}': "nul_character",
    b'{"a": ["x\\u0000"]}': "nul_character",
    b'{"a\\u0000": 1}': "nul_character",
    b'{"a": "' + b"x" * CAP + b'"}': "too_long_row",
    b" " * CAP + b"{}": "too_long_row",
    b"x" * 100 * CAP: "too_long_row",
}
LONG_JSON = {
    b'{"a": ' + b"7" * 5000 + b"}": "number_too_long",
    b'{"a": -0.' + b"7" * 5000 + b"}": "number_too_long",
    b'{"a": 1e' + b"7" * 5000 + b"}": "number_too_long",
    b'{"' + b"k" * 5000 + b'": 1, "' + b"k" * 5000 + b'": 2}': "duplicate_key",
    b"[" * 100_000: "nested_too_deep",
    b'{"a": ' * 100_000: "nested_too_deep",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "nested_too_deep",
    DEEP: "nested_too_deep",
    b'{"a": ' * 150 + b"1" + b"}" * 150: "nested_too_deep",
}
CAPS = [(bad, reason, CAP) for bad, reason in BAD_JSON.items()]
CAPS += [(bad, reason, 1_000_000) for bad, reason in LONG_JSON.items()]
IDS = [f"{bad[:16]!r}-{reason}" for bad, reason, _ in CAPS]


@pytest.mark.parametrize("start", [b"", BOM], ids=["plain", "bom"])
@pytest.mark.parametrize(("bad", "reason", "cap"), CAPS, ids=IDS)
def test_a_bad_line_has_its_reason_and_the_lines_around_it_go_on(tmp_path, bad, reason, cap, start):
    path = written(tmp_path / "a.jsonl", start + bad + b"\n" + LINE + b"\n" + bad + b"\n" + LINE + b"\n" + bad)
    rows = rows_of(path, cap)
    assert [(row.line, row.reason) for row in rows] == [(1, reason), (2, ""), (3, reason), (4, ""), (5, reason)]
    assert all(row.value is None for row in rows[::2])
    assert all(row.value == ROW for row in rows[1::2])
    assert all(len(row.text) <= TEXT_CHARS and len(row.detail) < 500 for row in rows)
    json.dumps([row.text + row.detail for row in rows], ensure_ascii=False).encode()


CLOSED = [
    case for case in CAPS if case[0].count(b"[") == case[0].count(b"]") and case[0].count(b"{") == case[0].count(b"}")
]


@pytest.mark.parametrize(("bad", "reason", "cap"), CLOSED, ids=[f"{bad[:16]!r}-{reason}" for bad, reason, _ in CLOSED])
def test_a_bad_item_of_an_array_has_its_reason_and_the_items_around_it_go_on(tmp_path, bad, reason, cap):
    path = written(tmp_path / "a.json", b"[" + b" ,\n".join([LINE, bad, LINE, bad]) + b"]")
    if bad.startswith(b" "):
        reason = ""  # what stands between items is no part of them
    rows = rows_of(path, cap)
    assert [(row.line, row.reason) for row in rows] == [(1, ""), (2, reason), (3, ""), (4, reason)]
    assert [row.value for row in rows[::2]] == [ROW, ROW]


@pytest.mark.parametrize("text", ["\\\\u0000 \\\\ud800", "\\ud83d\\ude00", "[{" * 80, '\\"[{', "\\\\", '\\\\\\"]'])
@pytest.mark.parametrize("form", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("chunk_bytes", [2, 3, 5, 7, 1000])
def test_what_only_looks_bad_is_read(tmp_path, monkeypatch, text, form, chunk_bytes):
    monkeypatch.setattr("tasks.sources.stream.CHUNK_BYTES", chunk_bytes)
    row = '{"a": "' + text + '", "b": [1, {"c": "]"}]}'
    data = row if form == "a.jsonl" else f"[{row}]"
    assert [row.value for row in rows_of(written(tmp_path / form, data.encode()))] == [json.loads(row)]


def test_a_row_of_allowed_depth_and_length_is_read(tmp_path):
    row = b'{"a": ' + b"[" * 90 + b"]" * 90 + b', "b": ' + b"7" * 900 + b"}"
    path = written(tmp_path / "a.jsonl", row + b"\r\n" + row + b" \n")
    assert [row.reason for row in rows_of(path, len(row))] == ["", "too_long_row"]


def test_the_cap_counts_bytes(tmp_path):
    text = "😀" * ((CAP - len('{"a": ""}')) // 4)
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": "{text}"}}\n{{"a": "{text}xxxx"}}\n', encoding="utf-8")
    assert [row.reason for row in rows_of(path)] == ["", "too_long_row"]


BROKEN_ARRAYS = [
    (b"[" + LINE + b"," + LINE[:-5], ["", "truncated_array"], "nothing from byte"),
    (b"[" + LINE, ["", "truncated_array"], "the array is not closed"),
    (b"[" + LINE + b",\n", ["", "truncated_array"], "the array is not closed"),
    (b"[", ["truncated_array"], "nothing from byte 1 on"),
    (b"[" * 100_000, ["truncated_array"], "the array is not closed"),
    (b"[" + LINE + b", ]", ["", "invalid_json"], "Expecting value"),
    (b"[" + LINE + b",," + LINE + b"]", ["", "invalid_json", ""], ""),
    (b"[" + LINE + b"} , " + LINE + b"]", ["invalid_json", "invalid_json"], "text behind the end of the array"),
    (b"[" + LINE + b"] x", ["", "invalid_json"], f"from byte {len(LINE) + 2} on"),
    (b"[" + LINE + b"]\n[" + LINE + b"]", ["", "invalid_json"], "text behind the end of the array"),
    (b"[" + LINE + b" " + LINE + b"," + LINE + b"]", ["invalid_json", ""], ""),
    (b'[{"a": "b}, ' + LINE + b"]", ["invalid_json"], ""),
    (b"[]", [], ""),
    (b"[ \n]\n", [], ""),
]


@pytest.mark.parametrize(
    ("data", "reasons", "says"), BROKEN_ARRAYS, ids=[f"{case[0][-12:]!r}" for case in BROKEN_ARRAYS]
)
def test_a_broken_array_gives_the_items_before_and_says_from_where_on_it_could_not_be_read(
    tmp_path, data, reasons, says
):
    rows = rows_of(written(tmp_path / "a.json", data))
    assert [row.reason for row in rows] == reasons
    assert [row.line for row in rows] == list(range(1, len(rows) + 1))
    assert not rows or says in rows[-1].detail


@pytest.mark.parametrize(
    ("name", "data", "reasons"),
    [
        ("a.jsonl", b"x" * 32_000_000 + b"\n" + LINE, ["too_long_row", ""]),
        ("a.jsonl.gz", gz(b"x" * 32_000_000 + b"\n" + LINE), ["too_long_row", ""]),
        ("a.json", b'[{"a": "' + b"x" * 32_000_000 + b'"}, ' + LINE + b"]", ["too_long_row", ""]),
        ("a.json", b'["' + b"\\" * 32_000_000 + b'",' + LINE + b"]", ["too_long_row", ""]),
        ("a.csv", b'instruction,output\na,"' + b"x" * 32_000_000 + b'"\nb,c\n', ["too_long_row", ""]),
    ],
    ids=["lines", "bomb", "array", "backslashes", "csv"],
)
def test_an_endless_row_is_rejected_without_holding_it(tmp_path, name, data, reasons):
    path = written(tmp_path / name, data)
    del data
    files(SourceConfig(path=str(path)))  # imports
    tracemalloc.start()
    rows = rows_of(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row.reason for row in rows] == reasons
    assert len(rows[0].text) <= CAP + 3
    assert peak_bytes < 25_000_000


BIG = 200_000_000


def big_file(path: Path, begin: bytes, end: bytes) -> None:
    """A row of BIG bytes between `begin` and `end`."""
    opener = {".gz": gzip.open, ".zst": lambda path, _: pa.CompressedOutputStream(str(path), "zstd")}
    with opener.get(path.suffix, open)(path, "wb") as file:
        file.write(begin)
        for _ in range(BIG // 1_000_000):
            file.write(b"x" * 1_000_000)
        file.write(end)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("a.jsonl", b'{"a": 0}\n{"a": "', b'"}\n{"a": 1}\n'),
        ("a.jsonl.gz", b'{"a": 0}\n{"a": "', b'"}\n{"a": 1}\n'),
        ("a.jsonl.zst", b'{"a": 0}\n{"a": "', b'"}\n{"a": 1}\n'),
        ("a.json", b'[{"a": 0}, {"a": "', b'"}, {"a": 1}]'),
        ("a.csv", b'a\n0\n"', b'"\n1\n'),
    ],
)
def test_a_row_of_200_megabytes_takes_little_memory(tmp_path, name, begin, end):
    big_file(tmp_path / name, begin, end)
    done = run_python(PEAK.format(path=str(tmp_path / name)))
    assert done.returncode == 0, done.stderr
    reasons, peak_bytes = json.loads(done.stdout)
    assert reasons == ["", "too_long_row", ""]
    assert peak_bytes < 300_000_000


@pytest.mark.slow
def test_a_parquet_cell_of_200_megabytes_takes_less_than_a_gigabyte(tmp_path):
    path = tmp_path / "a.parquet"
    run_python(f"""
import pyarrow as pa, pyarrow.parquet as pq
pq.write_table(pa.table({{"a": ["0", "x" * {BIG}, "1"]}}), {str(path)!r})
""")
    reasons, peak_bytes = json.loads(run_python(PEAK.format(path=str(path))).stdout)
    assert reasons == ["", "too_long_row", ""]
    assert peak_bytes < 1_000_000_000


PEAK = """
import json
from tasks.config import SourceConfig
from tasks.sources import files, read_rows
source = SourceConfig(path={path!r})
reasons = [row.reason for file in files(source) for row in read_rows(source, file, 4_000_000)]
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps([reasons, peak]))
"""


def test_line_ends_inside_a_quoted_field_stay_as_they_are(tmp_path):
    path = written(tmp_path / "a.csv", b'instruction,output\r\na,"b\r\nc\rd\ne"\r\n')
    assert [row.value["output"] for row in rows_of(path)] == ["b\r\nc\rd\ne"]


def test_a_field_may_be_as_long_as_the_cap_allows(tmp_path):
    path = written(tmp_path / "a.csv", b"a\n" + b"x" * 300_000 + b"\n")
    assert [row.value for row in rows_of(path, 300_000)] == [{"a": "x" * 300_000}]


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (b"a\n", "wrong_number_of_fields", "1 fields, the header has 2"),
        (b"a,b,c\n", "wrong_number_of_fields", "3 fields, the header has 2"),
        (b'a,"b"c\n', "invalid_csv", "in line 3"),
        (b"a,\xe9\n", "invalid_utf8", "at byte 2"),
        (b"a,\0\n", "nul_character", "at byte 2"),
        (b'a,"b\xed\xa0\xbd"\n', "lone_surrogate", "at byte 4"),
        (b"a," + b"x" * (CAP - 1) + b"\n", "too_long_row", f"more than {CAP} bytes"),
        (b"a," + b"x" * (100 * CAP) + b"\n", "too_long_row", f"more than {CAP} bytes"),
    ],
)
def test_a_bad_record_has_its_reason_and_the_records_around_it_go_on(tmp_path, bad, reason, detail):
    rows = rows_of(written(tmp_path / "a.csv", b"instruction,output\nc,d\n" + bad + b"e,f\n"))
    assert [(row.line, row.reason) for row in rows] == [(2, ""), (3, reason), (4, "")]
    assert detail in rows[1].detail
    (rows[1].text + rows[1].detail).encode()


UNCLOSED = [
    (b'c,"d\ne,f\ng,h\n', ["invalid_csv", "", ""]),
    (b'c,"d\ne,f\ng,"h\ni"\nj,k\n', ["invalid_csv", "", "", ""]),
    (b'c,"d\n' + b"e,f\n" * CAP, ["too_long_row", *[""] * CAP]),
    (b'"c\n' * 5, ["invalid_csv"] * 5),
    (b'c","d\n' * 5, ["invalid_csv"] * 5),
    (b'c,"d\n' + b"x" * 2 * CAP + b"\ne,f\n", ["too_long_row", "too_long_row", ""]),
]


@pytest.mark.parametrize(("data", "reasons"), UNCLOSED, ids=range(len(UNCLOSED)))
def test_a_quote_that_is_never_closed_costs_one_line(tmp_path, data, reasons):
    rows = rows_of(written(tmp_path / "a.csv", b"instruction,output\na,b\n" + data))
    assert rows[0].value == {"instruction": "a", "output": "b"}
    assert [row.reason for row in rows[1:]] == reasons
    assert all(row.value == {"instruction": "e", "output": "f"} for row in rows if row.text == "e,f")


def test_many_open_quotes_are_read_in_one_go_and_not_in_one_go_each(tmp_path):
    """Each line of this file opens a quote that the next one closes and opens again."""
    path = written(tmp_path / "a.csv", b"instruction,output\n" + b'a","b\n' * 20_000)
    decoded = [row.reason for row in rows_of(path, 4_000_000)]
    assert decoded == ["invalid_csv"] * 20_000


def test_parquet_rows_have_json_values_and_a_text_where_one_is_asked_for(tmp_path):
    columns = {
        "text": ["ä"],
        "turns": [[{"role": "user", "content": "hi"}]],
        "day": [datetime.date(2020, 1, 2)],
        "at": [datetime.datetime(2020, 1, 2, 3, 4, 5)],
        "price": [decimal.Decimal("1.50")],
        "score": [float("nan")],
        "raw": [b"\xff"],
        "none": [None],
    }
    [row] = rows_of(written(tmp_path / "a.parquet", parquet(columns)), 10_000)
    assert row.value == {
        "text": "ä",
        "turns": [{"role": "user", "content": "hi"}],
        "day": "2020-01-02",
        "at": "2020-01-02T03:04:05",
        "price": "1.50",
        "score": None,
        "raw": b"\xff",
        "none": None,
    }
    assert row.text == ""
    assert json.loads(row.shown)["turns"] == row.value["turns"]


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
)


@pytest.mark.parametrize(
    ("column", "reasons"),
    [
        (["x" * CAP, "short"], ["too_long_row", ""]),
        (NOT_UTF8, ["invalid_utf8", ""]),
        (["a\0b", "ab"], ["nul_character", ""]),
        ([["a", "b\0"], ["ab"]], ["nul_character", ""]),
        (pa.array([2**61, 0], pa.timestamp("us")), ["invalid_value", ""]),
    ],
    ids=["too_long", "utf8", "nul", "nested", "year"],
)
@pytest.mark.parametrize("cap", [CAP, 20])
def test_a_bad_parquet_row_has_its_reason_and_the_rows_around_it_go_on(tmp_path, column, reasons, cap):
    rows = rows_of(written(tmp_path / "a.parquet", parquet({"a": column})), cap)
    assert [(row.line, row.reason) for row in rows] == list(enumerate(reasons, start=1))
    assert [row.value is None for row in rows] == [True, False]


def test_parquet_rows_are_numbered_through_batches_and_row_groups(tmp_path):
    data = parquet({"a": [f"{number} {'x' * 5000}" for number in range(1, 1501)]}, row_group_size=400)
    rows = rows_of(written(tmp_path / "a.parquet", data), 10_000)
    assert [int(row.value["a"].split()[0]) for row in rows] == [row.line for row in rows] == list(range(1, 1501))


TWICE = pa.BufferOutputStream()
pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["output", "output"]), TWICE)
NOISE = json.dumps({"a": os.urandom(3000).hex()}).encode()


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("empty.jsonl.gz", b"", "is empty"),
        ("empty_inside.jsonl.gz", gz(b""), "is empty"),
        ("blank.json", BOM + b"\n \t\r\n", "is empty"),
        ("blank.csv", b"\n" * 1_000_000, "is empty"),
        ("blank_utf16.jsonl", "\n".encode("utf-16"), "is empty"),
        ("empty.parquet", b"", "is empty"),
        ("data.txt", LINE, "known endings: .jsonl, .json, .csv, .tsv, .parquet, each also with .gz or .zst behind it"),
        ("data", LINE, "known endings"),
        ("data.gz", gz(LINE), "known endings"),
        ("data.tar.gz", gz(LINE), "known endings"),
        ("really_parquet.jsonl", WHOLE, "its name says .jsonl, but it holds Parquet"),
        ("really_parquet.json", WHOLE, "its name says .json, but it holds Parquet"),
        ("really_text.parquet", LINE, "it holds no Parquet data"),
        ("really_text.parquet.gz", gz(LINE), "it holds no Parquet data"),
        ("really_gzip.jsonl", gz(LINE), "it holds gzip"),
        ("really_gzip.parquet", gz(WHOLE), "it holds gzip"),
        ("twice_gzip.jsonl.gz", gz(gz(LINE)), "its name says .jsonl, but it holds gzip"),
        ("really_zstd.csv", zstd(LINE), "it holds Zstandard"),
        ("really_zstd.csv.gz", zstd(LINE), "its name says .csv.gz, but it holds Zstandard"),
        ("really_text.jsonl.gz", LINE, "its name says .jsonl.gz, but it holds no gzip data"),
        ("really_text.jsonl.zst", LINE, "its name says .jsonl.zst, but it holds no Zstandard data"),
        ("really_zip.csv", b"PK\x03\x04" + LINE, "it holds zip"),
        ("utf32.jsonl", LINE.decode().encode("utf-32"), "it holds UTF-32 text"),
        ("page.jsonl", b"<!DOCTYPE html><html>404</html>", "it holds a web page"),
        ("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("cut.jsonl.gz", gz(NOISE)[:-900], "its gzip data is damaged or ends early"),
        ("no_trailer.jsonl.gz", gz(LINE)[:-4], "its gzip data is damaged or ends early"),
        ("flipped.jsonl.gz", gz(LINE)[:-8] + b"\0\0\0\0" + gz(LINE)[-4:], "its gzip data is damaged or ends early"),
        ("cut.jsonl.zst", zstd(NOISE)[:-900], "its Zstandard data is damaged or ends early"),
        ("cut.parquet", WHOLE[:-200], "is damaged or no Parquet file"),
        ("cut.parquet.zst", zstd(WHOLE)[:-20], "its Zstandard data is damaged or ends early"),
        ("damaged.parquet", WHOLE[:4] + bytes(len(WHOLE) - 12) + WHOLE[-8:], "is damaged or no Parquet file"),
        ("twice.parquet", TWICE.getvalue().to_pybytes(), "names a column twice: output, output"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "names a column twice: a, b, a"),
        ("latin1.csv", "prénom,output\n".encode("latin-1"), "its header cannot be read: invalid_utf8"),
        ("quote.csv", b'"instruction,output\na,b\n', "has no header line"),
        ("long.csv", b"x" * 2 * CAP, "has no header line: more than 200 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(tmp_path, name, data, says):
    path = written(tmp_path / name, data)
    with pytest.raises(SourceError) as refusal:
        rows_of(path)
    assert str(refusal.value).startswith(f"source {path}: ")
    assert says in str(refusal.value)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_archives_of_several_parts_are_read_whole_and_rows_before_a_damage_come_first(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("tasks.sources.stream.CHUNK_BYTES", 1000)
    pack = gz if ending == ".gz" else zstd
    source = SourceConfig(
        path=str(written(tmp_path / f"a.jsonl{ending}", pack(LINE + b"\n") + pack(LINE + b"\n" + NOISE)))
    )
    [file] = files(source)
    assert [row.value for row in read_rows(source, file, 10_000)][:2] == [ROW, ROW]
    whole = Path(source.path).read_bytes()
    Path(source.path).write_bytes(whole + pack(b"\n".join([NOISE] * 200))[:-900])
    rows = read_rows(source, file, 10_000)
    assert next(rows).value == ROW
    with pytest.raises(SourceError, match="ends early"):
        list(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of many kinds, of which b/c.csv.gz, b/d/e.json and a.jsonl are data."""
    root = tmp_path / "data"
    written(root / "b" / "c.csv.gz", gz(b"a\nfrom c\n"))
    written(root / "b" / "d" / "e.json", b'[{"a": "from e"}]')
    written(root / "a.jsonl", b'{"a": "from a"}')
    for name in ("README.md", "_SUCCESS", ".a.jsonl.swp", "_draft.jsonl", ".cache/x.jsonl", "_old/x.jsonl", "b/.x.csv"):
        written(root / name, b"no data")
    return root


def test_a_folder_is_read_with_all_below_it_sorted_by_name(folder):
    assert names_of(folder) == ["a.jsonl", "b/c.csv.gz", "b/d/e.json"]
    assert [row.value["a"] for row in rows_of(folder)] == ["from a", "from c", "from e"]
    assert files(SourceConfig(path=f"file://{folder}"))[0].size_bytes == len('{"a": "from a"}')


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["a.jsonl", "b/c.csv.gz", "b/d/e.json"]),
        ("*.jsonl", ["a.jsonl"]),
        ("**/*.csv.gz", ["b/c.csv.gz"]),
        ("b/*.gz", ["c.csv.gz"]),
        ("**", ["a.jsonl", "b/c.csv.gz", "b/d/e.json"]),
        ("b/[a-d]", ["d/e.json"]),
        ("?.jsonl", ["a.jsonl"]),
        ("_d*.jsonl", ["_draft.jsonl"]),
        ("_old/*", ["x.jsonl"]),
    ],
)
def test_a_glob_is_read_with_names_from_where_its_wildcards_begin(folder, monkeypatch, pattern, names):
    assert names_of(folder / pattern) == names
    monkeypatch.chdir(folder)
    assert names_of(pattern) == names


def test_a_name_with_brackets_is_meant_as_it_stands(tmp_path):
    assert names_of(written(tmp_path / "a[1].jsonl", LINE)) == ["a[1].jsonl"]
    assert names_of(written(tmp_path / "a[1]" / "b.jsonl", LINE).parent) == ["b.jsonl"]


def test_links_are_followed_and_no_folder_is_read_twice(folder, tmp_path):
    written(tmp_path / "elsewhere" / "f.jsonl", b'{"a": "from f"}')
    (folder / "linked.jsonl").symlink_to(tmp_path / "elsewhere" / "f.jsonl")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "notes").symlink_to(folder / "nowhere")
    assert names_of(folder) == ["a.jsonl", "b/c.csv.gz", "b/d/e.json", "linked.jsonl", "linked/f.jsonl"]


def test_a_folder_that_may_not_be_listed_is_no_empty_one(folder, monkeypatch):
    """The tests may run as root, who may list everything: the operating system's refusal is played."""
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(SourceError, match=re.escape(f"source {folder}: cannot be read: Permission denied")):
        names_of(folder)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("missing.jsonl", "there is no such file (looked for "),
        ("*.parquet", "known endings: .jsonl"),
        ("missing/*.jsonl", "known endings: .jsonl"),
        ("empty", "known endings: .jsonl"),
        ("pipe.jsonl", "is not a file"),
        ("dangling", "cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("read", [rows_of, lambda path: digest(SourceConfig(path=str(path)))], ids=["read", "digest"])
def test_where_there_is_no_data_the_place_is_named(folder: Path, read: Callable[[Path], object], path: str, says: str):
    (folder / "empty" / "_deeper").mkdir(parents=True)
    written(folder / "empty" / "README.md", b"x")
    (folder / "dangling").mkdir()
    (folder / "dangling" / "a.jsonl").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jsonl") if path.startswith("pipe") else None
    with pytest.raises(SourceError, match=re.escape(f"source {folder / path}: ") + ".*" + re.escape(says)):
        read(folder / path)


def test_the_digest_is_of_names_and_contents_of_what_is_read(folder):
    source = SourceConfig(path=str(folder))
    digests = [digest(source)]
    written(folder / "README.md", b"other")
    written(folder / "a.jsonl", b'{"a": "from a"}')
    assert digest(source) == digests[0]
    for change in (
        lambda: written(folder / "a.jsonl", b'{"a": "from A"}'),
        lambda: (folder / "a.jsonl").rename(folder / "z.jsonl"),
        lambda: written(folder / "new.jsonl", b"{}"),
        lambda: (folder / "new.jsonl").unlink() or written(folder / "b" / "new.jsonl", b"{}"),
    ):
        change()
        digests.append(digest(source))
    assert len(set(digests)) == 5


@pytest.fixture
def memory():
    import fsspec

    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def test_what_fsspec_opens_is_read_as_file_folder_and_glob(memory):
    memory.pipe({"/data/a.jsonl": LINE, "/data/b/c.csv.gz": gz(b"a\nb\n"), "/data/_x.jsonl": b"{", "/data/x.md": b""})
    memory.pipe("/data/b/d.parquet.zst", zstd(parquet({"a": ["in d"]})))
    assert [row.value for row in rows_of("memory://data/a.jsonl")] == [ROW]
    assert names_of("memory://data") == names_of("memory://data/") == ["a.jsonl", "b/c.csv.gz", "b/d.parquet.zst"]
    assert [row.value for row in rows_of("memory://data")] == [ROW, {"a": "b"}, {"a": "in d"}]
    assert names_of("memory://data/**/*.gz") == ["b/c.csv.gz"]
    assert names_of("memory://data/b*") == ["b/c.csv.gz", "b/d.parquet.zst"]
    assert files(SourceConfig(path="memory://data/a.jsonl"))[0].size_bytes == len(LINE)


def test_the_digest_of_what_states_no_etag_is_of_the_content(memory):
    source = SourceConfig(path="memory://data")
    memory.pipe("/data/a.jsonl", LINE)
    first = digest(source)
    memory.pipe("/data/a.jsonl", LINE)
    assert digest(source) == first
    memory.pipe("/data/a.jsonl", LINE[::-1])
    assert digest(source) != first


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("memory://nothing/here.jsonl", "there is no such file or folder"),
        ("memory://nothing/*.jsonl", "known endings"),
        ("nonsense://x/a.jsonl", "Protocol not known: nonsense"),
        ("http://user:hunter2@127.0.0.1:9/a.jsonl?token=hunter2", "there is no such file or folder, or no answer"),
        ("http://user:hunter/2@127.0.0.1:9/a.jsonl", "source http://…@127.0.0.1:9/a.jsonl: "),
        ("http://127.0.0.1:9/a.jsonl?X-Amz-Signature=hunter2", "source http://127.0.0.1:9/a.jsonl?…: "),
    ],
)
def test_what_cannot_be_opened_is_refused_without_its_secrets(memory, path, says):
    source = SourceConfig.model_construct(path=path)  # past the config, which refuses a path with a secret
    for read in (files, digest):
        with pytest.raises(SourceError) as refusal:
            read(source)
        assert says in str(refusal.value)
        assert "hunter" not in str(refusal.value)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


def test_a_missing_package_is_named_with_its_remedy():
    code = """
import sys
sys.modules["s3fs"] = None  # as if it were not installed
from tasks.config import SourceConfig
from tasks.sources import files
files(SourceConfig(path="s3://bucket/a.jsonl"))
"""
    assert "pip install 'attune[s3]'" in run_python(code).stderr.splitlines()[-1]


def test_the_digest_of_local_files_loads_no_library(folder):
    code = f"""
import sys
from tasks.config import SourceConfig
from tasks.sources import digest
digest(SourceConfig(path={str(folder)!r}))
print(sorted({{"fsspec", "pyarrow", "pandas", "datasets", "numpy", "zstandard"}} & set(sys.modules)))
"""
    assert run_python(code).stdout.strip() == "[]"


def test_a_hub_that_cannot_be_reached_is_a_plain_message():
    code = """
from tasks.config import HubDataset, SourceConfig
from tasks.errors import SourceError
from tasks.sources import digest, files
for ask in (digest, files):
    try:
        ask(SourceConfig(hub=HubDataset(dataset="owner/name")))
    except SourceError as error:
        print(error)
"""
    offline = run_python(code, HF_HUB_OFFLINE="1")
    refused = run_python(code, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    for run in (offline, refused):
        assert run.stdout.count("source owner/name on the Hugging Face Hub: cannot be read: ") == 2, run.stderr


@pytest.mark.parametrize("revision", ["main", "1" * 40])
def test_a_local_folder_is_not_taken_for_a_hub_dataset(tmp_path, monkeypatch, revision):
    written(tmp_path / "owner" / "name" / "a.jsonl", LINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="source owner/name: is also a local path"):
        digest(SourceConfig(hub=HubDataset(dataset="owner/name", revision=revision)))
