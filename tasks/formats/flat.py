"""Shapes of rows that are one question and one answer, each field a text."""

from collections.abc import Callable
from typing import Any

from tasks.config import FieldMap
from tasks.formats.row import BadRow, Fields, text, texts, value
from tasks.formats.tools import tools


def alpaca(row: Fields) -> Fields:
    """instruction, input (may be missing), output."""
    return _triple(row, "instruction", "output")


def prompt_completion(row: Fields) -> Fields:
    """prompt, completion."""
    return _triple(row, "prompt", "completion")


def question_answer(row: Fields) -> Fields:
    """question, answer."""
    return _triple(row, "question", "answer")


def history(row: Fields) -> Fields:
    """instruction, input (may be missing), output, and history: [question, answer] pairs, the oldest first."""
    fields = alpaca(row)
    pairs = [] if value(row, "history") is None else row["history"]
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise BadRow("wrong_type", "history is not a list of [question, answer] pairs of texts")
    turns = [said for question, answer in pairs for said in (("user", question), ("assistant", answer))]
    return fields | {"history": [{"role": role, "content": content, "tool_calls": ""} for role, content in turns]}


def classification(row: Fields) -> Fields:
    """text, label (text or a whole number), and maybe an instruction, whose input the text then is."""
    question, instruction = text(row, "text", required=True), text(row, "instruction")
    asked = {"instruction": instruction, "input": question} if instruction else {"instruction": question}
    label = str(row["label"]) if type(row.get("label")) is int else text(row, "label", required=True)
    return texts(row, "system", "task", "group") | asked | {"output": label, "label": label, "tools": tools(row)}


def mapped(fields: FieldMap) -> Callable[[Fields], Fields]:
    """The shape that a field map describes."""
    names = {name: source for name, source in fields.model_dump().items() if source}

    def by_map(row: Fields) -> Fields:
        return {name: text(row, source, required=name in {"instruction", "output"}) for name, source in names.items()}

    return by_map


def _triple(row: Fields, instruction: str, output: str) -> Fields:
    return texts(row, "system", "input", "task", "group", "label") | {
        "instruction": text(row, instruction, required=True),
        "output": text(row, output, required=True),
        "tools": tools(row),
    }


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(said, str) for said in pair)
