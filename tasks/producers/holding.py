"""Holds and releases a version, or a whole key for as long as the hold lasts, its new versions included.

The arguments are checked before a request is sent. Sync helpers run in a thread of their own, because an event loop may run in
the caller's.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import re
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, date, datetime
from typing import Any, TypeVar
from uuid import UUID

import orjson
from prefect.context import FlowRunContext, TaskRunContext
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.holds import MAX_VALUE_BYTES, Hold
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.holds import Holds
from prefect_artifact_retention.tasks.producers.artifacts import MAX_METADATA_CHARS, check_key, last_day, run_ids

LOGGER = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
_GLOB_CHARACTERS = set("*?[")

Result = TypeVar("Result")


def hold(key_or_id: str | UUID, until: date | str | None = None, reason: str = "", *, by: str = "") -> Hold:
    """Keep a version, or all versions of a key, whatever the policies say, until it is released or the hold has ended.

    Args:
        key_or_id: A key, with the versions that it will have; or the id of a version.
        until: The last day (UTC), also as text: "2030-12-31". None is without an end.
        reason: Why, in one line of 500 characters at most.
        by: Who holds it. By default the flow run, or user@host.

    Returns:
        The hold. It takes the place of a hold that ends no later.

    Raises:
        ValueError: An argument cannot be meant; no request has been sent.
        StoreError: There is no such version, it or the key has a hold that lasts longer, or the server cannot be reached.
    """
    return _in_thread(ahold(key_or_id, until, reason, by=by or default_holder()))


async def ahold(key_or_id: str | UUID, until: date | str | None = None, reason: str = "", *, by: str = "") -> Hold:
    """Keep a version, or all versions of a key, in async code; see `hold`."""
    placed, warning = await place_hold(key_or_id, until, reason, by=by)
    if warning:
        LOGGER.warning(warning)
    return placed


def release(key_or_id: str | UUID) -> bool:
    """Release a key or a version from a hold on it. A hold on a key and one on a version of it are two holds.

    Returns:
        Whether it was on hold.

    Raises:
        ValueError: It is neither a key nor an id; no request has been sent.
        StoreError: There is no such version, or the server cannot be reached.
    """
    return _in_thread(arelease(key_or_id))


async def arelease(key_or_id: str | UUID) -> bool:
    """Release a key or a version in async code; see `release`."""
    key, version_id = _subject(key_or_id)
    async with connect() as connection:
        on_server = Holds(connection)
        if version_id and not await _is_key(on_server, key, version_id):
            return await on_server.release_version(version_id)
        return await on_server.release_key(key)


def holds(key_or_id: str | UUID | None = None) -> list[Hold]:
    """List the keys on hold, expired holds included; of one key, also its versions on hold, for which all of them are read.

    Of a version, list the hold on it and the one on its key.

    Raises:
        ValueError: It is neither a key nor an id; no request has been sent.
        StoreError: There is no such version, the server cannot be reached, or it has a hold that cannot be read.
    """
    return _in_thread(aholds(key_or_id))


async def aholds(key_or_id: str | UUID | None = None) -> list[Hold]:
    """List the keys on hold in async code; see `holds`."""
    key, version_id = _subject(key_or_id) if key_or_id is not None else ("", None)
    async with connect() as connection:
        on_server = Holds(connection)
        if version_id and not await _is_key(on_server, key, version_id):
            version_key, on_versions = await on_server.on_version(version_id)
        elif key:
            version_key, on_versions = key, await on_server.on_versions(key)
        else:
            return await on_server.on_keys()
        return [*(each for each in await on_server.on_keys() if each.key == version_key), *on_versions]


async def place_hold(
    key_or_id: str | UUID, until: date | str | None = None, reason: str = "", *, by: str = ""
) -> tuple[Hold, str]:
    """Hold as `hold` does, and return a warning besides, mostly empty.

    The key has no version, so that it may be misspelt; or there was a hold of somebody else, who may rely on it.
    """
    key, version_id = _subject(key_or_id)
    since = datetime.now(UTC).replace(microsecond=0)
    placed = Hold(
        key=key,
        until=None if until is None else last_day("until", until),
        by=_line("by", by or default_holder()),
        since=since,
        reason=_line("reason", reason),
    )
    if (size := len(orjson.dumps(placed.value()))) > MAX_VALUE_BYTES:
        raise ValueError(f"the hold takes {size} bytes with its key and reason, and Prefect keeps {MAX_VALUE_BYTES}")
    async with connect() as connection:
        on_server = Holds(connection)
        if version_id and not await _is_key(on_server, key, version_id):
            on_version = placed.model_copy(update={"key": None, "id": version_id})
            placed, replaced = await on_server.hold_version(version_id, on_version)
            is_known = True
        else:
            replaced = await on_server.hold_key(key, placed)
            is_known = await on_server.has_versions(key)
    if not is_known:
        return placed, f"the key {key!r} is on hold, and has no versions now"
    if replaced and replaced.by != placed.by and replaced.is_in_force(since):
        return placed, f"this hold takes the place of another, so its release ends both: {replaced.describe()}"
    return placed, ""


def default_holder() -> str:
    """Return who holds by default: the current flow run or task run, or the user of this machine."""
    flow_run, task_run = FlowRunContext.get(), TaskRunContext.get()
    if flow_run and flow_run.flow_run:
        name = f"flow run {flow_run.flow_run.name}"
    elif task_run:
        name = f"task run {task_run.task_run.name}"
    elif run_id := run_ids()[0]:
        name = f"flow run {run_id}"
    else:
        try:
            name = f"{getpass.getuser()}@{socket.gethostname()}"
        except (OSError, KeyError, ImportError):
            name = socket.gethostname()
    return printable(name)[:MAX_METADATA_CHARS]


def _subject(key_or_id: str | UUID) -> tuple[str, UUID | None]:
    """Return the key, and the id of a version if it reads as one; then it may be either."""
    if isinstance(key_or_id, str) and _GLOB_CHARACTERS & set(key_or_id):
        raise ValueError(
            f"key = {key_or_id!r} is a glob: each key is held by its own name; for many, write a policy with keep_all"
        )
    if isinstance(key_or_id, UUID) or (isinstance(key_or_id, str) and _ID.fullmatch(key_or_id)):
        return str(key_or_id), UUID(str(key_or_id))
    check_key(key_or_id)
    return key_or_id, None


async def _is_key(on_server: Holds, key: str, version_id: UUID) -> bool:
    """Whether what reads as an id is the key of some versions, and the id of none."""
    return await on_server.has_versions(key) and not await on_server.exists(version_id)


def _line(name: str, text: object) -> str:
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError(f"{name} = {text!r} is no text in one line")
    if len(text) > MAX_METADATA_CHARS:
        raise ValueError(f"{name} has {len(text)} characters, and Prefect keeps {MAX_METADATA_CHARS}")
    return text.strip()


def _in_thread(work: Coroutine[Any, Any, Result]) -> Result:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, asyncio.run, work).result()
