"""Check: what a config would do, told from its first rows, before anything is spent."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tasks import base_model, formats
from tasks.clean import first_failed
from tasks.collect import choose_shape, example, limited_rows
from tasks.config import PipelineConfig, SourceConfig
from tasks.errors import SourceError
from tasks.format import load_tokenizer, refusal
from tasks.schema import EXAMPLE
from tasks.split import by_hash
from tasks.templates import Rendered, messages, render

SAMPLE_ROWS = 1_000
"""Rows of each source that are read, cleaned and rendered."""


@dataclass(frozen=True)
class SourceCheck:
    """What the first rows of a source say."""

    label: str
    shape: str
    rows: int  # rows looked at
    rejected: dict[str, int]  # by reason
    more: bool  # whether the source goes on behind them


@dataclass(frozen=True)
class Check:
    """What the first rows of a config say."""

    sources: list[SourceCheck]
    samples: list[Rendered]
    tokenizer: Any
    training_rows: int  # among the rows looked at
    tokens: int  # of those training rows
    supervised_tokens: int
    steps: int  # optimizer steps, counted on the rows looked at
    complete: bool  # True when every row was looked at, so that the counts are exact but for duplicates


def check(config: PipelineConfig) -> Check:
    """Read, clean, render and count the first rows of each source; writes nothing.  Raises what a run would raise."""
    tokenizer = load_tokenizer(base_model.resolve(config.model), config.format.template)
    sources, training = [], list[Rendered]()
    for source in config.collect.sources:
        looked_at, rendered = _source(source, config, tokenizer)
        sources.append(looked_at)
        training += rendered
    tokens = sum(len(row.input_ids) for row in training)
    full_rows = math.ceil(tokens / config.format.max_seq_length) if config.format.packing else len(training)
    return Check(
        sources=sources,
        samples=training[:3],
        tokenizer=tokenizer,
        training_rows=len(training),
        tokens=tokens,
        supervised_tokens=sum(sum(row.loss_mask) for row in training),
        steps=_steps(config, full_rows),
        complete=not any(source.more for source in sources),
    )


def _steps(config: PipelineConfig, rows: int) -> int:
    chosen = config.fine_tune
    per_step = chosen.per_device_batch_size * chosen.gradient_accumulation_steps
    return chosen.max_steps or math.ceil(math.ceil(rows / per_step) * chosen.epochs)


def _source(source: SourceConfig, config: PipelineConfig, tokenizer: Any) -> tuple[SourceCheck, list[Rendered]]:
    shape_name, shape = choose_shape(source, config.collect.max_row_chars)
    rows = limited_rows(source, config.collect.max_row_chars)
    sample = list(itertools.islice(rows, SAMPLE_ROWS))
    if not sample:
        raise SourceError(f"source {source.path}: has no rows")
    rejected: dict[str, int] = {}
    examples = []
    for row in sample:
        reason = row.reason
        if row.value is not None:
            try:
                examples.append(example(source, shape, row))
            except formats.BadRow as bad:
                reason = bad.reason
        if reason:
            rejected[reason] = rejected.get(reason, 0) + 1
    training = []
    reasons = first_failed(pa.Table.from_pylist(examples, schema=EXAMPLE), config.clean.filters)
    kept = [row for row, reason in zip(examples, reasons, strict=True) if not reason]
    for row, rendered in zip(kept, render([messages(row) for row in kept], tokenizer), strict=True):
        reason, _ = refusal(rendered, config.format.max_seq_length)
        if reason:
            rejected[reason] = rejected.get(reason, 0) + 1
        elif (row["split"] or by_hash(row["group"], config.split)) == "train":
            training.append(rendered)
    for reason in reasons:
        if reason:
            rejected[reason] = rejected.get(reason, 0) + 1
    more = next(rows, None) is not None
    return SourceCheck(source.label, shape_name, len(sample), rejected, more), training
