"""Prune through the API: delete the versions that the plan found stale and a fresh check still does.

A deletion cannot be undone, and the server deletes without locks, so its grounds are checked again as late as the API allows
(`checks`), and nothing is sent on a check that is too old (`deletions`). Keys with few stale versions share a check, because
it takes more requests than their deletions.

The oldest versions go first, several at once. The version behind the latest goes last and alone, after one more reading of
`latest_id`. The latest of an idle key goes last too, and only if it is the only version left. A collection left without its
latest version, because a person deleted that at the same moment, is found and repaired by `verify`.

With an archive, thousands of versions are archived ahead, of several keys together, and one of them is deleted only if the
check has read it as it was archived.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from itertools import chain, islice
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect_artifact_retention.policies import RetentionError, StoreError, Version
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.concurrency import for_each
from prefect_artifact_retention.stores.rows import state_of
from prefect_artifact_retention.stores.store import OutdatedCheckError
from prefect_artifact_retention.tasks.archiving import archive, fitting_a_part
from prefect_artifact_retention.tasks.checks import (
    Check,
    Pruning,
    check_keys,
    deadline_of,
    deletions_per_check,
    max_check_age,
    still_holds,
)
from prefect_artifact_retention.tasks.deletions import Patience, send
from prefect_artifact_retention.tasks.grouping import batches_of_keys, group_label, pack
from prefect_artifact_retention.tasks.plan import judge_unkeyed
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.run import KeyPlan, Run, in_flow_run

MAX_CONCURRENT_GROUPS = 4
"""Prune tasks that run concurrently: while some check, others delete. With more, checks are older when their deletions are
sent."""

MAX_LATE_CHECKS = 5
"""Checks in a row on which deletions were too late, after which a key fails."""

MAX_LATE_CHECKS_OF_RUN = 15
MIN_STALL_SECONDS = 60
"""A run fails after so many, for this long, with no deletion done in between: the server's database may be locked. With more,
a run over many keys reads each of them again for longer."""


async def prune_through_api(run: Run, store: ApiStore) -> None:
    """Prune what the plan found stale: no more keys at a time than `max_deletions` allows for, in the order of the plans."""
    pruner = Pruner(run, store)
    waiting = deque(plan for plan in run.user_plans if plan.stale)
    while waiting and (room := run.room()):
        plans: list[KeyPlan] = []
        while waiting and room > 0:
            plans.append(waiting.popleft())
            room -= len(plans[-1].stale)
        groups = pack(plans, run.limits.max_task_runs)
        await for_each(groups, partial(_prune_group, pruner), run.at_once(MAX_CONCURRENT_GROUPS))
    if own := [plan for plan in run.own_plans if plan.stale]:
        with run.housekeeping():
            await _prune_group(pruner, own)


async def _prune_group(pruner: Pruner, group: Sequence[KeyPlan]) -> None:
    """Run the prune task of a group of keys. It is not mapped, because mapped tasks have their own event loops and clients."""
    if not pruner.run.check_budgets():
        return
    if not in_flow_run():
        await pruner.prune(group)
        return
    # Prefect types a call of an async task as its result.
    state: State[None] = await prune_task(pruner, group, group_label(group), return_state=True)  # type: ignore[misc]
    if not state.is_completed() and not any(plan.report.error for plan in group):
        pruner.run.report.errors.append(printable(f"prune {group_label(group)}: {state.message}"))


@task(name="prune", task_run_name="prune {name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
async def prune_task(pruner: Pruner, group: Sequence[KeyPlan], name: str) -> State[None]:  # noqa: ARG001 - names the task run
    """Prune a group of keys. The task run fails if any key failed.

    Prefect never retries it, because a second attempt would not know what the first one deleted; its requests are retried.
    """
    await pruner.prune(group)
    if failed := [plan for plan in group if plan.report.error]:
        return Failed(message="; ".join(f"{label(plan.key)}: {plan.report.error}" for plan in failed[:5]))
    return Completed(message=f"{sum(plan.report.deleted for plan in group):,} deleted")


class Pruner:
    """Prunes the keys of one run."""

    def __init__(self, run: Run, store: ApiStore) -> None:
        self.run = run
        self._store = store
        self._patience = Patience(MAX_LATE_CHECKS_OF_RUN, MIN_STALL_SECONDS)

    async def prune(self, plans: Sequence[KeyPlan]) -> None:
        """Delete the stale versions of some keys. What fails is recorded in their reports, and not raised."""
        batches = list(batches_of_keys(plans, deletions_per_check(self.run)))
        for number, batch in enumerate(batches):
            # Before the check, too: there may be thousands of batches.
            if not self.run.check_budgets() or not await self._archive_ahead(batches[number:]):
                break
            await self._prune_batch([Pruning(plan, plan.collection, dict.fromkeys(plan.stale)) for plan in batch])

    async def _prune_batch(self, keys: Sequence[Pruning]) -> None:
        """Prune keys on a shared check, several at once. If it cannot be made, each key makes one of its own."""
        checks: dict[str, Check] = {}
        if len(keys) > 1:
            with suppress(RetentionError):
                checks = await check_keys(self.run, self._store, keys)

        async def prune(key: Pruning) -> None:
            try:
                await self._prune_key(key, checks.get(key.name))
            except RetentionError as error:
                key.plan.report.error = str(error)
            except Exception as error:  # noqa: BLE001 - it must not stop other keys; the run fails all the same
                key.plan.report.error = f"unexpected {type(error).__name__}"
            finally:
                key.plan.report.failed += len(key.unanswered)
                if self.run.archive:
                    self.run.archive.spare(key.pending)

        # One more than requests at once: its answer is dealt with while the server works on the next.
        await for_each(keys, prune, self.run.at_once(self._store.connection.level + 1))

    async def _prune_key(self, key: Pruning, check: Check | None) -> None:
        """Delete the stale versions of a key, on as many checks as it takes, as long as the budgets allow it."""
        patience = Patience(MAX_LATE_CHECKS)
        goes_on = True
        while key.pending and goes_on and self.run.check_budgets():
            try:
                if key.plan.key is None:
                    goes_on = await self._prune_unkeyed(key)
                elif check := check or (await check_keys(self.run, self._store, [key])).get(key.name):
                    goes_on = await self._prune_checked(key, check)
            except OutdatedCheckError as error:
                self._put_off(key, patience, error)
            check = None

    async def _prune_checked(self, key: Pruning, check: Check) -> bool:
        """Delete on a check until it is used up, or no longer holds. Return False if no more may be deleted."""
        batches = list(check.batches(deletions_per_check(self.run)))
        if not batches:
            # Only the latest of an idle key is left, and the key has other versions by now.
            key.settle(self.run, set(key.pending), set(), set())
        for planned in batches:
            archived = await self._archived(key, [version.id for version in planned])
            batch: Sequence[Version] = [version for version in planned if version.id in archived]
            if not batch:
                return self._has_room()
            takes_last = check.takes_last(batch)
            async with self._store.connection.reserve_slot() if takes_last else nullcontext():
                if not await still_holds(self.run, self._store, check, batch, key):
                    break
                if not (batch := self._as_archived(key, batch)):
                    continue
                self.run.is_unsettled |= batch[0].id == check.successor
                if not await send(self.run, self._store, key, batch, deadline_of(self.run, check, batch)):
                    return False
        return True

    async def _archive_ahead(self, batches: Sequence[Sequence[KeyPlan]]) -> bool:
        """Archive what a batch of keys and those after it have, in one part. Return False if no more may be deleted.

        If one of them cannot be read, each is archived apart.
        """
        run = self.run
        first, others = batches[0], chain.from_iterable(batches[1:])
        next_ones = islice((each.id for plan in first for each in plan.candidates()), deletions_per_check(run))
        if not run.archive or run.archive.copies.keys() >= {*next_ones}:
            return True
        candidates = (each for plan in chain(first, others) for each in plan.candidates())
        try:
            return await archive(run, fitting_a_part(run, candidates))
        except StoreError:
            return True

    async def _archived(self, key: Pruning, batch: Iterable[UUID]) -> set[UUID]:
        """Archive a batch, and what comes next. Return what has a copy then: not what is gone, or is too much for the run."""
        run, ids = self.run, {*batch}
        if not run.archive:
            return ids
        if not run.archive.copies.keys() >= ids:
            pending = [each for each in key.plan.candidates() if each.id in key.pending]
            await archive(run, fitting_a_part(run, sorted(pending, key=lambda each: each.id not in ids)))
        return run.archive.copies.keys() & ids

    def _has_room(self) -> bool:
        """Return whether the run may delete more than it has archived; if not, it is unfinished."""
        run = self.run
        if has_room := run.archive is None or run.room() > len(run.archive.copies):
            return has_room
        run.report.outcome = "unfinished"
        return False

    def _as_archived(self, key: Pruning, batch: Sequence[Version]) -> Sequence[Version]:
        """Return those of a batch that were read as they were archived; the others are left alone."""
        if not self.run.archive:
            return batch
        states = self.run.archive.states(version.id for version in batch)
        same = [version for version in batch if states[version.id] == state_of(version)]
        if len(same) < len(batch):
            key.settle(self.run, states.keys(), set(), {version.id for version in same})
        return same

    async def _prune_unkeyed(self, key: Pruning) -> bool:
        """Read and judge a batch of artifacts without a key, and delete them. Return False if no more may be deleted."""
        await self.run.notify_deleting()
        ids = set(islice(key.pending, deletions_per_check(self.run)))
        archived = await self._archived(key, ids)
        deadline = time.monotonic() + max_check_age(self.run)
        versions = [version for version in await self._store.versions(ids) if version.key is None]
        judgements = await judge_unkeyed(self.run, versions, key.plan.policy)
        found = [each.versions[index] for each in judgements for index in reversed(each.stale)]
        gone = ids.difference(version.id for version in versions)
        key.settle(self.run, archived | gone, gone, {version.id for version in found} & archived)
        stale = self._as_archived(key, [version for version in found if version.id in archived])
        if not (archived or gone):
            return self._has_room()
        return not stale or await send(self.run, self._store, key, stale, deadline)

    def _put_off(self, key: Pruning, patience: Patience, error: OutdatedCheckError) -> None:
        """Count a check on which deletions were too late. After too many in a row, give up the key, or the run.

        Raises:
            OutdatedCheckError: There were too many of this key.
        """
        if self._patience.spend(sum(plan.report.settled for plan in self.run.plans)):
            seconds = time.monotonic() - self._patience.since
            self.run.give_up(f"the Prefect server accepted no deletion for {seconds:.0f} seconds")
        if patience.spend(key.plan.report.settled):
            raise error
