"""Decontamination: what stands in a benchmark is found, named and shown; what only looks like it stays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl

from tasks import decontaminate
from tasks.clean import clean
from tasks.config import CleanConfig, DecontaminateConfig, NearDuplicatesConfig
from tasks.errors import SourceError
from tasks.ledger import read
from tasks.schema import EXAMPLE

WORDS = [f"word{number}" for number in range(60)]
BENCHMARK = [
    {"question": " ".join(WORDS[:30]), "answer": " ".join(WORDS[30:])},
    {"question": "二三四五六七八九十百千万億兆", "answer": "京"},
]


def example(line: int, instruction: str, output: str = "It is.") -> dict[str, Any]:
    blank = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []}
    place = {"id": f"{line:016x}", "source": "s", "file": "s", "line": line}
    return blank | place | {"instruction": instruction, "output": output}


def run(folder: Path, texts: list[str], *benchmarks: Path, **settings: Any) -> tuple[dict[int, tuple[str, str]], Any]:
    """Reason and detail of each row that was rejected, by line; and the figure `contaminated`."""
    (folder / "collect" / "examples").mkdir(parents=True, exist_ok=True)
    rows = [example(line, text) for line, text in enumerate(texts, start=1)]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE), folder / "collect" / "examples" / "part-0.parquet")
    against = {"against": [str(path) for path in benchmarks]} | settings
    out = folder / f"out{len(list(folder.iterdir()))}"
    config = CleanConfig(decontaminate=against, near_duplicates={"policy": "keep_all"})
    summary = clean(config, {"collect": folder / "collect"}, out)
    rejected = read(out / "rejected").to_pylist()
    kept = set(read(out / "examples")["line"].to_pylist())
    assert kept == {row["line"] for row in rows} - {row["line"] for row in rejected}
    return {row["line"]: (row["reason"], row["detail"]) for row in rejected}, summary.figures["contaminated"]


def test_a_row_with_thirteen_words_of_a_benchmark_goes_and_the_words_are_in_the_ledger(tmp_path):
    benchmark = write_jsonl(tmp_path / "exam.jsonl", BENCHMARK)
    thirteen = WORDS[10:23]
    texts = [
        "Now: " + " ".join(thirteen) + "! That was it.",
        "Now: " + ", ".join(word.upper() for word in thirteen),
        "Now: " + " ".join([*thirteen[:12], "else"]),
        "Nothing of it.",
        "說 二三四五六七八九十百千万億 了",
    ]
    found, counts = run(tmp_path, texts, benchmark)
    gram = " ".join(thirteen)
    assert found == {
        1: ("in_benchmark", f"exam.jsonl:1: {gram}"),
        2: ("in_benchmark", f"exam.jsonl:1: {gram}"),
        5: ("in_benchmark", "exam.jsonl:2: 二 三 四 五 六 七 八 九 十 百 千 万 億"),
    }
    assert counts == {"exam.jsonl: in_benchmark": 3}
    longer, _ = run(tmp_path, texts, benchmark, ngram_words=14)
    assert longer == {}


def test_a_near_duplicate_without_a_long_common_run_goes_as_well(tmp_path):
    benchmark = write_jsonl(tmp_path / "exam.jsonl", [{"text": " ".join(WORDS)}])
    changed = [word if number % 12 else "other" for number, word in enumerate(WORDS)]
    texts = [" ".join(changed), " ".join(reversed(WORDS))]
    found, counts = run(tmp_path, texts, benchmark, ngram_words=40)
    assert found == {}, "at 0.8 it is no near-duplicate"
    near = [word if number != 30 else "other" for number, word in enumerate(WORDS)]
    found, counts = run(tmp_path, [" ".join(near), *texts], benchmark, ngram_words=40)
    assert list(found) == [1] and found[1][0] == "near_benchmark"
    assert found[1][1].startswith("exam.jsonl:1: Jaccard similarity 0.8")
    assert counts == {"exam.jsonl: near_benchmark": 1}


def test_a_short_question_of_a_benchmark_is_found_whatever_is_answered(tmp_path):
    rows = [{"question": "What is it?", "answer": "A benchmark."}, {"question": "Who?", "answer": "Nobody at all."}]
    benchmark = write_jsonl(tmp_path / "exam.jsonl", rows)
    found, _ = run(tmp_path, ["what is IT", "So, what is it?", "A benchmark.", "Who"], benchmark)
    assert found == {
        1: ("in_benchmark", "exam.jsonl:1: asks what is it"),
        4: ("in_benchmark", "exam.jsonl:2: asks who"),
    }
    only_prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "What is it?"}])
    assert list(run(tmp_path, ["What is it?", "What was it?"], only_prompts)[0]) == [1]


def test_a_prompt_is_its_instruction_with_its_input(tmp_path):
    rows = [{"instruction": "Translate:", "input": "Hund", "output": "dog"}]
    benchmark = write_jsonl(tmp_path / "exam.jsonl", rows)
    found, _ = run(tmp_path, ["Translate: Hund", "Translate:", "Translate: Katze"], benchmark)
    assert list(found) == [1]
    config, similarity = DecontaminateConfig(against=[str(benchmark)]), NearDuplicatesConfig()
    loaded = decontaminate.load(config, similarity)
    texts = [example(line, "Translate:") | {"input": word} for line, word in enumerate(("Katze", "Hund", ""))]
    found = decontaminate.contaminated(pa.Table.from_pylist(texts, schema=EXAMPLE), loaded, config, similarity)
    assert [(each.row, each.detail) for each in found] == [(1, "exam.jsonl:1: asks translate hund")]


def test_of_both_reasons_the_shared_words_are_told(tmp_path):
    benchmark = write_jsonl(tmp_path / "exam.jsonl", [{"text": " ".join(WORDS)}])
    found, counts = run(tmp_path, [" ".join(WORDS), " ".join(WORDS)], benchmark)
    assert [reason for reason, _ in found.values()] == ["in_benchmark"] * 2
    assert counts == {"exam.jsonl: in_benchmark": 2}


def test_of_our_own_artifacts_only_what_is_said_is_a_benchmark(tmp_path):
    """A short prompt is found as a whole only, so nothing else of the row, such as its id, may be part of it."""
    row = example(1, "What is it?") | {"label": "x", "task": "y"}
    pq.write_table(pa.Table.from_pylist([row], schema=EXAMPLE), tmp_path / "test.parquet")
    found, _ = run(tmp_path, ["What is it?", "And what is it?", "x"], tmp_path / "test.parquet")
    assert list(found) == [1]
    assert found[1][1] == "test.parquet:1: asks what is it"


@pytest.mark.parametrize("column", ["history", "tool_turns"])
def test_the_turns_of_our_own_artifacts_are_part_of_a_benchmark(tmp_path, column):
    turns = [{"role": "tool", "content": " ".join(WORDS[:20]), "tool_calls": ""}]
    pq.write_table(pa.Table.from_pylist([example(7, "And?") | {column: turns}], schema=EXAMPLE), tmp_path / "t.parquet")
    found, _ = run(tmp_path, ["Nothing of it.", " ".join(WORDS[3:18])], tmp_path / "t.parquet")
    assert list(found) == [2]


@pytest.mark.parametrize("text", [" ".join(WORDS), "Nothing of it."], ids=["long", "short"])
def test_equal_hashes_alone_are_no_proof(tmp_path, text):
    """The hashes of one text, as if they belonged to another that has not got its words."""
    benchmark = write_jsonl(tmp_path / "exam.jsonl", [{"question": text, "answer": "It is."}])
    config, similarity = DecontaminateConfig(against=[str(benchmark)]), NearDuplicatesConfig()
    loaded = decontaminate.load(config, similarity)
    table = pa.Table.from_pylist([example(1, text)], schema=EXAMPLE)
    assert len(decontaminate.contaminated(table, loaded, config, similarity)) == 1
    for other in ("Something else.", " ".join(reversed(WORDS))):
        prompts = {key: (other, number) for key, (_, number) in loaded.prompts.items()}
        colliding = replace(loaded, texts=[other], keys=loaded.keys + 1, prompts=prompts)
        assert decontaminate.contaminated(table, colliding, config, similarity) == []


def test_several_benchmarks_of_any_shape_are_counted_apart(tmp_path):
    exam = write_jsonl(tmp_path / "exam.jsonl", [{"stem": " ".join(WORDS[:20]), "choices": {"text": WORDS[20:40]}}])
    test_set = tmp_path / "test_set.parquet"
    pq.write_table(pa.Table.from_pylist([example(9, " ".join(WORDS[40:]))], schema=EXAMPLE), test_set)
    texts = [" ".join(WORDS[:15]), " ".join(WORDS[20:35]), " ".join(WORDS[42:56]), "s s 9"]
    found, counts = run(tmp_path, texts, exam, test_set)
    assert counts == {"exam.jsonl: in_benchmark": 2, "test_set.parquet: in_benchmark": 1}
    assert found[3][1].startswith("test_set.parquet:1: word42 ")


@pytest.mark.parametrize("rows", [[{"id": 1}], ["{broken"]])
def test_a_benchmark_that_cannot_be_read_stops_the_run(tmp_path, rows):
    with pytest.raises(SourceError, match=r"exam\.jsonl"):
        run(tmp_path, ["a"], write_jsonl(tmp_path / "exam.jsonl", rows))


def test_a_conversation_is_found_as_a_whole_and_not_by_its_last_short_turn(tmp_path):
    def chat(line: int, asked: str, told: str, output: str) -> dict[str, Any]:
        turns = [("user", asked), ("assistant", told)]
        history = [{"role": role, "content": text, "tool_calls": ""} for role, text in turns]
        return example(line, "Go on.", output) | {"history": history}

    rows = [
        chat(1, "Tell me about Milan.", "It is a town.", "It has a cathedral."),
        chat(2, "Count to three.", "One.", "Two."),
        example(3, "Go on."),
    ]
    pq.write_table(pa.Table.from_pylist(rows[:1], schema=EXAMPLE), tmp_path / "t.parquet")
    config, similarity = DecontaminateConfig(against=[str(tmp_path / "t.parquet")]), NearDuplicatesConfig()
    loaded = decontaminate.load(config, similarity)
    found = decontaminate.contaminated(pa.Table.from_pylist(rows, schema=EXAMPLE), loaded, config, similarity)
    assert [each.row for each in found] == [0]
