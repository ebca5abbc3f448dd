"""The one rendering: how a conversation becomes text and tokens, in format, evaluate, export and serving alike."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = {
    "chatml": (
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{% generation %}{{- message['content'] + '<|im_end|>' -}}{% endgeneration %}{{- '\\n' -}}"
        "{%- else -%}{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    "plain": (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'assistant' -%}"
        "{{- '### Response:\\n' -}}"
        "{% generation %}{{- message['content'] + eos_token -}}{% endgeneration %}{{- '\\n' -}}"
        "{%- elif message['role'] == 'user' -%}{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}"
        "{%- else -%}{{- '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}"
    ),
}
"""Jinja chat templates by name.  chatml needs its two marks as tokens; plain needs only an end-of-text token."""


class Rendered(NamedTuple):
    """One conversation in tokens.

    For the prompt "A" answered by "B" and one token a character:
    input_ids      [<user> A <end> <assistant> B <end>]
    loss_mask      [   0   0   0        0      1   1  ]   the stop token is inside the mask
    prompt_tokens  4: what a model is asked with is input_ids[:4]
    """

    input_ids: list[int]
    loss_mask: list[bool]
    prompt_tokens: int
    clean_cut: bool  # False where one token reaches over the end of the prompt


def choose(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The Jinja text of a template; `auto` is the tokenizer's own, else chatml where its marks are known, else plain.

    Raises TemplateError when the tokenizer cannot carry the template.
    """
    if name == "auto":
        if tokenizer.chat_template:
            return tokenizer.chat_template
        name = "chatml" if _knows_chatml(tokenizer) else "plain"
    if name == "chatml" and not _knows_chatml(tokenizer):
        raise TemplateError(
            "format.template: chatml needs <|im_start|> and <|im_end|> as tokens of the base model; use plain"
        )
    if name == "plain" and tokenizer.eos_token is None:
        raise TemplateError("format.template: plain needs an end-of-text token, and the base model has none")
    return TEMPLATES[name]


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer under the tokenizer's chat template: the one it writes, and the model's own."""
    answer = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    last = tokens(answer_text(answer, tokenizer).rstrip(), tokenizer)[-1]
    return sorted({last} | ({tokenizer.eos_token_id} - {None}))


def messages(example: Mapping[str, Any]) -> list[dict[str, str]]:
    """An example (columns EXAMPLE) as chat messages: system, history, instruction with input, output."""
    system = [{"role": "system", "content": example["system"]}] if example["system"] else []
    question = f"{example['instruction']}\n\n{example['input']}" if example["input"] else example["instruction"]
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in example["history"]]
    return [*system, *turns, {"role": "user", "content": question}, {"role": "assistant", "content": example["output"]}]


def prompt_text(conversation: Sequence[Mapping[str, str]], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text that asks for the next assistant turn of `conversation`."""
    return _apply(conversation, tokenizer, add_generation_prompt=True)


def answer_text(conversation: Sequence[Mapping[str, str]], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of `conversation`, its last assistant turn included."""
    return _apply(conversation, tokenizer, add_generation_prompt=False)


def tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of rendered text; special tokens are those that the template wrote."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def render(
    conversations: Sequence[Sequence[Mapping[str, str]]], tokenizer: "PreTrainedTokenizerBase"
) -> list[Rendered]:
    """Render conversations that end with the assistant's turn, and mark the tokens of that turn.

    The mask comes from character offsets: what the template writes behind the prompt, up to and with the stop token.
    Raises TemplateError when the template writes something else before the answer than it asks with.
    """
    prompts = [prompt_text(conversation[:-1], tokenizer) for conversation in conversations]
    texts = [answer_text(conversation, tokenizer) for conversation in conversations]
    for prompt, text in zip(prompts, texts, strict=True):
        if not text.startswith(prompt):
            raise TemplateError(
                "the chat template asks with one text and trains on another: "
                f"{_difference(prompt, text)}; choose another format.template"
            )
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        _mask(ids, offsets, len(prompt), len(text.rstrip()))
        for ids, offsets, prompt, text in zip(
            encoded["input_ids"], encoded["offset_mapping"], prompts, texts, strict=True
        )
    ]


def _mask(ids: list[int], offsets: list[tuple[int, int]], begin: int, end: int) -> Rendered:
    """Supervise the tokens that lie in characters begin..end; what follows the stop token is cut off."""
    kept = sum(1 for start, _ in offsets if start < end)
    prompt_tokens = sum(1 for start, _ in offsets if start < begin)
    clean_cut = prompt_tokens == 0 or offsets[prompt_tokens - 1][1] <= begin
    return Rendered(ids[:kept], [index >= prompt_tokens for index in range(kept)], prompt_tokens, clean_cut)


def _apply(
    conversation: Sequence[Mapping[str, str]], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool
) -> str:
    from jinja2 import TemplateError as JinjaError

    try:
        return tokenizer.apply_chat_template(
            list(conversation), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except JinjaError as error:
        raise TemplateError(f"the chat template cannot render this conversation: {error}") from None


def _knows_chatml(tokenizer: "PreTrainedTokenizerBase") -> bool:
    known = tokenizer.get_added_vocab()
    return "<|im_start|>" in known and "<|im_end|>" in known


def _difference(prompt: str, text: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
    return f"{prompt[max(0, at - 20) : at + 20]!r} against {text[max(0, at - 20) : at + 20]!r}"
