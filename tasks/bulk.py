"""Prune in bulk what has not changed since it was planned, where the store can tell; the rest is left for the prune by key.

The database can: it locks the collections of many keys at once, and marks the state of their versions. A key that is as it was
when it was judged would be judged alike again, but for the runs that wrote its versions, whose states are asked for anew.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.database import DatabaseStore, KeyDeletion
from prefect_artifact_retention.stores.store import Mark
from prefect_artifact_retention.tasks.rendering import size
from prefect_artifact_retention.tasks.run import KeyPlan, Run, as_task

MAX_TRANSACTION_VERSIONS = 5_000
"""Versions deleted in one transaction: for the fifth of a second that it takes, writers to the same keys wait."""

MAX_TRANSACTION_BYTES = 32 * 2**20
"""Of their data, unless a single version has more: to delete a megabyte takes a database as long as to delete 200 versions."""

Batch = Mapping[str, tuple[KeyPlan, KeyDeletion]]


async def prune_unchanged(run: Run, store: DatabaseStore) -> None:
    """Delete the stale versions of all keys that are as they were planned, batch by batch, within the budgets of the run.

    Afterwards, the plans have what is left to delete: of keys that have changed, that others are changing, or whose versions
    are of runs that have not finished.

    Raises:
        StoreError: The database is out of reach, refuses us, or does not answer in time.
    """
    limit = min(MAX_TRANSACTION_VERSIONS, store.max_per_second or MAX_TRANSACTION_VERSIONS)
    pending = [plan for plan in reversed(run.plans) if plan.key is not None]
    # Whose number is bounded go one after the other, or more would be begun than are allowed.
    at_once = 1 if run.limits.max_deletions or store.max_per_second else store.writers
    working = (_prune_pending(run, store, pending, limit) for _ in range(at_once))
    for error in await asyncio.gather(*working, return_exceptions=True):
        if error:
            raise error
    for plan in run.plans:
        if plan.key is None:
            await _prune_unkeyed(run, store, plan, limit)


async def _prune_pending(run: Run, store: DatabaseStore, pending: list[KeyPlan], limit: int) -> None:
    """Take plans from the end of a list that others take from, too, until none is left; an error leaves nothing to anybody."""
    try:
        while pending and (room := int(min(limit, run.room()))):
            if batch := _next_batch(pending, room):
                pending += reversed(await _prune_batch(run, store, batch))
    except BaseException:
        pending.clear()
        raise


def _next_batch(pending: list[KeyPlan], room: int) -> Batch:
    """Take plans from the end of a list, for as many deletions as there is room for.

    Those of whole keys are not parted; one that has more than a batch may have is left for the prune by key.
    """
    batch: dict[str, tuple[KeyPlan, KeyDeletion]] = {}
    space = MAX_TRANSACTION_BYTES
    while pending and room and (collection := pending[-1].collection):
        plan = pending[-1]
        number = _fitting(plan.sizes[:room], space, at_least=0 if batch else 1)
        is_last = number == len(plan.stale)
        is_fitting = number > 0 if plan.report.kept else is_last
        if batch and not is_fitting:
            break
        pending.pop()
        if plan.mark and is_fitting:
            batch[collection.key] = plan, KeyDeletion(collection, plan.mark, plan.stale[:number], is_last)
            room -= number
            space -= sum(plan.sizes[:number])
    return batch


def _fitting(sizes: Sequence[int], space: int, *, at_least: int) -> int:
    """How many versions of these sizes, from the first on, there is space for."""
    return max(at_least, bisect_right(list(accumulate(sizes)), space))


async def _prune_batch(run: Run, store: DatabaseStore, batch: Batch) -> list[KeyPlan]:
    """Delete a batch, and return the plans of which more is to be deleted alike."""
    await run.notify_deleting()
    run.touched |= batch.keys()
    run.is_unsettled |= any(plan.takes_successor and deletion.is_last for plan, deletion in batch.values())

    deletions = [deletion for _plan, deletion in batch.values()]

    async def delete() -> Mapping[str, Mark | None]:
        marks = await store.delete_unchanged(deletions)
        for key, mark in marks.items():
            plan, deletion = batch[key]
            number = len(deletion.ids)
            _account(run, plan, number, sum(plan.sizes[:number]))
            plan.stale, plan.sizes, plan.mark = plan.stale[number:], plan.sizes[number:], mark
        return marks

    # Counted with the deletion, also when the run is told to end meanwhile.
    marks = await shielded(delete())
    await run.notify_deleting()
    await store.pace(sum(len(deletion.ids) for deletion in deletions if deletion.collection.key in marks))
    return [batch[key][0] for key, mark in marks.items() if mark]


async def _prune_unkeyed(run: Run, store: DatabaseStore, plan: KeyPlan, limit: int) -> None:
    """Delete artifacts without a key; those that their metadata or a run could keep are left."""
    ids, sizes = plan.stale, plan.sizes
    left: list[UUID] = []
    start = 0
    while start < len(ids) and (room := int(min(limit, run.room()))):
        await run.notify_deleting()
        number = _fitting(sizes[start : start + room], MAX_TRANSACTION_BYTES, at_least=1)
        batch = dict(zip(ids[start : start + number], sizes[start : start + number], strict=True))

        async def delete(batch: Mapping[UUID, int] = batch) -> set[UUID]:
            deleted = await store.delete_unkeyed(list(batch))
            _account(run, plan, len(deleted), sum(batch[version_id] for version_id in deleted))
            return deleted

        deleted = await shielded(delete())
        left += batch.keys() - deleted
        start += len(batch)
        await run.notify_deleting()
        await store.pace(len(deleted))
    plan.stale = [*left, *ids[start:]]


def _account(run: Run, plan: KeyPlan, number: int, freed: int) -> None:
    plan.report.deleted += number
    plan.report.bytes_freed += freed
    run.deletions_started += number
    run.deletions_settled += number


async def measure_disk(run: Run, store: DatabaseStore) -> int | None:
    """Bytes that the artifacts take on disk. None, with a warning, where that cannot be told: no deletion depends on it."""
    try:
        return await store.disk_bytes()
    except StoreError as error:
        run.report.warn(f"what is freed on disk is not known: {error}")
        return None


async def reclaim(run: Run, store: DatabaseStore, before: int | None, *, vacuum: bool) -> None:
    """Say in the report what space on disk the run has freed, or that it has freed none, and why.

    Args:
        run: Its report gains a note.
        store: The database.
        before: Bytes that its artifacts took before the run deleted any; None if that is not known.
        vacuum: Whether to vacuum first; a failure is a warning, as what is stale has gone all the same.
    """
    if vacuum:
        try:
            await store.vacuum()
        except StoreError as error:
            run.report.warn(f"nothing was vacuumed: {error}")
    after = None if before is None else await measure_disk(run, store)
    if before is None or after is None:
        return
    what = "The file of the SQLite database" if store.is_sqlite else "The table of the artifacts"
    why = f"the space of deleted rows is used again, and given back by {'VACUUM' if store.is_sqlite else 'pg_repack'} only"
    freed = f"{size(before - after)} freed" if after < before else f"none freed: {why}"
    run.report.notes.append(f"{what} took {size(before)} on disk before the run and takes {size(after)} now; {freed}.")


bulk_task = as_task(prune_unchanged, "prune unchanged keys")
reclaim_task = as_task(reclaim, "reclaim")
