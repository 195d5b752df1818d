"""Holds on the server: on keys, each a Prefect Variable of its own, and on versions, in their metadata.

The API can neither change an entry of metadata alone nor refuse a change of what has changed meanwhile. So what is written is
read again once whoever wrote at the same time has written, and written again if it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.control import HOLD_ENTRIES
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.holds import VARIABLE_PREFIX, Hold, read_metadata, read_variable, variable_name
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.connection import HTTP_NOT_FOUND, Connection
from prefect_artifact_retention.stores.paging import Paging
from prefect_artifact_retention.stores.rows import row_metadata

MAX_ATTEMPTS = 10
"""How often a hold is written, or the list of holds read, while others change it. With more, it takes longer to give up."""

SETTLE_SECONDS = 0.25
"""The time after which what was written is read again: longer than others take between reading and writing. With less, it goes
unnoticed what they overwrite; with more, each hold takes longer on a version, or in the place of another one."""


class LastingHoldError(StoreError):
    """There is a hold that lasts longer than the one that was to take its place."""


class Holds(Paging):
    """Reads and writes holds through the API.

    Every method raises `StoreError` if the server cannot be reached, sends an unexpected answer, or has a variable that cannot
    be read as a hold.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        # Variables are small, and a single page needs no second reading.
        self._page_rows = self._max_page_rows

    async def on_keys(self) -> list[Hold]:
        """Read the holds on all keys, expired ones included.

        Variables that are deleted during the listing shift its pages and hide others. So, unless it is a single page, it is
        read until it is the same twice.
        """
        before: list[Hold] | None = None
        for _attempt in range(MAX_ATTEMPTS):
            found: list[Hold] = []
            pages = 0
            only = {"name": {"like_": VARIABLE_PREFIX}}
            async for page in self._pages("/variables/filter", only, "NAME_ASC", body_field="variables"):
                found += [_read(row) for row in page if _name(row).startswith(VARIABLE_PREFIX)]
                pages += 1
            if pages == 1 or found == before:
                return found
            before = found
        raise StoreError("the holds on keys change all the time")

    async def on_versions(self, key: str) -> list[Hold]:
        """Read the holds on the versions of one key, the newest version first."""
        versions = (await ApiStore(self.connection).history(key)).versions
        found = (read_metadata(versions.ids[index], key, versions.metadata(index)) for index in versions.controlled)
        return [hold for hold in found if hold]

    async def on_version(self, version_id: UUID) -> tuple[str | None, list[Hold]]:
        """Read the key of a version, and the hold on the version, if any.

        Raises:
            StoreError: There is no such version.
        """
        key, metadata = await self._version(version_id)
        found = read_metadata(version_id, key, metadata)
        return key, [found] if found else []

    async def exists(self, version_id: UUID) -> bool:
        """Return whether there is such a version."""
        return bool(await self._count("/artifacts", {"id": {"any_": [str(version_id)]}}))

    async def has_versions(self, key: str) -> bool:
        """Return whether a key has any version."""
        return bool(await self._count("/artifacts", {"key": {"any_": [key]}}))

    async def hold_key(self, key: str, hold: Hold) -> Hold | None:
        """Put a hold on a key, in place of a hold on it that ends no later. Return the one in whose place it is.

        Raises:
            StoreError: There is one that lasts longer.
        """
        name = variable_name(key)
        replaced: Hold | None = None
        for _attempt in range(MAX_ATTEMPTS):
            if await self.connection.create("/variables/", {"name": name, "value": hold.value()}):
                return replaced
            there = await self._variable(name)
            if there == hold:
                # The answer to the request was lost, and it was sent again.
                return replaced
            if there:
                _refuse_shortening(there, hold, repr(key))
                replaced = replaced or there
            await self._change("PATCH", name, {"value": hold.value()})
            # Somebody else may have read the same hold before, and may put a shorter one in the place of this one.
            await asyncio.sleep(SETTLE_SECONDS)
            if (there := await self._variable(name)) and not hold.outlasts(there):
                return replaced
        raise StoreError(f"the hold on {key!r} is changed by others all the time")

    async def extend_key(self, key: str, hold: Hold) -> Hold:
        """Put a hold on a key unless there is one that ends no earlier. Return the one that holds it then."""
        name = variable_name(key)
        for _attempt in range(MAX_ATTEMPTS):
            if await self.connection.create("/variables/", {"name": name, "value": hold.value()}):
                return hold
            if (there := await self._variable(name)) and not hold.outlasts(there):
                return there
            # Somebody may put one on it meanwhile that ends later.
            with suppress(LastingHoldError):
                await self.hold_key(key, hold)
                return hold
        raise StoreError(f"the hold on {key!r} is changed by others all the time")

    async def release_key(self, key: str) -> bool:
        """Release a key, whatever its variable says. Return whether it was held."""
        return await self._change("DELETE", variable_name(key))

    async def hold_version(self, version_id: UUID, hold: Hold) -> tuple[Hold, Hold | None]:
        """Hold a version, in place of a hold on it that ends no later, and leave its other metadata as they are.

        Returns:
            The hold with the key of the version, and the hold in whose place it is.

        Raises:
            StoreError: There is no such version, or there is a hold that lasts longer.
        """
        replaced: Hold | None = None
        for _attempt in range(MAX_ATTEMPTS):
            key, metadata = await self._version(version_id)
            if there := read_metadata(version_id, key, metadata):
                _refuse_shortening(there, hold, f"version {version_id}")
                replaced = replaced or there
            await self._write(version_id, _others(metadata) | hold.entries())
            _key, metadata = await self._version(version_id)
            if (there := read_metadata(version_id, key, metadata)) and not hold.outlasts(there):
                return hold.model_copy(update={"key": key}), replaced
        raise StoreError(f"the metadata of version {version_id} are changed by others all the time")

    async def release_version(self, version_id: UUID) -> bool:
        """Release a version, and leave its other metadata as they are. Return whether it was held.

        Raises:
            StoreError: There is no such version.
        """
        _key, metadata = await self._version(version_id)
        if not (released := _own(metadata)):
            return False
        for _attempt in range(MAX_ATTEMPTS):
            await self._write(version_id, _others(metadata))
            _key, metadata = await self._version(version_id)
            # Another hold is one that somebody has put on the version since.
            if _own(metadata) != released:
                return True
        raise StoreError(f"the metadata of version {version_id} are changed by others all the time")

    async def _version(self, version_id: UUID) -> tuple[str | None, dict[str, str]]:
        """Read the key and the metadata of a version."""
        if (found := await self.connection.find(f"/artifacts/{version_id}")) is None:
            raise StoreError(f"there is no artifact with the id {version_id}", HTTP_NOT_FOUND)
        row = self.connection.json(found)
        return row.get("key"), dict(row_metadata(row) or {})

    async def _write(self, version_id: UUID, metadata: Mapping[str, str]) -> None:
        await self.connection.request("PATCH", f"/artifacts/{version_id}", {"metadata_": metadata})
        await asyncio.sleep(SETTLE_SECONDS)

    async def _variable(self, name: str) -> Hold | None:
        found = await self.connection.find(f"/variables/name/{name}")
        return None if found is None else _read(self.connection.json(found))

    async def _change(self, method: str, name: str, body: object = None) -> bool:
        """Change or delete a variable. Return False if there is none."""
        attempts: list[float] = []
        try:
            await self.connection.request(method, f"/variables/name/{name}", body, attempts=attempts)
        except StoreError as error:
            if error.status != HTTP_NOT_FOUND:
                raise
            # The first attempt may have succeeded, and its answer was lost.
            return len(attempts) > 1
        return True


def _name(row: Mapping[str, Any]) -> str:
    if not isinstance(name := row.get("name"), str):
        raise StoreError("the server lists a variable without a name")
    return name


def _read(row: Mapping[str, Any]) -> Hold:
    name = _name(row)
    try:
        return read_variable(name, row.get("value"))
    except ValueError as error:
        raise StoreError(
            f"the variable {printable(name)} cannot be read as a hold: {printable(str(error))}; correct it, or delete it"
        ) from None


def _refuse_shortening(there: Hold, hold: Hold, what: str) -> None:
    if there.outlasts(hold):
        raise LastingHoldError(f"{what} is {there.describe()}; to hold it for less long, release it first")


def _own(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if name in HOLD_ENTRIES}


def _others(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if name not in HOLD_ENTRIES}
