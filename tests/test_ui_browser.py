"""The pipeline in Prefect's UI, in a real browser on a real server: its form, its runs, and what they show."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from conftest import ROWS, write_jsonl
from prefect_server import running_server, served_pipeline
from test_data_report_browser import browser  # noqa: F401  (a fixture)

from tasks.config import PipelineConfig
from tasks.run_record import RunRecord
from tasks.stages import STAGES
from tasks.templates import TEMPLATES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LEARNING_RATE = 0.005
SHOWN = {"fine-tune": 1000, "report": 1400}
"""Pages of which there is a screenshot, and how high it is in pixels."""

COLOURS_OF_PICTURES = """async images => Promise.all(images.map(async image => {
    await image.decode();
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    return [image.naturalWidth, new Set(pixels).size];
}))"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui")


@pytest.fixture(scope="module")
def config(home: Path, tiny_base: Path) -> dict[str, Any]:
    """The whole config of a run of seconds; its paths are those of `home`, where runs are at work."""
    (home / "base").symlink_to(tiny_base)
    write_jsonl(home / "colours.jsonl", [*ROWS, "{broken", ROWS[0], {"instruction": "Say nothing.", "output": " "}])
    raw = {
        "name": "colours",
        "model": {"base": "base"},
        "collect": {"sources": [{"path": "colours.jsonl"}]},
        "split": {"validation": 0.1, "test": 0.1},
        "format": {"max_seq_length": 64},
        "fine_tune": {"epochs": 8.0, "learning_rate": 0.01, "precision": "fp32"},
        "evaluate": {"max_new_tokens": 8},
        "export": {"parity_rows": 8},
        "store": "artifacts",
        "runs": "runs",
    }
    return PipelineConfig.model_validate(raw).model_dump(mode="json")


@pytest.fixture(scope="module")
def api(home: Path, config: dict[str, Any]) -> Iterator[str]:
    with running_server(home) as url, served_pipeline(home, url, config, name="colours"):
        yield url


@pytest.fixture(scope="module")
def page(api: str, browser: "Browser") -> Iterator["Page"]:  # noqa: F811
    """A page that reaches the server and nothing else."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, color_scheme="dark")
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(ui(api)) else route.abort())
    page = context.new_page()
    page.on("requestfailed", lambda request: print("failed:", request.method, request.url, request.failure))
    page.on("response", lambda answer: print(answer.status, answer.url) if answer.status >= 400 else None)
    page.set_default_timeout(60_000)  # milliseconds
    yield page
    context.close()


def ui(api: str) -> str:
    return api.removesuffix("/api")


def asked(api: str, path: str, **body: Any) -> Any:
    """What the API answers to a POST; while SQLite is busy it is asked again."""
    for _ in range(5):
        answer = httpx.post(api + path, json=body, timeout=90)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            return answer.raise_for_status().json()
    pytest.fail(f"the server is busy: {path}")


def shot(page: "Page", home: Path, name: str) -> None:
    """A screenshot; SCREENSHOTS names another folder than that of the test."""
    page.wait_for_timeout(500)  # what moves has come to rest
    page.screenshot(path=Path(os.environ.get("SCREENSHOTS", home)) / f"ui-{name}.png")


def opened_form(page: "Page", api: str) -> "Page":
    """The form of a run, as people come to it."""
    page.goto(f"{ui(api)}/")
    page.get_by_role("link", name="Deployments").click()
    page.get_by_role("link", name="colours").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    page.get_by_label("Learning Rate").wait_for()
    return page


def submitted(page: "Page") -> None:
    """Start the run of the form, and open it; where the UI says that it failed (SQLite was busy), press again."""
    started = page.get_by_role("link", name="View run")
    busy = page.get_by_text("Unknown error while creating flow run.")
    page.get_by_role("button", name="Submit").click()
    started.or_(busy).first.wait_for()
    if busy.count():
        page.get_by_role("button", name="Submit").click()
    started.click()
    page.wait_for_url("**/runs/flow-run/**")


def ended(page: "Page", state: str) -> None:
    """Wait until the open run is in that state."""
    page.get_by_text(state, exact=True).first.wait_for(timeout=600_000)


def test_names_are_chosen_from_lists_and_sections_are_called_as_people_read_them(page: "Page", api: str):
    opened_form(page, api)
    for section in ("Model", "Clean", "Near duplicates", "Split", "Format", "Fine tune", "Lora", "Evaluate"):
        assert page.get_by_text(f"{section} (Optional)", exact=True).count(), section
    page.get_by_label("Template").first.click()
    page.get_by_role("option").nth(len(TEMPLATES)).wait_for()
    assert page.get_by_role("option").all_inner_texts() == ["auto", *TEMPLATES]
    page.keyboard.press("Escape")


def test_a_value_out_of_bounds_is_refused_in_the_form(page: "Page", api: str):
    field = opened_form(page, api).get_by_label("Learning Rate")
    assert float(field.input_value()) == 0.01
    field.fill("7")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_timeout(1_000)
    assert field.evaluate("field => field.validationMessage").endswith("less than or equal to 1.")
    assert asked(api, "/flow_runs/count") == 0


def test_a_run_started_from_the_form_uses_what_was_changed_and_shows_what_it_did(page: "Page", api: str, home: Path):
    field = opened_form(page, api).get_by_label("Learning Rate")
    field.fill(str(LEARNING_RATE))
    page.get_by_text("Fine tune (Optional)", exact=True).evaluate("heading => heading.scrollIntoView()")
    shot(page, home, "form")
    submitted(page)
    ended(page, "Completed")
    record = RunRecord.model_validate_json((home / "runs" / "latest" / "run.json").read_bytes())
    assert record.state == "completed" and record.config["fine_tune"]["learning_rate"] == LEARNING_RATE
    assert page.get_by_text("model:base").count() and page.get_by_text("data:colours.jsonl").count()
    page.reload()
    page.get_by_role("tab", name="Task Runs").click()
    for stage in STAGES:
        page.get_by_role("link", name=stage, exact=True).first.wait_for()
    shot(page, home, "run")
    check_pages(page, api, home)


def check_pages(page: "Page", api: str, home: Path) -> None:
    """Open the page of every stage and of the run: its tables are tables, and its pictures have pixels."""
    (run,) = asked(api, "/flow_runs/filter", limit=1, sort="START_TIME_DESC")
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}, "artifacts": {"type": {"any_": ["markdown"]}}}
    found = asked(api, "/artifacts/filter", **of_run)
    pages = {each["key"].removeprefix("colours-"): each["id"] for each in found}
    assert set(pages) == {name.replace("_", "-") for name in STAGES} | {"report"}
    pictures = dict.fromkeys(("collect", "clean", "split", "fine-tune", "evaluate"), 1)
    for name, number in (pictures | {"format": 2, "export": 0, "report": 3}).items():
        page.goto(f"{ui(api)}/v2/artifacts/artifact/{pages[name]}")
        page.locator("table").first.wait_for()
        images = page.locator("img[src^='data:image/svg']")
        if number:
            images.nth(number - 1).wait_for()
        drawn = images.evaluate_all(COLOURS_OF_PICTURES)
        assert len(drawn) == number, name
        assert all(width > 300 and colours > 10 for width, colours in drawn), (name, drawn)
        if name in SHOWN:
            page.set_viewport_size({"width": 1280, "height": SHOWN[name]})
            shot(page, home, f"page-{name}")


def test_a_run_with_nothing_to_do_shows_seven_cached_tasks_with_their_pages(page: "Page", api: str, home: Path):
    (before,) = asked(api, "/flow_runs/filter", limit=1, sort="START_TIME_DESC")
    path = f"/deployments/{before['deployment_id']}/create_flow_run"
    run = asked(api, path, parameters=before["parameters"], state={"type": "SCHEDULED"})
    page.goto(f"{ui(api)}/v2/runs/flow-run/{run['id']}")
    ended(page, "Completed")
    page.reload()
    page.get_by_role("tab", name="Task Runs").click()
    page.get_by_text("Cached", exact=True).nth(6).wait_for()
    found = asked(api, "/artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})
    cached = [each["key"] for each in found if "| cache | cached |" in each["data"]]
    assert len(cached) == 7 and len(found) == 8


def test_an_impossible_combination_is_one_plain_line_in_the_run(page: "Page", api: str):
    (before,) = asked(api, "/flow_runs/filter", limit=1, sort="START_TIME_DESC")
    parameters = {"config": before["parameters"]["config"] | {"split": {"validation": 0.6, "test": 0.6}}}
    path = f"/deployments/{before['deployment_id']}/create_flow_run"
    run = asked(api, path, parameters=parameters, state={"type": "SCHEDULED"})
    page.goto(f"{ui(api)}/v2/runs/flow-run/{run['id']}")
    ended(page, "Failed")
    (run,) = asked(api, "/flow_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    assert run["state"]["message"] == "split: validation + test must stay below 1 so that train gets rows, got 1.2"
