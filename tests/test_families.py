"""What holds for every family: its interface, losses that do not depend on batches, answers that do not either."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import DECODERS, ENCODER_DECODERS, ROWS, SIZES
from transformers import AutoTokenizer

from tasks import families
from tasks.config import FormatConfig
from tasks.errors import ModelError
from tasks.families import decoder_only, find, load_family
from tasks.schema import EXAMPLE, IGNORE_INDEX, TOKENIZED

ARCHITECTURES = list(SIZES)
FAMILY = dict.fromkeys(DECODERS, "decoder_only") | dict.fromkeys(ENCODER_DECODERS, "encoder_decoder")
FAMILY["bert"] = "encoder_classifier"
LABELS = ["both", "first", "last"]
LENGTHS = [5, 11, 7, 3, 16, 9]


class Part:
    """A family with a tiny model, its tokenizer, and rows in tokens."""

    def __init__(self, folder: Path) -> None:
        self.family = load_family(find(folder))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.chat_template = self.family.chat_template("auto", self.tokenizer)
        texts = [example(row | {"input": "now " * place}) for place, row in enumerate(ROWS[::40])]  # of many lengths
        encoded = self.family.encode(texts, self.tokenizer, FormatConfig(), LABELS)
        self.rows = [text | each._asdict() for text, each in zip(texts, encoded, strict=True)]
        self.model = self.family.load(folder, labels=LABELS)
        with torch.no_grad():
            for weight in self.model.parameters():
                if weight.ndim == 2:
                    weight.mul_(5)  # else attention is nearly even, and a wrong mask would hardly show


def example(row: dict[str, str]) -> dict[str, object]:
    empty = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []}
    return empty | row | {"label": row["task"]}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def part(request: pytest.FixtureRequest, scratch_base) -> Part:
    return Part(scratch_base(request.param))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_has_what_the_interface_names(name: str):
    family = load_family(name)
    for told in re.findall(r"^(\w+)\((.*?)\) ", families.__doc__, re.MULTILINE):
        function, parameters = told
        assert [*inspect.signature(getattr(family, function)).parameters] == parameters.split(", "), function
    assert isinstance(family.PACKS, bool)
    assert all(metric in families_metrics() for metric in family.METRICS)


def families_metrics() -> list[str]:
    from tasks.metrics import METRICS

    return list(METRICS)


def test_a_model_is_asked_with_the_tokens_that_it_was_trained_with(part):
    for row in part.rows:
        texts = {name: row[name] for name in EXAMPLE.names}
        assert part.family.prompt_ids(texts, part.tokenizer) == row["input_ids"][: row["prompt_tokens"]]
        assert not row["truncated"]


def test_a_loss_does_not_depend_on_how_rows_are_batched(part, monkeypatch):
    together = part.family.example_losses(part.model, part.rows)
    monkeypatch.setattr(part.family, "TOKENS_IN_BATCH", 1)
    alone = part.family.example_losses(part.model, part.rows)
    assert [loss for loss, _ in together] == pytest.approx([loss for loss, _ in alone], rel=1e-4)
    assert [count for _, count in together] == [count for _, count in alone]
    assert [count for _, count in alone] == [sum(t != IGNORE_INDEX for t in row["labels"]) for row in part.rows]
    with torch.no_grad():
        summed = part.family.summed_loss(part.model, part.family.collate(part.rows)).item()
    assert summed == pytest.approx(sum(loss for loss, _ in together), rel=1e-4)


def test_the_loss_is_the_one_that_transformers_computes(part):
    """It takes the mean over the supervised tokens of the batch."""
    batch = part.family.collate(part.rows)
    supervised = (batch["labels"] != IGNORE_INDEX).sum()
    plain = batch | {"labels": batch["labels"][:, 0]} if part.family.METRICS[0] == "accuracy" else batch
    with torch.no_grad():
        ours, theirs = part.family.summed_loss(part.model, batch), part.model(**plain).loss
    assert ours.item() == pytest.approx(theirs.item() * supervised.item(), rel=1e-4)


def test_a_gradient_reaches_the_first_layer(part):
    part.family.summed_loss(part.model.train(), part.family.collate(part.rows), 0.1).backward()
    grads = [each.grad for each in part.model.parameters() if each.grad is not None]
    assert len(grads) > 5
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert part.model.get_input_embeddings().weight.grad.abs().sum() > 0
    part.model.zero_grad()
    part.model.eval()


def test_answers_do_not_depend_on_the_batch(part):
    generation = part.family.generation_config(part.tokenizer, 6)
    together = part.family.answers(part.model, part.rows, generation, len(part.rows), "")
    assert part.family.answers(part.model, part.rows, generation, 1, "") == together
    assert all(part.family.text(answer, part.tokenizer, part.model) for answer in together if answer)


def test_answers_end_before_the_stop_token(part):
    generation = part.family.generation_config(part.tokenizer, 6)
    if generation is None:
        assert part.family.METRICS[0] == "accuracy"
        return
    assert set(generation.eos_token_id) >= {part.tokenizer.eos_token_id}
    (free,) = part.family.answers(part.model, part.rows[:1], generation, 1, "")
    generation.eos_token_id = [free[-1]]
    (stopped,) = part.family.answers(part.model, part.rows[:1], generation, 1, "")
    assert stopped == free[: free.index(free[-1])]


def test_the_reference_is_the_answer_also_where_only_tokens_are_known(part):
    row = part.rows[0]
    said = row["label"] if part.family.METRICS[0] == "accuracy" else row["output"]
    assert part.family.reference(row, part.tokenizer, part.model) == said
    known = {name: value for name, value in row.items() if name in TOKENIZED.names}
    assert part.family.reference(known, part.tokenizer, part.model) == said


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_random_initialisation_has_the_same_shape_and_the_weights_of_its_seed(scratch_base, architecture):
    folder = scratch_base(architecture)
    family = load_family(find(folder))
    base, first, again, second = (
        dict(model.named_parameters())
        for model in (
            family.load(folder, labels=LABELS),
            *(family.from_scratch(folder, seed, LABELS) for seed in (1, 1, 2)),
        )
    )
    assert {name: each.shape for name, each in base.items()} == {name: each.shape for name, each in first.items()}
    matrices = [name for name, each in first.items() if each.ndim == 2 and each.std() > 0]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], second[name]) for name in matrices)
    assert not torch.equal(base[matrices[0]], first[matrices[0]])


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "decoder_only"),
        ({"architectures": ["GPT2LMHeadModel"]}, "decoder_only"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "encoder_decoder"),
        ({"architectures": ["T5WithLMHeadModel"], "is_encoder_decoder": True}, "encoder_decoder"),
        ({"architectures": ["BartModel"], "is_encoder_decoder": True}, "encoder_decoder"),
        ({"architectures": ["BartForSequenceClassification"], "is_encoder_decoder": True}, "encoder_classifier"),
        ({"architectures": ["BertForMaskedLM"]}, "encoder_classifier"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "encoder_classifier"),
        ({"architectures": None, "model_type": "roberta"}, "encoder_classifier"),
    ],
)
def test_the_family_stands_in_the_config(tmp_path, config, family):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find(tmp_path) == family


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"},  # reads pictures
        {"architectures": 5},
        {"architectures": [], "model_type": "own"},
    ],
)
def test_a_family_that_cannot_be_told_is_asked_for(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"set model\.family to one of: decoder_only, encoder_decoder"):
        find(tmp_path)


def packed(documents: list[list[int]]) -> dict[str, list[int]]:
    """Documents in one row, as training packs them: what a document's first token is cannot be learnt."""
    return {
        "input_ids": [token for ids in documents for token in ids],
        "labels": [label for ids in documents for label in (IGNORE_INDEX, *ids[1:])],
        "position_ids": [position for ids in documents for position in range(len(ids))],
    }


@pytest.fixture
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [*((each, "sdpa") for each in DECODERS), ("llama", "flex_attention"), ("qwen3", "flex_attention")],
)
def test_packed_logits_equal_unpacked_ones(scratch_base, documents, architecture, attention):
    model = decoder_only.load(scratch_base(architecture))
    model.set_attn_implementation(attention)
    batch = decoder_only.collate([packed(documents[:3]), packed(documents[3:])])
    batch.pop("labels")
    with torch.inference_mode():
        logits = model(**batch, use_cache=False).logits
        for row, inside in enumerate((documents[:3], documents[3:])):
            begin = 0
            for ids in inside:
                alone = model(torch.tensor([ids])).logits[0]
                torch.testing.assert_close(logits[row, begin : begin + len(ids)], alone, atol=1e-4, rtol=0)
                begin += len(ids)


@pytest.mark.parametrize("architecture", DECODERS)
def test_the_loss_of_documents_does_not_depend_on_packing(scratch_base, documents, architecture):
    model = decoder_only.load(scratch_base(architecture))
    alone = decoder_only.example_losses(model, [packed([ids]) for ids in documents])
    together = decoder_only.example_losses(model, [packed(documents)])
    assert together[0][0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-4)
    assert together[0][1] == sum(length - 1 for length in LENGTHS)
