"""Shapes of raw rows: how each becomes an example's fields.

A shape is a function from a row to a dict with any of TEXT_FIELDS and `history`; it raises BadRow with the reason
where the row has not got that shape.
"""

from collections.abc import Callable
from typing import Any

from tasks.config import FieldMap

TEXT_FIELDS = ("system", "instruction", "input", "output", "tools", "task", "group", "label")
ROLES = {"system", "user", "assistant", "tool"}

Fields = dict[str, Any]


class BadRow(Exception):
    """The row cannot become an example."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def alpaca(row: Fields) -> Fields:
    """instruction, input (may be missing), output."""
    return _texts(row, {name: name for name in TEXT_FIELDS}, required=("instruction", "output"))


def prompt_completion(row: Fields) -> Fields:
    """prompt, completion."""
    names = {name: name for name in TEXT_FIELDS} | {"instruction": "prompt", "output": "completion"}
    return _texts(row, names, required=("instruction", "output"))


def messages(row: Fields) -> Fields:
    """messages: a list of {role, content}; the last one is the answer, the one before it the instruction."""
    turns = row.get("messages")
    if turns is None:
        raise BadRow("null_field" if "messages" in row else "missing_field", "messages")
    if not isinstance(turns, list) or not turns:
        raise BadRow("wrong_type", f"messages is {'empty' if turns == [] else _kind(turns)}, not a list of turns")
    checked = [_turn(turn) for turn in turns]
    system = checked.pop(0)["content"] if checked[0]["role"] == "system" else ""
    if not checked or checked[-1]["role"] != "assistant":
        raise BadRow("no_assistant_turn", "the last turn is not the assistant's")
    if len(checked) < 2 or checked[-2]["role"] != "user":
        raise BadRow("no_user_turn", "the turn before the answer is not the user's")
    names = {name: name for name in ("tools", "task", "group", "label")}
    texts = _texts(row, names, required=())
    return texts | {
        "system": system,
        "history": checked[:-2],
        "instruction": checked[-2]["content"],
        "output": checked[-1]["content"],
    }


def mapped(fields: FieldMap) -> Callable[[Fields], Fields]:
    """The shape that a field map describes."""
    names = {name: source for name, source in fields.model_dump().items() if source}

    def by_map(row: Fields) -> Fields:
        return _texts(row, names, required=("instruction", "output"))

    return by_map


SHAPES = {"alpaca": alpaca, "prompt_completion": prompt_completion, "messages": messages}
REQUIRED = {
    "alpaca": {"instruction", "output"},
    "prompt_completion": {"prompt", "completion"},
    "messages": {"messages"},
}
"""Field names by which a shape is recognised."""


def recognise(names: set[str]) -> str:
    """The one shape whose field names are all among `names`; raises ValueError when there is none, or more than one."""
    fitting = [shape for shape, required in REQUIRED.items() if required <= names]
    if len(fitting) == 1:
        return fitting[0]
    found = f"its fields are {', '.join(sorted(names)) or 'none'}"
    if not fitting:
        known = "; ".join(f"{shape} ({', '.join(sorted(required))})" for shape, required in REQUIRED.items())
        raise ValueError(f"{found}; set 'format: fields' with a field map. Recognised shapes: {known}")
    raise ValueError(f"{found}, which fits {' and '.join(fitting)}: set 'format' to the one that is meant")


def _texts(row: Fields, names: dict[str, str], required: tuple[str, ...]) -> Fields:
    texts = {}
    for name, source in names.items():
        value = row.get(source)
        if value is None and name in required:
            raise BadRow("missing_field" if source not in row else "null_field", source)
        if value is not None and not isinstance(value, str):
            raise BadRow("wrong_type", f"{source} is {_kind(value)}, not text")
        texts[name] = value or ""
    return texts


def _turn(turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise BadRow("wrong_type", f"a turn is {_kind(turn)}, not an object")
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("unknown_role", f"{role!r}")
    if not isinstance(content, str):
        raise BadRow("wrong_type", f"content of a turn is {_kind(content)}, not text")
    return {"role": role, "content": content}


def _kind(value: Any) -> str:
    kinds = {type(None): "null", str: "text", dict: "an object", list: "a list", bool: "a truth value"}
    return kinds.get(type(value), "a number")
