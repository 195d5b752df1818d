"""The inputs of a flow run on the server: texts by key, which last as long as the run, and are no artifacts."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.connection import Connection


class RunInputs:
    """Reads and writes the inputs of one flow run.

    Every method raises `StoreError` if the server cannot be reached, or refuses a request.
    """

    def __init__(self, connection: Connection, run_id: UUID) -> None:
        self._connection = connection
        self._path = f"/flow_runs/{run_id}/input"

    async def write(self, key: str, text: str) -> None:
        """Write an input. One that is there stays as it is: the answer to an earlier attempt may have been lost."""
        await self._connection.create(self._path, {"key": key, "value": text})

    async def read(self, key: str) -> str | None:
        """Read an input; None if there is none."""
        found = await self._connection.find(f"{self._path}/{key}")
        return None if found is None else found.text

    async def delete(self, key: str) -> None:
        """Delete an input, as far as possible; what is left goes with its run."""
        with suppress(StoreError):
            await self._connection.request("DELETE", f"{self._path}/{key}")
