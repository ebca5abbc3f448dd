"""Pictures of a run as SVG: where rows went, how long examples are, base against tuned.

They share the looks of `curves`: clear background, colours for light and dark pages, equal bytes for equal input.
"""

import base64
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.curves import COLOURS, GOOD, INK, figure_in
from tasks.funnel import Step, rows, share
from tasks.layout import SPLITS
from tasks.ledger import batches

KEPT, LOST = COLOURS["tuned"], COLOURS["scratch"]
REASONS = 3
"""Reasons that stand beside a stage's bar; its table has all of them."""

REASON_CHARS = 90
"""What has room under a bar."""

COUNTED_ROWS = 100_000
"""Rows of each split whose lengths are drawn."""

_BINS = 24


def funnel(steps: Sequence[Step]) -> str:
    """A bar for what was read and one for what each stage kept, with the reasons of what it rejected."""
    return _svg(7.0, 0.5 + 0.6 * (len(steps) + 1), lambda figure: _draw_funnel(figure.subplots(), steps))


def _draw_funnel(axes: Axes, steps: Sequence[Step]) -> None:
    read = steps[0].rows_in
    names = ["read", *(f"after {step.stage}" for step in steps)]
    kept = [read, *(step.rows_kept for step in steps)]
    axes.barh(names, kept, height=0.5, color=KEPT)
    axes.barh(names[1:], [step.rows_in - step.rows_kept for step in steps], height=0.5, left=kept[1:], color=LOST)
    for line, number in enumerate(kept):
        axes.text(1.17 * read, line, rows(number), va="center", ha="right")
        axes.text(1.34 * read, line, share(number, read), va="center", ha="right")
    for line, step in enumerate(steps, start=1):
        axes.text(0, line + 0.42, _reasons(step), va="center", fontsize=8.5)
    axes.set(xlim=(0, 1.35 * read or 1), ylim=(len(names) - 0.3, -0.4))
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.grid(visible=False)


def _reasons(step: Step) -> str:
    more = len(step.lost) - REASONS
    shown = [f"{name} {rows(number)}" for name, number in islice(step.lost.items(), REASONS)]
    text = ", ".join([*shown, f"and {more} more"] if more > 0 else shown)
    return text if len(text) <= REASON_CHARS else text[:REASON_CHARS] + "…"


def lengths(tokens: Mapping[str, np.ndarray]) -> str:
    """The share of examples by their length in tokens, a line for each split."""
    looks = dict(zip(SPLITS, ((KEPT, "-"), (LOST, "--"), (GOOD, ":")), strict=True))
    longest = max(int(each.max(initial=1)) for each in tokens.values())
    edges = np.linspace(0, longest, min(_BINS, longest) + 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, each in tokens.items():
            heights = 100 * np.histogram(each, edges)[0] / max(1, len(each))
            colour, line = looks[name]
            label = f"{name}: {rows(len(each))} rows"
            axes.stairs(heights, edges, color=colour, linestyle=line, linewidth=1.6, label=label)
        axes.set(xlabel="tokens of an example", ylabel="% of the rows of a split", ylim=(0, None), xlim=(0, None))
        axes.legend(loc="best")

    return _svg(7.0, 3.2, draw)


def token_lengths(artifact: Path) -> dict[str, np.ndarray]:
    """Split -> tokens of each of its first COUNTED_ROWS rows, from the artifact of format."""
    found = {}
    for name in SPLITS:
        tables = islice(batches(artifact / name, columns=["input_ids"]), COUNTED_ROWS // 10_000)
        counts = [pc.list_value_length(table["input_ids"]).to_numpy() for table in tables]
        found[name] = np.concatenate([np.empty(0, np.int32), *counts])
    return found


def compared(evaluation: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> str:
    """A panel for each metric over the whole test split, in it a bar for each system.

    evaluation: system -> part -> metric -> value and rows, as run.json has it.
    """
    tests = {system: parts["test"] for system, parts in evaluation.items()}
    metrics = list(next(iter(tests.values())))

    def draw(figure: Figure) -> None:
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            _draw_metric(axes, metric, {system: scores[metric] for system, scores in tests.items()})

    return _svg(max(4.0, 2.3 * len(metrics)), 3.2, draw)


def _draw_metric(axes: Axes, metric: str, scores: Mapping[str, Mapping[str, Any]]) -> None:
    values = [score["value"] for score in scores.values()]
    bars = axes.bar(list(scores), values, width=0.6, color=[COLOURS.get(system, INK) for system in scores])
    axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=2)
    title = "loss, lower is better" if metric == "loss" else metric
    axes.set_title(f"{title}\n{rows(next(iter(scores.values()))['rows'])} rows", fontsize=11)
    axes.set_ylim(0, 1.15 * max(values) if metric == "loss" else 1.05)
    axes.grid(visible=False, axis="x")


def _svg(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """A figure of that many inches as SVG; the browser has the letters that matplotlib's own font lacks."""
    out = BytesIO()
    with warnings.catch_warnings(), figure_in(out, width, height) as figure:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        draw(figure)
    return out.getvalue().decode()


def data_uri(svg: str) -> str:
    """A picture as the address of an image in Markdown."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
