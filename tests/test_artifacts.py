"""What a run shows in the Prefect UI: pages with tables and pictures, progress, tags; never at the cost of the run.

The server is a stand-in that speaks HTTP and keeps what it is told; test_ui_browser.py has a real one.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import small_training
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, PREFECT_UI_ENABLED, temporary_settings
from test_data_report import record, stage

from flows import artifacts
from tasks.config import PipelineConfig
from tasks.run_record import RunFolder, RunRecord
from tasks.training_log import Progress, told_to

PAGE = "http://127.0.0.1:1/artifacts/artifact/"


class Server(ThreadingHTTPServer):
    """Keeps what is sent to it; `trouble` is what it makes of it: refuses, silent, busy once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.trouble = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer(404, "{}")  # as a server that wants no CSRF token

    def do_POST(self) -> None:
        self._hear()
        self._answer(201, json.dumps({"id": str(UUID(int=len(self.server.told)))}))

    def do_PATCH(self) -> None:
        self._hear()
        self._answer(204, "")

    def _hear(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told.append((self.command, self.path.removeprefix("/api"), body))

    def _answer(self, status: int, text: str) -> None:
        if self.server.trouble == "silent" and self.command != "GET":
            time.sleep(1)
        if self.server.trouble == "refuses" and self.command != "GET":
            status, text = 413, json.dumps({"detail": "too large"})
        if self.server.trouble == "busy once" and self.command != "GET":
            self.server.trouble, status, text = "", 503, json.dumps({"detail": "database is locked"})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def flow_run(server: Server) -> Iterator[FlowRun]:
    """Inside a flow run on the server."""
    run = FlowRun(flow_id=uuid4(), name="nightly", tags=["mine"])
    with temporary_settings({PREFECT_API_URL: server.url}), FlowRunContext.model_construct(flow_run=run):
        yield run


def shown(run: RunRecord, name: str, folder: Path = Path()) -> str:
    return artifacts.show_stage(run, name, folder, UUID(int=7))


def test_the_page_of_a_stage_has_a_table_and_a_picture_and_belongs_to_its_task_run(server, flow_run):
    address = shown(record(2), "clean")
    assert address == f"{server.url.removesuffix('/api')}/artifacts/artifact/{UUID(int=1)}"
    ((method, path, page),) = server.told
    assert (method, path) == ("POST", "/artifacts/")
    assert (page["key"], page["type"]) == ("nightly-clean", "markdown")
    assert (page["flow_run_id"], page["task_run_id"]) == (str(flow_run.id), str(UUID(int=7)))
    lines = page["data"].splitlines()
    for line in (
        "| cache | ran |",
        "| rows in | 20,009 |",
        "| rows kept | 19,955 |",
        "| rejected: too\\_long | 30 |",
        "| rejected: duplicate\\_of | 15 |",
        "| seconds when it ran | 1.5 |",
        f"| key | {'k' * 32} |",
    ):
        assert line in lines
    assert any(line.startswith("![Where the rows went](data:image/svg+xml;base64,") for line in lines)
    assert page["description"] == "19,955 of 20,009 rows kept, ran in 1.5 s"


def test_a_cached_stage_shows_the_same_with_the_verdict_cached(server, flow_run):
    run = record(1)
    assert run.stages[0].cached
    shown(run, "collect")
    page = server.told[0][2]
    assert "| cache | cached |" in page["data"] and "data:image/svg" in page["data"]
    assert page["description"].endswith("rows kept, cached")


def test_a_stage_without_a_source_has_a_page_without_a_picture(server, flow_run):
    run = record(1)
    run.stages[0].figures["funnel"] = {}
    assert shown(run, "collect")
    assert "![" not in server.told[0][2]["data"]


def test_no_text_of_the_data_becomes_markup(server, flow_run):
    run = record(1)
    run.stages[0].why = "name: '![x](http://evil/x.png)' → '<img src=x>'\n\n# gone"
    shown(run, "collect")
    page = server.told[0][2]["data"]
    assert "| why | name: '!\\[x\\](http://evil/x.png)' → '\\<img src=x\\>' # gone |" in page.splitlines()


def test_each_picture_stands_on_the_page_of_its_stage(server, flow_run, tmp_path, tiny_base):
    run = record(4)
    made = small_training.formatted(tmp_path / "format", tiny_base)
    (made / "test").symlink_to(made / "validation")
    shown(run, "format", made)
    (tmp_path / "curves.svg").write_text("<svg/>")
    run.stages += [stage("format").model_copy(update={"stage": name}) for name in ("fine_tune", "evaluate", "export")]
    run.evaluation = evaluation()
    for name in ("fine_tune", "evaluate", "export"):
        shown(run, name, tmp_path)
    titles = [
        [line[2:].partition("]")[0] for line in page["data"].splitlines() if line.startswith("![")]
        for *_, page in server.told
    ]
    assert titles == [
        ["Where the rows went", "Lengths of the examples"],
        ["Losses"],
        ["Base against tuned"],
        [],
    ]
    assert [page["key"] for *_, page in server.told] == [
        "nightly-format",
        "nightly-fine-tune",
        "nightly-evaluate",
        "nightly-export",
    ]


def evaluation() -> dict[str, Any]:
    scores = {"loss": {"value": 1.5, "rows": 9}}
    table = {"base": {"test": scores}, "tuned": {"test": scores}}
    return RunRecord.model_validate(record(0).model_dump() | {"evaluation": table}).evaluation


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path, "nightly", record(0).config)
    made.record = record(4)
    return made


def test_the_page_of_a_run_is_its_report_with_pictures_and_the_way_to_all_else(server, flow_run, folder):
    (folder.path / "curves.svg").write_text("<svg/>")
    folder.record.stages += [stage("split").model_copy(update={"stage": name}) for name in ("fine_tune", "evaluate")]
    folder.record.stages[-1].figures["samples"] = []
    folder.record.evaluation = evaluation()
    artifacts.show_run(folder, {"collect": PAGE + "1", "clean": "", "split": PAGE + "3"})
    page = server.told[0][2]
    assert page["key"] == "nightly-report" and page["task_run_id"] is None
    text = page["data"]
    assert f"Stages: [collect]({PAGE}1) · [split]({PAGE}3)" in text
    assert f"- report: `{folder.path}/report.md`" in text and f"- data: `{folder.path}/data.html`" in text
    assert "- model" not in text  # nothing was exported
    assert text.count("](data:image/svg+xml;base64,") == 3
    for heading in ("## Stages", "## Where the rows went", "## Losses", "## Base against tuned", "### By task"):
        assert heading in text


def test_the_page_of_a_run_that_failed_at_once_says_why(server, flow_run, folder):
    folder.record = record(0, error="the store is on [fire](http://evil)")
    artifacts.show_run(folder, {})
    assert "the store is on \\[fire\\](http://evil)" in server.told[0][2]["data"]


# What cannot be written never fails the run


def test_a_server_that_refuses_a_page_costs_a_warning_that_says_so(server, flow_run, caplog):
    server.trouble = "refuses"
    assert shown(record(1), "collect") == ""
    assert "the page of collect is missing in the Prefect UI" in caplog.text and "413" in caplog.text


def test_a_server_that_is_gone_costs_a_warning(server, flow_run, folder, caplog):
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert shown(record(1), "collect") == ""
        artifacts.show_run(folder, {})
        artifacts.tag_run(config())
    assert caplog.text.count("refused") == 3


def test_a_server_that_is_busy_is_asked_again(server, flow_run):
    server.trouble = "busy once"
    assert shown(record(1), "collect")
    assert len(server.told) == 2


def test_a_server_that_is_silent_is_not_waited_for_for_long(server, flow_run, monkeypatch, caplog):
    monkeypatch.setattr(artifacts, "WRITE_SECONDS", 0.2)
    server.trouble = "silent"
    assert shown(record(1), "collect") == ""
    assert "ReadTimeout" in caplog.text and len(server.told) == 2


def test_an_artifact_that_cannot_be_read_costs_a_warning(server, flow_run, tmp_path, caplog):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "part-00000.parquet").write_bytes(b"PAR1 no Parquet PAR1")
    assert shown(record(4), "format", tmp_path) == ""
    assert "the page of format is missing" in caplog.text and server.told == []


@pytest.mark.parametrize("setting", [{PREFECT_API_URL: ""}, {PREFECT_UI_ENABLED: False}])
def test_where_nobody_can_look_nothing_is_drawn(server, flow_run, folder, monkeypatch, setting):
    monkeypatch.setattr(artifacts, "_drawn", lambda *_: pytest.fail("drawn for nobody"))
    with temporary_settings(setting):
        assert shown(record(1), "collect") == ""
        artifacts.show_run(folder, {})
        artifacts.tag_run(config())
    assert server.told == []


def test_outside_a_flow_run_nothing_is_drawn(server, folder, monkeypatch):
    monkeypatch.setattr(artifacts, "_drawn", lambda *_: pytest.fail("drawn for nobody"))
    with temporary_settings({PREFECT_API_URL: server.url}):
        assert shown(record(1), "collect") == ""
    assert server.told == []


# Name and tags


def config(**sections: Any) -> PipelineConfig:
    return PipelineConfig.model_validate({"name": "nightly", "collect": {"sources": [{"path": "a"}]}} | sections)


def test_a_run_carries_model_and_data_beside_the_tags_that_it_has(server, flow_run):
    sources = [{"path": "s3://bucket/tune set.jsonl"}, {"hub": {"dataset": "owner/dolly"}}]
    artifacts.tag_run(config(model={"base": "data/quickstart/base/"}, collect={"sources": sources}))
    ((_, path, told),) = server.told
    assert path == f"/flow_runs/{flow_run.id}"
    assert set(told["tags"]) == {"mine", "model:base", "data:tune-set.jsonl", "data:dolly"}


def test_many_sources_do_not_flood_the_tags():
    sources = [{"path": f"{number}.jsonl"} for number in range(50)]
    assert len(artifacts.tags(config(collect={"sources": sources}))) == 1 + artifacts.SOURCES_TAGGED


@pytest.mark.parametrize("given", [config(), {"name": "nightly"}, {"name": 7}, {}, "no mapping", None])
def test_a_run_has_a_name_whatever_its_form_was_given(given):
    with FlowRunContext.model_construct(flow_run=FlowRun(flow_id=uuid4()), parameters={"config": given}):
        name = artifacts.run_name()
    known = "nightly" if given == config() or given == {"name": "nightly"} else "pipeline"
    assert name == f"{known}-{time.strftime('%Y-%m-%d-%H%M', time.gmtime())}"


# Progress


def progress(step: int, system: str = "tuned") -> Progress:
    return Progress(system, step, 40, 2.3101, 2e-4, 3100.4, 252.2)


def test_a_training_has_one_page_a_system_that_is_updated_now_and_then_and_at_its_end(server, flow_run):
    with artifacts.training_shown("fine_tune", config()):
        tell = _listener()
        for step in (1, 2, 3, 40):
            tell(progress(step))
        tell(progress(40, "scratch"))
    assert [(method, body["data"]) for method, _, body in server.told] == [("POST", 2.5), ("PATCH", 100), ("POST", 100)]
    first, last, _ = (body for *_, body in server.told)
    assert (first["key"], first["type"]) == ("nightly-training-tuned", "progress")
    told = "tuned: step 1 of 40, loss 2.310, learning rate 0.0002, 3,100 tokens/s, 0:04:12 left"
    assert first["description"] == told and last["description"].endswith("done")


def _listener() -> Any:
    from tasks import training_log

    return training_log._listener.get()


def test_progress_comes_again_after_its_time(server, flow_run, monkeypatch):
    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.05)
    with artifacts.training_shown("fine_tune", config()):
        for step in (1, 2, 3):
            _listener()(progress(step))
            time.sleep(0.06)
    assert len(server.told) == 3


def test_a_training_does_not_wait_for_a_server_that_is_gone(server, flow_run, caplog):
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        artifacts.training_shown("fine_tune", config()),
    ):
        for step in range(1, 20):
            _listener()(progress(step))
    assert caplog.text.count("the progress of the training is missing") == 1


def test_several_processes_have_no_progress_and_a_line_says_so(server, flow_run, caplog):
    caplog.set_level(logging.INFO)
    with artifacts.training_shown("fine_tune", config(fine_tune={"processes": 2})):
        assert _listener() is None
    assert "progress stands in the log only" in caplog.text


def test_only_fine_tune_has_progress(server, flow_run):
    with artifacts.training_shown("clean", config()):
        assert _listener() is None


def test_a_real_training_tells_of_every_step_and_of_its_end_also_when_that_comes_early(tmp_path, tiny_base):
    told: list[Progress] = []
    made = small_training.formatted(tmp_path / "format", tiny_base)
    early = {"epochs": 10.0, "early_stopping_patience": 1, "early_stopping_threshold": 100.0}
    with told_to(told.append):
        small_training.run(made, tiny_base, tmp_path / "out", **early)
    steps = [each.step for each in told]
    assert set(steps) == set(range(1, steps[-1] + 1)) and steps == sorted(steps)
    assert told[0].steps == 20 and told[0].seconds_left > 0
    assert told[-1].steps == told[-1].step < 20 and told[-1].seconds_left == 0
    assert all(each.system == "tuned" and each.loss > 0 and each.tokens_per_second > 0 for each in told)
