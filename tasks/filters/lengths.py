"""Filters of how much there is: nothing, too little, too much."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import ConfigError
from tasks.filters.base import FILTERS, per_row

if TYPE_CHECKING:
    import pandas as pd
    import tokenizers

_VISIBLE = re.compile(r"[^\s\u00ad\u200b-\u200f\u2060\u2800\u3164\ufeff]")
"""A character that shows: neither space nor one of the invisible ones that are pasted in its place."""

_WHOLE = ("system", "instruction", "input", "output")


@FILTERS
def empty(examples: "pd.DataFrame") -> "pd.Series[str]":
    """The instruction or the output holds nothing that shows; a tool call is an answer."""
    return per_row(examples, ("instruction", "output", "tool_calls"), _empty)


@FILTERS
def too_short(examples: "pd.DataFrame", min_instruction_chars: int = 1, min_output_chars: int = 1) -> "pd.Series[str]":
    """The instruction or the output has fewer characters than that, space at its ends aside."""

    def find(instruction: str, output: str, tool_calls: str) -> str:
        if (length := len(instruction.strip())) < min_instruction_chars:
            return f"instruction: {length} characters"
        length = len(output.strip())
        return f"output: {length} characters" if length < min_output_chars and not tool_calls else ""

    return per_row(examples, ("instruction", "output", "tool_calls"), find)


@FILTERS
def too_long(
    examples: "pd.DataFrame",
    max_chars: int = 20_000,
    max_instruction_chars: int = 20_000,
    max_output_chars: int = 20_000,
) -> "pd.Series[str]":
    """Instruction, input and output together, or one of them alone, have more characters than that."""

    def find(instruction: str, input_: str, output: str) -> str:
        for name, length, most in (
            ("instruction", len(instruction), max_instruction_chars),
            ("output", len(output), max_output_chars),
            ("whole", len(instruction) + len(input_) + len(output), max_chars),
        ):
            if length > most:
                return f"{name}: {length} characters"
        return ""

    return per_row(examples, ("instruction", "input", "output"), find)


@FILTERS
def too_few_tokens(
    examples: "pd.DataFrame", tokenizer: str, min_tokens: int = 1, min_output_tokens: int = 1
) -> "pd.Series[str]":
    """The output, or system, instruction, input and output together, have fewer tokens than that.

    `tokenizer` is a tokenizer.json or a folder that holds one; special tokens and the chat template do not count.
    """

    def find(whole: int, output: int, tool_calls: str) -> str:
        if output < min_output_tokens and not tool_calls:
            return f"output: {output} tokens"
        return f"whole: {whole} tokens" if whole < min_tokens else ""

    return _by_tokens(examples, tokenizer, find)


@FILTERS
def too_many_tokens(
    examples: "pd.DataFrame", tokenizer: str, max_tokens: int = 4_096, max_output_tokens: int = 4_096
) -> "pd.Series[str]":
    """The output, or system, instruction, input and output together, have more tokens than that.

    `tokenizer` is a tokenizer.json or a folder that holds one; special tokens and the chat template do not count.
    """

    def find(whole: int, output: int, _: str) -> str:
        if output > max_output_tokens:
            return f"output: {output} tokens"
        return f"whole: {whole} tokens" if whole > max_tokens else ""

    return _by_tokens(examples, tokenizer, find)


def _empty(instruction: str, output: str, tool_calls: str) -> str:
    if not _VISIBLE.search(instruction):
        return "instruction"
    return "" if tool_calls or _VISIBLE.search(output) else "output"


def _by_tokens(examples: "pd.DataFrame", path: str, find: Callable[[int, int, str], str]) -> "pd.Series[str]":
    tokens = {column: _token_counts(_tokenizer(path), examples[column].tolist()) for column in _WHOLE}
    whole = [sum(counts) for counts in zip(*tokens.values(), strict=True)]
    counted = examples[["tool_calls"]].assign(whole=whole, output=tokens["output"])
    return per_row(counted, ("whole", "output", "tool_calls"), find)


def _token_counts(tokenizer: "tokenizers.Tokenizer", texts: list[str]) -> list[int]:
    return [len(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@functools.cache
def _tokenizer(path: str) -> "tokenizers.Tokenizer":
    """The tokenizer at `path`, without the truncation and the padding that its file may ask for."""
    from tokenizers import Tokenizer

    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(f"tokenizer {path}: there is no file {file.absolute()}; give a tokenizer.json, or its folder")
    try:
        tokenizer = Tokenizer.from_buffer(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"tokenizer {file}: is not a tokenizer.json of the tokenizers library: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
