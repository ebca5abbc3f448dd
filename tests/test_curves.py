"""Plots: they show what the records say, in the same bytes each time, on light and on dark pages."""

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tasks.curves import COLOURS, GOOD, INK, Panel, draw, draw_trials, smoothed


def row(system: str, step: int, **values: float) -> dict[str, Any]:
    return {"system": system, "step": step, "loss": None, "validation_loss": None} | values


RECORDS = [
    each
    for system, height in (("tuned", 2.0), ("scratch", 5.0))
    for step in range(1, 41)
    for each in (
        row(system, step, loss=height / step),
        *([row(system, step, validation_loss=height / step + 0.1)] if step % 10 == 0 else []),
    )
]
BEST = {"tuned": 40, "scratch": 30}


def texts(path: Path) -> list[str]:
    return [node.text or "" for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


def test_each_system_has_training_and_validation_and_the_step_that_was_kept(tmp_path):
    draw(RECORDS, tmp_path / "a.svg", BEST)
    shown = texts(tmp_path / "a.svg")
    for system, step in BEST.items():
        assert {f"{system}: training", f"{system}: validation", f"{system}: kept, step {step}"} <= set(shown)
    assert "optimizer step" in shown and "loss per supervised token (nats)" in shown
    drawn = (tmp_path / "a.svg").read_text()
    assert all(colour in drawn for colour in COLOURS.values())


def test_equal_records_give_equal_bytes_without_a_date_and_on_a_clear_background(tmp_path):
    draw(RECORDS, tmp_path / "a.svg", BEST)
    draw(RECORDS, tmp_path / "b.svg", BEST)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert "<dc:date>" not in drawn and "matplotlib.org" not in re.sub(r"<!--.*?-->", "", drawn)
    background = re.search(r'<g id="patch_1">\s*<path[^>]*style="([^"]*)"', drawn)
    assert background is None or "fill: none" in background[1] or "opacity: 0" in background[1]


@pytest.mark.parametrize("colour", [INK, GOOD, *COLOURS.values()])
def test_the_colours_can_be_read_on_white_and_on_black(colour):
    """At least 3:1, which WCAG 2.2 asks of graphics."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    luminance = sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 3 and (luminance + 0.05) / 0.05 >= 3


def test_a_training_without_a_validation_or_of_one_step_can_be_drawn(tmp_path):
    draw([row("tuned", 1, loss=3.0)], tmp_path / "a.svg", {"tuned": 1})
    assert "tuned: training" in texts(tmp_path / "a.svg")


def test_smoothing_keeps_a_level_and_begins_at_the_first_value():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smoothed([4.0, 0.0])[0] == pytest.approx(4.0)
    assert 0 < smoothed([4.0] + [0.0] * 9)[-1] < 1
    assert smoothed([]) == []


def test_each_parameter_of_a_sweep_has_a_panel_and_a_log_scale_where_it_was_searched_so(tmp_path):
    rates = [10**-power for power in range(1, 6)]
    figures = [abs(math.log10(rate) + 3) for rate in rates]
    ended = ["complete", "pruned", "best", "complete", "complete"]
    panels = [
        Panel("rate", True, rates, figures, ended),
        Panel("rank", False, [4, 8, 8, 16, 4], figures, ended),
        Panel("optimizer", False, ["sgd", "adam", None, True, ["a"]], figures, ended),
        Panel("epochs", False, [1.0, 2.0, 3.0, 4.0, 5.0], figures, ended),
    ]
    draw_trials(panels, "loss", tmp_path / "a.svg")
    shown = texts(tmp_path / "a.svg")
    assert {"rate", "rank", "optimizer", "epochs", "loss"} <= set(shown)
    assert {"0.1", "0.001"} <= set(shown), "evenly in the logarithm"
    assert {"sgd", "adam", "None", "True", "['a']"} <= set(shown)
    assert (tmp_path / "a.svg").read_text().count(GOOD) >= 4
