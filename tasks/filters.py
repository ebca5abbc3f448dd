"""Filters of the clean stage, chosen by name.

A filter takes a pandas frame of examples (columns `instruction`, `input`, `output`, `system`, `task`, all text) and
returns one truth value per row: True where the row is rejected, with the filter's name as the reason.
"""

from typing import TYPE_CHECKING

from tasks.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

FILTERS = Registry("filter")


@FILTERS
def empty(examples: "pd.DataFrame") -> "pd.Series[bool]":
    """The instruction or the output holds nothing but space."""
    return (examples["instruction"].str.strip() == "") | (examples["output"].str.strip() == "")


@FILTERS
def too_short(examples: "pd.DataFrame", min_output_chars: int = 1) -> "pd.Series[bool]":
    """The output has fewer than `min_output_chars` characters."""
    return examples["output"].str.strip().str.len() < min_output_chars


@FILTERS
def too_long(examples: "pd.DataFrame", max_chars: int = 20_000) -> "pd.Series[bool]":
    """Instruction, input and output together have more than `max_chars` characters."""
    return sum(examples[column].str.len() for column in ("instruction", "input", "output")) > max_chars


@FILTERS
def broken_text(examples: "pd.DataFrame") -> "pd.Series[bool]":
    """A replacement or control character, or text that was decoded in the wrong encoding (ftfy's heuristic)."""
    from ftfy.badness import is_bad

    text = examples["instruction"] + "\n" + examples["input"] + "\n" + examples["output"]
    return text.str.contains("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", regex=True) | text.map(is_bad).astype(bool)
