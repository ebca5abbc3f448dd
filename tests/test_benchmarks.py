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


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import training

    return training


TRAINED = [{"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))} for n in range(1, 41)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Lines of a run in which every step is a whole epoch, with a peer whose interpreter does not have it."""
    python = tmp_path_factory.mktemp("peer") / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'trl'\" >&2; exit 1\n")
    python.chmod(0o755)
    model = ["--hidden", 64, "--layers", 1, "--vocabulary", 400, "--capacity", 256, "--packed-rows", 64]
    made = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    made.write_text("".join(json.dumps(row) + "\n" for row in TRAINED))
    length = ["--rows-from", made, "--rows", len(TRAINED), "--warm-up", 1, "--steps", 2, "--rounds", 2, "--threads", 1]
    systems = ["--systems", "bare-loop", "trainer-packed", "trl-packed", "--python", f"trl={python}"]
    command = [sys.executable, BENCHMARKS / "training.py", "--works", "training", *model, *length, *systems]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    missing = [line for line in done.stdout.splitlines() if line.startswith("not measured: ")]
    assert [line.split(": ")[2:4] for line in missing] == [["trl-packed", "ModuleNotFoundError"]]
    return lines(done.stdout)


def figures(found: list[dict], unit: str) -> dict[str, float]:
    return {line["system"].split()[0]: line["value"] for line in found if line["unit"] == unit}


@pytest.mark.slow
def test_every_system_trains_on_the_same_tokens(trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import training_inputs

    lengths = training_inputs.make_rows(tmp_path / "shared", TRAINED, 256, 400)
    tokens = figures(trained, "useful tokens/step")
    assert tokens == dict.fromkeys(("attune", "bare-loop", "trainer-packed"), sum(lengths)), "and padding is none"


@pytest.mark.slow
def test_training_is_compared_with_ours(trained):
    assert {tuple(line) for line in trained} == {("work", "system", "value", "unit", "ratio_to_ours")}
    words = ("least", "median", "most")
    ratios = [figures(trained, f"ours as a multiple of its useful tokens/s, {word}") for word in words]
    assert {found["attune"] for found in ratios} == {1.0}
    assert ratios[0]["bare-loop"] <= ratios[1]["bare-loop"] <= ratios[2]["bare-loop"]


@pytest.mark.slow
def test_peak_memory_is_that_of_training(trained):
    above, whole = (figures(trained, unit) for unit in ("MiB above the start", "MiB at peak"))
    assert all(0 < above[system] < whole[system] - 50 for system in whole), "what is imported does not count"


def test_systems_are_compared_round_by_round(training):
    fast, slow = ([{"rate": rate} for rate in rates] for rates in ((8.0, 4.0, 6.0), (4.0, 4.0, 2.0)))
    measured = [training.Measured(name, "1", rounds) for name, rounds in (("attune", fast), ("peer", slow))]
    assert training.multiples(*measured, "rate") == (1.0, 2.0, 3.0)


def test_peak_memory_forgets_what_was_before(training):
    import training_systems

    held = b"x" * (200 * 2**20)
    peak = training_systems._status_mib("VmHWM")
    del held
    training_systems._forget_peak()
    assert training_systems._status_mib("VmHWM") < peak - 150


def test_rows_are_those_of_attune_and_packed_only_with_padding_left_out(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import pyarrow.parquet as pq
    import rows
    import training_inputs
    from transformers import AutoTokenizer

    from tasks.ledger import read

    lengths = training_inputs.make_rows(tmp_path / "shared", list(rows.make(60)), 128, 400)
    train = read(tmp_path / "shared" / "format" / "train").to_pylist()
    packed = pq.read_table(tmp_path / "shared" / "packed.parquet").to_pylist()
    assert 0 < len(train) < 60, "rows that do not fit are left out"
    assert sum(lengths) == sum(len(row["input_ids"]) for row in packed)
    assert all(0 not in row["input_ids"] for row in packed), "token 0 is padding"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "shared" / "tokenizer")
    chats = [json.loads(line) for line in (tmp_path / "shared" / "chats.jsonl").read_text().splitlines()]
    for chat, row in zip(chats, train, strict=True):
        asked = tokenizer.apply_chat_template(chat["prompt"], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(chat["prompt"] + chat["completion"], return_dict=False)
        assert row["input_ids"] == whole, "who is given the chats trains on the tokens of attune"
        assert row["labels"] == [-100] * len(asked) + whole[len(asked) :], "and supervises the same"


def test_weights_and_operations_are_those_of_the_published_models(training, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import training_inputs

    norms = {"0.6B": 28 * (2 * 1024 + 2 * 128) + 1024, "1.7B": 28 * (2 * 2048 + 2 * 128) + 2048}
    published = {"0.6B": 596_049_920, "1.7B": 1_720_574_976}
    for name, count in published.items():
        assert training.parameters(training_inputs.large(name)) == count - norms[name]
    sizes = training_inputs.large("0.6B")
    weights = training.parameters(sizes)
    attention = 12 * 28 * 16 * 128 * 50  # each of 100 tokens looks at 50 on average
    assert training.flops_per_token(sizes, [100, 100], "full") == 6 * weights + attention
    assert training.flops_per_token(sizes, [100, 100], "lora") == 4 * weights + attention
    assert training.flops_per_token(sizes, [100, 300], "full") > training.flops_per_token(sizes, [200, 200], "full")


def test_utilisation_is_the_share_of_the_peak(training, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    rounds = [{"tokens_per_s": 50_000.0, "gpu_mib": 10_000.0, "tokens_per_step": 8000.0}]
    monkeypatch.setattr(training, "_trained", lambda *_: ([training.Measured("attune", "1", rounds)], [100, 100]))
    training.main(["--gpu", "--peak-tflops", "790"])
    found = [line for line in lines(capsys.readouterr().out) if line["unit"] == "of the peak FLOP/s"]
    assert [line["work"].split(",")[0] for line in found] == ["training of 0.6B"] * 2 + ["training of 1.7B"] * 2
    assert found[1]["value"] == pytest.approx(50_000 * (6 * 595_984_384 + 12 * 28 * 2048 * 50) / 790e12, abs=1e-5)


def test_rows_are_compared_as_often_as_they_stand(training):
    assert training.shared(["a", "b", "b"], ["b", "a", "b"]) == 1.0
    assert training.shared(["a", "b", "b", "b"], ["a", "b", "b", "c"]) == 0.75
    assert training.shared(["a"], ["a", "b"]) == 0.5, "a row that is gone is a difference"


def test_ours_has_to_run(training, monkeypatch):
    import training_turns

    with pytest.raises(SystemExit, match="attune failed:\ntorn"):
        training_turns._say_not_measured("work", "attune", training_turns.NotMeasured("torn"))


def test_the_interpreter_of_a_training_peer_has_to_be_there(training, capsys):
    for named in ("trl=/nowhere/python", f"unknown={sys.executable}"):
        with pytest.raises(SystemExit):
            training.main(["--python", named])
        assert f"--python {named.split('=')[0]}: no interpreter of trl or llamafactory" in capsys.readouterr().err


def test_a_gpu_has_to_be_there(training, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(training, "_trained", lambda *_: pytest.fail("trains on the CPU"))
    with pytest.raises(SystemExit, match="--gpu: torch sees no CUDA device"):
        training.main(["--gpu"])
