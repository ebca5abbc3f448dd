"""What the terminal shows."""

from pathlib import Path

from transformers import AutoTokenizer

from flows import cli
from tasks import templates

ROW = {"system": "", "history": [], "instruction": "法国的首都是什么？", "input": "", "output": "巴黎"}


def test_the_supervised_text_is_green_and_characters_of_several_tokens_are_whole(tiny_base: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = templates.choose("chatml", tokenizer)
    (sample,) = templates.render([templates.messages(ROW)], tokenizer)
    text = cli._colour(sample, tokenizer)
    assert "法国的首都是什么？" in text.plain and "\ufffd" not in text.plain
    green = [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]
    assert green == ["巴黎<|im_end|>"]
