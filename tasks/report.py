"""Tables of a run: what the terminal shows at its end, and report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tasks.layout import CURVES
from tasks.run_record import RunFolder, RunRecord

ROWS, LOSSES, EVALUATION = "Where the rows went", "Losses", "Base against tuned"
"""Pictures of a report, and the headings that they stand under."""


def closing_table(record: RunRecord) -> Group:
    """Stages with their rows, tokens, and base against tuned."""
    evaluated = [_evaluation_table(record)] if record.evaluation else []
    return Group(_stage_table(record), *map(Text, _token_lines(record)), *evaluated)


def write_report(folder: RunFolder) -> Path:
    """Write report.md beside run.json."""
    pictures = {LOSSES: CURVES} if (folder.path / CURVES).exists() else {}
    path = folder.path / "report.md"
    path.write_text("\n".join(report(folder.record, pictures, [])), encoding="utf-8")
    return path


def report(record: RunRecord, pictures: Mapping[str, str], more: Sequence[str]) -> list[str]:
    """The report as lines of Markdown.

    pictures: where a picture lies, of ROWS, LOSSES and EVALUATION; those that are missing are left out.
    more: lines that stand under its head.
    """
    lines = [f"# {record.name}", "", f"{record.state} · {record.started} to {record.ended}", "", *more]
    if record.skipped_runs:
        lines += [f"{record.skipped_runs} scheduled runs were skipped while the last one was going on.", ""]
    if record.error:
        lines += ["## What failed", "", escaped(record.error), ""]
    lines += ["## Stages", "", *markdown(_stage_rows(record)), ""]
    lines += [*(f"- {line}" for line in _token_lines(record)), ""]
    if ROWS in pictures:
        lines += [f"## {ROWS}", "", f"![Rows that each stage kept]({pictures[ROWS]})", ""]
    if LOSSES in pictures:
        lines += [f"## {LOSSES}", "", f"![Training and validation loss by step]({pictures[LOSSES]})", ""]
    if record.evaluation:
        lines += [f"## {EVALUATION}", ""]
        if EVALUATION in pictures:
            lines += [f"![Metrics of each system on the test split]({pictures[EVALUATION]})", ""]
        lines += [*markdown(_evaluation_rows(record, tasks=False)), ""]
        lines += ["### By task", "", *markdown(_evaluation_rows(record, tasks=True)), ""]
        lines += ["## Answers", "", *markdown(_sample_rows(record)), ""]
    return lines


Rows = list[list[str]]


def _stage_rows(record: RunRecord) -> Rows:
    header = ["stage", "key", "cache", "rows in", "kept", "rejected", "seconds"]
    return [header] + [
        [
            stage.stage,
            stage.key[:12],
            "cached" if stage.cached else "ran",
            str(stage.rows_in),
            str(stage.rows_kept),
            ", ".join(f"{reason} {rows}" for reason, rows in stage.rejected.items()) or "0",
            f"{stage.seconds:.1f}",
        ]
        for stage in record.stages
    ]


def _token_lines(record: RunRecord) -> list[str]:
    """What format made of each split."""
    figures = next((stage.figures for stage in record.stages if stage.stage == "format"), {})
    return [
        f"{split}: {found['rows']} examples, {found['tokens']} tokens, {found['supervised_tokens']} of them supervised"
        for split, found in figures.items()
        if "supervised_tokens" in found
    ]


def _evaluation_rows(record: RunRecord, *, tasks: bool) -> Rows:
    """One line per part and metric, one column per system."""
    systems = list(record.evaluation)
    table = record.evaluation[systems[-1]]
    return [["part", "rows", "metric", *systems]] + [
        [
            part.partition(":")[2] or "all of test",
            str(score.rows),
            metric,
            *(f"{record.evaluation[system][part][metric].value:.3f}" for system in systems),
        ]
        for part, scores in table.items()
        for metric, score in scores.items()
        if part.startswith("task:") == tasks
    ]


def _sample_rows(record: RunRecord) -> Rows:
    """The answers of all systems to the same few rows."""
    systems = list(record.evaluation)
    samples = next(stage.figures["samples"] for stage in record.stages if stage.stage == "evaluate")
    return [["task", "prompt", "reference", *systems]] + [
        [row["task"], row["prompt"], row["reference"], *(row["answers"][system] for system in systems)]
        for row in samples
    ]


def markdown(rows: Rows) -> list[str]:
    """A table in Markdown, a line each; the first row is its header, and long cells are cut."""
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    """One line of Markdown that shows `text` as it is, cut to a readable length."""
    flat = " ".join(text.split())
    cut = flat if len(flat) <= 160 else flat[:159] + "…"
    return escaped(cut)


def escaped(text: str) -> str:
    """Markdown that shows `text` as it is: nothing in it becomes a link, an image or an element."""
    return "".join(f"\\{c}" if c in "|*_`<>[]\\" else c for c in text)


def _stage_table(record: RunRecord) -> Table:
    header, *body = _stage_rows(record)
    table = Table(title=f"{record.name}: {record.state}", title_justify="left")
    for name in header:
        table.add_column(name, justify="right" if name in {"rows in", "kept", "seconds"} else "left", overflow="fold")
    for row in body:
        table.add_row(*map(Text, row))
    return table


def _evaluation_table(record: RunRecord) -> Table:
    header, *body = _evaluation_rows(record, tasks=False)
    table = Table(title="Base against tuned, on the test split", title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name in {"part", "metric"} else "right")
    for row in body:
        table.add_row(*map(Text, row))
    return table
