"""Split: decided by the hash of a row's group alone, never straddled, never empty."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import SplitConfig
from tasks.errors import EmptySplitError
from tasks.ledger import Summary, read
from tasks.schema import EXAMPLE, SPLITS
from tasks.split import by_hash, split

Rows = list[dict[str, Any]]


def examples(groups: list[str], bound: str = "") -> Rows:
    """One row for each of `groups`, of a source bound to the split `bound`."""
    empty = dict.fromkeys(EXAMPLE.names, "")
    return [
        empty | {"id": f"{bound}{line}", "source": bound or "s", "line": line, "history": []}
        | {"group": group, "split": bound}
        for line, group in enumerate(groups, start=1)
    ]  # fmt: skip


def run(folder: Path, rows: Rows, **config: Any) -> tuple[Summary, dict[str, str]]:
    """The summary of the stage, and where each row went: id -> split or reject reason."""
    cleaned, out = folder / "clean" / "examples", folder / "out"
    cleaned.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), 700)):
        shard = pa.Table.from_pylist(rows[start : start + 700], schema=EXAMPLE)
        pq.write_table(shard, cleaned / f"part-{number:05d}.parquet")
    summary = split(SplitConfig(**config), {"clean": folder / "clean"}, out)
    rejected = read(out / "rejected").to_pylist()
    kept = {name: read(out / name).to_pylist() for name in SPLITS}
    by_id = {row["id"]: row for row in rows}
    places = {row["id"]: name for name in SPLITS for row in kept[name] if row == by_id[row["id"]]}
    assert summary.rows_in == len(rows) == summary.rows_kept + len(rejected)
    assert summary.rows_kept == len(places)
    assert summary.rejected == Counter(row["reason"] for row in rejected)
    assert summary.figures == {name: len(kept[name]) for name in SPLITS}
    return summary, places | {row["id"]: row["reason"] for row in rejected}


def test_new_rows_never_move_an_old_one(tmp_path):
    rows = examples([f"group {number % 900}" for number in range(2000)])
    before: dict[str, str] = {}
    for step in (1, 2, 3, 4, 5):
        _, places = run(tmp_path / str(step), rows[: 400 * step][::-1], validation=0.2, test=0.1)
        assert places | before == places
        before = places
    assert len(before) == len(rows)


def test_a_group_never_straddles_two_splits(tmp_path):
    rows = examples([f"group {number % 300}" for number in range(2500)])
    _, places = run(tmp_path, rows, validation=0.2, test=0.2)
    homes = {(row["group"], places[row["id"]]) for row in rows}
    assert len(homes) == 300
    assert {home for _, home in homes} == set(SPLITS)


def test_shares_are_as_asked_and_another_seed_gives_another_division():
    groups = [f"group {number}" for number in range(20_000)]
    config = SplitConfig(validation=0.05, test=0.1)
    places = [by_hash(group, config) for group in groups]
    shares = {name: count / len(groups) for name, count in Counter(places).items()}
    assert shares == pytest.approx({"train": 0.85, "validation": 0.05, "test": 0.1}, abs=0.005)
    others = [by_hash(group, SplitConfig(validation=0.05, test=0.1, seed=1)) for group in groups]
    both = sum(place == other == "test" for place, other in zip(places, others, strict=True))
    assert both / len(groups) == pytest.approx(0.1 * 0.1, abs=0.005)


def test_a_larger_share_only_adds_to_a_split():
    groups = [f"group {number}" for number in range(2000)]
    small, large = SplitConfig(validation=0, test=0.1), SplitConfig(validation=0, test=0.3)
    assert all(by_hash(group, large) == "test" for group in groups if by_hash(group, small) == "test")


def test_rows_of_a_bound_source_go_there_and_nothing_that_shares_their_group_is_trained_on(tmp_path):
    """test beats validation beats train; an unbound row may join what is bound to train, but no held-out split."""
    free = examples([f"group {number}" for number in range(500)])
    bound = [
        row
        for name, groups in (("train", ["t", "tv", "tt", "group 1"]), ("validation", ["v", "tv", "vt", "group 2"]),
                             ("test", ["e", "tt", "vt", "group 3"]))
        for row in examples(groups, name)
    ]  # fmt: skip
    _, places = run(tmp_path, free + bound, validation=0.2, test=0.2)
    assert {row["id"]: places[row["id"]] for row in bound} == {
        "train1": "train", "train2": "group_in_validation", "train3": "group_in_test", "train4": "train",
        "validation1": "validation", "validation2": "validation", "validation3": "group_in_test",
        "validation4": "validation", "test1": "test", "test2": "test", "test3": "test", "test4": "test",
    }  # fmt: skip
    by_group = {row["group"]: places[row["id"]] for row in free}
    assert [by_group.pop(f"group {number}") for number in (1, 2, 3)] == [
        "train",
        "group_in_validation",
        "group_in_test",
    ]
    assert set(by_group.values()) == set(SPLITS)


def test_bound_sources_are_enough_for_a_split_without_a_share(tmp_path):
    rows = examples(["a", "b"]) + examples(["c"], "validation") + examples(["d"], "test")
    _, places = run(tmp_path, rows, validation=0.0, test=0.0)
    assert list(places.values()) == ["train", "train", "validation", "test"]


@pytest.mark.parametrize(
    ("rows", "config", "empty"),
    [
        (examples(["a", "b"]), {"validation": 0.0, "test": 0.5, "seed": 3}, "validation"),
        (examples(["a", "b"]) + examples(["c"], "validation"), {"validation": 0.0, "test": 0.0}, "test"),
        (examples(["a"], "validation") + examples(["b"], "test"), {}, "train"),
        (examples(["a"]) + examples(["b"], "validation") + examples(["a"], "test"), {}, "train"),
    ],
)
def test_an_empty_split_fails_and_says_what_to_do(tmp_path, rows, config, empty):
    with pytest.raises(EmptySplitError, match=rf"no row of {len(rows)} went to {empty}.*bind a source to it"):
        run(tmp_path, rows, **config)
