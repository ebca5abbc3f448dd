"""Split: divide the examples by a hash of their group, so that new rows never move an old one."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks.config import SplitConfig
from tasks.errors import EmptySplitError
from tasks.ledger import Ledger, Summary, batches, read, rejection
from tasks.schema import EXAMPLE, SPLITS


def split(config: SplitConfig, inputs: dict[str, Path], out: Path) -> Summary:
    """Write the examples of clean as `train`, `validation` and `test` (columns EXAMPLE).

    A row whose group also lies in a split that another source is bound to is rejected as `group_in_<split>`: test
    beats validation beats train, so no group straddles two splits.  Raises EmptySplitError.
    """
    examples = inputs["clean"] / "examples"
    claimed = _claims(read(examples, columns=["group", "split"]))
    with Ledger(out) as ledger:
        for name in SPLITS:
            ledger.table(name, EXAMPLE)
        for table in batches(examples):
            ledger.enter(table.num_rows)
            _divide(table, claimed, config, ledger)
    sizes = {name: read(out / name, columns=["id"]).num_rows for name in SPLITS}
    if empty := [name for name in SPLITS if sizes[name] == 0]:
        raise EmptySplitError(
            f"split: no row of {ledger.rows_in} went to {empty[0]} "
            f"(validation {config.validation:g}, test {config.test:g}); "
            "give it a larger share, add rows, or bind a source to it with 'split:'"
        )
    return ledger.summary(**sizes)


def by_hash(group: str, config: SplitConfig) -> str:
    """The split of a group: decided by its hash alone."""
    digest = hashlib.sha256(f"{config.seed}\0{group}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < config.test:
        return "test"
    return "validation" if share < config.test + config.validation else "train"


def _claims(groups: pa.Table) -> dict[str, str]:
    """The split that each group must keep to, because a source is bound to it."""
    claimed: dict[str, str] = {}
    for name in SPLITS:  # in this order, so that test has the last word
        bound = groups.filter(pc.equal(groups["split"], name))
        claimed |= dict.fromkeys(bound["group"].to_pylist(), name)
    return claimed


def _divide(table: pa.Table, claimed: dict[str, str], config: SplitConfig, ledger: Ledger) -> None:
    places: list[str] = []
    rejected = []
    rows = zip(table["group"].to_pylist(), table["split"].to_pylist(), strict=True)
    for index, (group, bound) in enumerate(rows):
        owner = claimed.get(group, "")
        # A fixed validation or test set is not added to, and a row that shares a group with it must not be trained on.
        joins = bound == owner or (owner == "train" and not bound)
        places.append((owner or by_hash(group, config)) if joins else "")
        if not joins:
            row = table.slice(index, 1).to_pylist()[0]
            rejected.append(rejection(row, f"group_in_{owner}", f"group {group}"))
    ledger.reject(rejected)
    column = pa.array(places, pa.string())
    for name in SPLITS:
        ledger.keep(name, table.filter(pc.equal(column, name)))
