"""What a run shows in the Prefect UI: a page for each stage, its training while it goes on, and its report.

Pages are written where somebody can look at them: in a flow run, on a server with a UI that outlives the run.  The
temporary server of `make pipeline` has none, so there nothing is drawn and matplotlib (1 s) is not imported.  What
cannot be written costs a warning, never the run.
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
import httpx
import pyarrow as pa
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_UI_ENABLED,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.utilities.context import get_task_and_flow_run_ids

from tasks.config import PipelineConfig
from tasks.funnel import STAGES, funnel, ranked, summed
from tasks.layout import CURVES
from tasks.report import EVALUATION, LOSSES, ROWS, markdown, report
from tasks.run_record import RunFolder, RunRecord, StageRecord

if TYPE_CHECKING:
    from tasks.training_log import Progress

log = logging.getLogger("attune")

WRITE_SECONDS = 10.0
"""How long the server has for a page; then it is left out."""
UPDATE_SECONDS = 2.0
"""Time between two updates of a training's progress, and how long the server has for one."""
PAUSE_SECONDS = 60.0
"""Time before the next update when one has failed: training waits for nobody."""
SOURCES_TAGGED = 5


def looked_at() -> bool:
    """Whether this is a flow run that can be looked at in a UI."""
    return bool(PREFECT_API_URL.value() and PREFECT_UI_ENABLED.value() and FlowRunContext.get())


# A run's name and tags


def run_name() -> str:
    """The name of the flow run that begins: config and UTC time, such as quickstart-2026-11-22-1437.

    One that is begun again keeps its name.
    """
    if runtime.flow_run.run_count > 1:
        return runtime.flow_run.name
    given = runtime.flow_run.parameters.get("config")  # not checked yet, where a form gave it
    name = given.get("name") if isinstance(given, dict) else getattr(given, "name", None)
    return f"{name if isinstance(name, str) else 'pipeline'}-{time.strftime('%Y-%m-%d-%H%M', time.gmtime())}"


def tags(config: PipelineConfig) -> list[str]:
    """`model:` and `data:` of a run; of a path its last part, of many sources the first SOURCES_TAGGED."""
    sources = [source.label for source in config.collect.sources[:SOURCES_TAGGED]]
    base = config.model.base.rstrip("/").rpartition("/")[2]
    return [_tag("model", base), *(_tag("data", source) for source in sources)]


def _tag(kind: str, text: str) -> str:
    return f"{kind}:{re.sub(r'[^A-Za-z0-9._-]+', '-', text)[:60]}"


def tag_run(config: PipelineConfig) -> None:
    """Give the flow run the tags of its config, beside those that it has."""
    if looked_at():
        with _forgiven("the run's tags"), _client(WRITE_SECONDS, again=1) as client:
            run = FlowRunContext.get().flow_run
            client.update_flow_run(run.id, tags={*run.tags, *tags(config)})


# Pages


def show_stage(record: RunRecord, name: str, artifact: Path, task_run: UUID | None) -> str:
    """Write the page of a stage that has ended, `record` being that of the run so far; returns its address.

    It has a table of rows, time, memory, cache verdict and key, and what there is to see: where rows went, how long
    examples are, losses, base against tuned.  Returns an empty text where nothing was written.
    """
    if not looked_at():
        return ""
    with _forgiven(f"the page of {name}"):
        stage = next(each for each in record.stages if each.stage == name)
        drawn = _drawn(record, name, artifact)
        lines = [*markdown(_facts(stage)), *(f"\n**{title}**\n\n![{title}]({uri})" for title, uri in drawn.items())]
        how = "cached" if stage.cached else f"ran in {stage.seconds:,.1f} s"
        told = f"{stage.rows_kept:,} of {stage.rows_in:,} rows kept, {how}"
        return _write(record, name, lines, told, task_run)
    return ""


def show_run(folder: RunFolder, pages: Mapping[str, str]) -> None:
    """Write the page of a run that has ended: its report with pictures, and where everything lies.

    pages: stage -> address of its page.
    """
    if not looked_at():
        return
    with _forgiven("the report"):
        record = folder.record
        links = " · ".join(f"[{stage}]({address})" for stage, address in pages.items() if address)
        lying = {"report": "report.md", "data": "data.html"} | ({"model": "model"} if record.export else {})
        more = [f"Stages: {links}", ""] if links else []
        more += [*(f"- {name}: `{folder.path / file}`" for name, file in lying.items()), ""]
        ended = {stage.stage for stage in record.stages}
        pictures: dict[str, str] = {}
        for name in ended & {"collect", "fine_tune", "evaluate"}:
            pictures |= _drawn(record, name, folder.path)
        _write(record, "report", report(record, pictures, more), f"{record.name}: {record.state}", None)


def _facts(stage: StageRecord) -> list[list[str]]:
    """The table of a stage; its seconds and memory are those of when it ran."""
    return [
        [stage.stage, ""],
        ["cache", "cached" if stage.cached else "ran"],
        ["why", stage.why],
        ["rows in", f"{stage.rows_in:,}"],
        ["rows kept", f"{stage.rows_kept:,}"],
        *([f"rejected: {reason}", f"{number:,}"] for reason, number in ranked(stage.rejected).items()),
        ["seconds when it ran", f"{stage.seconds:,.1f}"],
        ["peak memory of its process", f"{stage.peak_memory_bytes / 2**20:,.0f} MiB"],
        ["key", stage.key],
    ]


def _drawn(record: RunRecord, name: str, folder: Path) -> dict[str, str]:
    """Title -> picture, as an address, of what there is to see of a stage with this artifact."""
    from tasks import pictures

    drawn = {}
    if name in STAGES and (steps := summed(funnel(record).values())):
        drawn[ROWS] = pictures.funnel(steps)
    if name == "format":
        drawn["Lengths of the examples"] = pictures.lengths(pictures.token_lengths(folder))
    if name == "fine_tune":
        drawn[LOSSES] = (folder / CURVES).read_text(encoding="utf-8")
    if name == "evaluate":
        drawn[EVALUATION] = pictures.compared(record.model_dump()["evaluation"])
    return {title: pictures.data_uri(svg) for title, svg in drawn.items()}


# A training while it goes on


@contextmanager
def training_shown(stage: str, config: PipelineConfig) -> Iterator[None]:
    """Inside, fine_tune has a page with its progress for each system that it trains.

    With fine_tune.processes > 1 it trains in processes that know of no run: then there is none, and a line says so.
    """
    if stage != "fine_tune" or not looked_at():
        yield
        return
    if config.fine_tune.processes > 1:
        log.info("fine_tune: trains in processes of its own, so its progress stands in the log only")
        yield
        return
    from tasks.training_log import told_to

    with _client(UPDATE_SECONDS, again=0) as client, told_to(_ProgressPages(config.name, client)):
        yield


class _ProgressPages:
    """Writes the progress of each system; sparing with the server, and with the time of the training."""

    def __init__(self, run: str, client: SyncPrefectClient) -> None:
        self.run, self.client = run, client
        self.pages: dict[str, UUID] = {}
        self.due = 0.0

    def __call__(self, progress: "Progress") -> None:
        if progress.step < progress.steps and time.monotonic() < self.due:
            return
        self.due = time.monotonic() + PAUSE_SECONDS
        with _forgiven("the progress of the training"):
            self._write(progress)
            self.due = time.monotonic() + UPDATE_SECONDS

    def _write(self, progress: "Progress") -> None:
        done, told = 100 * progress.step / progress.steps, _words(progress)
        if page := self.pages.get(progress.system):
            self.client.update_artifact(page, ArtifactUpdate(data=done, description=told))
            return
        task_run, flow_run = get_task_and_flow_run_ids()
        key = _key(self.run, f"training-{progress.system}")
        new = ArtifactCreate(
            key=key, type="progress", data=done, description=told, flow_run_id=flow_run, task_run_id=task_run
        )
        self.pages[progress.system] = self.client.create_artifact(new).id


def _words(progress: "Progress") -> str:
    """A line such as `tuned: step 40 of 813, loss 2.310, learning rate 0.0002, 3,100 tokens/s, 0:04:12 left`."""
    left = f"{timedelta(seconds=round(progress.seconds_left))} left" if progress.step < progress.steps else "done"
    return (
        f"{progress.system}: step {progress.step:,} of {progress.steps:,}, loss {progress.loss:.3f}, "
        f"learning rate {progress.learning_rate:.3g}, {progress.tokens_per_second:,.0f} tokens/s, {left}"
    )


# The way to the server


def _write(record: RunRecord, name: str, lines: list[str], told: str, task_run: UUID | None) -> str:
    """Write a page in Markdown; returns its address."""
    page = ArtifactCreate(
        key=_key(record.name, name),
        type="markdown",
        description=told,
        data="\n".join(lines),
        flow_run_id=FlowRunContext.get().flow_run.id,
        task_run_id=task_run,
    )
    with _client(WRITE_SECONDS, again=1) as client:
        return f"{PREFECT_UI_URL.value()}/artifacts/artifact/{client.create_artifact(page).id}"


def _key(run: str, name: str) -> str:
    """A key of Prefect's: lower case, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run}-{name}")


@contextmanager
def _client(seconds: float, *, again: int) -> Iterator[SyncPrefectClient]:
    """A client that gives up soon, where that of the flow would try for minutes; a busy SQLite is asked `again`."""
    few = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: again})
    with few, get_client(httpx_settings={"timeout": seconds}, sync_client=True) as client:
        yield client


@contextmanager
def _forgiven(what: str) -> Iterator[None]:
    """A page that cannot be made costs a warning: the server is away or refuses it, or the artifact cannot be read."""
    try:
        yield
    except (httpx.HTTPError, ObjectNotFound, OSError, pa.ArrowException) as error:
        cause = str(error).partition("\n")[0]
        log.warning("%s is missing in the Prefect UI: %s: %s", what, type(error).__name__, cause)
