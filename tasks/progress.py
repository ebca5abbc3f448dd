"""Progress bars on long work: shown at a terminal, silent elsewhere."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], title: str, *, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Pass `items` through, counting them on a bar."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=title, total=total, unit=f" {unit}", disable=None, leave=False, delay=1))
