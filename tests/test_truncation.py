"""Truncation: what goes, in which order, and what never does."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tasks import templates
from tasks.templates import Rendered, messages, render
from tasks.truncation import cut_output, cut_prompt

BLANK = {"system": "", "history": [], "instruction": "Say both of", "input": "", "output": "red green"}


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = templates.choose("auto", tokenizer)
    return tokenizer


def whole(example: dict[str, object], tokenizer, train_on: str = "last") -> Rendered:
    return render([messages(example)], tokenizer, train_on)[0]


def cut(example: dict[str, object], limit: int, tokenizer, train_on: str = "last", render=whole) -> Rendered:
    """As the family of decoders cuts."""
    before = whole(example, tokenizer, train_on)
    return cut_prompt(
        example,
        before,
        limit,
        tokenizer,
        lambda shorter: render(shorter, tokenizer, train_on),
        lambda found: len(found.input_ids),
    )


def words(rendered: Rendered, tokenizer) -> str:
    return tokenizer.decode(rendered.input_ids)


def exchange(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": "", "tool_calls": '[{"name": "look", "arguments": {}}]'},
        {"role": "tool", "content": f"result {number}"},
        {"role": "assistant", "content": f"answer {number}"},
    ]


CHAT = BLANK | {"history": [turn for number in range(8) for turn in exchange(number)], "system": "Be brief."}


@pytest.mark.parametrize("kept", range(8))
@pytest.mark.parametrize("train_on", ["last", "all"])
def test_the_oldest_exchanges_go_whole_and_no_more_than_must(tokenizer, kept, train_on):
    """A row that fits exactly is found, and one token less costs exactly one exchange more."""
    shorter = CHAT | {"history": CHAT["history"][4 * (8 - kept) :]}
    expected = whole(shorter, tokenizer, train_on)
    limit = len(expected.input_ids)
    assert cut(CHAT, limit, tokenizer, train_on) == expected
    if kept:
        fewer = whole(CHAT | {"history": CHAT["history"][4 * (9 - kept) :]}, tokenizer, train_on)
        assert cut(CHAT, limit - 1, tokenizer, train_on) == fewer


def test_what_stands_before_the_first_question_goes_with_it(tokenizer):
    history = [{"role": "assistant", "content": "Welcome."}, *exchange(1), *exchange(2)]
    for kept, limit_of in ((history[5:], history[5:]), ([], [])):
        limit = len(whole(BLANK | {"history": limit_of}, tokenizer).input_ids)
        assert cut(BLANK | {"history": history}, limit, tokenizer) == whole(BLANK | {"history": kept}, tokenizer)


def test_history_goes_before_the_input_and_the_input_before_the_instruction(tokenizer):
    example = CHAT | {"input": "blue " * 40}
    bare = len(whole(BLANK | {"system": "Be brief."}, tokenizer).input_ids)
    text = words(cut(example, bare + 20, tokenizer), tokenizer)
    assert "question" not in text and "Say both of\n\nblue blue" in text
    text = words(cut(example, bare - 1, tokenizer), tokenizer)
    assert "blue" not in text and "user\nSay" in text and "Say both of" not in text
    assert text.endswith("red green<|im_end|>") and "Be brief." in text


@pytest.mark.parametrize(
    "changed", [{"output": "blue " * 60}, {"system": "blue " * 60}, {"tools": '[{"name": "' + "b" * 200 + '"}]'}]
)
def test_where_nothing_of_the_question_could_stay_the_row_stays_too_long(tokenizer, changed):
    example = CHAT | changed
    found = cut(example, 40, tokenizer)
    assert found == whole(example, tokenizer) and len(found.input_ids) > 40


def test_an_answer_to_nothing_is_no_example(tokenizer):
    nothing = len(whole(BLANK | {"instruction": ""}, tokenizer).input_ids)
    assert len(cut(BLANK, nothing, tokenizer).input_ids) > nothing
    assert "user\nSay<|im_end|>" in words(cut(BLANK, nothing + 1, tokenizer), tokenizer)
    only_input = BLANK | {"instruction": "", "input": "blue"}
    long = only_input | {"history": exchange(1)}
    assert cut(long, nothing + 5, tokenizer) == whole(only_input, tokenizer)


def test_few_renderings_suffice(tokenizer):
    """For a long text about two, for a history one for each halving of it."""
    calls = []

    def counted(*arguments: object) -> Rendered:
        calls.append(arguments)
        return whole(*arguments)

    long = BLANK | {"input": "Say the first of blue and green. " * 500}
    found = cut(long, 500, tokenizer, render=counted)
    assert 495 <= len(found.input_ids) <= 500 and len(calls) <= 3
    calls.clear()
    cut(CHAT, len(whole(CHAT, tokenizer).input_ids) - 1, tokenizer, render=counted)
    assert len(calls) <= 4


def test_a_template_that_writes_little_of_the_text_ends_too(tokenizer, tiny_base):
    other = AutoTokenizer.from_pretrained(tiny_base)
    other.chat_template = tokenizer.chat_template.replace("message['content'] + '<", "message['content'][:60] + '<")
    example, calls = BLANK | {"input": "blue " * 2000}, []
    limit = len(whole(example, other).input_ids) - 1
    found = cut(example, limit, other, render=lambda *arguments: calls.append(1) or whole(*arguments))
    assert len(found.input_ids) <= limit and len(calls) < 20


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<|"), max_size=60)
WILD = TEXT | st.sampled_from(["a\r\nb\r\n" * 9, "e\u0301" * 20, "👩‍👩‍👧" * 5, " \t" * 15, "red " * 40])


@settings(max_examples=150, deadline=None)
@given(
    WILD, WILD, st.lists(st.tuples(WILD, WILD), max_size=4), WILD, st.integers(8, 120), st.sampled_from(["last", "all"])
)
def test_what_fits_is_a_shorter_example_rendered(tokenizer, instruction, given, pairs, output, limit, train_on):
    """The answer and the marks of the template stay; the rest is a suffix of the history, a prefix of the texts."""
    history = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    example = BLANK | {"instruction": instruction, "input": given, "history": history, "output": output}
    before = whole(example, tokenizer, train_on)
    found = cut(example, limit, tokenizer, train_on)
    if found == before:
        return
    assert len(found.input_ids) <= limit
    text = words(found, tokenizer)
    left = text.count("<|im_start|>user\n") - 1
    asked = templates.prompt_text(messages(example | {"history": history[len(history) - 2 * left :]})[:-1], tokenizer)
    begin, answer = "<|im_start|>assistant\n", f"{output}<|im_end|>"
    assert text.endswith(begin + answer)
    kept = text.removesuffix(f"<|im_end|>\n{begin}{answer}")
    assert asked.startswith(kept) or kept in (asked[: len(kept)], asked)
    assert found.loss_mask[-1] and found.input_ids[found.prompt_tokens :] == before.input_ids[before.prompt_tokens :]


def test_cut_output_leaves_out_what_lies_behind():
    rendered = Rendered(list(range(10)), [(2, 4), (7, 10)], 7, True)
    assert cut_output(rendered, 9) == Rendered(list(range(9)), [(2, 4), (7, 9)], 7, True)
    assert cut_output(rendered, 7).spans == []
