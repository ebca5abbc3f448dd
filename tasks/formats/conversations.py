"""Shapes of rows that are conversations: turns of OpenAI and of ShareGPT."""

import reprlib
from typing import Any

from tasks.formats.row import BadRow, Fields, kind, text, texts, value
from tasks.formats.tools import tool_calls, tools

OPENAI_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""OpenAI's roles, and the role of the turn in an example."""

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "observation": "tool",
}
"""The roles of ShareGPT that OpenAI calls otherwise; function_call is one too, and a turn of its own kind."""

Turn = dict[str, str]


def messages(row: Fields) -> Fields:
    """messages: OpenAI's turns {role, content}, with tool_calls, and tools (or the older functions) on the row.

    The answer is the last assistant turn whose `weight` is not 0, and the instruction the last user turn before it;
    between the two stand only tool calls and their results.  Turns behind the answer are left out.
    """
    return _conversation(row, _turns(row, "messages"), tools(row) or tools(row, "functions"))


def sharegpt(row: Fields) -> Fields:
    """conversations (or conversation): turns {from, value} or {role, content}; system and tools on the row."""
    name = "conversation" if value(row, "conversations") is None and "conversation" in row else "conversations"
    return _conversation(row, [_as_message(turn) for turn in _turns(row, name)], tools(row))


def _turns(row: Any, name: str) -> list[Any]:
    turns = value(row, name, required=True)
    if not isinstance(turns, list) or not turns:
        raise BadRow("wrong_type", f"{name} is {'empty' if turns == [] else kind(turns)}, not a list of turns")
    return turns


def _conversation(row: Fields, raw: list[Any], tools: str) -> Fields:
    """The fields of a conversation in OpenAI's turns: system, history, instruction, tool turns, answer."""
    turns = [_turn(turn) for turn in raw]
    answer = _answer(turns, [turn.get("weight") for turn in raw])
    begin = 1 if turns[0]["role"] == "system" else 0
    asked = _instruction(turns, begin, answer)
    return texts(row, "task", "group", "label") | {
        "tools": tools,
        "system": _system(row, turns[0]["content"] if begin else ""),
        "history": turns[begin:asked],
        "instruction": turns[asked]["content"],
        "tool_turns": turns[asked + 1 : answer],
        "output": turns[answer]["content"],
        "tool_calls": turns[answer]["tool_calls"],
    }


def _answer(turns: list[Turn], weights: list[Any]) -> int:
    """Where the answer stands."""
    said = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    trained = [at for at in said if weights[at] != 0]
    if said and not trained:
        raise BadRow("no_trained_turn", "every turn of the assistant has weight 0")
    if not said or (trained[-1] == said[-1] and said[-1] < len(turns) - 1):
        raise BadRow("no_assistant_turn", "the last turn is not the assistant's")
    return trained[-1]


def _instruction(turns: list[Turn], begin: int, answer: int) -> int:
    """Where the instruction of the answer stands; only tool calls and their results stand between the two."""
    for at in reversed(range(begin, answer)):
        if turns[at]["role"] == "user":
            return at
        if turns[at]["role"] != "tool" and not turns[at]["tool_calls"]:
            raise BadRow("no_user_turn", f"between the user and the answer stands a turn of {turns[at]['role']}")
    raise BadRow("no_user_turn", "no turn of the user stands before the answer")


def _system(row: Fields, turn: str) -> str:
    field = text(row, "system")
    if field and turn and field != turn:
        raise BadRow("two_system_messages", "the field system says otherwise than the first turn")
    return field or turn


def _as_message(turn: Any) -> Any:
    """A turn of ShareGPT as OpenAI would write it; what is no object is left to `_turn`."""
    if not isinstance(turn, dict):
        return turn
    role = turn.get("role") if turn.get("from") is None else turn["from"]
    content = turn.get("content") if turn.get("value") is None else turn["value"]
    if role == "function_call":
        return turn | {"role": "assistant", "content": None, "tool_calls": content}
    return turn | {"role": SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role, "content": content}


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow("wrong_type", f"a turn is {kind(turn)}, not an object")
    role, content, weight = turn.get("role"), turn.get("content"), turn.get("weight")
    if not isinstance(role, str) or role not in OPENAI_ROLES:
        raise BadRow("unknown_role", reprlib.repr(role))
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        raise BadRow("wrong_type", f"weight of a turn is {reprlib.repr(weight)}, not 0 or 1")
    calls = tool_calls(turn.get("tool_calls"), turn.get("function_call"))
    if calls and role != "assistant":
        raise BadRow("bad_tool_call", f"a turn of role {role} calls a tool")
    content = "" if calls and content is None else _content(content)
    return {"role": OPENAI_ROLES[role], "content": content, "tool_calls": calls}


def _content(content: Any) -> str:
    """Text as it is; the texts of OpenAI's typed parts, joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow("wrong_type", f"content of a turn is {kind(content)}, not text")
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        raise BadRow("wrong_type", f"a part of a turn is {kind(part)}, not an object")
    if part.get("type") != "text":
        raise BadRow("unsupported_content", f"a part of a turn is of type {reprlib.repr(part.get('type'))}, not text")
    return text(part, "text", required=True)
