"""Failed and crashed runs are told through a notification block of Prefect: Slack, e-mail, a webhook, …"""

from uuid import UUID

import flows.prefect_settings  # noqa: F401  (Prefect reads its settings when it is first imported)

# isort: split
from prefect.automations import Automation, EventTrigger, Posture
from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.exceptions import ObjectNotFound

from tasks.errors import ConfigError

NAME = "attune: notify"
FLOWS = ["pipeline", "sweep"]
"""A fine-tune that fails ends the pipeline that waits for it, which is told."""
SUBJECT = "{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}"
BODY = """{{ flow_run.name }}, config {{ flow_run.parameters.config.name }}: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run | ui_url }}"""


def notification_automation(block: str) -> Automation:
    """The automation that tells of each failed or crashed run through the notification block `type/name`.

    Raises ConfigError when the server has no such block.
    """
    return Automation(
        name=NAME,
        description=f"Failed and crashed runs are told through {block}.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
            for_each={"prefect.resource.id"},
            threshold=1,
        ),
        actions=[SendNotification(block_document_id=_id_of(block), subject=SUBJECT, body=BODY)],
    )


def _id_of(block: str) -> UUID:
    kind, slash, name = block.partition("/")
    if not (kind and slash and name):
        raise ConfigError(f"--notify {block}: is TYPE/NAME of a block, such as slack-webhook/alerts")
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, kind).id
        except ObjectNotFound:
            raise ConfigError(
                f"--notify {block}: the server has no such block; make it in its UI under Blocks"
            ) from None
