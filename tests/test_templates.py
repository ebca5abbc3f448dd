"""The one rendering: text, tokens and mask."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tasks import templates
from tasks.errors import TemplateError
from tasks.templates import TEMPLATES, messages, prompt_text, render, stop_token_ids, tokens

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
        conversation, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
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
