"""What a table of examples is made of, for the data report: tasks, lengths, languages."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.filters.language import identify

Profile = dict[str, Counter[str]]
"""`tasks`, `languages`, `prompt_chars` and `answer_chars`: how many rows of each; a length by the power of two that it
stays below."""

LANGUAGE_SAMPLE = 50
"""One row in so many is asked for its language, by its content, since asking costs more than all filters together."""

TASKS = 30
"""Tasks that are listed; the others are counted together as `(other)`."""


def add_profile(profile: Profile, table: pa.Table) -> None:
    """Count the rows of `table` (columns EXAMPLE) in."""
    profile["tasks"].update(table["task"].to_pylist())
    prompt = pc.add(pc.utf8_length(table["instruction"]), pc.utf8_length(table["input"]))
    profile["prompt_chars"].update(_bins(prompt))
    profile["answer_chars"].update(_bins(pc.utf8_length(table["output"])))
    asked = [number for number, each in enumerate(table["id"].to_pylist()) if int(each[:4], 16) % LANGUAGE_SAMPLE == 0]
    texts = table["output"].take(pa.array(asked, pa.int64())).to_pylist()
    profile["languages"].update(identify(text) for text in texts)


def merged(profiles: Iterable[Profile]) -> dict[str, dict[str, int]]:
    """The sum of profiles, most frequent first; lengths in their order."""
    total: Profile = {}
    for profile in profiles:
        for name, counts in profile.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: _ordered(name, counts) for name, counts in total.items()}


def _ordered(name: str, counts: Counter[str]) -> dict[str, int]:
    if name.endswith("_chars"):
        return {size: counts[size] for size in sorted(counts, key=int)}
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(rows for _, rows in ranked[TASKS:])
    return dict(ranked[:TASKS]) | ({"(other)": rest} if rest else {})


def _bins(lengths: pa.ChunkedArray) -> Counter[str]:
    """How many lengths stay below each power of two."""
    exponents, rows = np.unique(np.frexp(lengths.to_numpy())[1], return_counts=True)
    return Counter({str(2 ** int(exponent)): int(count) for exponent, count in zip(exponents, rows, strict=True)})
