"""What the terminal shows."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from flows import cli
from tasks.check import Span, spans
from tasks.config import FormatConfig
from tasks.encoded import Encoded
from tasks.estimate import Estimate
from tasks.families import decoder_only
from tasks.schema import EXAMPLE

ROW = dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []}
ROW |= {"instruction": "法国的首都是什么？", "output": "巴黎"}


def green(found: list[Span]) -> list[str]:
    text = cli._colour(found)
    return [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]


def test_the_supervised_text_is_green_and_characters_of_several_tokens_are_whole(tiny_base: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = decoder_only.chat_template("chatml", tokenizer)
    (sample,) = decoder_only.encode([ROW], tokenizer, FormatConfig())
    found = spans(sample, "decoder_only", tokenizer, [])
    assert "法国的首都是什么？" in cli._colour(found).plain and "\ufffd" not in cli._colour(found).plain
    assert green(found) == ["巴黎<|im_end|>"]


def test_of_the_other_families_the_text_is_shown_and_the_answer_or_the_label_is_green(tiny_base: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    asked, answer = tokenizer("Say it.")["input_ids"], tokenizer("red")["input_ids"]
    found = spans(Encoded(asked, answer, len(asked), False), "encoder_decoder", tokenizer, [])
    assert cli._colour(found).plain == "Say it.\nred" and green(found) == ["red"]
    found = spans(Encoded(asked, [1], len(asked), False), "encoder_classifier", tokenizer, ["blue", "gold"])
    assert cli._colour(found).plain == "Say it.\ngold" and green(found) == ["gold"]


@pytest.mark.parametrize(
    ("scratch", "says"),
    [(False, "at most 80 optimizer steps, 9"), (True, "at most 40 optimizer steps, and as many for")],
)
def test_the_cost_is_told_with_its_units(scratch, says):
    told = cli._cost(Estimate(80, 900, 3 * 2**29, 5 * 2**20, 2**20), scratch=scratch)
    assert says in told and "900 tokens" in told and "1.5 GiB of memory" in told and "5 MiB of disk" in told
