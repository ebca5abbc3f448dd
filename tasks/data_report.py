"""The data report of a run: `data.html`, which shows where every row went and what the data is made of.

It is made from the record alone, so a run that finds everything cached has it too.  Markup is written as `Markup`
literals that are filled by `format` and `join`, and these escape: no text of the data becomes markup.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from tasks.run_record import RunFolder, RunRecord, StageRecord

STAGES = ("collect", "clean", "split", "format")
"""The stages that work on rows; those after them learn from rows, and lose none."""

SPLITS = ("train", "validation", "test")
OTHER = "(other)"
"""What profile counts the rarest tasks and languages under."""

SHOWN = 12
"""Lines of a table of names that are shown; the others are folded."""

_FRAME = Path(__file__).with_suffix(".html")
"""The page around what is made here, with its style; `<!-- name -->` marks where that goes."""

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e0fff]"
)
"""Characters that cannot be seen, or that turn the order of those around them; the page shows their code."""

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


class _Part(NamedTuple):
    name: str
    title: str
    stage: str  # without it there is nothing to show
    body: Callable[[RunRecord], Markup]


def write_data_report(folder: RunFolder) -> Path:
    """Write data.html beside run.json: one page that needs neither network nor scripts."""
    path = folder.path / "data.html"
    path.write_text(page(folder.record), encoding="utf-8")
    return path


def page(record: RunRecord) -> str:
    """The report as HTML; a part whose stage did not end says so in one line."""
    links = _join(Markup('<li><a href="#{}">{}</a></li>').format(part.name, part.title) for part in _PARTS)
    parts = _join(_part(part, record) for part in _PARTS)
    fills = {"title": Markup("{}: data").format(record.name), "head": _head(record), "links": links, "parts": parts}
    frame = _FRAME.read_text(encoding="utf-8")
    whole = re.sub(r"<!-- (\w+) -->", lambda found: fills[found[1]], frame)
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", whole)


def funnel(record: RunRecord) -> dict[str, list[Step]]:
    """What became of the rows of each source: source -> one step for each stage that ended."""
    tables = {stage.stage: stage.figures["funnel"] for stage in _ended(record).values()}
    sources = dict.fromkeys(source for table in tables.values() for source in table)
    return {source: [_step(stage, table.get(source, {})) for stage, table in tables.items()] for source in sources}


def summed(lines: Iterable[Sequence[Step]]) -> list[Step]:
    """The steps of all sources together."""
    return [
        Step(same[0].stage, sum(step.rows_in for step in same), _ranked(_sum(step.lost for step in same)))
        for same in zip(*lines, strict=True)
    ]


def mistakes(record: RunRecord) -> list[str]:
    """Where the rows of the sources do not add up to what the stages say, or are lost between two stages."""
    lines, found = funnel(record), []
    totals = {step.stage: step for step in summed(lines.values())}
    for name, stage in _ended(record).items():
        total = totals.get(name, Step(name, 0, {}))
        told = _told(total.rows_in, total.rows_kept, total.lost)
        said = _told(stage.rows_in, stage.rows_kept, _ranked(stage.rejected))
        if told != said:
            found.append(f"{name}: its sources add up to {told}; the stage says {said}")
    return found + [
        f"{source}: {rows(before.rows_kept)} left {before.stage}, {rows(after.rows_in)} entered {after.stage}"
        for source, steps in lines.items()
        for before, after in pairwise(steps)
        if before.rows_kept != after.rows_in
    ]


def _told(rows_in: int, rows_kept: int, lost: Counts) -> str:
    return ", ".join(
        [f"{rows(rows_in)} in", f"{rows(rows_kept)} kept", *(f"{key} {rows(n)}" for key, n in lost.items())]
    )


def rows(number: int) -> str:
    """A count as people read it: 15,488."""
    return f"{number:,}"


def share(part: float, whole: float) -> str:
    """A percentage with one digit that takes almost all for neither all, nor almost nothing for nothing."""
    if whole == 0:
        return "–"
    if part in (0, whole):
        return "100 %" if part else "0 %"
    text = f"{100 * part / whole:.1f} %"
    return {"100.0 %": "> 99.9 %", "0.0 %": "< 0.1 %"}.get(text, text)


_ALARM = Markup('<div class="alarm"><b>{}</b><p>{}</p></div>')

_STEP = Markup("""
<li><span class="label">{label}</span> <b class="count">{rows}</b> <span class="share">{share}</span>
{bar}{lost}</li>""")

_SOURCE = Markup("""
<tbody><tr><th scope="row">{name}</th><td>{format}</td>{numbers}</tr>
<tr class="under"><td colspan="5">{columns}</td></tr></tbody>""")

_SAMPLE = Markup("""
<li><b class="place">{place}</b> <span class="detail">{detail}</span><pre dir="auto">{row}</pre></li>""")

_TABLE = Markup("""
<div class="wide"><table><thead><tr>{}</tr></thead>{}</table></div>""")

_LEGEND = Markup("""
<span class="legend"><i class="is-kept"></i> after clean</span> <span class="legend"><i class="is-lost"></i> fewer than
before</span>""")


# The top of the page


def _head(record: RunRecord) -> Markup:
    error = _ALARM.format("What failed", record.error) if record.error else ""
    wrong = [_ALARM.format("The counts do not add up", text) for text in mistakes(record)]
    return Markup("""
<p class="state {state}">{state}</p>
<h1>{name}</h1>
<p class="note">{times}</p>
{alarms}
<p class="sentence">{sentence}</p>
<ul class="stages" aria-label="Stages that ended">{stages}</ul>""").format(
        name=record.name,
        state=record.state,
        times=_times(record),
        sentence=_sentence(record),
        alarms=_join([error, *wrong]),
        stages=_join(_stage_word(stage) for stage in record.stages),
    )


def _times(record: RunRecord) -> str:
    began = datetime.fromisoformat(record.started)
    text = f"{began:%Y-%m-%d %H:%M:%S} UTC"
    if not record.ended:
        return f"began {text}"
    ended = datetime.fromisoformat(record.ended)
    until = f"{ended:%H:%M:%S}" if ended.date() == began.date() else f"{ended:%Y-%m-%d %H:%M:%S}"
    return f"{text} to {until} ({_duration(round((ended - began).total_seconds()))})"


def _duration(seconds: int) -> str:
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _sentence(record: RunRecord) -> str:
    """What happened to the rows, in one sentence."""
    stages = _ended(record)
    if "collect" not in stages:
        return "No rows: collect did not end."
    sources = len(stages["collect"].figures["sources"])
    last = list(stages.values())[-1]
    text = f"{rows(stages['collect'].rows_in)} rows were read from {sources} source{'s' if sources > 1 else ''}; "
    text += f"{rows(last.rows_kept)} are left"
    if "split" not in stages:
        return f"{text} after {last.stage}."
    train, validation, test = (rows(size) for size in _sizes(stages).values())
    return f"{text}: {train} to train, {validation} to validate, {test} to test."


def _sizes(stages: dict[str, StageRecord]) -> Counts:
    """The rows of each split, as the last stage that ended left them."""
    if "format" in stages:
        return {name: stages["format"].figures[name]["rows"] for name in SPLITS}
    return {name: stages["split"].figures[name] for name in SPLITS}


def _stage_word(stage: StageRecord) -> Markup:
    how = "cached" if stage.cached else f"{stage.seconds:,.1f} s"
    return Markup('<li title="{}">{} <span>{}</span></li>').format(stage.why, stage.stage, how)


# The parts of the page


def _funnel(record: RunRecord) -> Markup:
    lines = funnel(record)
    total = [(f"All {len(lines)} sources", summed(lines.values()))] if len(lines) > 1 else []
    return _join(_source_line(source, steps) for source, steps in [*total, *lines.items()])


def _source_line(source: str, steps: list[Step]) -> Markup:
    read = steps[0].rows_in
    shown = [_STEP.format(label="read", rows=rows(read), share="", bar=_bar(read, 0, read), lost="")]
    shown += [
        _STEP.format(
            label=f"after {step.stage}",
            rows=rows(step.rows_kept),
            share=share(step.rows_kept, read),
            bar=_bar(step.rows_kept, step.rows_in - step.rows_kept, read),
            lost=_reasons(step.lost),
        )
        for step in steps
    ]
    shown += [
        Markup('<li class="absent"><span class="label">{} did not end</span></li>').format(stage)
        for stage in STAGES[len(steps) :]
    ]
    return Markup('<article class="line"><h3>{}</h3><ol class="steps">{}</ol></article>').format(source, _join(shown))


def _reasons(lost: Counts) -> Markup:
    items = [Markup("<li><span>{}</span> <b>−{}</b></li>").format(reason, rows(n)) for reason, n in lost.items()]
    return Markup('<ul class="lost">{}</ul>').format(_join(items)) if items else Markup("")


def _sources(record: RunRecord) -> Markup:
    found = _ended(record)["collect"].figures["sources"]
    whole = sum(source["rows"] for source in found.values())
    bodies = [
        _SOURCE.format(
            name=name,
            format=source["format"],
            numbers=_numbers(rows(source["files"]), rows(source["rows"]), share(source["rows"], whole)),
            columns=_columns(source["columns"]),
        )
        for name, source in found.items()
    ]
    return _table(["source", "format"], ["files", "rows", "share"], _join(bodies))


def _columns(columns: dict[str, list[str]]) -> Markup:
    items = [
        Markup("<li><code>{}</code> {}</li>").format(name, " or ".join(kinds) or "always empty")
        for name, kinds in columns.items()
    ]
    return Markup('<ul class="columns">{}</ul>').format(_join(items))


def _cleaning(record: RunRecord) -> Markup:
    pair = Markup('<div class="pair"><div>{}</div><div>{}</div></div>')
    return _alike(record) + pair.format(_contaminated(record), _repaired(record))


def _alike(record: RunRecord) -> Markup:
    """Rows that are like others: what was found, and what the policies made of it."""
    stage, config = _ended(record)["clean"], record.config["clean"]
    found, lost = stage.figures, stage.rejected
    pairs = f"nearly equal to another ({rows(found['near_duplicate_pairs'])} pairs)"
    kinds = [
        ("equal to another", config["duplicates"], found["duplicates"], lost.get("duplicate_of", 0)),
        ("another answer to the same prompt", config["conflicts"], found["conflicts"], lost.get("conflicts_with", 0)),
        (pairs, config["near_duplicates"]["policy"], found["near_duplicates"], lost.get("near_duplicate_of", 0)),
    ]
    policies = Markup("<td><code>{}</code></td>")
    lines = [
        _line(kind, policies.format(policy) + _numbers(rows(number), rows(gone)))
        for kind, policy, number, gone in kinds
    ]
    table = _table(["rows that are …", "policy"], ["found", "rejected"], _join(lines))
    note = "Of rows that are alike, the one that stands for them is not counted as found."
    clusters = _clusters(found["clusters"])
    return Markup('<h3>Rows like others</h3>{}<p class="note">{}</p>{}').format(table, note, clusters)


def _clusters(clusters: list[dict[str, Any]]) -> Markup:
    items = [
        _SAMPLE.format(place=cluster["place"], detail=f"{rows(cluster['rows'])} rows", row=cluster["text"])
        for cluster in clusters
    ]
    return _fold("Largest groups of near-duplicates", rows(len(items)), _ordered(items)) if items else Markup("")


def _contaminated(record: RunRecord) -> Markup:
    found = _ended(record)["clean"].figures["contaminated"]
    if not record.config["clean"]["decontaminate"]["against"]:
        text = _note("No benchmark is named in clean.decontaminate.against, so none was looked for.")
    elif not found:
        text = _note("No row holds a piece of a benchmark.")
    else:
        text = _table(["benchmark: reason"], ["rows"], _counted(found))
    return Markup("<h3>Rows found in benchmarks</h3>{}").format(text)


def _repaired(record: RunRecord) -> Markup:
    found = _ended(record)["clean"].figures["repaired"]
    text = _table(["repair"], ["texts changed"], _counted(found)) if found else _note("No text was changed.")
    return Markup("<h3>Repairs</h3>{}").format(text)


def _lengths(record: RunRecord) -> Markup:
    before, after = _profiles(record)
    tables = [
        _histogram(title, before.get(name, {}), after.get(name, {}))
        for title, name in (("Prompts", "prompt_chars"), ("Answers", "answer_chars"))
    ]
    return Markup('<p class="note">Rows by length in characters. {}</p><div class="pair">{}</div>').format(
        _LEGEND, _join(tables)
    )


def _histogram(title: str, before: Counts, after: Counts) -> Markup:
    """One line per power of two, with those between that nothing falls into."""
    tops = sorted(int(top) for top in before.keys() | after.keys())
    bins = [2**power for power in range(tops[0].bit_length() - 1, tops[-1].bit_length())] if tops else []
    lines = [(_span(top), before.get(str(top), 0), after.get(str(top), 0)) for top in bins]
    return Markup('<div class="histogram"><h3>{}</h3>{}</div>').format(title, _compared("characters", lines))


def _span(top: int) -> str:
    """The lengths of a bin, whose upper bound is not one of them."""
    low, high = top // 2, top - 1
    return rows(high) if low >= high else f"{rows(low)} – {rows(high)}"


def _kinds(record: RunRecord) -> Markup:
    before, after = _profiles(record)
    tables = [
        Markup("<div><h3>{}</h3>{}{}</div>").format(title, _compared(one, _same_names(before, after, name)), note)
        for title, one, name, note in (
            ("Tasks", "task", "tasks", ""),
            ("Languages", "language", "languages", _note("Of the answers in a sample of about one row in 20.")),
        )
    ]
    return Markup('<p class="note">Rows before and after clean. {}</p><div class="pair">{}</div>').format(
        _LEGEND, _join(tables)
    )


def _same_names(before: dict[str, Counts], after: dict[str, Counts], name: str) -> list[tuple[str, int, int]]:
    """Lines of name, rows before, rows after; what one side counts as OTHER is OTHER on both."""
    old, new = before.get(name, {}), after.get(name, {})
    names = old.keys() & new.keys() if OTHER in old.keys() | new.keys() else old.keys() | new.keys()
    shown = sorted(names - {OTHER}, key=lambda each: (-old.get(each, 0), each))
    lines = [(each, old.get(each, 0), new.get(each, 0)) for each in shown]
    rest = [sum(side.values()) - sum(side.get(each, 0) for each in shown) for side in (old, new)]
    return [*lines, (OTHER, *rest)] if any(rest) else lines


def _split(record: RunRecord) -> Markup:
    figures = _ended(record)["split"].figures
    whole = sum(figures[name] for name in SPLITS)
    sizes = [_line(name, _numbers(rows(figures[name]), share(figures[name], whole))) for name in SPLITS]
    method = _note(f"Method: {record.config['split']['method']}.")
    return Markup('<div class="pair"><div><h3>Sizes</h3>{}{}</div><div><h3>Leak</h3>{}</div></div>').format(
        _table(["split"], ["rows", "share"], _join(sizes)), method, _leak(figures["leak"])
    )


def _leak(leak: dict[str, dict[str, Any]]) -> Markup:
    """How many rows of validation and test stand in train as well, and the first of them."""
    tests = ("exact", "normalised", "near_duplicate")
    lines = [
        _line(name, _numbers(*(rows(found[test]) for test in tests), share(found["ratio"], 1)))
        for name, found in leak.items()
    ]
    table = _table(["split"], ["exact", "normalised", "near-duplicate", "share"], _join(lines))
    note = _note(
        "Rows that stand in train as well: equal; equal but for spaces, case and Unicode form; nearly equal; "
        "and the share of rows that are any of these."
    )
    first = [Markup("<li>{}</li>").format(pair) for found in leak.values() for pair in found["first"]]
    return _join([table, note, *([_fold("The first of them", "", _ordered(first))] if first else [])])


def _samples(record: RunRecord) -> Markup:
    return _join(
        Markup("<h3>{}</h3>{}").format(stage.stage, _stage_samples(stage, record.config["store"]))
        for stage in _ended(record).values()
    )


def _stage_samples(stage: StageRecord, store: str) -> Markup:
    if not stage.rejected:
        return _note("No row was rejected.")
    samples = stage.figures["rejected_samples"]
    folds = [_reason_samples(reason, number, samples[reason]) for reason, number in _ranked(stage.rejected).items()]
    where = Markup('<p class="note">All of them: <code>{}/{}/{}/rejected/</code></p>')
    return _join([*folds, where.format(store, stage.stage, stage.key)])


def _reason_samples(reason: str, number: int, samples: list[dict[str, str]]) -> Markup:
    note = f"the first {len(samples)}" if len(samples) < number else ""
    return _fold(reason, rows(number), _ordered(_SAMPLE.format(**sample) for sample in samples), note)


# What the parts are made of


def _part(part: _Part, record: RunRecord) -> Markup:
    ended = part.stage in _ended(record)
    body = part.body(record) if ended else _note(f"{part.stage} did not end in this run, so there is nothing to show.")
    return Markup('<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>{2}</section>').format(
        part.name, part.title, body
    )


def _compared(kind: str, lines: Sequence[tuple[str, int, int]]) -> Markup:
    """A table of names with rows before and after, and bars; lines past SHOWN are folded unless they are lengths."""
    if not lines:
        return _note("No row.")
    whole = max(max(before, after) for _, before, after in lines)
    shown = [_compared_line(line, whole) for line in lines]
    header = [kind, ""], ["before", "after", "change"]
    if kind == "characters" or len(shown) <= SHOWN:
        return _table(*header, _join(shown))
    rest = _fold(f"{len(shown) - SHOWN} more", "", _table(*header, _join(shown[SHOWN:])))
    return _table(*header, _join(shown[:SHOWN])) + rest


def _compared_line(line: tuple[str, int, int], whole: int) -> Markup:
    name, before, after = line
    change = "0" if before == after else f"{after - before:+,}".replace("-", "−")
    title = f"{name}: {rows(before)} before, {rows(after)} after"
    cells = Markup('<td class="bars" title="{}">{}</td>').format(title, _bar(after, max(0, before - after), whole))
    return _line(name or "(none)", cells + _numbers(rows(before), rows(after), change))


def _bar(kept: int, lost: int, whole: int) -> Markup:
    """A bar of kept rows, and behind it those that were lost; the numbers stand beside it as text."""
    pieces = [
        Markup('<i class="{}" style="width:{:.2f}%"></i>').format(name, 100 * part / max(1, whole))
        for name, part in (("is-kept", kept), ("is-lost", lost))
        if part
    ]
    return Markup('<span class="bar" aria-hidden="true">{}</span>').format(_join(pieces))


def _table(texts: Sequence[str], numbers: Sequence[str], body: Markup) -> Markup:
    """A table whose first columns are texts and whose others are numbers."""
    cells = [Markup('<th scope="col">{}</th>').format(name) if name else Markup("<td></td>") for name in texts]
    cells += [Markup('<th scope="col" class="n">{}</th>').format(name) for name in numbers]
    return _TABLE.format(_join(cells), body)


def _line(name: str, cells: Markup) -> Markup:
    return Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, cells)


def _numbers(*texts: str) -> Markup:
    return _join(Markup('<td class="n">{}</td>').format(text) for text in texts)


def _counted(counts: Counts) -> Markup:
    return _join(_line(name, _numbers(rows(number))) for name, number in counts.items())


def _fold(title: str, number: str, body: Markup, note: str = "") -> Markup:
    summary = Markup("{} <b>{}</b> <span>{}</span>").format(title, number, note)
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def _ordered(items: Iterable[Markup]) -> Markup:
    return Markup('<ol class="samples">{}</ol>').format(_join(items))


def _note(text: str) -> Markup:
    return Markup('<p class="note">{}</p>').format(text)


def _join(pieces: Iterable[Markup]) -> Markup:
    return Markup("\n").join(pieces)


# The record's figures


def _ended(record: RunRecord) -> dict[str, StageRecord]:
    """The stages of STAGES that ended, in order."""
    found = {stage.stage: stage for stage in record.stages}
    return {name: found[name] for name in STAGES if name in found}


def _profiles(record: RunRecord) -> tuple[dict[str, Counts], dict[str, Counts]]:
    """What clean found before and after; empty where it had no row."""
    figures = _ended(record)["clean"].figures
    return figures["before"], figures["after"]


def _step(stage: str, counts: Counts) -> Step:
    lost = {reason: number for reason, number in counts.items() if reason != "rows_in"}
    return Step(stage, counts.get("rows_in", 0), _ranked(lost))


def _ranked(counts: Counts) -> Counts:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sum(counts: Iterable[Counts]) -> Counts:
    total = Counter[str]()
    for each in counts:
        total.update(each)
    return dict(total)


_PARTS = (
    _Part("funnel", "Where the rows went", "collect", _funnel),
    _Part("sources", "Sources", "collect", _sources),
    _Part("cleaning", "What clean found and changed", "clean", _cleaning),
    _Part("lengths", "Lengths before and after clean", "clean", _lengths),
    _Part("kinds", "Tasks and languages", "clean", _kinds),
    _Part("split", "Split", "split", _split),
    _Part("samples", "Rejected rows", "collect", _samples),
)
