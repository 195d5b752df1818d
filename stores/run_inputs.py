"""The inputs of a flow run on the server: texts by key, which last as long as the run, and are no artifacts."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.api import HTTP_NOT_FOUND
from prefect_artifact_retention.stores.connection import Connection

HTTP_CONFLICT = 409


class RunInputs:
    """Reads and writes the inputs of one flow run.

    Every method raises `StoreError` if the server cannot be reached, or refuses a request.
    """

    def __init__(self, connection: Connection, run_id: UUID) -> None:
        self._connection = connection
        self._path = f"/flow_runs/{run_id}/input"

    async def write(self, key: str, text: str) -> None:
        """Write an input. One that is there stays as it is: the answer to an earlier attempt may have been lost."""
        try:
            await self._connection.request("POST", self._path, {"key": key, "value": text})
        except StoreError as error:
            if error.status != HTTP_CONFLICT:
                raise

    async def read(self, key: str) -> str | None:
        """Read an input; None if there is none."""
        try:
            return (await self._connection.request("GET", f"{self._path}/{key}")).text
        except StoreError as error:
            if error.status == HTTP_NOT_FOUND:
                return None
            raise

    async def delete(self, key: str) -> None:
        """Delete an input, as far as possible; what is left goes with its run."""
        with suppress(StoreError):
            await self._connection.request("DELETE", f"{self._path}/{key}")
