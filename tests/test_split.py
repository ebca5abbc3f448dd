"""Split: nothing learnt is asked again, no new row moves an old one, and no split is empty."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import ledger
from tasks.config import SplitConfig
from tasks.errors import EmptySplitError, LeakError
from tasks.layout import SPLITS
from tasks.ledger import Summary, read
from tasks.placing import by_hash
from tasks.schema import EXAMPLE
from tasks.split import split

Rows = list[dict[str, Any]]


def examples(groups: list[str], bound: str = "", **fields: Any) -> Rows:
    """One row for each of `groups`, of a source bound to the split `bound`; no two are alike."""
    empty = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []}
    return [
        empty
        | {"id": f"{bound}{line}", "source": bound or "s", "file": "f", "line": line, "group": group, "split": bound}
        | {"instruction": f"{bound}{line} {group}", "output": f"answer {bound}{line}"} | fields
        for line, group in enumerate(groups, start=1)
    ]  # fmt: skip


def run(folder: Path, rows: Rows, previous: Path | None = None, **config: Any) -> tuple[Summary, dict[str, str]]:
    """The summary of the stage, and where each row went: id -> split or reject reason."""
    cleaned, out = folder / "clean" / "examples", folder / "out"
    cleaned.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), 700)):
        shard = pa.Table.from_pylist(rows[start : start + 700], schema=EXAMPLE)
        pq.write_table(shard, cleaned / f"part-{number:05d}.parquet")
    memory = {"previous": previous} if previous else {}
    summary = split(SplitConfig(**config), {"clean": folder / "clean"} | memory, out)
    rejected = read(out / "rejected").to_pylist()
    kept = {name: read(out / name).to_pylist() for name in SPLITS}
    by_id = {row["id"]: row for row in rows}
    places = {row["id"]: name for name in SPLITS for row in kept[name] if row == by_id[row["id"]]}
    assert summary.rows_in == len(rows) == summary.rows_kept + len(rejected)
    assert summary.rows_kept == len(places)
    assert summary.rejected == Counter(row["reason"] for row in rejected)
    assert {name: summary.figures[name] for name in SPLITS} == {name: len(kept[name]) for name in SPLITS}
    assert sorted(path.name for path in out.iterdir()) == ["rejected", "test", "train", "validation"]
    return summary, places | {row["id"]: row["reason"] for row in rejected}


@pytest.mark.parametrize("method", ["random", "stratified", "grouped", "unseen_instructions"])
@pytest.mark.parametrize("where", ["behind", "before", "among"])
def test_growing_in_five_steps_never_moves_an_old_row(tmp_path, method, where):
    """New rows come behind, before and among the old ones, and some are near-duplicates of rows in two splits."""
    rng = random.Random(0)  # noqa: S311
    words = [f"w{number}" for number in range(5000)]
    texts = [" ".join(rng.sample(words, 30)) for _ in range(600)]
    for _ in range(200):  # half of one old text and half of another: near to both at 0.3
        one, other = rng.sample(range(len(texts)), 2)
        texts.append(" ".join(texts[one].split()[:15] + texts[other].split()[15:]))
    rows = [
        row | {"instruction": text, "output": "", "task": f"task {number % 40}"}
        for number, (row, text) in enumerate(zip(examples([f"g{n % 700}" for n in range(800)]), texts, strict=True))
    ]
    config = {"method": method, "validation": 0.2, "test": 0.2, "similarity": {"threshold": 0.3}, "max_leak_ratio": 1.0}
    before: dict[str, str] = {}
    known: Rows = []
    previous = None
    for step in range(5):
        new = rows[160 * step : 160 * (step + 1)]
        known = {"behind": known + new, "before": new + known, "among": rng.sample(known + new, len(known + new))}[
            where
        ]
        summary, places = run(tmp_path / str(step), known, previous, **config)
        old = {row: split for row, split in before.items() if split in SPLITS}
        assert {row: places[row] for row in old} == old
        before, previous = places, tmp_path / str(step) / "out"
    if method == "grouped":
        assert summary.rejected.get("joins_two_splits", 0) > 5
        assert summary.figures["leak"]["test"]["ratio"] == summary.figures["leak"]["validation"]["ratio"] == 0
    elif method != "unseen_instructions":
        assert not summary.rejected


def test_without_its_memory_a_new_row_before_the_old_ones_could_move_them(tmp_path):
    """The guard bites: the same growth, when the last split is not given, moves a row."""
    text = " ".join(f"w{number}" for number in range(30))
    homes = {name: next(g for g in map(str, range(99)) if by_hash(g, SplitConfig()) == name) for name in SPLITS}
    filler = [row for name, group in homes.items() for row in examples([f"{group}"], source=name)]
    filler = [row | {"id": f"filler {row['source']}", "instruction": f"filler {row['source']}"} for row in filler]
    old = examples([homes["test"]], id="old", instruction=text)
    new = examples(["other"], id="new", instruction=f"{text} more")
    assert by_hash("other", SplitConfig()) == "train"
    _, first = run(tmp_path / "1", filler + old)
    assert first["old"] == "test"
    _, forgot = run(tmp_path / "2", filler + new + old)
    _, remembers = run(tmp_path / "3", filler + new + old, tmp_path / "1" / "out")
    assert forgot["old"] != "test"
    assert (remembers["old"], remembers["new"]) == ("test", "test")


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


TEXT = " ".join(f"word{number}" for number in range(40))


@pytest.mark.parametrize(
    ("copy", "test"),
    [
        (TEXT, "exact"),
        (TEXT.upper().replace(" ", "  "), "normalised"),
        (TEXT + " more words", "near_duplicate"),
    ],
)
def test_a_planted_leak_is_measured_and_stops_the_run(tmp_path, copy, test):
    """Groups that the data names wrongly put copies of 20 test rows into train: all 20 are found."""
    filler = examples([f"g{number}" for number in range(200)])
    number = iter(range(10_000))
    held_out = examples([f"h{next(number)}" for _ in range(20)], "test")
    learnt = examples([f"l{next(number)}" for _ in range(20)], "train")
    for at, (one, other) in enumerate(zip(held_out, learnt, strict=True)):
        one["instruction"], other["instruction"] = (
            TEXT.replace("word", f"t{at}x"),
            copy.replace("word", f"t{at}x").replace("WORD", f"T{at}X"),
        )
        one["output"] = other["output"] = "yes"
    rows = filler + held_out + learnt
    config = {"method": "random", "validation": 0.1, "test": 0.0}
    with pytest.raises(LeakError, match=r"100.00% of the 20 rows of test stand in train.*First: test/f:1 ~ train/f:1"):
        run(tmp_path / "stopped", rows, **config)
    summary, _ = run(tmp_path / "allowed", rows, max_leak_ratio=1.0, **config)
    leak = summary.figures["leak"]["test"]
    assert (leak["rows"], leak[test], leak["ratio"]) == (20, 20, 1.0)
    stronger = {"exact": [], "normalised": ["exact"], "near_duplicate": ["exact", "normalised"]}[test]
    assert [leak[each] for each in stronger] == [0] * len(stronger)
    assert len(leak["first"]) == 5
    assert summary.figures["leak"]["validation"]["ratio"] == 0
    summary, places = run(tmp_path / "grouped", rows, **config | {"method": "grouped"})
    assert summary.figures["leak"]["test"]["ratio"] == 0
    assert {places[row["id"]] for row in learnt} == {"near_duplicate_in_test"}


def test_as_much_leak_as_is_allowed_is_allowed(tmp_path):
    rows = examples([f"g{number}" for number in range(200)])
    held_out, learnt = examples([f"h{n}" for n in range(20)], "test"), examples(["l"], "train")
    learnt[0] |= {"instruction": held_out[3]["instruction"], "output": held_out[3]["output"]}
    config = {"method": "random", "validation": 0.1, "test": 0.0, "similarity": {"threshold": 1.0}}
    summary, _ = run(tmp_path / "1", rows + held_out + learnt, max_leak_ratio=0.05, **config)
    assert summary.figures["leak"]["test"]["ratio"] == 0.05
    with pytest.raises(LeakError, match=r"5.00% of the 20 rows of test .*First: test/f:4 ~ train/f:1\."):
        run(tmp_path / "2", rows + held_out + learnt, max_leak_ratio=0.049, **config)


def test_a_leak_into_validation_stops_the_run_as_well(tmp_path):
    rows = examples([f"g{number}" for number in range(200)])
    held_out, learnt = examples(["v1", "v2"], "validation"), examples(["l"], "train")
    learnt[0] |= {"instruction": held_out[1]["instruction"], "output": held_out[1]["output"]}
    with pytest.raises(LeakError, match=r"50.00% of the 2 rows of validation"):
        run(tmp_path, rows + held_out + learnt, method="random", validation=0.0, test=0.1)


@pytest.mark.parametrize("method", ["random", "grouped"])
def test_rows_read_in_small_batches_go_where_they_went_before(tmp_path, monkeypatch, method):
    rows = [row | {"task": row["group"]} for row in examples([f"g{number % 90}" for number in range(200)])]
    rows += examples([f"g{number}" for number in range(60, 95)], "test")
    config = {"method": method, "validation": 0.2, "max_leak_ratio": 1.0}
    whole = run(tmp_path / "whole", rows, **config)
    monkeypatch.setitem(ledger.batches.__kwdefaults__, "rows", 7)
    assert run(tmp_path / "cut", rows, **config) == whole
    assert whole[0].rejected["group_in_test"] > 20


def test_near_duplicates_share_a_split_and_a_row_between_two_splits_is_rejected(tmp_path):
    words = [f"w{number}" for number in range(400)]
    chains = [" ".join(words[at : at + 40]) for at in range(0, 200, 2)]  # each is near to those beside it
    rows = examples([f"g{number}" for number in range(400)])
    for row, text in zip(rows, chains, strict=False):
        row["instruction"] = text
    summary, places = run(tmp_path, rows, validation=0.3, test=0.3)
    chain = [places[row["id"]] for row in rows[: len(chains)]]
    assert len(set(chain)) == 1, "each row of the chain follows the one before it"
    assert summary.rejected == {}


def test_stratified_gives_every_task_its_share(tmp_path):
    tasks = [f"t{number % 7}" for number in range(700)]
    rows = [row | {"task": task} for row, task in zip(examples([f"g{n}" for n in range(700)]), tasks, strict=True)]
    _, places = run(tmp_path, rows, method="stratified", validation=0.1, test=0.2)
    counts = Counter((row["task"], places[row["id"]]) for row in rows)
    assert counts == {(f"t{n}", name): size for n in range(7) for name, size in zip(SPLITS, (70, 10, 20), strict=True)}


def test_stratified_by_label_and_a_growing_stratum_keeps_its_share(tmp_path):
    rows = [row | {"label": "ab"[n % 5 == 0]} for n, row in enumerate(examples([f"g{n}" for n in range(1000)]))]
    config = {"method": "stratified", "stratify_by": "label", "validation": 0.1, "test": 0.1}
    _, first = run(tmp_path / "1", rows[:500], **config)
    _, places = run(tmp_path / "2", rows, tmp_path / "1" / "out", **config)
    counts = Counter((row["label"], places[row["id"]]) for row in rows)
    assert (counts["b", "test"], counts["a", "test"], counts["b", "validation"]) == (20, 80, 20)
    assert {row: places[row] for row in first} == first


def test_unseen_instructions_holds_whole_tasks_out(tmp_path):
    rows = [row | {"task": f"t{n % 60}"} for n, row in enumerate(examples([f"g{n}" for n in range(600)]))]
    _, places = run(tmp_path, rows, method="unseen_instructions", validation=0.2, test=0.2)
    homes = {(row["task"], places[row["id"]]) for row in rows}
    assert len(homes) == 60 and {home for _, home in homes} == set(SPLITS)
