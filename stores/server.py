"""The Prefect server itself: its clock and version, what it deletes by itself, flow runs, and this package's own artifacts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.paging import Paging
from prefect_artifact_retention.stores.rows import (
    MAX_QUOTED_CHARS,
    TESTED,
    TESTED_VERSIONS,
    FlowRun,
    read_collection,
    read_flow_run,
)
from prefect_artifact_retention.stores.store import Collection
from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Expiry:
    """The artifacts that the server itself deletes, regardless of any policy.

    Attributes:
        of_runs: The age after which the artifacts of ended flow runs are deleted; None if they are not.
        of_orphans: Whether the artifacts of flow runs that no longer exist are deleted.
    """

    of_runs: timedelta | None
    of_orphans: bool


class Server(Paging):
    """The Prefect server that a run talks to, wherever the versions are read and deleted."""

    async def now(self) -> datetime:
        """Read the server's clock."""
        return await self.connection.now()

    async def untested_version(self) -> str:
        """Return a warning if this package is not tested with the server's version; empty if it is, or on Cloud."""
        if self.connection.is_cloud:
            return ""
        tested = f"this package is tested with Prefect {TESTED}, and may misread other versions"
        answer = await self.version()
        if not (numbers := re.match(r"([0-9]{1,6})\.([0-9]{1,6})(?![0-9])", answer)):
            return f"the server does not say which version of Prefect it runs; {tested}"
        if TESTED_VERSIONS[0] <= (int(numbers[1]), int(numbers[2])) <= TESTED_VERSIONS[1]:
            return ""
        return f"the server runs Prefect {answer}; {tested}"

    async def version(self) -> str:
        """Return the version of Prefect that the server says it runs; empty if it does not."""
        try:
            answer = str(self.connection.json(await self.connection.request("GET", "/admin/version")))
        except StoreError:
            return ""
        return printable(answer[:MAX_QUOTED_CHARS])

    async def expiry(self) -> Expiry | None:
        """Read what the server's own `db_vacuum` deletes; None if the server does not show its settings."""
        try:
            settings = self.connection.json(await self.connection.request("GET", "/admin/settings"))
            vacuum = settings["server"]["services"]["db_vacuum"]
            enabled = vacuum["enabled"]
            retention = TypeAdapter(timedelta).validate_python(vacuum["retention_period"])
        except (StoreError, KeyError, TypeError, ValueError):
            return None
        # As Prefect reads it (ServerServicesDBVacuumSettings.enabled_vacuum_types): true is all, false is events.
        kinds = {"flow_runs"} if enabled is True else set(enabled or ())
        return Expiry(retention if "flow_runs" in kinds else None, of_orphans=bool(kinds & {"flow_runs", "orphans"}))

    async def detect_concurrency(self, flow_name: str = "") -> None:
        """Allow concurrent requests from now on, if the server is on PostgreSQL.

        Prefect's API does not name the database. But it passes the pattern of a filter to LIKE, and in it a backslash is an
        escape on PostgreSQL (https://www.postgresql.org/docs/current/functions-matching.html), and an ordinary character
        on SQLite (https://www.sqlite.org/lang_expr.html). Any doubtful answer counts as SQLite.

        Args:
            flow_name: The name of a flow that exists on the server; empty if none is known.
        """
        with suppress(StoreError, LookupError, TypeError):
            # That the server has no flows at all is doubtful, too.
            flow_name = flow_name or str((await self.connection.ask("/flows/filter", {"limit": 1}))[0]["name"])
        only = {"name": {"any_": [flow_name], "like_": f"\\{flow_name}"}}
        with suppress(StoreError):
            if self.connection.is_cloud or await self._count("/flows", only, body_field="flows"):
                self.connection.allow_concurrency()

    async def flow_runs(self, ids: Iterable[UUID]) -> list[FlowRun]:
        """Read those of the flow runs `ids` that exist."""
        return await self._existing("flow_runs", ids, read_flow_run)

    async def last_changed(self, limit: int) -> list[Collection]:
        """Read the collections that changed last."""
        body = {"artifacts": {}, "sort": "UPDATED_DESC", "limit": limit}
        return [read_collection(row) for row in await self.connection.ask("/artifacts/latest/filter", body)]

    async def newest_rows(self, key: str, limit: int, *, sort: str = "CREATED_DESC") -> list[dict[str, Any]]:
        """Read the newest (or last updated) versions of one key as rows of the server, with payloads."""
        rows: list[dict[str, Any]] = []
        self._page_rows = min(self._page_rows, limit)
        async for page in self._pages("/artifacts/filter", {"key": {"any_": [key]}}, sort):
            rows += page
            if len(rows) >= limit:
                break
        return rows[:limit]
