"""Tables of a run: what the terminal shows at its end, and report.md."""

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tasks.run_record import RunFolder, RunRecord


def closing_table(record: RunRecord) -> Group:
    """Stages with their rows, and base against tuned."""
    return Group(_stage_table(record), *([_evaluation_table(record)] if record.evaluation else []))


def write_report(folder: RunFolder) -> Path:
    """Write report.md beside run.json."""
    record = folder.record
    lines = [f"# {record.name}", "", f"{record.state} · {record.started} to {record.ended}", ""]
    if record.error:
        lines += ["## What failed", "", record.error, ""]
    lines += ["## Stages", "", *_markdown(_stage_rows(record)), ""]
    if record.evaluation:
        lines += ["## Base against tuned", "", *_markdown(_evaluation_rows(record, tasks=False)), ""]
        lines += ["### By task", "", *_markdown(_evaluation_rows(record, tasks=True)), ""]
        lines += ["## Answers", "", *_markdown(_sample_rows(record)), ""]
    path = folder.path / "report.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


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


def _evaluation_rows(record: RunRecord, *, tasks: bool) -> Rows:
    """One line per part, one column per system and metric."""
    systems = list(record.evaluation)
    table = record.evaluation[systems[-1]]
    names = list(table["test"])
    parts = [part for part in table if part.startswith("task:") == tasks]
    header = ["part", "rows", *(f"{name} {system}" for name in names for system in systems)]
    return [header] + [
        [
            part.partition(":")[2] or part,
            str(table[part][names[0]].rows),
            *(f"{record.evaluation[system][part][name].value:.3f}" for name in names for system in systems),
        ]
        for part in parts
    ]


def _sample_rows(record: RunRecord) -> Rows:
    """The answers of all systems to the same few rows."""
    systems = list(record.evaluation)
    samples = next(stage.figures["samples"] for stage in record.stages if stage.stage == "evaluate")
    return [["task", "prompt", "reference", *systems]] + [
        [row["task"], row["prompt"], row["reference"], *(row["answers"][system] for system in systems)]
        for row in samples
    ]


def _markdown(rows: Rows) -> list[str]:
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    """One line of Markdown that shows `text` as it is, cut to a readable length."""
    flat = " ".join(text.split())
    cut = flat if len(flat) <= 160 else flat[:159] + "…"
    return "".join(f"\\{c}" if c in "|*_`<>[]\\" else c for c in cut)


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
        table.add_column(name, justify="left" if name == "part" else "right")
    for row in body:
        table.add_row(*map(Text, row))
    return table
