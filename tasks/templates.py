"""The one rendering: how a conversation becomes text and tokens, in format, evaluate, export and serving alike."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOOLS = (
    "{{- 'These tools can be called:\\n' -}}"
    "{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}"
    '{{- \'A call is written so:\\n<tool_call>\\n{"name": "a tool", "arguments": {}}\\n</tool_call>\' -}}'
)
_ANSWER = (
    "{{- message['content'] or '' -}}"
    "{%- for call in message['tool_calls'] -%}"
    "{{- '\\n' if message['content'] or not loop.first -}}"
    "{{- '<tool_call>\\n{\"name\": ' + call['function']['name'] | tojson -}}"
    "{{- ', \"arguments\": ' + call['function']['arguments'] | tojson + '}\\n</tool_call>' -}}"
    "{%- endfor -%}"
)

TEMPLATES = {
    "chatml": (
        "{%- if tools -%}"
        "{{- '<|im_start|>system\\n' -}}"
        "{%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'] + '\\n\\n' -}}{%- endif -%}"
        + _TOOLS
        + "{{- '<|im_end|>\\n' -}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if not (tools and loop.first and message['role'] == 'system') -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{% generation %}" + _ANSWER + "{{- '<|im_end|>' -}}{% endgeneration %}{{- '\\n' -}}"
        "{%- else -%}{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    "plain": (
        "{%- if tools -%}{{- '### Tools:\\n' -}}" + _TOOLS + "{{- '\\n\\n' -}}{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'assistant' -%}"
        "{{- '### Response:\\n' -}}"
        "{% generation %}" + _ANSWER + "{{- eos_token -}}{% endgeneration %}{{- '\\n' -}}"
        "{%- elif message['role'] == 'user' -%}{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}"
        "{%- else -%}{{- '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}"
    ),
}
"""Jinja chat templates by name.  chatml needs its two marks as tokens; plain needs only an end-of-text token.

Tools stand one a line as JSON before everything else but the system message; a call is JSON between two lines of plain
text, behind the content of its turn; a result is a turn of its own.
"""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation(Sequence[Message]):
    """Chat messages as transformers and OpenAI's interface know them, and the tools on offer; a slice keeps the tools.

    A message is {"role", "content"}; an assistant's may have
    "tool_calls": [{"type": "function", "function": {"name", "arguments": an object}}].
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, index: int | slice) -> Any:
        found = self.messages[index]
        return Conversation(found, self.tools) if isinstance(index, slice) else found

    @property
    def texts(self) -> list[str]:
        """Every text that a chat template gets: contents, and the JSON of tool calls and tools."""
        calls = [message["tool_calls"] for message in self.messages if "tool_calls" in message]
        written = [json.dumps(found, ensure_ascii=False) for found in (*calls, *self.tools)]
        return [*(message["content"] for message in self.messages), *written]


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


_PROBE = Conversation(
    [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "probe_words",
            "tool_calls": [{"type": "function", "function": {"name": "probe_call", "arguments": {"b": "probe_value"}}}],
        },
        {"role": "tool", "content": "probe_result"},
        {"role": "assistant", "content": "c"},
    ],
    [
        {
            "type": "function",
            "function": {
                "name": "probe_tool",
                "description": "d",
                "parameters": {"type": "object", "properties": {"b": {"type": "string", "description": "e"}}},
            },
        }
    ],
)
_PROBE_MARKS = {
    "tools": "probe_tool",
    "tool calls": "probe_call",
    "arguments of tool calls": "probe_value",
    "words beside tool calls": "probe_words",
    "tool results": "probe_result",
}
"""A conversation that shows what of tools a chat template writes, and how it ends a call; and its parts by name."""


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer under the tokenizer's chat template: those it writes, and the model's own."""
    answer = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    stops = {_last_token(answer, tokenizer), tokenizer.eos_token_id} - {None}
    with suppress(TemplateError):  # a template that knows no tools ends no call either
        stops |= {_last_token(_PROBE[:2], tokenizer)} & set(_special_tokens(tokenizer).values())
    return sorted(stops)


def _last_token(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> int:
    return tokens(answer_text(conversation, tokenizer).rstrip(), tokenizer)[-1]


def messages(example: Mapping[str, Any]) -> Conversation:
    """An example (columns EXAMPLE, those of tools may be missing) as chat messages, the answer last.

    They are: system, history, instruction with input, tool turns, output; with the tools on offer.
    """
    system = [{"role": "system", "content": example["system"]}] if example["system"] else []
    answer = {"role": "assistant", "content": example["output"], "tool_calls": example.get("tool_calls")}
    turns = [*example["history"], {"role": "user", "content": question(example)}, *(example.get("tool_turns") or [])]
    tools = example.get("tools")
    return Conversation([*system, *map(_message, (*turns, answer))], json.loads(tools) if tools else [])


def question(example: Mapping[str, Any]) -> str:
    """What the user says in an example: the instruction with its input."""
    return f"{example['instruction']}\n\n{example['input']}" if example["input"] else example["instruction"]


def _message(turn: Mapping[str, Any]) -> Message:
    """A turn of the schema as a chat message."""
    message = {"role": turn["role"], "content": turn["content"]}
    if not turn.get("tool_calls"):
        return message
    return message | {"tool_calls": [{"type": "function", "function": call} for call in json.loads(turn["tool_calls"])]}


def special_token_in(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A special token that stands in a text of the conversation, where it would be read as a mark; else ""."""
    text = "\n".join(conversation.texts)
    return next((token for token in _special_tokens(tokenizer) if token in text), "")


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """The tokens that the tokenizer takes for marks wherever they stand, with their ids.

    `all_special_tokens` alone is not all of them: it names those that have a part to play, such as the end of text.
    """
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def prompt_text(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text that asks for the next assistant turn of `conversation`."""
    return _apply(conversation, tokenizer, add_generation_prompt=True)


def answer_text(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of `conversation`, its last assistant turn included."""
    return _apply(conversation, tokenizer, add_generation_prompt=False)


def tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of rendered text; special tokens are those that the template wrote."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def until_stop(answer: list[int], stop_token_ids: Sequence[int]) -> list[int]:
    """The generated tokens before the first stop token."""
    end = next((i for i, token in enumerate(answer) if token in stop_token_ids), len(answer))
    return answer[:end]


def render(conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase") -> list[Rendered]:
    """Render conversations that end with the assistant's turn, and mark the tokens of that turn.

    The mask comes from character offsets: what the template writes behind the prompt, up to and with the stop token.
    Raises TemplateError when the template writes something else before the answer than it asks with, or leaves out
    tools, tool calls or results that a conversation has.
    """
    _check_tools(conversations, tokenizer)
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


def _check_tools(conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise TemplateError where the template leaves out a part that the conversations have, which many do silently."""
    needed = {part for conversation in conversations for part in _parts(conversation)}
    text = answer_text(_PROBE, tokenizer) if needed else ""
    if missing := sorted(part for part in needed if _PROBE_MARKS[part] not in text):
        raise TemplateError(
            f"the examples have {' and '.join(missing)}, which the chat template leaves out; choose another "
            "format.template"
        )


def _parts(conversation: Conversation) -> Iterator[str]:
    """What a conversation has that not every chat template writes, by its names in _PROBE_MARKS."""
    if conversation.tools:
        yield "tools"
    for message in conversation:
        if message["role"] == "tool":
            yield "tool results"
        if "tool_calls" in message:
            yield from ("tool calls", "arguments of tool calls")
            if message["content"]:
                yield "words beside tool calls"


def _apply(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError as JinjaError

    try:
        return tokenizer.apply_chat_template(
            list(conversation),
            tools=list(conversation.tools) or None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (JinjaError, TypeError) as error:  # TypeError: tojson of what a message or tool has not got
        raise TemplateError(f"the chat template cannot render this conversation: {error}") from None


def _knows_chatml(tokenizer: "PreTrainedTokenizerBase") -> bool:
    known = tokenizer.get_added_vocab()
    return "<|im_start|>" in known and "<|im_end|>" in known


def _difference(prompt: str, text: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
    return f"{prompt[max(0, at - 20) : at + 20]!r} against {text[max(0, at - 20) : at + 20]!r}"
