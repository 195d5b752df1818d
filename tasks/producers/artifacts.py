"""Makes artifacts of the current run, with holds, TTLs and other metadata, and refuses what cannot be meant.

All of it happens before a request: whatever the server would refuse, cut or read otherwise is a `ValueError` here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import TypedDict
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext, TaskRunContext
from prefect_artifact_retention.policies.control import HOLD, MAX_TTL_DAYS, TTL_DAYS, select_control
from prefect_artifact_retention.stores.destination import is_elsewhere

MIN_TTL_DAYS = Decimal("0.00001")
"""About a second. A shorter TTL is taken for a mistake."""

MAX_METADATA_CHARS = 500
"""The server cuts a longer value of metadata."""

OWN_METADATA = "artifact-retention-"
"""How the names of this package's own entries of metadata begin."""

_KEY = re.compile(r"[a-z0-9-]+")
_UNFIT = re.compile(r"[\0\ud800-\udfff]")


class Retention(TypedDict, total=False):
    """How long an artifact is to be kept, whatever the policies say, and what else its metadata say.

    Attributes:
        ttl_days: The age in days until which it is kept, and after which it is stale; also as text: "30".
        hold: True, or the last day (UTC), to keep it whatever the policies say; also as text: "true", "2030-12-31".
        metadata: Other entries; values are texts of 500 characters at most.
    """

    ttl_days: float | Decimal | str | None
    hold: bool | date | str | None
    metadata: Mapping[str, str] | None


def retention_metadata(
    *,
    ttl_days: float | Decimal | str | None = None,
    hold: bool | date | str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the metadata of an artifact; see `Retention`.

    Raises:
        ValueError: The hold is neither true, false nor a date from today on; the TTL is no number of days, or too small or
            large; or an entry is no text, too long, or one of those that this package writes.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ValueError(f"metadata = {metadata!r} is no mapping of names to texts")
    entries = dict(metadata or {})
    for name, value in entries.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"metadata[{name!r}] = {value!r} is no text, which is all that Prefect takes")  # noqa: TRY004
        if unfit := _UNFIT.search(name + value):
            raise ValueError(f"metadata[{name!r}] has the character {unfit[0]!r}, which no server stores")
        if len(value) > MAX_METADATA_CHARS:
            raise ValueError(f"metadata[{name!r}] has {len(value)} characters, and Prefect keeps {MAX_METADATA_CHARS}")
    for name in (*select_control(entries), *(name for name in entries if name.startswith(OWN_METADATA))):
        raise ValueError(f"metadata[{name!r}] is for this package to write: use hold and ttl_days")
    if hold is not None and (entry := _hold_entry(hold)) != "false":
        entries[HOLD] = entry
    if ttl_days is not None:
        entries[TTL_DAYS] = _ttl_entry(ttl_days)
    return entries


def new_artifact(
    data: object,
    *,
    type: str | None,  # noqa: A002 - Prefect's name of the field
    key: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ArtifactCreate:
    """Return an artifact of the current flow run and task run, ready to be sent.

    Raises:
        ValueError: The key is none of Prefect's, or a field cannot be serialized.
    """
    if key is not None:
        check_key(key)
    for name, value in (("type", type), ("data", data), ("description", description)):
        _check_serializable(name, value)
    return artifact_of_run(data, type=type, key=key, description=description, metadata=metadata)


def artifact_of_run(
    data: object,
    *,
    type: str | None,  # noqa: A002 - Prefect's name of the field
    key: str | None,
    description: str | None,
    metadata: Mapping[str, str] | None,
) -> ArtifactCreate:
    """Return an artifact of the current flow run and task run, of fields that were checked before."""
    flow_run_id, task_run_id = run_ids()
    return ArtifactCreate(
        key=key,
        type=type,
        description=description,
        data=data,
        metadata_=dict(metadata or {}) or None,
        flow_run_id=flow_run_id,
        task_run_id=task_run_id,
    )


def check_key(key: object) -> None:
    """Refuse what is no key of Prefect.

    Raises:
        ValueError: The key is empty, no text, or has other characters than Prefect allows.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"key = {key!r} is no key: Prefect allows lowercase letters, digits and dashes")


def run_ids() -> tuple[UUID | None, UUID | None]:
    """Return the ids of the current flow run and task run; none of them where another server gets the artifact.

    That server would take it for one whose run is gone, and its `db_vacuum` may delete it for that.
    """
    if is_elsewhere():
        return None, None
    flow_run, task_run = FlowRunContext.get(), TaskRunContext.get()
    if task_run:
        return task_run.task_run.flow_run_id, task_run.task_run.id
    if flow_run and flow_run.flow_run:
        return flow_run.flow_run.id, None
    return _run_of_process(), None


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


def _check_serializable(name: str, value: object) -> None:
    """Serialize a field as the client will, whose error could not be told from one in the server's answer."""
    try:
        content = ArtifactCreate.model_validate({name: value}).model_dump(mode="json", exclude_unset=True)
        json.dumps(content, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be serialized as JSON: {error}") from error


def last_day(name: str, given: object, what: str = "no date") -> date:
    """Return the last day (UTC) of a hold; `name` is the argument, and `what` it is if it cannot be read, for messages.

    Raises:
        ValueError: It is no date, or in the past.
    """
    if isinstance(given, datetime):
        given = (given.astimezone(UTC) if given.tzinfo else given).date()
    try:
        day = given if isinstance(given, date) else date.fromisoformat(str(given).strip())
    except ValueError:
        raise ValueError(f"{name} = {given!r} is {what} such as 2030-12-31") from None
    if day < datetime.now(UTC).date():
        raise ValueError(f"{name} = {day} is in the past (UTC), so it would hold nothing")
    return day


def _hold_entry(hold: object) -> str:
    """Write a hold as metadata has it: true, false, or a date."""
    text = str(hold).strip().lower() if isinstance(hold, str | bool) else ""
    if text in {"true", "false"}:
        return text
    return last_day("hold", hold, "neither true, false nor a date").isoformat()


def _ttl_entry(ttl_days: object) -> str:
    """Write a TTL as metadata has it: a decimal number of days, without an exponent."""
    try:
        number = Decimal("NaN" if isinstance(ttl_days, bool) else str(ttl_days))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or not MIN_TTL_DAYS <= number <= MAX_TTL_DAYS:
        raise ValueError(f"ttl_days = {ttl_days!r} is no number of days between {MIN_TTL_DAYS:f} and {MAX_TTL_DAYS}")
    return f"{number.normalize():f}"
