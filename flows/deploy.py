"""`make deploy`: work pools, the deployments of prefect.yaml, and the automations that bring crashed runs back."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
from prefect.automations import Automation, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.exceptions import ObjectNotFound
from prefect.states import StateType
from prefect.workers.process import ProcessWorker

from flows.notify import notification_automation
from flows.services import HEARTBEAT_SECONDS
from tasks.config_file import load
from tasks.errors import AttuneError

SILENT_SECONDS = 3 * HEARTBEAT_SECONDS


def read_configs() -> dict[str, Any]:
    """The build step of prefect.yaml: every config in configs/, by name, with all its defaults."""
    return {path.stem: load(path).model_dump(mode="json") for path in sorted(Path("configs").glob("*.yaml"))}


def deploy(gpus: int, notify: str) -> list[str]:
    """Make the pools and automations, register the deployments; what is there already is brought up to date.

    `gpus` is how many runs the pool gpu has going at a time, `notify` the notification block (type/name) that is told
    of runs that failed or crashed, or "".  Returns a line for each thing that is there now.
    """
    with get_client(sync_client=True) as client:
        _pool(client, "cpu", None)
        _pool(client, "gpu", gpus)
        _register()
        restart = client.read_deployment_by_name("restart/restart")
        automations = [_crashed(), _never_began(), _restart(restart.id)]
        if notify:
            automations.append(notification_automation(notify))
        for automation in automations:
            _keep(automation)
        names = sorted(each.name for each in client.read_deployments())
    return [
        f"work pools   cpu, gpu ({gpus} at a time)",
        f"deployments  {', '.join(names)}",
        f"automations  {', '.join(automation.name for automation in automations)}",
    ]


def _pool(client: SyncPrefectClient, name: str, limit: int | None) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def _register() -> None:
    """Prefect's own command, so that prefect.yaml means what its documentation says."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise AttuneError(f"prefect deploy --all failed:\n{(done.stdout + done.stderr)[-3000:]}")


def _crashed() -> Automation:
    """A run of ours that was heard of and then is silent has crashed, and what it held is free."""
    told = f"nothing was heard of its process for {SILENT_SECONDS} s"
    return _silent("attune: crashed", told, after="heartbeat", expect=("heartbeat", *_ENDED))


def _never_began() -> Automation:
    """A run that a worker took and never started holds its place for ever: no heartbeat of it is missed.

    Only in pools of processes: a pod may wait for its node for long.
    """
    told = f"its worker took it and did not start it within {SILENT_SECONDS} s"
    processes = {"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"}
    return _silent("attune: never began", told, "Pending", (*_ENDED, "Running", "Retrying"), processes)


def _silent(
    name: str, told: str, after: str, expect: tuple[str, ...], related: dict[str, str] | None = None
) -> Automation:
    """A flow run has crashed when SILENT_SECONDS `after` an event of it none of those that are expected has come."""
    return Automation(
        name=name,
        description=f"A flow run has crashed when {told}.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={f"prefect.flow-run.{after}"},
            expect={f"prefect.flow-run.{event}" for event in expect},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=related or {},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=told)],
    )


_ENDED = ("Completed", "Failed", "Cancelled", "Crashed")


def _restart(deployment: Any) -> Automation:
    """A crashed run is handed to the deployment `restart`."""
    return Automation(
        name="attune: restart",
        description="A crashed flow run is begun again, as often as its max_restarts says.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"prefect.flow-run.Crashed"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment,
                parameters={"flow_run_id": {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}},
            )
        ],
    )


def _keep(automation: Automation) -> None:
    """Make an automation, or bring the one of that name up to date; an equal one keeps what it has counted."""
    try:
        known = Automation.read(name=automation.name)
    except ValueError:
        automation.create()
        return
    if known.model_dump(exclude={"id"}) != automation.model_dump(exclude={"id"}):
        automation.id = known.id
        automation.update()
