"""`fine_tune.runs_on: gpu`: the caller's side.  Submit, wait, hand on what the worker says, take what it published."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import LogSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelling

from flows.connection import wait_for_server
from flows.recovery import begin_again
from tasks.config import PipelineConfig
from tasks.errors import AttuneError, TrainingError
from tasks.plan import Step
from tasks.store import ArtifactRef, ArtifactStore, Manifest

log = logging.getLogger("attune")

DEPLOYMENT = "fine-tune/fine-tune"
POLL_SECONDS = 2.0
REMIND_SECONDS = 60


def fine_tune(config: PipelineConfig, step: Step, inputs: Mapping[str, ArtifactRef], store: ArtifactStore) -> Manifest:
    """Have a worker of the pool gpu run fine_tune; returns the manifest of what it published in the store.

    Only the config, references and digests go through the API.  A caller that is begun again finds the run that it
    had submitted.  Raises TrainingError with the worker's message when it failed.
    """
    here = config.model_copy(update={"fine_tune": config.fine_tune.model_copy(update={"runs_on": "here"})})
    parameters = {
        "config": here.model_dump(mode="json"),
        "inputs": {name: ref._asdict() for name, ref in inputs.items()},
        "parts": step.parts,
    }
    try:
        run = run_deployment(
            DEPLOYMENT, parameters=parameters, timeout=0, idempotency_key=f"{flow_run.get_id()}-{step.key}"
        )
    except ObjectNotFound:
        raise AttuneError(
            f"fine_tune.runs_on: gpu needs the deployment {DEPLOYMENT}; make deploy registers it"
        ) from None
    log.info("fine_tune: submitted to the pool gpu as %s", run.name)
    with get_client(sync_client=True) as client, _cancelled_together(client, run.id):
        run = _wait(client, run.id)
    if run.state is None or not run.state.is_completed():
        told = run.state.message if run.state else "no state"
        raise TrainingError(f"fine_tune on the GPU worker, run {run.name}: {run.state_name}: {told}")
    manifest = store.find("fine_tune", step.key)
    if manifest is None:
        raise TrainingError(f"fine_tune: run {run.name} completed, but {step.key} is not in the store {config.store}")
    return manifest


def _wait(client: SyncPrefectClient, run_id: UUID) -> FlowRun:
    """The run once it has ended; what it logs is told here too, and after a crash it is begun again."""
    seen, begun = 0, time.monotonic()
    while True:
        try:
            run = client.read_flow_run(run_id)
            seen += _hand_on_logs(client, run_id, seen)
        except httpx.TransportError:
            wait_for_server()
            continue
        if run.state and run.state.is_crashed():
            told, again = run.state.message, begin_again(client, run)
            log.warning("fine_tune: run %s crashed: %s; %s", run.name, told, again)
            run = client.read_flow_run(run_id)
        if run.state and run.state.is_final():
            time.sleep(POLL_SECONDS)  # its last lines are on their way
            _hand_on_logs(client, run_id, seen)
            return run
        if not (run.state and run.state.is_scheduled()):
            begun = time.monotonic()
        elif time.monotonic() - begun > REMIND_SECONDS:
            begun = time.monotonic()
            log.warning("fine_tune: run %s waits for a worker of the pool gpu; make gpu-worker starts one", run.name)
        time.sleep(POLL_SECONDS)


@contextmanager
def _cancelled_together(client: SyncPrefectClient, run_id: UUID) -> Iterator[None]:
    """Inside, whoever cancels this run cancels that one; one whose worker died comes back and finds the other again."""
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal) as ended:
        if isinstance(ended, KeyboardInterrupt) or _is_cancelled(client):
            client.set_flow_run_state(run_id, Cancelling(message="the run that waits for it was cancelled"))
        raise


def _is_cancelled(client: SyncPrefectClient) -> bool:
    """Whether a person cancelled this run."""
    state = client.read_flow_run(UUID(flow_run.get_id())).state
    return state is not None and state.is_cancelling()


def _hand_on_logs(client: SyncPrefectClient, run_id: UUID, seen: int) -> int:
    """Tell what the worker has logged since; returns how many lines."""
    lines = client.read_logs(
        LogFilter.model_validate({"flow_run_id": {"any_": [run_id]}}), offset=seen, sort=LogSort.TIMESTAMP_ASC
    )
    for line in lines:
        if line.name.startswith("attune"):
            log.log(line.level, "gpu: %s", line.message)
    return len(lines)
