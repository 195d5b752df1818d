"""Prune and verify: delete the versions that the plan found stale and a fresh check still does, then verify the collections.

A deletion cannot be undone, so its grounds are checked again as late as the API allows:

- Before anything of a key goes, its versions are listed and judged again (a snapshot). Keys that have at most
  `DELETIONS_PER_CHECK` stale versions between them share one snapshot.
- Before each batch, the key's policy and `latest_id` are read again; after `DELETIONS_PER_CHECK` deletions, or half of
  `MAX_CHECK_AGE_SECONDS`, so are holds, the states of runs and the versions kept. If anything has changed, or the server did
  not take a deletion for `MAX_RESEND_SECONDS`, a new snapshot is taken.
- Nothing is sent on a check that is older than `MAX_CHECK_AGE_SECONDS`, whatever it waited for.
- The oldest versions go first, several at once. The version behind the latest goes last and alone, after one more read of
  `latest_id`. The latest of an idle key goes last too, and only if it is the only version left.

The server deletes without locks. A collection left without its latest version, because a person deleted that at the same
moment, is found and repaired by `verify`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect_artifact_retention.policies import RetentionError, RetentionPolicy, Version
from prefect_artifact_retention.policies.evaluation import Judgement
from prefect_artifact_retention.policies.loading import select_policy
from prefect_artifact_retention.stores.concurrency import MAX_CONCURRENT_REQUESTS, for_each
from prefect_artifact_retention.stores.store import Collection, History, OutdatedSnapshotError
from prefect_artifact_retention.tasks.plan import Subject, judge_all, judge_unkeyed, subject, unfinished_runs
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.report import KeyReport
from prefect_artifact_retention.tasks.run import KeyPlan, Run, as_task

Item = TypeVar("Item")

DELETIONS_PER_CHECK = 64
"""Deletions of a key between two checks of what may keep its versions. With more, a new hold takes effect later; with fewer,
there are more requests."""

MIN_TASK_DELETIONS = 500
"""Deletions for each task run with several keys, on average. A task run costs the server as much as ten deletions."""

MAX_SHARED_VERSIONS = 2_000
MAX_SHARED_BYTES = 16 * 2**20
"""The size of keys that share a snapshot. With more, reading them takes longer than deleting their stale versions."""

MAX_KEPT_CHECKED = 1_000
"""Kept versions, the newest first, that a check looks up. The deletion of another one is noticed by the next snapshot only."""

LATE_DELETION_SECONDS = 1
"""The delay before the last check: a deletion by others, begun before ours ended, may take as long to be visible."""

MAX_REPAIR_ROUNDS = 5
"""Rounds of repairs. A collection that others keep breaking is reported as failed after that."""

MAX_RESEND_SECONDS = 2
"""How long after its first attempt a deletion may be retried without a new snapshot. With more, a version that has become the
latest, or is held, meanwhile may be deleted."""

MAX_CHECK_AGE_SECONDS = 120
"""How old a check may be when a deletion is sent on it, so how long a new hold may take effect. With less, there are more
checks, and deletions that wait are deferred more often."""

MAX_CHECK_AGE_REQUESTS = 15
"""At a low rate limit, a check may be as old as the time that so many requests take. With fewer, its own requests and those
between them would use it up, and nothing would ever be deleted."""

MAX_DEFERRALS = 5
"""Deferred deletions in a row, with none done in between, after which a key fails."""


@dataclass(slots=True)
class _Key:
    """A key that is being pruned: its plan, and the versions that are neither deleted nor kept so far."""

    name: str
    plan: KeyPlan
    pending: set[UUID]

    @property
    def expected(self) -> int:
        """How many versions the key has if only this run has changed it since the plan."""
        return self.plan.report.versions - self.plan.report.deleted


@dataclass(slots=True)
class _Snapshot:
    """The versions of a key's plan that are still stale, as of a fresh read of its versions and policy."""

    collection: Collection
    policy: RetentionPolicy
    successor: UUID | None
    """The version behind the latest, which the server would name as the latest if that were deleted."""
    stale: Sequence[Version]
    """The stale versions, the oldest first."""
    present: frozenset[UUID]
    """All versions of the key."""
    kept: Sequence[UUID]
    """The newest kept versions: if one is deleted, another version takes its slot of a rule."""
    checked_at: float
    """When the reading of holds, runs and kept versions began, by the monotonic clock."""
    age: int = 0
    """Deletions of this key since then."""
    is_checked: bool = False
    """Whether the collection was read after the versions, so that the first batch needs no check."""

    @property
    def plain(self) -> Sequence[Version]:
        """The stale versions, without the latest one and its successor."""
        return [each for each in self.stale if each.id not in (self.collection.latest_id, self.successor)]

    @property
    def is_of_idle_key(self) -> bool:
        """Whether the whole key is stale, which is the only case in which a latest version is."""
        return any(each.id == self.collection.latest_id for each in self.stale)

    def batches(self, deletions: int) -> Iterator[Sequence[Version]]:
        """Split the stale versions into batches of as many deletions, the successor last and alone.

        The latest version of an idle key is a batch only if it is the only version left.
        """
        yield from _batches(self.plain, deletions)
        successor = [each for each in self.stale if each.id == self.successor]
        if successor:
            yield successor
        elif len(self.present) == 1:
            yield self.stale


@dataclass(slots=True)
class _Retries:
    """Counts the deferred deletions of a key, and ends its retries after `MAX_DEFERRALS` in a row."""

    run: Run
    report: KeyReport
    times: int = 0
    settled: int = -1

    def record_deferral(self, error: OutdatedSnapshotError) -> None:
        """Count one more, or raise its error if there were too many."""
        self.run.defer_deletion()
        settled = self.report.deleted + self.report.already_gone
        self.times = self.times + 1 if settled == self.settled else 1
        self.settled = settled
        if self.times == MAX_DEFERRALS:
            raise error


@dataclass(slots=True)
class _Attempts:
    """The attempts to send one deletion, which end when its check is too old."""

    deadline: float
    """When the check of the batch is too old, by the monotonic clock."""
    outdated: Sequence[OutdatedSnapshotError]
    """The errors of deferred deletions of the batch; once there is one, nothing more is sent."""
    first: float | None = None
    """When the first attempt was sent."""

    @property
    def is_sent(self) -> bool:
        """Whether an attempt was sent, so that the server may have deleted the version."""
        return self.first is not None

    def start(self) -> bool:
        """Return whether another attempt may be sent now, and record the first one."""
        now = time.monotonic()
        if self.outdated or now > self.deadline:
            return False
        self.first = self.first or now
        return now - self.first <= MAX_RESEND_SECONDS


def pack(plans: Sequence[KeyPlan], limit: int) -> list[list[KeyPlan]]:
    """Group keys for prune tasks: one key each, or at most `limit` groups with about equally many deletions.

    There are fewer groups if they would have fewer than `MIN_TASK_DELETIONS` deletions on average.
    """
    if len(plans) <= limit:
        return [[plan] for plan in plans]
    number = max(1, min(limit, sum(len(plan.stale) for plan in plans) // MIN_TASK_DELETIONS))
    groups: list[list[int]] = [[] for _ in range(number)]
    weights = [0] * number
    for index in sorted(range(len(plans)), key=lambda index: len(plans[index].stale), reverse=True):
        lightest = weights.index(min(weights))
        groups[lightest].append(index)
        weights[lightest] += len(plans[index].stale)
    # What a time budget cuts off is what the next run begins with, so the order of the plans is kept.
    return [[plans[index] for index in group] for group in sorted(sorted(group) for group in groups if group)]


def group_label(group: Sequence[KeyPlan]) -> str:
    """Name a prune task by its key, or by the number of its keys."""
    return label(group[0].key) if len(group) == 1 else f"{len(group)} keys from {label(group[0].key)}"


@task(name="prune", task_run_name="prune {name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
async def prune_task(run: Run, group: Sequence[KeyPlan], name: str) -> State[None]:  # noqa: ARG001 - names the task run
    """Prune a group of keys. The task run fails if any key failed.

    Prefect never retries it, because a second attempt would not know what the first one deleted; its requests are retried.
    """
    await prune_keys(run, group)
    if failed := [plan for plan in group if plan.report.error]:
        return Failed(message="; ".join(f"{label(plan.key)}: {plan.report.error}" for plan in failed[:5]))
    return Completed(message=f"{sum(plan.report.deleted for plan in group)} deleted")


async def prune_keys(run: Run, plans: Sequence[KeyPlan]) -> None:
    """Prune some keys. Keys with few stale versions share a snapshot, which takes more requests than their deletions."""
    for batch in _key_batches(plans, _deletions_per_check(run)):
        # Checked before the snapshot, too: there may be thousands of batches.
        if not run.check_budgets():
            break
        if len(batch) == 1:
            await prune_key(run, batch[0])
        else:
            await _prune_together(run, [_Key(plan.key, plan, set(plan.stale)) for plan in batch if plan.key is not None])


def _max_check_age(run: Run) -> float:
    """Return the seconds for which deletions may be sent on a check."""
    return max(MAX_CHECK_AGE_SECONDS, MAX_CHECK_AGE_REQUESTS * run.seconds_per_request)


def _deletions_per_check(run: Run) -> int:
    """Return how many deletions may rest on a check: at a low rate limit, no more than are sent before it is too old."""
    in_time = _max_check_age(run) / 2 / run.seconds_per_request if run.seconds_per_request else DELETIONS_PER_CHECK
    return int(min(DELETIONS_PER_CHECK, in_time))


def _key_batches(plans: Sequence[KeyPlan], deletions: int) -> Iterator[Sequence[KeyPlan]]:
    """Split keys into batches that share a snapshot, with at most so many deletions between two checks."""
    batch: list[KeyPlan] = []
    for plan in plans:
        together = [*batch, plan]
        if batch and (
            None in {plan.key, batch[0].key}
            or sum(len(each.stale) for each in together) > deletions
            or sum(each.report.versions for each in together) > MAX_SHARED_VERSIONS
            or sum(each.report.bytes_seen for each in together) > MAX_SHARED_BYTES
        ):
            yield batch
            together = [plan]
        batch = together
    if batch:
        yield batch


async def _prune_together(run: Run, keys: Sequence[_Key]) -> None:
    """Prune keys on a shared snapshot, several at once. If it cannot be taken, each key takes a snapshot of its own."""
    snapshots: dict[str, _Snapshot] = {}
    with suppress(RetentionError):
        snapshots = await _checked_snapshots(run, keys)

    async def prune(key: _Key) -> None:
        async with _failures_recorded(key.plan):
            await _prune_keyed(run, key, snapshots.get(key.name), at_once=1)

    await for_each(keys, prune, run.at_once(MAX_CONCURRENT_REQUESTS))


async def _checked_snapshots(run: Run, keys: Sequence[_Key]) -> dict[str, _Snapshot]:
    """Take a shared snapshot, then check the collections of its keys. A key that has changed meanwhile is left out."""
    snapshots = await _first_snapshot(run, keys)
    plain = {name: snapshot for name, snapshot in snapshots.items() if snapshot.plain}
    began = time.monotonic()
    collections = {each.key: each for each in await run.store.collections(list(plain))} if plain else {}
    for name, snapshot in plain.items():
        snapshot.is_checked = await _still_applies(run, snapshot, snapshot.plain, collections.get(name), began)
        if not snapshot.is_checked:
            del snapshots[name]
    return snapshots


async def prune_key(run: Run, plan: KeyPlan) -> None:
    """Delete the stale versions of one key. A failure is recorded in its report, and not raised."""
    async with _failures_recorded(plan):
        if plan.key is None:
            await _prune_unkeyed(run, plan)
        else:
            key = _Key(plan.key, plan, set(plan.stale))
            await _prune_keyed(run, key, (await _first_snapshot(run, [key])).get(key.name))


@asynccontextmanager
async def _failures_recorded(plan: KeyPlan) -> AsyncIterator[None]:
    """Record a failure in the report of the key instead of raising it, so that other keys are not affected."""
    try:
        yield
    except RetentionError as error:
        plan.report.error = str(error)
    except Exception as error:  # noqa: BLE001 - it must not stop other keys; the run fails all the same
        plan.report.error = f"unexpected {type(error).__name__}"


async def _prune_keyed(run: Run, key: _Key, snapshot: _Snapshot | None, *, at_once: int = MAX_CONCURRENT_REQUESTS) -> None:
    """Delete the stale versions of a snapshot. Whenever anything has changed, take a new one, until nothing is left to do."""
    snapshot = snapshot or (await _take_snapshot(run, [key])).get(key.name)
    retries = _Retries(run, key.plan.report)
    while snapshot:
        batches = list(snapshot.batches(_deletions_per_check(run)))
        if not batches:
            # Only the latest of an idle key is left, and the key has other versions by now.
            key.plan.report.spared += len(key.pending)
            return
        for batch in batches:
            takes_last = any(version.id in (snapshot.successor, snapshot.collection.latest_id) for version in batch)
            async with run.store.reserve_slot() if takes_last else nullcontext():
                if not await _recheck(run, snapshot, batch):
                    break
                snapshot.age += len(batch)
                run.is_unsettled |= any(version.id == snapshot.successor for version in batch)
                deadline = snapshot.checked_at + _max_check_age(run)
                latest_id = snapshot.collection.latest_id
                try:
                    if not await _delete(run, key.plan, batch, key.pending, at_once, deadline, latest_id=latest_id):
                        return
                except OutdatedSnapshotError as error:
                    retries.record_deferral(error)
                    break
        snapshot = (await _take_snapshot(run, [key])).get(key.name)


async def _recheck(run: Run, snapshot: _Snapshot, batch: Sequence[Version]) -> bool:
    """Check a snapshot before a batch, unless that was done for several keys just now. False: a new snapshot is needed."""
    if snapshot.is_checked and _is_fresh(run, snapshot):
        snapshot.is_checked = False
        return True
    began = time.monotonic()
    collections = await run.store.collections([snapshot.collection.key])
    return await _still_applies(run, snapshot, batch, collections[0] if collections else None, began)


def _is_fresh(run: Run, snapshot: _Snapshot) -> bool:
    """Return whether a batch may rest on the last check; the other half of its time is for the deletions themselves."""
    return time.monotonic() - snapshot.checked_at <= _max_check_age(run) / 2


async def _still_applies(
    run: Run, snapshot: _Snapshot, batch: Sequence[Version], collection: Collection | None, began: float
) -> bool:
    """Return whether nothing has changed since the snapshot that may keep a version of the batch.

    Holds, the states of runs, and whether the versions kept are still there, are read again once `DELETIONS_PER_CHECK`
    deletions have passed, or half of the time for which a check counts.

    Args:
        run: The run.
        snapshot: The snapshot; its `checked_at` is renewed if all is read again.
        batch: The versions to be deleted next.
        collection: The collection as it is now; None if it is gone.
        began: When the reading of the collection began.
    """
    latest_id = snapshot.collection.latest_id
    if collection is None or select_policy(run.policies, collection.key, collection.type) != snapshot.policy:
        return False
    # A key whose latest version was updated in place, or replaced, is not idle.
    is_revived = snapshot.is_of_idle_key and collection.updated != snapshot.collection.updated
    # On a busy key, new versions become the latest all the time, which keeps no version of the batch, unless the key was idle.
    # But if the former latest was deleted, its successor moves up, and may have to be kept.
    if is_revived or (
        collection.latest_id != latest_id
        and (collection.latest_id in snapshot.present or snapshot.is_of_idle_key or not await run.store.versions([latest_id]))
    ):
        return False
    if snapshot.age + len(batch) <= DELETIONS_PER_CHECK and _is_fresh(run, snapshot):
        return True
    snapshot.age, snapshot.checked_at = 0, began
    if not await run.store.all_exist(snapshot.kept):
        return False
    metadata = {version.id: version.metadata for version in await run.store.versions([version.id for version in batch])}
    if metadata != {version.id: version.metadata for version in batch}:
        return False
    flow_runs = {version.flow_run_id for version in batch if version.flow_run_id}
    task_runs = {version.task_run_id for version in batch if version.task_run_id}
    return not await unfinished_runs(run, flow_runs, task_runs)


async def _first_snapshot(run: Run, keys: Sequence[_Key]) -> dict[str, _Snapshot]:
    """Take the first snapshot of some keys: their versions are read, their collections are those of the plan.

    The collections are checked before the first batch. A key that has not as many versions as planned is left to
    `_take_snapshot`: its `latest_id` may be the planned one again, but the version behind the latest another.
    """
    await run.notify_deleting()
    began = time.monotonic()
    histories = await _histories(run, keys, is_first=True)
    current = {
        key.name: key.plan.collection
        for key in keys
        if key.plan.collection
        and (history := histories.get(key.name))
        and len(history.versions) == key.expected
        and key.plan.collection.latest_id in history.versions.ids
        and history.versions.created[0] <= run.report.now
    }
    return await _judge(run, [key for key in keys if key.name in current], current, histories, began)


async def _take_snapshot(run: Run, keys: Sequence[_Key]) -> dict[str, _Snapshot]:
    """Read collections and versions of some keys, and judge them.

    The collections are read first, so that the latest version is among the versions; a version created in between is newer
    than the run, and protected as such.
    """
    keys = [key for key in keys if key.pending]
    if not keys:
        return {}
    await run.notify_deleting()
    began = time.monotonic()
    collections = {each.key: each for each in await run.store.collections([key.name for key in keys])}
    return await _judge(run, keys, collections, await _histories(run, keys), began)


async def _judge(
    run: Run, keys: Sequence[_Key], collections: Mapping[str, Collection], histories: Mapping[str, History], began: float
) -> dict[str, _Snapshot]:
    """Judge the versions of some keys, and return a snapshot for each that still has stale ones."""
    subjects: dict[str, Subject] = {}
    for name, history in histories.items():
        collection = collections.get(name)
        policy = select_policy(run.policies, name, collection.type) if collection else None
        if collection and policy and history.complete:
            subjects[name] = subject(run.policies, history, collection, policy)
            subjects[name].warn_of_conflict(run)
    judgements = dict(zip(subjects, await judge_all(run, list(subjects.values())), strict=True))
    snapshots: dict[str, _Snapshot] = {}
    for key in keys:
        judgement = judgements.get(key.name)
        if key.name not in histories or not (stale := _settle(run, key, histories[key.name], judgement)) or not judgement:
            continue
        versions, policy, latest_id, _conflict = subjects[key.name]
        successor = next((version_id for version_id in versions.ids if version_id != latest_id), None)
        kept = [versions.ids[index] for index in islice(judgement.kept(), MAX_KEPT_CHECKED)]
        present = frozenset(versions.ids)
        snapshots[key.name] = _Snapshot(collections[key.name], policy, successor, stale, present, kept, began)
    return snapshots


async def _histories(run: Run, keys: Sequence[_Key], *, is_first: bool = False) -> dict[str, History]:
    """List the versions of some keys. If there are several, a key that cannot be listed is left out."""
    if len(keys) == 1:
        return {key.name: await run.store.history(key.name, key.expected if is_first else 0) for key in keys}
    names = [key.name for key in keys]
    return {each.key: each async for batch in run.store.histories(names) for each in batch if not each.error}


def _settle(run: Run, key: _Key, history: History, judgement: Judgement | None) -> list[Version]:
    """Count the versions of a key that are gone or kept by now, and return those that are still stale, the oldest first."""
    stale: list[Version] = []
    if judgement:
        if judgement.is_dangling:
            run.dangling.add(key.name)
        versions = judgement.versions
        stale = [versions[index] for index in reversed(judgement.stale) if versions.ids[index] in key.pending]
    gone = key.pending.difference(history.versions.ids) if history.complete else set()
    spared = key.pending - gone - {version.id for version in stale}
    _settle_gone(run, key.plan, gone)
    key.plan.report.spared += len(spared)
    key.pending -= gone | spared
    return stale


async def _prune_unkeyed(run: Run, plan: KeyPlan) -> None:
    """Delete artifacts without a key, batch by batch. Before each batch, they are read and judged again."""
    retries = _Retries(run, plan.report)
    for ids in _batches(plan.stale, _deletions_per_check(run)):
        pending = set(ids)
        while pending:
            await run.notify_deleting()
            deadline = time.monotonic() + _max_check_age(run)
            versions = [version for version in await run.store.versions(pending) if version.key is None]
            _settle_gone(run, plan, pending.difference(version.id for version in versions))
            judgements = await judge_unkeyed(run, versions, plan.policy)
            stale = [each.versions[index] for each in judgements for index in reversed(each.stale)]
            plan.report.spared += len(versions) - len(stale)
            pending = {version.id for version in stale}
            try:
                if not await _delete(run, plan, stale, pending, MAX_CONCURRENT_REQUESTS, deadline):
                    return
            except OutdatedSnapshotError as error:
                retries.record_deferral(error)


def _defer(run: Run, plan: KeyPlan, version: Version, *, is_sent: bool) -> None:
    """Count a deferred deletion: as failed while nobody knows whether the server has done it, else as not begun."""
    if is_sent:
        plan.report.failed += 1
        plan.unanswered[version.id] = version.size
    else:
        run.deletions_started -= 1


def _settle_gone(run: Run, plan: KeyPlan, gone: AbstractSet[UUID]) -> None:
    """Count the versions that a new snapshot shows to be gone, those of deferred deletions that were sent as deleted."""
    ours = plan.unanswered.keys() & gone
    plan.report.deleted += len(ours)
    plan.report.bytes_freed += sum(plan.unanswered[version_id] for version_id in ours)
    plan.report.already_gone += len(gone) - len(ours)
    plan.report.failed -= len(plan.unanswered)
    run.deletions_started -= len(plan.unanswered) - len(ours)
    plan.unanswered.clear()


async def _delete(  # noqa: PLR0913, PLR0917 - the versions, and how they are deleted
    run: Run,
    plan: KeyPlan,
    versions: Sequence[Version],
    pending: set[UUID],
    at_once: int,
    deadline: float,
    *,
    latest_id: UUID | None = None,
) -> bool:
    """Delete versions in their order, `at_once` at a time, until the deadline. Return False once a budget is used up.

    Raises:
        StoreError: A deletion failed, and may have been done. No other was started after it, and those in flight were awaited
            and counted. It is an `OutdatedSnapshotError` if all that failed were deferred.
    """
    waiting = deque(versions)
    failures: list[Exception] = []
    outdated: list[OutdatedSnapshotError] = []

    def begun() -> Iterator[Version]:
        while waiting and not (failures or outdated) and run.take_deletion():
            yield waiting.popleft()

    async def delete(version: Version) -> None:
        if plan.key is not None:
            run.touched.add(plan.key)
        attempts = _Attempts(deadline, outdated)
        try:
            deleted = await run.store.delete(version.id, is_latest=version.id == latest_id, start_attempt=attempts.start)
        except OutdatedSnapshotError as error:
            _defer(run, plan, version, is_sent=attempts.is_sent)
            outdated.append(error)
            return
        except Exception as error:  # noqa: BLE001 - raised below, once the others have been counted
            plan.report.failed += 1
            failures.append(error)
            return
        pending.discard(version.id)
        if deleted:
            plan.report.deleted += 1
            plan.report.bytes_freed += version.size
        else:
            plan.report.already_gone += 1
        await run.notify_deletion()

    await for_each(begun(), delete, min(at_once, len(versions)))
    for error in (*failures, *outdated):
        raise error
    return not waiting


def _batches(items: Sequence[Item], number: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + number] for start in range(0, len(items), number))


async def verify(run: Run) -> None:
    """Check that each collection of which a version was deleted names an existing latest version, else repair it.

    Collections that were found dangling are included. If a version behind a latest one was deleted, the check waits for a
    moment, in which a concurrent deletion of the latest becomes visible.
    """
    if run.is_unsettled:
        await asyncio.sleep(LATE_DELETION_SECONDS)
    repaired, dangling = await _repair(run, sorted(run.touched | run.dangling))
    for key, problem in repaired.items():
        run.report.repaired.append(key)
        if problem:
            run.report.warn(f"{label(key)}: repaired, but a placeholder may be left: {problem}")
    for report in (*run.report.key_reports, *run.report.housekeeping):
        if report.key in dangling:
            problem = dangling[report.key]
            how = f", and could not be posted again: {problem}" if problem else " again and again"
            report.error = f"its latest version has vanished{how}"


async def _repair(run: Run, keys: Sequence[str]) -> tuple[dict[str, str], dict[str | None, str]]:
    """Repair dangling collections, in several rounds, because others may delete versions meanwhile.

    Returns:
        The keys that were repaired, and those that still dangle, each with its last error.
    """
    problems: dict[str, str] = {}
    suspects = keys
    for _round in range(MAX_REPAIR_ROUNDS):
        suspects = await run.store.dangling(suspects)
        for key in suspects:
            try:
                if await run.store.repair(key):
                    problems.setdefault(key, "")
            except RetentionError as error:
                problems[key] = str(error)
    dangling = await run.store.dangling(suspects)
    repaired = {key: problem for key, problem in problems.items() if key not in dangling}
    return repaired, {key: problems.get(key, "") for key in dangling}


verify_task = as_task(verify, "verify")
