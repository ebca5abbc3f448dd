"""Tools on offer and calls of them: from the forms they are found in to one JSON text.

Keys keep their order, since a model learns to write them in it.
"""

import json
from typing import Any

from tasks.formats.row import BadRow, Fields, kind, value
from tasks.sources.strict_json import check_value


def tools(row: Any, name: str = "tools") -> str:
    """JSON list of the tools under `name`, each as {"type": "function", "function": {"name", …}}; "" without tools.

    They may stand there as a list or as its JSON text, each tool in that form or as the bare function.
    """
    found = value(row, name)
    if isinstance(found, str):
        found = _parsed(found, "bad_tools") if found.strip() else None
    if found is None or found == []:
        return ""
    if not isinstance(found, list):
        raise BadRow("bad_tools", f"{name} is {kind(found)}, not a list")
    return _dumped([_tool(tool) for tool in found], "bad_tools")


def tool_calls(*found: Any) -> str:
    """JSON list of {"name", "arguments"} of the calls found; "" where there is none.

    Each of `found` is one call or a list of them, as a value or as its JSON text, in OpenAI's form
    {"type": "function", "function": {"name", "arguments"}} or as the bare {"name", "arguments"}.
    """
    calls = [_call(call) for value in found for call in _listed(value)]
    return _dumped(calls, "bad_tool_call") if calls else ""


def _tool(tool: Any) -> Fields:
    function = _function(tool)
    if function is None or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow("bad_tools", "a tool is no function with a name")
    return {"type": "function", "function": function}


def _call(call: Any) -> Fields:
    function = _function(call)
    if function is None:
        raise BadRow("bad_tool_call", "a tool call is no call of a function")
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, "bad_tool_call")
    if not isinstance(name, str) or not name:
        raise BadRow("bad_tool_call", "a tool call does not name its function")
    if not isinstance(arguments, dict):
        raise BadRow("bad_tool_call", f"the arguments of a tool call are {kind(arguments)}, not an object")
    return {"name": name, "arguments": arguments}


def _function(wrapped: Any) -> Fields | None:
    """The function in OpenAI's wrapping, or the bare one; None where there is neither."""
    if not isinstance(wrapped, dict):
        return None
    if wrapped.get("function") is None:
        return wrapped
    is_function = wrapped.get("type") in (None, "function") and isinstance(wrapped["function"], dict)
    return wrapped["function"] if is_function else None


def _listed(found: Any) -> list[Any]:
    if isinstance(found, str) and found:
        found = _parsed(found, "bad_tool_call")
    if found is None or found == "":
        return []
    return found if isinstance(found, list) else [found]


def _parsed(text: str, reason: str) -> Any:
    """What JSON text holds, read as strictly as the rows that it stands in."""
    try:
        found = json.loads(text, object_pairs_hook=_unique)
        check_value(found)
    except (ValueError, RecursionError) as error:
        raise BadRow(reason, f"cannot be read as JSON: {error}") from None
    return found


def _unique(pairs: list[tuple[str, Any]]) -> Fields:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _dumped(found: Any, reason: str) -> str:
    """JSON text as chat templates write it; raises BadRow for what JSON cannot hold, such as NaN or bytes."""
    try:
        return json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow(reason, f"cannot be written as JSON: {error}") from None
