"""Shapes of rows: what each reads, and the true reason for what it cannot read."""

import json
from typing import get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import formats
from tasks.config import FieldMap, SourceConfig
from tasks.formats import SHAPES, BadRow, mapped, recognise
from tasks.schema import EXAMPLE

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": "é"}'}}
CALLS = '[{"name": "f", "arguments": {"b": 1, "a": "é"}}]'
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BY_ROLE = {"user": USER, "assistant": ANSWER}


def turn(role: str, content: str, tool_calls: str = "") -> dict[str, str]:
    return {"role": role, "content": content, "tool_calls": tool_calls}


def read(shape: str, row: object) -> dict[str, object]:
    """What the shape read, without what is empty."""
    return {name: value for name, value in SHAPES[shape](row).items() if value}


def reason(shape: str, row: object) -> str:
    with pytest.raises(BadRow) as bad:
        SHAPES[shape](row)
    return bad.value.reason


def conversation(*turns: object, **fields: object) -> dict[str, object]:
    return {"messages": list(turns)} | fields


# --- one question, one answer ---

GOOD = [
    ("alpaca", {"instruction": "q", "output": "a"}, {"instruction": "q", "output": "a"}),
    (
        "alpaca",
        {"instruction": "q", "input": "i", "output": "a", "system": "s", "task": "t", "group": "g", "other": 3},
        {"instruction": "q", "input": "i", "output": "a", "system": "s", "task": "t", "group": "g"},
    ),
    ("alpaca", {"instruction": "q", "input": None, "output": ""}, {"instruction": "q"}),
    (
        "prompt_completion",
        {"prompt": "q", "completion": "a", "input": "i"},
        {"instruction": "q", "output": "a", "input": "i"},
    ),
    ("question_answer", {"question": "q", "answer": "a"}, {"instruction": "q", "output": "a"}),
    ("classification", {"text": "x", "label": "ham"}, {"instruction": "x", "output": "ham", "label": "ham"}),
    ("classification", {"text": "x", "label": 0}, {"instruction": "x", "output": "0", "label": "0"}),
    (
        "classification",
        {"instruction": "Spam?", "text": "x", "label": -1},
        {"instruction": "Spam?", "input": "x", "output": "-1", "label": "-1"},
    ),
    (
        "history",
        {"instruction": "q", "output": "a", "system": "s", "history": [["q1", "a1"], ["q2", "a2"]]},
        {
            "instruction": "q",
            "output": "a",
            "system": "s",
            "history": [turn("user", "q1"), turn("assistant", "a1"), turn("user", "q2"), turn("assistant", "a2")],
        },
    ),
    ("history", {"instruction": "q", "output": "a", "history": []}, {"instruction": "q", "output": "a"}),
    ("history", {"instruction": "q", "output": "a", "history": None}, {"instruction": "q", "output": "a"}),
    ("history", {"instruction": "q", "output": "a"}, {"instruction": "q", "output": "a"}),
]
BAD = [
    ("alpaca", {"output": "a"}, "missing_field: instruction"),
    ("alpaca", {"instruction": "q", "output": None}, "null_field: output"),
    ("alpaca", {"instruction": "q", "output": 4}, "wrong_type: output is a number, not text"),
    ("alpaca", {"instruction": "q", "input": [], "output": "a"}, "wrong_type: input is a list, not text"),
    ("alpaca", {"instruction": "q", "output": "a", "label": 1}, "wrong_type: label is a number, not text"),
    ("alpaca", {"instruction": "q", "output": "a", "tools": "a hammer"}, "bad_tools: cannot be read as JSON"),
    ("prompt_completion", {"prompt": "q", "completion": True}, "wrong_type: completion is a truth value, not text"),
    ("question_answer", {"question": "q", "answer": 42}, "wrong_type: answer is a number, not text"),
    ("question_answer", {"question": {}, "answer": "a"}, "wrong_type: question is an object, not text"),
    ("classification", {"text": "x"}, "missing_field: label"),
    ("classification", {"text": "x", "label": None}, "null_field: label"),
    ("classification", {"text": "x", "label": True}, "wrong_type: label is a truth value, not text"),
    ("classification", {"text": "x", "label": 1.0}, "wrong_type: label is a number, not text"),
    ("classification", {"label": 1}, "missing_field: text"),
    ("classification", {"text": 5, "label": 1}, "wrong_type: text is a number, not text"),
    ("history", {"instruction": "q", "output": "a", "history": [["q1"]]}, "wrong_type: history is not a list of"),
    ("history", {"instruction": "q", "output": "a", "history": [["q1", None]]}, "wrong_type: history is not a list of"),
    ("history", {"instruction": "q", "output": "a", "history": ["qa"]}, "wrong_type: history is not a list of"),
    ("history", {"instruction": "q", "output": "a", "history": ""}, "wrong_type: history is not a list of"),
    ("history", {"instruction": "q", "history": []}, "missing_field: output"),
    ("messages", [], "not_an_object: the row is a list"),
    ("sharegpt", None, "not_an_object: the row is null"),
    ("alpaca", "text", "not_an_object: the row is text"),
]


@pytest.mark.parametrize(("shape", "row", "fields"), GOOD)
def test_a_question_and_its_answer(shape, row, fields):
    assert read(shape, row) == fields


@pytest.mark.parametrize(("shape", "row", "says"), BAD)
def test_a_row_without_its_shape_is_told_what_is_wrong(shape, row, says):
    with pytest.raises(BadRow) as bad:
        SHAPES[shape](row)
    assert str(bad.value).startswith(says)
    assert str(bad.value) == f"{bad.value.reason}: {bad.value.detail}"


def test_a_field_map_names_the_fields():
    shape = mapped(FieldMap(instruction="ask", output="reply", input="context", label="intent"))
    row = {"ask": "q", "reply": "a", "context": "c", "intent": "i", "system": "never read"}
    assert shape(row) == {"instruction": "q", "output": "a", "input": "c", "label": "i"}
    assert shape(row | {"context": None})["input"] == ""
    for wrong, says in (
        ({"ask": "q"}, "missing_field: reply"),
        (row | {"context": 1}, "wrong_type: context"),
        (3, "not_an"),
    ):
        with pytest.raises(BadRow, match=says):
            shape(wrong)


# --- which shape ---


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        ("instruction input output", "alpaca"),
        ("instruction input output text", "alpaca"),
        ("instruction output system history", "history"),
        ("prompt completion", "prompt_completion"),
        ("question answer", "question_answer"),
        ("text label", "classification"),
        ("text label instruction", "classification"),
        ("messages prompt prompt_id category", "messages"),
        ("messages tools", "messages"),
        ("conversations tools", "sharegpt"),
        ("conversation id", "sharegpt"),
        ("conversation conversations", "sharegpt"),
    ],
)
def test_a_source_is_recognised_by_its_field_names(names, shape):
    assert recognise(set(names.split())) == shape


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("", "its fields are none; set 'format: fields'"),
        ("instruction context response", "its fields are context, instruction, response; set 'format: fields'"),
        ("question context answer", "question_answer (answer, question without choices, context, options, passage)"),
        ("question choices answer", "set 'format: fields'"),
        ("instruction context output", "set 'format: fields'"),
        ("instruction context history output", "set 'format: fields'"),
        ("instruction output prompt completion", "which fits alpaca and prompt_completion: set 'format' to the one"),
        ("instruction output history messages", "which fits history and messages"),
        ("question answer text label", "which fits question_answer and classification"),
        ("messages conversations", "which fits messages and sharegpt"),
    ],
)
def test_nothing_is_guessed(names, says):
    with pytest.raises(ValueError, match=r"^its fields are") as refusal:
        recognise(set(names.split()))
    assert says in str(refusal.value)


def test_every_shape_can_be_named_in_the_config_and_recognised():
    named = set(get_args(SourceConfig.model_fields["format"].annotation))
    assert named == {"auto", "fields", *SHAPES}
    assert {fit.shape for fit in formats.FITS} == set(SHAPES)


# --- conversations ---


def test_a_conversation_is_cut_at_its_last_question():
    row = conversation(
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
        {"role": "assistant", "content": "a2"},
        tools=[TOOL],
        task="t",
        group="g",
    )
    assert SHAPES["messages"](row) == {
        "task": "t",
        "group": "g",
        "label": "",
        "tools": json.dumps([TOOL]),
        "system": "s",
        "history": [turn("user", "q1"), turn("assistant", "a1")],
        "instruction": "q2",
        "tool_turns": [turn("assistant", "", CALLS), turn("tool", "r")],
        "output": "a2",
        "tool_calls": "",
    }


def test_an_answer_may_be_a_tool_call_or_nothing_at_all():
    assert read("messages", conversation(USER, {"role": "assistant", "tool_calls": [CALL]})) == {
        "instruction": "q",
        "tool_calls": CALLS,
    }
    both = conversation(USER, {"role": "assistant", "content": "so:", "tool_calls": [CALL, CALL]})
    assert json.loads(read("messages", both)["tool_calls"]) == json.loads(CALLS) * 2
    assert read("messages", conversation(USER, {"role": "assistant", "content": ""})) == {"instruction": "q"}


def test_several_rounds_of_tools_stand_between_question_and_answer():
    call, result = {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "r"}
    fields = read("messages", conversation(USER, call, result, result, call, result, ANSWER))
    assert [made["role"] for made in fields["tool_turns"]] == ["assistant", "tool", "tool", "assistant", "tool"]
    assert (fields["instruction"], fields["output"]) == ("q", "a")


def test_roles_of_openai_old_and_new():
    row = conversation(
        {"role": "developer", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"b": 1, "a": "é"}'}},
        {"role": "function", "name": "f", "content": "r"},
        {"role": "assistant", "content": "a"},
        functions=[TOOL["function"]],
    )
    fields = read("messages", row)
    assert fields["system"] == "s"
    assert fields["tool_turns"] == [turn("assistant", "", CALLS), turn("tool", "r")]
    assert fields["tools"] == json.dumps([TOOL])


def test_a_system_turn_that_is_not_the_first_is_history():
    fields = read("messages", conversation(USER, ANSWER, {"role": "system", "content": "s"}, USER, ANSWER))
    assert "system" not in fields
    assert [made["role"] for made in fields["history"]] == ["user", "assistant", "system"]


@pytest.mark.parametrize("shape", ["messages", "sharegpt"])
def test_a_system_field_counts_unless_a_turn_says_otherwise(shape):
    name = {"messages": "messages", "sharegpt": "conversations"}[shape]
    first = {"role": "system", "content": "s"}
    assert read(shape, {name: [USER, ANSWER], "system": "s"})["system"] == "s"
    assert read(shape, {name: [first, USER, ANSWER], "system": "s"})["system"] == "s"
    assert read(shape, {name: [first, USER, ANSWER], "system": None})["system"] == "s"
    assert reason(shape, {name: [first, USER, ANSWER], "system": "z"}) == "two_system_messages"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x", "x"),
        ([{"type": "text", "text": "x"}], "x"),
        ([{"type": "text", "text": "x"}, {"type": "text", "text": "\ny", "image_url": None}], "x\ny"),
        ([], ""),
    ],
)
def test_typed_parts_of_text_are_joined(content, text):
    assert SHAPES["messages"](conversation({"role": "user", "content": content}, ANSWER))["instruction"] == text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}],
            "unsupported_content: .*image_url",
        ),
        ([{"type": "input_audio", "input_audio": {}}], "unsupported_content: .*input_audio"),
        ([{"text": "x"}], "unsupported_content: .*None"),
        ([{"type": "text", "text": None}], "null_field: text"),
        ([{"type": "text"}], "missing_field: text"),
        ([{"type": "text", "text": 3}], "wrong_type: text is a number"),
        (["x"], "wrong_type: a part of a turn is text"),
        (None, "wrong_type: content of a turn is null"),
        (5, "wrong_type: content of a turn is a number"),
    ],
)
def test_other_content_is_refused(content, says):
    for row in (
        conversation({"role": "user", "content": content}, ANSWER),
        conversation(USER, {"role": "assistant", "content": content}),
    ):
        with pytest.raises(BadRow, match=says):
            SHAPES["messages"](row)


CONVERSATIONS = [
    ({}, "missing_field"),
    ({"messages": None}, "null_field"),
    ({"messages": []}, "wrong_type"),
    ({"messages": "u: q"}, "wrong_type"),
    ({"messages": ["q"]}, "wrong_type"),
    (conversation({"content": "x"}, ANSWER), "unknown_role"),
    (conversation({"role": ["user"], "content": "x"}, ANSWER), "unknown_role"),
    (conversation({"role": "human", "content": "x"}, ANSWER), "unknown_role"),
    (conversation(USER), "no_assistant_turn"),
    (conversation(USER, ANSWER, USER), "no_assistant_turn"),
    (conversation(USER, ANSWER, {"role": "tool", "content": "r"}), "no_assistant_turn"),
    (conversation({"role": "system", "content": "s"}), "no_assistant_turn"),
    (conversation(ANSWER), "no_user_turn"),
    (conversation({"role": "system", "content": "s"}, ANSWER), "no_user_turn"),
    (conversation(USER, ANSWER, ANSWER), "no_user_turn"),
    (conversation(USER, ANSWER, {"role": "tool", "content": "r"}, ANSWER), "no_user_turn"),
    (conversation(USER, {"role": "system", "content": "s"}, ANSWER), "no_user_turn"),
    (conversation({"role": "tool", "content": "r"}, ANSWER), "no_user_turn"),
    (conversation(USER | {"tool_calls": [CALL]}, ANSWER), "bad_tool_call"),
    (conversation(USER | {"weight": 2}, ANSWER), "wrong_type"),
]


@pytest.mark.parametrize(("row", "expected"), CONVERSATIONS)
def test_a_conversation_without_question_and_answer_is_refused(row, expected):
    assert reason("messages", row) == expected


def test_a_missing_question_is_told_from_a_turn_in_between():
    system = {"role": "system", "content": "s"}
    for row, says in (
        (conversation(system, ANSWER), "no turn of the user stands before the answer"),
        (conversation(USER, system, ANSWER), "between the user and the answer stands a turn of system"),
        (conversation(USER, ANSWER, ANSWER), "between the user and the answer stands a turn of assistant"),
    ):
        with pytest.raises(BadRow, match=says):
            SHAPES["messages"](row)


# --- weights ---


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ((None, None), 2),
        ((0, 1), 2),
        ((1, 0), 1),
        ((None, 0), 1),
        ((1, 0.0), 1),
        ((0, None), 2),
    ],
)
def test_the_answer_is_the_last_turn_with_a_weight(weights, kept):
    turns = [
        {"role": role, "content": f"{role} {number}", "weight": weight if role == "assistant" else None}
        for number, weight in enumerate(weights, start=1)
        for role in ("user", "assistant")
    ]
    fields = SHAPES["messages"]({"messages": turns})
    assert (fields["instruction"], fields["output"]) == (f"user {kept}", f"assistant {kept}")
    assert len(fields["history"]) == 2 * (kept - 1)


def test_what_weight_0_cuts_off_may_end_as_it_likes():
    fields = read("messages", conversation(USER, ANSWER, USER, ANSWER | {"weight": 0}, USER))
    assert fields == {"instruction": "q", "output": "a"}


def test_a_conversation_without_weight_is_refused():
    assert reason("messages", conversation(USER, ANSWER | {"weight": 0})) == "no_trained_turn"
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0}]}
    assert reason("sharegpt", row) == "no_trained_turn"


@pytest.mark.parametrize("weight", [2, -1, 0.5, True, False, "1", [], {}, float("nan")])
def test_a_weight_is_0_or_1(weight):
    assert reason("messages", conversation(USER, ANSWER | {"weight": weight})) == "wrong_type"


# --- tools ---


@pytest.mark.parametrize(
    ("found", "stored"),
    [
        ([TOOL], [TOOL]),
        ([TOOL["function"]], [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        (json.dumps([TOOL["function"], TOOL]), [TOOL, TOOL]),
        (
            [{"name": "z", "description": "é <&>"}],
            [{"type": "function", "function": {"name": "z", "description": "é <&>"}}],
        ),
    ],
)
@pytest.mark.parametrize("shape", ["messages", "alpaca"])
def test_tools_become_one_json_text(shape, found, stored):
    row = {"messages": [USER, ANSWER], "instruction": "q", "output": "a", "tools": found}
    assert SHAPES[shape](row)["tools"] == json.dumps(stored, ensure_ascii=False)


@pytest.mark.parametrize("found", [None, [], "", " \n", "[]", "null"])
def test_no_tools_are_an_empty_text(found):
    assert SHAPES["messages"](conversation(USER, ANSWER, tools=found))["tools"] == ""


@pytest.mark.parametrize(
    "found",
    [
        "a hammer",
        "{}",
        '"x"',
        "0",
        "[" * 100_000,
        '[{"name": "f", "default": %s}]' % ("[" * 200 + "]" * 200),
        '[{"name": "f", "name": "g"}]',
        '[{"name": "\\ud800"}]',
        '[{"name": "f", "description": NaN}]',
        '[{"name": "f", "description": 1e999}]',
        {},
        0,
        False,
        ["f"],
        [None],
        [{}],
        [{"name": ""}],
        [{"name": 3}],
        [{"type": "function", "function": "f"}],
        [{"type": "file_search", "function": {"name": "f"}}],
        [{"type": "function", "function": {"description": "d"}}],
        [{"name": "f", "default": b"bytes"}],
    ],
    ids=lambda found: repr(found)[:40],
)
def test_tools_that_are_none_are_refused(found):
    assert reason("messages", conversation(USER, ANSWER, tools=found)) == "bad_tools"


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [CALL | {"function": {"name": "f", "arguments": {"b": 1, "a": "é"}}}],
        [{"function": {"name": "f", "arguments": {"b": 1, "a": "é"}}}],
        [{"name": "f", "arguments": {"b": 1, "a": "é"}}],
        [{"name": "f", "arguments": {"b": 1, "a": "é"}, "function": None, "type": None}],
        json.dumps([CALL]),
        CALLS,
    ],
)
def test_a_tool_call_in_each_of_its_forms(calls):
    assert SHAPES["messages"](conversation(USER, {"role": "assistant", "tool_calls": calls}))["tool_calls"] == CALLS


@pytest.mark.parametrize("none", [None, [], "", "[]"])
def test_no_tool_calls_are_an_empty_text(none):
    assert SHAPES["messages"](conversation(USER, ANSWER | {"tool_calls": none}))["tool_calls"] == ""


@pytest.mark.parametrize(
    "call",
    [
        3,
        "f()",
        {},
        {"name": "f"},
        {"name": "f", "arguments": None},
        {"name": "f", "arguments": ""},
        {"name": "f", "arguments": "{"},
        {"name": "f", "arguments": "[1]"},
        {"name": "f", "arguments": [1]},
        {"name": "f", "arguments": '{"a": NaN}'},
        {"name": "f", "arguments": '{"a": "\\udc00"}'},
        {"name": "f", "arguments": '{"a": 1, "a": 2}'},
        {"name": "f", "arguments": "[" * 100_000},
        {"name": "f", "arguments": '{"a": %s}' % ("[" * 200 + "]" * 200)},
        {"name": "", "arguments": {}},
        {"name": None, "arguments": {}},
        {"name": 3, "arguments": {}},
        {"type": "custom", "function": {"name": "f", "arguments": {}}},
        {"type": "function", "function": "f"},
    ],
    ids=lambda call: repr(call)[:40],
)
def test_a_bad_tool_call_is_refused(call):
    for row in (
        conversation(USER, {"role": "assistant", "content": "a", "tool_calls": [call]}),
        conversation(USER, {"role": "assistant", "content": "a", "function_call": call}),
        conversation(USER, {"role": "assistant", "content": "", "tool_calls": [CALL, call]}, ANSWER),
    ):
        assert reason("messages", row) == "bad_tool_call"
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(call)}]}
    assert reason("sharegpt", row) == "bad_tool_call"


# --- ShareGPT ---


def test_sharegpt_with_tools():
    row = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q1"},
            {"from": "gpt", "value": "a1"},
            {"from": "human", "value": "q2"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"b": 1, "a": "é"}}'},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "a2"},
        ],
        "tools": json.dumps([TOOL["function"]]),
    }
    assert read("sharegpt", row) == {
        "tools": json.dumps([TOOL]),
        "system": "s",
        "history": [turn("user", "q1"), turn("assistant", "a1")],
        "instruction": "q2",
        "tool_turns": [turn("assistant", "", CALLS), turn("tool", "r")],
        "output": "a2",
    }


@pytest.mark.parametrize("name", ["gpt", "assistant", "model", "bing", "chatgpt"])
@pytest.mark.parametrize("asks", ["human", "user"])
def test_roles_of_sharegpt(asks, name):
    assert read("sharegpt", {"conversation": [{"from": asks, "value": "q"}, {"from": name, "value": "a"}]}) == {
        "instruction": "q",
        "output": "a",
    }


@pytest.mark.parametrize("name", ["observation", "tool", "function"])
def test_results_of_sharegpt(name):
    calls = {"from": "function_call", "value": CALLS}
    turns = [{"from": "human", "value": "q"}, calls, {"from": name, "value": "r"}, {"from": "gpt", "value": "a"}]
    assert read("sharegpt", {"conversations": turns})["tool_turns"] == [turn("assistant", "", CALLS), turn("tool", "r")]


def test_sharegpt_with_the_keys_of_openai_and_nulls_in_between():
    turns = [turn | {"from": None, "value": None} for turn in (USER, ANSWER)]
    assert read("sharegpt", {"conversations": None, "conversation": turns}) == {"instruction": "q", "output": "a"}


def test_an_answer_of_sharegpt_may_be_a_list_of_calls():
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": CALLS}]
    assert read("sharegpt", {"conversations": turns}) == {"instruction": "q", "tool_calls": CALLS}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "missing_field"),
        ({"conversation": None}, "null_field"),
        ({"conversations": []}, "wrong_type"),
        ({"conversations": [None]}, "wrong_type"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": None}]}, "wrong_type"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": None}]}, "wrong_type"),
        ({"conversations": [{"from": "bard", "value": "q"}]}, "unknown_role"),
        ({"conversations": [{"from": {}, "value": "q"}]}, "unknown_role"),
        ({"conversations": [{"value": "q"}]}, "unknown_role"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "no_user_turn"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "no_assistant_turn"),
    ],
)
def test_sharegpt_without_its_shape_is_refused(row, expected):
    assert reason("sharegpt", row) == expected


# --- any row at all ---

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([CALLS, "[]", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ROLE = st.sampled_from(["user", "assistant", "system", "tool", "developer", "human", "gpt", "function_call"])
CALLED = st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "arguments", "function", "type"), VALUES)) | VALUES
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLE | VALUES,
        "from": ROLE | VALUES,
        "content": st.text(max_size=3) | VALUES,
        "value": st.text(max_size=3) | VALUES,
        "weight": st.sampled_from([0, 1, None]) | VALUES,
        "tool_calls": st.lists(CALLED, max_size=2) | CALLED,
        "function_call": CALLED,
    },
)
NAMES = sorted(
    {"tools", "functions", "system", "input", "label", *(name for fit in formats.FITS for name in fit.fields)}
)
ROWS = VALUES | st.fixed_dictionaries(
    {},
    optional={name: st.text(max_size=3) | VALUES | st.lists(TURN | VALUES, max_size=4) for name in NAMES},
)


@pytest.mark.parametrize("shape", [*SHAPES.values(), mapped(FieldMap(input="input"))], ids=[*SHAPES, "fields"])
@settings(max_examples=150, deadline=None)
@given(row=ROWS)
def test_any_json_value_is_read_or_refused_with_a_reason(shape, row):
    try:
        fields = shape(row)
    except BadRow:
        return
    assert set(fields) <= set(EXAMPLE.names)
    pa.Table.from_pylist([fields], schema=pa.schema([EXAMPLE.field(name) for name in fields]))
    for name in ("tools", "tool_calls"):
        assert not fields.get(name) or json.loads(fields[name])


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
ROUND = st.tuples(st.dictionaries(TEXT, JSON, max_size=3), TEXT)


@settings(max_examples=100, deadline=None)
@given(system=TEXT, before=st.lists(st.tuples(TEXT, TEXT), max_size=3), asked=TEXT, rounds=st.lists(ROUND), answer=TEXT)
def test_every_turn_of_a_conversation_is_kept_in_its_place(system, before, asked, rounds, answer):
    said = [{"role": "system", "content": system}]
    said += [{"role": role, "content": text} for pair in before for role, text in zip(BY_ROLE, pair, strict=True)]
    said.append({"role": "user", "content": asked})
    for arguments, result in rounds:
        call = {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}
        said += [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": result}]
    fields = SHAPES["messages"]({"messages": [*said, {"role": "assistant", "content": answer}]})
    middle = [*fields["history"], turn("user", fields["instruction"]), *fields["tool_turns"]]
    assert [(made["role"], made["content"]) for made in middle] == [
        (made["role"], made["content"]) for made in said[1:]
    ]
    assert (fields["system"], fields["output"]) == (system, answer)
    called = [json.loads(made["tool_calls"])[0]["arguments"] for made in fields["tool_turns"] if made["tool_calls"]]
    assert called == [arguments for arguments, _ in rounds]
    assert [list(arguments) for arguments in called] == [list(arguments) for arguments, _ in rounds]
