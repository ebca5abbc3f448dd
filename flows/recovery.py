"""What brings crashed runs back: the flow `restart`, what a worker does when it starts, and the death of a worker."""

import logging
import os
import signal
import socket
from uuid import UUID

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
from prefect import State, flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Completed, Crashed

from tasks.parent import end_with

log = logging.getLogger("attune")

WORKER_PID = "ATTUNE_WORKER_PID"
"""Environment variable of the processes that a worker starts."""
_UNENDED = ("PENDING", "RUNNING", "CANCELLING")


@flow(name="restart", persist_result=False)
def restart(flow_run_id: UUID) -> State[None]:
    """Begin a crashed pipeline or sweep again, as often as its `max_restarts` says.

    A fine-tune that a pipeline waits for is begun again by that pipeline, and a run without a config is not ours.
    """
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run_id)
        if run.parent_task_run_id is not None or "config" not in run.parameters:
            return Completed(message=f"{run.name} is not begun again here")
        return Completed(message=f"{run.name}: {begin_again(client, run)}")


def begin_again(client: SyncPrefectClient, run: FlowRun) -> str:
    """Schedule a crashed run once more if its config allows it; returns what was done, in words."""
    if run.state is None or not run.state.is_crashed():
        return "is no longer crashed"
    crashes = sum(state.is_crashed() for state in client.read_flow_run_states(run.id))
    allowed = run.parameters["config"].get("max_restarts", 0)
    if crashes > allowed:
        return f"crashed {crashes} times; max_restarts is {allowed}"
    client.set_flow_run_state(run.id, AwaitingRetry(message=f"restart {crashes} of {allowed} after a crash"))
    return f"begins again, restart {crashes} of {allowed}"


def reconcile(pool: str) -> list[str]:
    """Mark as crashed what a dead worker of this machine left unended in a pool; returns the names of the runs.

    Heartbeats find such a run as well, but later; until then it holds a place in the pool.
    """
    with get_client(sync_client=True) as client:
        unended = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": list(_UNENDED)}}}),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
        )
        dead = [run for run in unended if _died_here(run, pool)]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)
    return [run.name for run in dead]


def worker_name(pool: str) -> str:
    """The name of a worker of this machine that is this process; its runs bear it as a label."""
    return f"{pool}@{socket.gethostname()}-{os.getpid()}"


def _died_here(run: FlowRun, pool: str) -> bool:
    """Whether the run's process was one of this machine and is gone; before it has one, that of its worker counts."""
    home, _, worker = str(run.labels.get("prefect.worker.name", "")).rpartition("-")
    if home != worker_name(pool).rpartition("-")[0]:
        return False
    pid = run.infrastructure_pid or worker
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            return b"prefect" not in command.read()
    except FileNotFoundError:
        return True


def end_with_worker() -> None:
    """A run that a worker started gets SIGTERM when the worker dies, however it dies; training saves itself then.

    Without its worker a run could be neither cancelled nor limited, and a restarted one would race with it.
    """
    if worker := os.environ.get(WORKER_PID):
        end_with(int(worker), signal.SIGTERM)
