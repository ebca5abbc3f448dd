"""The one rendering: text, tokens and mask."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AddedToken, AutoTokenizer

from tasks import templates
from tasks.errors import TemplateError
from tasks.formats import SHAPES
from tasks.templates import (
    TEMPLATES,
    Conversation,
    answer_text,
    messages,
    prompt_text,
    question,
    render,
    special_token_in,
    special_tokens_in,
    stop_token_ids,
    tokens,
)

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "base"

EXAMPLE = {"system": "", "history": [], "instruction": "Say both of", "input": "red green", "output": "red green"}


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path):
    return with_template(tiny_base, "chatml")


def with_template(base: Path, name: str):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = templates.choose(name, tokenizer)
    return tokenizer


def supervised_text(rendered, tokenizer) -> str:
    return tokenizer.decode([t for t, m in zip(rendered.input_ids, rendered.loss_mask, strict=True) if m])


def plainly(conversation: Conversation, tokenizer, train_on: str) -> tuple[list[int], list[bool], int, bool]:
    """`render` as one would first write it: what transformers documents, and a list of all offsets."""

    def text(messages: list[dict[str, object]], asking: bool) -> str:
        return tokenizer.apply_chat_template(
            messages, tools=conversation.tools or None, tokenize=False, add_generation_prompt=asking
        )

    said = list(conversation.messages)
    encoded = tokenizer(text(said, False), add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    turns = [at for at, message in enumerate(said) if at and message["role"] == "assistant"]
    mask, prompt, clean, end = [False] * len(ids), "", True, 0
    for turn in turns if train_on == "all" else turns[-1:]:
        prompt = text(said[:turn], True)
        end = max(len(prompt), len(text(said[: turn + 1], False).rstrip()))
        mask = [found or len(prompt) <= start < end for found, (start, _) in zip(mask, offsets, strict=True)]
        clean = clean and not any(start < len(prompt) < stop for start, stop in offsets)
    kept = sum(start < end for start, _ in offsets)
    return ids[:kept], mask[:kept], sum(start < len(prompt) for start, _ in offsets), clean


def with_normalizer(base: Path, name: str):
    """A tokenizer that changes texts before it reads them, so that characters have no token or share some."""
    tokenizer = with_template(base, "chatml")
    backend = tokenizer.backend_tokenizer
    if name == "composes":
        backend.normalizer = normalizers.NFKC()
    elif name == "drops":
        backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
        backend.normalizer = normalizers.Sequence([backend.normalizer, normalizers.Replace(Regex("[ \\n]"), "")])
    elif name == "begins words":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
        )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(tiny_base: Path):
    ours = {f"{name} of the quickstart": with_template(QUICKSTART, name) for name in TEMPLATES}
    return ours | {
        name: with_normalizer(tiny_base, name) for name in ("byte level", "composes", "drops", "begins words")
    }


KINDS = ("chatml of the quickstart", "plain of the quickstart", "byte level", "composes", "drops", "begins words")
ODD = [
    "",
    " ",
    "\n",
    "\n\n\nred",
    "a\r\nb\r\n",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|endoftext|>",
    "### Response:\n",
]
ODD += [
    "red " * 300,
    "é" * 40,
    "e\u0301\u0323",
    "\u0301",
    "ﬁ",
    "👩‍👩‍👧",
    "天气",
    "\u0000",
    "\u200b",
    "İ",
    "{{ messages }}",
    "{% x %}",
]
WILD = st.text(st.characters(codec="utf-8"), max_size=30) | st.lists(st.sampled_from(ODD), max_size=4).map("".join)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool", "system"]), WILD, st.booleans()), max_size=4)


def turns_of(drawn: list[tuple[str, str, bool]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text, "tool_calls": CALL if calls and role == "assistant" else ""}
        for role, text, calls in drawn
    ]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(WILD, TURNS, WILD, WILD, TURNS, WILD, st.booleans()), min_size=1, max_size=3),
    st.sampled_from(["last", "all"]),
)
def test_ids_and_masks_are_those_of_the_plain_way(tokenizers, kind, drawn, train_on):
    """Several conversations at once, as format does it, against one after another, as transformers documents it."""
    tokenizer = tokenizers[kind]
    conversations = [
        messages(
            EXAMPLE
            | {"system": system, "history": turns_of(history), "instruction": instruction, "input": given}
            | {"tool_turns": turns_of(turns), "output": output, "tools": json.dumps([WEATHER]) if tools else ""}
        )
        for system, history, instruction, given, turns, output, tools in drawn
    ]
    for conversation, rendered in zip(conversations, render(conversations, tokenizer, train_on), strict=True):
        ids, mask, prompt_tokens, clean = plainly(conversation, tokenizer, train_on)
        assert rendered.input_ids == ids
        assert rendered.loss_mask == mask
        assert (rendered.prompt_tokens, rendered.clean_cut) == (prompt_tokens, clean)


def test_golden_rendering(tokenizer):
    (rendered,) = render([messages(EXAMPLE)], tokenizer)
    assert tokenizer.decode(rendered.input_ids) == (
        "<|im_start|>user\nSay both of\n\nred green<|im_end|>\n<|im_start|>assistant\nred green<|im_end|>"
    )
    assert supervised_text(rendered, tokenizer) == "red green<|im_end|>"
    assert rendered.loss_mask.index(True) == rendered.prompt_tokens
    assert rendered.clean_cut


def test_only_the_last_answer_is_supervised_and_history_and_system_are_context(tokenizer):
    history = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "red"}]
    (rendered,) = render([messages(EXAMPLE | {"system": "Be brief.", "history": history})], tokenizer)
    text = tokenizer.decode(rendered.input_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay red.<|im_end|>")
    assert supervised_text(rendered, tokenizer) == "red green<|im_end|>"


@settings(max_examples=300, deadline=None)
@given(instruction=st.text(min_size=1), given=st.text(), output=st.text(min_size=1))
def test_what_is_trained_on_begins_with_what_serving_asks(tokenizer, instruction, given, output):
    conversation = messages(EXAMPLE | {"instruction": instruction, "input": given, "output": output})
    (rendered,) = render([conversation], tokenizer)
    if rendered.clean_cut:
        assert rendered.input_ids[: rendered.prompt_tokens] == tokens(
            prompt_text(conversation[:-1], tokenizer), tokenizer
        )
        assert not any(rendered.loss_mask[: rendered.prompt_tokens])
        assert rendered.input_ids[-1] in stop_token_ids(tokenizer)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_our_mask_agrees_with_the_generation_marks_of_the_template(tiny_base, name):
    tokenizer = with_template(tiny_base, name)
    conversation = messages(EXAMPLE)
    (rendered,) = render([conversation], tokenizer)
    marked = tokenizer.apply_chat_template(
        conversation.messages, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    length = len(rendered.input_ids)
    assert marked["input_ids"][:length] == rendered.input_ids
    assert [bool(mark) for mark in marked["assistant_masks"][:length]] == rendered.loss_mask


def test_auto_takes_the_tokenizers_own_template_then_chatml_then_plain(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    assert templates.choose("auto", tokenizer) == TEMPLATES["chatml"]
    tokenizer.chat_template = "mine"
    assert templates.choose("auto", tokenizer) == "mine"
    without = AutoTokenizer.from_pretrained(tiny_base)
    without.get_added_vocab = dict
    assert templates.choose("auto", without) == TEMPLATES["plain"]
    with pytest.raises(TemplateError, match="im_start"):
        templates.choose("chatml", without)


def test_a_template_that_asks_otherwise_than_it_trains_is_refused(tokenizer, tiny_base):
    other = AutoTokenizer.from_pretrained(tiny_base)
    other.chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
    )
    with pytest.raises(TemplateError, match="asks with one text and trains on another"):
        render([messages(EXAMPLE)], other)


def test_a_template_that_reaches_for_python_is_stopped_by_the_sandbox(tiny_base):
    other = AutoTokenizer.from_pretrained(tiny_base)
    other.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(TemplateError, match="cannot render"):
        render([messages(EXAMPLE)], other)


def test_a_token_across_the_end_of_the_prompt_is_told(tokenizer):
    tokenizer_with_merge = tokenizer
    (rendered,) = render([messages(EXAMPLE | {"output": "\n\n\nred"})], tokenizer_with_merge)
    prompt = tokens(prompt_text(messages(EXAMPLE)[:-1], tokenizer), tokenizer)
    assert rendered.clean_cut == (rendered.input_ids[: len(prompt)] == prompt)


def test_with_all_each_turn_is_asked_for_and_learnt_and_one_that_nothing_asks_for_is_not(tokenizer):
    turns = [("assistant", "Welcome."), ("user", "Say red."), ("assistant", "red"), ("tool", "pink"), ("assistant", "")]
    history = [{"role": role, "content": content} for role, content in turns]
    conversation = messages(EXAMPLE | {"history": history})
    (rendered,) = render([conversation], tokenizer, "all")
    assert [tokenizer.decode(rendered.input_ids[begin:end]) for begin, end in rendered.spans] == [
        "red<|im_end|>",
        "<|im_end|>",
        "red green<|im_end|>",
    ]
    places = [place for place, (role, _) in enumerate([*turns, ("user", ""), ("assistant", "")]) if role == "assistant"]
    for (begin, _), place in zip(rendered.spans, places[1:], strict=True):
        assert rendered.input_ids[:begin] == tokens(prompt_text(conversation[:place], tokenizer), tokenizer)
    assert rendered.prompt_tokens == rendered.spans[-1][0]


OTHERWISE = {  # what is written of a turn, and what asks for one
    "drops the thoughts of earlier turns": ("{{ m.content if loop.last else m.content.split('</think>')[-1] }}", ""),
    "closes earlier answers otherwise": (
        "{{ m.content }}{{ '' if loop.last or m.role == 'user' else '<|endoftext|>' }}",
        "",
    ),
    "asks for the first answer otherwise": ("{{ m.content }}", "{{ 'Begin: ' if messages | length == 1 }}"),
}


@pytest.mark.parametrize(("writes", "asks"), OTHERWISE.values(), ids=OTHERWISE)
def test_a_template_that_writes_earlier_turns_differently_is_for_the_last_one_only(tiny_base, writes, asks):
    """Qwen3 drops the thoughts of earlier turns: what was learnt from them would never be seen again."""
    other = AutoTokenizer.from_pretrained(tiny_base)
    other.chat_template = (
        f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{writes}<|im_end|>\n{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{asks}{{% endif %}}"
    )
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>a</think>b"}]
    conversation = messages(EXAMPLE | {"history": history})
    assert supervised_text(render([conversation], other)[0], other) == "red green<|im_end|>"
    with pytest.raises(TemplateError, match=r"writes a turn differently once others follow: .*train_on: last"):
        render([conversation], other, "all")


def test_a_row_without_a_last_word_keeps_its_prompt(tiny_base):
    """Where a template writes no stop token, an empty answer has no token, and what was asked is still whole."""
    other = AutoTokenizer.from_pretrained(tiny_base)
    other.chat_template = (
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (rendered,) = render([messages(EXAMPLE | {"history": history, "output": ""})], other, "all")
    assert len(rendered.input_ids) == rendered.prompt_tokens
    assert rendered.loss_mask[-1] is False and supervised_text(rendered, other) == "a"


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|endoftext|>b<|im_end|>", "<|im_end", "red", ""])
def test_special_tokens_are_found_for_many_as_for_one(tokenizer, text):
    conversations = [messages(EXAMPLE | {"output": text}), messages(EXAMPLE), messages(EXAMPLE | {"input": text})]
    found = special_tokens_in(conversations, tokenizer)
    assert found == [special_token_in(conversation, tokenizer) for conversation in conversations]
    first = next((mark for mark in ("<|endoftext|>", "<|im_end|>") if mark in text), "")
    assert found == [first, "", first]


# --- tools ---

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Météo <&> 天气", "parameters": {"type": "object"}},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '[{"name": "weather", "arguments": {"unit": "°C", "city": "Zürich"}}]'
TWO_CALLS = '[{"name": "clock", "arguments": {}}, {"name": "weather", "arguments": {"city": "a\\n\\"b\\""}}]'
USES_TOOLS = {
    "system": "Be brief.",
    "history": [
        {"role": "user", "content": "Hi.", "tool_calls": ""},
        {"role": "assistant", "content": "Hello.", "tool_calls": ""},
    ],
    "instruction": "Weather in Zürich?",
    "input": "",
    "tool_turns": [
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "tool", "content": '{"degrees": 9}', "tool_calls": ""},
    ],
    "output": "9 degrees.",
    "tool_calls": "",
    "tools": json.dumps([WEATHER, CLOCK], ensure_ascii=False),
}
CALLS_TOOLS = USES_TOOLS | {"output": "Let me look.", "tool_calls": TWO_CALLS, "tool_turns": []}
ONLY_CALLS = CALLS_TOOLS | {"output": "", "system": "", "history": []}

TOOLS_TEXT = """These tools can be called:
{"type": "function", "function": {"name": "weather", "description": "Météo <&> 天气", "parameters": {"type": "object"}}}
{"type": "function", "function": {"name": "clock"}}
A call is written so:
<tool_call>
{"name": "a tool", "arguments": {}}
</tool_call>"""
CALL_TEXT = """<tool_call>
{"name": "weather", "arguments": {"unit": "°C", "city": "Zürich"}}
</tool_call>"""
TWO_CALLS_TEXT = """<tool_call>
{"name": "clock", "arguments": {}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"city": "a\\n\\"b\\""}}
</tool_call>"""

CHATML = f"""<|im_start|>system
Be brief.

{TOOLS_TEXT}<|im_end|>
<|im_start|>user
Hi.<|im_end|>
<|im_start|>assistant
Hello.<|im_end|>
<|im_start|>user
Weather in Zürich?<|im_end|>
<|im_start|>assistant
{CALL_TEXT}<|im_end|>
<|im_start|>tool
{{"degrees": 9}}<|im_end|>
<|im_start|>assistant
"""
CHATML_BARE = f"""<|im_start|>system
{TOOLS_TEXT}<|im_end|>
<|im_start|>user
Weather in Zürich?<|im_end|>
<|im_start|>assistant
"""
PLAIN = f"""### Tools:
{TOOLS_TEXT}

### System:
Be brief.

### Instruction:
Hi.

### Response:
Hello.<|endoftext|>
### Instruction:
Weather in Zürich?

### Response:
{CALL_TEXT}<|endoftext|>
### Tool:
{{"degrees": 9}}

### Response:
"""
PLAIN_BARE = f"""### Tools:
{TOOLS_TEXT}

### Instruction:
Weather in Zürich?

### Response:
"""
GOLDEN = [
    ("chatml", USES_TOOLS, CHATML, "9 degrees.<|im_end|>"),
    ("chatml", ONLY_CALLS, CHATML_BARE, f"{TWO_CALLS_TEXT}<|im_end|>"),
    ("plain", USES_TOOLS, PLAIN, "9 degrees.<|endoftext|>"),
    ("plain", ONLY_CALLS, PLAIN_BARE, f"{TWO_CALLS_TEXT}<|endoftext|>"),
]


@pytest.mark.parametrize(("name", "example", "prompt", "answer"), GOLDEN)
def test_golden_rendering_of_tools(name, example, prompt, answer):
    """What the model is asked with, and what alone it learns: the answer, its calls, the stop token."""
    tokenizer, conversation = with_template(QUICKSTART, name), messages(example)
    (rendered,) = render([conversation], tokenizer)
    assert prompt_text(conversation[:-1], tokenizer) == prompt
    assert answer_text(conversation, tokenizer) == f"{prompt}{answer}\n"
    assert tokenizer.decode(rendered.input_ids) == prompt + answer
    assert supervised_text(rendered, tokenizer) == answer
    assert rendered.input_ids[: rendered.prompt_tokens] == tokens(prompt, tokenizer)
    assert rendered.loss_mask == [False] * rendered.prompt_tokens + [True] * len(tokens(answer, tokenizer))
    assert rendered.input_ids[-1] in stop_token_ids(tokenizer)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_call_stands_behind_the_words_of_its_turn(name):
    tokenizer = with_template(QUICKSTART, name)
    (rendered,) = render([messages(CALLS_TOOLS)], tokenizer)
    stop = {"chatml": "<|im_end|>", "plain": "<|endoftext|>"}[name]
    assert supervised_text(rendered, tokenizer) == f"Let me look.\n{TWO_CALLS_TEXT}{stop}"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("example", [USES_TOOLS, CALLS_TOOLS, ONLY_CALLS])
def test_the_generation_marks_hold_the_calls_too(name, example):
    tokenizer, conversation = with_template(QUICKSTART, name), messages(example)
    (rendered,) = render([conversation], tokenizer)
    marked = tokenizer.apply_chat_template(
        conversation.messages, tools=conversation.tools, return_dict=True, return_assistant_tokens_mask=True
    )
    length, begin = len(rendered.input_ids), rendered.prompt_tokens
    assert marked["input_ids"][:length] == rendered.input_ids
    assert [bool(mark) for mark in marked["assistant_masks"][begin:length]] == rendered.loss_mask[begin:]
    spoken = [token for token, mark in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mark]
    assert 'degrees"' not in tokenizer.decode(spoken)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_without_tools_nothing_of_them_is_written(name):
    """The columns of tools, empty or missing, change no byte: a golden rendering without them must stay."""
    tokenizer = with_template(QUICKSTART, name)
    blank = {"tools": "", "tool_calls": "", "tool_turns": []}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "tool", "content": "r"}]
    with_history = EXAMPLE | {"system": "Be brief.", "history": turns}
    empty = [turn | {"tool_calls": ""} for turn in turns]
    golden = {
        "chatml": (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
            "<|im_start|>assistant\na<|im_end|>\n<|im_start|>tool\nr<|im_end|>\n"
            "<|im_start|>user\nSay both of\n\nred green<|im_end|>\n"
            "<|im_start|>assistant\nred green<|im_end|>\n"
        ),
        "plain": (
            "### System:\nBe brief.\n\n### Instruction:\nq\n\n### Response:\na<|endoftext|>\n### Tool:\nr\n\n"
            "### Instruction:\nSay both of\n\nred green\n\n### Response:\nred green<|endoftext|>\n"
        ),
    }[name]
    assert answer_text(messages(with_history), tokenizer) == golden
    assert answer_text(messages(with_history | blank | {"history": empty}), tokenizer) == golden


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<|#"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
CALLED = st.builds(
    lambda name, arguments: {"function": {"name": name, "arguments": arguments}},
    TEXT.filter(bool),
    st.dictionaries(TEXT, JSON, max_size=3),
)


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def quickstart(request):
    return with_template(QUICKSTART, request.param)


def written_calls(text: str) -> list[dict[str, object]]:
    """The calls that a turn of the built-in templates holds, as a server would take them out of it."""
    lines = text.split("\n")
    return [json.loads(lines[at + 1]) for at, line in enumerate(lines) if line == "<tool_call>"]


@settings(max_examples=60, deadline=None)
@given(asked=TEXT, result=TEXT, said=TEXT, first=CALLED, last=st.lists(CALLED, max_size=2))
def test_what_a_row_says_is_what_is_rendered(quickstart, asked, result, said, first, last):
    """From OpenAI's messages through the columns of an example to the text, and the calls back out of it."""
    turns = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": None, "tool_calls": [first]},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": said, "tool_calls": last},
    ]
    conversation = messages(EXAMPLE | {"input": ""} | SHAPES["messages"]({"messages": turns, "tools": [WEATHER]}))
    assert [message["content"] for message in conversation] == [asked, "", result, said]
    assert conversation.tools == [WEATHER]
    prompt, text = prompt_text(conversation[:-1], quickstart), answer_text(conversation, quickstart)
    assert text.startswith(prompt)
    answer = text.removeprefix(prompt)
    assert answer.startswith(said)
    calls = [call["function"] for call in last]
    assert written_calls(answer.removeprefix(said)) == calls
    assert written_calls(prompt)[1:] == [first["function"]]  # the first stands in the explanation of the tools
    assert asked in prompt and result in prompt and json.dumps(WEATHER, ensure_ascii=False) in prompt


def test_a_slice_of_a_conversation_keeps_its_tools():
    conversation = messages(USES_TOOLS)
    roles = [message["role"] for message in conversation]
    assert roles == ["system", "user", "assistant", "user", "assistant", "tool", "assistant"]
    assert conversation[:-1].tools == conversation.tools == [WEATHER, CLOCK]
    assert (len(conversation), len(conversation[:-1])) == (7, 6)
    assert conversation[-1]["content"] == "9 degrees."


def test_what_the_user_says_is_the_instruction_with_its_input():
    assert question(USES_TOOLS) == "Weather in Zürich?"
    assert question(EXAMPLE) == "Say both of\n\nred green"


TURNS = "{{ tools }}{% for m in messages %}{{ m.content }}{{ m.tool_calls }};{% endfor %}"
LEAVES_OUT = {
    "tools": (TURNS.replace("{{ tools }}", ""), [USES_TOOLS, EXAMPLE | {"tools": "[{}]"}]),
    "arguments of tool calls and tool calls": (TURNS.replace("{{ m.tool_calls }}", ""), [USES_TOOLS, ONLY_CALLS]),
    "arguments of tool calls": (
        TURNS.replace("{{ m.tool_calls }}", "{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"),
        [USES_TOOLS | {"tools": ""}, ONLY_CALLS],
    ),
    "tool results": (
        TURNS.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"),
        [USES_TOOLS, EXAMPLE | {"history": [{"role": "tool", "content": "r"}]}],
    ),
    "words beside tool calls": (
        TURNS.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}"),
        [CALLS_TOOLS, CALLS_TOOLS | {"tools": ""}],
    ),
}


@pytest.mark.parametrize("part", LEAVES_OUT)
def test_a_template_that_leaves_out_what_an_example_has_is_refused(part):
    """Many chat templates know nothing of tools and say nothing about it; what is not needed may be left out."""
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    tokenizer.chat_template, examples = LEAVES_OUT[part]
    assert len(render([messages(EXAMPLE)], tokenizer)) == 1
    for example in examples:
        with pytest.raises(TemplateError, match=f"the examples have {part}, which the chat template leaves out;"):
            render([messages(EXAMPLE), messages(example)], tokenizer)
    if part == "words beside tool calls":
        assert len(render([messages(USES_TOOLS), messages(ONLY_CALLS)], tokenizer)) == 2


def test_a_template_that_needs_more_than_a_tool_has_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    tokenizer.chat_template = "{% for tool in tools %}{{ tool.function.returns | tojson }}{% endfor %}"
    with pytest.raises(TemplateError, match="cannot render"):
        render([messages(USES_TOOLS)], tokenizer)


@pytest.mark.parametrize(
    "changed",
    [
        {"system": "<|im_end|>"},
        {"history": [{"role": "user", "content": "a <|im_start|>system"}]},
        {"instruction": "<|im_end|>"},
        {"input": "<|endoftext|>"},
        {"output": "a<|im_end|>"},
        {"tool_turns": [{"role": "tool", "content": "<|im_start|>"}]},
        {
            "tool_turns": [
                {"role": "assistant", "content": "", "tool_calls": '[{"name": "<|im_end|>", "arguments": {}}]'}
            ]
        },
        {"tool_calls": '[{"name": "f", "arguments": {"a": ["<|im_end|>"]}}]'},
        {"tool_calls": '[{"name": "f", "arguments": {"<|im_end|>": 1}}]'},
        {"tools": '[{"function": {"name": "f", "description": "é<|im_end|>"}}]'},
        {"tools": '[{"function": {"name": "f", "description": "\\u003c|im_end|>"}}]'},
    ],
)
def test_a_mark_in_any_text_is_found(changed):
    tokenizer = with_template(QUICKSTART, "chatml")
    assert special_token_in(messages(USES_TOOLS), tokenizer) == ""
    found = special_token_in(messages(USES_TOOLS | changed), tokenizer)
    assert found in {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}


def test_a_mark_that_is_not_ascii_is_found_in_json():
    tokenizer, mark = with_template(QUICKSTART, "chatml"), "<\uff5cend\u2581of\u2581sentence\uff5c>"
    example = USES_TOOLS | {"tool_calls": json.dumps([{"name": "f", "arguments": {"a": mark}}])}
    assert special_token_in(messages(example), tokenizer) == ""
    tokenizer.add_tokens([AddedToken(mark, special=True)])
    assert special_token_in(messages(example), tokenizer) == mark


def test_a_token_that_ends_a_call_is_a_stop_token_too():
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    tokenizer.add_tokens([AddedToken("<|call|>", special=True), AddedToken("</call>", special=False)])
    ends = "{% for m in messages %}{{ m.content }}{{ '<END>' if m.tool_calls else '<|im_end|>' }}{% endfor %}"
    usual = {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id}
    for end, more in (("<|call|>", {tokenizer.convert_tokens_to_ids("<|call|>")}), ("</call>", set()), ("}", set())):
        tokenizer.chat_template = ends.replace("<END>", end)
        assert set(stop_token_ids(tokenizer)) == usual | more
    tokenizer.chat_template = ends.replace("'<END>'", "raise_exception('no tools here')")
    assert set(stop_token_ids(tokenizer)) == usual


def test_serving_can_ask_with_messages_and_tools_of_its_own():
    tokenizer = with_template(QUICKSTART, "chatml")
    trained = messages(USES_TOOLS)
    asked = Conversation([dict(message) for message in trained.messages[:-1]], [WEATHER, CLOCK])
    assert prompt_text(asked, tokenizer) == CHATML
