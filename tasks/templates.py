"""The one rendering: how a conversation becomes text and tokens, in format, evaluate, export and serving alike."""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import ModelError, TemplateError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

TOOLS = (
    "{{- 'These tools can be called:\\n' -}}"
    "{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}"
    '{{- \'A call is written so:\\n<tool_call>\\n{"name": "a tool", "arguments": {}}\\n</tool_call>\' -}}'
)
ANSWER = (
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
        + TOOLS
        + "{{- '<|im_end|>\\n' -}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if not (tools and loop.first and message['role'] == 'system') -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{% generation %}" + ANSWER + "{{- '<|im_end|>' -}}{% endgeneration %}{{- '\\n' -}}"
        "{%- else -%}{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    "plain": (
        "{%- if tools -%}{{- '### Tools:\\n' -}}" + TOOLS + "{{- '\\n\\n' -}}{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'assistant' -%}"
        "{{- '### Response:\\n' -}}"
        "{% generation %}" + ANSWER + "{{- eos_token -}}{% endgeneration %}{{- '\\n' -}}"
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
    spans          [(4, 6)]: the supervised tokens, the stop token among them
    prompt_tokens  4: what a model is asked with, for its last answer, is input_ids[:4]
    """

    input_ids: list[int]
    spans: list[tuple[int, int]]
    prompt_tokens: int
    clean_cut: bool  # False where one token reaches from a prompt into its answer

    @property
    def loss_mask(self) -> list[bool]:
        """For each token whether it is supervised."""
        mask = [False] * len(self.input_ids)
        for begin, end in self.spans:
            mask[begin:end] = [True] * (end - begin)
        return mask


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


_SHORTEST = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
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
    stops = {_last_token(_SHORTEST, tokenizer), tokenizer.eos_token_id} - {None}
    with suppress(TemplateError):  # a template that knows no tools ends no call either
        stops |= {_last_token(_PROBE[:2], tokenizer)} & set(_special_tokens(tokenizer).values())
    return sorted(stops)


def _last_token(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> int:
    return tokens(answer_text(conversation, tokenizer).rstrip(), tokenizer)[-1]


def messages(example: Mapping[str, Any]) -> Conversation:
    """An example (columns EXAMPLE, those of tools may be missing) as chat messages, the answer last.

    They are: system, history, instruction with input, tool turns, output; with the tools on offer.
    """
    found = [_message(turn) for turn in example["history"]]
    if example["system"]:
        found.insert(0, {"role": "system", "content": example["system"]})
    found.append({"role": "user", "content": question(example)})
    found += [_message(turn) for turn in example.get("tool_turns") or ()]
    found.append(_with_calls("assistant", example["output"], example.get("tool_calls")))
    tools = example.get("tools")
    return Conversation(found, json.loads(tools) if tools else ())


def question(example: Mapping[str, Any]) -> str:
    """What the user says in an example: the instruction with its input."""
    return f"{example['instruction']}\n\n{example['input']}" if example["input"] else example["instruction"]


def _message(turn: Mapping[str, Any]) -> Message:
    """A turn of the schema as a chat message."""
    return _with_calls(turn["role"], turn["content"], turn.get("tool_calls"))


def _with_calls(role: str, content: str, tool_calls: str | None) -> Message:
    if not tool_calls:
        return {"role": role, "content": content}
    calls = [{"type": "function", "function": call} for call in json.loads(tool_calls)]
    return {"role": role, "content": content, "tool_calls": calls}


def special_token_in(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A special token that stands in a text of the conversation, where it would be read as a mark; else ""."""
    return special_tokens_in([conversation], tokenizer)[0]


def special_tokens_in(conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The same for many conversations, faster."""
    written = re.compile("|".join(re.escape(token) for token in _special_tokens(tokenizer)) or "(?!)")
    found = (written.search("\n".join(conversation.texts)) for conversation in conversations)
    return [match[0] if match else "" for match in found]


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """The tokens that the tokenizer takes for marks wherever they stand, with their ids.

    `all_special_tokens` alone is not all of them: it names those that have a part to play, such as the end of text.
    """
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def prompt_text(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text that asks for the next assistant turn of `conversation`."""
    return _texts([conversation], tokenizer, add_generation_prompt=True)[0]


def answer_text(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of `conversation`, its last assistant turn included."""
    return _texts([conversation], tokenizer, add_generation_prompt=False)[0]


def tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of rendered text; special tokens are those that the template wrote."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def until_stop(answer: list[int], stop_token_ids: Sequence[int]) -> list[int]:
    """The generated tokens before the first stop token."""
    end = next((i for i, token in enumerate(answer) if token in stop_token_ids), len(answer))
    return answer[:end]


def render(
    conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", train_on: str = "last"
) -> list[Rendered]:
    """Render conversations that end with the assistant's turn, and mark the tokens of that turn, or of all its turns.

    The mask comes from character offsets: what the template writes behind a prompt, up to and with the stop token.  A
    turn that stands first, which nothing asks for, is not marked.  Raises TemplateError when the template writes
    something else before an answer than it asks with, or leaves out tools, tool calls or results that a conversation
    has; ModelError when the tokenizer cannot tell where its tokens stand.
    """
    _check_tools(conversations, tokenizer)
    turns = [_answers(conversation) if train_on == "all" else [len(conversation) - 1] for conversation in conversations]
    each = [(conversation, turn) for conversation, those in zip(conversations, turns, strict=True) for turn in those]
    answered = _texts((conversation[: turn + 1] for conversation, turn in each), tokenizer, add_generation_prompt=False)
    written = zip(_asked(each, answered, tokenizer), answered, strict=True)
    marked = [_marked([next(written) for _ in those]) for those in turns]
    encodings = _encodings([text for text, _ in marked], tokenizer)
    return [_in_tokens(encoding, spans) for encoding, (_, spans) in zip(encodings, marked, strict=True)]


def _answers(conversation: Conversation) -> list[int]:
    """The places of the assistant's turns."""
    return [place for place, message in enumerate(conversation.messages) if place and message["role"] == "assistant"]


def _asked(
    each: Sequence[tuple[Conversation, int]], answered: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[str]:
    """The text that asks for each turn.

    Our own templates write an answer as its content and an end, so that the prompt is the rest of `answered`; any other
    may do as it likes, and is asked.
    """
    if tokenizer.chat_template not in TEMPLATES.values():
        return _texts((conversation[:turn] for conversation, turn in each), tokenizer, add_generation_prompt=True)
    end = answer_text(_SHORTEST, tokenizer).removeprefix(prompt_text(_SHORTEST[:1], tokenizer)).removeprefix("b")
    return [
        prompt_text(conversation[:turn], tokenizer)
        if "tool_calls" in conversation[turn]
        else text.removesuffix(conversation[turn]["content"] + end)
        for (conversation, turn), text in zip(each, answered, strict=True)
    ]


def _marked(turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation and the characters of its answers, from the prompt and the text up to each of them."""
    text = turns[-1][1]
    if not text.startswith(turns[-1][0]):
        raise TemplateError(
            "the chat template asks with one text and trains on another: "
            f"{_difference(turns[-1][0], text)}; choose another format.template"
        )
    for begin in (begin for turn in turns[:-1] for begin in turn if not text.startswith(begin)):
        raise TemplateError(
            "the chat template writes a turn differently once others follow: "
            f"{_difference(begin, text)}; use format.train_on: last"
        )
    return text, [(len(prompt), max(len(prompt), len(answer.rstrip()))) for prompt, answer in turns]


def _encodings(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> "list[Encoding]":
    """What the tokenizer makes of rendered texts, as its backend has it: lists of offsets are made only when asked."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"model.base: {type(tokenizer).__name__} cannot tell where its tokens stand in a text; "
            "a base with a tokenizer.json can"
        )
    tokenizer("", add_special_tokens=False)  # as every call, it sets the backend to neither cut nor pad
    return tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)


def _in_tokens(encoding: "Encoding", spans: Sequence[tuple[int, int]]) -> Rendered:
    """Characters to tokens: one belongs to a span where it begins there.  What follows the last span is cut off."""
    found = [(_first_token(encoding, begin), _first_token(encoding, end)) for begin, end in spans]
    clean = all(
        first == 0 or encoding.token_to_chars(first - 1)[1] <= begin
        for (first, _), (begin, _) in zip(found, spans, strict=True)
    )
    return Rendered(encoding.ids[: found[-1][1]], found, found[-1][0], clean)


def _first_token(encoding: "Encoding", begin: int) -> int:
    """The first token that begins at character `begin` or later; a list of all offsets would take longer to make."""
    return bisect_left(range(len(encoding)), begin, key=lambda token: encoding.token_to_chars(token)[0])


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
    for message in conversation.messages:
        if message["role"] == "tool":
            yield "tool results"
        if "tool_calls" in message:
            yield from ("tool calls", "arguments of tool calls")
            if message["content"]:
                yield "words beside tool calls"


def _texts(
    conversations: Iterable[Conversation], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool
) -> list[str]:
    """Each conversation as `apply_chat_template` writes it, without what that does anew for each of them."""
    from jinja2 import TemplateError as JinjaError
    from transformers.utils.chat_template_utils import render_jinja_template

    found = []
    for tools, group in groupby(conversations, key=attrgetter("tools")):
        offered = list(tools) or None
        template = tokenizer.get_chat_template(tools=offered)
        if (
            template in TEMPLATES.values()
        ):  # their marks of what is generated are for others, and take a third of the time
            template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        known = tokenizer.special_tokens_map | {"add_generation_prompt": add_generation_prompt}
        try:
            found += render_jinja_template([each.messages for each in group], offered, None, template, **known)[0]
        except (JinjaError, TypeError) as error:  # TypeError: tojson of what a message or tool has not got
            raise TemplateError(f"the chat template cannot render this conversation: {error}") from None
    return found


def _knows_chatml(tokenizer: "PreTrainedTokenizerBase") -> bool:
    known = tokenizer.get_added_vocab()
    return "<|im_start|>" in known and "<|im_end|>" in known


def _difference(prompt: str, text: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
    return f"{prompt[max(0, at - 20) : at + 20]!r} against {text[max(0, at - 20) : at + 20]!r}"
