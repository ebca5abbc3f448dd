"""Decontamination: which rows hold a piece of a benchmark.

Three tests: a run of words that the row shares with the benchmark (13 words as in GPT-3, Brown et al. 2020, appendix
C), near-duplicates, and a prompt that is just the benchmark's, however short.  All are found by hashes; shared words
are then verified in the texts themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks import formats
from tasks.config import DecontaminateConfig, Similarity, SourceConfig
from tasks.errors import SourceError
from tasks.ledger import place
from tasks.near_duplicates import band_keys, jaccard
from tasks.schema import EXAMPLE
from tasks.shingles import Shingles, shingles, words
from tasks.sources import files, read_rows
from tasks.texts import said

MAX_ROW_BYTES = 100_000_000
_BLANK = dict.fromkeys(EXAMPLE.names, "") | {"line": 0, "history": [], "tool_turns": []}


class Contamination(NamedTuple):
    """One row that must go."""

    row: int
    reason: str  # in_benchmark or near_benchmark
    benchmark: str
    detail: str


@dataclass(frozen=True)
class Benchmarks:
    """The texts of all benchmarks, ready to be found again."""

    texts: list[str]
    names: list[str]  # of the benchmark, by text
    places: list[str]  # of the row, by text
    grams: np.ndarray  # uint64, sorted: hashes of their runs of words
    gram_texts: np.ndarray  # int64: the text that each was taken from
    keys: np.ndarray  # uint64 [bands, texts], each band sorted
    key_texts: np.ndarray  # int64 [bands, texts]: the text of each key
    sets: Shingles  # for the exact similarity
    prompts: dict[int, tuple[str, int]]  # hash of a whole prompt -> the prompt, and the text that it belongs to


def load(config: DecontaminateConfig, similarity: Similarity) -> Benchmarks:
    """Read the benchmarks.  Raises SourceError for one that cannot be read or has no text."""
    texts, names, places, prompts = [], [], [], []
    for path in config.against:
        rows = list(_texts(SourceConfig(path=path)))
        if not rows:
            raise SourceError(f"benchmark {path}: has no text")
        prompts += [(prompt, len(texts) + number) for number, (asked, _, _) in enumerate(rows) for prompt in asked]
        texts += [text for _, text, _ in rows]
        places += [where for _, _, where in rows]
        names += [SourceConfig(path=path).label] * len(rows)
    column = pa.array(texts, pa.string())
    runs = shingles(column, _runs(config))
    owners = np.repeat(np.arange(len(texts)), np.diff(runs.offsets))
    order = np.argsort(runs.hashes, kind="stable")
    keys = band_keys(column, similarity)
    by_key = np.argsort(keys, axis=1, kind="stable")
    return Benchmarks(
        texts,
        names,
        places,
        runs.hashes[order],
        owners[order],
        np.take_along_axis(keys, by_key, axis=1),
        by_key,
        shingles(column, similarity),
        {key: prompt for key, prompt in zip(_whole([text for text, _ in prompts]), prompts, strict=True) if key},
    )


def contaminated(
    table: pa.Table, benchmarks: Benchmarks, config: DecontaminateConfig, similarity: Similarity
) -> list[Contamination]:
    """The rows of `table` that hold a piece of a benchmark, each once, in order."""
    column = said(table)
    found = {row.row: row for row in _near(column, benchmarks, similarity)}
    found |= {row.row: row for row in _sharing(column, benchmarks, config)}
    found |= {row.row: row for row in _asking(table, benchmarks)}
    return [found[row] for row in sorted(found)]


def _sharing(column: pa.Array, benchmarks: Benchmarks, config: DecontaminateConfig) -> Iterator[Contamination]:
    runs = shingles(column, _runs(config))
    at = np.searchsorted(benchmarks.grams, runs.hashes)
    hits = np.flatnonzero(benchmarks.grams[np.minimum(at, len(benchmarks.grams) - 1)] == runs.hashes)
    rows = np.searchsorted(runs.offsets, hits, side="right") - 1
    for row, first in zip(*np.unique(rows, return_index=True), strict=True):
        number = int(benchmarks.gram_texts[at[hits[first]]])
        gram = _shared(column[int(row)].as_py(), benchmarks.texts[number], config.ngram_words)
        if gram:
            detail = f"{benchmarks.places[number]}: {gram}"
            yield Contamination(int(row), "in_benchmark", benchmarks.names[number], detail)


def _asking(table: pa.Table, benchmarks: Benchmarks) -> Iterator[Contamination]:
    """Rows that ask just what a benchmark asks, however short that is and whatever they answer."""
    asked = _asked(table)
    for row, key in enumerate(_whole(asked)):
        prompt, number = benchmarks.prompts.get(key, ("", -1))
        if number >= 0 and words(prompt) == words(asked[row]):
            detail = f"{benchmarks.places[number]}: asks {' '.join(words(prompt))}"
            yield Contamination(row, "in_benchmark", benchmarks.names[number], detail)


def _whole(texts: Sequence[str]) -> list[int]:
    """A hash of all words of each text, 0 where they are none, or so many that runs of them are enough."""
    runs = shingles(pa.array(texts, pa.string()), Similarity(unit="words", ngram=64))
    first = np.append(runs.hashes, np.uint64(0))[runs.offsets[:-1]]
    return np.where(np.diff(runs.offsets) == 1, first, np.uint64(0)).tolist()


def _near(column: pa.Array, benchmarks: Benchmarks, similarity: Similarity) -> Iterator[Contamination]:
    keys = band_keys(column, similarity)
    pairs = []
    for mine, theirs, texts in zip(keys, benchmarks.keys, benchmarks.key_texts, strict=True):
        at = np.minimum(np.searchsorted(theirs, mine), len(theirs) - 1)
        rows = np.flatnonzero(theirs[at] == mine)
        pairs.append(np.stack([rows, texts[at[rows]]], axis=1))
    unique = np.unique(np.concatenate(pairs), axis=0)
    if not len(unique):
        return
    values = _similarities(column, unique, benchmarks.sets, similarity)
    for (row, number), value in zip(unique.tolist(), values.tolist(), strict=True):
        if value >= similarity.threshold:
            detail = f"{benchmarks.places[number]}: Jaccard similarity {value:.2f}"
            yield Contamination(row, "near_benchmark", benchmarks.names[number], detail)


def _similarities(column: pa.Array, pairs: np.ndarray, theirs: Shingles, similarity: Similarity) -> np.ndarray:
    """Jaccard similarity of pairs (row of `column`, text of the benchmarks)."""
    rows, at = np.unique(pairs[:, 0], return_inverse=True)
    mine = shingles(column.take(pa.array(rows)), similarity)
    offsets = np.concatenate([mine.offsets, theirs.offsets[1:] + len(mine.hashes)])
    together = Shingles(offsets, np.concatenate([mine.hashes, theirs.hashes]))
    return jaccard(np.stack([at, pairs[:, 1] + len(rows)], axis=1), together)


def _shared(text: str, other: str, length: int) -> str:
    """The first run of `length` words of `text` that `other` has too, or "": equal hashes alone are no proof.

    A shorter text counts as one run.
    """
    mine, theirs = words(text), words(other)
    if len(theirs) < length or len(mine) < length:
        return " ".join(mine) if mine == theirs else ""
    known = {tuple(theirs[at : at + length]) for at in range(len(theirs) - length + 1)}
    runs = (tuple(mine[at : at + length]) for at in range(len(mine) - length + 1))
    return " ".join(next((run for run in runs if run in known), ()))


def _runs(config: DecontaminateConfig) -> Similarity:
    return Similarity(unit="words", ngram=config.ngram_words)


def _texts(source: SourceConfig) -> Iterator[tuple[list[str], str, str]]:
    """Prompts, text and place of each row of a benchmark: what its known shape says, else all its texts."""
    for file in files(source):
        for row in read_rows(source, file, MAX_ROW_BYTES):
            if row.value is None:
                raise SourceError(f"benchmark {source.path}: line {row.line}: {row.reason} ({row.detail})")
            where = place({"source": source.label, "file": file.name, "line": row.line})
            example = _example(row.value)
            strings = _strings(row.value)
            if example is not None:
                text = said(example)[0].as_py()
                if text.strip():
                    yield [prompt for prompt in _asked(example) if prompt], text, where
            elif strings:
                yield list(strings), "\n".join(strings), where


def _example(value: dict[str, Any]) -> pa.Table | None:
    """A row of known shape as an example, so that it says what the rows say that are compared with it."""
    fields = value
    if not set(EXAMPLE.names) <= set(value):  # else it is an artifact of ours
        try:
            fields = _BLANK | formats.SHAPES[formats.recognise(set(value))](value)
        except (ValueError, formats.BadRow):
            return None
    return pa.Table.from_pylist([fields], schema=EXAMPLE)


def _asked(table: pa.Table) -> list[str]:
    """What each row asks, "" behind other turns: `Go on.` is no prompt of its own."""
    rows = table.select(["history", "instruction", "input"]).to_pylist()
    return ["" if row["history"] else f"{row['instruction']}\n{row['input']}" for row in rows]


def _strings(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else []
