"""The list of policies on the server: how a run reads it, and `policies push`, `pull`, `log` and `check --live`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.settings import RetentionSettings, resolve_policies
from prefect_artifact_retention.policies import ConfigurationError, RetentionError, RetentionPolicy, StoreError
from prefect_artifact_retention.policies.acceptance import Acceptance
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.meaning import digest, meaning
from prefect_artifact_retention.policies.pushes import (
    SOURCE,
    Change,
    Push,
    changes_between,
    find_list,
    history,
    is_edited,
    list_digest,
    read_list,
    read_tables,
)
from prefect_artifact_retention.policies.writing import as_tables
from prefect_artifact_retention.stores.acceptances import Acceptances
from prefect_artifact_retention.stores.connection import HTTP_FORBIDDEN, Connection, connect, connect_home, has_home
from prefect_artifact_retention.stores.destination import going_to
from prefect_artifact_retention.stores.policy_lists import PolicyList, PolicyLists
from prefect_artifact_retention.tasks.report import Mode
from pydantic import BaseModel, Field
from rich.text import Text

NO_LIST = "the server has no list of policies: `artifact-retention policies push` puts one there"


class Pushed(BaseModel):
    """What a push has done."""

    source: str = Field(description="Where the policies come from.")
    digest: str = Field(description="The digest of the list, as reports have it.")
    push: int | None = Field(description="The number of the push; null if the list was the same.")
    by: str = Field(description="Who has pushed.")
    at: datetime = Field(description="When, by the server's clock.")
    changes: list[str] = Field(description="How the list differs from the one before.")
    form_renewed: bool = Field(default=False, description="Whether the form in the UI was brought up to this release.")


async def with_server_policies(settings: RetentionSettings, connection: Connection) -> RetentionSettings:
    """Return the settings with the policies of the list on the server, if none are configured here and there is one.

    All targets have the list of the server on which the run is: one place for policies.

    Raises:
        ConfigurationError: There is a list without policies, or something else in its place.
        StoreError: The list cannot be read.
    """
    if not settings.leaves_policies_to_server or not has_home():
        return settings
    async with connect_home(connection) as home:
        with _naming_permission("read blocks, or policies be configured in a file or variable"):
            found = await PolicyLists(home).read()
    return settings.with_policies(read_tables(found.data), SOURCE) if found else settings


async def find_policies(settings: RetentionSettings) -> RetentionSettings:
    """Do the same outside a run, with a connection of its own if it takes one.

    Raises:
        ConfigurationError: As `with_server_policies` does.
        StoreError: As `with_server_policies` does.
    """
    if not settings.leaves_policies_to_server or not has_home():
        return settings
    with going_to(None):
        async with connect() as home:
            return await with_server_policies(settings, home)


async def resolve_all(
    given: Sequence[RetentionPolicy], settings: RetentionSettings, mode: Mode
) -> tuple[tuple[RetentionPolicy, ...], str]:
    """Return the policies of a run and their source, as `resolve_policies` does, those on the server included.

    Raises:
        ConfigurationError: The policies are invalid, or there are none in a delete run.
        StoreError: The list cannot be read.
    """
    return resolve_policies(given, await find_policies(settings), mode)


async def push(settings: RetentionSettings, by: str, over: str = "") -> Pushed:
    """Put the configured policies on the server, as the list of it, and record that they are accepted.

    Args:
        settings: The settings, with policies.
        by: Who pushes.
        over: The digest of a list that was changed in the UI and may be replaced.

    Raises:
        ConfigurationError: There are no policies, or they are invalid.
        RetentionError: The list was changed in the UI since the last push, or somebody else pushes.
        StoreError: The server cannot be reached, or refuses a request.
    """
    if not settings.policies:
        raise ConfigurationError("no policy is configured here, so there is nothing to push: write a [[policies]] table")
    policies, source = resolve_policies((), settings, "delete")
    async with connect() as connection:
        with _naming_permission("create and edit blocks and variables"):
            return await _push(connection, policies, source, by, over)


async def _push(connection: Connection, policies: Sequence[RetentionPolicy], source: str, by: str, over: str) -> Pushed:
    lists, now = PolicyLists(connection), await connection.now()
    present = await lists.read()
    data = present.data if present else None
    done = Pushed(source=source, digest=digest(policies), push=None, by=by, at=now, changes=[])
    if present and list_digest(data) == done.digest:
        done.form_renewed = await lists.renew_form(present)
    else:
        pushes, highest = await lists.pushes()
        _refuse_edited(pushes, present, over)
        number = highest + 1
        made = Push(
            number=number, at=now, by=by, before=data, before_at=present and present.updated, policies=as_tables(policies)
        )
        await lists.push(made, present)
        done.push, done.changes = number, changes_between(data, made.after)
    records = Acceptances(connection)
    if done.push or done.digest not in {record.digest for record in (await records.all())[0]}:
        await records.write(Acceptance.of(meaning(policies), now, by))
    return done


@contextmanager
def _naming_permission(permission: str) -> Iterator[None]:
    """Say of a request that is refused what the API key must be allowed to do."""
    try:
        yield
    except StoreError as error:
        if error.status != HTTP_FORBIDDEN:
            raise
        raise StoreError(f"{error}; the API key must be allowed to {permission}", error.status) from None


def _refuse_edited(pushes: Sequence[Push], present: PolicyList | None, over: str) -> None:
    if present is None or not is_edited(pushes, present.data, present.updated) or list_digest(present.data) == over:
        return
    last = max(pushes, key=lambda push: push.number, default=None)
    since = f", since push {last.number}" if last else ""
    refusal = (
        f"the list on the server was changed in the UI at {present.updated:%Y-%m-%d %H:%M} UTC{since}: take it with "
        f"`policies pull`, or replace it with `policies push --over {list_digest(present.data)}`"
    )
    raise RetentionError("\n".join([refusal, *changes_between(last and last.after, present.data)]))


async def pull(listed: str = "") -> tuple[tuple[RetentionPolicy, ...], str]:
    """Read the policies of the list on the server, or of the one that it was when it had a digest, and what to call them.

    Raises:
        ConfigurationError: There is no such list, or it cannot be meant.
        StoreError: The server cannot be reached.
    """
    async with connect() as connection:
        lists = PolicyLists(connection)
        if not listed:
            if (found := await lists.read()) is None:
                raise ConfigurationError(NO_LIST)
            return read_list(found.data), SOURCE
        data = find_list(listed, (await lists.pushes())[0])
        if data is None:
            raise ConfigurationError(f"command line: no push has a list {listed} on record: see `policies log`")
        return read_list(data), f"{SOURCE}, as of the list {listed}"


async def read_tables_of_server() -> tuple[list[Any], str]:
    """Read the list on the server as configuration has it, and what to call it.

    Raises:
        ConfigurationError: There is none, or something else in its place.
        StoreError: The server cannot be reached.
    """
    async with connect() as connection:
        if (found := await PolicyLists(connection).read()) is None:
            raise ConfigurationError(NO_LIST)
        return read_tables(found.data), SOURCE


async def read_log() -> list[Change]:
    """Read what has changed in the list on the server, newest first.

    Raises:
        StoreError: The server cannot be reached.
    """
    async with connect() as connection:
        lists = PolicyLists(connection)
        found = await lists.read()
        pushes, _highest = await lists.pushes()
    return history(pushes, found and found.data, found and found.updated)


def show_log(changes: Sequence[Change]) -> None:
    """Print what has changed."""
    lines = [line for change in changes for line in _lines(change)] or [NO_LIST]
    terminal.show(*(Text(printable(line)) for line in lines))


def _lines(change: Change) -> list[str]:
    when = f"{change.at:%Y-%m-%d %H:%M} UTC" if change.at else "at some time"
    who = f"push {change.push} by {change.by}" if change.push else change.what
    ended = ", not finished: the list before it stayed" if change.what == "not finished" else ""
    return [f"{when}: {who}{ended} ({change.digest or 'none'})", *(f"  {line}" for line in change.changes)]


def show_push(done: Pushed) -> None:
    """Print what a push has done."""
    renewed = "; the form in the UI is that of this release now" if done.form_renewed else ""
    said = f"push {done.push} by {done.by}" if done.push else f"unchanged{renewed}"
    lines = [f"{SOURCE}: {said} ({done.digest})", *(f"  {line}" for line in done.changes)]
    if done.push:
        lines.append(f"Runs that find policies in {done.source}, or in another file or variable, go on with those.")
    terminal.show(*(Text(printable(line)) for line in lines))
