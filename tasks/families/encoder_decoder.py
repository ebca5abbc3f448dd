"""Encoder-decoder models: T5, BART and the rest of AutoModelForSeq2SeqLM.

The encoder reads what is asked, the decoder writes the answer, and both are written as the tokenizer writes a text
alone, with the marks that it puts around it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tasks import losses, templates, truncation
from tasks.config import FormatConfig
from tasks.devices import on_device
from tasks.encoded import Encoded, Refused
from tasks.errors import ConfigError, ModelError
from tasks.families.batches import Row, by_length, by_row, by_tokens, right_padded
from tasks.progress import progress
from tasks.schema import IGNORE_INDEX
from tasks.templates import ANSWER, TOOLS

AUTO = AutoModelForSeq2SeqLM
METRICS = ("exact_match", "rouge_l")
PACKS = False
TOKENS_IN_BATCH = 8192

disable_progress_bar()  # from_pretrained would draw one for every checkpoint

_TEMPLATE = (
    "{%- if messages | length == 1 and not tools -%}{%- set message = messages[0] -%}" + ANSWER + "{%- else -%}"
    "{%- if tools -%}" + TOOLS + "{{- '\\n\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '' if loop.first else '\\n\\n' -}}{{- message['role'] | capitalize + ': ' -}}" + ANSWER + "{%- endfor -%}"
    "{%- endif -%}"
)


def chat_template(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of that name; `auto` is the tokenizer's own, else the plain text of what is asked.

    One message stands alone (an instruction, a blank line, its input); of several each has its role before it, after
    the tools, one a line.  Around them are the marks that the tokenizer puts around a text.
    """
    if name != "auto" or tokenizer.chat_template:
        return templates.choose(name, tokenizer)
    begin, end = (json.dumps(mark) for mark in _marks(tokenizer))
    return f"{{{{- {begin} -}}}}{_TEMPLATE}{{{{- {end} -}}}}"


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the tokenizer puts before and behind a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    marks, special = tokenizer.convert_ids_to_tokens(encoded["input_ids"]), encoded["special_tokens_mask"]
    begin, end = special.index(0), len(special) - special[::-1].index(0)
    return "".join(marks[:begin]), "".join(marks[end:])


def encode(
    examples: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: FormatConfig, labels: Sequence[str] = ()
) -> list[Encoded | Refused]:
    """What is asked becomes input_ids; the answer, up to and with the tokenizer's end-of-text token, becomes labels.

    Reasons to refuse: special_token_in_text, empty_prompt, no_supervised_tokens, too_many_tokens (of either side).
    With cut_prompt the oldest exchanges go first, then the end of what is asked; with cut_output the end of the answer,
    and its end-of-text token is not trained.  Raises ConfigError for train_on: all.
    """
    if config.train_on == "all":
        raise ConfigError(
            "format.train_on: all is for decoders; an encoder-decoder reads all turns but the last answer"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError("model.base: its tokenizer has no end-of-text token, so no answer could end")
    conversations = [templates.messages(example) for example in examples]
    asked = _asked([conversation[:-1] for conversation in conversations], tokenizer)
    answered = _answers([conversation[-1] for conversation in conversations], tokenizer)
    specials = templates.special_tokens_in(conversations, tokenizer)
    return [
        Refused("special_token_in_text", f"{special} would be read as a mark of the template")
        if special
        else _encoded(example, *tokens, tokenizer, config)
        for example, special, *tokens in zip(examples, specials, asked, answered, strict=True)
    ]


def _encoded(
    example: Row,
    asked: list[int],
    answer: list[int],
    tokenizer: PreTrainedTokenizerBase,
    config: FormatConfig,
) -> Encoded | Refused:
    limit = config.max_seq_length
    if not asked:
        return Refused("empty_prompt", "nothing is asked")
    if not set(answer) - set(tokenizer.all_special_ids):
        return Refused("no_supervised_tokens", "the answer leaves no token to learn from")
    read = asked
    if config.truncation == "cut_prompt":
        read = truncation.cut_prompt(example, asked, limit, tokenizer, lambda each: prompt_ids(each, tokenizer), len)
    kept = answer[:limit] if config.truncation == "cut_output" else answer
    if (tokens := max(len(read), len(kept))) > limit:
        side = "asked" if len(read) > limit else "answered"
        return Refused("too_many_tokens", f"{tokens} tokens are {side}, format.max_seq_length is {limit}")
    return Encoded(read, kept, len(read), (read, kept) != (asked, answer))


def prompt_ids(example: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the encoder reads: the conversation up to where its last answer begins."""
    return _asked([templates.messages(example)[:-1]], tokenizer)[0]


def _asked(conversations: Sequence[templates.Conversation], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = [templates.prompt_text(conversation, tokenizer) for conversation in conversations]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _answers(messages: Sequence[templates.Message], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of answers, tool calls included, with the tokenizer's marks and its end-of-text token at the end."""
    template = "{%- set message = messages[0] -%}" + ANSWER
    texts = [
        tokenizer.apply_chat_template([message], chat_template=template, tokenize=False)
        if "tool_calls" in message
        else message["content"]
        for message in messages
    ]
    stop = tokenizer.eos_token_id
    return [ids if ids[-1:] == [stop] else [*ids, stop] for ids in tokenizer(texts)["input_ids"]]


def load(folder: Path, dtype: torch.dtype = torch.float32, labels: Sequence[str] = ()) -> PreTrainedModel:
    """The model in `folder`, on the GPU where there is one, ready to evaluate; it answers greedily.

    Habits of the base's generation_config.json, such as beams and forced tokens, are dropped: tuning knows nothing of
    them.  Raises ModelError when nothing says which token its decoder begins with.
    """
    model = AUTO.from_pretrained(folder, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    return on_device(_greedy(model)).eval()


def from_scratch(folder: Path, seed: int, labels: Sequence[str] = ()) -> PreTrainedModel:
    """A model of the same shape as the one in `folder`, randomly initialised."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return on_device(_greedy(AUTO.from_config(config, dtype=torch.float32)))


def _greedy(model: PreTrainedModel) -> PreTrainedModel:
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError("model.base: its config.json has no decoder_start_token_id, with which its decoder begins")
    model.generation_config = GenerationConfig(decoder_start_token_id=start)
    return model


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Right-pad what is asked and what is answered: input_ids and attention_mask (rows, longest asked), int64.

    labels (rows, longest answer) are IGNORE_INDEX in the padding.
    """
    return {
        "input_ids": right_padded([row["input_ids"] for row in rows], 0),
        "attention_mask": right_padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": right_padded([row["labels"] for row in rows], IGNORE_INDEX),
    }


def summed_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor], label_smoothing: float = 0.0) -> torch.Tensor:
    """Each token of the answer is predicted from what is asked and from the tokens of the answer before it."""
    inputs, supervised, targets = _at(model, batch)
    return losses.summed_loss(model, inputs, supervised, targets, label_smoothing)


def example_losses(model: PreTrainedModel, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """For each row the summed loss of its supervised tokens, in nats, and their number."""
    model.eval()

    def losses_of(batch: Sequence[Row]) -> list[tuple[float, int]]:
        tensors = {name: tensor.to(model.device) for name, tensor in collate(batch).items()}
        return losses.row_losses(model, *_at(model, tensors))

    lengths = [len(row["input_ids"]) + len(row["labels"]) for row in rows]
    return by_row(rows, by_tokens(lengths, TOKENS_IN_BATCH), losses_of)


def _at(
    model: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Inputs of the model, the supervised tokens, and their values; the decoder reads the answer one token later."""
    labels = batch["labels"]
    supervised = labels != IGNORE_INDEX
    shifted = labels.masked_fill(~supervised, 0).roll(1, 1)
    shifted[:, 0] = getattr(model, "module", model).config.decoder_start_token_id
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"} | {"decoder_input_ids": shifted}
    return inputs, supervised, labels[supervised]


def generation_config(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding up to the tokenizer's end-of-text token."""
    stop = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop
    return GenerationConfig(
        do_sample=False, num_beams=1, eos_token_id=[stop], pad_token_id=pad, max_new_tokens=max_new_tokens
    )


@torch.inference_mode()
def answers(
    model: PreTrainedModel, rows: Sequence[Row], generation: GenerationConfig, batch_size: int, title: str
) -> list[list[int]]:
    """The tokens that `model` answers to each row, from the stop token on cut off.

    Rows of similar length are answered together, right-padded.
    """

    def answers_to(batch: Sequence[Row]) -> list[list[int]]:
        tensors = collate(batch)
        asked = {name: tensors[name].to(model.device) for name in ("input_ids", "attention_mask")}
        output = model.generate(**asked, generation_config=generation)[:, 1:]
        return [templates.until_stop(answer, generation.eos_token_id) for answer in output.tolist()]

    groups = list(by_length([len(row["input_ids"]) for row in rows], batch_size))
    return by_row(rows, progress(groups, title, total=len(groups), unit="batches"), answers_to)


def text(answer: Sequence[int], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> str:
    """An answer in words."""
    return tokenizer.decode(answer, skip_special_tokens=True)


def reference(row: Row, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> str:
    """What was to be answered: the output of the example, or its tokens where there are only these.

    A tool call is shown as the template writes it.
    """
    if row.get("output") and not row["tool_calls"]:
        return row["output"]
    return tokenizer.decode(row["labels"], skip_special_tokens=True)
