"""Pictures of a run: they show what the records say, whatever names the data brings."""

import base64
import re
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data_report import HOSTILE

from tasks import pictures
from tasks.curves import COLOURS, INK
from tasks.funnel import Step
from tasks.layout import SPLITS

SVG = "{http://www.w3.org/2000/svg}"
STEPS = [
    Step("collect", 20_069, {"invalid_json": 60}),
    Step("clean", 20_009, {"too_long": 500, "empty": 40, "broken_text": 9, "duplicate_of": 5, "too_short": 1}),
]
EVALUATION = {
    system: {
        part: {"loss": {"value": loss, "rows": 844}, "exact_match": {"value": match, "rows": 844}}
        for part in ("test", "task:add")
    }
    for system, loss, match in (("base", 5.25, 0.0), ("scratch", 2.5, 0.018), ("tuned", 0.125, 0.903))
}


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314


def bars(svg: str, colour: str) -> list[tuple[float, float]]:
    """Left and right end of the bars of a colour, in points, from top to bottom."""
    paths = re.findall(rf'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*"[^>]*style="fill: {colour}"', svg)
    return [(float(left), float(right)) for left, right in paths]


def test_a_funnel_shows_what_was_read_what_each_stage_kept_and_why_rows_went():
    svg = pictures.funnel(STEPS)
    shown = texts(svg)
    assert {"read", "after collect", "after clean"} <= set(shown)
    assert [text for text in shown if re.fullmatch(r"[\d,]+", text)] == ["20,069", "20,009", "19,454"]
    assert {"100 %", "99.7 %", "96.9 %"} <= set(shown)
    assert "invalid_json 60" in shown
    assert "too_long 500, empty 40, broken_text 9, and 2 more" in shown


def test_bars_are_as_long_as_their_rows_and_lost_rows_stand_behind_kept_ones():
    svg = pictures.funnel(STEPS)
    (begin, end), *kept = bars(svg, pictures.KEPT)
    row = (end - begin) / 20_069
    assert [right - left for left, right in kept] == pytest.approx([row * step.rows_kept for step in STEPS], rel=1e-3)
    lost = bars(svg, pictures.LOST)
    assert [left for left, _ in lost] == pytest.approx([right for _, right in kept])
    gone = [row * (step.rows_in - step.rows_kept) for step in STEPS]
    assert [right - left for left, right in lost] == pytest.approx(gone, rel=1e-2)


@pytest.mark.parametrize("text", [*HOSTILE, "$x^{$", "分词器", "\u202egpj.exe"])
def test_names_of_the_data_are_drawn_as_they_are(text: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = pictures.funnel([Step("collect", 9, {text: 1})])
    whole = f"{text} 1"
    assert (whole if len(whole) <= 90 else f"{whole[:90]}…") in texts(svg)
    assert {node.tag for node in ElementTree.fromstring(svg).iter()} == {  # noqa: S314
        node.tag
        for node in ElementTree.fromstring(pictures.funnel([Step("collect", 9, {"x": 1})])).iter()  # noqa: S314
    }


def test_a_run_without_a_row_has_a_picture():
    assert "0" in texts(pictures.funnel([Step("collect", 0, {})]))


def test_lengths_are_shares_of_each_split():
    tokens = {
        "train": np.array([10] * 30 + [40] * 10),
        "validation": np.array([40] * 5),
        "test": np.array([], np.int32),
    }
    svg = pictures.lengths(tokens)
    shown = texts(svg)
    assert {"train: 40 rows", "validation: 5 rows", "test: 0 rows"} <= set(shown)
    assert "tokens of an example" in shown and "100" in shown  # all of validation has one length


def test_lengths_are_counted_from_the_artifact_of_format(tmp_path: Path):
    for number, name in enumerate(SPLITS):
        (tmp_path / name).mkdir()
        rows = [[1] * (number + 1), [1] * 7]
        pq.write_table(
            pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}), tmp_path / name / "part-00000.parquet"
        )
    found = pictures.token_lengths(tmp_path)
    assert {name: each.tolist() for name, each in found.items()} == {
        "train": [1, 7],
        "validation": [2, 7],
        "test": [3, 7],
    }


def test_systems_stand_beside_each_other_with_their_values_and_rows():
    svg = pictures.compared(EVALUATION)
    shown = texts(svg)
    assert {"5.250", "2.500", "0.125", "0.000", "0.018", "0.903"} <= set(shown)
    assert [text for text in shown if text in EVALUATION] == ["base", "scratch", "tuned"] * 2
    assert "loss, lower is better" in shown and "exact_match" in shown and shown.count("844 rows") == 2
    assert all(colour in svg for colour in (*COLOURS.values(), INK))


def test_equal_input_gives_equal_bytes_on_a_clear_background():
    svg = pictures.compared(EVALUATION)
    assert svg == pictures.compared(EVALUATION) and "<dc:date>" not in svg
    background = re.search(r'<g id="patch_1">\s*<path[^>]*style="([^"]*)"', svg)
    assert background is None or "fill: none" in background[1] or "opacity: 0" in background[1]


def test_the_address_of_a_picture_is_the_picture():
    kind, _, data = pictures.data_uri("<svg>ü</svg>").partition(",")
    assert kind == "data:image/svg+xml;base64" and base64.b64decode(data).decode() == "<svg>ü</svg>"
