"""The data report in a browser: what a person sees of it, and that nothing in it comes to life."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_data_report import HOSTILE, hostile, record

from tasks.data_report import write_data_report
from tasks.funnel import STAGES, funnel
from tasks.run_record import RunFolder, RunRecord

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

FUNNEL = """lines => lines.map(line => [
    line.querySelector('h3').textContent,
    [...line.querySelectorAll('.steps > li')].map(step => ({
        label: step.querySelector('.label').innerText,
        rows: step.querySelector('.count')?.innerText,
        lost: [...step.querySelectorAll('.lost b')].map(lost => lost.innerText),
    })),
])"""

OVER_THE_EDGE = """() => [...document.querySelectorAll('.steps > li, pre, summary, h1, h2, h3, p, table')].filter(
    each => each.getBoundingClientRect().right > innerWidth + 1).map(each => each.tagName)"""


def chromium() -> str | None:
    """The browser of the system or, None, the one that Playwright has installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium())
        except Error as error:
            pytest.fail(
                f"no Chromium for this test: install one (apt install chromium, or playwright install chromium), "
                f"or set CHROMIUM to its path\n{error}",
                pytrace=False,
            )
        yield browser
        browser.close()


def written(folder: Path, run: RunRecord) -> Path:
    """The report of `run`, written as a run writes it."""
    made = RunFolder(folder, "nightly", run.config)
    made.record = run
    return write_data_report(made)


def opened(browser: "Browser", path: Path, **settings: Any) -> tuple["Page", list[str]]:
    """The page, opened from its file with the network cut, and what went wrong: requests, errors, dialogs."""
    context = browser.new_context(offline=True, **settings)
    page, trouble = context.new_page(), []
    page.set_default_timeout(5_000)  # milliseconds; all is there once the file is read
    page.on("request", lambda request: trouble.append(request.url) if request.url != path.as_uri() else None)
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    return page, trouble


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_network_and_without_trouble(browser: "Browser", tmp_path: Path, scheme: str):
    page, trouble = opened(browser, written(tmp_path, record()), color_scheme=scheme)
    assert page.title() == "nightly: data"
    assert page.get_by_role("heading", level=1).inner_text() == "nightly"
    assert page.get_by_role("heading", level=2).all_inner_texts() == [
        "Where the rows went",
        "Sources",
        "What clean found and changed",
        "Lengths before and after clean",
        "Tasks and languages",
        "Split",
        "Rejected rows",
    ]
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == (scheme == "dark")
    page.get_by_role("link", name="Rejected rows").click()
    assert page.get_by_role("heading", name="Rejected rows").bounding_box()["y"] < 900
    assert trouble == []


def test_the_funnel_adds_up_as_it_is_shown(browser: "Browser", tmp_path: Path):
    page, _ = opened(browser, written(tmp_path, record()))
    shown = page.eval_on_selector_all(".line", FUNNEL)
    assert [name for name, _ in shown] == ["All 3 sources", "a", "b", "c"]
    counts = []
    for _, steps in shown:
        assert [step["label"] for step in steps] == ["read", *(f"after {name}" for name in STAGES)]
        rows = [int(step["rows"].replace(",", "")) for step in steps]
        lost = [sum(int(text.lstrip("−").replace(",", "")) for text in step["lost"]) for step in steps]
        assert [before - gone for before, gone in zip(rows, lost[1:], strict=False)] == rows[1:]
        counts.append(rows)
    total, *sources = counts
    assert total == [sum(same) for same in zip(*sources, strict=True)]
    assert total == [20_069, *(stage.rows_kept for stage in record().stages)]


def test_bars_are_as_long_as_their_numbers_say(browser: "Browser", tmp_path: Path):
    page, _ = opened(browser, written(tmp_path, record()))
    for name, steps in funnel(record()).items():
        line = page.locator(".line", has=page.get_by_role("heading", name=name, exact=True))
        read, *bars = [bar.bounding_box()["width"] for bar in line.locator(".bar").all()]
        assert bars == pytest.approx([read] * len(bars), abs=1)
        for bar, step in zip(line.locator(".bar").all()[1:], steps, strict=True):
            kept = bar.locator(".is-kept")
            width = kept.bounding_box()["width"] if kept.count() else 0
            assert width == pytest.approx(read * step.rows_kept / steps[0].rows_in, abs=3)
            assert bar.locator(".is-lost").count() == bool(step.lost)


@pytest.mark.parametrize("text", [*HOSTILE, "\u202egpj.exe"])
def test_hostile_rows_are_shown_as_text(browser: "Browser", tmp_path: Path, text: str):
    elements = "document.body.querySelectorAll('*').length"
    plain, _ = opened(browser, written(tmp_path, hostile(record(error="bad "), "x")))
    page, trouble = opened(browser, written(tmp_path, hostile(record(error="bad "), text)))
    page.mouse.move(300, 300)
    assert page.evaluate(elements) == plain.evaluate(elements)
    shown = text.replace("\u202e", "⟨U+202E⟩")
    assert page.locator(".samples pre").last.inner_text() == "row too_many_tokens" + shown
    assert page.locator(".place").last.inner_text() == "a:too_many_tokens" + shown
    assert shown in page.locator(".alarm").inner_text()
    assert trouble == []


@pytest.mark.parametrize("width", [360, 390, 800, 1440])
@pytest.mark.parametrize("text", ["", "x" * 300])
def test_nothing_runs_over_the_edge(browser: "Browser", tmp_path: Path, width: int, text: str):
    run = hostile(record(error="bad "), text)
    page, _ = opened(browser, written(tmp_path, run), viewport={"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVER_THE_EDGE) == []


def test_it_prints_on_white_paper(browser: "Browser", tmp_path: Path):
    page, _ = opened(browser, written(tmp_path, record()), color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(31, 38, 45)"
    assert page.pdf(format="A4").startswith(b"%PDF")
