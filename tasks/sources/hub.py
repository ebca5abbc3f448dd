"""Datasets on the Hugging Face Hub, streamed and never kept; no code of theirs is run."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.config import HubDataset
from tasks.errors import SourceError
from tasks.sources.place import redacted, troubles
from tasks.sources.row import Row, SourceFile

BATCH_ROWS = 1_000
_COMMIT = re.compile("[0-9a-f]{40}")


def files(hub: HubDataset) -> list[SourceFile]:
    """The split as the one file of the source, at the commit that its revision stands for now."""
    return [SourceFile(hub.split, _commit(hub), 0)]


def digest(hub: HubDataset) -> str:
    """The commit that the revision stands for now, with the configuration and the split."""
    return " ".join([_commit(hub), hub.config, hub.split])


def read(hub: HubDataset, commit: str, max_row_bytes: int) -> Iterator[Row]:
    """Rows as mappings from column to value, numbered from 1; raises SourceError where they cannot be had."""
    import pyarrow as pa
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    from tasks.sources.parquet import batch_rows

    with _telling(hub, (ValueError, RuntimeError, DatasetsError, pa.ArrowException)):
        rows = load_dataset(hub.dataset, hub.config or None, split=hub.split, revision=commit, streaming=True)
        number = 1
        for table in rows.with_format("arrow").iter(BATCH_ROWS):
            for batch in table.to_batches():
                yield from batch_rows(batch, number, max_row_bytes)
                number += batch.num_rows


def _commit(hub: HubDataset) -> str:
    """The commit of the revision; one that is a whole commit already is not asked for."""
    if os.path.exists(hub.dataset):  # `datasets` would read it in place of the Hub's
        raise SourceError(f"source {hub.dataset}: is also a local path: give that as 'path', or run from elsewhere")
    if _COMMIT.fullmatch(hub.revision):
        return hub.revision
    from huggingface_hub import HfApi

    with _telling(hub, (ValueError,)):
        return HfApi().dataset_info(hub.dataset, revision=hub.revision).sha


@contextmanager
def _telling(hub: HubDataset, more: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except (*troubles(), *more) as error:
        raise SourceError(
            f"source {hub.dataset} on the Hugging Face Hub: cannot be read: {redacted(str(error))}"
        ) from None
