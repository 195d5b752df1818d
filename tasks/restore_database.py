"""Restores in the database: all versions of a key in one transaction, and many small keys together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.restoration import restore_versions, unfit_for_postgresql
from prefect_artifact_retention.stores.transactions import LostConnectionError
from prefect_artifact_retention.tasks.restore_plan import KeyRestore, Restore, missing_entries, read_archived, read_entries

MAX_BATCH_VERSIONS = 5_000
MAX_BATCH_BYTES = 16 * 2**20
"""Versions, and their bytes, that are in memory and go into one transaction, unless a single key has more: that is read while
it is inserted. With more, a restore takes more memory; with less, there are more transactions."""

MAX_LISTED = 5
"""Ids in one message, at most."""


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


async def restore_in_database(restore: Restore, database: DatabaseStore, group: Sequence[Sequence[KeyRestore]]) -> None:
    """Restore some batches of keys. What fails is in their reports, and not raised.

    Raises:
        LostConnectionError: The database is out of reach.
    """
    small = [batch for batch in group if _fits(batch)]
    async with aclosing(read_archived(restore.archive, [each for batch in small for each in _ids(batch)])) as reading:
        stream = _Stream(reading)
        for batch in group:
            await _insert(restore, database, batch, stream)


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
            await _insert(restore, database, [each], _Stream(read_archived(restore.archive, each.ids)))


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
            async for some in read_archived(restore.archive, _ids(batch)):
                yield [_held(version, hold, unheld) for version in some]
        else:
            yield [_held(version, hold, unheld) for version in versions if version.key in keys]

    async def insert() -> None:
        inserted = await database.transactions.insert(restore_versions, slices, archived)
        for each in batch:
            each.report.restored = inserted.get(each.key, 0)
            each.report.present += len(each.ids) - each.report.restored

    # Shielded with its accounting, so that what was restored is known even if the run is cancelled meanwhile.
    await shielded(insert())
    await restore.notify(sum(len(each.ids) for each in batch))
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


async def _explain(restore: Restore, database: DatabaseStore, each: KeyRestore, error: StoreError) -> str:
    """Describe why a key could not be restored, with the versions that PostgreSQL refuses."""
    if database.is_sqlite or isinstance(error, ArchiveError):
        return str(error)
    unfit: list[UUID] = []
    try:
        async for versions in read_archived(restore.archive, each.ids):
            unfit += unfit_for_postgresql(versions)
    except StoreError:
        return str(error)
    if not unfit:
        return str(error)
    named = ", ".join(map(str, unfit[:MAX_LISTED])) + (
        f" and {len(unfit) - MAX_LISTED} more" if len(unfit) > MAX_LISTED else ""
    )
    return f"PostgreSQL takes no NaN and nothing else that is no JSON, as in version {named}: {error}"
