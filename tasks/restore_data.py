"""Puts data back that were moved to the archive, into the versions that they are of.

What stands in their place names the version and the run that moved them. Only that is ever replaced, by what this run archived
of this version: so it does not matter how often a restore is run, or what else has become of a version.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError
from prefect_artifact_retention.stores.archive.stubs import STUB_BYTES, Stub
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.queries import Queries
from prefect_artifact_retention.stores.restoration import put_back
from prefect_artifact_retention.stores.transactions import LostConnectionError
from prefect_artifact_retention.tasks.restore_database import hold_keys
from prefect_artifact_retention.tasks.restore_plan import (
    ArchivedStream,
    KeyRestore,
    Restore,
    nothing_found,
    read_key,
)
from prefect_artifact_retention.tasks.restore_report import RestoredKey

IDS_PER_READING = 50
"""Versions that are read together through the API, with their data."""

IDS_PER_QUERY = 10_000


class _Row(NamedTuple):
    """A row of the ledger."""

    created: datetime
    run_name: str
    stub: Stub


async def plan_data(restore: Restore) -> None:
    """Read which data are asked for and in the archive, and which of them are missing in their versions.

    Raises:
        ArchiveError: The archive cannot be read, or has nothing that is asked for.
        StoreError: The server or the database cannot be reached.
    """
    ledger = await asyncio.to_thread(restore.archive.ledger, restore.query, restore.unreadable)
    restore.report.errors += restore.unreadable.values()
    columns = [ledger.column(name).to_pylist() for name in ("key", "created", "run_name", *Stub._fields)]
    found: defaultdict[str, dict[UUID, list[_Row]]] = defaultdict(dict)
    for key, created, run_name, version_id, *others in zip(*columns, strict=True):
        row = _Row(created, run_name, Stub(UUID(version_id), *others))
        found[key].setdefault(row.stub.id, []).append(row)
    if not found:
        raise ArchiveError("; ".join([await nothing_found(restore), *restore.report.errors]))
    present = await _short_data(restore, [version_id for rows in found.values() for version_id in rows])
    for key in sorted(found):
        if rows := {version_id: rows for version_id, rows in found[key].items() if version_id in present}:
            restore.keys.append(_plan_key(key, rows, present))
    restore.report.key_reports = [each.report for each in restore.keys]
    if gone := sum(map(len, found.values())) - restore.report.versions:
        restore.report.warnings.append(
            f"{count(gone, 'version')} left out that were deleted since: what a cleanup has deleted may come back "
            "by an exact restore without --data first"
        )


def _plan_key(key: str, rows: Mapping[UUID, Sequence[_Row]], present: Mapping[UUID, str | None]) -> KeyRestore:
    """Plan one key, from the oldest to the newest version."""
    missing = sorted(row for some in rows.values() for row in some if row.stub.text() == present[row.stub.id])
    report = RestoredKey(
        key=key,
        to_key=key,
        versions=len(rows),
        bytes=sum(row.stub.size for row in missing),
        first_created=min(some[0].created for some in rows.values()),
        last_created=max(some[0].created for some in rows.values()),
        present=len(rows) - len(missing),
    )
    return KeyRestore(
        report,
        max(row.stub.decided_at for some in rows.values() for row in some),
        ids=[row.stub.id for row in missing],
        sizes=[row.stub.size for row in missing],
        runs=[row.run_name for row in missing],
    )


async def _short_data(restore: Restore, ids: Sequence[UUID]) -> dict[UUID, str | None]:
    """Read the data of those of the versions that exist; None for those that are too large to stand for others."""
    found: dict[UUID, str | None] = {}
    step = IDS_PER_QUERY if restore.database else IDS_PER_READING
    for part in (ids[start : start + step] for start in range(0, len(ids), step)):
        if restore.database:
            found |= await restore.database.transactions.read(Queries.short_data, part, STUB_BYTES)
        else:
            copies = await restore.api.payloads(part)
            found |= {each.id: each.data if each.size < STUB_BYTES else None for each in copies.versions}
    return found


async def restore_data(restore: Restore, batch: Sequence[KeyRestore], stream: ArchivedStream) -> None:
    """Put the data of some keys back. What fails is in their reports, and not raised.

    Raises:
        LostConnectionError: The database is out of reach.
    """
    held = {each.key: each for each in await hold_keys(restore, batch)}
    try:
        if stream.is_broken or not held:
            raise ArchiveError("a part of the archive is damaged")
        async for versions in stream.slices([*held.values()]):
            await _put_back(restore, versions, held)
    except LostConnectionError:
        raise
    except StoreError:
        # A part of the archive is damaged, or a version is refused: each key finds out for itself.
        for each in held.values():
            await _restore_alone(restore, each)
    for each in held.values():
        if not each.report.error:
            each.report.present = each.report.versions - each.report.restored
        await restore.notify(len(each.ids))


async def _restore_alone(restore: Restore, each: KeyRestore) -> None:
    try:
        async for versions in read_key(restore, each):
            await _put_back(restore, versions, {each.key: each})
    except LostConnectionError:
        raise
    except StoreError as error:
        each.report.error = str(error)


async def _put_back(restore: Restore, versions: Sequence[ArchivedVersion], keys: Mapping[str | None, KeyRestore]) -> None:
    database = restore.database

    async def in_database() -> None:
        if database:
            done = await database.transactions.write(put_back, versions)
            for version in versions:
                keys[version.key].report.restored += version.stub in done

    async def through_api(version: ArchivedVersion) -> None:
        deadline = restore.api.replacement_deadline()
        found = await restore.api.payloads([version.id])
        if [each.data for each in found.versions] == [version.stub] and version.data is not None:
            replaced = await restore.api.replace_data(version.id, version.data, deadline=deadline)
            keys[version.key].report.restored += replaced

    # Shielded with their accounting, so that what was restored is known even if the run is cancelled meanwhile.
    if database:
        await shielded(in_database())
        return
    for version in versions:
        await shielded(through_api(version))
