"""Checks: whether versions that the plan found stale still are, as of a fresh reading, and for how long that counts.

A check reads the versions of some keys, judges them again, and reads their collections last: so it knows that the latest
version is still the one by which it judged. The holds on keys are read first, if they are not fresh. It counts for
`max_check_age`, and nothing is sent on it afterwards, whatever it waited for. It covers `deletions_per_check` deletions;
before more of the same key, all that may keep them is read again, and before the version behind the latest, the collection
is. If anything has changed, a new check is made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from operator import attrgetter
from uuid import UUID

from prefect_artifact_retention.policies import RetentionPolicy, Version
from prefect_artifact_retention.policies.evaluation import Judgement
from prefect_artifact_retention.policies.loading import select_policy
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.rows import state_of
from prefect_artifact_retention.stores.store import Collection, History
from prefect_artifact_retention.tasks.holds import refresh_holds
from prefect_artifact_retention.tasks.plan import Subject, judge_all, subject, unfinished_runs
from prefect_artifact_retention.tasks.run import KeyPlan, Run

DELETIONS_PER_CHECK = 64
"""Deletions of a key between two readings of what may keep its versions. With more, a new hold takes effect later; with fewer,
there are more requests."""

MAX_CHECK_AGE_SECONDS = 60
"""How old a check may be when a deletion is sent on it, so how long a new hold may take effect. With less, deletions that wait
are put off more often."""

MAX_CHECK_AGE_REQUESTS = 9
"""At a rate limit of less than nine requests a minute, a check counts for as long as so many take: its readings and a
deletion. With fewer, nothing would ever be deleted."""

HOLDS_AGE_SHARE = 1 / 6
"""The share of that time that the list of held keys may be old when a check begins, which counts from that reading on. With
less, there are more requests; with more, a check has less time left for its deletions."""

MAX_LAST_SECONDS = 2
MAX_LAST_REQUESTS = 2
"""For how long, or how many requests of a rate limit, the version behind the latest may be deleted after `latest_id` was read.
With more, it may be sent again after a person has deleted the latest, and that version has become the latest."""

MAX_KEPT_CHECKED = 1_000
"""Kept versions, the newest first, whose existence is checked between batches. That another one is gone, only a new check
shows."""


@dataclass(slots=True)
class Pruning:
    """A key that is being pruned, or all artifacts without one.

    Attributes:
        plan: Its plan.
        collection: The collection as it was read last; None if it is gone.
        pending: The stale versions of the plan that are neither deleted nor kept so far, the oldest first.
        unanswered: The versions whose deletion was sent and not answered in time, with their sizes: once they are gone, they
            were deleted by this run.
    """

    plan: KeyPlan
    collection: Collection | None
    pending: dict[UUID, None]
    unanswered: dict[UUID, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The key."""
        return self.plan.key or ""

    def settle(self, run: Run, checked: AbstractSet[UUID], gone: AbstractSet[UUID], stale: AbstractSet[UUID]) -> None:
        """Count what a check of some of its versions has shown: which are gone, and which are still stale."""
        report, ours = self.plan.report, self.unanswered.keys() & gone
        report.add_deleted(list(ours), sum(self.unanswered[version_id] for version_id in ours))
        report.already_gone += len(gone) - len(ours)
        report.spared += len(checked - gone - stale)
        run.return_deletions(len(self.unanswered) - len(ours))
        if run.archive:
            run.archive.add_deleted(ours)
            run.archive.trust(self.unanswered)
            run.archive.spare(checked - stale)
        self.unanswered.clear()
        for version_id in checked - stale:
            del self.pending[version_id]


@dataclass(slots=True)
class Check:
    """The versions of a key that are still stale by a fresh reading.

    Attributes:
        collection: The collection by which the versions were judged.
        stale: The stale versions, the oldest first.
        present: All versions of the key.
        kept: The newest kept versions: if one is deleted, another version takes its slot of a rule.
        successor: The version behind the latest, which the server would name as the latest if that were deleted.
        is_idle: Whether they are stale because the key is idle.
        read_at: When the reading of holds, runs and kept versions began, by the monotonic clock.
        used: How many deletions rest on that reading.
    """

    collection: Collection
    stale: Sequence[Version]
    present: frozenset[UUID]
    kept: Sequence[UUID]
    successor: UUID | None
    is_idle: bool
    read_at: float
    used: int = 0

    def batches(self, deletions: int) -> Iterator[Sequence[Version]]:
        """Split the stale versions into batches of as many deletions, the successor last and alone.

        The latest version of an idle key is a batch only if it is the only version left.
        """
        plain = [each for each in self.stale if not self.takes_last([each])]
        yield from (plain[start : start + deletions] for start in range(0, len(plain), deletions))
        if successor := [each for each in self.stale if each.id == self.successor]:
            yield successor
        elif len(self.present) == 1:
            yield self.stale

    def takes_last(self, batch: Sequence[Version]) -> bool:
        """Return whether a batch is the version behind the latest, or the latest."""
        return any(version.id in (self.successor, self.collection.latest_id) for version in batch)


def max_check_age(run: Run) -> float:
    """Return the seconds for which deletions may be sent on a check."""
    return max(MAX_CHECK_AGE_SECONDS, MAX_CHECK_AGE_REQUESTS * run.seconds_per_request)


def deadline_of(run: Run, check: Check, batch: Sequence[Version]) -> float:
    """Return until when, by the monotonic clock, a batch that has just been found to hold may be sent."""
    deadline = check.read_at + max_check_age(run)
    if not check.takes_last(batch):
        return deadline
    return min(deadline, time.monotonic() + max(MAX_LAST_SECONDS, MAX_LAST_REQUESTS * run.seconds_per_request))


def deletions_per_check(run: Run) -> int:
    """Return how many deletions may rest on a check: at a low rate limit, no more than are sent before it is too old."""
    requests = max_check_age(run) / run.seconds_per_request if run.seconds_per_request else inf
    return max(1, int(min(DELETIONS_PER_CHECK, requests - MAX_CHECK_AGE_REQUESTS)))


async def check_keys(run: Run, store: ApiStore, keys: Sequence[Pruning]) -> dict[str, Check]:
    """Check some keys together. Return a check for each that still has stale versions, unless it has just changed.

    Of a key that has changed, or could not be listed with the others, nothing is counted: it takes another check.

    Raises:
        StoreError: A single key, or the collections, cannot be read.
    """
    await run.notify_deleting()
    if not await refresh_holds(run, MAX_CHECK_AGE_SECONDS * HOLDS_AGE_SHARE):
        return {}
    read_at = run.holds_read_at
    histories = await _histories(store, keys)
    subjects = {key.name: each for key in keys if (each := _subject(run, key, histories.get(key.name)))}
    judgements = dict(zip(subjects, await judge_all(run, list(subjects.values())), strict=True))
    collections = {each.key: each for each in await store.collections(list(histories))}
    checks: dict[str, Check] = {}
    for key in keys:
        if not (history := histories.get(key.name)):
            continue
        pending, stale = set(key.pending), set[UUID]()
        if key.collection and (judgement := judgements.get(key.name)):
            check = _check(run, key.collection, judgement, pending, read_at)
            if not await _is_unchanged(run, store, check, collections.get(key.name)):
                key.collection = collections.get(key.name)
                continue
            if judgement.is_dangling:
                run.dangling.add(key.name)
            if stale := {version.id for version in check.stale}:
                checks[key.name] = check
        key.settle(run, pending, pending.difference(history.versions.ids) if history.complete else set(), stale)
    return checks


async def _histories(store: ApiStore, keys: Sequence[Pruning]) -> dict[str, History]:
    """List the versions of some keys. If there are several, a key that cannot be listed is left out."""
    if len(keys) == 1:
        return {key.name: await store.history(key.name) for key in keys}
    # Other keys are checked at the same time.
    listing = store.histories([key.name for key in keys], listings=1)
    return {each.key: each async for batch in listing for each in batch if not each.error}


def _subject(run: Run, key: Pruning, history: History | None) -> Subject | None:
    """Return what is judged of a key, if it has a collection, a policy, and a complete listing."""
    policy = _policy(run, key.collection) if key.collection else None
    if not (key.collection and policy and history and history.complete):
        return None
    made = subject(run, history, key.collection, policy)
    made.warn_of_conflict(run)
    return made


def _policy(run: Run, collection: Collection) -> RetentionPolicy | None:
    return select_policy(run.policies, collection.key, collection.type)


def _check(run: Run, collection: Collection, judgement: Judgement, pending: AbstractSet[UUID], read_at: float) -> Check:
    versions = judgement.versions
    # A version that was created since the run began may go again, and then does not stand behind the latest.
    old = (index for index, created in enumerate(versions.created) if created <= run.report.now)
    return Check(
        collection,
        stale=[versions[index] for index in reversed(judgement.stale) if versions.ids[index] in pending],
        present=frozenset(versions.ids),
        kept=[versions.ids[index] for index in islice(judgement.kept(), MAX_KEPT_CHECKED)],
        successor=next((versions.ids[index] for index in old if versions.ids[index] != collection.latest_id), None),
        is_idle=judgement.is_idle,
        read_at=read_at,
    )


async def still_holds(run: Run, store: ApiStore, check: Check, batch: Sequence[Version], key: Pruning) -> bool:
    """Return whether nothing has changed since a check that may keep a version of the next batch.

    What the check has read counts for its first deletions, and for half of its time; the other half is for the deletions
    themselves. Then all that may keep a version of the batch is read again, and counts for that batch. The collection is read
    again before every batch but the first.
    """
    limit = deletions_per_check(run)
    is_first = not check.used
    if check.used + len(batch) > limit or time.monotonic() - check.read_at > max_check_age(run) / 2:
        if not await _read_again(run, store, check, batch):
            return False
        check.used, is_first = limit, False
    check.used += len(batch)
    if is_first and not check.takes_last(batch):
        return True
    collections = await store.collections([key.name])
    key.collection = collections[0] if collections else None
    return await _is_unchanged(run, store, check, key.collection)


async def _read_again(run: Run, store: ApiStore, check: Check, batch: Sequence[Version]) -> bool:
    """Read again what may keep a version of a batch. Return whether it is as it was."""
    if not await refresh_holds(run, MAX_CHECK_AGE_SECONDS * HOLDS_AGE_SHARE) or run.hold_on(check.collection.key):
        return False
    check.read_at = run.holds_read_at
    if not await store.all_exist(check.kept):
        return False
    flow_runs = {version.flow_run_id for version in batch if version.flow_run_id}
    task_runs = {version.task_run_id for version in batch if version.task_run_id}
    if await unfinished_runs(run, flow_runs, task_runs):
        return False
    # What was archived must still be what is there; what has changed otherwise keeps nothing.
    compared = state_of if run.archive else attrgetter("metadata")
    now = {version.id: compared(version) for version in await store.versions([version.id for version in batch])}
    return now == {version.id: compared(version) for version in batch}


async def _is_unchanged(run: Run, store: ApiStore, check: Check, collection: Collection | None) -> bool:
    """Return whether the collection, as it is now, is one by which the check would judge the same.

    On a busy key, new versions become the latest all the time, which keeps nothing that is stale, unless the key was idle. But
    if the former latest was deleted, its successor moves up, and may have to be kept.
    """
    before = check.collection
    if collection is None or _policy(run, collection) != _policy(run, before):
        return False
    if check.is_idle:
        # If its latest version was updated in place, or replaced, it is so no longer.
        return (collection.latest_id, collection.updated) == (before.latest_id, before.updated)
    if collection.latest_id == before.latest_id:
        return True
    return collection.latest_id not in check.present and bool(await store.versions([before.latest_id]))
