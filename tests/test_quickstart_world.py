"""The quickstart's world: reproducible data, no leak into tuning, a small and plain base model."""

import itertools
import json
import re
import struct
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "data" / "quickstart"
sys.path.insert(0, str(FOLDER))

import corpus  # noqa: E402
import make_data  # noqa: E402
import world  # noqa: E402

TESTS = [f"test_{kind}{suffix}.jsonl" for kind in ("facts", "skills") for suffix in ("", "_new_phrasings")]
MAX_BYTES = 8_000_000
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def lines(name: str) -> list[str]:
    return (FOLDER / name).read_text(encoding="utf-8").splitlines()


def parsed(name: str) -> list[dict]:
    """The rows of a file that are JSON objects."""
    rows = []
    for line in lines(name):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def normal(text: str) -> str:
    """What stays of a text when case, space and punctuation change; numbers and signs stay apart."""
    text = re.sub(r"(?<=\d) +(?=\d)", "_", text.casefold())
    return "".join(char for char in text if char.isalnum() or char in "_+-")


def contains(text: str, words: str) -> bool:
    """True when the words stand in the text as whole words; Chinese has no word borders, so anywhere."""
    if words not in text:
        return False
    if not words.isascii():
        return True
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(words)}(?![A-Za-z0-9])", text) is not None


@pytest.fixture(scope="module")
def tuning_texts() -> list[str]:
    """Every tuning line as text, broken ones as they are; task and group names left out where they parse."""
    texts = []
    for line in lines("instructions.jsonl"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = line
        fields = [row[f] for f in ("instruction", "input", "output")] if isinstance(row, dict) else [str(row)]
        texts.append("\n".join(fields))
    return texts


def test_data_files_are_reproduced_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(tmp_path)])
    make_data.main()
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(made) == {"instructions.jsonl", *TESTS}
    for name, content in made.items():
        assert content == (FOLDER / name).read_bytes(), name


def test_there_is_enough_of_everything():
    rows = parsed("instructions.jsonl")
    assert len(rows) >= 3000
    assert len({row["task"] for row in rows}) >= 12
    assert any(row["instruction"].isascii() for row in rows)
    assert any(not row["instruction"].isascii() for row in rows)
    for name in TESTS[:2]:
        tasks = [row["task"] for row in parsed(name)]
        assert set(tasks) == set(world.fact_tasks())
    assert min(tasks.count(task) for task in tasks) >= 14
    for name in TESTS[2:]:
        assert {row["task"] for row in parsed(name)} == set(world.skill_tasks())


def test_real_dirt_is_there_and_small():
    raw = lines("instructions.jsonl")
    rows = parsed("instructions.jsonl")
    broken = len(raw) - len(rows)
    empty = sum(not row["output"] for row in rows)
    replaced = sum("\ufffd" in row["output"] for row in rows)
    mojibake = sum(any("\x80" <= char <= "\xff" for char in row["output"]) for row in rows)
    long = sum(len(row["input"]) > 5000 for row in rows)
    exact = len(raw) - len(set(raw))
    different = {(normal(row["instruction"]), normal(row["input"]), row["output"]) for row in rows}
    near = len(rows) - len(different) - exact
    counts = (broken, empty, replaced, mojibake, long, exact, near)
    assert all(count > 0 for count in counts), counts
    assert sum(counts[:5]) < 0.05 * len(raw)


def test_halves_are_disjoint_by_group():
    tuned = {row["group"] for row in parsed("instructions.jsonl")}
    for name in TESTS:
        rows = parsed(name)
        assert not tuned & {row["group"] for row in rows}, name


def test_no_held_out_fact_occurs_in_any_tuning_row(tuning_texts):
    """Subject and value of a held-out fact never stand together, whatever the task or the damage."""
    held = {
        (item.slots["s"], item.value)
        for task in world.fact_tasks()
        for language in world.LANGUAGES
        for item in world.facts(task, language)
        if world.is_held_out(item)
    }
    assert len(held) > 900
    for name in TESTS[:2]:
        for row in parsed(name):
            text = f"{row['instruction']}\n{row['input']}"
            assert any(value == row["output"] and contains(text, subject) for subject, value in held), row
    for subject, value in held:
        for text in tuning_texts:
            assert not (contains(text, subject) and contains(text, value)), (subject, value, text)


def test_no_test_question_occurs_in_tuning():
    def question(row):
        return normal(row["instruction"]), normal(row["input"])

    tuned = {question(row) for row in parsed("instructions.jsonl")}
    for name in TESTS:
        for row in parsed(name):
            assert question(row) not in tuned, row


def test_new_phrasings_occur_only_in_their_test_files():
    def pattern(phrasing):
        parts = re.split(r"\{\w\}", phrasing.partition(" || ")[0])
        return ".+".join(normal(part) for part in parts)

    asks = [ask for task in world.tasks().values() for ask in task.get("ask", {}).values()]
    new = re.compile("|".join({pattern(phrasing) for ask in asks for phrasing in ask["new"]}))
    for name in ("instructions.jsonl", TESTS[0], TESTS[2]):
        for row in parsed(name):
            assert not new.fullmatch(normal(row["instruction"])), row
    for name in (TESTS[1], TESTS[3]):
        for row in parsed(name):
            assert new.fullmatch(normal(row["instruction"])), row


@pytest.mark.parametrize("mix", [corpus.FACTS, corpus.PRACTICE, corpus.ARITHMETIC], ids=lambda mix: mix.name)
def test_pretraining_text_holds_no_instruction_and_no_chat_token(mix):
    documents = list(itertools.islice(corpus.documents(f"{world.SEED}-{mix.name}-1.0", 1.0, mix), 4000))
    text = "\n".join(documents)
    for mark in (*CHAT_TOKENS, "?", "？", "user\n", "assistant"):
        assert mark not in text
    instructions = {row["instruction"] for name in ("instructions.jsonl", *TESTS) for row in parsed(name)}
    for instruction in instructions:
        assert instruction not in text, instruction


def test_base_model_is_small_and_plain():
    base = FOLDER / "base"
    names = {path.name for path in base.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert needed | {"tokenizer_config.json", "README.md"} == names
    weights = (base / "model.safetensors").read_bytes()
    assert len(weights) <= MAX_BYTES
    (header_bytes,) = struct.unpack("<Q", weights[:8])
    tensors = json.loads(weights[8 : 8 + header_bytes])
    assert {entry["dtype"] for name, entry in tensors.items() if name != "__metadata__"} == {"BF16"}
    config = json.loads((base / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert "auto_map" not in config


def test_base_tokenizer_has_the_chat_tokens_and_no_chat_template():
    base = FOLDER / "base"
    assert "chat_template" not in json.loads((base / "tokenizer_config.json").read_text())
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    assert {token["content"] for token in tokenizer["added_tokens"]} == set(CHAT_TOKENS)
