"""Check: what a config would do, told from its first rows, before anything is spent."""

from collections import Counter
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa

from tasks import base_model
from tasks.clean import first_failed, repair
from tasks.collect import examples, rows_of, shape_of
from tasks.config import PipelineConfig, SourceConfig
from tasks.encoded import Encoded, Refused
from tasks.errors import SourceError
from tasks.families import load_family
from tasks.format import load_tokenizer
from tasks.packing import pack
from tasks.placing import by_hash
from tasks.schema import IGNORE_INDEX
from tasks.sources import files
from tasks.training import steps

SAMPLE_ROWS = 1_000
"""Rows of each source that are cleaned and rendered; all are counted."""


@dataclass(frozen=True)
class SourceCheck:
    """What the first rows of a source say."""

    label: str
    shape: str
    rows: int
    looked_at: int
    rejected: Counter[str]  # by reason, among the rows looked at
    training: list[Encoded]  # the rows looked at that would be trained on


@dataclass(frozen=True)
class Check:
    """What the first rows of a config say; the counts are scaled to all rows, and duplicates are not looked for."""

    sources: list[SourceCheck]
    tokenizer: Any
    complete: bool  # True when every row was looked at
    training_rows: int
    tokens: int  # of the training rows
    supervised_tokens: int
    steps: int  # optimizer steps, without early stopping

    @property
    def samples(self) -> list[Encoded]:
        """Three examples that would be trained on."""
        return [rendered for source in self.sources for rendered in source.training][:3]


def check(config: PipelineConfig) -> Check:
    """Read, clean, render and count the first rows of each source; writes nothing.  Raises what a run would raise."""
    base = base_model.resolve(config.model, config.store)
    family = load_family(base_model.family(config.model, base))
    tokenizer = load_tokenizer(base, config.format.template)
    sources = [_source(source, config, family, tokenizer) for source in config.collect.sources]

    packs = config.format.packing and family.PACKS

    def scaled(figure: Any) -> int:
        return round(sum(sum(map(figure, source.training)) * source.rows / source.looked_at for source in sources))

    return Check(
        sources=sources,
        tokenizer=tokenizer,
        complete=all(source.looked_at == source.rows for source in sources),
        training_rows=scaled(lambda _: 1),
        tokens=scaled(lambda row: len(row.input_ids)),
        supervised_tokens=scaled(lambda row: sum(label != IGNORE_INDEX for label in row.labels)),
        steps=steps(config.fine_tune, _packs(sources, config) if packs else scaled(lambda _: 1)),
    )


def _packs(sources: list[SourceCheck], config: PipelineConfig) -> int:
    """Packed rows, scaled to all rows."""
    lengths = [len(row.input_ids) for source in sources for row in source.training]
    packs = max(pack(lengths, config.format.max_seq_length), default=0) + 1
    every = sum(len(source.training) * source.rows / source.looked_at for source in sources)
    return round(packs * every / max(1, len(lengths)))


def _source(source: SourceConfig, config: PipelineConfig, family: ModuleType, tokenizer: Any) -> SourceCheck:
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
    clean = kept.filter(pa.array(reasons == "")).to_pylist()
    training = []
    labels = sorted({row["label"] for row in clean} - {""})
    for row, encoded in zip(clean, family.encode(clean, tokenizer, config.format, labels), strict=True):
        if isinstance(encoded, Refused):
            rejected[encoded.reason] += 1
        elif (row["split"] or by_hash(row["group"], config.split)) == "train":
            training.append(encoded)
    return SourceCheck(source.label, shape, rows, len(sample), rejected, training)
