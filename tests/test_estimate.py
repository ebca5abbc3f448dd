"""The cost of a training: what is predicted follows from what is trained, and is near to what is measured."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import SIZES
from transformers import AutoConfig

from tasks import estimate as module
from tasks.base_model import family as family_of
from tasks.config import FineTuneConfig, ModelConfig
from tasks.estimate import Batch, Rows, estimate, predict
from tasks.families import load_family
from tasks.job import steps
from tasks.layout import PACKS
from tasks.ledger import ShardWriter
from tasks.schema import IGNORE_INDEX, TOKENIZED
from tasks.schema import PACKS as PACK_COLUMNS

FAMILIES = {"llama": "decoder_only", "gpt2": "decoder_only", "qwen3": "decoder_only", "t5": "encoder_decoder"}
FAMILIES |= {"bart": "encoder_decoder", "bert": "encoder_classifier"}
LABELS = ["a", "b", "c"]


def rows(number: int = 32, tokens: int = 64, labels: int = 64, supervised: int = 10) -> Rows:
    return Rows(np.full(number, tokens), np.full(number, labels), np.full(number, supervised))


def config(**settings: object) -> FineTuneConfig:
    return FineTuneConfig(**{"precision": "fp32", "per_device_batch_size": 4, "epochs": 2.0} | settings)


def cost(base: Path, given: Rows | None = None, **settings: object) -> module.Estimate:
    return estimate(config(**settings), base, "decoder_only", given or rows())


@pytest.fixture(autouse=True)
def nothing_is_a_rule_of_thumb(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "attune.estimate"):
        yield
    assert "rule of thumb" not in caplog.text


def test_steps_and_tokens_are_those_of_the_whole_training(tiny_base):
    plain = cost(tiny_base)
    assert (plain.steps, plain.tokens) == (steps(config(), 32), 2 * 32 * 64) == (16, 4096)
    assert cost(tiny_base, gradient_accumulation_steps=2).steps == 8
    assert cost(tiny_base, max_steps=5).tokens == 5 * 4 * 64
    larger = estimate(config(), tiny_base, "decoder_only", rows(), scale=10.0)
    assert (larger.steps, larger.tokens) == (160, 40960)
    assert larger.peak_memory_bytes == plain.peak_memory_bytes
    control = cost(tiny_base, scratch_control=True)
    assert (control.steps, control.tokens, control.disk_bytes) == (32, 8192, 2 * plain.disk_bytes)
    assert control.peak_memory_bytes == plain.peak_memory_bytes, "one is trained after the other"


def test_packed_rows_hold_what_their_examples_hold():
    packed = Rows(np.array([5, 6, 7]), np.array([5, 6, 7]), np.array([1, 2, 3])).packed(np.array([0, 1, 0]))
    assert {name: each.tolist() for name, each in asdict(packed).items()} == {
        "tokens": [12, 6], "labels": [12, 6], "supervised": [4, 2],
    }  # fmt: skip


def measured(base: Path, batch: Batch, passes: int) -> int:
    """Bytes that a real pass keeps for the backward pass, each storage once, without the weights."""
    model = load_family("decoder_only").load(base).train()
    known = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(batch.rows, batch.tokens, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=ids, use_cache=False)
    return sum(kept.values())


def test_what_a_step_keeps_is_what_a_real_one_keeps(tiny_base):
    batch = Batch(8, 256, 256, 1)
    shapes = module._trainee(module._model(config(), tiny_base, "decoder_only", []), config(), "decoder_only")
    alone, _ = module._memory(shapes, config(), "decoder_only", batch)
    weights = sum(4 * weight.numel() for weight in shapes.parameters())
    with module.FakeTensorMode(allow_non_fake_inputs=True) as fake:
        step = module._step_bytes(shapes, config(), "decoder_only", batch, fake)
    kept = measured(tiny_base, batch, 1)
    assert kept <= step <= 1.7 * kept + weights
    assert alone > step + 3 * weights


def test_memory_follows_what_is_trained_and_how(tiny_base):
    batch = rows(tokens=256, labels=256)
    plain = cost(tiny_base, batch).peak_memory_bytes
    assert cost(tiny_base, batch, per_device_batch_size=8).peak_memory_bytes > plain
    assert cost(tiny_base, batch, gradient_checkpointing=True).peak_memory_bytes < plain
    assert cost(tiny_base, rows()).peak_memory_bytes < plain
    weights = 4 * load_family("decoder_only").load(tiny_base).num_parameters()
    assert plain - cost(tiny_base, batch, optimizer="sgd").peak_memory_bytes == weights
    assert plain - cost(tiny_base, batch, optimizer="sgd", momentum=0.0).peak_memory_bytes == 2 * weights
    assert weights < plain - cost(tiny_base, batch, optimizer="adafactor").peak_memory_bytes < 2 * weights
    assert cost(tiny_base, batch, gradient_accumulation_steps=2).peak_memory_bytes >= plain


def test_disk_follows_the_checkpoints_that_are_kept(tiny_base):
    weights = 4 * load_family("decoder_only").load(tiny_base).num_parameters()
    assert cost(tiny_base, evals_per_epoch=1, epochs=1.0).disk_bytes == 3 * weights + weights
    assert cost(tiny_base, evals_per_epoch=8).disk_bytes == 4 * 3 * weights + weights
    adapter = cost(tiny_base, method="lora", lora={"rank": 2, "target_modules": ["q_proj"]})
    layers, width = 2, 32
    assert adapter.disk_bytes == 4 * 3 * 4 * layers * 2 * (width + width) + weights
    assert adapter.peak_memory_bytes < cost(tiny_base).peak_memory_bytes


@pytest.mark.parametrize("architecture", SIZES)
def test_every_family_is_counted_and_not_guessed(scratch_base, architecture):
    family = FAMILIES[architecture]
    labels = LABELS if family == "encoder_classifier" else ()
    given = rows(labels=1 if labels else 64)
    found = estimate(config(), scratch_base(architecture), family, given, labels=labels)
    assert found.peak_memory_bytes > module.PROCESS_BYTES
    checkpointed = config(gradient_checkpointing=True, precision="bf16", gradient_accumulation_steps=2)
    assert estimate(checkpointed, scratch_base(architecture), family, given, labels=labels).steps == 8


@pytest.mark.parametrize(("architecture", "method"), [("llama", "dora"), ("t5", "lora"), ("bert", "lora")])
def test_adapters_of_every_family_are_counted(scratch_base, architecture, method):
    family = FAMILIES[architecture]
    labels = LABELS if family == "encoder_classifier" else ()
    given = rows(labels=1 if labels else 64)
    adapter = estimate(config(method=method), scratch_base(architecture), family, given, labels=labels)
    assert adapter.disk_bytes < estimate(config(), scratch_base(architecture), family, given, labels=labels).disk_bytes


def test_a_model_that_looks_at_values_is_estimated_by_a_rule_of_thumb_and_that_is_told(tiny_base, caplog, monkeypatch):
    def looks_at_values(*_: object, **__: object) -> torch.Tensor:
        return torch.ones(3)[torch.ones(3) > 0].sum()

    monkeypatch.setattr(module, "_loss", looks_at_values)
    batch = rows(tokens=256, labels=256)
    guessed = cost(tiny_base, batch)
    assert "the memory of a step is a rule of thumb" in caplog.text
    caplog.clear()
    monkeypatch.undo()
    assert 0.5 < guessed.peak_memory_bytes / cost(tiny_base, batch).peak_memory_bytes < 2


def test_the_prediction_for_an_artifact_of_format_counts_its_packed_rows(tiny_base, tmp_path):
    writer = ShardWriter(tmp_path / "train", TOKENIZED)
    examples = [([1] * 30, [IGNORE_INDEX] * 20 + [1] * 10), ([1] * 20, [IGNORE_INDEX] * 19 + [1]), ([1] * 10, [1] * 10)]
    columns = [{"input_ids": ids, "labels": labels, "prompt_tokens": 1, "truncated": False} for ids, labels in examples]
    texts = dict.fromkeys(("id", "source", "file", "task"), "") | {"line": 1}
    writer.write(pa.Table.from_pylist([texts | each for each in columns], schema=TOKENIZED))
    writer.close()
    unpacked = predict(config(per_device_batch_size=1), tiny_base, tmp_path, "decoder_only")
    assert (unpacked["steps"], unpacked["tokens"]) == (6, 120)
    writer = ShardWriter(tmp_path / PACKS, PACK_COLUMNS)
    writer.write(pa.table({"pack": pa.array([0, 1, 1], pa.int32())}))
    writer.close()
    packed = predict(config(per_device_batch_size=1), tiny_base, tmp_path, "decoder_only")
    assert (packed["steps"], packed["tokens"]) == (4, 120)
    expected = Rows(np.array([30, 30]), np.array([30, 30]), np.array([10, 11]))
    assert packed == asdict(estimate(config(per_device_batch_size=1), tiny_base, "decoder_only", expected))
    json.dumps(packed)


def test_a_large_model_is_counted_without_being_made(tiny_base, tmp_path):
    shape = AutoConfig.for_model(
        "qwen3", hidden_size=4096, intermediate_size=12288, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=151_936,
    )  # fmt: skip
    shape.architectures = ["Qwen3ForCausalLM"]
    shape.save_pretrained(tmp_path)
    assert family_of(ModelConfig(), tmp_path) == "decoder_only"
    found = estimate(config(), tmp_path, "decoder_only", rows(tokens=2048, labels=2048))
    parameters = 151_936 * 4096 * 2 + 2 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 12288)
    assert found.peak_memory_bytes > 16 * parameters, "weights, gradients and two moments"
    assert found.peak_memory_bytes < 32 * parameters
