"""A schedule that is faster than its job, and places in a pool that killed runs held (F29, F30)."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from prefect_server import running_server
from test_deployed import Site, until

from faults.matrix import ROOT, Outcome, fault, tries

JOB = '''
import time

from prefect import flow
from prefect.states import Completed

from flows.overlaps import skipped_since_last_run


@flow(persist_result=False)
def job(seconds: float):
    skipped = skipped_since_last_run()
    time.sleep(seconds)
    return Completed(message=str(skipped))
'''
EVERY_SECONDS, JOB_SECONDS = 2, 5
PATIENCE_SECONDS = 45.0
"""Late after 15 s, looked for every 5 s, and a worker asks every 10 s: a run that waits longer is forgotten."""
FREED_SECONDS = 60.0


@contextmanager
def deployed(folder: Path) -> Iterator[Site]:
    """A server, and what `attune deploy` registers there."""
    with running_server(folder / "server") as url, ExitStack() as stack:
        site = Site(folder, url, open=stack)
        done = site.attune("caller", "deploy", cwd=ROOT)
        assert done.returncode == 0, done.stderr
        yield site


@dataclass
class Job:
    """A deployment of a flow that only sleeps, one run at a time, and what was seen of its runs."""

    site: Site
    id: str
    most_active: int = 0
    longest_wait: float = 0.0
    ended: dict[str, str] = field(default_factory=dict)

    @classmethod
    def deploy(cls, site: Site, name: str, pool: str, seconds: float, **more: Any) -> "Job":
        (site.folder / "job.py").write_text(JOB)
        flow = site.ask("POST", "/flows/", name="job")
        made = site.ask(
            "POST",
            "/deployments/",
            flow_id=flow["id"],
            name=name,
            entrypoint="job.py:job",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(site.folder)}}],
            work_pool_name=pool,
            parameters={"seconds": seconds},
            concurrency_limit=1,
            concurrency_options={"collision_strategy": "CANCEL_NEW"},
            **more,
        )
        return cls(site, made["id"])

    def runs(self, *states: str) -> list[dict[str, Any]]:
        """Its runs in states of these types, in the order in which they were due."""
        chosen = {"deployment_id": {"any_": [self.id]}, "state": {"type": {"any_": list(states)}}}
        return self.site.ask("POST", "/flow_runs/filter", flow_runs=chosen, sort="EXPECTED_START_TIME_ASC")

    def overdue(self) -> list[float]:
        """For how many seconds each run has waited that was due and has not begun."""
        waits = [time.time() - moment(run["expected_start_time"]) for run in self.runs("SCHEDULED")]
        return [wait for wait in waits if wait > 0]

    def watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.most_active = max(self.most_active, len(self.runs("PENDING", "RUNNING", "CANCELLING")))
            self.longest_wait = max([self.longest_wait, *self.overdue()])
            time.sleep(0.3)

    def pause(self) -> None:
        self.site.ask("POST", f"/deployments/{self.id}/pause_deployment")

    def figures(self) -> dict[str, Any]:
        told = Counter(run["state"]["name"] for run in self.runs("COMPLETED", "CANCELLED", "CRASHED", "FAILED"))
        return {"most_active": self.most_active, "longest_wait": round(self.longest_wait, 1), "ended": dict(told)}


def moment(text: str) -> float:
    """Seconds since 1970 of a time as the API writes it."""
    return datetime.fromisoformat(text).timestamp()


def every_run_counts(job: Job) -> None:
    """No two runs overlapped, every other one is Cancelled, and each of these was told of once by a run that ran."""
    ran, skipped = job.runs("COMPLETED"), job.runs("CANCELLED")
    assert ran and skipped, "nothing overlapped"
    spans = sorted((moment(run["start_time"]), moment(run["end_time"])) for run in ran)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False)), "two ran at a time"
    later = [run for run in skipped if moment(run["end_time"]) > spans[-1][0]]
    assert sum(int(run["state"]["message"]) for run in ran) == len(skipped) - len(later)


@fault("F29", "a schedule that is faster than its job; its worker away for a while")
def overlapping(folder: Path) -> Outcome:
    """Due every 2 s, 5 s long: one at a time, the others skipped and counted, none waits for ever."""
    outcome, schedule = Outcome(), [{"schedule": {"interval": EVERY_SECONDS}, "active": True}]
    with deployed(folder) as site:
        job = Job.deploy(site, "often", "cpu", JOB_SECONDS, schedules=schedule)
        site.start_worker("cpu", "one")
        until(lambda: job.runs("RUNNING"), 90, lambda: site.log("cpu", "one").read_text())
        with outcome.attempt("a worker that is there"):
            job.watch(tries(60, least=30))
            outcome.figures["there"] = job.figures()
            assert job.most_active == 1 and job.longest_wait < PATIENCE_SECONDS, job.figures()
            every_run_counts(job)
        with outcome.attempt("a worker that comes back"):
            site.workers.pop("cpu").terminate()
            until(lambda: len(job.overdue()) > 10, 120)
            back = Job(site, job.id)
            outcome.figures["waiting when it came back"] = len(job.overdue())
            site.start_worker("cpu", "one")
            began = time.monotonic()
            while max(job.overdue(), default=0) > PATIENCE_SECONDS or time.monotonic() - began < 30:
                assert time.monotonic() - began < 150, "they wait for ever"
                back.watch(2)
            outcome.figures["back"] = back.figures()
            assert back.most_active == 1
            every_run_counts(job)
        with outcome.attempt("afterwards"):
            job.pause()
            until(lambda: not job.runs("PENDING", "RUNNING", "CANCELLING"), 60)
            assert not job.overdue()
    return outcome


@fault("F30", "a run killed with SIGKILL while it holds the one place of its deployment and of its pool")
def leaked_place(folder: Path) -> Outcome:
    """The next run is asked for in the moment of the kill; how long it takes until it has the place."""
    outcome, waits, gone = Outcome(), [], []
    with deployed(folder) as site:
        job = Job.deploy(site, "held", "gpu", 600)
        site.start_worker("gpu", "one")
        run = start(job)
        for number in range(tries(20, least=2)):
            with outcome.attempt(number):
                holder = until(lambda run=run: pid_of_running(site, run), 90, lambda: site.told(run))
                killed = time.time()
                os.kill(holder, signal.SIGKILL)
                last, run = run, start(job)
                until(lambda run=run: acquired(site, run), FREED_SECONDS, lambda: site.told(run))
                waits.append(acquired(site, run) - killed)
                gone.append(moment(site.run(last)["end_time"]) - killed)
                assert site.run(last)["state_type"] == "CRASHED"
        outcome.figures = {
            "seconds from kill to crashed": {"median": round(median(gone), 1), "most": round(max(gone), 1)},
            "seconds from kill to the next run's place": {"median": round(median(waits), 1), "most": round(max(waits), 1)},
        }
    return outcome


def start(job: Job) -> str:
    return job.site.ask("POST", f"/deployments/{job.id}/create_flow_run", parameters={"seconds": 600})["id"]


def pid_of_running(site: Site, run: str) -> int | None:
    found = site.run(run)
    return int(found["infrastructure_pid"]) if found["state_type"] == "RUNNING" else None


def acquired(site: Site, run: str) -> float | None:
    """When a run got its place."""
    states = site.ask("GET", f"/flow_run_states/?flow_run_id={run}")
    return next((moment(state["timestamp"]) for state in states if state["type"] == "PENDING"), None)
