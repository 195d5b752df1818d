"""Prunes many keys in one transaction of the database. The keys that this leaves are pruned one by one, by `prune`.

A transaction locks the collections of its keys and compares their marks with those of the plan. An unchanged key need not be
judged again; only the states of the runs that wrote its versions may have changed, and they are read in the transaction.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.database import DatabaseStore, KeyDeletion
from prefect_artifact_retention.stores.store import Mark
from prefect_artifact_retention.tasks.rendering import size
from prefect_artifact_retention.tasks.run import KeyPlan, Run, as_task

MAX_TRANSACTION_VERSIONS = 5_000
"""Versions deleted in one transaction. With more, writers to the same keys wait longer: for 5000, a fifth of a second."""

MAX_TRANSACTION_BYTES = 32 * 2**20
"""Bytes deleted in one transaction, unless a single version has more. To delete a megabyte takes as long as to delete 200
versions, so with more, writers wait longer."""

Batch = Mapping[str, tuple[KeyPlan, KeyDeletion]]
"""The plans and the deletions of one transaction, by key."""


async def prune_unchanged(run: Run, store: DatabaseStore) -> None:
    """Delete the stale versions of all keys that have not changed since they were planned, within the budgets of the run.

    The versions deleted are removed from the plans. Those left are of keys that have changed, that another transaction is
    changing, or that have versions of unfinished runs.

    Raises:
        StoreError: The database cannot be reached, refuses a statement, or does not answer in time.
    """
    limit = min(MAX_TRANSACTION_VERSIONS, store.max_per_second or MAX_TRANSACTION_VERSIONS)
    # With a limit on deletions, one transaction at a time: concurrent ones could exceed it together.
    at_once = 1 if run.limits.max_deletions or store.max_per_second else store.writers
    # The artifacts without a key have a place in the order of the plans, too, by which they get their share of the budgets.
    for is_unkeyed, plans in groupby(run.user_plans, key=lambda plan: plan.key is None):
        if is_unkeyed:
            for plan in plans:
                await _prune_unkeyed(run, store, plan, limit)
            continue
        pending = list(plans)[::-1]
        working = (_prune_pending(run, store, pending, limit) for _ in range(at_once))
        for error in await asyncio.gather(*working, return_exceptions=True):
            if error:
                raise error
    with run.without_budgets():
        await _prune_pending(run, store, run.own_plans, limit)


async def _prune_pending(run: Run, store: DatabaseStore, pending: list[KeyPlan], limit: int) -> None:
    """Take plans from the end of `pending`, shared with concurrent calls, until none is left. An error empties it for all."""
    try:
        while pending and (room := int(min(limit, run.room()))):
            batch, passed_over = _next_batch(pending, room)
            if batch:
                split = await _prune_batch(run, store, batch)
                pending += reversed(split)
                again = {plan.key for plan in split}
                passed_over = [*(plan for plan, _ in batch.values() if plan.stale and plan.key not in again), *passed_over]
    except BaseException:
        pending.clear()
        raise


def _next_batch(pending: list[KeyPlan], room: int) -> tuple[Batch, list[KeyPlan]]:
    """Take plans from the end of `pending` for a batch of at most `room` deletions; return those passed over, too.

    A plan that deletes a whole key is not split; if it exceeds a batch, it is left for `prune`. A batch ends with a plan that
    is passed over.
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
        if not (plan.mark and is_fitting):
            return batch, [plan]
        batch[collection.key] = plan, KeyDeletion(collection, plan.mark, plan.stale[:number], is_last)
        room -= number
        space -= sum(plan.sizes[:number])
    return batch, []


def _fitting(sizes: Sequence[int], space: int, *, at_least: int) -> int:
    """Count the versions, from the first on, whose sizes add up to at most `space`."""
    return max(at_least, bisect_right(list(accumulate(sizes)), space))


async def _prune_batch(run: Run, store: DatabaseStore, batch: Batch) -> list[KeyPlan]:
    """Delete a batch. Return the plans that were split, for the next batch."""
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

    # Shielded together with its accounting, so that a deletion is counted even if the run is cancelled meanwhile.
    marks = await shielded(delete())
    await store.purge_events()
    await run.notify_deleting()
    await store.pace(sum(len(deletion.ids) for deletion in deletions if deletion.collection.key in marks))
    return [batch[key][0] for key, mark in marks.items() if mark]


async def _prune_unkeyed(run: Run, store: DatabaseStore, plan: KeyPlan, limit: int) -> None:
    """Delete artifacts without a key; those with retention metadata or unfinished runs are left for `prune`."""
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
        passed_over = list(batch.keys() - deleted)
        left += passed_over
        start += len(batch)
        await store.purge_events()
        await run.notify_deleting()
        await store.pace(len(deleted))
    plan.stale = [*left, *ids[start:]]


def _account(run: Run, plan: KeyPlan, number: int, freed: int) -> None:
    plan.report.deleted += number
    plan.report.bytes_freed += freed
    run.deletions_started += number
    run.deletions_settled += number


def report_purge(run: Run, store: DatabaseStore) -> None:
    """Add to the report what was deleted of the events about deleted versions, if that was asked for."""
    if store.purge:
        run.report.events_purged, run.report.event_bytes_purged = store.purge.events, store.purge.size
        if store.purge.error:
            run.report.warn(f"the server's events hold copies of some of the deleted versions: {store.purge.error}")


async def measure_disk(run: Run, store: DatabaseStore) -> int | None:
    """Return the bytes that artifacts take on disk; None, with a warning, if the database fails: no deletion needs them."""
    try:
        return await store.disk_bytes()
    except StoreError as error:
        run.report.warn(f"the space freed on disk is not known: {error}")
        return None


async def reclaim(run: Run, store: DatabaseStore, before: int | None, *, vacuum: bool) -> None:
    """Add a note to the report: the space on disk that the run has freed, or why it has freed none.

    Args:
        run: The run.
        store: The database.
        before: The bytes that its artifacts took before the first deletion; None if unknown.
        vacuum: Whether to vacuum first. A failure is a warning, because the stale versions are deleted all the same.
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
    by = "VACUUM only" if store.is_sqlite else "pg_repack; VACUUM gives back only what lies behind the last row that stays"
    why = f"the space of deleted rows is used again, and given back by {by}"
    freed = f"{size(before - after)} freed" if after < before else f"none freed: {why}"
    run.report.notes.append(f"{what} took {size(before)} on disk before the run and takes {size(after)} now; {freed}.")


bulk_task = as_task(prune_unchanged, "prune unchanged keys")
reclaim_task = as_task(reclaim, "reclaim")
