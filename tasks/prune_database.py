"""Prunes in the database: a transaction locks the collections of some keys, compares them with what was judged, and deletes.

Keys that have not changed since they were planned go in batches of many. They need not be judged again; only the states of the
runs that wrote their versions are read in the transaction, and before it the holds on keys, if they are not fresh. A key that
such a transaction passes over (it has changed, somebody has locked it, a run is active again, or the transaction took too
long) gets one of its own, which waits for the lock, reads and judges the key under it, and deletes some of what is stale
still; what is left goes on in batches. Artifacts without a key, of which none depends on another, are judged anew in each
transaction.

With an archive, what a transaction may delete is archived before it, and the transaction deletes only rows that are as they
were archived. While one transaction deletes, the next versions are archived.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.loading import select_policy
from prefect_artifact_retention.stores.changes import Changes, KeyDeletion
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.store import Collection, Mark
from prefect_artifact_retention.stores.transactions import BusyError, LostConnectionError, SlowError
from prefect_artifact_retention.tasks.archiving import MAX_PARTS_AT_ONCE, archive
from prefect_artifact_retention.tasks.collector import frozen
from prefect_artifact_retention.tasks.holds import refresh_holds
from prefect_artifact_retention.tasks.plan import judge_all, judge_unkeyed, subject
from prefect_artifact_retention.tasks.run import KeyPlan, Run, as_task

MAX_TRANSACTION_VERSIONS = 5_000
"""Versions deleted in one transaction. With more, writers to the same keys wait longer: for 5000, a fifth of a second."""

MAX_TRANSACTION_BYTES = 24 * 2**20
"""Bytes deleted in one transaction, unless a single version has more. To delete a megabyte takes as long as to delete 200
versions, so with more, writers wait longer."""

MAX_HOLDS_AGE_SECONDS = 30
"""How old the list of held keys may be when a transaction begins. With less, there are more requests; with more, a new hold
counts later."""

SMALLER = 10
"""After a transaction that took too long, the next one has so many times fewer versions; then twice as many each time."""

MAX_ARCHIVING_ATTEMPTS = 5
"""How often in a row what was archived of a key may have changed before it could be deleted, until the key fails."""

MAX_FAILURES = 15
MAX_FAILURES_OF_SQLITE = 2
"""Locks in a row that are not granted in time, after which a run gives up: the table may be locked, and so is all of SQLite.
With more, such a run takes longer: for each, five seconds on PostgreSQL and a minute on SQLite."""

Batch = Mapping[str, tuple[KeyPlan, KeyDeletion]]
"""The plans and the deletions of one transaction, by key."""


@dataclass(frozen=True, slots=True)
class _Settled:
    """What one transaction has settled of the versions of a plan.

    Attributes:
        number: How many of the first of them it was about.
        deleted: The sizes of those deleted, by id.
        left: Those of the number that are still to be deleted, in their order.
        changed: Those of them that must be archived anew.
        gone: How many no longer exist.
        spared: How many are to be kept by now.
        collection: The collection of the key.
        mark: The mark of the key; None if no version of it is left.
    """

    number: int
    deleted: Mapping[UUID, int]
    left: Sequence[UUID]
    changed: Sequence[UUID]
    gone: int
    spared: int
    collection: Collection | None = None
    mark: Mark | None = None


async def prune_in_database(run: Run, store: DatabaseStore) -> None:
    """Delete what the plans found stale and is stale still, within the budgets of the run.

    A key that fails is recorded in its report, and stops no other.

    Raises:
        StoreError: The database cannot be reached.
    """
    pruner = _Pruner(run, store)
    with frozen():
        # The artifacts without a key have a place in the order of the plans, too, by which they get a share of the budgets.
        for is_unkeyed, plans in groupby(run.user_plans, key=lambda plan: plan.key is None):
            if is_unkeyed:
                for plan in plans:
                    await pruner.prune_unkeyed(plan)
            else:
                await pruner.prune(list(plans))
        with run.housekeeping():
            await pruner.prune(run.own_plans)


@dataclass(slots=True)
class _Pruner:
    """Prunes the keys of a run.

    Attributes:
        run: The run.
        store: The database.
        most: The versions that a transaction may delete: fewer after one that took too long.
        limit: How many the next one may delete: far fewer after one that failed, then twice as many each time.
        failures: How often in a row a lock was not granted in time, or a transaction of a single version took too long.
        writers: The transactions that may delete at once; those who archive are more.
    """

    run: Run
    store: DatabaseStore
    most: int = field(init=False)
    limit: int = field(init=False)
    failures: int = field(default=0, init=False)
    writers: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.writers = asyncio.Semaphore(self.store.writers)
        self.most = self.limit = min(MAX_TRANSACTION_VERSIONS, self.store.max_per_second or MAX_TRANSACTION_VERSIONS)

    async def prune(self, plans: Sequence[KeyPlan]) -> None:
        """Prune some keys."""
        # With a limit on deletions, one transaction at a time: concurrent ones could exceed it together.
        at_once = self.store.writers + MAX_PARTS_AT_ONCE * bool(self.run.archive)
        if self.run.limits.max_deletions or self.store.max_per_second:
            at_once = 1
        pending = list(plans)[::-1]
        for error in await asyncio.gather(*(self._prune_pending(pending) for _ in range(at_once)), return_exceptions=True):
            if error:
                raise error

    async def _prune_pending(self, pending: list[KeyPlan]) -> None:
        """Take plans from the end of `pending`, shared with concurrent calls, until none is left. An error empties it for all.

        What a batch passes over is pruned at once: the plans behind it would use up a limit on deletions.
        """
        try:
            while pending and await self._refresh_holds() and (room := int(min(self.limit, self.run.room()))):
                if not (batch := _next_batch(self.run, pending, room)):
                    continue
                for plan in await self._prune_unchanged(batch):
                    await self._prune_apart(plan)
                pending += [plan for plan, _deletion in reversed([*batch.values()]) if plan.stale]
        except BaseException:
            pending.clear()
            raise

    async def _prune_unchanged(self, batch: Batch) -> list[KeyPlan]:
        """Delete what a batch has of keys that have not changed. Return the plans of the others."""
        run = self.run
        deletions = [deletion for _plan, deletion in batch.values()]
        if run.archive:
            candidates = [each for plan, deletion in batch.values() for each in plan.candidates(len(deletion.ids))]
            size = sum(each.size for each in candidates)
            try:
                if not await archive(run, candidates, size):
                    return []
            except LostConnectionError:
                raise
            except StoreError as error:
                # A single version may be why: each key finds out for itself.
                self._shrink_if_slow(error, len(candidates))
                return [plan for plan, _deletion in batch.values()]
        async with self.writers:
            if run.archive:
                # To archive, and to wait for other transactions, took a while, in which keys may have been put on hold.
                if not await self._refresh_holds():
                    return []
                deletions = [
                    replace(each, archived=archived)
                    for each in deletions
                    if not run.hold_on(each.key) and (archived := run.archive.sum_of_states(each.ids)) is not None
                ]
            marks = await self._delete_unchanged(batch, deletions)
        await self._end([version_id for each in deletions if each.key in marks for version_id in each.ids])
        return [plan for key, (plan, _deletion) in batch.items() if key not in marks]

    async def _delete_unchanged(self, batch: Batch, deletions: Sequence[KeyDeletion]) -> Mapping[str, Mark | None]:
        """Delete in one transaction, and account for it. Return what the transaction returns; nothing if it failed."""
        run, store = self.run, self.store
        run.is_unsettled |= any(plan.takes_successor and deletion.is_last for plan, deletion in batch.values())
        ids = [version_id for each in deletions for version_id in each.ids]

        async def delete() -> Mapping[str, Mark | None]:
            marks = await store.transactions.write(Changes.delete_unchanged, deletions)
            for key, mark in marks.items():
                plan, deletion = batch[key]
                number = len(deletion.ids)
                _account(run, plan, deletion.ids, plan.sizes[:number])
                plan.drop(number)
                plan.mark = mark
            return marks

        run.touched.update(batch)
        try:
            # Shielded together with its accounting, so that a deletion is counted even if the run is cancelled meanwhile.
            with run.archive.doubting(ids) if run.archive else nullcontext():
                return await shielded(delete())
        except LostConnectionError:
            raise
        except StoreError as error:
            # It may have met a lock, have taken too long, or been refused for a single version: each key finds out for itself.
            self._shrink_if_slow(error, len(ids))
            return {}

    async def prune_unkeyed(self, plan: KeyPlan) -> None:
        """Prune the artifacts without a key."""
        while plan.stale and self.run.room():
            await self._prune_apart(plan)

    async def _prune_apart(self, plan: KeyPlan) -> None:
        """Delete some versions of a key, or some without one, by what is read in the same transaction.

        A failure is recorded in the report of the key.
        """
        run = self.run
        if not await self._refresh_holds() or not (number := int(min(self.limit, run.room(), len(plan.stale)))):
            return
        settle = _settle_unkeyed if plan.key is None else _settle_key

        async def delete() -> _Settled:
            settled = await self.store.transactions.write(settle, run, plan, number)
            _record(run, plan, settled)
            return settled

        if plan.key is not None:
            run.touched.add(plan.key)
        deleted: Sequence[UUID] = ()
        try:
            if run.archive:
                number = _fitting(plan.sizes[:number], MAX_TRANSACTION_BYTES, at_least=1)
                if not await archive(run, plan.candidates(number)):
                    return
            async with self.writers:
                if run.archive and not await self._refresh_holds():
                    return
                with run.archive.doubting(plan.stale) if run.archive else nullcontext():
                    settled = await shielded(delete())
            deleted = list(settled.deleted)
            self._count_attempt(plan, settled)
        except LostConnectionError:
            raise
        except StoreError as error:
            self._shrink_if_slow(error, number)
            # Whoever holds a lock of a key holds it for all its versions.
            if number == 1 or (plan.key is not None and isinstance(error, BusyError)):
                self._fail(plan, number, error)
            else:
                self.limit = max(1, number // SMALLER)
        await self._end(deleted)

    def _count_attempt(self, plan: KeyPlan, settled: _Settled) -> None:
        """Fail a key of which nothing can be deleted, because what was archived has changed each time."""
        plan.attempts = 0 if settled.deleted else plan.attempts + bool(settled.changed)
        if plan.attempts == MAX_ARCHIVING_ATTEMPTS:
            self._fail(plan, len(settled.changed), StoreError("its versions change faster than they can be archived"))

    def _shrink_if_slow(self, error: StoreError, number: int) -> None:
        """Delete less at a time from now on, if a transaction that was to delete `number` versions took too long."""
        if isinstance(error, SlowError):
            self.most = max(1, number // 2)
            self.limit = max(1, number // SMALLER)

    def _fail(self, plan: KeyPlan, number: int, error: StoreError) -> None:
        """Record that a key, or a single artifact without a key, could not be pruned, and go on with the next one."""
        plan.report.failed += number
        plan.report.error = str(error)
        plan.drop(len(plan.stale) if plan.key is not None else number)
        # A try counts as a deletion: with many in vain, the time budget would never be over.
        self.run.deletions_started += 1
        # Of what the database refuses, by contrast, each takes a moment only.
        self.failures += isinstance(error, BusyError | SlowError)
        most = MAX_FAILURES_OF_SQLITE if self.store.is_sqlite else MAX_FAILURES
        if self.failures == most:
            self.run.give_up(f"{most} times in a row, nothing could be deleted: {error}")

    async def _refresh_holds(self) -> bool:
        """Read the held keys again if need be, last of what a transaction waits for. Return False if it may delete nothing."""
        # A server that is busy may hold up an update of the progress for minutes.
        await self.run.notify_deleting()
        return await refresh_holds(self.run, MAX_HOLDS_AGE_SECONDS)

    async def _end(self, deleted: Sequence[UUID]) -> None:
        if deleted:
            self.failures = 0
            self.limit = min(2 * self.limit, self.most)
        await self.store.purge_events(deleted)
        await self.run.notify_deleting()
        await self.store.pace(len(deleted))


def _next_batch(run: Run, pending: list[KeyPlan], room: int) -> Batch:
    """Take plans from the end of `pending` for a batch of at most `room` deletions. A key that is too large is split.

    Nothing goes of a key that was put on hold since it was planned.
    """
    batch: dict[str, tuple[KeyPlan, KeyDeletion]] = {}
    space = MAX_TRANSACTION_BYTES
    while pending and room:
        plan = pending[-1]
        if run.hold_on(plan.key):
            pending.pop()
            plan.report.spared += len(plan.stale)
            plan.drop(len(plan.stale))
            continue
        number = _fitting(plan.sizes[:room], space, at_least=0 if batch else 1)
        if not number:
            break
        pending.pop()
        if plan.collection is None or plan.mark is None:
            raise TypeError("the plan of a key in a database has a collection and a mark")
        deletion = KeyDeletion(plan.collection, plan.mark, [*plan.stale[:number]], is_last=number == len(plan.stale))
        batch[deletion.key] = plan, deletion
        room -= number
        space -= sum(plan.sizes[:number])
    return batch


def _fitting(sizes: Sequence[int], space: int, *, at_least: int) -> int:
    """Count the versions, from the first on, whose sizes add up to at most `space`."""
    return max(at_least, bisect_right(list(accumulate(sizes)), space))


async def _settle_key(changes: Changes, run: Run, plan: KeyPlan, number: int) -> _Settled:
    """Lock a key, judge it by what is there now, and delete the first `number` of what the plan and this find stale.

    The latest version of an idle key goes last, and only if no other version is left.
    """
    key = str(plan.key)
    collections = await changes.lock([key])
    (history,) = await changes.histories([key])
    policy = select_policy(run.policies, key, collections[0].type) if collections else None
    sizes = dict(zip(plan.stale, plan.sizes, strict=True))
    stale: list[UUID] = []
    if policy:
        judged = subject(run, history, collections[0], policy)
        (judgement,) = await judge_all(run, [judged], changes)
        judged.warn_of_conflict(run)
        run.is_unsettled |= any(not verdict.keep for verdict in judgement[1:2])
        if judgement.is_dangling:
            run.dangling.add(key)
        newest_first = (judgement.versions.ids[index] for index in judgement.stale)
        stale = [version_id for version_id in newest_first if version_id in sizes][::-1]
    ready, changed = await _as_archived(changes, run, stale)
    going = ready[: _fitting([sizes[version_id] for version_id in ready[:number]], MAX_TRANSACTION_BYTES, at_least=1)]
    is_whole = len(going) == len(history.versions)
    if going and not is_whole and going[-1] == collections[0].latest_id:
        latest_id = going.pop()
        if len(stale) < len(history.versions):
            # Another version has come, or was not in the plan.
            stale.remove(latest_id)
    await changes.delete(going, [key], [key] if is_whole else [])
    deleted = {version_id: sizes[version_id] for version_id in going}
    left = [version_id for version_id in stale if version_id not in deleted]
    gone = len(sizes.keys() - set(history.versions.ids))
    return _Settled(
        number=len(plan.stale),
        deleted=deleted,
        left=left,
        changed=changed,
        gone=gone,
        spared=len(sizes) - len(stale) - gone,
        collection=collections[0] if collections else None,
        mark=await changes.mark(key) if left else None,
    )


async def _settle_unkeyed(changes: Changes, run: Run, plan: KeyPlan, number: int) -> _Settled:
    """Judge the first `number` artifacts of the plan by what is there now, and delete what is stale."""
    number = _fitting(plan.sizes[:number], MAX_TRANSACTION_BYTES, at_least=1)
    sizes = dict(zip(plan.stale[:number], plan.sizes[:number], strict=True))
    versions = await changes.unkeyed_versions(list(sizes))
    judgements = await judge_unkeyed(run, versions, plan.policy, changes)
    stale = {judgement.versions.ids[index] for judgement in judgements for index in judgement.stale}
    ready, changed = await _as_archived(changes, run, [version_id for version_id in sizes if version_id in stale])
    await changes.delete_unkeyed(ready)
    return _Settled(
        number=number,
        deleted={version_id: sizes[version_id] for version_id in ready},
        left=changed,
        changed=changed,
        gone=len(sizes) - len(versions),
        spared=len(versions) - len(stale),
    )


async def _as_archived(changes: Changes, run: Run, ids: list[UUID]) -> tuple[list[UUID], list[UUID]]:
    """Return those of the versions that may be deleted, and those that have changed since they were archived.

    What is not archived yet is neither.
    """
    if not run.archive:
        return ids, []
    archived = {version_id: state for version_id, state in run.archive.states(ids).items() if state is not None}
    now = await changes.states(archived)
    ready = [version_id for version_id in archived if now.get(version_id) == archived[version_id]]
    return ready, [version_id for version_id in archived if now.get(version_id) != archived[version_id]]


def _record(run: Run, plan: KeyPlan, settled: _Settled) -> None:
    """Record in the report and in the plan what a transaction has settled, once it is committed."""
    plan.report.already_gone += settled.gone
    plan.report.spared += settled.spared
    _account(run, plan, list(settled.deleted), list(settled.deleted.values()))
    if run.archive:
        left = {*settled.left}.difference(settled.changed)
        run.archive.spare(version_id for version_id in plan.stale[: settled.number] if version_id not in left)
    plan.drop(settled.number, kept=settled.left)
    plan.collection, plan.mark = settled.collection, settled.mark


def _account(run: Run, plan: KeyPlan, ids: Sequence[UUID], sizes: Sequence[int]) -> None:
    plan.report.add_deleted(ids, sum(sizes))
    run.deletions_started += len(ids)
    run.deletions_settled += len(ids)
    if run.archive:
        run.archive.add_deleted(ids)


prune_in_database_task = as_task(prune_in_database, "prune")
