"""Decoder-only models: GPT-2, Llama, Qwen and the rest of AutoModelForCausalLM."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tasks import losses, templates, truncation
from tasks.config import FormatConfig
from tasks.devices import on_device
from tasks.encoded import Encoded, Refused
from tasks.families.batches import Row, by_length, by_row, by_tokens, left_padded, right_padded
from tasks.progress import progress
from tasks.schema import IGNORE_INDEX

AUTO = AutoModelForCausalLM
METRICS = ("exact_match", "rouge_l")
PACKS = True
TOKENS_IN_BATCH = 8192

disable_progress_bar()  # the Trainer and from_pretrained would draw one for every checkpoint


def chat_template(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of that name; see `templates.choose`."""
    return templates.choose(name, tokenizer)


def encode(
    examples: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: FormatConfig, labels: Sequence[str] = ()
) -> list[Encoded | Refused]:
    """Render the conversations whole, and supervise the last of the assistant's turns in them, or all.

    Reasons to refuse: special_token_in_text, no_supervised_tokens, too_many_tokens, token_across_prompt_end.
    """
    conversations = [templates.messages(example) for example in examples]
    specials = templates.special_tokens_in(conversations, tokenizer)
    usable = [conversation for conversation, special in zip(conversations, specials, strict=True) if not special]
    rendered = iter(templates.render(usable, tokenizer, config.train_on))
    return [
        Refused("special_token_in_text", f"{special} would be read as a mark of the template")
        if special
        else _encoded(example, next(rendered), tokenizer, config)
        for example, special in zip(examples, specials, strict=True)
    ]


def _encoded(
    example: Row, whole: templates.Rendered, tokenizer: PreTrainedTokenizerBase, config: FormatConfig
) -> Encoded | Refused:
    limit = config.max_seq_length
    rendered = whole if len(whole.input_ids) <= limit else _cut(example, whole, tokenizer, config)
    ids, labels = rendered.input_ids, [IGNORE_INDEX] * len(rendered.input_ids)
    for begin, end in rendered.spans:
        labels[begin:end] = ids[begin:end]
    if not any(end > max(begin, 1) for begin, end in rendered.spans):  # nothing comes before a row's first token
        told = f"{whole.prompt_tokens} tokens ask, {len(whole.input_ids) - whole.prompt_tokens} answer"
        return Refused("no_supervised_tokens", f"{told}, format.max_seq_length is {limit}")
    if len(ids) > limit:
        return Refused("too_many_tokens", f"{len(ids)} tokens, format.max_seq_length is {limit}")
    if not rendered.clean_cut:
        return Refused("token_across_prompt_end", "one token reaches from the prompt into the answer")
    return Encoded(ids, labels, rendered.prompt_tokens, rendered is not whole)


def _cut(
    example: Row, whole: templates.Rendered, tokenizer: PreTrainedTokenizerBase, config: FormatConfig
) -> templates.Rendered:
    """What `format.truncation` leaves of an example that is too long; the same where it leaves it."""
    if config.truncation == "cut_prompt":

        def render(shorter: Row) -> templates.Rendered:
            return templates.render([templates.messages(shorter)], tokenizer, config.train_on)[0]

        return truncation.cut_prompt(
            example, whole, config.max_seq_length, tokenizer, render, lambda found: len(found.input_ids)
        )
    return truncation.cut_output(whole, config.max_seq_length) if config.truncation == "cut_output" else whole


def prompt_ids(example: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the model is asked with: the conversation up to where its last answer begins."""
    return templates.tokens(templates.prompt_text(templates.messages(example)[:-1], tokenizer), tokenizer)


def load(folder: Path, dtype: torch.dtype = torch.float32, labels: Sequence[str] = ()) -> PreTrainedModel:
    """The model in `folder`, on the GPU where there is one, ready to evaluate."""
    model = AUTO.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True
    )
    model.generation_config = GenerationConfig()  # the base's own would steer what is called greedy, as by a penalty
    return on_device(model).eval()


def from_scratch(folder: Path, seed: int, labels: Sequence[str] = ()) -> PreTrainedModel:
    """A model of the same shape as the one in `folder`, randomly initialised."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return on_device(AUTO.from_config(config, dtype=torch.float32, attn_implementation="sdpa"))


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Right-pad packed rows to one length.

    Rows hold input_ids, labels and, where several documents share a row, position_ids; the result holds each as int64
    of shape (rows, longest).  Positions begin anew at 0 with each document, and the padding is a document of its own:
    that is how attention, given no mask and no cache, keeps documents apart.
    """
    labels = right_padded([row["labels"] for row in rows], IGNORE_INDEX)
    labels[:, 0] = IGNORE_INDEX  # nothing predicts it
    longest = labels.shape[1]
    positions = [
        np.concatenate([row.get("position_ids", np.arange(size)), np.arange(longest - size)])
        for row, size in ((row, len(row["input_ids"])) for row in rows)
    ]
    return {
        "input_ids": right_padded([row["input_ids"] for row in rows], 0),
        "labels": labels,
        "position_ids": right_padded(positions, 0),
    }


def summed_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor], label_smoothing: float = 0.0) -> torch.Tensor:
    """Each supervised token is predicted by the one before it; `labels` of a row's first token do not count."""
    inputs, supervised, targets = _at(batch)
    return losses.summed_loss(model, inputs, supervised, targets, label_smoothing)


def example_losses(model: PreTrainedModel, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """For each row the summed loss of its supervised tokens, in nats, and their number."""
    model.eval()

    def losses_of(batch: Sequence[Row]) -> list[tuple[float, int]]:
        tensors = {name: tensor.to(model.device) for name, tensor in collate(batch).items()}
        return losses.row_losses(model, *_at(tensors))

    return by_row(rows, by_tokens([len(row["input_ids"]) for row in rows], TOKENS_IN_BATCH), losses_of)


def _at(batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Inputs of the model, the tokens whose next one is supervised, and those next ones."""
    following = batch["labels"].roll(-1, 1)
    following[:, -1] = IGNORE_INDEX
    supervised = following != IGNORE_INDEX
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return inputs, supervised, following[supervised]


def generation_config(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding up to a stop token of the tokenizer's chat template."""
    stops = templates.stop_token_ids(tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    return GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=pad, max_new_tokens=max_new_tokens)


@torch.inference_mode()
def answers(
    model: PreTrainedModel, rows: Sequence[Row], generation: GenerationConfig, batch_size: int, title: str
) -> list[list[int]]:
    """The tokens that `model` answers to each row's prompt, from the stop token on cut off.

    Prompts of similar length are answered together, left-padded.
    """

    def answers_to(batch: Sequence[Row]) -> list[list[int]]:
        asked = [row["input_ids"][: row["prompt_tokens"]] for row in batch]
        ids = left_padded(asked, generation.pad_token_id).to(model.device)
        mask = left_padded([[1] * len(prompt) for prompt in asked], 0).to(model.device)
        output = model.generate(ids, attention_mask=mask, generation_config=generation)[:, ids.shape[1] :]
        return [templates.until_stop(answer, generation.eos_token_id) for answer in output.tolist()]

    groups = list(by_length([row["prompt_tokens"] for row in rows], batch_size))
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
    return tokenizer.decode(row["input_ids"][row["prompt_tokens"] :], skip_special_tokens=True)
