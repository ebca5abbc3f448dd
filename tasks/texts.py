"""What of an example counts as its prompt and its content, as columns; and when two of them are the same."""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PROMPT = ("system", "history", "instruction", "input", "tool_turns", "tools")
CONTENT = (*PROMPT, "output", "tool_calls", "label")

_BETWEEN = "\x1e"


def spoken(table: pa.Table) -> pa.Array:
    """What is said in each example, from its history to its output, as one text.

    The system message and the tools are left out: they are often the same in thousands of rows.
    """
    columns = ("history", "instruction", "input", "tool_turns", "output", "tool_calls")
    return _joined([_flat(table[name]) for name in columns], "\n")


def said(table: pa.Table) -> pa.Array:
    """What is said in each example as it would stand in a text from elsewhere: turns without their roles."""
    columns = (table[name] for name in ("history", "instruction", "input", "tool_turns", "output"))
    return _joined(
        [_contents(each) if pa.types.is_list(each.type) else each.combine_chunks() for each in columns], "\n"
    )


def asked_and_answered(table: pa.Table) -> pa.Array:
    """The instruction and the output of each example, without what the instruction speaks of."""
    return _joined([_flat(table[name]) for name in ("instruction", "output", "tool_calls")], "\n")


def turns_of(table: pa.Table) -> pa.Array:
    """What is said in the history and in the tool turns of each example."""
    return _joined([_flat(table[name]) for name in ("history", "tool_turns")], "")


def has_turns(column: pa.ChunkedArray) -> bool:
    """Whether any row of a column of turns has one."""
    return bool(pc.any(pc.greater(pc.list_value_length(column), 0)).as_py())


def hashes(table: pa.Table, columns: Sequence[str], *, normalise: bool, fold: bool = False) -> list[bytes]:
    """16 bytes for each row: equal where `columns` are equal.

    With `normalise` after Unicode and space normalisation, with `fold` whatever the case of letters.
    """
    texts = [_flat(table[name], normal if normalise else str) for name in columns]
    joined = _joined(texts, _BETWEEN)
    joined = pc.utf8_lower(joined) if fold else joined
    return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in joined.to_pylist()]


def numbers(texts: Sequence[str]) -> np.ndarray:
    """A number for each text, the same for equal texts: uint64."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def normal(text: str) -> str:
    """A text in Unicode normal form C, with single spaces and none at its ends."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def _flat(column: pa.ChunkedArray, change: Callable[[str], str] = str) -> pa.Array:
    """A column of texts, changed; a column of turns as JSON with their contents changed, "" where there are none."""
    if not pa.types.is_list(column.type):
        return _changed(column.combine_chunks(), change)
    if not has_turns(column):
        return pa.array([""] * len(column), pa.string())
    rows = [[turn | {"content": change(turn["content"])} for turn in turns] for turns in column.to_pylist()]
    return pa.array([json.dumps(turns, ensure_ascii=False) if turns else "" for turns in rows], pa.string())


def _contents(column: pa.ChunkedArray) -> pa.Array:
    """The contents of the turns of each row, a line each."""
    return pa.array(["\n".join(turn["content"] for turn in turns) for turns in column.to_pylist()], pa.string())


def _changed(texts: pa.Array, change: Callable[[str], str]) -> pa.Array:
    """Texts, changed; those of plain words and single spaces, which no change here alters, are not looked at."""
    if change is str:
        return texts
    odd = pc.match_substring_regex(texts, r"[^\x20-\x7e]|^ |  | $")
    changed = pa.array([change(text) for text in texts.filter(odd).to_pylist()], texts.type)
    return pc.replace_with_mask(texts, odd, changed)


def _joined(texts: Sequence[pa.Array], between: str) -> pa.Array:
    return pc.binary_join_element_wise(*texts, between)
