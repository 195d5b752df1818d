"""The alarm: an automation on the Prefect server that notifies people when no cleanup has succeeded for a day.

A nightly run that never starts leaves no failed run behind, so an alarm on failed runs would not notice it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import httpx
from prefect.client.schemas.objects import BlockDocument
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore, CompoundTrigger, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect_artifact_retention.flows.cleanup import EPHEMERAL_SERVER, EVENT, RUNNING, SCOPE_LABEL, SUCCESSES
from prefect_artifact_retention.policies import ConfigurationError, StoreError
from prefect_artifact_retention.policies.globs import impossible
from prefect_artifact_retention.stores.connection import connect, reason, uses_ephemeral_server
from prefect_artifact_retention.tasks.rendering import scope_label
from prefect_artifact_retention.tasks.report import in_order, scope_digest
from pydantic import BaseModel, Field

NAME = "artifact-retention-alarm"
MIN_HOURS = 10 / 3600
"""Ten seconds. Prefect's server checks for missing events every few seconds, so a shorter time would make false alarms."""


class Alarm(BaseModel):
    """The alarm that was created or changed."""

    name: str = Field(description="The automation.")
    server: str = Field(description="The address of the server's API, without credentials.")
    block: str = Field(description="The block that is called.")
    scope: str = Field(description="The keys whose cleanups are watched.")
    hours: float = Field(description="How long no cleanup may have succeeded.")
    renewed: bool = Field(description="Whether the automation was there before.")

    def describe(self) -> str:
        """Describe in one line when the alarm goes off, and which block it calls."""
        how = "changed" if self.renewed else "set up"
        when = f"when no cleanup of {self.scope} succeeds for {self.hours:g} hours"
        return f"{self.name}: {how} on {self.server}; calls {self.block} {when}"


async def set_up_alarm(block: str, hours: float, keys: Sequence[str] = ()) -> Alarm:
    """Create the automation, or change the existing one.

    Args:
        block: The block to call, as TYPE/NAME, such as `slack-webhook/ops` or `webhook/pager`.
        hours: The time without a successful cleanup after which the alarm goes off.
        keys: The parameter `keys` of the cleanups that are watched; empty for cleanups of all keys.

    Raises:
        ConfigurationError: There is no such block, it is no notification or webhook, `hours` is out of bounds, no key can
            match one of `keys`, or no server is configured.
        StoreError: The server cannot be reached, or refuses a request.
    """
    if not MIN_HOURS <= hours <= 24 * 365:
        raise ConfigurationError(f"command line: hours = {hours:g}: must be between 10 seconds and a year")
    for glob in keys:
        if problem := impossible(glob):
            raise ConfigurationError(f"command line: keys: {problem}")
    if uses_ephemeral_server():
        raise ConfigurationError(f"{EPHEMERAL_SERVER}. An alarm on it would end with this command")
    scope = scope_label(keys)
    name = " ".join([NAME, *in_order(keys)])
    async with connect() as connection:
        client = connection.client
        await connection.now()
        try:
            action = _action(await client.read_block_document_by_name(*_slugs(block)), block, scope, hours)
            automation = AutomationCore(
                name=name,
                description=f"Tells when no cleanup of {scope} has succeeded for {hours:g} hours.",
                trigger=_trigger(scope_digest(keys), timedelta(hours=hours)),
                actions=[action],
            )
            present = await client.read_automations_by_name(name)
            if present:
                await client.update_automation(present[0].id, automation)
            else:
                await client.create_automation(automation)
        except ObjectNotFound:
            raise ConfigurationError(f"there is no block {block}: create it in the UI, or see `prefect block ls`") from None
        except httpx.HTTPError as error:
            raise StoreError(f"the alarm could not be set up: {reason(error)}") from None
        server = connection.address
    return Alarm(name=name, server=server, block=block, scope=scope, hours=hours, renewed=bool(present))


def _slugs(block: str) -> tuple[str, str]:
    """Return the name and the type of a block, in the order of the arguments of Prefect's client."""
    kind, _, name = block.partition("/")
    if not kind or not name:
        raise ConfigurationError(f"{block} names no block: it must be TYPE/NAME, such as slack-webhook/ops")
    return name, kind


def _action(block: BlockDocument, name: str, scope: str, hours: float) -> CallWebhook | SendNotification:
    message = f"No cleanup of {scope} has succeeded for {hours:g} hours. Check the runs of the flow artifact-cleanup."
    if block.block_type and block.block_type.slug == "webhook":
        return CallWebhook(block_document_id=block.id, payload=message)
    if block.block_schema and "notify" in block.block_schema.capabilities:
        return SendNotification(block_document_id=block.id, subject="Artifact cleanup is overdue", body=message)
    raise ConfigurationError(f"the block {name} is neither a notification nor a webhook")


def _trigger(digest: str, within: timedelta) -> CompoundTrigger:
    """Combine three triggers, of which any one sets the alarm off.

    Overdue: neither a success nor a sign of a run at work for `within`, after the last of either. It starts with one of them,
    so alone it would miss a cleanup that has never worked. Never: the same in a window of `within`. The windows are fixed, so
    alone it could go off up to a window late. Endless: no success for `within` after a run has said that it is at work.
    Without it, a run that hangs, or is killed every night after an hour, would put the alarm off for ever.
    """
    signs = SUCCESSES | {RUNNING}
    overdue, never, endless = (
        EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": EVENT, SCOPE_LABEL: digest}),
            after=after,
            expect=expect,
            for_each=for_each,
            within=within,
        )
        for after, expect, for_each in (
            (signs, signs, set[str]()),
            (set[str](), signs, set[str]()),
            # By a label that is the same in all: without one, Prefect does not wait for `after`, but begins at once.
            ({RUNNING}, SUCCESSES, {"prefect.resource.id"}),
        )
    )
    return CompoundTrigger(require="any", within=None, triggers=[overdue, never, endless])
