"""Shapes of raw rows: how each becomes an example's fields.

A shape is a function from a row to a dict with any of the text columns of EXAMPLE, and with `history` and `tool_turns`,
lists of {"role", "content", "tool_calls"}.  It raises BadRow with the reason where the row has not got that shape.
"""

from collections.abc import Callable
from typing import NamedTuple

from tasks.formats.conversations import messages, sharegpt
from tasks.formats.flat import alpaca, classification, history, mapped, prompt_completion, question_answer
from tasks.formats.row import BadRow, Fields, kind

__all__ = ["FITS", "SHAPES", "BadRow", "kind", "mapped", "recognise"]

SHAPES: dict[str, Callable[[Fields], Fields]] = {
    shape.__name__: shape
    for shape in (alpaca, prompt_completion, question_answer, messages, sharegpt, history, classification)
}


class _Fit(NamedTuple):
    """A shape fits a source that has all of `fields` and none of `others`, which the shape would leave out."""

    shape: str
    fields: frozenset[str]
    others: frozenset[str]


def _fit(shape: str, fields: str, others: str = "") -> _Fit:
    return _Fit(shape, frozenset(fields.split()), frozenset(others.split()))


FITS = (
    _fit("alpaca", "instruction output", others="history context"),
    _fit("history", "instruction output history", others="context"),
    _fit("prompt_completion", "prompt completion", others="context"),
    _fit("question_answer", "question answer", others="context passage choices options"),
    _fit("classification", "text label"),
    _fit("messages", "messages"),
    _fit("sharegpt", "conversations"),
    _fit("sharegpt", "conversation"),
)


def recognise(names: set[str]) -> str:
    """The one shape that fits the field names of a source; raises ValueError when there is none, or more than one."""
    fitting = list(dict.fromkeys(fit.shape for fit in FITS if fit.fields <= names and not fit.others & names))
    if len(fitting) == 1:
        return fitting[0]
    found = f"its fields are {', '.join(sorted(names)) or 'none'}"
    if not fitting:
        known = "; ".join(map(_in_words, FITS))
        raise ValueError(f"{found}; set 'format: fields' with a field map. Recognised shapes: {known}")
    raise ValueError(f"{found}, which fits {' and '.join(fitting)}: set 'format' to the one that is meant")


def _in_words(fit: _Fit) -> str:
    without = f" without {', '.join(sorted(fit.others))}" if fit.others else ""
    return f"{fit.shape} ({', '.join(sorted(fit.fields))}{without})"
