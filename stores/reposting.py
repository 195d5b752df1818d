"""Creates archived versions anew through the Prefect API, where neither an id nor a date can be given.

Each names in its metadata the version that it restores, so that a restore that is repeated knows what it has created.
Prefect's client would send a request again whose answer was lost, and the version would be there twice: so each is sent once,
and before it is sent again, the newest versions are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.api import NEWEST_ROWS, ApiStore
from prefect_artifact_retention.stores.archive.model import ArchivedVersion
from prefect_artifact_retention.stores.connection import HTTP_CREDENTIALS_REFUSED, HTTP_TOO_MANY_REQUESTS, without_retries
from prefect_artifact_retention.stores.paging import HTTP_SERVER_ERROR
from prefect_artifact_retention.stores.rows import row_metadata

RESTORED_FROM = "artifact-retention-restored-from"
"""Metadata entry of a restored version: the id of the version that it restores."""

RESTORED_CREATED = "artifact-retention-restored-created"
"""Metadata entry of a restored version: when the version was created that it restores."""

HTTP_CLIENT_ERROR = 400
HTTP_REQUEST_TIMEOUT = 408

ATTEMPT_PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0)
"""The pauses before a version is looked for whose creation was not answered, and created again if it is not there. With more
or longer ones, a server that is out of reach is waited for longer."""


class RestoredVersion(NamedTuple):
    """A version that restores another one."""

    id: UUID
    key: str | None


class Reposting(ApiStore):
    """Creates archived versions anew.

    Every method raises `StoreError` if the server cannot be reached or sends an unexpected answer.
    """

    async def has_collection(self, key: str) -> bool:
        """Return whether a key has any version."""
        return bool(await self._count("/artifacts/latest", {"key": {"any_": [key]}}))

    async def count_versions(self, key: str) -> int:
        """Count the versions of a key."""
        return await self._count("/artifacts", {"key": {"any_": [key]}})

    async def restored(self, *keys: str | None, runs: Collection[UUID] = ()) -> dict[UUID, list[RestoredVersion]]:
        """Return the versions of some keys that restore others, by the id of the version restored, the newest first.

        Args:
            keys: The keys, or None alone.
            runs: The flow runs that wrote the versions restored, which those that restore them name, too. With them, no other
                versions of the keys are read, however many there are; without, all are.
        """
        found: dict[UUID, list[RestoredVersion]] = {}

        async def find(part: Sequence[UUID]) -> None:
            only = {**_only(*keys), **({"flow_run_id": {"any_": [str(each) for each in part]}} if part else {})}
            async for page in self._pages("/artifacts/filter", only, "CREATED_DESC"):
                for row in page:
                    if source := _source(row):
                        version = RestoredVersion(UUID(row["id"]), row["key"])
                        if version not in found.setdefault(source, []):
                            found[source].append(version)
                page.clear()

        if runs:
            await self._in_parts(sorted(runs), find)
        else:
            await find(())
        return found

    async def repost(self, version: ArchivedVersion, key: str | None, description: str, metadata: Mapping[str, str]) -> bool:
        """Create a version anew. Return whether it took a single request, so that it cannot be there twice.

        Args:
            version: The version, with its payload.
            key: The key of the new version.
            description: Its description.
            metadata: Its metadata, with the id of the version that it restores.
        """
        given = {"key": key, "type": version.type, "description": description, "metadata_": metadata}
        body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        body |= {"flow_run_id": version.flow_run_id, "task_run_id": version.task_run_id}
        if version.data is not None:
            # The text itself: numbers stay as they are written.
            body["data"] = orjson.Fragment(version.data)
        attempts: list[float] = []
        for pause in (*ATTEMPT_PAUSES, None):
            try:
                with without_retries():
                    await self.connection.request("POST", "/artifacts/", body, attempts=attempts)
            except StoreError as error:
                if pause is None or not _may_be_lost(error):
                    raise
                await asyncio.sleep(pause)
                if await self._is_there(version.id, key):
                    break
            else:
                break
        return len(attempts) == 1

    async def remove_duplicates(self, key: str | None) -> None:
        """Delete all but the first of the versions that restore the same one: the server was slow to create the others."""
        for versions in (await self.restored(key)).values():
            for version in versions[:-1]:
                await self.delete(version.id)

    async def _is_there(self, source: UUID, key: str | None) -> bool:
        body = {"artifacts": _only(key), "sort": "CREATED_DESC", "limit": NEWEST_ROWS}
        return any(_source(row) == source for row in await self.connection.ask("/artifacts/filter", body))


def is_refusal(error: StoreError) -> bool:
    """Whether the server refuses a version, and may take the next one."""
    status = error.status
    is_of_client = status is not None and HTTP_CLIENT_ERROR <= status < HTTP_SERVER_ERROR
    return is_of_client and status not in HTTP_CREDENTIALS_REFUSED and not _may_be_lost(error)


def _may_be_lost(error: StoreError) -> bool:
    """Whether the server may have acted all the same, or may act on the next attempt."""
    return (
        error.status is None
        or error.status >= HTTP_SERVER_ERROR
        or error.status
        in {
            HTTP_REQUEST_TIMEOUT,
            HTTP_TOO_MANY_REQUESTS,
        }
    )


def _only(*keys: str | None) -> Mapping[str, Any]:
    return {"key": {"exists_": False} if keys == (None,) else {"any_": list(keys)}}


def _source(row: Mapping[str, Any]) -> UUID | None:
    metadata = row_metadata(row)
    try:
        return UUID(metadata[RESTORED_FROM])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
