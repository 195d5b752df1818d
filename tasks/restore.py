"""Restores archived versions: exactly as they were in the database, as new versions through the API.

1. Plan: read the ledger of the archive, and which of the versions exist already. A preview ends here.
2. Hold: a key that gets versions back is put on hold first, or the next cleanup would delete them again. Artifacts without a
   key, and versions that are new, are held by their own metadata.
3. Restore: in the database, all versions of a key in one transaction, and many small keys together; through the API one after
   the other, in the order in which they were created.

A version that exists, or that a restore has created anew before, is left alone: whatever ends a restore in the middle, it can
be run again. A key that fails stops no other.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect_artifact_retention.policies import ConfigurationError, StoreError
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.holds import Hold, read_metadata
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError, CollectionRow, LedgerQuery
from prefect_artifact_retention.stores.connection import Connection, shielded
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.holds import Holds
from prefect_artifact_retention.stores.queries import Queries
from prefect_artifact_retention.stores.reposting import RESTORED_CREATED, RESTORED_FROM, Reposting
from prefect_artifact_retention.stores.restoration import restore_versions, unfit_for_postgresql
from prefect_artifact_retention.stores.schema import ARTIFACT
from prefect_artifact_retention.stores.transactions import LostConnectionError
from prefect_artifact_retention.tasks.producers.artifacts import MAX_METADATA_CHARS
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.restore_report import RestoredKey, RestoreReport
from prefect_artifact_retention.tasks.run import in_flow_run

MAX_BATCH_VERSIONS = 5_000
MAX_BATCH_BYTES = 16 * 2**20
"""Versions, and their bytes, that are in memory and go into one transaction, unless a single key has more: that is read piece
by piece. With more, it takes more memory; with less, each part of the archive is read more often."""

MAX_TASK_RUNS = 25
"""Task runs of a restore, at most. Each costs the server some 20 rows."""

IDS_PER_QUERY = 10_000

RESTORED_SUFFIX = "-restored"

MAX_LISTED = 5
"""Ids or causes in one message, at most."""


class ReadsArchive(Protocol):
    """What a restore needs of an archive; the methods block."""

    url: str

    def ledger(self, query: LedgerQuery = ...) -> Any:  # noqa: ANN401 - a table of pyarrow, which has no types
        """Read the versions without payloads."""

    def versions(self, query: LedgerQuery) -> Iterator[list[ArchivedVersion]]:
        """Read versions with their payloads, some at a time."""

    def collections(self, keys: Sequence[str]) -> dict[str, CollectionRow]:
        """Read the collections of keys that went as a whole."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be restored, and how.

    Attributes:
        query: The versions.
        from_server: The address of the server that they are of; empty for the one that they are restored to.
        to_key: The key of new versions; empty for the original key and `-restored`.
        same_key: Whether new versions get the original key, which must have none.
        hold_days: How long restored versions are held; 0 is not at all.
    """

    query: LedgerQuery
    from_server: str = ""
    to_key: str = ""
    same_key: bool = False
    hold_days: int = 7


@dataclass(slots=True)
class KeyRestore:
    """What is to be restored of one key, or of the artifacts without a key.

    Attributes:
        report: Its place in the report.
        ids: The versions that are to be restored, in the order in which they were created.
        sizes: The bytes of their data.
        runs: The names of the flow runs that deleted them.
    """

    report: RestoredKey
    ids: list[UUID] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    @property
    def key(self) -> str | None:
        """The key."""
        return self.report.key


class Restore:
    """One restore: what it reads and writes, and its report so far.

    Deliberately no dataclass and no pydantic model: Prefect traverses those whenever one is passed to a task.
    """

    def __init__(
        self,
        archive: ReadsArchive,
        connection: Connection,
        database: DatabaseStore | None,
        selection: Selection,
        now: datetime,
    ) -> None:
        self.archive = archive
        self.connection = connection
        # Under another key, nothing is restored exactly.
        self.database = None if selection.to_key else database
        self.selection = selection
        self.holds = Holds(connection)
        self.api = Reposting(connection)
        self.keys: list[KeyRestore] = []
        self.report = RestoreReport(
            applied=False,
            way="database" if self.database else "api",
            server=connection.address,
            archive=archive.url,
            now=now,
        )
        self.done = 0
        self.began = time.monotonic()

    @property
    def until(self) -> date | None:
        """The last day of the holds; None without one."""
        days = self.selection.hold_days
        return (self.report.now.astimezone(UTC) + timedelta(days=days)).date() if days else None

    def hold(self, each: KeyRestore) -> Hold | None:
        """Return the hold that protects what is restored of a key; None without one."""
        if self.until is None:
            return None
        names = list(dict.fromkeys(each.runs))
        by = f"restore of {names[0] if len(names) == 1 else count(len(names), 'run')}"
        since = self.report.now.replace(microsecond=0)
        return Hold(key=each.key, until=self.until, by=printable(by)[:MAX_METADATA_CHARS], since=since)

    def target(self, key: str | None) -> str | None:
        """Return the key under which the versions of a key are restored."""
        if key is None or self.database or self.selection.same_key:
            return key
        return self.selection.to_key or f"{key}{RESTORED_SUFFIX}"


# --- the plan


class _Row(NamedTuple):
    """A row of the ledger; rows sort by creation."""

    created: datetime
    id: UUID
    size: int
    run: str
    has_payload: bool


async def plan_restore(restore: Restore) -> None:
    """Read what is asked for and archived, and what of it exists already.

    Raises:
        ArchiveError: The archive cannot be read, or has nothing that is asked for.
        ConfigurationError: The versions of several keys are to go under one.
        StoreError: The server or the database cannot be reached.
    """
    ledger = await asyncio.to_thread(restore.archive.ledger, restore.selection.query)
    names = ("id", "key", "size", "created", "server", "run_name", "has_payload")
    columns = [ledger.column(name).to_pylist() for name in names]
    own = restore.selection.from_server or restore.report.server
    others: Counter[str] = Counter()
    found: dict[str | None, list[_Row]] = {}
    for version_id, key, size, created, server, run, has_payload in zip(*columns, strict=True):
        if server == own:
            found.setdefault(key, []).append(_Row(created, UUID(version_id), size, run, has_payload))
        else:
            others[server] += 1
    restore.report.others = dict(others)
    if not found:
        raise ArchiveError(_nothing_found(restore, others))
    if restore.selection.to_key and len(found) > 1:
        raise ConfigurationError(f"the versions of {len(found)} keys are to go under one: name a single key with --key")
    existing = await _existing(restore, [row.id for rows in found.values() for row in rows])
    for key in sorted(found, key=lambda key: (key is None, key)):
        restore.keys.append(await _plan_key(restore, key, sorted(found[key]), existing))
    restore.report.key_reports = [each.report for each in restore.keys]


def _nothing_found(restore: Restore, others: Counter[str]) -> str:
    if others:
        listed = ", ".join(f"{server} ({count(number, 'version')})" for server, number in others.items())
        return f"nothing that is asked for was deleted on {restore.report.server}, but on {listed}: give --from-server"
    return f"the archive {restore.report.archive} has nothing that is asked for"


async def _existing(restore: Restore, ids: Sequence[UUID]) -> set[UUID]:
    if restore.database is None:
        return await restore.api.existing(ids)
    parts = [ids[start : start + IDS_PER_QUERY] for start in range(0, len(ids), IDS_PER_QUERY)]
    found = [await restore.database.transactions.read(Queries.present, ARTIFACT.c.id, part) for part in parts]
    return {version_id for part in found for version_id in part}


async def _plan_key(restore: Restore, key: str | None, rows: Sequence[_Row], existing: set[UUID]) -> KeyRestore:
    """Plan one key, from the oldest to the newest version."""
    target = restore.target(key)
    report = RestoredKey(
        key=key,
        to_key=target,
        versions=len(rows),
        bytes=sum(row.size for row in rows),
        first_created=rows[0].created,
        last_created=rows[-1].created,
    )
    planned = KeyRestore(report)
    done = existing
    if restore.database is None:
        try:
            restored = await restore.api.restored(target)
            if restore.selection.same_key and key is not None:
                await _check_is_gone(restore, key, sum(map(len, restored.values())))
            done = existing | restored.keys()
        except StoreError as error:
            report.error = str(error)
            return planned
    missing = [row for row in rows if row.id not in done]
    archived = [row for row in missing if row.has_payload]
    planned.ids = [row.id for row in archived]
    planned.sizes = [row.size for row in archived]
    planned.runs = [row.run for row in archived]
    report.present = len(rows) - len(missing)
    report.unavailable = len(missing) - len(archived)
    return planned


async def _check_is_gone(restore: Restore, key: str, restored: int) -> None:
    """Check that a key has no versions but those that a restore has created anew.

    Raises:
        StoreError: It has.
    """
    if await restore.api.has_collection(key) and await restore.api.count_versions(key) != restored:
        raise StoreError("the key has versions, and nothing is restored beside them through the API: leave same_key out")


# --- batches


def batches(keys: Sequence[KeyRestore]) -> list[list[KeyRestore]]:
    """Group keys whose versions are restored together; one that has more than a batch has its own."""
    grouped: list[list[KeyRestore]] = []
    versions = size = 0
    for each in keys:
        if not each.ids:
            continue
        versions += len(each.ids)
        size += sum(each.sizes)
        if not grouped or versions > MAX_BATCH_VERSIONS or size > MAX_BATCH_BYTES:
            grouped.append([])
            versions, size = len(each.ids), sum(each.sizes)
        grouped[-1].append(each)
    return grouped


def task_batches(keys: Sequence[KeyRestore]) -> list[list[list[KeyRestore]]]:
    """Group batches for the task runs of a restore: one after the other, and about as many in each."""
    grouped = batches(keys)
    each = -(-len(grouped) // MAX_TASK_RUNS) or 1
    return [grouped[start : start + each] for start in range(0, len(grouped), each)]


# --- restoring


async def restore_all(restore: Restore) -> None:
    """Restore what was planned. What fails is in the report, and not raised.

    Raises:
        LostConnectionError: The database is out of reach.
    """
    restore.report.applied = True
    for group in task_batches(restore.keys):
        if not in_flow_run():
            await _restore_group(restore, group)
            continue
        keys = [each for batch in group for each in batch]
        name = label(keys[0].key) if len(keys) == 1 else f"{len(keys)} keys from {label(keys[0].key)}"
        # Prefect types a call of an async task as its result.
        state: State[None] = await restore_task(restore, group, name, return_state=True)  # type: ignore[misc]
        if not state.is_completed() and not any(each.report.error for each in keys):
            restore.report.errors.append(printable(f"restore {name}: {state.message}"))


@task(name="restore", task_run_name="restore {name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
async def restore_task(restore: Restore, group: Sequence[Sequence[KeyRestore]], name: str) -> State[None]:  # noqa: ARG001 - names the task run
    """Restore some batches of keys. The task run fails if any key failed."""
    await _restore_group(restore, group)
    reports = [each.report for batch in group for each in batch]
    if failed := [each for each in reports if each.error]:
        return Failed(message="; ".join(f"{label(each.key)}: {each.error}" for each in failed[:MAX_LISTED]))
    return Completed(message=f"{sum(each.restored for each in reports)} restored")


async def _restore_group(restore: Restore, group: Sequence[Sequence[KeyRestore]]) -> None:
    if restore.database is None:
        for each in (each for batch in group for each in batch):
            await _repost(restore, each)
        return
    small = [batch for batch in group if _fits(batch)]
    async with aclosing(_read(restore.archive, [version_id for batch in small for version_id in _ids(batch)])) as reading:
        stream = _Stream(reading)
        for batch in group:
            await _insert(restore, restore.database, batch, stream)


def _fits(batch: Sequence[KeyRestore]) -> bool:
    """Whether the versions of a batch fit into memory."""
    return sum(sum(each.sizes) for each in batch) <= MAX_BATCH_BYTES


def _ids(batch: Sequence[KeyRestore]) -> list[UUID]:
    return [version_id for each in batch for version_id in each.ids]


async def _hold(restore: Restore, batch: Sequence[KeyRestore]) -> list[KeyRestore]:
    """Put keys on hold before anything of them is restored. Return those for which that succeeded."""
    held = []
    for each in batch:
        if each.key is not None and (hold := restore.hold(each)):
            try:
                placed = await restore.holds.extend_key(each.key, hold)
            except StoreError as error:
                each.report.error = f"nothing is restored, because it could not be held: {error}"
                continue
            each.report.held, each.report.held_until = placed.describe(), placed.until
        held.append(each)
    return held


# --- in the database


async def _read(archive: ReadsArchive, ids: Sequence[UUID]) -> AsyncGenerator[list[ArchivedVersion]]:
    """Read versions with their payloads, by key, then from old to new."""
    if not ids:
        return
    reading = await asyncio.to_thread(archive.versions, LedgerQuery(ids=tuple(ids)))
    while (versions := await asyncio.to_thread(next, reading, None)) is not None:
        yield versions


class _Stream:
    """Reads the versions of batches one after the other, in the order of their keys."""

    def __init__(self, reading: AsyncGenerator[list[ArchivedVersion]]) -> None:
        self._reading = reading
        self._waiting: list[ArchivedVersion] = []

    async def take(self, keys: Collection[str | None]) -> list[ArchivedVersion]:
        """Read the versions of these keys."""
        taken: list[ArchivedVersion] = []
        while True:
            number = next((index for index, each in enumerate(self._waiting) if each.key not in keys), len(self._waiting))
            taken += self._waiting[:number]
            self._waiting = self._waiting[number:]
            if self._waiting or (following := await anext(self._reading, None)) is None:
                return taken
            self._waiting = following


async def _insert(restore: Restore, database: DatabaseStore, batch: Sequence[KeyRestore], stream: _Stream) -> None:
    """Restore a batch of keys in one transaction; or, if that fails, each in its own."""
    try:
        versions = await stream.take({each.key for each in batch}) if _fits(batch) else None
    except StoreError as error:
        for each in batch:
            each.report.error = str(error)
        return
    held = await _hold(restore, batch)
    try:
        await _insert_together(restore, database, held, versions)
    except LostConnectionError:
        raise
    except StoreError as error:
        if len(held) == 1:
            held[0].report.error = await _explain(restore, database, held[0], error)
            return
        for each in held:
            await _insert(restore, database, [each], _Stream(_read(restore.archive, each.ids)))


async def _insert_together(
    restore: Restore, database: DatabaseStore, batch: Sequence[KeyRestore], versions: list[ArchivedVersion] | None
) -> None:
    """Restore keys in one transaction, with versions that have been read; None if they are read within the transaction."""
    if not batch:
        return
    keys = {each.key for each in batch}
    archived = await asyncio.to_thread(restore.archive.collections, [key for key in keys if key is not None])
    unkeyed = next((each for each in batch if each.key is None), None)
    hold = restore.hold(unkeyed) if unkeyed else None
    unheld: list[UUID] = []

    async def slices() -> AsyncIterator[Sequence[ArchivedVersion]]:
        unheld.clear()
        if versions is None:
            async for some in _read(restore.archive, _ids(batch)):
                yield [_held(version, hold, unheld) for version in some]
        else:
            yield [_held(version, hold, unheld) for version in versions if version.key in keys]

    async def insert() -> None:
        inserted = await database.transactions.insert(restore_versions, slices, archived)
        for each in batch:
            each.report.restored = inserted.get(each.key, 0)
            each.report.present += len(each.ids) - each.report.restored
            restore.done += len(each.ids)

    # Shielded with its accounting, so that what was restored is known even if the run is cancelled meanwhile.
    await shielded(insert())
    if unkeyed and hold:
        unkeyed.report.held, unkeyed.report.held_until = hold.describe(), hold.until
    if unheld:
        listed = ", ".join(map(str, unheld[:MAX_LISTED]))
        restore.report.warnings.append(f"not on hold, because their metadata are no object: {listed}")


def _held(version: ArchivedVersion, hold: Hold | None, unheld: list[UUID]) -> ArchivedVersion:
    """Put a hold into the metadata of an artifact without a key."""
    if version.key is not None or hold is None:
        return version
    metadata = read_entries(version)
    if metadata is None:
        unheld.append(version.id)
        return version
    entries = missing_entries(version, metadata, hold)
    return version._replace(metadata=json.dumps(metadata | entries)) if entries else version


def read_entries(version: ArchivedVersion) -> dict[str, Any] | None:
    """Read the metadata of a version; None if they are no object."""
    try:
        metadata = json.loads(version.metadata or "null")
    except (ValueError, RecursionError):
        return None
    return {} if metadata is None else metadata if isinstance(metadata, dict) else None


def missing_entries(version: ArchivedVersion, metadata: dict[str, Any], hold: Hold) -> dict[str, str]:
    """Return the entries that hold a version; none if it has a hold that ends no earlier."""
    there = read_metadata(version.id, version.key, metadata)
    return {} if there and not hold.outlasts(there) else hold.entries()


async def _explain(restore: Restore, database: DatabaseStore, each: KeyRestore, error: StoreError) -> str:
    """Describe why a key could not be restored, with the versions that PostgreSQL refuses."""
    if database.is_sqlite or isinstance(error, ArchiveError):
        return str(error)
    unfit: list[UUID] = []
    try:
        async for versions in _read(restore.archive, each.ids):
            unfit += unfit_for_postgresql(versions)
    except StoreError:
        return str(error)
    if not unfit:
        return str(error)
    named = ", ".join(map(str, unfit[:MAX_LISTED])) + (
        f" and {len(unfit) - MAX_LISTED} more" if len(unfit) > MAX_LISTED else ""
    )
    return f"PostgreSQL takes no NaN and nothing else that is no JSON, as in version {named}: {error}"


# --- through the API


async def _repost(restore: Restore, each: KeyRestore) -> None:
    """Create the versions of a key anew, from the oldest to the newest."""
    hold = restore.hold(each)
    target = restore.target(each.key)
    is_doubtful = False
    try:
        async with aclosing(_read(restore.archive, each.ids)) as reading:
            async for versions in reading:
                for version in versions:
                    metadata = _metadata(version, hold)
                    is_doubtful |= not await restore.api.repost(version, target, _description(version), metadata)
                    each.report.restored += 1
                    restore.done += 1
    except StoreError as error:
        each.report.error = str(error)
    if is_doubtful:
        try:
            await restore.api.remove_duplicates(target)
        except StoreError as error:
            each.report.error = each.report.error or f"some versions may be there twice: {error}"
    if hold and each.report.restored:
        each.report.held, each.report.held_until = hold.describe(), hold.until


def _description(version: ArchivedVersion) -> str:
    created = f"{version.created.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    note = f"Restored from version {version.id}, created {created}"
    return f"{version.description}\n\n{note}" if version.description else note


def _metadata(version: ArchivedVersion, hold: Hold | None) -> dict[str, str]:
    """Return the metadata of a new version: those of the old one, what it restores, and the hold."""
    metadata = read_entries(version) or {}
    # Of a server of another version, or written by hand.
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    texts |= {RESTORED_FROM: str(version.id), RESTORED_CREATED: version.created.astimezone(UTC).isoformat()}
    return texts | (missing_entries(version, texts, hold) if hold else {})
