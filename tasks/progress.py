"""Progress bars on long work: shown at a terminal, silent elsewhere."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], title: str, *, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Pass `items` through, counting them on a bar."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=title, total=total, unit=f" {unit}", disable=None, leave=False, delay=1))


class LineHandler(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar that is on it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk behind stderr ends no run."""
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:
            self.handleError(record)
