"""Encoder classifiers: BERT and the rest of AutoModelForSequenceClassification."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tasks import templates
from tasks.config import FormatConfig
from tasks.devices import on_device
from tasks.encoded import Encoded, Refused
from tasks.errors import ConfigError, TrainingError
from tasks.families.batches import Row, by_length, by_row, by_tokens, right_padded
from tasks.progress import progress
from tasks.schema import IGNORE_INDEX

log = logging.getLogger("attune.families")

AUTO = AutoModelForSequenceClassification
METRICS = ("accuracy", "precision", "recall", "f1")
PACKS = False
TOKENS_IN_BATCH = 8192
HEAD_SEED = 0
"""Seed of a new head: a base is loaded more than once, to be tuned and to be evaluated, and must be the same model."""

disable_progress_bar()  # from_pretrained would draw one for every checkpoint


def chat_template(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A classifier reads one text; it has no chat template."""


def encode(
    examples: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: FormatConfig, labels: Sequence[str] = ()
) -> list[Encoded | Refused]:
    """The text becomes input_ids, with the tokenizer's marks; its label becomes labels: its position in `labels`.

    Reasons to refuse: no_label, unknown_label, special_token_in_text, empty_prompt, too_many_tokens; with either
    truncation the end of a long text is cut off instead.  Raises TrainingError when there is one class only,
    ConfigError for train_on: all.
    """
    if config.train_on == "all":
        raise ConfigError("format.train_on: all is for decoders; a classifier answers once")
    if len(labels) == 1:
        raise TrainingError(f"format: every label of train is {labels[0]!r}; a classifier needs two or more")
    numbers = {label: number for number, label in enumerate(labels)}
    texts = [_text(example) for example in examples]
    said = [templates.Conversation([{"role": "user", "content": text}]) for text in texts]
    specials, ids = templates.special_tokens_in(said, tokenizer), tokenizer(texts)["input_ids"]
    return [
        Refused("special_token_in_text", f"{special} would be read as a mark of the tokenizer")
        if special
        else _encoded(example, asked, numbers, tokenizer, config)
        for example, special, asked in zip(examples, specials, ids, strict=True)
    ]


def _encoded(
    example: Row, asked: list[int], numbers: dict[str, int], tokenizer: PreTrainedTokenizerBase, config: FormatConfig
) -> Encoded | Refused:
    if not example["label"]:
        return Refused("no_label", "a classifier learns from labels")
    if example["label"] not in numbers:
        return Refused("unknown_label", f"no example of train has the label {example['label']!r}")
    if not asked:
        return Refused("empty_prompt", "there is nothing to read")
    limit, read = config.max_seq_length, asked
    if len(asked) > limit and config.truncation != "reject":
        read = tokenizer(_text(example), truncation=True, max_length=limit)["input_ids"]
    if len(read) > limit:
        return Refused("too_many_tokens", f"{len(read)} tokens, format.max_seq_length is {limit}")
    return Encoded(read, [numbers[example["label"]]], len(read), read != asked)


def _text(example: Row) -> str:
    """System, instruction and input, and what was said before and after, each in a paragraph of its own."""
    before, after = ([turn["content"] for turn in example[name] or []] for name in ("history", "tool_turns"))
    return "\n\n".join(part for part in (example["system"], *before, templates.question(example), *after) if part)


def prompt_ids(example: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the model reads."""
    return tokenizer(_text(example))["input_ids"]


def load(folder: Path, dtype: torch.dtype = torch.float32, labels: Sequence[str] = ()) -> PreTrainedModel:
    """The model in `folder`, on the GPU where there is one, ready to evaluate.

    With `labels` it has one output for each, in their order: the head of the folder where it is for just these, else
    a new one with random weights, always the same ones.
    """
    named = _names(labels)
    torch.manual_seed(HEAD_SEED)
    model = AUTO.from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=bool(labels),
        **named,
    )
    if labels and (old := _classes(folder)) not in ([], list(labels)):
        log.warning("the base tells %s apart; its head is replaced by one for %d classes", ", ".join(old), len(labels))
        _begin_head_anew(model)
    return on_device(model).eval()


def from_scratch(folder: Path, seed: int, labels: Sequence[str] = ()) -> PreTrainedModel:
    """A model of the same shape as the one in `folder`, randomly initialised, with one output for each label."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **_names(labels))
    return on_device(AUTO.from_config(config, dtype=torch.float32))


def _names(labels: Sequence[str]) -> dict[str, Any]:
    """The fields of config.json that name the classes."""
    if not labels:
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _classes(folder: Path) -> list[str]:
    """What the head of a folder tells apart, in order; none without a head, or with one whose classes have no names."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not str((config.architectures or [""])[0]).endswith("ForSequenceClassification"):
        return []
    names = [config.id2label[number] for number in sorted(config.id2label)]
    return [] if names == [f"LABEL_{number}" for number in range(len(names))] else names


def _begin_head_anew(model: PreTrainedModel) -> None:
    torch.manual_seed(HEAD_SEED)
    for name, part in model.named_children():
        if name != model.base_model_prefix:
            for module in part.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Right-pad texts: input_ids and attention_mask (rows, longest), labels (rows, 1), all int64."""
    return {
        "input_ids": right_padded([row["input_ids"] for row in rows], 0),
        "attention_mask": right_padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": right_padded([row["labels"] for row in rows], IGNORE_INDEX),
    }


def summed_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor], label_smoothing: float = 0.0) -> torch.Tensor:
    """The cross-entropy of the rows' classes, in nats; smoothing gives the class 1 - e and spreads e over all."""
    targets = batch["labels"][:, 0]
    return functional.cross_entropy(_logits(model, batch), targets, label_smoothing=label_smoothing, reduction="sum")


@torch.no_grad()
def example_losses(model: PreTrainedModel, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """For each row the loss of its class, in nats, and 1: one class is supervised in each."""
    model.eval()

    def losses_of(batch: Sequence[Row]) -> list[tuple[float, int]]:
        tensors = {name: tensor.to(model.device) for name, tensor in collate(batch).items()}
        each = functional.cross_entropy(_logits(model, tensors), tensors["labels"][:, 0], reduction="none")
        return [(loss, 1) for loss in each.tolist()]

    return by_row(rows, by_tokens([len(row["input_ids"]) for row in rows], TOKENS_IN_BATCH), losses_of)


def _logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()


def generation_config(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> None:
    """Nothing is generated."""


@torch.inference_mode()
def answers(
    model: PreTrainedModel, rows: Sequence[Row], generation: None, batch_size: int, title: str
) -> list[list[int]]:
    """The number of the likeliest class of each row, alone in a list; texts of similar length are read together."""

    def answers_to(batch: Sequence[Row]) -> list[list[int]]:
        tensors = {name: tensor.to(model.device) for name, tensor in collate(batch).items()}
        return [[number] for number in _logits(model, tensors).argmax(1).tolist()]

    groups = list(by_length([len(row["input_ids"]) for row in rows], batch_size))
    return by_row(rows, progress(groups, title, total=len(groups), unit="batches"), answers_to)


def text(answer: Sequence[int], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> str:
    """The name of a class."""
    return model.config.id2label[answer[0]]


def reference(row: Row, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> str:
    """The name of the class of a row."""
    return model.config.id2label[row["labels"][0]]
