"""The leak: each test counts what it says, every row counts once, and both rows of a twin are named."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import Similarity
from tasks.leak import SHOWN, measure
from tasks.schema import EXAMPLE

SIMILARITY = Similarity(threshold=0.7)


def example(line: int, text: str, output: str = "yes") -> dict[str, Any]:
    blank = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []}
    return blank | {"source": "s", "file": "s", "line": line, "instruction": text, "output": output}


def text(number: int) -> str:
    return " ".join(f"t{number}x{at}" for at in range(40))


def leak(folder: Path, **splits: list[list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What is measured of splits that are given as shards."""
    for name, shards in splits.items():
        (folder / name).mkdir(parents=True)
        for number, rows in enumerate(shards):
            pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE), folder / name / f"part-{number:05d}.parquet")
    return measure(folder, SIMILARITY, folder / "scratch")


def test_each_test_counts_what_it_says_over_all_shards_and_a_row_counts_once(tmp_path):
    train = [[example(line, text(line)) for line in range(first, first + 10)] for first in (1, 11, 21)]
    exact = [example(100 + line, text(line)) for line in (30, 11, 1)]
    folded = [example(200, text(12).upper().replace(" ", "  "))]
    near = [example(300, text(13) + " and more"), example(301, text(2) + " and less")]
    fresh = [example(400 + line, text(400 + line)) for line in range(4)]
    doubles = [example(500, text(400)), example(501, text(401))]  # twins within what is held out are no leak
    found = leak(tmp_path, train=train, validation=[fresh[:2], doubles], test=[exact, [], folded + near + fresh])
    assert found["validation"] == {
        "rows": 4, "exact": 0, "normalised": 0, "near_duplicate": 0, "ratio": 0.0, "first": [],
    }  # fmt: skip
    first = ["s:130 ~ s:30", "s:111 ~ s:11", "s:101 ~ s:1", "s:200 ~ s:12", "s:300 ~ s:13"]
    assert found["test"] == {
        "rows": 10, "exact": 3, "normalised": 4, "near_duplicate": 6, "ratio": 0.6, "first": first,
    }  # fmt: skip
    assert len(first) == SHOWN


def test_another_answer_is_no_equal_row_and_texts_without_words_are_compared_too(tmp_path):
    train = [[example(1, "Say it.", "yes"), example(2, "?!", "...")]]
    found = leak(tmp_path, train=train, validation=[[example(3, "Say it.", "Not at all, never.")]], test=[train[0]])
    assert found["validation"]["ratio"] == 0
    assert (found["test"]["exact"], found["test"]["ratio"]) == (2, 1.0)


def test_an_empty_train_and_an_empty_test_leak_nothing(tmp_path):
    rows = [[example(1, text(1))]]
    assert leak(tmp_path / "1", train=[[]], validation=rows, test=[[]])["validation"]["ratio"] == 0
    assert leak(tmp_path / "2", train=rows, validation=rows, test=[[]])["test"]["ratio"] == 0
