"""The ledger: counts, samples and shards of parts add up to those of the whole."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import ledger as module
from tasks.ledger import Ledger, ShardWriter, Summary, batches, cut, place, read, rejection, rows_at, shards, total
from tasks.schema import EXAMPLE

NUMBERS = pa.schema([("number", pa.int64())])


def numbers(*values: int) -> pa.Table:
    return pa.table({"number": pa.array(values, pa.int64())})


def bad(line: int, reason: str, **fields: object) -> dict[str, object]:
    row = dict.fromkeys(EXAMPLE.names, "") | {"source": "s", "file": "f", "line": line, "id": "1"} | fields
    return rejection(row, reason, f"detail {line}")


def test_a_full_shard_is_closed_and_the_rows_of_all_shards_come_back_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 4)
    writer = ShardWriter(tmp_path, NUMBERS, "00007-")
    for start in range(0, 15, 3):
        writer.write(numbers(*range(start, start + 3)))
    writer.close()
    assert [pq.read_metadata(path).num_rows for path in writer.paths] == [6, 6, 3]
    assert writer.paths == shards(tmp_path) and writer.paths[0].name == "part-00007-00000.parquet"
    assert read(tmp_path)["number"].to_pylist() == list(range(15))
    assert [table.num_rows for table in batches(*writer.paths, rows=4)] == [4, 2, 4, 2, 3]
    assert [table["number"].to_pylist() for table in batches(tmp_path, rows=10)][1] == list(range(6, 12))


def test_a_table_without_a_row_has_its_columns_still(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.table("examples", NUMBERS)
    assert [path.name for path in ledger.paths("examples")] == ["part-00000.parquet"]
    assert (read(tmp_path / "examples").schema, read(tmp_path / "rejected").num_rows) == (NUMBERS, 0)


def test_a_flipped_bit_in_a_shard_is_noticed_when_it_is_read(tmp_path):
    """The pages of a shard carry checksums."""
    writer = ShardWriter(tmp_path, NUMBERS)
    writer.write(numbers(*range(0, 100_000, 7)))
    writer.close()
    path = writer.paths[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_rows_are_found_by_their_number_through_all_shards(tmp_path, monkeypatch, rows):
    monkeypatch.setitem(batches.__kwdefaults__, "rows", rows)
    for number, values in enumerate(([0, 1, 2], [], [3], [4, 5, 6])):
        pq.write_table(numbers(*values), tmp_path / f"part-{number}.parquet")
    assert rows_at(shards(tmp_path), np.array([0, 2, 3, 6]))["number"].to_pylist() == [0, 2, 3, 6]


def test_the_summary_counts_by_source_and_reason_and_shows_the_first_of_each_reason(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.table("examples", NUMBERS)
        ledger.enter({"s": 30, "t": 2})
        ledger.enter({"s": 3})
        ledger.keep("examples", numbers(*range(20)))
        ledger.reject([bad(line, "odd", instruction="x" * 500) for line in range(12)])
        ledger.reject([bad(99, "late", source="t", file="t")])
        ledger.reject([])
    found = ledger.summary(figure=1)
    assert (found.rows_in, found.rows_kept, found.rejected) == (35, 20, {"late": 1, "odd": 12})
    assert list(found.rejected) == ["late", "odd"], "in the order of their names, however the rows came"
    assert found.funnel == {"s": {"rows_in": 33, "odd": 12}, "t": {"rows_in": 2, "late": 1}}
    assert [each["place"] for each in found.samples["odd"]] == [f"s/f:{line}" for line in range(module.SAMPLES)]
    assert found.samples["late"] == [{"place": "t:99", "detail": "detail 99", "row": "{}"}]
    assert len(found.samples["odd"][0]["row"]) == module.SAMPLE_CHARS + 1 and found.figures == {"figure": 1}
    assert read(tmp_path / "rejected")["line"].to_pylist() == [*range(12), 99]


def test_the_total_of_parts_is_what_one_ledger_would_have_said():
    def sample(*numbers: int) -> list[dict[str, str]]:
        return [{"place": f"s:{number}", "detail": "", "row": ""} for number in numbers]

    one = Summary(5, 2, {"b": 2, "a": 1}, {"own": 1}, {"s": {"rows_in": 5, "b": 2, "a": 1}}, {"b": sample(1, 2)})
    other = Summary(
        4, 1, {"b": 3}, {}, {"s": {"rows_in": 3, "b": 3}, "t": {"rows_in": 1}}, {"b": sample(*range(3, 20))}
    )
    found = total([one, other], mine=2)
    assert (found.rows_in, found.rows_kept, found.rejected, found.figures) == (9, 3, {"a": 1, "b": 5}, {"mine": 2})
    assert list(found.rejected) == ["a", "b"]
    assert found.funnel == {"s": {"rows_in": 8, "b": 5, "a": 1}, "t": {"rows_in": 1}}
    assert found.samples == {"b": sample(*range(1, 1 + module.SAMPLES))}


def test_places_and_texts_are_short():
    assert place({"source": "a.jsonl", "file": "a.jsonl", "line": 3}) == "a.jsonl:3"
    assert place({"source": "a", "file": "deep/b.jsonl", "line": 3}) == "a/deep/b.jsonl:3"
    assert (cut("x" * 300), cut("x" * 301)) == ("x" * 300, "x" * 300 + "…")
    entry = bad(1, "odd", instruction="x" * 30_000)
    assert len(entry["row"]) == module.ROW_CHARS
    assert json.loads(bad(1, "odd", output="zwölf")["row"]) == {"output": "zwölf"}
    assert "zwölf" in bad(1, "odd", output="zwölf")["row"]
