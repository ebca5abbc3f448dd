"""A schedule that is faster than its job, and places in a pool that killed runs held (F29, F30)."""

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from deployed_site import deployed_site, until

from faults.matrix import Outcome, fault, tries
from flows.overlaps import is_skipped
from flows.recovery import worker_name

# isort: split
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Pending

JOB = """
import time

from prefect import flow
from prefect.states import Completed

from flows.overlaps import skipped_since_last_run


@flow(persist_result=False)
def job(seconds: float):
    skipped = skipped_since_last_run()
    time.sleep(seconds)
    return Completed(message=str(skipped))
"""
EVERY, JOB_SECONDS = timedelta(seconds=2), 5
PATIENCE_SECONDS = 45.0
"""Late after 15 s, looked for every 5 s, and a worker asks every 10 s: a run that waits longer is forgotten."""
PLACE_SECONDS = 60.0
NEVER_BEGAN_SECONDS = 120.0
"""A worker that is ended while it takes a run leaves it pending; 90 s later that run has crashed."""
ACTIVE = ("PENDING", "RUNNING", "CANCELLING")


@dataclass
class Job:
    """A deployment of a flow that sleeps, one run at a time like `nightly`, and what was seen of its runs."""

    client: SyncPrefectClient
    id: UUID
    most_active: int = 0
    longest_wait: float = 0.0

    @classmethod
    def deploy(
        cls, client: SyncPrefectClient, folder: Path, pool: str, seconds: float, every: timedelta | None
    ) -> "Job":
        """Its runs are `seconds` long; without `every` they begin when they are asked for."""
        (folder / "job.py").write_text(JOB)
        made = client.create_deployment(
            flow_id=client.create_flow_from_name("job"),
            name="job",
            entrypoint="job.py:job",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
            work_pool_name=pool,
            parameters={"seconds": seconds},
            concurrency_limit=1,
            concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
            schedules=[DeploymentScheduleCreate(schedule=IntervalSchedule(interval=every))] if every else [],
        )
        return cls(client, made)

    def runs(self, *states: str) -> list[FlowRun]:
        """Its runs in states of these types, in the order in which they were due."""
        chosen = {"deployment_id": {"any_": [self.id]}, "state": {"type": {"any_": list(states)}}}
        return self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(chosen), sort=FlowRunSort.EXPECTED_START_TIME_ASC
        )

    def start(self) -> UUID:
        return self.client.create_flow_run_from_deployment(self.id).id

    def process(self, run: UUID) -> int | None:
        """The process of a run, once it runs."""
        found = self.client.read_flow_run(run)
        return int(found.infrastructure_pid) if found.state.is_running() and found.infrastructure_pid else None

    def place(self, run: UUID) -> datetime | None:
        """When a run got its place."""
        return next((state.timestamp for state in self.client.read_flow_run_states(run) if state.is_pending()), None)

    def overdue(self) -> list[float]:
        """For how many seconds each run has waited that was due and has not begun."""
        now = datetime.now(UTC)
        return [
            (now - run.expected_start_time).total_seconds()
            for run in self.runs("SCHEDULED")
            if run.expected_start_time < now
        ]

    def watch(self, seconds: float) -> None:
        """Look at its runs for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.most_active = max(self.most_active, len(self.runs(*ACTIVE)))
            self.longest_wait = max([self.longest_wait, *self.overdue()])
            time.sleep(0.3)

    def figures(self) -> dict[str, Any]:
        ended = Counter(run.state_name for run in self.runs("COMPLETED", "CANCELLED", "CRASHED", "FAILED"))
        return {"most_active": self.most_active, "longest_wait": round(self.longest_wait, 1), "ended": dict(ended)}

    def check(self) -> None:
        """No two runs overlapped, each other one was skipped, and is told of once by the next run that began."""
        begun = sorted(
            (run for run in self.runs("COMPLETED", "CRASHED") if run.run_count), key=lambda run: run.start_time
        )
        skipped = [run.start_time for run in self.runs("CANCELLED") if is_skipped(run)]
        assert begun and skipped and len(skipped) == len(self.runs("CANCELLED"))
        assert all(run.end_time <= later.start_time for run, later in pairwise(begun)), "two at a time"
        since = datetime.min.replace(tzinfo=UTC)
        for run in begun:
            between = sum(since < moment < run.start_time for moment in skipped)
            assert run.state.is_crashed() or int(run.state.message) == between, f"{run.state.message} of {between} told"
            since = run.start_time


@fault("F29", "a schedule that is faster than its job; its worker away for a while")
def overlapping(folder: Path) -> Outcome:
    """Due every 2 s, 5 s long: one at a time, the others skipped and counted, none waits for ever."""
    outcome = Outcome()
    with deployed_site(folder) as site, SyncPrefectClient(site.url) as client:
        job = Job.deploy(client, folder, "cpu", JOB_SECONDS, EVERY)
        site.start_worker("cpu", "one")
        until(lambda: job.runs("RUNNING"), 90, lambda: site.log("cpu", "one").read_text())
        with outcome.attempt("a worker that is there"):
            job.watch(tries(60, least=20))
            outcome.figures["there"] = job.figures()
            assert job.most_active == 1 and job.longest_wait < PATIENCE_SECONDS
            job.check()
        with outcome.attempt("a worker that comes back"):
            site.workers.pop("cpu").terminate()
            until(lambda: len(job.overdue()) > 10, 120)
            outcome.figures["waiting when it came back"] = len(job.overdue())
            site.start_worker("cpu", "one")
            caught_up = came_back(job)
            outcome.figures["back"] = job.figures() | {"seconds until none was late": caught_up}
            assert job.most_active == 1
            job.check()
        with outcome.attempt("afterwards"):
            client.pause_deployment(job.id)
            until(lambda: not job.runs(*ACTIVE), 60)
            assert not job.overdue()
    return outcome


def came_back(job: Job) -> float:
    """Watch until no run waits that was due while the worker was away; in how many seconds that was."""
    began, due = time.monotonic(), datetime.now(UTC)
    while any(run.expected_start_time < due for run in job.runs("SCHEDULED")):
        job.watch(1)
        assert time.monotonic() - began < 150, "they wait for ever"
    caught_up = round(time.monotonic() - began, 1)
    until(lambda: len([run for run in job.runs("COMPLETED") if run.start_time > due]) > 1, NEVER_BEGAN_SECONDS + 90)
    return caught_up


@fault("F30", "a run killed with SIGKILL while it holds the one place of its deployment and of its pool")
def leaked_place(folder: Path) -> Outcome:
    """The next run is asked for in the moment of the kill; how long it takes until it has the place."""
    outcome, crashed, placed = Outcome(), [], []
    with deployed_site(folder) as site, SyncPrefectClient(site.url) as client:
        job = Job.deploy(client, folder, "gpu", 600, None)
        site.start_worker("gpu", "one")
        run = job.start()
        for number in range(tries(20, least=2)):
            with outcome.attempt(number):
                killed, ended, begun, run = kill_and_start(job, run)
                crashed.append((ended - killed).total_seconds())
                placed.append((begun - killed).total_seconds())
        outcome.figures = {"seconds to crashed": told(crashed), "seconds to the next run's place": told(placed)}
    return outcome


def kill_and_start(job: Job, run: UUID) -> tuple[datetime, datetime, datetime, UUID]:
    """Kill a run once it runs, start the next; when it was killed, had crashed, when the next began, and the next."""
    os.kill(until(lambda: job.process(run), 90), signal.SIGKILL)
    killed, later = datetime.now(UTC), job.start()
    begun = until(lambda: job.place(later), PLACE_SECONDS, lambda: str(job.client.read_flow_run(later).state))
    last = job.client.read_flow_run(run)
    assert last.state.is_crashed(), last.state
    return killed, last.end_time, begun, later


@fault("F30.pending", "a run that a worker took and never started: the worker died in between")
def never_started(folder: Path) -> Outcome:
    """It holds the places of its deployment and pool, and no heartbeat of it is missed; then the next one runs."""
    outcome = Outcome()
    with deployed_site(folder) as site, SyncPrefectClient(site.url) as client:
        job = Job.deploy(client, folder, "gpu", 1, None)
        with outcome.attempt("nobody comes"):
            run, began = job.start(), time.monotonic()
            client.set_flow_run_state(run, Pending())
            until(lambda: client.read_flow_run(run).state.is_crashed(), NEVER_BEGAN_SECONDS)
            outcome.figures["seconds to crashed"] = round(time.monotonic() - began, 1)
        with outcome.attempt("its worker comes back"):
            run = job.start()
            client.set_flow_run_state(run, Pending())
            client.update_flow_run_labels(run, {"prefect.worker.name": worker_name("gpu")})
            site.start_worker("gpu", "one")
            until(lambda: client.read_flow_run(run).state.is_crashed(), 45)
            later = job.start()
            until(lambda: client.read_flow_run(later).state.is_completed(), 90, site.log("gpu", "one").read_text)
    return outcome


def told(seconds: list[float]) -> dict[str, float]:
    return {"median": round(median(seconds), 1), "most": round(max(seconds), 1)}
