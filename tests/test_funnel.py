"""What the record says about rows: each is followed to its end, what does not add up is named, counts read as meant."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_data_report import record

from tasks.funnel import (
    STAGES,
    Alike,
    Counts,
    alike,
    by_length,
    by_name,
    ended,
    funnel,
    gained,
    mistakes,
    ranked,
    rows,
    sentence,
    share,
    summed,
)
from tasks.run_record import RunRecord


def profiled(name: str, before: Counts, after: Counts) -> RunRecord:
    """A run in which clean counted these rows before and after."""
    run = record(2).model_copy(deep=True)
    run.stages[1].figures |= {"before": {name: before} if before else {}, "after": {name: after} if after else {}}
    return run


def test_the_totals_are_what_the_stages_say():
    run = record()
    for step, stage in zip(summed(funnel(run).values()), run.stages, strict=True):
        assert (step.stage, step.rows_in, step.rows_kept) == (stage.stage, stage.rows_in, stage.rows_kept)
        assert step.lost == stage.rejected
    assert mistakes(run) == []


def test_a_source_that_lost_all_its_rows_is_followed_to_the_end():
    assert [step.rows_kept for step in funnel(record())["c"]] == [9, 0, 0, 0]


def test_the_reason_that_took_most_stands_first():
    assert list(ranked({"b": 2, "a": 2, "c": 9}).items()) == [("c", 9), ("a", 2), ("b", 2)]
    run = record(1).model_copy(deep=True)
    run.stages[0].figures["funnel"] = {"a": {"rows_in": 9, "few": 1, "many": 2}, "b": {"rows_in": 9, "most": 6}}
    lines = funnel(run)
    assert list(lines["a"][0].lost.items()) == [("many", 2), ("few", 1)]
    assert list(summed(lines.values())[0].lost.items()) == [("most", 6), ("many", 2), ("few", 1)]


def test_stages_are_in_the_order_in_which_rows_pass_them():
    run = record()
    run.stages = [*run.stages[::-1], run.stages[0].model_copy(update={"stage": "fine_tune"})]
    assert tuple(ended(run)) == STAGES
    assert [step.stage for step in funnel(run)["a"]] == list(STAGES)


@pytest.mark.parametrize(
    ("source", "reason", "messages"),
    [
        (
            "a",
            "too_long",
            [
                "clean: its sources add up to 20,009 in, 19,954 kept, too_long 31, duplicate_of 15, conflicts_with 9; "
                "the stage says 20,009 in, 19,955 kept, too_long 30, duplicate_of 15, conflicts_with 9",
                "a: 14,958 left clean, 14,959 entered split",
            ],
        ),
        (
            "a",
            "rows_in",
            [
                "clean: its sources add up to 20,010 in, 19,956 kept, too_long 30, duplicate_of 15, conflicts_with 9; "
                "the stage says 20,009 in, 19,955 kept, too_long 30, duplicate_of 15, conflicts_with 9",
                "a: 15,000 left collect, 15,001 entered clean",
                "a: 14,960 left clean, 14,959 entered split",
            ],
        ),
        (
            "new",
            "rows_in",
            [
                "clean: its sources add up to 20,010 in, 19,956 kept, too_long 30, duplicate_of 15, conflicts_with 9; "
                "the stage says 20,009 in, 19,955 kept, too_long 30, duplicate_of 15, conflicts_with 9",
                "new: 0 left collect, 1 entered clean",
                "new: 1 left clean, 0 entered split",
            ],
        ),
    ],
)
def test_counts_that_do_not_add_up_are_named(source: str, reason: str, messages: list[str]):
    run = record().model_copy(deep=True)
    counts = run.stages[1].figures["funnel"].setdefault(source, {})
    counts[reason] = counts.get(reason, 0) + 1
    assert mistakes(run) == messages


def test_a_row_that_changed_its_source_is_found_though_the_stages_agree():
    run = record().model_copy(deep=True)
    table = run.stages[2].figures["funnel"]
    table["a"]["rows_in"], table["b"]["rows_in"] = table["a"]["rows_in"] - 1, table["b"]["rows_in"] + 1
    assert "a: 14,959 left clean, 14,958 entered split" in mistakes(run)
    assert "b: 4,996 left clean, 4,997 entered split" in mistakes(run)
    assert not [text for text in mistakes(run) if "add up" in text]


def test_a_funnel_without_sources_is_a_mistake_too():
    run = record(1).model_copy(deep=True)
    run.stages[0].figures["funnel"] = {}
    assert mistakes(run) == [
        "collect: its sources add up to 0 in, 0 kept; the stage says 20,069 in, 20,009 kept, invalid_json 60"
    ]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (0, "No rows: collect did not end."),
        (1, "20,069 rows were read from 3 sources; 20,009 are left after collect."),
        (2, "20,069 rows were read from 3 sources; 19,955 are left after clean."),
        (
            3,
            "20,069 rows were read from 3 sources; 19,954 are left: 17,954 to train, 1,000 to validate, 1,000 to test.",
        ),
        (
            4,
            "20,069 rows were read from 3 sources; 19,002 are left: 17,005 to train, 998 to validate, 999 to test.",
        ),
    ],
)
def test_one_sentence_says_what_happened(stages: int, said: str):
    assert sentence(record(stages)) == said


def test_what_is_alike_is_counted_as_found_and_as_rejected():
    assert alike(record(2)) == [
        Alike("equal to another", "keep_first", 15, 15),
        Alike("another answer to the same prompt", "keep_all", 9, 9),
        Alike("nearly equal to another (7 pairs)", "keep_first", 6, 0),
    ]


def test_every_length_between_the_shortest_and_the_longest_has_a_line():
    run = profiled("prompt_chars", {"1": 9, "2": 8, "16": 7}, {"4": 1, "32": 2})
    assert by_length(run, "prompt_chars") == [
        ("0", 9, 0),
        ("1", 8, 0),
        ("2 – 3", 0, 1),
        ("4 – 7", 0, 0),
        ("8 – 15", 7, 0),
        ("16 – 31", 0, 2),
    ]


def test_what_one_side_counts_as_other_is_other_on_both():
    run = profiled("tasks", {"a": 9, "b": 8, "(other)": 3}, {"a": 9, "c": 2, "(other)": 1})
    assert by_name(run, "tasks") == [("a", 9, 9), ("(other)", 11, 3)]
    run = profiled("tasks", {"a": 9, "b": 8}, {"a": 9, "(other)": 1})
    assert by_name(run, "tasks") == [("a", 9, 9), ("(other)", 8, 1)]
    run = profiled("tasks", {"a": 9}, {"a": 9, "(other)": 1})
    assert by_name(run, "tasks") == [("a", 9, 9), ("(other)", 0, 1)]


def test_names_are_ranked_by_their_rows_before_and_none_is_lost():
    run = profiled("tasks", {"a": 1, "b": 5, "z": 5}, {"b": 2, "new": 3})
    assert by_name(run, "tasks") == [("b", 5, 2), ("z", 5, 0), ("a", 1, 0), ("new", 0, 3)]


def test_a_clean_without_rows_has_neither_lengths_nor_names():
    run = profiled("tasks", {}, {})
    assert by_length(run, "prompt_chars") == by_name(run, "tasks") == []


def test_counts_read_as_people_write_them():
    assert [rows(0), rows(15_488)] == ["0", "15,488"]
    assert [gained(2_000, 1), gained(1, 2_000), gained(5, 5)] == ["−1,999", "+1,999", "0"]


@given(st.integers(1, 10**9).flatmap(lambda whole: st.tuples(st.integers(0, whole), st.just(whole))))
@example((14_999, 15_000))
@example((1, 15_000))
@example((0, 5))
@example((5, 5))
def test_a_share_is_never_rounded_to_all_or_to_nothing(pair: tuple[int, int]):
    part, whole = pair
    text = share(part, whole)
    assert (text == "100 %") == (part == whole)
    assert (text == "0 %") == (part == 0)
    assert "100.0" not in text and not text.startswith("0.0")


def test_a_share_of_nothing_is_no_number():
    assert share(0, 0) == "–"
