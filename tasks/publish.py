"""Creates this package's own artifacts; and has `publish_artifact`, which producers may still import from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Artifact
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.paging import HTTP_CONTENT_TOO_LARGE
from prefect_artifact_retention.tasks.producers.artifacts import new_artifact
from prefect_artifact_retention.tasks.producers.publishing import publish_artifact

__all__ = ["create", "create_first_accepted", "publish_artifact"]


async def create(  # noqa: PLR0913 - the fields of an artifact
    client: PrefectClient,
    data: object,
    *,
    type: str,  # noqa: A002 - Prefect's name of the field
    key: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Artifact:
    """Create an artifact of the current flow run and task run, with metadata.

    Raises:
        StoreError: The server's answer cannot be read; the artifact may have been created.
        httpx.HTTPError: The server cannot be reached, or refuses the artifact.
    """
    artifact = new_artifact(data, type=type, key=key, description=description, metadata=metadata)
    try:
        return await shielded(client.create_artifact(artifact))
    except ValueError as error:
        raise StoreError("the server's answer to a new artifact cannot be read") from error


async def create_first_accepted(  # noqa: PLR0913 - the fields of an artifact
    client: PrefectClient,
    candidates: Iterable[object],
    *,
    type: str,  # noqa: A002 - Prefect's name of the field
    key: str,
    description: str,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Create an artifact of the first of several contents, each smaller than the one before, that is not too large (413).

    A proxy before the server may take less than the server does.

    Returns:
        The index of that content.

    Raises:
        StoreError: As `create`.
        httpx.HTTPError: As `create`; of the last content, also that it is too large.
    """
    refused: httpx.HTTPStatusError | None = None
    for number, data in enumerate(candidates):
        try:
            await create(client, data, type=type, key=key, description=description, metadata=metadata)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != HTTP_CONTENT_TOO_LARGE:
                raise
            refused = error
        else:
            return number
    raise refused or ValueError("there is no content to create an artifact of")
