"""Check: what a config would do and cost, told from its first rows, before anything is spent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks import base_model, estimate
from tasks.clean import first_failed, repair
from tasks.collect import examples, rows_of, shape_of
from tasks.config import PipelineConfig, SourceConfig
from tasks.encoded import Encoded, Refused
from tasks.errors import SourceError, TrainingError
from tasks.families import load_family
from tasks.format import load_tokenizer
from tasks.packing import pack
from tasks.placing import by_hash
from tasks.schema import IGNORE_INDEX
from tasks.sources import files

SAMPLE_ROWS = 1_000
"""Rows of each source that are cleaned and rendered; all are counted."""

TOKENISED_BYTES = 3
"""Of a token of format's artifact on disk, at most: 2.2 in the quickstart's (2026-11-22), whose vocabulary is small."""


class Span(NamedTuple):
    """A part of an example as text."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class SourceCheck:
    """What the first rows of a source say."""

    label: str
    shape: str
    rows: int
    looked_at: int
    rejected: Counter[str]  # by reason, among the rows looked at
    usable: list[dict[str, Any]]  # examples among the rows looked at that clean keeps
    training: list[Encoded] = field(default_factory=list)  # those of them that would be trained on


@dataclass(frozen=True)
class Check:
    """What the first rows of a config say; the counts are scaled to all rows, and duplicates are not looked for."""

    sources: list[SourceCheck]
    samples: list[list[Span]]  # three examples that would be trained on
    complete: bool  # True when every row was looked at
    training_rows: int
    tokens: int  # of the training rows
    supervised_tokens: int
    truncated: int  # training rows of which something would be cut off
    cost: estimate.Estimate


def check(config: PipelineConfig) -> Check:
    """Read, clean, render and count the first rows of each source; writes nothing.  Raises what a run would raise."""
    base = base_model.resolve(config.model, config.store_folder)
    family = base_model.family(config.model, base)
    tokenizer = load_tokenizer(base, config.format.template, load_family(family).chat_template)
    sources = [_source(source, config) for source in config.collect.sources]
    labels = _labels(sources, config) if family == "encoder_classifier" else []
    for source in sources:
        _encode(source, config, family, tokenizer, labels)

    def scaled(figure: Any) -> int:
        return round(sum(sum(map(figure, source.training)) * source.rows / source.looked_at for source in sources))

    training = [encoded for source in sources for encoded in source.training]
    if not training:
        raise TrainingError("format: none of the rows looked at would be trained on")
    rows = scaled(lambda _: 1)
    return Check(
        sources=sources,
        samples=[spans(encoded, family, tokenizer, labels) for encoded in training[:3]],
        complete=all(source.looked_at == source.rows for source in sources),
        training_rows=rows,
        tokens=scaled(lambda row: len(row.input_ids)),
        supervised_tokens=scaled(_supervised),
        truncated=scaled(lambda row: row.truncated),
        cost=_cost(config, base, family, training, rows / len(training), labels),
    )


def spans(encoded: Encoded, family: str, tokenizer: Any, labels: Sequence[str]) -> list[Span]:
    """An example as text; where the answer is not a part of what is read, it stands in a line of its own.

    Tokens are decoded by runs, as one character may take several.
    """
    if family == "decoder_only":
        pairs = zip(encoded.input_ids, (label != IGNORE_INDEX for label in encoded.labels), strict=True)
        runs = [([token for token, _ in run], supervised) for supervised, run in groupby(pairs, lambda pair: pair[1])]
        return [Span(tokenizer.decode(tokens), supervised) for tokens, supervised in runs]
    answer = labels[encoded.labels[0]] if family == "encoder_classifier" else tokenizer.decode(encoded.labels)
    return [Span(tokenizer.decode(encoded.input_ids) + "\n", False), Span(answer, True)]


def _supervised(encoded: Encoded) -> int:
    return sum(label != IGNORE_INDEX for label in encoded.labels)


def _cost(
    config: PipelineConfig, base: Path, family: str, training: list[Encoded], scale: float, labels: Sequence[str]
) -> estimate.Estimate:
    """That of fine_tune, with the disk that the tokens of format and the exported model take beside it."""
    figures = (lambda row: len(row.input_ids), lambda row: len(row.labels), _supervised)
    rows = estimate.Rows(*(np.array([figure(row) for row in training]) for figure in figures))
    tokenised = TOKENISED_BYTES * round(scale * int(rows.tokens.sum()))
    if config.format.packing and load_family(family).PACKS:
        rows = rows.packed(pack(rows.tokens, config.format.max_seq_length))
    cost = estimate.estimate(config.fine_tune, base, family, rows, scale=scale, labels=labels)
    return replace(cost, disk_bytes=cost.disk_bytes + tokenised + cost.model_bytes)


def _source(source: SourceConfig, config: PipelineConfig) -> SourceCheck:
    shape = shape_of(source, config.collect.max_row_bytes)
    sample, rows = [], 0
    for row in rows_of(source, files(source), config.collect.max_row_bytes):
        rows += 1
        if rows <= SAMPLE_ROWS:
            sample.append(row)
    if not sample:
        raise SourceError(f"source {source.label}: has no rows")
    kept, bad = examples(source, shape, sample)
    rejected = Counter(row["reason"] for row in bad)
    kept, _ = repair(kept, config.clean.repairs)
    reasons, _ = first_failed(kept, config.clean.filters)
    rejected.update(reason for reason in reasons if reason)
    return SourceCheck(
        source.label, shape, rows, len(sample), rejected, kept.filter(pa.array(reasons == "")).to_pylist()
    )


def _labels(sources: list[SourceCheck], config: PipelineConfig) -> list[str]:
    """The classes that format would find in train."""
    every = (row for source in sources for row in source.usable)
    return sorted({row["label"] for row in every if _is_trained_on(row, config)} - {""})


def _is_trained_on(row: dict[str, Any], config: PipelineConfig) -> bool:
    return (row["split"] or by_hash(row["group"], config.split)) == "train"


def _encode(source: SourceCheck, config: PipelineConfig, family: str, tokenizer: Any, labels: Sequence[str]) -> None:
    """Note which examples of a source would be trained on, and why others would not."""
    encoded = load_family(family).encode(source.usable, tokenizer, config.format, labels)
    for row, found in zip(source.usable, encoded, strict=True):
        if isinstance(found, Refused):
            source.rejected[found.reason] += 1
        elif _is_trained_on(row, config):
            source.training.append(found)
