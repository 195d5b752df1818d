"""What a restore is asked for, what the archive has of it, and what of that exists already."""

from __future__ import annotations

import asyncio
import glob
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect_artifact_retention.policies import ConfigurationError, StoreError
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.holds import Hold, read_metadata
from prefect_artifact_retention.stores.archive.model import (
    ArchivedVersion,
    ArchiveError,
    CollectionRow,
    LedgerQuery,
    PartManifest,
    RunManifest,
)
from prefect_artifact_retention.stores.connection import Connection
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.holds import Holds
from prefect_artifact_retention.stores.ids import read_ids
from prefect_artifact_retention.stores.reposting import Reposting, RestoredVersion
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.tasks.collector import without_collector
from prefect_artifact_retention.tasks.ledger_query import EPOCH, describe_nothing, describe_query
from prefect_artifact_retention.tasks.producers.artifacts import MAX_METADATA_CHARS
from prefect_artifact_retention.tasks.restore_report import RestoredKey, RestoreReport
from prefect_artifact_retention.tasks.run import Listener

if TYPE_CHECKING:
    from prefect_artifact_retention.stores.archive.archive import Archive

MAX_BATCH_VERSIONS = 10_000
MAX_BATCH_BYTES = 16 * 2**20
"""Versions, and their bytes, that are in memory and go into one transaction, unless a single key has more: that is read while
it is inserted. With more, a restore takes more memory; with less, there are more transactions."""

RESTORED_SUFFIX = "-restored"


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be restored, and how.

    Attributes:
        query: The versions.
        from_server: The address of the server that they are of; empty for the one that they are restored to, whatever address
            that had when they were deleted.
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
        deleted_at: When the last of those that are asked for was deleted, or its data moved.
    """

    report: RestoredKey
    deleted_at: datetime
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
        archive: Archive,
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
        self.collections: Mapping[str, CollectionRow] = {}
        self.addresses = {selection.from_server or connection.address}
        self.unreadable: dict[str, str] = {}
        self.listeners: list[Listener] = []
        self.report = RestoreReport(
            applied=False,
            way="database" if self.database else "api",
            server=connection.address,
            archive=archive.url,
            data=selection.query.offloaded,
            now=now,
        )
        self._done = 0
        self._began = time.monotonic()

    @property
    def query(self) -> LedgerQuery:
        """What is asked for, of the one server; of data, any: what stands in their place tells which they are."""
        if self.selection.query.offloaded:
            return self.selection.query
        return replace(self.selection.query, servers=(*self.addresses,))

    @property
    def seconds(self) -> float:
        """Seconds since the restore began."""
        return time.monotonic() - self._began

    async def notify(self, settled: int) -> None:
        """Tell every listener that so many versions more are restored, or were found there. One that fails changes nothing."""
        self._done += settled
        for listener in self.listeners:
            with suppress(Exception):
                await listener("restoring", self._done, sum(len(each.ids) for each in self.keys))

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


class _Row(NamedTuple):
    """A row of the ledger, with its times in microseconds; rows sort by creation."""

    created: int
    id: UUID
    size: int
    run: str
    decided_at: int
    has_payload: bool
    flow_run_id: str | None


async def plan_restore(restore: Restore) -> None:
    """Read what is asked for and archived, and what of it exists already.

    Raises:
        ArchiveError: The archive cannot be read, or has nothing that is asked for.
        ConfigurationError: The versions of several keys are to go under one.
        StoreError: The server or the database cannot be reached.
    """
    with without_collector():
        await _plan(restore)
    restore.report.key_reports = [each.report for each in restore.keys]


async def _plan(restore: Restore) -> None:
    names = ("key", "size", "server", "run_name", "flow_run_id", "has_payload")
    read = ("run_id", *names[:-1])
    ledger = await asyncio.to_thread(restore.archive.ledger, restore.selection.query, restore.unreadable, read)
    columns = (ledger.column(name).to_pylist() for name in names)
    ids = read_ids(ledger.column("id").to_pylist())
    # As numbers, which takes a tenth of the time.
    times = (ledger.column(name).cast("int64").to_pylist() for name in ("created", "decided_at"))
    lost = await asyncio.to_thread(restore.archive.origins, restore.unreadable) if restore.unreadable else {}
    restore.addresses = await _own_addresses(restore, ledger, lost)
    restore.report.errors += [restore.unreadable[name] for name, part in lost.items() if part.server in restore.addresses]
    others: Counter[str] = Counter()
    found: dict[str | None, list[_Row]] = {}
    for version_id, created, decided_at, key, size, server, run, flow_run, has_payload in zip(
        ids, *times, *columns, strict=True
    ):
        if server in restore.addresses:
            found.setdefault(key, []).append(_Row(created, version_id, size, run, decided_at, has_payload, flow_run))
        else:
            others[server] += 1
    restore.report.others = dict(others)
    if not found:
        # Whatever server a lost part is of: nothing else tells who has deleted what.
        raise ArchiveError("; ".join([await nothing_found(restore, others), *map(restore.unreadable.__getitem__, lost)]))
    if restore.selection.to_key and len(found) > 1:
        raise ConfigurationError(f"the versions of {len(found):,} keys are to go under one: name a single key with --key")
    existing = await (restore.database or restore.api).existing([row.id for rows in found.values() for row in rows])
    for key in sorted(found, key=key_order):
        restore.keys.append(await _plan_key(restore, key, sorted(found[key]), existing))


async def _own_addresses(
    restore: Restore,
    ledger: Any,  # noqa: ANN401 - a table of pyarrow
    lost: Mapping[str, PartManifest | RunManifest],
) -> set[str]:
    """Return the addresses of the server whose versions are restored.

    A worker may reach a server by another address than a person does: it is the same one if it knows the run that deleted.
    """
    if given := restore.selection.from_server:
        return {given}
    own = restore.report.server
    pairs = ledger.group_by(["server", "run_id"]).aggregate([])
    runs = {UUID(run): server for server, run in zip(*(pairs[name].to_pylist() for name in ("server", "run_id")), strict=True)}
    runs |= {UUID(part.run_id): part.server for part in lost.values()}
    foreign = [run for run, server in runs.items() if server != own]
    known = await Server(restore.connection).flow_runs(foreign) if foreign else []
    return {own, *(runs[run.id] for run in known)}


async def nothing_found(restore: Restore, others: Mapping[str, int] = MappingProxyType({})) -> str:
    """Describe that the archive has nothing that is asked for, but of other servers."""
    query = restore.selection.query
    if others:
        listed = ", ".join(f"{server} ({count(number, 'version')})" for server, number in others.items())
        server = restore.selection.from_server or restore.report.server
        asked = f" ({phrases})" if (phrases := describe_query(query)) else ""
        return f"nothing that is asked for{asked} was deleted on {server}, but on {listed}: name that one with --from-server"
    return await asyncio.to_thread(describe_nothing, restore.archive, query, is_whole=not restore.unreadable)


async def _plan_key(restore: Restore, key: str | None, rows: Sequence[_Row], existing: set[UUID]) -> KeyRestore:
    """Plan one key, from the oldest to the newest version."""
    target = restore.target(key)
    report = RestoredKey(
        key=key,
        to_key=target,
        versions=len(rows),
        bytes=sum(row.size for row in rows),
        first_created=_time(rows[0].created),
        last_created=_time(rows[-1].created),
    )
    planned = KeyRestore(report, _time(max(row.decided_at for row in rows)))
    missing = [row for row in rows if row.id not in existing]
    if restore.database is None and missing:
        try:
            restored = await _restored_before(restore, key, missing)
            missing = [row for row in missing if row.id not in restored]
            report.present = len(rows) - len(missing)
            report.elsewhere = dict(Counter(there for there in restored.values() if there is not None and there != target))
            if missing and key is not None and target == key:
                await check_is_gone(restore, key, await restore.api.restored(key))
        except StoreError as error:
            report.error = str(error)
            return planned
    archived = [row for row in missing if row.has_payload]
    planned.ids = [row.id for row in archived]
    planned.sizes = [row.size for row in archived]
    planned.runs = [row.run for row in archived]
    report.present = len(rows) - len(missing)
    report.unavailable = len(missing) - len(archived)
    return planned


async def _restored_before(restore: Restore, key: str | None, rows: Sequence[_Row]) -> dict[UUID, str | None]:
    """Return which versions of a key an earlier restore has created anew, with the key under which it did."""
    keys = [None] if key is None else dict.fromkeys((restore.target(key), key, f"{key}{RESTORED_SUFFIX}"))
    runs = {UUID(row.flow_run_id) for row in rows if row.flow_run_id}
    is_of_runs = all(row.flow_run_id for row in rows)
    restored = await restore.api.restored(*keys, runs=runs if is_of_runs else ())
    # Under its target rather than elsewhere, should it be there twice.
    order = list(keys).index
    return {row.id: min((each.key for each in restored[row.id]), key=order) for row in rows if row.id in restored}


def _time(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


async def check_is_gone(restore: Restore, key: str, restored: Mapping[UUID, Sequence[RestoredVersion]]) -> None:
    """Check that a key has no versions but those that a restore has created anew.

    Raises:
        StoreError: It has.
    """
    number = sum(map(len, restored.values()))
    if await restore.api.has_collection(key) and await restore.api.count_versions(key) != number:
        raise StoreError("the key has versions, and nothing is restored beside them through the API: name another key")


async def read_collections(restore: Restore) -> dict[str, CollectionRow]:
    """Read the rows of the keys that have gone as a whole, to create the same ones again.

    A row is that of a key of this server if its latest version is, and the last one if nothing was deleted of the key later.
    """
    deleted_at = {each.key: each.deleted_at for each in restore.keys if each.key is not None}
    found = await asyncio.to_thread(restore.archive.collections, deleted_at)
    rows = [row for some in found.values() for row in some]
    if not rows:
        return {}
    query = LedgerQuery(
        keys=tuple(map(glob.escape, found)), ids=tuple(row.latest_id for row in rows), servers=(*restore.addresses,)
    )
    ledger = await asyncio.to_thread(restore.archive.ledger, query, dict(restore.unreadable))
    gone_at = dict(zip(read_ids(ledger.column("id").to_pylist()), ledger.column("decided_at").to_pylist(), strict=True))
    return {row.key: row for row in rows if row.latest_id in gone_at and gone_at[row.latest_id] >= deleted_at[row.key]}


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


def fits(batch: Sequence[KeyRestore]) -> bool:
    """Whether the versions of a batch fit into memory."""
    return sum(sum(each.sizes) for each in batch) <= MAX_BATCH_BYTES


async def read_archived(restore: Restore, query: LedgerQuery) -> AsyncGenerator[list[ArchivedVersion]]:
    """Read versions with their payloads, by key, then from old to new; those without a key come last."""
    reading = await asyncio.to_thread(restore.archive.versions, query, restore.unreadable)
    while (versions := await asyncio.to_thread(next, reading, None)) is not None:
        yield versions


class ArchivedStream:
    """Reads the versions of batches one after the other, in the order of their keys, so that the archive is read once.

    Attributes:
        is_broken: Whether a part of the archive is damaged; what comes after it must be read key by key.
    """

    def __init__(self, restore: Restore) -> None:
        self.is_broken = False
        self._reading = read_archived(restore, restore.query)
        self._ahead: asyncio.Task[list[ArchivedVersion] | None] | None = None
        self._waiting: list[ArchivedVersion] = []

    async def slices(self, batch: Sequence[KeyRestore]) -> AsyncGenerator[list[ArchivedVersion]]:
        """Read the versions of a batch, some at a time.

        Raises:
            ArchiveError: The archive is damaged.
        """
        ids = {version_id for each in batch for version_id in each.ids}
        last = key_order(batch[-1].key)
        while True:
            if some := [version for version in self._waiting if version.id in ids]:
                yield some
            self._waiting = [version for version in self._waiting if key_order(version.key) > last]
            if self._waiting:
                return
            try:
                following = await (self._ahead or self._read_on())
            except ArchiveError:
                self._ahead, self.is_broken = None, True
                raise
            if following is None:
                self._ahead = None
                return
            self._waiting, self._ahead = following, self._read_on()

    def _read_on(self) -> asyncio.Task[list[ArchivedVersion] | None]:
        """Read some versions more, while those before are restored."""

        async def read() -> list[ArchivedVersion] | None:
            return await anext(self._reading, None)

        return asyncio.ensure_future(read())

    async def close(self) -> None:
        """Read no more."""
        if self._ahead:
            await asyncio.wait([self._ahead])
            if not self._ahead.cancelled():
                self._ahead.exception()
        await self._reading.aclose()


async def read_key(restore: Restore, each: KeyRestore) -> AsyncGenerator[list[ArchivedVersion]]:
    """Read the versions of one key, some at a time.

    Raises:
        ArchiveError: The archive is damaged.
    """
    ids = set(each.ids)
    # By their ids, so that no part is read, which may be damaged, for what is of other keys or exists already.
    query = replace(restore.query, ids=tuple(each.ids))
    if each.key is not None:
        query = replace(query, keys=(glob.escape(each.key),))
    async for versions in read_archived(restore, query):
        if some := [version for version in versions if version.id in ids]:
            yield some


def key_order(key: str | None) -> tuple[bool, str]:
    """Return by what keys are sorted, as the archive sorts them."""
    return key is None, key or ""
