"""Decoder-only models: packing, losses, generation."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from tasks.families import decoder_only
from tasks.fine_tune import packed_rows
from tasks.schema import IGNORE_INDEX

LENGTHS = [5, 11, 7, 3, 16, 9]


@pytest.fixture(scope="module")
def model(tiny_base: Path):
    return decoder_only.load(tiny_base)


@pytest.fixture
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in LENGTHS]


def examples(documents: list[list[int]], packs: list[int]) -> pa.Table:
    labels = [[IGNORE_INDEX] * 2 + ids[2:] for ids in documents]
    return pa.table({"input_ids": documents, "labels": labels, "pack": packs})


def test_packed_logits_equal_unpacked_ones(model, documents):
    rows = packed_rows(examples(documents, [0, 0, 0, 1, 1, 1]))
    batch = decoder_only.collate(list(rows))
    batch.pop("labels")
    with torch.inference_mode():
        packed = model(**batch, use_cache=False).logits
        begin = {0: 0, 1: 0}
        for ids, pack in zip(documents, [0, 0, 0, 1, 1, 1], strict=True):
            alone = model(torch.tensor([ids])).logits[0]
            there = packed[pack, begin[pack] : begin[pack] + len(ids)]
            torch.testing.assert_close(there, alone, atol=1e-4, rtol=0)
            begin[pack] += len(ids)


def test_the_first_token_of_a_packed_document_is_not_predicted_from_the_one_before(documents):
    every_token = pa.table({"input_ids": documents[:2], "labels": documents[:2], "pack": [0, 0]})
    (row,) = packed_rows(every_token)
    assert row["labels"][LENGTHS[0]] == IGNORE_INDEX
    assert row["position_ids"] == [*range(LENGTHS[0]), *range(LENGTHS[1])]


def test_the_loss_of_a_batch_does_not_depend_on_packing(model, documents):
    def total(packs: list[int]) -> float:
        batch = decoder_only.collate(list(packed_rows(examples(documents, packs))))
        labels = batch.pop("labels")
        with torch.inference_mode():
            return decoder_only.token_losses(model(**batch, use_cache=False).logits, labels).sum().item()

    assert total([0, 0, 0, 0, 0, 0]) == pytest.approx(total([-1] * 6), abs=1e-3)
    alone = decoder_only.example_losses(model, examples(documents, [-1] * 6).to_pylist())
    assert sum(loss for loss, _ in alone) == pytest.approx(total([-1] * 6), abs=1e-3)
    assert [count for _, count in alone] == [length - 2 for length in LENGTHS]


def test_losses_do_not_depend_on_how_rows_are_batched(model, documents, monkeypatch):
    rows = examples(documents, [-1] * 6).to_pylist()
    at_once = decoder_only.example_losses(model, rows)
    monkeypatch.setattr(decoder_only, "LOGITS_IN_BATCH", 20 * model.config.vocab_size)
    sizes = []
    collate = decoder_only.collate
    monkeypatch.setattr(decoder_only, "collate", lambda batch: sizes.append(len(batch)) or collate(batch))
    cut = decoder_only.example_losses(model, rows)
    assert [loss for loss, _ in cut] == pytest.approx([loss for loss, _ in at_once], abs=1e-4)
    assert sizes == [1, 1, 2, 2]  # 16; 11; 9 and 7; 5 and 3 tokens, at most 20 with their padding


def test_token_losses_match_a_hand_computed_case():
    logits = torch.tensor([[[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [3.0, 1.0, 1.0]]])
    labels = torch.tensor([[0, 1, IGNORE_INDEX]])
    log_p = logits[0, 0] - torch.logsumexp(logits[0, 0], 0)
    plain = decoder_only.token_losses(logits, labels)
    torch.testing.assert_close(plain, torch.tensor([[-log_p[1].item(), 0.0]]))
    smooth = decoder_only.token_losses(logits, labels, label_smoothing=0.3)
    expected = -(0.7 * log_p[1] + 0.3 * log_p.mean())
    torch.testing.assert_close(smooth, torch.tensor([[expected.item(), 0.0]]))


def test_generation_does_not_depend_on_the_batch_and_stops_at_the_stop_token(model, documents):
    from transformers import GenerationConfig

    free = GenerationConfig(do_sample=False, eos_token_id=[0], pad_token_id=0, max_new_tokens=12)
    together = decoder_only.generate(model, documents, free, batch_size=6, title="")
    alone = decoder_only.generate(model, documents, free, batch_size=1, title="")
    assert together == alone
    stop = together[0][3]
    first = together[0].index(stop)
    stopping = GenerationConfig(do_sample=False, eos_token_id=[stop], pad_token_id=0, max_new_tokens=12)
    assert decoder_only.generate(model, documents[:1], stopping, 1, "")[0] == together[0][:first]


def test_a_random_initialisation_has_the_same_shape_and_other_weights(model, tiny_base):
    scratch = decoder_only.from_scratch(tiny_base, seed=1)
    ours, theirs = dict(model.named_parameters()), dict(scratch.named_parameters())
    assert {n: p.shape for n, p in ours.items()} == {n: p.shape for n, p in theirs.items()}
    assert not torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])
