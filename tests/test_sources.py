"""Readers of raw files: right places, a reason for each bad row, and a plain refusal of a wrong file."""

import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import SourceError
from tasks.sources import digest, read_rows
from tasks.sources.row import Row

ROW = {"instruction": "Say, twice:", "output": 'a\n"b"'}
CAP = 200


def rows_of(path: Path, max_row_chars: int = CAP) -> list[Row]:
    return list(read_rows(str(path), max_row_chars))


def parquet(columns: dict[str, pa.Array | list[object]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


LINE = json.dumps(ROW).encode()
BOM = b"\xef\xbb\xbf"
ROW_AS_CSV = b'"Say, twice:","a\n""b"""\n'


@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("a.jsonl", LINE + b"\n" + LINE + b"\n", [1, 2]),
        ("a.jsonl", b"\n" * 5000 + LINE + b"\n  \n" + LINE, [5001, 5003]),
        ("a.JSONL", BOM + LINE + b"\r\n\r\n" + LINE + b"\r\n", [1, 3]),
        ("a.json", LINE + b"\n" + LINE + b"\n", [1, 2]),
        ("a.json", BOM + b"[" + LINE + b",\n\n" + LINE + b"]\n", [1, 2]),
        ("a.csv", b"instruction,output\n" + ROW_AS_CSV * 2, [2, 4]),
        ("a.csv", BOM + b"\ninstruction,output\n" + ROW_AS_CSV + b"\n" + ROW_AS_CSV, [3, 6]),
        ("a.csv", b'"instruction","output"\r\n' + ROW_AS_CSV.replace(b'""\n', b'""\r\n') * 2, [2, 4]),
        ("a.tsv", b'instruction\toutput\nSay, twice:\t"a\n""b"""\n', [2]),
        ("a.parquet", parquet({"instruction": ["Say, twice:"] * 2000, "output": ['a\n"b"'] * 2000}), range(1, 2001)),
    ],
)
def test_every_kind_of_file_gives_the_same_rows_with_their_places(tmp_path, name, data, places):
    path = tmp_path / name
    path.write_bytes(data)
    rows = rows_of(path)
    assert [row.line for row in rows] == list(places)
    assert all(row.value == ROW for row in rows)
    assert rows[0].text


BAD_JSON = {
    b"{broken": "invalid_json",
    b'{"a": 1} {"b": 2}': "invalid_json",
    b"[" * CAP: "invalid_json",
    b"\xc2\xa0": "invalid_json",
    b'["a"]': "not_an_object",
    b"null": "not_an_object",
    b'"text"': "not_an_object",
    b'{"a": NaN}': "not_a_finite_number",
    b'{"a": -Infinity}': "not_a_finite_number",
    b'{"a": 1, "a": 2}': "duplicate_key",
    b'{"b": {"\\ud800": 1, "\\ud800": 2}}': "duplicate_key",
    b'{"a": "\xff"}': "invalid_utf8",
    b'{"a": "\\ud83d"}': "lone_surrogate",
    b'{"a": "' + b"x" * CAP + b'"}': "too_long_row",
    b"x" * 100 * CAP: "too_long_row",
}


@pytest.mark.parametrize("start", [b"", BOM], ids=["plain", "bom"])
@pytest.mark.parametrize(("bad", "reason"), BAD_JSON.items(), ids=[f"{key[:12]!r}" for key in BAD_JSON])
def test_a_bad_line_has_its_reason_and_the_lines_around_it_go_on(tmp_path, bad, reason, start):
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + bad + b"\n" + LINE + b"\n" + bad + b"\n" + LINE + b"\n" + bad)
    rows = rows_of(path)
    assert [(row.line, row.reason) for row in rows] == [(1, reason), (2, ""), (3, reason), (4, ""), (5, reason)]
    assert all(row.value is None for row in rows[::2])
    json.dumps([row.text + row.detail for row in rows], ensure_ascii=False).encode()


def test_a_row_nested_too_deeply_is_rejected(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"[" * 100_000 + b"\n" + LINE)
    assert [row.reason for row in rows_of(path, 1_000_000)] == ["invalid_json", ""]


def test_a_row_as_long_as_the_cap_is_read_whatever_its_characters_take(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "😀" * (CAP - len('{"a": ""}'))
    path.write_text(f'{{"a": "{text}"}}\n{{"a": "{text}x"}}\n', encoding="utf-8")
    assert [row.reason for row in rows_of(path)] == ["", "too_long_row"]


def test_an_endless_line_is_rejected_without_holding_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 32_000_000 + b"\n" + LINE)
    tracemalloc.start()
    rows = rows_of(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row.reason for row in rows] == ["too_long_row", ""]
    assert len(rows[0].text) <= CAP
    assert peak_bytes < 8_000_000


def test_line_ends_inside_a_quoted_field_stay_as_they_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'instruction,output\r\na,"b\r\nc\rd\ne"\r\n')
    assert [row.value["output"] for row in rows_of(path)] == ["b\r\nc\rd\ne"]


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (b"a\n", "wrong_number_of_fields", "1 fields, the header has 2"),
        (b"a,b,c\n", "wrong_number_of_fields", "3 fields, the header has 2"),
        (b'a,"b"c\n', "invalid_csv", "lines 3 to 3"),
        (b"a,\xe9\n", "invalid_utf8", "no UTF-8"),
        (b"a," + b"x" * (CAP - 5) + b"\n", "too_long_row", f"more than {CAP} characters"),
        (b"a," + b"x" * (CAP + 10) + b"\n", "too_long_row", "field limit"),
    ],
)
def test_a_bad_record_has_its_reason_and_the_records_around_it_go_on(tmp_path, bad, reason, detail):
    path = tmp_path / "a.csv"
    path.write_bytes(b"instruction,output\nc,d\n" + bad + b"e,f\n")
    rows = rows_of(path)
    assert [(row.line, row.reason) for row in rows] == [(2, ""), (3, reason), (4, "")]
    assert detail in rows[1].detail
    (rows[1].text + rows[1].detail).encode()


def test_a_quote_that_is_never_closed_says_how_many_lines_it_swallowed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'instruction,output\na,b\nc,"d\ne,f\ng,h\n')
    *_, last = rows_of(path)
    assert (last.line, last.reason) == (3, "invalid_csv")
    assert "lines 3 to 5" in last.detail


def test_long_parquet_rows_are_rejected_and_any_type_has_a_text(tmp_path):
    import datetime

    path = tmp_path / "a.parquet"
    path.write_bytes(parquet({"a": ["x" * CAP, "short"], "b": [b"\xff", None], "c": [datetime.date(2020, 1, 2), None]}))
    long, short = rows_of(path)
    assert (long.line, long.reason, len(long.text)) == (1, "too_long_row", CAP)
    assert short.value == {"a": "short", "b": None, "c": None}


WHOLE = parquet({"instruction": ["a"] * 100, "output": ["b"] * 100})
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
TWICE = pa.BufferOutputStream()
pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["output", "output"]), TWICE)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.json", BOM + b"\n \t\r\n", "is empty"),
        ("empty.parquet", b"", "is empty"),
        ("data.txt", LINE, "known endings: .jsonl, .json, .csv, .tsv, .parquet"),
        ("data", LINE, "known endings"),
        ("really_parquet.jsonl", WHOLE, "it holds Parquet"),
        ("really_text.parquet", LINE, "it holds no Parquet data"),
        ("really_gzip.jsonl", gzip.compress(LINE, mtime=0), "it holds gzip"),
        ("really_zip.csv", b"PK\x03\x04" + LINE, "it holds zip"),
        ("utf16.csv", "instruction,output\n".encode("utf-16"), "it holds UTF-16 text"),
        ("utf16.jsonl", b"\xfe\xff" + LINE.decode().encode("utf-16-be"), "it holds UTF-16 text"),
        ("cut.parquet", WHOLE[:-200], "is damaged or no Parquet file"),
        ("damaged.parquet", WHOLE[:4] + bytes(len(WHOLE) - 12) + WHOLE[-8:], "is damaged or no Parquet file"),
        ("not_utf8.parquet", parquet({"instruction": NOT_UTF8}), "is damaged or no Parquet file"),
        ("twice.parquet", TWICE.getvalue().to_pybytes(), "names a column twice: output, output"),
        ("cut.json", b"[" + LINE + b"," + LINE[:-5], "is not a JSON array"),
        ("open.json", b"[" + LINE, "is not a JSON array"),
        ("comma.json", b"[" + LINE + b", ]", "',' before the end"),
        ("behind.json", b"[" + LINE + b"] x", "text behind its end"),
        ("deep.json", b"[" * 100_000, "is not a JSON array"),
        ("not_utf8.json", b'[{"a": "\xff"}]', "is not a JSON array"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "names a column twice: a, b, a"),
        ("latin1.csv", "prénom,output\n".encode("latin-1"), "its header is no UTF-8"),
        ("quote.csv", b'"instruction,output\na,b\n', "has no header line"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SourceError) as refusal:
        rows_of(path)
    assert str(refusal.value).startswith(f"source {path}: ")
    assert says in str(refusal.value)


@pytest.mark.parametrize("read", [rows_of, lambda path: digest(str(path))], ids=["read", "digest"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, read: Callable[[Path], object]):
    for path, says in ((tmp_path / "missing.jsonl", "there is no such file"), (tmp_path, "is not a file")):
        with pytest.raises(SourceError, match=re.escape(f"source {path}: {says}")):
            read(path)
