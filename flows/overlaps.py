"""Scheduled runs that were skipped, since their deployment allows one at a time and one was going on."""

import logging
from collections.abc import Iterator
from itertools import count, takewhile

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

log = logging.getLogger("attune")

SKIPPED = "Deployment concurrency limit reached."
"""What Prefect writes into the state of a run that it cancels under the strategy CANCEL_NEW."""
PAGE_RUNS = 50


def skipped_since_last_run() -> int:
    """How many runs of this flow run's deployment were skipped between the beginning of its last run and of this one.

    Each skipped run is told of once, by the run that begins next.  0 in a run that no deployment started.
    """
    if not runtime.deployment.id:
        return 0
    with get_client(sync_client=True) as client:
        this = client.read_flow_run(runtime.flow_run.id)
        earlier = (run for run in _started_before(client, this) if run.id != this.id)
        skipped = sum(is_skipped(run) for run in takewhile(lambda run: run.run_count == 0, earlier))
    if skipped:
        log.info("%d scheduled runs were skipped while the last one was going on", skipped)
    return skipped


def is_skipped(run: FlowRun) -> bool:
    """Whether the run was cancelled because another one of its deployment was going on."""
    return run.state is not None and run.state.is_cancelled() and run.state.message == SKIPPED


def _started_before(client: SyncPrefectClient, this: FlowRun) -> Iterator[FlowRun]:
    """Runs of the same deployment, the latest first; one that never began has the time of its end as its start."""
    chosen = FlowRunFilter.model_validate(
        {"deployment_id": {"any_": [this.deployment_id]}, "start_time": {"before_": this.start_time}}
    )
    for offset in count(0, PAGE_RUNS):
        page = client.read_flow_runs(
            flow_run_filter=chosen, sort=FlowRunSort.START_TIME_DESC, limit=PAGE_RUNS, offset=offset
        )
        yield from page
        if len(page) < PAGE_RUNS:
            return
