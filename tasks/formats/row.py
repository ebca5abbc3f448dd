"""What every shape asks of a row: texts under names, or a reason why they are not there."""

from typing import Any

Fields = dict[str, Any]


class BadRow(Exception):
    """The row cannot become an example."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def value(row: Any, name: str, *, required: bool = False) -> Any:
    """What the row has under `name`, or None; raises BadRow for a row that is no object, or lacks what it needs."""
    if not isinstance(row, dict):
        raise BadRow("not_an_object", f"the row is {kind(row)}")
    if row.get(name) is None and required:
        raise BadRow("null_field" if name in row else "missing_field", name)
    return row.get(name)


def text(row: Any, name: str, *, required: bool = False) -> str:
    """The text that the row has under `name`; an empty one where it has none, unless it is required."""
    found = value(row, name, required=required)
    if found is not None and not isinstance(found, str):
        raise BadRow("wrong_type", f"{name} is {kind(found)}, not text")
    return found or ""


def texts(row: Any, *names: str) -> Fields:
    """The texts that may stand under these names."""
    return {name: text(row, name) for name in names}


def kind(found: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {type(None): "null", str: "text", dict: "an object", list: "a list", bool: "a truth value"}
    numbers = {int: "a number", float: "a number"}
    return (kinds | numbers).get(type(found), f"of type {type(found).__name__}")
