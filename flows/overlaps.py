"""Scheduled runs that were skipped, since the deployment allows one at a time and one was going on."""

import logging
from collections.abc import Iterator
from itertools import count

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
PAGE_ROWS = 200


def skipped_since_last_run() -> int:
    """How many runs of this flow run's deployment were skipped between the beginning of its last run and of this one.

    Every skipped run is told of once, by the run that begins next.  0 in a run that no deployment started.
    """
    if not runtime.deployment.id:
        return 0
    with get_client(sync_client=True) as client:
        this = client.read_flow_run(runtime.flow_run.id)
        before = {"deployment_id": {"any_": [this.deployment_id]}, "start_time": {"before_": this.start_time}}
        earlier = next((run for run in _runs(client, before) if run.id != this.id), None)
        since = {"after_": earlier.start_time} if earlier else {}
        cancelled = {
            "deployment_id": {"any_": [this.deployment_id]},
            "state": {"type": {"any_": ["CANCELLED"]}},
            "end_time": {"before_": this.start_time, **since},
        }
        skipped = sum(run.state.message == SKIPPED for run in _runs(client, cancelled) if run.state)
    if skipped:
        log.info("%d scheduled runs were skipped, since the last one was still going on", skipped)
    return skipped


def _runs(client: SyncPrefectClient, which: dict[str, object]) -> Iterator[FlowRun]:
    """The runs that a filter finds, the latest start first."""
    chosen = FlowRunFilter.model_validate(which)
    for offset in count(0, PAGE_ROWS):
        page = client.read_flow_runs(
            flow_run_filter=chosen, sort=FlowRunSort.START_TIME_DESC, limit=PAGE_ROWS, offset=offset
        )
        yield from page
        if len(page) < PAGE_ROWS:
            return
