"""Creates artifacts with metadata: `publish_artifact` for producers, with a hold or a TTL; `create` for this package.

Prefect's own `create_markdown_artifact` and the like take no `metadata`, in which holds and TTLs are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.control import HOLD, MAX_TTL_DAYS, TTL_DAYS
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.paging import HTTP_CONTENT_TOO_LARGE

MIN_TTL_DAYS = Decimal("0.00001")
"""About a second. A shorter TTL is taken for a mistake."""


async def publish_artifact(  # noqa: PLR0913 - the fields of an artifact
    data: object,
    *,
    type: str,  # noqa: A002 - Prefect's name of the field
    key: str | None = None,
    description: str | None = None,
    hold: bool | date | str | None = False,
    ttl_days: float | Decimal | str | None = None,
) -> UUID:
    """Create an artifact with a hold or a TTL; in a flow or task, it belongs to that run.

    In a thread without the context of the run, it belongs to the flow run for which a worker started the process, if any.

    Args:
        data: The content, by its type: markdown text, the rows of a table, a number for progress.
        type: `markdown`, `table`, `link`, `image`, `progress` or a type of your own.
        key: The key of which this becomes the latest version.
        description: The description in the UI.
        hold: True, or the last day (UTC), to keep the artifact whatever the policies say; also as text: "true", "2030-12-31".
        ttl_days: The age in days until which the artifact is kept, and after which it is stale; also as text: "30".

    Raises:
        ValueError: The hold is neither true, false nor a date; the TTL is no number of days, or too small or large; or the
            data or the description cannot be serialized.
    """
    for name, value in (("data", data), ("description", description)):
        _check_serializable(name, value)
    metadata = {}
    if hold is not None and (entry := _hold_entry(hold)) != "false":
        metadata[HOLD] = entry
    if ttl_days is not None:
        metadata[TTL_DAYS] = _ttl_entry(ttl_days)
    async with get_client() as client:
        return (await create(client, data, type=type, key=key, description=description, metadata=metadata)).id


def _check_serializable(name: str, value: object) -> None:
    """Serialize a field as the client will, whose error could not be told from one in the server's answer."""
    try:
        content = ArtifactCreate.model_validate({name: value}).model_dump(mode="json", exclude_unset=True)
        json.dumps(content, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be serialized as JSON: {error}") from error


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
    flow_run, task_run = FlowRunContext.get(), TaskRunContext.get()
    artifact = ArtifactCreate(
        key=key,
        type=type,
        description=description,
        data=data,
        metadata_=dict(metadata or {}) or None,
        task_run_id=task_run.task_run.id if task_run else None,
        flow_run_id=(
            task_run.task_run.flow_run_id
            if task_run
            else flow_run.flow_run.id
            if flow_run and flow_run.flow_run
            else _run_of_process()
        ),
    )
    try:
        return await shielded(client.create_artifact(artifact))
    except ValueError as error:
        raise StoreError("the server's answer to a new artifact cannot be read") from error


def _run_of_process() -> UUID | None:
    """Return the flow run for which a worker started this process; None in any other process.

    A thread that the producer has started itself has no context of Prefect that says which run it works for. Whatever runs in
    such a process does so for this run, or for one that this run called and waits for, so the artifact is protected until both
    have ended. Of a process that a person started, nothing says which of its runs a thread works for, and none is guessed.
    """
    try:
        return UUID(os.environ.get("PREFECT__FLOW_RUN_ID", ""))
    except ValueError:
        return None


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


def _hold_entry(hold: object) -> str:
    """Write a hold as metadata has it: true, false, or a date."""
    if isinstance(hold, datetime) and hold.tzinfo:
        hold = hold.astimezone(UTC)
    if isinstance(hold, date):
        return date(hold.year, hold.month, hold.day).isoformat()
    text = str(hold).strip().lower() if isinstance(hold, str | bool) else ""
    if text in {"true", "false"}:
        return text
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"hold = {hold!r} is neither true, false nor a date such as 2030-12-31") from None


def _ttl_entry(ttl_days: object) -> str:
    """Write a TTL as metadata has it: a decimal number of days, without an exponent."""
    try:
        number = Decimal("NaN" if isinstance(ttl_days, bool) else str(ttl_days))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or not MIN_TTL_DAYS <= number <= MAX_TTL_DAYS:
        raise ValueError(f"ttl_days = {ttl_days!r} is no number of days between {MIN_TTL_DAYS:f} and {MAX_TTL_DAYS}")
    return f"{number.normalize():f}"
