"""The contract with a source: what it looked like when it was last read.

A source that lost a column, changed a kind of value or its format, or shrank, is most likely broken upstream.  Then a
run stops with the differences, and the last good data stays.
"""

from collections.abc import Iterable
from typing import Any

from tasks.config import CollectConfig
from tasks.errors import SourceError
from tasks.store import Manifest


def hold(config: CollectConfig, sources: dict[str, Any], manifests: Iterable[Manifest]) -> None:
    """Compare what collect found of each source with the newest artifact that read it with the same settings.

    sources: the figure `sources` of collect.  Raises SourceError with every difference, unless the config accepts them.
    """
    if config.on_source_change == "accept":
        return
    newest = sorted(manifests, key=lambda manifest: manifest.created, reverse=True)
    found = []
    for source in config.sources:
        settings = source.model_dump(mode="json")
        known = next((each for each in newest if settings in each.settings["sources"]), None)
        if known is not None:
            old, new = known.figures["sources"][source.label], sources[source.label]
            found += [f"{source.label}: {text}" for text in differences(old, new, config.max_shrink_ratio)]
    if found:
        raise SourceError(
            "sources are not what they were when they were last read:\n  "
            + "\n  ".join(found)
            + "\nRepair them, or set collect.on_source_change: accept for one run to take them as they are now"
        )


def differences(old: dict[str, Any], new: dict[str, Any], max_shrink_ratio: float) -> list[str]:
    """What is worse in `new` than in `old`, in words; a column more is no difference, and null is no kind of value."""
    gone = sorted(old["columns"].keys() - new["columns"].keys())
    fresh = sorted(new["columns"].keys() - old["columns"].keys())
    perhaps = f" (new: {', '.join(fresh)}; was it renamed?)" if fresh else ""
    found = [f"column {name} is gone{perhaps}" for name in gone]
    if old["format"] != new["format"]:
        found.append(f"format {old['format']} → {new['format']}")
    for name in sorted(old["columns"].keys() & new["columns"].keys()):
        before, after = old["columns"][name], new["columns"][name]
        if before and not set(after) <= set(before):
            found.append(f"column {name} holds {' and '.join(after)}, it held {' and '.join(before)}")
    if new["rows"] < (1 - max_shrink_ratio) * old["rows"]:
        found.append(
            f"{old['rows']} rows → {new['rows']}, more than collect.max_shrink_ratio = {max_shrink_ratio:g} allows"
        )
    return found
