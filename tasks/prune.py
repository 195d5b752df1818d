"""Prune and verify: delete what the plan condemned and a second look still condemns; then make sure of every collection.

The order protects what cannot be undone. A key is fetched and judged again before anything of it goes; its policy, its
`latest_id` and what could hold a version are read again before each further batch, and if anything changed, all is fetched and
judged anew; the oldest go first, the version behind the latest last and alone; an idle key's latest
goes last, alone, and only if it is the only version left. The server deletes without locks, so what nobody can prevent (a
person deleting the latest at the same moment) is found and repaired afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect_artifact_retention.policies import RetentionError, RetentionPolicy, Version
from prefect_artifact_retention.policies.loading import select_policy
from prefect_artifact_retention.stores.store import LatestVersionError
from prefect_artifact_retention.tasks.plan import judge, unfinished_runs
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.run import KeyPlan, Run, as_task

Item = TypeVar("Item")

BATCH = 50
"""Deletions between two looks at a key's latest version."""

SETTLE_SECONDS = 1
"""A person's deletion that the server began before ours ended may take as long to show."""

MOST_LOOKS = 5
"""Looks at collections that dangle: a repair, too, meets people who delete."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What of a key's plan is still condemned, oldest first, as of a fresh look at the server."""

    policy: RetentionPolicy
    latest_id: UUID
    successor: UUID | None
    """The version that the server would name as the latest if that went."""
    condemned: Sequence[Version]
    present: frozenset[UUID]


def pack(plans: Sequence[KeyPlan], most: int) -> list[list[KeyPlan]]:
    """Give each key a group of its own, or pack them into at most `most` groups of about equally many deletions."""
    if len(plans) <= most:
        return [[plan] for plan in plans]
    groups: list[list[KeyPlan]] = [[] for _ in range(most)]
    weights = [0] * most
    for plan in sorted(plans, key=lambda plan: len(plan.condemned), reverse=True):
        lightest = weights.index(min(weights))
        groups[lightest].append(plan)
        weights[lightest] += len(plan.condemned)
    return groups


def group_label(group: Sequence[KeyPlan]) -> str:
    """Name a prune task by its key, or by how many it has."""
    return label(group[0].key) if len(group) == 1 else f"{len(group)} keys from {label(group[0].key)}"


@task(name="prune", task_run_name="prune {name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
async def prune_task(run: Run, group: Sequence[KeyPlan], name: str) -> State[None]:  # noqa: ARG001 - names the task run
    """Prune some keys, one after the other; the task run is Failed if any of them failed.

    Never retried by Prefect: a second attempt would not know what the first has deleted. Its requests are retried instead.
    """
    for plan in group:
        # Before the look at a key, too: there may be thousands of them.
        if not run.may_go_on():
            break
        await prune_key(run, plan)
    if failed := [plan for plan in group if plan.report.error]:
        return Failed(message="; ".join(f"{label(plan.key)}: {plan.report.error}" for plan in failed[:5]))
    return Completed(message=f"{sum(plan.report.deleted for plan in group)} deleted")


async def prune_key(run: Run, plan: KeyPlan) -> None:
    """Delete the stale versions of one key, and account for them in its report. Its failure ends with it."""
    try:
        if plan.key is None:
            await _prune_unkeyed(run, plan)
        else:
            await _prune_keyed(run, plan, plan.key)
    except RetentionError as error:
        plan.report.error = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it stops no other key, and the run is not Completed
        plan.report.error = f"unexpected {type(error).__name__}"


async def _prune_keyed(run: Run, plan: KeyPlan, key: str) -> None:
    pending = set(plan.condemned)
    while look := await _look(run, plan, key, pending):
        others = [version for version in look.condemned if version.id != look.latest_id]
        if not others and len(look.present) > 1:
            # The latest of an idle key goes only when it is the only version left.
            plan.report.spared += len(pending)
            return
        for number, portion in enumerate(_portions(look, others)):
            if not await _still_condemned(run, key, look, portion, is_first=not number):
                break
            run.is_unsettled |= any(version.id == look.successor for version in portion)
            if not await _delete(run, plan, portion, pending):
                return


def _portions(look: _Look, others: Sequence[Version]) -> Iterator[Sequence[Version]]:
    """Part what a look condemns: the version that would follow the latest goes last and alone, like an idle key's latest."""
    yield from _batches([version for version in others if version.id != look.successor])
    yield from ([version] for version in others or look.condemned if not others or version.id == look.successor)


async def _still_condemned(run: Run, key: str, look: _Look, portion: Sequence[Version], *, is_first: bool) -> bool:
    """Ask whether anything has changed since the look that could keep some of these versions; False means: look again."""
    collections = await run.store.collections([key])
    if not collections or select_policy(run.policies, key, collections[0].type) != look.policy:
        return False
    latest_id = collections[0].latest_id
    if latest_id != look.latest_id:
        # A version created since the look changes the latest of a busy key all the time, and keeps nothing of the first
        # portion from going; but a former latest that was deleted does, because its successor moves up.
        if not is_first or latest_id in look.present or portion[0].id == look.latest_id:
            return False
        return bool(await run.store.versions([look.latest_id]))
    if is_first:
        return True
    metadata = {version.id: version.metadata for version in await run.store.versions([version.id for version in portion])}
    return metadata == {version.id: version.metadata for version in portion} and not await unfinished_runs(run, portion)


async def _look(run: Run, plan: KeyPlan, key: str, pending: set[UUID]) -> _Look | None:
    """Fetch and judge a key anew, and drop from `pending` what has gone or is kept now; None if that leaves nothing.

    The collection is read before its versions, so that the latest version is among them: one created in between is newer
    than the run, and protected as such.
    """
    if not pending:
        return None
    await run.tell_of_deleting()
    collections = await run.store.collections([key])
    history = await run.store.history(key)
    present = frozenset(version.id for version in history.versions)
    gone = pending - present if history.complete else set()
    condemned: list[Version] = []
    policy = select_policy(run.policies, key, collections[0].type) if collections else None
    if policy and history.complete:
        verdicts = await judge(run, history.versions, policy, collections[0].latest_id)
        if verdicts and verdicts[0].rules == ("dangling",):
            run.dangling.add(key)
        condemned = [v.version for v in reversed(verdicts) if not v.keep and v.version.id in pending]
    spared = pending - gone - {version.id for version in condemned}
    plan.report.already_gone += len(gone)
    plan.report.spared += len(spared)
    pending -= gone | spared
    if not policy or not condemned:
        return None
    latest_id = collections[0].latest_id
    ranked = sorted((v.created, v.id) for v in history.versions if v.id != latest_id)
    return _Look(policy, latest_id, ranked[-1][1] if ranked else None, condemned, present)


async def _prune_unkeyed(run: Run, plan: KeyPlan) -> None:
    """Delete artifacts without a key: nothing hangs on them, but their runs, holds and ages are looked at again."""
    for ids in _batches(plan.condemned):
        await run.tell_of_deleting()
        versions = [version for version in await run.store.versions(ids) if version.key is None]
        verdicts = await judge(run, versions, plan.policy)
        condemned = [verdict.version for verdict in reversed(verdicts) if not verdict.keep]
        plan.report.already_gone += len(ids) - len(versions)
        plan.report.spared += len(versions) - len(condemned)
        if not await _delete(run, plan, condemned, set(ids)):
            return


async def _delete(run: Run, plan: KeyPlan, versions: Sequence[Version], pending: set[UUID]) -> bool:
    """Delete versions in their order. False, and no more of this key, once a budget of the run is used up.

    Raises:
        StoreError: A deletion failed; whether the server has deleted that version is then unknown.
    """
    for version in versions:
        if not run.may_delete():
            return False
        if plan.key is not None:
            run.touched.add(plan.key)
        try:
            deleted = await run.store.delete(version.id)
        except LatestVersionError:
            pending.discard(version.id)
            plan.report.spared += 1
            continue
        except RetentionError:
            plan.report.failed += 1
            raise
        pending.discard(version.id)
        if deleted:
            plan.report.deleted += 1
            plan.report.bytes_freed += version.size
        else:
            plan.report.already_gone += 1
        await run.tell_of_deletion()
    return True


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


async def verify(run: Run) -> None:
    """Make sure that each collection of which something went names a latest version that exists; mend those that do not.

    So are those that the run found without one. Where the version behind the latest went, a deletion of the latest that the
    server had begun may show a moment later.
    """
    if run.is_unsettled:
        await asyncio.sleep(SETTLE_SECONDS)
    mended, dangling = await _mend(run, sorted(run.touched | run.dangling))
    for key, problem in mended.items():
        run.report.repaired.append(key)
        if problem:
            run.report.warn(f"{label(key)}: mended, but a copy of its last version may be left: {problem}")
    for report in (*run.report.key_reports, *run.report.housekeeping):
        if report.key in dangling:
            problem = dangling[report.key]
            how = f", and could not be posted again: {problem}" if problem else " again and again"
            report.error = f"its latest version has vanished{how}"


async def _mend(run: Run, keys: Sequence[str]) -> tuple[dict[str, str], dict[str | None, str]]:
    """Mend what dangles, some times over: a repair, too, meets people who delete.

    Returns:
        The keys that were mended and those that dangle still, each with what went wrong with it last.
    """
    problems: dict[str, str] = {}
    suspects = keys
    for _look in range(MOST_LOOKS):
        suspects = await run.store.dangling(suspects)
        for key in suspects:
            try:
                if await run.store.repair(key):
                    problems.setdefault(key, "")
            except RetentionError as error:
                problems[key] = str(error)
    dangling = await run.store.dangling(suspects)
    mended = {key: problem for key, problem in problems.items() if key not in dangling}
    return mended, {key: problems.get(key, "") for key in dangling}


verify_task = as_task(verify, "verify")
