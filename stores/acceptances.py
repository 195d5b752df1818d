"""The records of the policies that were applied or accepted, on the server: each a Prefect Variable of its own."""

from __future__ import annotations

from prefect_artifact_retention.policies.acceptance import VARIABLE_PREFIX, Acceptance, read_acceptance
from prefect_artifact_retention.stores.connection import Connection
from prefect_artifact_retention.stores.paging import Paging


class Acceptances(Paging):
    """Reads and writes these records through the API.

    Every method raises `StoreError` if the server cannot be reached, or refuses a request.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        # Variables are small, and a single page needs no second reading.
        self._page_rows = self._max_page_rows

    async def all(self) -> tuple[list[Acceptance], list[str]]:
        """Read the records, and return with them the names of the variables that cannot be read as one and accept nothing."""
        found: list[Acceptance] = []
        unreadable: list[str] = []
        async for page in self._pages(
            "/variables/filter", {"name": {"like_": VARIABLE_PREFIX}}, "NAME_ASC", body_field="variables"
        ):
            for row in page:
                name = str(row.get("name"))
                if not name.startswith(VARIABLE_PREFIX):
                    continue
                if record := read_acceptance(name, row.get("value")):
                    found.append(record)
                else:
                    unreadable.append(name)
        return found, unreadable

    async def write(self, record: Acceptance) -> None:
        """Write a record, in place of an earlier one of the same policies."""
        body = {"name": record.variable, "value": record.value()}
        if not await self.connection.create("/variables/", body):
            await self.connection.request("PATCH", f"/variables/name/{record.variable}", {"value": record.value()})
