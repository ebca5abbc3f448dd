"""What every filter stands on: the registry, and the walk over the texts of a frame."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tasks.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

FILTERS = Registry("filter")

DETAIL_CHARS = 80
"""Longest piece of a text that a detail quotes."""


def found_in(
    examples: "pd.DataFrame", columns: Sequence[str], find: Callable[[str], str], hint: str
) -> "pd.Series[str]":
    """For each row what `find` found in the first of `columns` where it found something, as `column: what`, or "".

    `hint` is a regular expression (RE2) that every text matches in which `find` finds something: Arrow looks for it in
    the whole column at once, a hundred times faster, and `find` is asked about the few texts that are left.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    found = [""] * len(examples)
    for column in columns:
        texts = pa.array(examples[column], pa.large_string())
        suspects = pc.indices_nonzero(pc.match_substring_regex(texts, hint))
        for row, text in zip(suspects.to_pylist(), texts.take(suspects).to_pylist(), strict=True):
            if not found[row] and (what := find(text)):
                found[row] = f"{column}: {what}"
    return pd.Series(found, index=examples.index, dtype="str")


def per_row(examples: "pd.DataFrame", columns: Sequence[str], find: Callable[..., str]) -> "pd.Series[str]":
    """For each row what `find` says of the texts in its `columns`; "" where it finds nothing."""
    import pandas as pd

    texts = zip(*(examples[column].tolist() for column in columns), strict=True)
    return pd.Series([find(*row) for row in texts], index=examples.index, dtype="str")


def quote(text: str) -> str:
    """`text` in one line and short enough for a detail."""
    line = " ".join(text.split())
    return line if len(line) <= DETAIL_CHARS else line[:DETAIL_CHARS] + "…"
