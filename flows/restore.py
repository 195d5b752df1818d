"""The restore flow: what the archive has of deleted versions comes back.

`apply=False`, the default, restores nothing and says what it would restore.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

from prefect_artifact_retention.flows.archive import open_configured_archive
from prefect_artifact_retention.flows.cleanup import database_url, refuse_ephemeral_server
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.database import open_database
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.tasks.restore import ReadsArchive, Restore, Selection

NO_ARCHIVE = "no archive is configured, from which anything could come back: set archive_url or archive_block"


@asynccontextmanager
async def open_restore(
    settings: RetentionSettings,
    selection: Selection,
    own_runs: Collection[UUID] = frozenset(),
    *,
    archive: ReadsArchive | None = None,
) -> AsyncIterator[Restore]:
    """Open a restore: connect to the server and the database, open the archive, and read the server's clock.

    Args:
        settings: The settings.
        selection: What is to be restored.
        own_runs: The flow run that restores; a preview has none.
        archive: The archive; by default the one that is configured.

    Raises:
        ConfigurationError: No server or no archive is configured.
        StoreError: The server or the database cannot be reached, or refuses a request.
    """
    if own_runs:
        refuse_ephemeral_server(settings)
    async with connect(settings.max_requests_per_minute) as connection, AsyncExitStack() as stack:
        server = Server(connection)
        now = await server.now()
        archive = archive or await open_configured_archive(settings, connection.client)
        if archive is None:
            raise ConfigurationError(NO_ARCHIVE)
        database = None
        if url := await database_url(settings, connection.client):
            database = await stack.enter_async_context(open_database(url))
            await database.check(server, own_runs, deletes=bool(own_runs))
        yield Restore(archive, connection, database, selection, now)
