"""The data report: it shows what the record says, no text of the data becomes markup, and every run has one."""

import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tasks.config import PipelineConfig
from tasks.data_report import page, write_data_report
from tasks.funnel import STAGES, mistakes, sentence
from tasks.run_record import RunFolder, RunRecord, StageRecord

ROOT = Path(__file__).parent.parent
FRAME = (ROOT / "tasks" / "data_report.html").read_text()

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></li></ol></details></section><h1>gone</h1><!-- links -->",
    "&lt;b&gt; {name} {0} %s $x \\1",
    "<svg/onload=alert(1)>" + "x" * 400,
    "<style>body{display:none}</style><base href=//evil>",
]

FUNNELS: dict[str, dict[str, dict[str, int]]] = {
    "collect": {"a": {"rows_in": 15_000}, "b": {"rows_in": 5_060, "invalid_json": 60}, "c": {"rows_in": 9}},
    "clean": {
        "a": {"rows_in": 15_000, "too_long": 26, "duplicate_of": 15},
        "b": {"rows_in": 5_000, "too_long": 4},
        "c": {"rows_in": 9, "conflicts_with": 9},
    },
    "split": {"a": {"rows_in": 14_959, "joins_two_splits": 1}, "b": {"rows_in": 4_996}},
    "format": {"a": {"rows_in": 14_958}, "b": {"rows_in": 4_996, "too_many_tokens": 952}},
}
SIZES = {"train": 17_954, "validation": 1_000, "test": 1_000}
LEAK = {"exact": 0, "normalised": 1, "near_duplicate": 2, "ratio": 0.002}
FIGURES: dict[str, dict[str, Any]] = {
    "collect": {
        "sources": {
            name: {"format": "alpaca", "columns": {"instruction": ["text"], "input": []}, "files": 2, "rows": rows}
            for name, rows in (("a", 15_000), ("b", 5_060), ("c", 9))
        }
    },
    "clean": {
        "repaired": {"fix_text": 1_234},
        "contaminated": {"bench.jsonl: in_benchmark": 31},
        "before": {
            "tasks": {"chat": 20_000, "code": 9},
            "languages": {"en": 900, "de": 100},
            "prompt_chars": {"8": 9, "32": 20_000},
            "answer_chars": {"1": 9, "64": 20_000},
        },
        "after": {
            "tasks": {"chat": 19_955},
            "languages": {"en": 900, "de": 99},
            "prompt_chars": {"32": 19_955},
            "answer_chars": {"64": 19_955},
        },
        "duplicates": 15,
        "conflicts": 9,
        "near_duplicates": 6,
        "near_duplicate_pairs": 7,
        "clusters": [{"rows": 3, "place": "a:17", "text": "How many?\nThree."}],
    },
    "split": {
        **SIZES,
        "leak": {
            name: {"rows": 1_000, **LEAK, "first": [f"a:{line} ~ a:1"]}
            for name, line in (("validation", 5), ("test", 6))
        },
    },
    "format": {
        "train": {"rows": 17_005},
        "validation": {"rows": 998},
        "test": {"rows": 999},
    },
}


def record(stages: int = 4, *, error: str = "") -> RunRecord:
    """A run in which the first `stages` of STAGES ended."""
    config = PipelineConfig(
        name="nightly", collect={"sources": [{"path": "a"}]}, clean={"decontaminate": {"against": ["bench.jsonl"]}}
    )
    return RunRecord(
        name="nightly",
        state="failed" if error else "completed",
        error=error,
        started="2026-01-01T23:59:30Z",
        ended="2026-01-02T01:02:03Z",
        config=config.model_dump(mode="json"),
        stages=[stage(name) for name in STAGES[:stages]],
        evaluation={},
        export=None,
    )


def stage(name: str) -> StageRecord:
    """A stage with its FUNNELS and FIGURES, and the counts that follow from them."""
    lost: dict[str, int] = {}
    for counts in FUNNELS[name].values():
        for reason, rows in counts.items():
            lost[reason] = lost.get(reason, 0) + rows
    rows_in = lost.pop("rows_in")
    samples = {reason: [{"place": f"a:{reason}", "detail": f"why {reason}", "row": f"row {reason}"}] for reason in lost}
    return StageRecord(
        stage=name,
        key="k" * 32,
        digest="d" * 64,
        cached=name == "collect",
        why="cached",
        rows_in=rows_in,
        rows_kept=rows_in - sum(lost.values()),
        rejected=lost,
        seconds=1.5,
        peak_memory_bytes=1,
        figures=FIGURES[name] | {"funnel": FUNNELS[name], "rejected_samples": samples},
    )


def hostile(record: RunRecord, text: str) -> RunRecord:
    """The run as if all that comes from the data, names included, ended in `text`."""

    def spoil(value: Any, *, names: bool) -> Any:
        if isinstance(value, dict):
            return {key + text if names else key: spoil(item, names=names) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item, names=names) for item in value]
        return value + text if isinstance(value, str) else value

    spoilt = record.model_copy(deep=True)
    spoilt.error, spoilt.config["store"] = spoilt.error + text, "s" + text
    for stage in spoilt.stages:
        for name in ("clusters", "leak", "rejected_samples"):
            stage.figures[name] = spoil(stage.figures.get(name, []), names=False)
        for name in ("repaired", "contaminated"):
            stage.figures[name] = spoil(stage.figures.get(name, {}), names=True)
        for name in ("before", "after"):
            kinds = stage.figures.get(name, {})
            stage.figures[name] = {
                kind: counts if kind.endswith("_chars") else spoil(counts, names=True) for kind, counts in kinds.items()
            }
        stage.figures["funnel"] = {source + text: counts for source, counts in stage.figures["funnel"].items()}
        stage.figures["sources"] = {
            source + text: found | {"columns": spoil(found["columns"], names=True)}
            for source, found in stage.figures.get("sources", {}).items()
        }
        stage.why += text
    return spoilt


class Page(HTMLParser):
    """What a page holds: its elements in order with their attributes, and its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append([tag, *(part or "" for attribute in attrs for part in attribute)])

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def words(html: str) -> str:
    """The text of a page's body, with one space between words."""
    return " ".join(" ".join(Page(html.partition("</head>")[2]).texts).split())


def test_the_page_lies_beside_the_record_and_is_made_of_it_alone(tmp_path):
    folder = RunFolder(tmp_path, "nightly", record().config)
    folder.record.stages = record().stages
    folder.end()
    path = write_data_report(folder)
    assert path == folder.path / "data.html"
    again = RunRecord.model_validate_json((folder.path / "run.json").read_text())
    assert page(again) == path.read_text(encoding="utf-8")


def test_the_top_says_when_it_ran_and_what_happened():
    text = words(page(record()))
    assert sentence(record()) in text
    assert "2026-01-01 23:59:30 UTC to 2026-01-02 01:02:03 (1 h 2 min)" in text


def test_counts_that_do_not_add_up_are_shown_on_top():
    run = record()
    assert "do not add up" not in page(run)
    run.stages[1].rejected = run.stages[1].rejected | {"too_long": 31}
    (message,) = mistakes(run)
    text = words(page(run))
    assert text.index("The counts do not add up") < text.index(message) < text.index("rows were read")


@pytest.mark.parametrize("stages", range(5))
def test_a_failed_run_shows_its_error_on_top_and_what_did_not_end(stages: int):
    error = "source x.jsonl: 5 of 6 rows are bad"
    html = page(record(stages, error=error))
    text = words(html)
    assert text.index("failed") < text.index(error) < text.index("Where the rows went")
    for name, title in (("collect", "Sources"), ("clean", "Tasks and languages"), ("split", "Split")):
        part = html.partition(f'">{title}</h2>')[2].partition("</section>")[0]
        assert (f"{name} did not end in this run" in part) == (name not in STAGES[:stages])
    assert ("format did not end" in text) == (0 < stages < 4)


def test_a_run_whose_rows_were_all_rejected_has_a_report():
    run = record(2).model_copy(deep=True)
    run.stages[1].figures |= {"before": {}, "after": {}, "clusters": [], "contaminated": {}, "repaired": {}}
    text = words(page(run))
    assert "No text was changed." in text
    assert "No row holds a piece of a benchmark." in text
    run.config["clean"]["decontaminate"]["against"] = []
    assert "No benchmark is named" in words(page(run))


def test_every_part_shows_its_figures():
    text = words(page(record()))
    for shown in (
        "a alpaca 2 15,000 74.7 % instruction text input always empty",
        "equal to another keep_first 15 15",
        "another answer to the same prompt keep_all 9 9",
        "nearly equal to another (7 pairs) keep_first 6 0",
        "a:17 3 rows How many? Three.",
        "bench.jsonl: in_benchmark 31",
        "fix_text 1,234",
        "4 – 7 9 0 −9 8 – 15 0 0 0 16 – 31 20,000 19,955 −45",
        "0 9 0 −9 1 0 0 0 2 – 3 0 0 0",
        "code 9 0 −9",
        "de 100 99 −1",
        "train 17,954 90.0 %",
        "test 0 1 2 0.2 %",
        "a:6 ~ a:1",
        "too_many_tokens 952 the first 1 a:too_many_tokens why too_many_tokens row too_many_tokens",
        "data/artifacts/clean/" + "k" * 32 + "/rejected/",
    ):
        assert shown in text


def test_a_total_is_shown_over_several_sources_only():
    run = record(1).model_copy(deep=True)
    assert "<h3>All 3 sources</h3>" in page(run)
    run.stages[0].figures["funnel"] = {"a": {"rows_in": 15_000}}
    assert not re.search("<h3>All . source", page(run))


def test_a_long_list_of_tasks_is_folded():
    run = record(2).model_copy(deep=True)
    tasks = {f"task {number}": 100 - number for number in range(31)}
    run.stages[1].figures["before"]["tasks"] = run.stages[1].figures["after"]["tasks"] = tasks
    html = page(run)
    assert html.index("task 11") < html.index("19 more") < html.index("task 12")
    assert all(f'title="{name}: {rows} before' in html for name, rows in tasks.items())


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_the_data_becomes_markup(text: str):
    plain, spoilt = (Page(page(hostile(record(error="bad "), each))) for each in ("¤", text))
    assert spoilt.elements == [[part.replace("¤", text) for part in element] for element in plain.elements]
    assert "".join(spoilt.texts) == "".join(plain.texts).replace("¤", text)
    assert "".join(plain.texts).count("¤") > 40


def test_characters_that_cannot_be_seen_are_shown_by_their_code():
    html = page(hostile(record(), "\u202egpj.exe\x00\r\u200b\udc80\U000e0041"))
    assert "⟨U+202E⟩gpj.exe⟨U+0000⟩⟨U+000D⟩⟨U+200B⟩⟨U+DC80⟩⟨U+E0041⟩" in html
    assert not re.search("[\u202e\x00\r\u200b\udc80\U000e0041]", html)
    kept = "line\n\tמילה 👩\u200d🔬"
    assert kept in page(hostile(record(), kept))


def test_the_page_asks_for_nothing_and_runs_nothing():
    html = page(record())
    tags = {tag for tag, *_ in Page(html).elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|url\(|@import|\bsrc=", html)
    assert set(re.findall(r'href="([^"#]+)', html)) == {"run.json", "report.md"}


def test_headings_are_in_order_and_tables_have_headers():
    html = page(record())
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert html.count("<table>") == html.count("<thead>") > 5
    assert html.count("<th>") + html.count("<th ") == html.count('<th scope="')
    for row in re.findall(r"<tr>(?!<th scope)(.*?)</tr>", html, re.DOTALL):
        assert '<th scope="' in row
    links, parts = (set(re.findall(pattern, html)) for pattern in (r'href="#(\w+)"', r'<section id="(\w+)"'))
    assert links == parts


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_their_paper(scheme: str):
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", FRAME.partition("@media")[0]))
    if scheme == "dark":
        colours |= dict(
            re.findall(r"--([\w-]+): (#\w{6})", FRAME.partition("color-scheme: dark")[2].partition("* {")[0])
        )
    pairs = [(text, "paper") for text in ("text", "quiet", "link", "loss", "good", "bad")]
    for text, paper in [*pairs, ("text", "raised"), ("bad", "bad-paper"), ("text", "bad-paper")]:
        assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    for bar in ("kept", "lost"):
        assert contrast(colours[bar], colours["paper"]) >= 3, bar


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_it_imports_nothing_heavy():
    heavy = {"pandas", "pyarrow", "numpy", "matplotlib", "jinja2", "torch", "prefect"}
    code = f"import sys, tasks.data_report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_its_frame_is_installed_with_it():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "data_report.html" in packaged["tasks"]
