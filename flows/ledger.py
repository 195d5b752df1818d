"""The ledger of the archive: which versions were deleted, when, by which rule and by which run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.cleanup import open_archive_of
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.policies.evaluation import CONDEMNATIONS
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.globs import impossible
from prefect_artifact_retention.stores.archive.model import LedgerQuery
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.tasks.ledger_query import describe_nothing
from prefect_artifact_retention.tasks.rendering import NO_BREAK, label, size
from pydantic import BaseModel
from rich.text import Text

if TYPE_CHECKING:
    from prefect_artifact_retention.stores.archive.archive import Archive

NO_ARCHIVE = "no archive is configured, which would know what was deleted: set archive_url or archive_block"

HEADER = ("Key", "Version", "Deleted (UTC)", "Created (UTC)", "Type", "Size", "Policy", "Why", "Run")


class DeletedVersion(BaseModel):
    """A version that was deleted.

    Attributes:
        id: Its id.
        key: Its key; None without one.
        type: Its type.
        created: When it was created.
        updated: When it was last changed.
        size: The bytes of its data.
        was_latest: Whether it was the latest version of its key.
        flow_run_id: The flow run that wrote it.
        task_run_id: The task run that wrote it.
        policy: The policy of its key.
        policy_digest: The digest of all policies.
        reasons: Why it was deleted.
        rules: The rule behind each reason.
        run_id: The flow run that deleted it.
        run_name: Its name.
        decided_at: The clock of that run, by which it was judged.
        approved_by: Who approved the deletion; None if nobody was asked.
        server: The address of the server's API.
        has_payload: Whether the archive has its data, so that it can be restored.
    """

    id: UUID
    key: str | None
    type: str | None
    created: datetime
    updated: datetime
    size: int
    was_latest: bool
    flow_run_id: UUID | None
    task_run_id: UUID | None
    policy: str
    policy_digest: str
    reasons: list[str]
    rules: list[str]
    run_id: str
    run_name: str
    decided_at: datetime
    approved_by: str | None
    server: str
    has_payload: bool


class Ledger(BaseModel):
    """What the archive has of deleted versions: the deletions that were asked for, the last one first.

    Attributes:
        archive: The address of the archive.
        total: How many were found.
        versions: The last of them, as many as were asked for.
        errors: The parts of the archive that cannot be read and may have more of what was asked for, and what to do.
        unended_runs: The runs that deleted them, if they said nothing in the end: some of their versions may still be there.
        note: If none was found, what was asked for and which filter leaves nothing.
    """

    archive: str
    total: int
    versions: list[DeletedVersion]
    errors: list[str] = []
    unended_runs: list[str] = []
    note: str = ""


def make_query(  # noqa: PLR0913 - what can be asked for
    keys: Sequence[str] = (),
    *,
    ids: Sequence[str] = (),
    runs: Sequence[str] = (),
    policies: Sequence[str] = (),
    rules: Sequence[str] = (),
    since: str = "",
    until: str = "",
    source: str = "command line",
) -> LedgerQuery:
    """Read which versions are asked for.

    Args:
        keys: Globs of keys.
        ids: Ids of versions.
        runs: Ids or names of the flow runs that deleted them.
        policies: Names of the policies that their keys had.
        rules: Rules by which they were deleted.
        since: The day or time (ISO, UTC unless it says otherwise) from which on they were deleted.
        until: The day, which is included, or time up to which they were deleted.
        source: What messages name as the origin of these.

    Raises:
        ConfigurationError: One of them cannot be meant.
    """
    if problem := next(filter(None, map(impossible, keys)), None):
        raise ConfigurationError(f"{source}: keys: {problem}")
    if unknown := next((rule for rule in rules if rule not in CONDEMNATIONS), None):
        raise ConfigurationError(f"{source}: by no rule {unknown!r} does a version go, but by {', '.join(CONDEMNATIONS)}")
    for name, values in (("runs", runs), ("policies", policies)):
        if not all(each.strip() for each in values):
            raise ConfigurationError(f"{source}: {name}: one of them is empty")
    first = _read_time("since", since, source) if since else None
    last = _read_time("until", until, source) if until else None
    if first and last and first > last:
        raise ConfigurationError(f"{source}: since = {since!r} is later than until = {until!r}")
    return LedgerQuery(
        keys=tuple(keys),
        ids=tuple(_read_id(each, source) for each in ids),
        runs=tuple(runs),
        policies=tuple(policies),
        rules=tuple(rules),
        since=first,
        until=last,
    )


def _read_id(text: str, source: str) -> UUID:
    try:
        return UUID(text.strip())
    except ValueError:
        raise ConfigurationError(f"{source}: id = {text!r} is no id of a version") from None


def _read_time(name: str, text: str, source: str) -> datetime:
    """Read a day or a time; of `until`, a day is meant to its end."""
    try:
        moment = datetime.fromisoformat(text.strip())
        if name == "until" and moment.time() == time() and not _has_time(text):
            moment += timedelta(days=1, microseconds=-1)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{source}: {name} = {text!r} is neither a day nor a time such as 2026-11-28 or 2026-11-28T03:00+01:00"
        ) from None


def _has_time(text: str) -> bool:
    return any(separator in text.strip() for separator in "T :")


@asynccontextmanager
async def open_ledger(settings: RetentionSettings) -> AsyncIterator[Archive]:
    """Open the archive that is configured. The server is only asked if one of its blocks has the address.

    Raises:
        ConfigurationError: None is configured, or it cannot be used.
        StoreError: The block cannot be read.
    """
    if not settings.archive_url and not settings.archive_block:
        raise ConfigurationError(NO_ARCHIVE)
    if settings.archive_url:
        archive = await open_archive_of(settings, None)
    else:
        async with connect() as connection:
            archive = await open_archive_of(settings, connection)
    if archive is None:
        raise ConfigurationError(NO_ARCHIVE)
    yield archive


async def read_ledger(settings: RetentionSettings, query: LedgerQuery, limit: int = 0) -> Ledger:
    """Read which versions were deleted.

    Args:
        settings: The settings.
        query: Which are asked for.
        limit: The most that are returned, the last ones; 0 is all.

    Raises:
        ConfigurationError: No archive is configured.
        StoreError: The archive cannot be read.
    """
    unreadable: dict[str, str] = {}
    async with open_ledger(settings) as archive:
        # First, because a run may end meanwhile.
        unended = await asyncio.to_thread(archive.unended_runs)
        table = await asyncio.to_thread(archive.ledger, query, unreadable)
        total = len(table)
        note = "" if total else await asyncio.to_thread(describe_nothing, archive, query, is_whole=not unreadable)
    rows: list[dict[str, Any]] = table.slice(max(0, total - limit) if limit else 0).to_pylist()
    return Ledger(
        archive=archive.url,
        total=total,
        versions=[DeletedVersion(**row) for row in reversed(rows)],
        errors=list(unreadable.values()),
        unended_runs=sorted(unended.intersection(table["run_id"].unique().to_pylist())),
        note=note,
    )


def show(ledger: Ledger) -> None:
    """Print deleted versions as a table, one row each."""
    found = f"{count(ledger.total, 'deleted version')} in the archive {printable(ledger.archive)}"
    if len(ledger.versions) < ledger.total:
        found += f", the last {len(ledger.versions):,} of them here"
    title = Text(found, style="bold")
    if not ledger.versions:
        terminal.show(title, *([Text(printable(ledger.note), style="yellow")] if ledger.note else []))
        return
    several = len({version.server for version in ledger.versions}) > 1
    header = [*HEADER, *(["Server"] if several else [])]
    rows = [_cells(version, several=several) for version in ledger.versions]
    last_word = "ended without its last word: some of its versions may still be there"
    warnings = (Text(f"Run {printable(run_id)} {last_word}", style="yellow") for run_id in ledger.unended_runs)
    terminal.show(title, *warnings, terminal.WholeTable([Text(name) for name in header], rows))


def _cells(version: DeletedVersion, *, several: bool) -> list[Text]:
    why = "; ".join(version.reasons) + ("" if version.has_payload else " (without its data in the archive)")
    cells = [
        Text(printable(label(version.key))),
        Text(str(version.id)),
        Text(_minute(version.decided_at)),
        Text(_minute(version.created)),
        Text(printable(version.type or "none")),
        Text(size(version.size).replace(" ", NO_BREAK), justify="right"),
        Text(printable(version.policy)),
        Text(printable(why)),
        Text(printable(version.run_name)),
    ]
    return [*cells, *([Text(printable(version.server))] if several else [])]


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}".replace(" ", NO_BREAK)
