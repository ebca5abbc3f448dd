"""What the record of a run says about rows: where each went, whether that adds up, and how counts read.

All of it is data and plain text; the data report makes a page of it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from tasks.layout import SPLITS
from tasks.run_record import RunRecord, StageRecord

STAGES = ("collect", "clean", "split", "format")
"""The stages that work on rows; those after them learn from rows, and lose none."""

OTHER = "(other)"
"""What profile counts the rarest tasks and languages under."""

Counts = dict[str, int]


class Step(NamedTuple):
    """What one stage did with the rows of one source, or of all."""

    stage: str
    rows_in: int
    lost: Counts  # reason -> rows, most first

    @property
    def rows_kept(self) -> int:
        """Rows that went on."""
        return self.rows_in - sum(self.lost.values())


class Alike(NamedTuple):
    """What clean found of one kind of likeness, and what the policy made of it."""

    kind: str
    policy: str
    found: int  # rows, without those that stand for them
    rejected: int


class Change(NamedTuple):
    """Rows of one kind before and after clean."""

    name: str
    before: int
    after: int


def ended(record: RunRecord) -> dict[str, StageRecord]:
    """The stages of STAGES that ended, in order."""
    found = {stage.stage: stage for stage in record.stages}
    return {name: found[name] for name in STAGES if name in found}


def funnel(record: RunRecord) -> dict[str, list[Step]]:
    """What became of the rows of each source: source -> one step for each stage that ended."""
    tables = {stage.stage: stage.figures["funnel"] for stage in ended(record).values()}
    sources = dict.fromkeys(source for table in tables.values() for source in table)
    return {source: [_step(stage, table.get(source, {})) for stage, table in tables.items()] for source in sources}


def summed(lines: Iterable[Sequence[Step]]) -> list[Step]:
    """The steps of all sources together."""
    return [
        Step(same[0].stage, sum(step.rows_in for step in same), ranked(_sum(step.lost for step in same)))
        for same in zip(*lines, strict=True)
    ]


def mistakes(record: RunRecord) -> list[str]:
    """Where the rows of the sources do not add up to what the stages say, or are lost between two stages."""
    lines, found = funnel(record), []
    totals = {step.stage: step for step in summed(lines.values())}
    for name, stage in ended(record).items():
        total = totals.get(name, Step(name, 0, {}))
        told = _told(total.rows_in, total.rows_kept, total.lost)
        said = _told(stage.rows_in, stage.rows_kept, ranked(stage.rejected))
        if told != said:
            found.append(f"{name}: its sources add up to {told}; the stage says {said}")
    return found + [
        f"{source}: {rows(before.rows_kept)} left {before.stage}, {rows(after.rows_in)} entered {after.stage}"
        for source, steps in lines.items()
        for before, after in pairwise(steps)
        if before.rows_kept != after.rows_in
    ]


def sentence(record: RunRecord) -> str:
    """What happened to the rows, in one sentence."""
    stages = ended(record)
    if "collect" not in stages:
        return "No rows: collect did not end."
    sources = len(stages["collect"].figures["sources"])
    last = list(stages.values())[-1]
    text = f"{rows(stages['collect'].rows_in)} rows were read from {sources} source{'s' if sources > 1 else ''}; "
    text += f"{rows(last.rows_kept)} are left"
    if "split" not in stages:
        return f"{text} after {last.stage}."
    train, validation, test = (rows(size) for size in _sizes(stages))
    return f"{text}: {train} to train, {validation} to validate, {test} to test."


def alike(record: RunRecord) -> list[Alike]:
    """Rows that are equal, that answer the same prompt in another way, and that are nearly equal."""
    stage, config = ended(record)["clean"], record.config["clean"]
    pairs = f"nearly equal to another ({rows(stage.figures['near_duplicate_pairs'])} pairs)"
    kinds = [
        ("equal to another", config["duplicates"], "duplicates", "duplicate_of"),
        ("another answer to the same prompt", config["conflicts"], "conflicts", "conflicts_with"),
        (pairs, config["near_duplicates"]["policy"], "near_duplicates", "near_duplicate_of"),
    ]
    return [
        Alike(kind, policy, stage.figures[figure], stage.rejected.get(reason, 0))
        for kind, policy, figure, reason in kinds
    ]


def by_length(record: RunRecord, name: str) -> list[Change]:
    """Rows by length, one line per power of two, with those between that nothing falls into."""
    before, after = _profiles(record, name)
    tops = sorted(int(top) for top in before.keys() | after.keys())
    bins = [2**power for power in range(tops[0].bit_length() - 1, tops[-1].bit_length())] if tops else []
    return [Change(_span(top), before.get(str(top), 0), after.get(str(top), 0)) for top in bins]


def by_name(record: RunRecord, name: str) -> list[Change]:
    """Rows by name, most before first; what one side counts as OTHER is OTHER on both, and last."""
    before, after = _profiles(record, name)
    names = before.keys() & after.keys() if OTHER in before.keys() | after.keys() else before.keys() | after.keys()
    shown = sorted(names - {OTHER}, key=lambda each: (-before.get(each, 0), each))
    lines = [Change(each, before.get(each, 0), after.get(each, 0)) for each in shown]
    rest = [sum(side.values()) - sum(side.get(each, 0) for each in shown) for side in (before, after)]
    return [*lines, Change(OTHER, *rest)] if any(rest) else lines


def ranked(counts: Counts) -> Counts:
    """The same counts, most first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def rows(number: int) -> str:
    """A count as people read it: 15,488."""
    return f"{number:,}"


def gained(before: int, after: int) -> str:
    """A difference with its sign, as people read it: −1,234."""
    return "0" if before == after else f"{after - before:+,}".replace("-", "−")


def share(part: float, whole: float) -> str:
    """A percentage with one digit that takes almost all for neither all, nor almost nothing for nothing."""
    if whole == 0:
        return "–"
    if part in (0, whole):
        return "100 %" if part else "0 %"
    text = f"{100 * part / whole:.1f} %"
    return {"100.0 %": "> 99.9 %", "0.0 %": "< 0.1 %"}.get(text, text)


def _step(stage: str, counts: Counts) -> Step:
    lost = {reason: number for reason, number in counts.items() if reason != "rows_in"}
    return Step(stage, counts.get("rows_in", 0), ranked(lost))


def _sum(counts: Iterable[Counts]) -> Counts:
    total = Counter[str]()
    for each in counts:
        total.update(each)
    return dict(total)


def _told(rows_in: int, rows_kept: int, lost: Counts) -> str:
    return ", ".join(
        [f"{rows(rows_in)} in", f"{rows(rows_kept)} kept", *(f"{key} {rows(n)}" for key, n in lost.items())]
    )


def _sizes(stages: dict[str, StageRecord]) -> list[int]:
    """The rows of each split, as the last stage that ended left them."""
    if "format" in stages:
        return [stages["format"].figures[name]["rows"] for name in SPLITS]
    return [stages["split"].figures[name] for name in SPLITS]


def _profiles(record: RunRecord, name: str) -> tuple[Counts, Counts]:
    """What clean counted before and after; empty where it had no row."""
    figures = ended(record)["clean"].figures
    return figures["before"].get(name, {}), figures["after"].get(name, {})


def _span(top: int) -> str:
    """The lengths of a bin, whose upper bound is not one of them."""
    low, high = top // 2, top - 1
    return rows(high) if low >= high else f"{rows(low)} – {rows(high)}"
