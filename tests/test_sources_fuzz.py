"""Readers under fire: whatever the bytes are, every row is there once, with a value or a reason, and nothing breaks.

One example of hypothesis makes a batch of malformed inputs, because a batch costs hardly more than a single one.
"""

import csv
import gzip
import io
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import SourceConfig
from tasks.errors import SourceError
from tasks.sources import files, read_rows
from tasks.sources.row import Row

CAP = 300
BATCH = 50
EXAMPLES = 20

GOOD = [
    {
        "instruction": f'Say, {number} "times":\n',
        "output": "日本 \u2028 é" * number,
        "meta": {"at": [number, {"b": 1.5}]},
    }
    for number in range(4)
]
NASTY = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xed\xa0\xbd",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\\ud83d", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b'"' * 7,
    b"7" * 1500, b"[" * 2000, b'{"a":' * 120, b"x" * 2 * CAP, b'"a": 1, "a": 1', "\u2028\u0085".encode(),
    b"\x1f\x8b", b"PAR1", b"", b" " * CAP,
]  # fmt: skip


def as_jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=row["output"] == "") + "\n" for row in rows).encode()


def as_array(rows: list[dict]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_csv(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["instruction", "output"])
    writer.writerows([row["instruction"], row["output"]] for row in rows)
    return text.getvalue().encode()


def as_gz(rows: list[dict]) -> bytes:
    return gzip.compress(as_jsonl(rows), mtime=0)


KINDS: dict[str, Callable[[list[dict]], bytes]] = {
    "a.jsonl": as_jsonl,
    "a.json": as_array,
    "a.csv": as_csv,
    "a.jsonl.gz": as_gz,
}


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to three wounds: flipped bits, a cut, foreign bytes, a piece moved, random text."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 1:
                del out[at : at + chance.choice([1, 2, 10, len(out)])]
            case 2:
                out[at:at] = chance.choice(NASTY)
            case 3:
                out[at:at] = chance.randbytes(chance.randint(1, 40))
            case 4:
                out[at : at + 5] = "".join(chr(chance.randrange(0xD800)) for _ in range(5)).encode()
            case _:
                out[at:at] = out[: chance.randrange(len(out) + 1)]
    return bytes(out)


def rows_of(path: Path) -> list[Row]:
    source = SourceConfig(path=str(path))
    return [row for file in files(source) for row in read_rows(source, file, CAP)]


def check(rows: list[Row]) -> None:
    """What holds for the rows of any file."""
    lines = [row.line for row in rows]
    assert all(before < after for before, after in itertools.pairwise(lines))
    for row in rows:
        assert (row.value is None) == bool(row.reason)
        assert row.value is None or isinstance(row.value, dict)
        (row.shown + row.reason + row.detail).encode()
        json.dumps(row.value, ensure_ascii=False, allow_nan=False).encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def outcome(path: Path, data: bytes) -> list[Row] | None:
    """The rows of a file, checked; None where it was refused."""
    path.write_bytes(data)
    try:
        rows = rows_of(path)
    except SourceError as error:
        str(error).encode()
        return None
    check(rows)
    return rows


fire = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)


def test_no_damage_of_ten_thousand_breaks_a_reader(place):
    """Counted are the damages that cost a row or the file; a flipped bit may leave a row that is as good as any."""
    malformed = Counter[str]()

    @settings(fire, max_examples=3 * EXAMPLES)
    @given(st.randoms(use_true_random=False))
    def shoot(chance: random.Random) -> None:
        for _ in range(BATCH):
            for name, write in KINDS.items():
                rows = outcome(place / name, damaged(write(GOOD), chance))
                malformed[name] += rows is None or any(row.reason for row in rows)

    shoot()
    assert malformed.total() >= 10_000, malformed
    assert min(malformed.values()) >= 1_500, malformed


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".parquet"])
@fire
@given(data=st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(NASTY), st.text(max_size=9).map(str.encode))))
def test_no_bytes_at_all_break_a_reader(place, ending, data):
    rows = outcome(place / f"b{ending}", b"".join(data))
    assert rows is None or all((row.value is None) == bool(row.reason) for row in rows)


@fire
@given(st.randoms(use_true_random=False))
def test_good_lines_around_a_damaged_one_survive_to_the_letter(place, chance):
    lines = as_jsonl(GOOD).splitlines(keepends=True)
    for _ in range(BATCH):
        at = chance.randrange(1, len(lines))
        wounded = damaged(lines[at][:-1], chance).replace(b"\n", b" ") + b"\n"
        rows = outcome(place / "c.jsonl", b"".join([*lines[:at], wounded, *lines[at:]]))
        assert [row.value for row in rows if row.line != at + 1] == GOOD
        assert [row.line for row in rows if row.line != at + 1] == [n + 1 + (n >= at) for n in range(len(GOOD))]


@fire
@given(st.randoms(use_true_random=False))
def test_good_items_around_one_with_a_damaged_text_survive_to_the_letter(place, chance):
    """An item that has all its brackets and quotes cannot touch its neighbours."""
    whole = as_array(GOOD)
    for _ in range(BATCH):
        wounded = bytes(byte for byte in damaged(b"some text", chance) if byte not in b'"\\')
        rows = outcome(place / "d.json", whole[:-1] + b', {"a": "' + wounded + b'", "a": 1}, ' + whole[1:])
        assert [row.value for row in rows if row.value] == GOOD * 2
        assert [row.line for row in rows if row.reason] == [len(GOOD) + 1]


@fire
@given(st.randoms(use_true_random=False))
def test_good_records_before_a_damaged_one_survive_and_every_line_is_in_a_record(place, chance):
    whole = as_csv(GOOD)
    for _ in range(BATCH):
        rows = outcome(place / "e.csv", whole + damaged(b'one,"two"\nthree,four\n', chance))
        assert [row.value for row in rows[: len(GOOD)]] == [
            {name: row[name] for name in ("instruction", "output")} for row in GOOD
        ]
