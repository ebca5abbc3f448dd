"""The data report of a run: `data.html`, which shows where every row went and what the data is made of.

It is made from the record alone, so a run that finds everything cached has it too.  Markup is written as `Markup`
literals that are filled by `format` and `join`, and these escape: no text of the data becomes markup.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from tasks.funnel import (
    STAGES,
    Change,
    Counts,
    Step,
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
from tasks.layout import SPLITS
from tasks.run_record import RunFolder, RunRecord, StageRecord

SHOWN = 12
"""Lines of a table of names that are shown; the others are folded."""

_FRAME = Path(__file__).with_suffix(".html")
"""The page around what is made here, with its style; `<!-- name -->` marks where that goes."""

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e0fff]"
)
"""Characters that cannot be seen, or that turn the order of those around them; the page shows their code."""


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


_STEP = Markup("""
<li><span class="label">{}</span> <b class="count">{}</b> <span class="share">{}</span>
{}{}</li>""")
_SOURCE = Markup("""
<tbody>{}
<tr class="under"><td colspan="5"><ul class="columns">{}</ul></td></tr></tbody>""")
_TABLE = Markup("""
<div class="wide"><table><thead><tr>{}</tr></thead>{}</table></div>""")
_SAMPLE = Markup("""
<li><b class="place">{place}</b> <span class="detail">{detail}</span><pre dir="auto">{row}</pre></li>""")
_LEGEND = Markup("""
<span class="legend"><i class="is-kept"></i> after clean</span> <span class="legend"><i class="is-lost"></i> fewer than
before</span>""")
_ALARM = Markup('<div class="alarm"><b>{}</b><p>{}</p></div>')
_NOTE = Markup('<p class="note">{}</p>')
_PAIR = Markup('<div class="pair"><div>{}</div><div>{}</div></div>')
_TITLED = Markup("<h3>{}</h3>{}")
_FOLD = Markup("<details><summary>{} <b>{}</b> <span>{}</span></summary>{}</details>")
_FIRST = Markup('<ol class="samples">{}</ol>')
_join = Markup("\n").join  # it escapes, as format does


# The top of the page


def _head(record: RunRecord) -> Markup:
    error = _ALARM.format("What failed", record.error) if record.error else ""
    alarms = _join([error, *(_ALARM.format("The counts do not add up", text) for text in mistakes(record))])
    words = _join(_stage_word(stage) for stage in record.stages)
    return Markup("""
<p class="state {state}">{state}</p>
<h1>{name}</h1>
<p class="note">{times}</p>
{alarms}
<p class="sentence">{rows}</p>
<ul class="stages" aria-label="Stages that ended">{stages}</ul>""").format(
        state=record.state, name=record.name, times=_times(record), alarms=alarms, rows=sentence(record), stages=words
    )


def _times(record: RunRecord) -> str:
    began = datetime.fromisoformat(record.started)
    text = f"{began:%Y-%m-%d %H:%M:%S} UTC"
    if not record.ended:
        return f"began {text}"
    end = datetime.fromisoformat(record.ended)
    until = f"{end:%H:%M:%S}" if end.date() == began.date() else f"{end:%Y-%m-%d %H:%M:%S}"
    return f"{text} to {until} ({_duration(round((end - began).total_seconds()))})"


def _duration(seconds: int) -> str:
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _stage_word(stage: StageRecord) -> Markup:
    how = "cached" if stage.cached else f"{stage.seconds:,.1f} s"
    return Markup('<li title="{}">{} <span>{}</span></li>').format(stage.why, stage.stage, how)


# The parts of the page


def _part(part: _Part, record: RunRecord) -> Markup:
    missing = f"{part.stage} did not end in this run, so there is nothing to show."
    return Markup('<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>{2}</section>').format(
        part.name, part.title, part.body(record) if part.stage in ended(record) else _NOTE.format(missing)
    )


def _funnel(record: RunRecord) -> Markup:
    lines = funnel(record)
    total = [(f"All {len(lines)} sources", summed(lines.values()))] if len(lines) > 1 else []
    return _join(_source_line(source, steps) for source, steps in [*total, *lines.items()])


def _source_line(source: str, steps: list[Step]) -> Markup:
    read = steps[0].rows_in
    absent = Markup('<li class="absent"><span class="label">{} did not end</span></li>')
    shown = [
        _STEP.format("read", rows(read), "", _bar(read, 0, read), ""),
        *(_step(step, read) for step in steps),
        *(absent.format(stage) for stage in STAGES[len(steps) :]),
    ]
    return Markup('<article class="line"><h3>{}</h3><ol class="steps">{}</ol></article>').format(source, _join(shown))


def _step(step: Step, read: int) -> Markup:
    kept, item = step.rows_kept, Markup("<li><span>{}</span> <b>−{}</b></li>")
    lost = _join(item.format(reason, rows(number)) for reason, number in step.lost.items())
    reasons = Markup('<ul class="lost">{}</ul>').format(lost) if lost else ""
    return _STEP.format(
        f"after {step.stage}", rows(kept), share(kept, read), _bar(kept, step.rows_in - kept, read), reasons
    )


def _sources(record: RunRecord) -> Markup:
    found = ended(record)["collect"].figures["sources"]
    whole = sum(source["rows"] for source in found.values())
    return _table(["source", "format"], ["files", "rows", "share"], (_source(*item, whole) for item in found.items()))


def _source(name: str, source: dict[str, Any], whole: int) -> Markup:
    numbers = rows(source["files"]), rows(source["rows"]), share(source["rows"], whole)
    line = _line(name, *numbers, cell=Markup("<td>{}</td>").format(source["format"]))
    columns = {column: " or ".join(kinds) or "always empty" for column, kinds in source["columns"].items()}
    items = _join(Markup("<li><code>{}</code> {}</li>").format(*column) for column in columns.items())
    return _SOURCE.format(line, items)


def _cleaning(record: RunRecord) -> Markup:
    found = ended(record)["clean"].figures
    none = "No row holds a piece of a benchmark."
    if not record.config["clean"]["decontaminate"]["against"]:
        none = "No benchmark is named in clean.decontaminate.against, so none was looked for."
    return _alike(record) + _PAIR.format(
        _counted("Rows found in benchmarks", ["benchmark: reason", "rows"], found["contaminated"], none),
        _counted("Repairs", ["repair", "texts changed"], found["repaired"], "No text was changed."),
    )


def _counted(title: str, header: list[str], counts: Counts, none: str) -> Markup:
    lines = [_line(name, rows(number)) for name, number in counts.items()]
    return _TITLED.format(title, _table(header[:1], header[1:], lines) if lines else _NOTE.format(none))


def _alike(record: RunRecord) -> Markup:
    """Rows that are like others: what was found, and what the policies made of it."""
    policy = Markup("<td><code>{}</code></td>")
    lines = [
        _line(each.kind, rows(each.found), rows(each.rejected), cell=policy.format(each.policy))
        for each in alike(record)
    ]
    table = _table(["rows that are …", "policy"], ["found", "rejected"], lines)
    note = _NOTE.format("Of rows that are alike, the one that stands for them is not counted as found.")
    clusters = [
        {"place": each["place"], "detail": f"{rows(each['rows'])} rows", "row": each["text"]}
        for each in ended(record)["clean"].figures["clusters"]
    ]
    largest = _first("Largest groups of near-duplicates", len(clusters), clusters) if clusters else ""
    return _TITLED.format("Rows like others", table + note + largest)


def _lengths(record: RunRecord) -> Markup:
    halves = {
        "Prompts": _changes("characters", by_length(record, "prompt_chars")),
        "Answers": _changes("characters", by_length(record, "answer_chars")),
    }
    return _beside("Rows by length in characters.", Markup('<div class="histogram">{}</div>'), halves)


def _kinds(record: RunRecord) -> Markup:
    note = _NOTE.format("Of the answers in a sample of about one row in 50.")
    halves = {
        "Tasks": _changes("task", by_name(record, "tasks")),
        "Languages": _changes("language", by_name(record, "languages")) + note,
    }
    return _beside("Rows before and after clean.", Markup("<div>{}</div>"), halves)


def _beside(text: str, half: Markup, tables: dict[str, Markup]) -> Markup:
    """Two tables of changes side by side, under what they are about."""
    halves = _join(half.format(_TITLED.format(title, table)) for title, table in tables.items())
    return Markup('<p class="note">{} {}</p><div class="pair">{}</div>').format(text, _LEGEND, halves)


def _split(record: RunRecord) -> Markup:
    figures = ended(record)["split"].figures
    whole = sum(figures[name] for name in SPLITS)
    sizes = [_line(name, rows(figures[name]), share(figures[name], whole)) for name in SPLITS]
    method = _NOTE.format(f"Method: {record.config['split']['method']}.")
    return _PAIR.format(
        _TITLED.format("Sizes", _table(["split"], ["rows", "share"], sizes) + method),
        _TITLED.format("Leak", _leak(figures["leak"])),
    )


def _leak(leak: dict[str, dict[str, Any]]) -> Markup:
    """How many rows of validation and test stand in train as well, and the first of them."""
    tests = ("exact", "normalised", "near_duplicate")
    lines = [
        _line(name, *(rows(found[test]) for test in tests), share(found["ratio"], 1)) for name, found in leak.items()
    ]
    table = _table(["split"], ["exact", "normalised", "near-duplicate", "share"], lines)
    note = _NOTE.format(
        "Rows that stand in train as well: equal; equal but for spaces, case and Unicode form; nearly equal; "
        "and the share of rows that are any of these."
    )
    first = _join(Markup("<li>{}</li>").format(pair) for found in leak.values() for pair in found["first"])
    return _join([table, note, *([_FOLD.format("The first of them", "", "", _FIRST.format(first))] if first else [])])


def _samples(record: RunRecord) -> Markup:
    store = record.config["store"]
    return _join(_TITLED.format(stage.stage, _rejected(stage, store)) for stage in ended(record).values())


def _rejected(stage: StageRecord, store: str) -> Markup:
    if not stage.rejected:
        return _NOTE.format("No row was rejected.")
    samples = stage.figures["rejected_samples"]
    folds = [_first(reason, number, samples[reason]) for reason, number in ranked(stage.rejected).items()]
    where = Markup('<p class="note">All of them: <code>{}/{}/{}/rejected/</code></p>')
    return _join([*folds, where.format(store, stage.stage, stage.key)])


# What the parts are made of


def _changes(kind: str, lines: Sequence[Change]) -> Markup:
    """A table of names with rows before and after, and bars; lines past SHOWN are folded unless they are lengths."""
    if not lines:
        return _NOTE.format("No row.")
    whole = max(max(line.before, line.after) for line in lines)
    shown = len(lines) if kind == "characters" else SHOWN
    first, rest = (
        _table([kind, ""], ["before", "after", "change"], [_change(line, whole) for line in part])
        for part in (lines[:shown], lines[shown:])
    )
    return first + _FOLD.format(f"{len(lines) - shown} more", "", "", rest) if lines[shown:] else first


def _change(line: Change, whole: int) -> Markup:
    before, after = rows(line.before), rows(line.after)
    bar = _bar(line.after, max(0, line.before - line.after), whole)
    cell = Markup('<td class="bars" title="{}: {} before, {} after">{}</td>').format(line.name, before, after, bar)
    return _line(line.name or "(none)", before, after, gained(line.before, line.after), cell=cell)


def _bar(kept: int, lost: int, whole: int) -> Markup:
    """A bar of kept rows, and behind it those that were lost; the numbers stand beside it as text."""
    pieces = [
        Markup('<i class="{}" style="width:{:.2f}%"></i>').format(name, 100 * part / max(1, whole))
        for name, part in (("is-kept", kept), ("is-lost", lost))
        if part
    ]
    return Markup('<span class="bar" aria-hidden="true">{}</span>').format(_join(pieces))


def _table(texts: Sequence[str], numbers: Sequence[str], lines: Iterable[Markup]) -> Markup:
    """A table whose first columns are texts and whose others are numbers."""
    cells = [Markup('<th scope="col">{}</th>').format(name) if name else Markup("<td></td>") for name in texts]
    cells += [Markup('<th scope="col" class="n">{}</th>').format(name) for name in numbers]
    return _TABLE.format(_join(cells), _join(lines))


def _line(name: str, *numbers: str, cell: str = "") -> Markup:
    """A line of a table: its name, a cell of its own kind, numbers."""
    cells = _join(Markup('<td class="n">{}</td>').format(number) for number in numbers)
    return Markup('<tr><th scope="row">{}</th>{}{}</tr>').format(name, cell, cells)


def _first(title: str, number: int, samples: list[dict[str, str]]) -> Markup:
    """The first of some rows, folded under how many there are."""
    shown = _join(_SAMPLE.format(**sample) for sample in samples)
    note = f"the first {len(samples)}" if len(samples) < number else ""
    return _FOLD.format(title, rows(number), note, _FIRST.format(shown))


_PARTS = (
    _Part("funnel", "Where the rows went", "collect", _funnel),
    _Part("sources", "Sources", "collect", _sources),
    _Part("cleaning", "What clean found and changed", "clean", _cleaning),
    _Part("lengths", "Lengths before and after clean", "clean", _lengths),
    _Part("kinds", "Tasks and languages", "clean", _kinds),
    _Part("split", "Split", "split", _split),
    _Part("samples", "Rejected rows", "collect", _samples),
)
