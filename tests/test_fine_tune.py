"""Fine-tune: what the settings mean, step by step."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from conftest import COLOURS

from tasks.config import FineTuneConfig
from tasks.families import decoder_only
from tasks.fine_tune import fine_tune
from tasks.ledger import ShardWriter, read
from tasks.schema import IGNORE_INDEX, TOKENIZED
from tasks.training import last_checkpoint

BASE = {"precision": "fp32", "learning_rate": 0.01, "warmup_ratio": 0.0, "early_stopping_patience": 0}


def tokenized(count: int, packed: bool) -> pa.Table:
    """Examples of different lengths: a prompt of i tokens, then the first token of the prompt twice."""
    rows = []
    for i in range(count):
        prompt = [10 + (i * 7 + j * 3) % 200 for j in range(3 + i % len(COLOURS))]
        ids = [*prompt, prompt[0], prompt[0]]
        labels = [IGNORE_INDEX] * len(prompt) + ids[len(prompt) :]
        row = {"id": str(i), "source": "s", "line": i + 1, "task": "t", "input_ids": ids, "labels": labels}
        rows.append(row | {"prompt_tokens": len(prompt), "pack": i // 3 if packed else -1})
    return pa.Table.from_pylist(rows, schema=TOKENIZED)


@pytest.fixture
def formatted(tmp_path: Path) -> Path:
    for name, table in (("train", tokenized(48, packed=True)), ("validation", tokenized(12, packed=False))):
        writer = ShardWriter(tmp_path / "format" / name, TOKENIZED)
        writer.write(table)
        writer.close()
    return tmp_path / "format"


def run(formatted: Path, base: Path, out: Path, **settings: object):
    out.mkdir()
    summary = fine_tune(FineTuneConfig(**{**BASE, **settings}), {"format": formatted, "base": base}, out)
    return summary, read(out / "history").to_pylist()


def test_the_same_global_batch_gives_the_same_loss_and_weights(tmp_path, formatted, tiny_base):
    """Loss is weighted by supervised tokens over the global batch, however it is cut into forward passes."""
    results = []
    for number, (batch, accumulation) in enumerate([(8, 1), (1, 8), (4, 2)]):
        settings = {"per_device_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
        _, history = run(formatted, tiny_base, tmp_path / str(number), **settings)
        losses = [row["loss"] for row in history if row["loss"] is not None]
        weights = decoder_only.load(tmp_path / str(number) / "tuned").state_dict()
        results.append((losses, weights))
    losses, weights = results[0]
    for other_losses, other_weights in results[1:]:
        assert other_losses == pytest.approx(losses, abs=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(other_weights[name], weight, atol=2e-4, rtol=0)


def test_the_best_checkpoint_is_kept_and_is_the_one_that_history_says(tmp_path, formatted, tiny_base):
    """Trained far too hot, the last weights are worse than an earlier checkpoint's."""
    settings = {"epochs": 10.0, "learning_rate": 0.1, "lr_scheduler": "constant", "evals_per_epoch": 2}
    summary, history = run(formatted, tiny_base, tmp_path / "out", **settings)
    validations = {row["step"]: row["validation_loss"] for row in history if row["validation_loss"] is not None}
    best = min(validations, key=lambda step: validations[step])
    assert summary.figures["tuned"]["best_step"] == best < max(validations)
    model = decoder_only.load(tmp_path / "out" / "tuned")
    rows = read(formatted / "validation").to_pylist()
    losses = decoder_only.example_losses(model, rows)
    mean = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
    assert mean == pytest.approx(validations[best], abs=1e-4)


def test_early_stopping_ends_after_patience_validations_without_improvement(tmp_path, formatted, tiny_base):
    settings = {"epochs": 50.0, "learning_rate": 0.1, "lr_scheduler": "constant", "early_stopping_patience": 2}
    summary, history = run(formatted, tiny_base, tmp_path / "out", **settings)
    validations = [row["validation_loss"] for row in history if row["validation_loss"] is not None]
    assert summary.figures["tuned"]["steps"] < 50 * 2
    assert validations.index(min(validations)) == len(validations) - 3


def test_the_last_step_is_validated_whatever_the_interval(tmp_path, formatted, tiny_base):
    _, history = run(formatted, tiny_base, tmp_path / "out", max_steps=5, evals_per_epoch=2)
    assert [row["step"] for row in history if row["validation_loss"] is not None] == [3, 5]


def test_the_control_has_the_same_steps_and_another_start(tmp_path, formatted, tiny_base):
    summary, history = run(formatted, tiny_base, tmp_path / "out", scratch_control=True, epochs=1.0, seed=1)
    assert summary.figures["tuned"]["steps"] == summary.figures["scratch"]["steps"]
    first = {row["system"]: row["loss"] for row in reversed(history) if row["loss"] is not None}
    assert first["tuned"] != first["scratch"]
    assert (tmp_path / "out" / "scratch" / "model.safetensors").exists()


def test_weights_are_stored_in_the_precision_of_the_base(tmp_path, formatted, tiny_base):
    import shutil

    half = shutil.copytree(tiny_base, tmp_path / "half")
    decoder_only.load(tiny_base).to(torch.bfloat16).save_pretrained(half)
    run(formatted, half, tmp_path / "out", max_steps=1)
    assert json.loads((tmp_path / "out" / "tuned" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-15").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    assert last_checkpoint(tmp_path / "nothing") is None
