"""Prune and verify: delete the versions that the plan found stale and a fresh check still does, then verify the collections.

A deletion cannot be undone, so its grounds are checked again as late as the API allows:

- Before anything of a key goes, its versions are listed and judged again (a snapshot). Keys that have at most
  `DELETIONS_PER_CHECK` stale versions between them share one snapshot.
- Before each batch, the key's policy and `latest_id` are read again; after `DELETIONS_PER_CHECK` deletions, so are holds, the
  states of runs and the versions kept. If anything has changed, or the server did not take a deletion for
  `MAX_RESEND_SECONDS`, a new snapshot is taken.
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
from prefect_artifact_retention.policies.model import Versions
from prefect_artifact_retention.stores.concurrency import MAX_CONCURRENT_REQUESTS, for_each
from prefect_artifact_retention.stores.store import Collection, History, KeptVersionError, OutdatedSnapshotError
from prefect_artifact_retention.tasks.plan import judge_all, judge_unkeyed, subject, unfinished_runs
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.report import KeyReport
from prefect_artifact_retention.tasks.run import KeyPlan, Run, as_task

Item = TypeVar("Item")

DELETIONS_PER_CHECK = 64
"""Deletions between two looks at what could keep a version."""

MIN_TASK_DELETIONS = 500
"""Deletions of a task run with several keys, at least on average: its events and log lines cost the server ten of them."""

MAX_SHARED_VERSIONS = 2_000
MAX_SHARED_BYTES = 16 * 2**20
"""What the keys that share a look have at most: to read more takes longer than to delete what is stale of it."""

MAX_KEPT_CHECKED = 1_000
"""Versions kept of a key that are looked for again while others of it go."""

LATE_DELETION_SECONDS = 1
"""A person's deletion that the server began before ours ended may take as long to show."""

MAX_REPAIR_ROUNDS = 5
"""Looks at collections that dangle: a repair, too, meets people who delete."""

MAX_RESEND_SECONDS = 2
"""After its first attempt, in which a deletion is sent again; then its key is looked at again first."""

MAX_SNAPSHOT_AGE_SECONDS = 120
"""After which a deletion that has waited for its turn is not sent on the same look either."""

MAX_DEFERRALS = 5
"""How often in a row a key is looked at again for that, with nothing gone in between; then it fails."""


@dataclass(slots=True)
class _Key:
    """A key that is being pruned: its plan, and what of it is not settled yet."""

    name: str
    plan: KeyPlan
    pending: set[UUID]

    @property
    def expected(self) -> int:
        """How many versions it has if none has come since the plan, and none has gone but by this run."""
        return self.plan.report.versions - self.plan.report.deleted


@dataclass(slots=True)
class _Snapshot:
    """What of a key's plan is still condemned, oldest first, as of a fresh look at the server."""

    collection: Collection
    policy: RetentionPolicy
    successor: UUID | None
    """The version that the server would name as the latest if that went."""
    stale: Sequence[Version]
    present: frozenset[UUID]
    kept: Sequence[UUID]
    """The newest that are kept: if one of them goes, its slot is another's."""
    age: int = 0
    """Deletions of this key since all that could keep its versions was read."""
    is_checked: bool = False
    """The first portion of it may go without another look at the collection."""

    @property
    def plain(self) -> Sequence[Version]:
        """What is condemned of it, without the latest version and the one behind that."""
        return [each for each in self.stale if each.id not in (self.collection.latest_id, self.successor)]

    @property
    def is_of_idle_key(self) -> bool:
        """Whether the whole key is condemned: nothing else condemns a latest version."""
        return any(each.id == self.collection.latest_id for each in self.stale)

    def batches(self) -> Iterator[Sequence[Version]]:
        """Part what is condemned: the version behind the latest goes last and alone.

        An idle key's latest goes only where it is the only version left.
        """
        yield from _batches(self.plain)
        successor = [each for each in self.stale if each.id == self.successor]
        if successor:
            yield successor
        elif len(self.present) == 1:
            yield self.stale


@dataclass(slots=True)
class _Retries:
    """Bears that deletions of a key are put off, unless that goes on and on with nothing gone in between."""

    run: Run
    report: KeyReport
    times: int = 0
    settled: int = -1

    def record_deferral(self, error: OutdatedSnapshotError) -> None:
        """Bear it once more, or raise the error."""
        self.run.defer_deletion()
        settled = self.report.deleted + self.report.already_gone
        self.times = self.times + 1 if settled == self.settled else 1
        self.settled = settled
        if self.times == MAX_DEFERRALS:
            raise error


@dataclass(slots=True)
class _Attempts:
    """A deletion on its way: whether it may be sent, or sent again, on the look that it rests on."""

    began: float
    """When the first of those that rest on it began."""
    outdated: Sequence[OutdatedSnapshotError]
    """The errors of deletions that were deferred; once there is one, nothing more is sent."""
    first: float | None = None

    @property
    def is_sent(self) -> bool:
        """Whether the server may have acted."""
        return self.first is not None

    def start(self) -> bool:
        """Tell so right before each attempt."""
        now = time.monotonic()
        if self.outdated or now - self.began > MAX_SNAPSHOT_AGE_SECONDS:
            return False
        self.first = self.first or now
        return now - self.first <= MAX_RESEND_SECONDS


def pack(plans: Sequence[KeyPlan], limit: int) -> list[list[KeyPlan]]:
    """Give each key a group of its own, or pack them into at most `limit` groups of about equally many deletions.

    Into fewer, where that many would have fewer than `MIN_TASK_DELETIONS` deletions each.
    """
    if len(plans) <= limit:
        return [[plan] for plan in plans]
    number = max(1, min(limit, sum(len(plan.stale) for plan in plans) // MIN_TASK_DELETIONS))
    groups: list[list[KeyPlan]] = [[] for _ in range(number)]
    weights = [0] * number
    for plan in sorted(plans, key=lambda plan: len(plan.stale), reverse=True):
        lightest = weights.index(min(weights))
        groups[lightest].append(plan)
        weights[lightest] += len(plan.stale)
    return groups


def group_label(group: Sequence[KeyPlan]) -> str:
    """Name a prune task by its key, or by how many it has."""
    return label(group[0].key) if len(group) == 1 else f"{len(group)} keys from {label(group[0].key)}"


@task(name="prune", task_run_name="prune {name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
async def prune_task(run: Run, group: Sequence[KeyPlan], name: str) -> State[None]:  # noqa: ARG001 - names the task run
    """Prune some keys; the task run is Failed if any of them failed.

    Never retried by Prefect: a second attempt would not know what the first has deleted. Its requests are retried instead.
    """
    await prune_keys(run, group)
    if failed := [plan for plan in group if plan.report.error]:
        return Failed(message="; ".join(f"{label(plan.key)}: {plan.report.error}" for plan in failed[:5]))
    return Completed(message=f"{sum(plan.report.deleted for plan in group)} deleted")


async def prune_keys(run: Run, plans: Sequence[KeyPlan]) -> None:
    """Prune some keys. Those with few stale versions share a look at the server: alone, it would cost more than they do."""
    for batch in _key_batches(plans):
        # Before the look, too: there may be thousands of them.
        if not run.check_budgets():
            break
        if len(batch) == 1:
            await prune_key(run, batch[0])
        else:
            await _prune_together(run, [_Key(plan.key, plan, set(plan.stale)) for plan in batch if plan.key is not None])


def _key_batches(plans: Sequence[KeyPlan]) -> Iterator[Sequence[KeyPlan]]:
    """Part keys so that a look at a share is as fresh for its last deletion as a look at one key is for a batch of its own."""
    batch: list[KeyPlan] = []
    for plan in plans:
        together = [*batch, plan]
        if batch and (
            None in {plan.key, batch[0].key}
            or sum(len(each.stale) for each in together) > DELETIONS_PER_CHECK
            or sum(each.report.versions for each in together) > MAX_SHARED_VERSIONS
            or sum(each.report.bytes_seen for each in together) > MAX_SHARED_BYTES
        ):
            yield batch
            together = [plan]
        batch = together
    if batch:
        yield batch


async def _prune_together(run: Run, keys: Sequence[_Key]) -> None:
    """Prune keys that are looked at together, some at once; where that fails, each is looked at alone, and fails alone."""
    snapshots: dict[str, _Snapshot] = {}
    with suppress(RetentionError):
        snapshots = await _checked_snapshots(run, keys)

    async def prune(key: _Key) -> None:
        async with _failing_alone(key.plan):
            await _prune_keyed(run, key, snapshots.get(key.name), at_once=1)

    await for_each(keys, prune, MAX_CONCURRENT_REQUESTS)


async def _checked_snapshots(run: Run, keys: Sequence[_Key]) -> dict[str, _Snapshot]:
    """Look at some keys, and then at their collections; those that have changed are left to a look of their own."""
    snapshots = await _first_snapshot(run, keys)
    plain = {name: snapshot for name, snapshot in snapshots.items() if snapshot.plain}
    collections = {each.key: each for each in await run.store.collections(list(plain))} if plain else {}
    for name, snapshot in plain.items():
        snapshot.is_checked = await _still_applies(run, snapshot, snapshot.plain, collections.get(name))
        if not snapshot.is_checked:
            del snapshots[name]
    return snapshots


async def prune_key(run: Run, plan: KeyPlan) -> None:
    """Delete the stale versions of one key, and account for them in its report. Its failure ends with it."""
    async with _failing_alone(plan):
        if plan.key is None:
            await _prune_unkeyed(run, plan)
        else:
            key = _Key(plan.key, plan, set(plan.stale))
            await _prune_keyed(run, key, (await _first_snapshot(run, [key])).get(key.name))


@asynccontextmanager
async def _failing_alone(plan: KeyPlan) -> AsyncIterator[None]:
    """Let a failure end the work on this key, and no other's."""
    try:
        yield
    except RetentionError as error:
        plan.report.error = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it stops no other key, and the run is not Completed
        plan.report.error = f"unexpected {type(error).__name__}"


async def _prune_keyed(run: Run, key: _Key, snapshot: _Snapshot | None, *, at_once: int = MAX_CONCURRENT_REQUESTS) -> None:
    """Delete what a look condemns; without one, or once anything has changed since, look anew, until nothing is left to do."""
    snapshot = snapshot or (await _take_snapshot(run, [key])).get(key.name)
    retries = _Retries(run, key.plan.report)
    while snapshot:
        batches = list(snapshot.batches())
        if not batches:
            # What is left is an idle key's latest, and somebody made another version meanwhile, or a version is kept.
            key.plan.report.spared += len(key.pending)
            return
        for batch in batches:
            takes_last = any(version.id in (snapshot.successor, snapshot.collection.latest_id) for version in batch)
            async with run.store.reserve_slot() if takes_last else nullcontext():
                if not await _recheck(run, snapshot, batch):
                    break
                snapshot.age += len(batch)
                run.is_unsettled |= any(version.id == snapshot.successor for version in batch)
                try:
                    if not await _delete(run, key.plan, batch, key.pending, at_once, latest_id=snapshot.collection.latest_id):
                        return
                except OutdatedSnapshotError as error:
                    retries.record_deferral(error)
                    break
        gone = key.plan.report.already_gone
        snapshot = (await _take_snapshot(run, [key])).get(key.name)
        _settle_deferred(run, key.plan, key.plan.report.already_gone - gone)


async def _recheck(run: Run, snapshot: _Snapshot, batch: Sequence[Version]) -> bool:
    """Read a key's collection again, if that was not done just now for several keys; False means: look again."""
    if snapshot.is_checked:
        snapshot.is_checked = False
        return True
    collections = await run.store.collections([snapshot.collection.key])
    return await _still_applies(run, snapshot, batch, collections[0] if collections else None)


async def _still_applies(run: Run, snapshot: _Snapshot, batch: Sequence[Version], collection: Collection | None) -> bool:
    """Tell whether nothing has changed since the look that could keep some of these versions.

    Holds, the states of runs, and whether the versions kept are still there, are read again once `DELETIONS_PER_CHECK`
    deletions have passed.
    """
    latest_id = snapshot.collection.latest_id
    if collection is None or select_policy(run.policies, collection.key, collection.type) != snapshot.policy:
        return False
    # A version created since the look changes the latest of a busy key all the time, and keeps nothing from going, unless the
    # key was idle until then; but a former latest that was deleted does, because its successor moves up.
    if collection.latest_id != latest_id and (
        collection.latest_id in snapshot.present or snapshot.is_of_idle_key or not await run.store.versions([latest_id])
    ):
        return False
    if snapshot.age + len(batch) <= DELETIONS_PER_CHECK:
        return True
    snapshot.age = 0
    if not await run.store.all_exist(snapshot.kept):
        return False
    metadata = {version.id: version.metadata for version in await run.store.versions([version.id for version in batch])}
    if metadata != {version.id: version.metadata for version in batch}:
        return False
    flow_runs = {version.flow_run_id for version in batch if version.flow_run_id}
    task_runs = {version.task_run_id for version in batch if version.task_run_id}
    return not await unfinished_runs(run, flow_runs, task_runs)


async def _first_snapshot(run: Run, keys: Sequence[_Key]) -> dict[str, _Snapshot]:
    """List and judge the versions of some keys again, those that have as many as planned, by their collections as planned.

    These are read before anything goes. A key of which a version has come or gone since is left to `_take_snapshot`: its
    collection may be as planned once more by then, and the version that is right behind the latest another.
    """
    await run.notify_deleting()
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
    return await _judge(run, [key for key in keys if key.name in current], current, histories)


async def _take_snapshot(run: Run, keys: Sequence[_Key]) -> dict[str, _Snapshot]:
    """Fetch and judge some keys anew.

    The collections are read before their versions, so that the latest version is among them: one created in between is newer
    than the run, and protected as such.
    """
    keys = [key for key in keys if key.pending]
    if not keys:
        return {}
    await run.notify_deleting()
    collections = {each.key: each for each in await run.store.collections([key.name for key in keys])}
    return await _judge(run, keys, collections, await _histories(run, keys))


async def _judge(
    run: Run, keys: Sequence[_Key], collections: Mapping[str, Collection], histories: Mapping[str, History]
) -> dict[str, _Snapshot]:
    """Judge and settle some keys; one of which nothing is condemned any more has no look."""
    subjects: dict[str, tuple[Versions, RetentionPolicy, UUID]] = {}
    for name, history in histories.items():
        collection = collections.get(name)
        policy = select_policy(run.policies, name, collection.type) if collection else None
        if collection and policy and history.complete:
            subjects[name] = subject(history, collection, policy)
    judgements = dict(zip(subjects, await judge_all(run, list(subjects.values())), strict=True))
    snapshots: dict[str, _Snapshot] = {}
    for key in keys:
        judgement = judgements.get(key.name)
        if key.name not in histories or not (stale := _settle(run, key, histories[key.name], judgement)) or not judgement:
            continue
        versions, policy, latest_id = subjects[key.name]
        successor = next((version_id for version_id in versions.ids if version_id != latest_id), None)
        kept = [versions.ids[index] for index in islice(judgement.kept(), MAX_KEPT_CHECKED)]
        present = frozenset(versions.ids)
        snapshots[key.name] = _Snapshot(collections[key.name], policy, successor, stale, present, kept)
    return snapshots


async def _histories(run: Run, keys: Sequence[_Key], *, is_first: bool = False) -> dict[str, History]:
    """List the versions of some keys; of several, those that cannot be listed are left out, and looked at alone later."""
    if len(keys) == 1:
        return {key.name: await run.store.history(key.name, key.expected if is_first else 0) for key in keys}
    names = [key.name for key in keys]
    return {each.key: each async for batch in run.store.histories(names) for each in batch if not each.error}


def _settle(run: Run, key: _Key, history: History, judgement: Judgement | None) -> list[Version]:
    """Account for what of a key has gone or is kept now, and return what is still condemned, oldest first."""
    stale: list[Version] = []
    if judgement:
        if judgement.is_dangling:
            run.dangling.add(key.name)
        versions = judgement.versions
        stale = [versions[index] for index in reversed(judgement.stale) if versions.ids[index] in key.pending]
    gone = key.pending.difference(history.versions.ids) if history.complete else set()
    spared = key.pending - gone - {version.id for version in stale}
    key.plan.report.already_gone += len(gone)
    key.plan.report.spared += len(spared)
    key.pending -= gone | spared
    return stale


async def _prune_unkeyed(run: Run, plan: KeyPlan) -> None:
    """Delete artifacts without a key: nothing hangs on them, but their runs, holds and ages are looked at again."""
    retries = _Retries(run, plan.report)
    for ids in _batches(plan.stale):
        pending = set(ids)
        while pending:
            await run.notify_deleting()
            versions = [version for version in await run.store.versions(pending) if version.key is None]
            _settle_deferred(run, plan, len(pending) - len(versions))
            judgements = await judge_unkeyed(run, versions, plan.policy)
            stale = [each.versions[index] for each in judgements for index in reversed(each.stale)]
            plan.report.already_gone += len(pending) - len(versions)
            plan.report.spared += len(versions) - len(stale)
            pending = {version.id for version in stale}
            try:
                if not await _delete(run, plan, stale, pending, MAX_CONCURRENT_REQUESTS):
                    return
            except OutdatedSnapshotError as error:
                retries.record_deferral(error)


def _settle_deferred(run: Run, plan: KeyPlan, gone: int) -> None:
    """Account for deletions that were put off, once it is known what has become of them: some may have gone."""
    run.deletions_started -= max(0, plan.report.failed - gone)
    plan.report.failed = 0


async def _delete(  # noqa: PLR0913 - what is deleted, and how
    run: Run,
    plan: KeyPlan,
    versions: Sequence[Version],
    pending: set[UUID],
    at_once: int,
    *,
    latest_id: UUID | None = None,
) -> bool:
    """Delete versions, begun in their order. False, and no more of this key, once a budget of the run is used up.

    Raises:
        StoreError: A deletion failed; whether the server has deleted that version is then unknown. No other is begun after it,
            and those under way are waited for and counted. A `OutdatedSnapshotError`, if all that failed may be judged anew.
    """
    waiting = deque(versions)
    failures: list[Exception] = []
    outdated: list[OutdatedSnapshotError] = []
    began = time.monotonic()

    def begun() -> Iterator[Version]:
        while waiting and not (failures or outdated) and run.take_deletion():
            yield waiting.popleft()

    async def delete(version: Version) -> None:
        if plan.key is not None:
            run.touched.add(plan.key)
        attempts = _Attempts(began, outdated)
        try:
            deleted = await run.store.delete(version.id, is_latest=version.id == latest_id, start_attempt=attempts.start)
        except KeptVersionError:
            pending.discard(version.id)
            plan.report.spared += 1
            return
        except OutdatedSnapshotError as error:
            plan.report.failed += attempts.is_sent
            run.deletions_started -= not attempts.is_sent
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


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + DELETIONS_PER_CHECK] for start in range(0, len(items), DELETIONS_PER_CHECK))


async def verify(run: Run) -> None:
    """Make sure that each collection of which something went names a latest version that exists; mend those that do not.

    So are those that the run found without one. Where the version behind the latest went, a deletion of the latest that the
    server had begun may show a moment later.
    """
    if run.is_unsettled:
        await asyncio.sleep(LATE_DELETION_SECONDS)
    repaired, dangling = await _repair(run, sorted(run.touched | run.dangling))
    for key, problem in repaired.items():
        run.report.repaired.append(key)
        if problem:
            run.report.warn(f"{label(key)}: mended, but a copy of its last version may be left: {problem}")
    for report in (*run.report.key_reports, *run.report.housekeeping):
        if report.key in dangling:
            problem = dangling[report.key]
            how = f", and could not be posted again: {problem}" if problem else " again and again"
            report.error = f"its latest version has vanished{how}"


async def _repair(run: Run, keys: Sequence[str]) -> tuple[dict[str, str], dict[str | None, str]]:
    """Mend what dangles, some times over: a repair, too, meets people who delete.

    Returns:
        The keys that were mended and those that dangle still, each with what went wrong with it last.
    """
    problems: dict[str, str] = {}
    suspects = keys
    for _take_snapshot in range(MAX_REPAIR_ROUNDS):
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
