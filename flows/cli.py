"""The command line: `attune run`, `check`, `sweep`, `verify`; `attune server`, `deploy`, `worker`."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.config import PipelineConfig
from tasks.config_file import load
from tasks.data_report import write_data_report
from tasks.errors import AttuneError, is_disk_trouble
from tasks.plan import Step, plan
from tasks.progress import LineHandler
from tasks.report import closing_table, write_report
from tasks.run_record import SHOWN, RunFolder, RunRecord, stage_record
from tasks.store import ArtifactStore, open_store

if TYPE_CHECKING:
    from tasks.check import Check, Span
    from tasks.estimate import Estimate

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Instruction tuning you can trust to run every night.",
)
console = Console(highlight=False)
log = logging.getLogger("attune")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config, such as configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]…", help="Settings over those of the config.")
]


def main() -> None:
    """Entry point: a failure that attune explains ends in one message and its exit code, without a traceback."""
    _log_to_terminal()
    try:
        app()
    except AttuneError as error:
        print(f"attune: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if not is_disk_trouble(error):
            raise
        print(f"attune: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _log_to_terminal() -> None:
    """Our own lines on stderr; those of the libraries only when something is wrong."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    handler = LineHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say for each stage why it runs or does not.")] = False,
) -> None:
    """Run the pipeline; stages whose inputs, settings and code are unchanged are cached."""
    settings = load(config, overrides)
    store = open_store(settings)
    with store.in_use():
        show(_run(settings, store, explain=explain))


def _run(settings: PipelineConfig, store: ArtifactStore, *, explain: bool) -> Path:
    """The folder of the run's record."""
    try:
        steps = plan(settings, store)
        cached = all(step.manifest for step in steps) and _are_here(store, steps)
    except AttuneError as error:
        _new_folder(settings).end(str(error))
        raise
    if explain:
        console.print(plan_table(steps))
    if cached:
        return _record_cached(settings, store, steps)
    log.info("starting Prefect")
    from flows.connection import connected

    with connected():
        from flows.pipeline import pipeline

        return Path(pipeline(settings))


@app.command()
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Validate a config, look at the first rows, and say what would run; writes nothing."""
    settings = load(config, overrides)
    console.print(f"{config}: valid")
    steps = plan(settings, open_store(settings))

    from tasks.check import check as check_rows

    _show(check_rows(settings), settings)
    console.print(plan_table(steps))


def _show(found: "Check", settings: PipelineConfig) -> None:
    """What the first rows say, three examples, and the cost."""
    for source in found.sources:
        rejected = ", ".join(f"{reason} {rows}" for reason, rows in source.rejected.items()) or "none"
        looked = f"{source.rows} rows, looked at {source.looked_at}, of these rejected: {rejected}"
        console.print(f"source {source.label}: {source.shape}, {looked}", markup=False, soft_wrap=True)
    for number, spans in enumerate(found.samples, start=1):
        console.print(f"\nexample {number}, what is learnt in green")
        console.print(_colour(spans))
    about = "" if found.complete else "about "
    shortened = f", {found.truncated} of the examples are cut to fit" if found.truncated else ""
    console.print(
        f"\n{about}{found.training_rows} training examples, {found.tokens} tokens, "
        f"{found.supervised_tokens} of them supervised{shortened}",
        soft_wrap=True,
    )
    console.print(_cost(found.cost, scratch=settings.fine_tune.scratch_control), markup=False, soft_wrap=True)


def _cost(cost: "Estimate", *, scratch: bool) -> str:
    each = cost.steps // 2 if scratch else cost.steps
    return (
        f"fine_tune: at most {each} optimizer steps{', and as many for the scratch control' if scratch else ''}, "
        f"{cost.tokens} tokens; about {_size(cost.peak_memory_bytes)} of memory, {_size(cost.disk_bytes)} of disk"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


@app.command()
def sweep(config: ConfigPath, overrides: Overrides = None) -> None:
    """Search the settings of `sweep:` by the validation split; run it again to go on where it was ended."""
    settings = load(config, overrides)

    from tasks import sweep as search
    from tasks.sweep_report import table

    home = search.folder(settings)
    if len(search.ended(settings, home)) >= settings.sweep.trials:
        search.conclude(settings, home)
    else:
        log.info("starting Prefect")
        from flows.connection import connected

        with connected():
            from flows.sweep import sweep as flow

            flow(settings)
    console.print(table(settings, search.ended(settings, home)))
    console.print(f"best     {home / 'best.yaml'}\nreport   {home / 'report.md'}", markup=False, soft_wrap=True)


@app.command()
def verify(config: ConfigPath = Path("configs/quickstart.yaml"), overrides: Overrides = None) -> None:
    """Read every byte of every artifact in the store of CONFIG, and put damaged ones into quarantine."""
    store = open_store(load(config, overrides))
    with store.in_use():
        sound = list(store.audit())
    console.print(f"{len(sound)} artifacts read, {sum(sound)} sound, {len(sound) - sum(sound)} damaged")
    if not all(sound):
        raise typer.Exit(1)


@app.command()
def gc(
    config: ConfigPath,
    overrides: Overrides = None,
    keep_days: Annotated[float, typer.Option(min=0, help="What is younger stays, with what younger runs name.")] = 14,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove from the folder of CONFIG's store what no recent run needs; nothing while a run is going on."""
    from tasks.gc import collect_garbage

    settings = load(config, overrides)
    found = collect_garbage(open_store(settings), Path(settings.runs), keep_days, dry_run=dry_run)
    table = Table("what", "where", "why", "size")
    for leftover in found:
        table.add_row(*map(Text, (leftover.what, str(leftover.path), leftover.why, _size(leftover.size_bytes))))
    if found:
        console.print(table)
    total = sum(leftover.size_bytes for leftover in found)
    console.print(f"{len(found)} {'would be removed' if dry_run else 'removed'}, {total:,} bytes")
    if "://" in settings.store:
        kept = f"copies on this machine only: what {settings.store} keeps is for the bucket's lifecycle rules"
        console.print(kept, soft_wrap=True)


@app.command()
def server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 4200,
    database: Annotated[str, typer.Option(help="URL such as postgresql+asyncpg://…; empty: SQLite in data/.")] = "",
) -> None:
    """Start the Prefect server with its UI; it stays until it is ended."""
    from flows.services import start_server

    start_server(host, port, database)


@app.command()
def deploy(
    gpus: Annotated[int, typer.Option(min=1, help="Runs of the pool gpu at a time.")] = 1,
    notify: Annotated[str, typer.Option(help="Notification block, such as slack-webhook/NAME.")] = "",
) -> None:
    """Register work pools, deployments and automations at the server; doing it again changes nothing."""
    from flows.services import find_server

    url = find_server()
    from flows.deploy import deploy as register

    for line in register(gpus, notify):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"start one at {url.removesuffix('/api')}/deployments", markup=False, soft_wrap=True)


@app.command()
def worker(
    pool: Annotated[str, typer.Option(help="Work pool: cpu or gpu.")] = "cpu",
    limit: Annotated[int | None, typer.Option(min=1, help="Runs at a time; empty: what the pool allows.")] = None,
) -> None:
    """Start a worker that runs flows in this folder; it stays until it is ended."""
    from flows.services import find_server, start_worker

    find_server()
    start_worker(pool, limit)


def _are_here(store: ArtifactStore, steps: list[Step]) -> bool:
    """Whether the files that a run keeps something of are on this machine, fetched where the store is a bucket."""
    return all(step.ref and store.fetch(step.ref) for step in steps if step.stage.name in SHOWN)


def _record_cached(settings: PipelineConfig, store: ArtifactStore, steps: list[Step]) -> Path:
    """Record a run in which nothing had to be done; Prefect is not needed for that."""
    folder = _new_folder(settings)
    for step in steps:
        if step.manifest and step.ref:
            folder.add(stage_record(step.manifest, cached=True, why=step.why), store.path(step.ref))
            console.print(f"{step.stage.name}: cached {step.key}")
    folder.end()
    write_report(folder)
    write_data_report(folder)
    return folder.path


def _new_folder(settings: PipelineConfig) -> RunFolder:
    return RunFolder(settings.runs, settings.name, settings.model_dump(mode="json"))


def show(folder: Path) -> None:
    """The closing table of a run, and where its things lie."""
    record = RunRecord.model_validate_json((folder / "run.json").read_bytes())
    console.print(closing_table(record))
    shown = Path(folder)
    console.print(
        f"model    {shown / 'model'}\nmetrics  {shown / 'run.json'}\nreport   {shown / 'report.md'}\n"
        f"data     {shown / 'data.html'}",
        markup=False,
        soft_wrap=True,
    )


def plan_table(steps: list[Step]) -> Table:
    """What would run, what is cached, and why."""
    table = Table("stage", "verdict", "key", "why", title="Plan", title_justify="left")
    for step in steps:
        verdict = "cached" if step.manifest else "runs" if step.key else "depends"
        table.add_row(*map(Text, (step.stage.name, verdict, step.key[:12], step.why)))
    return table


def _colour(spans: "list[Span]") -> Text:
    """The text of an example, what is supervised in green."""
    return Text.assemble(*((span.text, "bold green" if span.supervised else "dim") for span in spans))


if __name__ == "__main__":
    main()
