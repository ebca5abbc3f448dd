"""`attune check`: what a config would do and cost, for every family, without writing a thing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROWS, write_jsonl

from tasks import check as module
from tasks.check import check
from tasks.config import PipelineConfig
from tasks.errors import SourceError, TrainingError

INTENTS = [
    {"text": f"{verb} my {thing} now", "label": label}
    for verb, label in (("block", "lost_card"), ("show", "check_balance"), ("send", "transfer_money"))
    for thing in ("card", "account", "money", "order", "bank book", "second card", "old account")
]


def config(
    tmp_path: Path, base: Path, rows: list[object] | None = None, **sections: dict[str, object]
) -> PipelineConfig:
    raw = {
        "model": {"base": str(base)},
        "collect": {"sources": [{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows or ROWS[:60]))}]},
        "format": {"max_seq_length": 64},
        "fine_tune": {"precision": "fp32"},
        "store": str(tmp_path / "store"),
        "runs": str(tmp_path / "runs"),
    }
    return PipelineConfig.model_validate(raw | sections)


def learnt(found: module.Check) -> list[str]:
    return ["".join(span.text for span in sample if span.supervised) for sample in found.samples]


def test_a_decoder_shows_its_answers_and_the_cost_of_packed_rows(tmp_path, tiny_base):
    found = check(config(tmp_path, tiny_base))
    assert len(found.samples) == 3 and all(answer.split("<")[0] in {"red"} for answer in learnt(found))
    assert found.complete and found.truncated == 0
    assert found.training_rows > found.cost.steps / 3 * 8, "several examples share a row"
    assert found.cost.tokens == pytest.approx(3 * found.tokens)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_an_encoder_decoder_shows_what_is_asked_and_what_is_answered(tmp_path, scratch_base: Callable[[str], Path]):
    found = check(config(tmp_path, scratch_base("t5")))
    assert all(len(sample) == 2 and "Say the first of" in sample[0].text for sample in found.samples)
    assert all(answer.startswith("red") for answer in learnt(found))
    assert found.cost.steps == 3 * -(-found.training_rows // 8), "nothing is packed"


def test_a_classifier_knows_the_classes_of_all_sources(tmp_path, scratch_base: Callable[[str], Path]):
    sections = {"model": {"base": str(scratch_base("bert")), "family": "encoder_classifier"}}
    sections["collect"] = {
        "sources": [
            {"path": str(write_jsonl(tmp_path / f"{number}.jsonl", INTENTS[7 * number : 7 * number + 7]))}
            for number in range(3)
        ]
    }
    found = check(config(tmp_path, scratch_base("bert"), **sections))
    assert [dict(source.rejected) for source in found.sources] == [{}] * 3
    labels = {label for source in found.sources for encoded in source.training for label in encoded.labels}
    assert labels == {0, 1, 2}
    assert learnt(found) == ["lost_card"] * 3
    assert found.supervised_tokens == found.training_rows


def test_what_would_be_cut_off_is_counted_and_what_would_be_rejected_too(tmp_path, tiny_base):
    rows = [{"instruction": "Say it.", "output": "red " * length} for length in (1, 60, 70, 80)] * 5
    whole = check(config(tmp_path, tiny_base, rows))
    assert whole.sources[0].rejected["too_many_tokens"] == 15 and whole.truncated == 0
    cut = check(config(tmp_path, tiny_base, rows, format={"max_seq_length": 64, "truncation": "cut_output"}))
    assert cut.sources[0].rejected["too_many_tokens"] == 0
    assert 0 < cut.truncated < cut.training_rows


def test_counts_are_scaled_to_the_rows_that_were_not_looked_at(tmp_path, tiny_base, monkeypatch):
    every = check(config(tmp_path, tiny_base, ROWS[:80]))
    monkeypatch.setattr(module, "SAMPLE_ROWS", 20)
    some = check(config(tmp_path, tiny_base, ROWS[:80]))
    assert not some.complete and some.sources[0].looked_at == 20 and some.sources[0].rows == 80
    assert some.training_rows == pytest.approx(every.training_rows, rel=0.2)
    assert some.cost.steps == pytest.approx(every.cost.steps, rel=0.35)


def test_disk_holds_the_tokens_and_the_exported_model_beside_the_training(tmp_path, tiny_base):
    found = check(config(tmp_path, tiny_base))
    weights = found.cost.model_bytes
    assert found.cost.disk_bytes == 4 * 3 * weights + 2 * weights + module.TOKENISED_BYTES * found.tokens


def test_nothing_to_train_on_and_nothing_to_read_are_told(tmp_path, tiny_base):
    with pytest.raises(TrainingError, match="none of the rows looked at would be trained on"):
        check(config(tmp_path, tiny_base, format={"max_seq_length": 8}))
    with pytest.raises(SourceError, match="is empty"):
        check(config(tmp_path, tiny_base, [""]))
