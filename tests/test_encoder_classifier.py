"""Encoder classifiers: labels, what is read, and the head."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tasks.config import FormatConfig
from tasks.encoded import Encoded, Refused
from tasks.errors import ConfigError, TrainingError
from tasks.families import encoder_classifier
from tasks.schema import EXAMPLE

LABELS = ["ham", "spam", "eggs"]


def example(**fields: object) -> dict[str, object]:
    return dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []} | fields


@pytest.fixture
def tokenizer(tiny_base: Path):
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture
def headless(scratch_base, tmp_path: Path) -> Path:
    """A BERT without a head, as most pre-trained ones come."""
    folder = shutil.copytree(scratch_base("bert"), tmp_path / "headless")
    AutoModel.from_pretrained(scratch_base("bert")).save_pretrained(folder)
    return folder


def encode(row: dict[str, object], tokenizer, labels=LABELS, **settings: object) -> Encoded | Refused:
    (found,) = encoder_classifier.encode([row], tokenizer, FormatConfig(**settings), labels)
    return found


def test_the_text_is_system_instruction_and_input_and_the_label_its_number(tokenizer):
    found = encode(example(system="Sort.", instruction="Say red.", input="now", label="spam"), tokenizer)
    assert tokenizer.decode(found.input_ids) == "Sort.\n\nSay red.\n\nnow"
    assert found.labels == [1] and found.prompt_tokens == len(found.input_ids)


def test_what_was_said_before_is_read_too(tokenizer):
    history = [{"role": "user", "content": "Hi.", "tool_calls": ""}]
    found = encode(example(instruction="Say red.", history=history, label="ham"), tokenizer)
    assert tokenizer.decode(found.input_ids) == "Hi.\n\nSay red."


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"instruction": ""}, "empty_prompt", "nothing to read"),
        ({"label": ""}, "no_label", "learns from labels"),
        ({"label": "bacon"}, "unknown_label", "no example of train has the label 'bacon'"),
        ({"instruction": "a <|im_end|> b"}, "special_token_in_text", "<|im_end|>"),
        ({"instruction": "red " * 50}, "too_many_tokens", "format.max_seq_length is 16"),
    ],
)
def test_what_cannot_be_used_is_refused(tokenizer, fields, reason, detail):
    found = encode(example(instruction="Say red.", label="ham") | fields, tokenizer, max_seq_length=16)
    assert isinstance(found, Refused) and found.reason == reason
    assert detail in found.detail


@pytest.mark.parametrize("truncation", ["cut_prompt", "cut_output"])
def test_the_end_of_a_long_text_is_cut_off(tokenizer, truncation):
    row = example(instruction="red " * 50, label="ham")
    whole, cut = encode(row, tokenizer), encode(row, tokenizer, max_seq_length=16, truncation=truncation)
    assert cut.input_ids == whole.input_ids[:16] and cut.labels == whole.labels
    assert cut.truncated and not whole.truncated


def test_one_class_is_no_choice(tokenizer):
    with pytest.raises(TrainingError, match="every label of train is 'ham'; a classifier needs two or more"):
        encode(example(instruction="a", label="ham"), tokenizer, labels=["ham"])


def test_training_on_all_turns_is_for_decoders(tokenizer):
    with pytest.raises(ConfigError, match="train_on: all is for decoders"):
        encode(example(instruction="a", label="ham"), tokenizer, train_on="all")


def test_a_new_head_has_an_output_for_each_label_and_two_loads_are_equal(headless):
    first, second = (encoder_classifier.load(headless, labels=LABELS) for _ in range(2))
    assert first.config.num_labels == first(torch.tensor([[5, 6]])).logits.shape[1] == 3
    assert first.config.id2label == dict(enumerate(LABELS)) and first.config.label2id["eggs"] == 2
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    body = AutoModel.from_pretrained(headless).state_dict()
    assert all(torch.equal(weight, body[name]) for name, weight in first.bert.state_dict().items())


def test_the_names_of_the_labels_are_saved_with_the_model(headless, tmp_path):
    encoder_classifier.load(headless, labels=LABELS).save_pretrained(tmp_path / "tuned")
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["id2label"] == {"0": "ham", "1": "spam", "2": "eggs"}
    again = encoder_classifier.load(tmp_path / "tuned")
    assert encoder_classifier.text([2], None, again) == "eggs"
    assert encoder_classifier.reference({"labels": [1]}, None, again) == "spam"


def saved(headless: Path, folder: Path, labels: list[str]) -> torch.Tensor:
    """A model that tells `labels` apart; returns the weights of its head."""
    model = encoder_classifier.load(headless, labels=labels)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.arange(model.classifier.weight.numel()).reshape(len(labels), -1))
    model.save_pretrained(folder)
    return model.classifier.weight


@pytest.mark.parametrize("labels", [["good", "bad"], ["a", "b", "c"], ["spam", "ham", "eggs"]])
def test_a_head_for_other_classes_is_replaced_and_that_is_told(headless, tmp_path, labels, caplog):
    head = saved(headless, tmp_path / "other", labels)
    with caplog.at_level(logging.WARNING):
        first, second = (encoder_classifier.load(tmp_path / "other", labels=LABELS) for _ in range(2))
    assert f"the base tells {', '.join(labels)} apart; its head is replaced by one for 3 classes" in caplog.text
    assert first.classifier.weight.shape[0] == 3
    assert first.classifier.weight.abs().max() < 1 < head.abs().max()
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_a_head_for_the_same_classes_is_kept(headless, tmp_path):
    head = saved(headless, tmp_path / "same", LABELS)
    assert torch.equal(encoder_classifier.load(tmp_path / "same", labels=LABELS).classifier.weight, head)


def test_label_smoothing_spreads_its_share_over_all_classes(headless):
    model = encoder_classifier.load(headless, labels=LABELS)
    batch = encoder_classifier.collate([{"input_ids": [5, 6, 7], "labels": [0]}, {"input_ids": [8], "labels": [2]}])
    with torch.no_grad():
        found = encoder_classifier.summed_loss(model, batch, 0.3)
        log_p = functional.log_softmax(model(batch["input_ids"], batch["attention_mask"]).logits, 1)
    target = torch.full((2, 3), 0.1)
    target[0, 0] = target[1, 2] = 0.7 + 0.1
    assert found.item() == pytest.approx(-(target * log_p).sum().item(), abs=1e-5)


def test_plain_transformers_gives_the_same_class(headless, tmp_path):
    model = encoder_classifier.load(headless, labels=LABELS)
    model.save_pretrained(tmp_path / "tuned")
    rows = [{"input_ids": list(range(5, 5 + size)), "labels": [0]} for size in (3, 9, 5)]
    answers = encoder_classifier.answers(model, rows, None, 3, "")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned").eval()
    alone = [plain(torch.tensor([row["input_ids"]])).logits.argmax().item() for row in rows]
    assert answers == [[number] for number in alone]
