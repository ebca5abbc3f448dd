"""The benchmarks: what they print, and that the figures they print are those of the work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import rows

    return rows


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "data.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ours on few rows, and a peer whose interpreter does not have it."""
    python = tmp_path_factory.mktemp("peer") / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'datatrove'\" >&2; exit 1\n")
    python.chmod(0o755)
    sizes = ["--near-rows", 300, 600, "--data-rows", 300, "--repeat", 1]
    done = run(*sizes, "--systems", "attune", "datatrove", "--python", f"datatrove={python}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_every_line_of_a_benchmark_has_the_same_form(printed):
    found = lines(printed)
    assert {tuple(line) for line in found} == {("work", "system", "value", "unit", "ratio_to_ours")}
    assert all(isinstance(line["value"], int | float) for line in found)
    assert {line["unit"] for line in found} >= {"CPU s", "CPU s with start-up", "MiB at peak", "rows removed", "recall"}
    assert {line["ratio_to_ours"] for line in found if line["work"] == "data of 300 rows"} == {1.0}


def test_growth_is_that_of_the_figures(printed):
    found = lines(printed)
    few, many = (
        next(line["value"] for line in found if line["work"] == f"near_duplicates of {count} rows")
        for count in (300, 600)
    )
    growth = next(line["value"] for line in found if line["unit"] == "times the CPU s")
    assert growth == pytest.approx(many / few, rel=0.05)


def test_a_peer_that_is_not_there_is_named(printed):
    missing = [line for line in printed.splitlines() if line.startswith("not measured: ")]
    assert [line.split(": ")[1] for line in missing] == [
        "near_duplicates of 300 rows",
        "near_duplicates of 600 rows",
        "data of 300 rows",
    ]
    assert all("No module named 'datatrove' (pip install" in line for line in missing)


def test_ours_finds_what_is_planted(printed):
    quality = {line["unit"]: line["value"] for line in lines(printed) if line["work"] == "near_duplicates of 600 rows"}
    assert quality["rows removed"] > 5
    assert quality["recall"] > 0.9
    assert quality["precision"] == 1.0


def test_rows_are_the_same_at_every_run_and_have_planted_pairs(rows):
    made = list(rows.make(2000))
    assert made == list(rows.make(2000)) != list(rows.make(2000, seed=1))
    assert 250 < sum(len(row["output"]) for row in made) / len(made) < 330
    truth = rows.truth([rows.text(row) for row in made], len(made))
    assert len(truth.sample) == len(made)
    assert 2 * 0.02 * len(made) < len(truth.pairs) < 2 * 0.1 * len(made)


def test_truth_is_the_exact_jaccard_similarity(rows):
    texts = ["a b c d e f g h i j k l", "a b c d e f g h i j k x", "A, b c d e f g h i j k l!", "none of that", "x"]
    near = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]  # 9 n-grams of 11 are shared
    assert sorted(rows.truth(texts, len(texts)).pairs) == near
    far = [texts[0], "a b c d e f g h i j x l"]  # 8 of 12
    assert rows.truth(far, 2).pairs == []
    assert rows.grams("one two") == {("one", "two")}
    assert rows.grams("") == set()


def test_an_interpreter_that_is_not_there_is_refused():
    done = run("--near-rows", "--data-rows", "--python", "datatrove=/nowhere/python")
    assert done.returncode == 2
    assert "--python datatrove: no interpreter at '/nowhere/python'" in done.stderr


def test_quality_counts_pairs_and_rows(rows):
    from data import _quality

    truth = rows.Truth({0, 1, 2, 3}, [(0, 1), (1, 0), (2, 9)])
    assert _quality({1, 3, 7}, truth) == {"recall": 2 / 3, "precision": 0.5}
    assert _quality(set(), rows.Truth({0}, [])) == {"recall": 1.0, "precision": 1.0}
