"""Accepts the configured policies on a server, so that scheduled runs apply them."""

from __future__ import annotations

from prefect_artifact_retention.flows.cleanup import refuse_ephemeral_server
from prefect_artifact_retention.flows.server_policies import with_server_policies
from prefect_artifact_retention.flows.settings import RetentionSettings, resolve_policies
from prefect_artifact_retention.policies.acceptance import Acceptance
from prefect_artifact_retention.policies.meaning import meaning
from prefect_artifact_retention.stores.acceptances import Acceptances
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.tasks.producers.holding import default_holder


async def accept(settings: RetentionSettings, by: str = "") -> tuple[Acceptance, str]:
    """Leave a record that the configured policies are accepted, and return it, and where they come from.

    Raises:
        ConfigurationError: There are no policies, they are invalid, or no server is configured.
        StoreError: The server cannot be reached, or refuses the record.
    """
    refuse_ephemeral_server(settings)
    async with connect() as connection:
        policies, source = resolve_policies((), await with_server_policies(settings, connection), "delete")
        record = Acceptance.of(meaning(policies), await connection.now(), by or default_holder())
        await Acceptances(connection).write(record)
    return record, source
