"""Pairs across shards: the same, however the rows are cut into shards and the bands into parts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import ledger
from tasks import near_pairs as module
from tasks.config import Similarity
from tasks.near_pairs import near_pairs
from tasks.schema import EXAMPLE

SIMILARITY = Similarity(threshold=0.6)


def texts(rows: int = 600) -> list[str]:
    """Every third text is a near-duplicate of the one before it."""
    made = []
    for number in range(rows):
        words = [f"w{(number - (number % 3 == 2)) * 17 + at}" for at in range(40)]
        made.append(" ".join(words[: 40 - (number % 3 == 2) * 4]))
    return made


def shards(folder: Path, rows: list[str], size: int) -> list[Path]:
    folder.mkdir()
    blank = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": [], "line": 1}
    paths = []
    for start in range(0, len(rows), size):
        table = pa.Table.from_pylist([blank | {"output": text} for text in rows[start : start + size]], schema=EXAMPLE)
        paths.append(folder / f"part-{len(paths):05d}.parquet")
        pq.write_table(table, paths[-1])
    return paths


@pytest.mark.parametrize(("size", "keys_in_part"), [(600, 50_000_000), (97, 50_000_000), (97, 100), (1, 250)])
def test_cuts_change_nothing(tmp_path, monkeypatch, size, keys_in_part):
    rows = texts(600 if size > 1 else 60)
    whole = near_pairs(shards(tmp_path / "whole", rows, len(rows)), SIMILARITY, tmp_path / "scratch1")
    assert len(whole.rows) >= len(rows) // 3
    monkeypatch.setattr(module, "KEYS_IN_PART", keys_in_part)
    cut = near_pairs(shards(tmp_path / "cut", rows, size), SIMILARITY, tmp_path / "scratch2")
    assert np.array_equal(whole.rows, cut.rows) and np.array_equal(whole.jaccard, cut.jaccard)
    one, several = (list((tmp_path / name).glob("candidates-*")) for name in ("scratch1", "scratch2"))
    assert len({path.stem.rpartition("-")[2] for path in several}) == len(rows) // keys_in_part + 1
    assert sum(len(np.load(path)) for path in several) == sum(len(np.load(path)) for path in one), "no key in two parts"


def test_cuts_between_the_rows_of_a_pair_keep_its_similarity(tmp_path, monkeypatch):
    """Small batches within a shard, and pairs of a shard with itself, with the next and with the last one."""
    rows = texts(40)
    rows += [f"{text} end" for text in rows[::5]]
    whole = near_pairs(shards(tmp_path / "whole", rows, len(rows)), SIMILARITY, tmp_path / "scratch1")
    monkeypatch.setitem(ledger.batches.__kwdefaults__, "rows", 3)
    cut = near_pairs(shards(tmp_path / "cut", rows, 17), SIMILARITY, tmp_path / "scratch2")
    assert np.array_equal(whole.rows, cut.rows) and np.array_equal(whole.jaccard, cut.jaccard)
    assert {tuple(home) for home in (whole.rows // 17).tolist()} >= {(0, 0), (0, 2), (1, 2)}


def test_every_pair_is_verified_by_the_exact_similarity_of_its_texts(tmp_path):
    """Bands find pairs below the threshold as well; each pair that is told is as similar as it says."""
    rows = [" ".join(f"w{number % 25}x{at}" for at in range(number // 4, 40)) for number in range(100)]
    grams = [{tuple(row.split()[at : at + 3]) for at in range(len(row.split()) - 2)} for row in rows]
    found = near_pairs(shards(tmp_path / "shards", rows, 30), SIMILARITY, tmp_path / "scratch")
    exact = {
        (one, other): len(grams[one] & grams[other]) / len(grams[one] | grams[other])
        for other in range(len(rows))
        for one in range(other)
    }
    told = dict(zip(map(tuple, found.rows.tolist()), found.jaccard.tolist(), strict=True))
    assert told == {pair: value for pair, value in exact.items() if value >= 0.6}
    looked_at = {tuple(pair) for path in (tmp_path / "scratch").glob("candidates-*") for pair in np.load(path).tolist()}
    assert any(exact[pair] < 0.6 for pair in looked_at), "else this test could not fail"


def test_pairs_at_the_threshold_itself_count(tmp_path):
    rows = ["one text of some words", "One text,  of some words!", "one text of other words"]
    paths = shards(tmp_path / "shards", rows, 2)
    found = near_pairs(paths, Similarity(threshold=1.0), tmp_path / "scratch")
    assert (found.rows.tolist(), found.jaccard.tolist()) == ([[0, 1]], [1.0])


def test_rows_that_do_not_count_are_in_no_pair_and_rank_says_which_is_first(tmp_path):
    rows = texts()
    paths = shards(tmp_path / "shards", rows, 97)
    every = near_pairs(paths, SIMILARITY, tmp_path / "1").rows
    alive = np.arange(len(rows)) % 2 == 0
    some = near_pairs(paths, SIMILARITY, tmp_path / "2", alive).rows
    assert np.array_equal(some, every[alive[every].all(axis=1)])
    backwards = near_pairs(paths, SIMILARITY, tmp_path / "3", rank=np.arange(len(rows))[::-1]).rows
    assert sorted(map(tuple, backwards[:, ::-1].tolist())) == sorted(map(tuple, every.tolist()))


def test_no_rows_and_no_pairs_are_no_trouble(tmp_path):
    assert near_pairs(shards(tmp_path / "a", ["one text", "another one"], 1), SIMILARITY, tmp_path / "1").rows.size == 0
    empty = tmp_path / "b"
    empty.mkdir()
    pq.write_table(EXAMPLE.empty_table(), empty / "part-0.parquet")
    assert near_pairs([empty / "part-0.parquet"], SIMILARITY, tmp_path / "2").rows.shape == (0, 2)
