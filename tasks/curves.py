"""Plots as SVG: loss curves of a training, and what a sweep tried.

Equal input gives equal bytes.  The background is clear and the colours are of middle brightness, so that a plot can be
read on a light page and on a dark one; text stays text.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

COLOURS = {"tuned": "#2f7fd0", "scratch": "#d07020"}
INK, FAINT, GOOD = "#808080", "#80808055", "#2e9e5b"
SMOOTHING = 0.8
"""Share of the old mean that each new training loss leaves in the smoothed curve."""

_STYLE = {
    "svg.hashsalt": "attune",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,  # a dollar in a name is a dollar
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
}


class Panel(NamedTuple):
    """The trials of a sweep by one parameter."""

    name: str
    log: bool
    values: Sequence[Any]  # of the parameter; drawn side by side where they are no numbers
    figures: Sequence[float]  # of the metric
    ended: Sequence[str]  # how each trial ended: complete, pruned or best


def draw(records: Sequence[Mapping[str, Any]], path: Path, best: Mapping[str, int]) -> None:
    """Draw training and validation loss of each system by step.

    records: rows of HISTORY; best: the step of the checkpoint that was kept, by system.
    """
    with figure_in(path, 7.0, 4.2) as figure:
        axes = figure.subplots()
        for system in dict.fromkeys(record["system"] for record in records):
            _draw_system(axes, system, [record for record in records if record["system"] == system], best[system])
        axes.set(xlabel="optimizer step", ylabel="loss per supervised token (nats)")
        axes.legend(loc="upper right")


def _draw_system(axes: Axes, system: str, records: Sequence[Mapping[str, Any]], best: int) -> None:
    colour = COLOURS.get(system, INK)
    trained = _series(records, "loss")
    axes.plot(*trained, color=colour, linewidth=0.6, alpha=0.45)
    axes.plot(trained[0], smoothed(trained[1]), color=colour, linewidth=1.6, label=f"{system}: training")
    validated = _series(records, "validation_loss")
    axes.plot(*validated, "o--", color=colour, linewidth=1.2, markersize=4, label=f"{system}: validation")
    at_best = [loss for step, loss in zip(*validated, strict=True) if step == best]
    axes.plot([best] * len(at_best), at_best, "*", color=colour, markersize=13, label=f"{system}: kept, step {best}")


def _series(records: Sequence[Mapping[str, Any]], column: str) -> tuple[list[int], list[float]]:
    """Steps and values of a column, where it has one."""
    rows = [record for record in records if record[column] is not None]
    return [record["step"] for record in rows], [record[column] for record in rows]


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average without the pull to its beginning (Kingma & Ba 2014, arXiv:1412.6980, section 3)."""
    mean, found = 0.0, []
    for number, value in enumerate(values, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        found.append(mean / (1 - SMOOTHING**number))
    return found


def draw_trials(panels: Sequence[Panel], metric: str, path: Path) -> None:
    """Draw the metric of each trial by each parameter; a pruned trial stands where it was when it was ended."""
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    with figure_in(path, 1 + 3.2 * columns, 0.6 + 2.7 * lines) as figure:
        every = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
        for axes, panel in zip(every, panels, strict=False):
            _draw_panel(axes, panel)
        for axes in every[len(panels) :]:
            axes.remove()
        figure.supylabel(metric, fontsize=11)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    looks = {"pruned": ("x", INK, 6), "complete": ("o", COLOURS["tuned"], 5), "best": ("*", GOOD, 13)}
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in panel.values)
    names = [] if numbers else sorted({str(value) for value in panel.values})
    places = panel.values if numbers else [names.index(str(value)) for value in panel.values]
    for ended, (marker, colour, size) in looks.items():
        chosen = [number for number, each in enumerate(panel.ended) if each == ended]
        axes.plot(
            [places[number] for number in chosen],
            [panel.figures[number] for number in chosen],
            marker, color=colour, markersize=size, label=ended,
        )  # fmt: skip
    if panel.log:
        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
    if names:
        axes.set_xticks(range(len(names)), names)
    axes.set_xlabel(panel.name)


@contextmanager
def figure_in(target: Path | BytesIO, width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, which is written into `target` as SVG at the end."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
