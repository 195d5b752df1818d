"""Plan: evaluates all versions of all keys, and refuses what no steady state explains. Deletes nothing."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from datetime import datetime, timedelta
from itertools import chain, repeat
from typing import NamedTuple
from uuid import UUID

from prefect_artifact_retention.policies import RetentionPolicy, StoreError, Verdict, Version
from prefect_artifact_retention.policies.doubts import find_doubts
from prefect_artifact_retention.policies.evaluation import Judgement, judge
from prefect_artifact_retention.policies.expectation import Expectations
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.policies.loading import OWN_KEYS, OWN_POLICY, select_policy, type_conflict
from prefect_artifact_retention.policies.model import Versions
from prefect_artifact_retention.stores.archive.stubs import OFFLOADED_TYPES
from prefect_artifact_retention.stores.ids import Ids
from prefect_artifact_retention.stores.store import Collection, History, RunReader
from prefect_artifact_retention.tasks.collector import without_collector
from prefect_artifact_retention.tasks.history import read_past_runs
from prefect_artifact_retention.tasks.holds import read_holds
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.report import KeyReport, PolicyReport
from prefect_artifact_retention.tasks.run import KeyPlan, OffloadPlan, Run, as_task

MANY_SINGLE_VERSIONS = 50
"""The number of keys with a single version from which the report doubts that their policy is of use."""

FUTURE_TOLERANCE = timedelta(minutes=5)
"""How far a date may lie in the future before the report says so; the clocks of a server and its database may differ."""

GROWTH_WINDOW = timedelta(days=7)
"""The age of the versions that show what grows. With less, what is written weekly does not show; with more, it shows later
that something has begun to grow."""

UNTOUCHED_AGE = timedelta(days=1)
"""How long a version must have been left alone before its data are moved. Through the API, what is written in the very seconds
in which they are replaced would be lost, so nothing is moved to which somebody may be writing. With more, large versions stay
for longer."""

ZOMBIE_AGE = timedelta(days=7)
"""The age from which the report names an unfinished run that keeps versions."""


async def make_plan(run: Run) -> None:
    """Evaluate the versions of all collections of the run, and the artifacts without a key if a policy is for them.

    To save memory, payloads are dropped on arrival, verdicts once they are counted, and of a stale version only the id and the
    size are kept.

    Raises:
        StoreError: The store cannot be read, or not the holds on keys.
    """
    await read_holds(run)
    managed: dict[str, tuple[Collection, RetentionPolicy]] = {}
    for collection in run.collections:
        if policy := select_policy(run.policies, collection.key, collection.type):
            managed[collection.key] = collection, policy
        else:
            run.report.unmanaged.append(collection.key)
    run.report.doubts = [
        *without_keys(run, {policy.name for _collection, policy in managed.values()}),
        *find_doubts(run.policies, offloads=_offloads(run)),
    ]
    await _expect(run)
    unkeyed_policy = None if run.report.scope else select_policy(run.policies, None, None)
    with without_collector():
        await _plan_rounds(run, managed, unkeyed_policy)
    if not unkeyed_policy and not run.report.scope:
        run.report.unmanaged_unkeyed = await run.store.count_unkeyed()
    run.report.policies = _policy_reports(run)
    run.report.doubts += _single_versions(run)
    run.report.kept_by, run.report.condemned_by = run.kept_by.lines(), run.condemned_by.lines()
    if run.plans_all:
        run.unbudgeted_seconds = run.seconds


def without_keys(run: Run, used: AbstractSet[str]) -> Iterator[str]:
    """Describe each policy that has no key today; those that were to protect something come first."""
    if run.report.scope or not run.report.keys_seen:
        return
    unused = [each for each in run.policies if each is not OWN_POLICY and not each.unkeyed and each.name not in used]
    for policy in sorted(unused, key=lambda policy: not policy.keep_all):
        matches = any(policy.matches(each.key, each.type) for each in run.collections)
        why = "policies before it take all keys that it matches" if matches else "it matches no key"
        effect = "PROTECTS NOTHING" if policy.keep_all else "is for nothing"
        yield f'policy "{policy.name}" {effect} today: {why}'


def _single_versions(run: Run) -> Iterator[str]:
    """Describe each policy whose keys mostly have a single version, as keys with a date in their name do."""
    for policy in run.policies:
        if policy is OWN_POLICY or policy.keep_all or policy.drop_idle_keys_after_days:
            continue
        keys = [each for each in run.report.key_reports if each.policy == policy.name and each.key is not None]
        single = sum(each.versions == 1 for each in keys)
        if single >= MANY_SINGLE_VERSIONS and 2 * single > len(keys):
            yield (
                f'policy "{policy.name}": {single:,} of its {len(keys):,} keys have a single version, which always stays; '
                "only drop_idle_keys_after_days deletes such keys"
            )


async def _plan_rounds(
    run: Run, managed: Mapping[str, tuple[Collection, RetentionPolicy]], unkeyed_policy: RetentionPolicy | None
) -> None:
    """Plan the keys from where the last run stopped, then the artifacts without a key, then the keys before.

    Planning stops when its time is over. The artifacts without a key come after the last key, so that a run which begins in
    the middle of the keys reaches them.
    """
    first_round = [each.key for each in run.collections[: run.first_round] if each.key in managed]
    second_round = list(managed)[len(first_round) :]
    done, total = 0, len(managed) + (unkeyed_policy is not None)
    await run.notify("planning", done, total)
    for keys in (first_round, second_round):
        planned = 0
        async with aclosing(run.store.histories(keys)) as listing:
            async for histories in listing:
                await _plan_keys(run, [(history, *managed[history.key]) for history in histories])
                planned += len(histories)
                await run.notify("planning", done + planned, total)
                # The package's own keys count against no budget, and are not what a run is for.
                is_late = run.report.key_reports and not run.has_planning_time()
                if planned < len(keys) and keys[planned] not in OWN_KEYS and is_late:
                    _stop_before(run, keys[planned])
                    return
        done += planned
        if keys is first_round:
            if unkeyed_policy:
                await _plan_unkeyed(run, unkeyed_policy)
                done += 1
                await run.notify("planning", done, total)
            if second_round and not run.has_planning_time():
                _stop_before(run, second_round[0])
                return


def _stop_before(run: Run, key: str) -> None:
    run.planned_until = run.report.stopped_at = key
    run.report.outcome = "unfinished"


async def _plan_keys(run: Run, batch: Sequence[tuple[History, Collection, RetentionPolicy]]) -> None:
    subjects = [subject(run, history, collection, policy) for history, collection, policy in batch]
    judgements = await judge_all(run, subjects)
    large: list[tuple[Collection, RetentionPolicy, KeyReport, list[Version]]] = []
    for (history, collection, policy), each, judgement in zip(batch, subjects, judgements, strict=True):
        each.warn_of_conflict(run)
        report = _add(run, history, collection, policy, judgement)
        if history.complete and _offloads(run) and (found := _large(run, judgement, collection, policy)):
            large.append((collection, policy, report, found))
    if large:
        await _plan_offloads(run, large)


def _offloads(run: Run) -> bool:
    """Whether there is an archive to which data can be moved."""
    return run.report.archive is not None and run.report.archive.payloads


def _large(run: Run, judgement: Judgement, collection: Collection, policy: RetentionPolicy) -> list[Version]:
    """Return the versions of a key, the oldest first, whose data are to be moved to the archive.

    None is newer than the latest: a repair makes the newest version the latest.
    """
    limit = policy.offload_larger_than_kb
    if not limit or not (large := judgement.unprotected(larger_than=1000 * limit)):
        return []
    latest = judgement.versions.ids.index(collection.latest_id)
    untouched_since = run.report.now - UNTOUCHED_AGE
    older = (judgement.versions[index] for index in reversed(large) if index > latest)
    return [version for version in older if version.type in OFFLOADED_TYPES and version.updated < untouched_since]


async def _plan_offloads(run: Run, large: Sequence[tuple[Collection, RetentionPolicy, KeyReport, list[Version]]]) -> None:
    """Plan to move the data of large versions, but for those whose runs have not finished."""
    versions = [version for *_key, some in large for version in some]
    flow_runs = {version.flow_run_id for version in versions if version.flow_run_id}
    task_runs = {version.task_run_id for version in versions if version.task_run_id}
    running = await unfinished_runs(run, flow_runs, task_runs)
    for collection, policy, report, some in large:
        going = [each for each in some if running.isdisjoint({each.flow_run_id, each.task_run_id})]
        if going:
            report.to_offload, report.bytes_to_offload = len(going), sum(each.size for each in going)
            run.offloads.append(OffloadPlan(collection, policy, {each.id: each for each in going}, report))


class Subject(NamedTuple):
    """What is evaluated of one key.

    Attributes:
        versions: Its versions.
        policy: The policy that it has by the type of its latest version.
        latest_id: The `latest_id` of its collection.
        conflict: Why that may be the wrong policy, so that nothing of the key is deleted; mostly empty.
        held: Why a hold on the key keeps all of it; mostly empty.
    """

    versions: Versions
    policy: RetentionPolicy
    latest_id: UUID
    conflict: str
    held: str

    def judge(self, now: datetime, running: AbstractSet[UUID] = frozenset()) -> Judgement:
        """Evaluate the versions."""
        versions, policy, latest_id, conflict, held = self
        return judge(versions, policy, now=now, latest_id=latest_id, running=running, conflict=conflict, held=held)

    def warn_of_conflict(self, run: Run) -> None:
        """Report that the key has no one policy, if so."""
        if self.conflict:
            run.report.warn(f"{label(self.versions.key)}: nothing deleted, because {self.conflict}")


def subject(
    run: Run,
    history: History,
    collection: Collection,
    policy: RetentionPolicy,
    policies: Sequence[RetentionPolicy] | None = None,
) -> Subject:
    """Return what is evaluated of a key, for the plan and for every re-check; by other policies than those of the run, if any.

    A left-over placeholder is no version. Without it, `latest_id` names none of the versions, so that all are kept until the
    collection is repaired.
    """
    versions = history.versions
    if collection.is_placeholder and len(versions) > 1:
        versions = Versions.of(version for version in versions if version.id != collection.latest_id)
    conflict = type_conflict(run.policies if policies is None else policies, collection.key, collection.type, versions.types)
    return Subject(versions, policy, collection.latest_id, conflict, run.hold_on(collection.key))


async def _plan_unkeyed(run: Run, policy: RetentionPolicy) -> None:
    """Evaluate the artifacts without a key page by page: only age rules apply to them, so none depends on another.

    The listing ends with the time for planning; the plan has what was found stale by then.
    """
    plan = KeyPlan(None, policy, [], KeyReport(key=None, policy=policy.name))
    stale: dict[UUID, tuple[datetime, int, int]] = {}
    unreadable: list[str | None] = []
    seen: set[UUID] = set()
    expected = await run.store.count_unkeyed()
    async with aclosing(run.store.unkeyed(expected, unreadable)) as pages:
        async for page in pages:
            # Rows created meanwhile shift the pages, and some are repeated.
            new = [version for version in page if version.id not in seen]
            seen.update(version.id for version in new)
            for judgement in await judge_unkeyed(run, new, policy):
                _count(run, plan.report, policy, judgement)
                these = judgement.versions
                verdicts = _verdicts(run, policy, judgement, judgement.stale) or repeat(0)
                for index, verdict in zip(judgement.stale, verdicts, strict=False):
                    stale[these.ids[index]] = these.created[index], these.sizes[index], verdict
            is_partial = len(seen) + len(unreadable) < expected
            if stale and is_partial and not run.has_planning_time():
                run.report.outcome = "unfinished"
                run.has_all_unkeyed = False
                run.report.warn(f"planning time was over after {len(seen):,} of {expected:,} artifacts without a key")
                break
        else:
            if len(seen) + len(unreadable) < expected:
                run.report.warn("artifacts without a key were deleted meanwhile; some may have to wait for the next run")
    plan.stale = Ids(sorted(stale, key=lambda version_id: stale[version_id]))
    plan.sizes = array("q", (stale[version_id][1] for version_id in plan.stale))
    plan.verdicts = array("L", (stale[version_id][2] for version_id in plan.stale) if run.archive else ())
    if unreadable:
        plan.report.error = f"{count(len(unreadable), 'artifact')} left alone, because the server fails to show them (500)"
    run.report.key_reports.append(plan.report)
    if plan.stale:
        run.add_plan(plan)


async def judge_all(run: Run, subjects: Sequence[Subject], reader: RunReader | None = None) -> list[Judgement]:
    """Evaluate the versions of several keys.

    The states of runs are read for all keys together, and only for the runs that wrote stale versions: by the store, if by no
    other reader.
    """
    now = run.now
    judgements = [each.judge(now) for each in subjects]
    wrote = [each.stale_runs() for each in judgements]
    flow_runs, task_runs = (set[UUID]().union(*ids) for ids in zip(*wrote, strict=True)) if wrote else (set(), set())
    running = await unfinished_runs(run, flow_runs, task_runs, reader)
    return [
        judgement if running.isdisjoint(chain(*own_runs)) else each.judge(now, running)
        for judgement, own_runs, each in zip(judgements, wrote, subjects, strict=True)
    ]


async def judge_unkeyed(
    run: Run, versions: Iterable[Version], policy: RetentionPolicy, reader: RunReader | None = None
) -> list[Judgement]:
    """Evaluate artifacts without a key, of which none depends on another.

    Those of unfinished runs are evaluated apart, so that the reasons of the others do not depend on what is on their page.
    """
    page = Versions.of(versions)
    judgement = judge(page, policy, now=run.now)
    running = await unfinished_runs(run, *judgement.stale_runs(), reader)
    in_use = {index for index in judgement.stale if page.flow_run_ids[index] in running or page.task_run_ids[index] in running}
    if not in_use:
        return [judgement]
    free = (version for index, version in enumerate(page) if index not in in_use)
    kept = (page[index] for index in in_use)
    return [
        judge(free, policy, now=run.now),
        judge(kept, policy, now=run.now, running=running),
    ]


async def unfinished_runs(
    run: Run, flow_runs: AbstractSet[UUID], task_runs: AbstractSet[UUID], reader: RunReader | None = None
) -> frozenset[UUID]:
    """Return those of the runs that have not finished, and the current one if it is among them."""
    unfinished = await (reader or run.store).unfinished(flow_runs, task_runs)
    for run_id, since in unfinished.items():
        if run.report.now - since > ZOMBIE_AGE:
            run.report.warn(f"versions are kept for run {run_id}, unfinished since {since:%Y-%m-%d}; it may be a zombie")
    return frozenset(unfinished) | (run.own_runs & flow_runs)


async def _expect(run: Run) -> None:
    """Read what earlier runs have recorded. Without it, no stale version is expected, and the guard refuses sooner."""
    if not _is_guarded(run):
        return
    try:
        run.expectations = Expectations(run.report.now, await read_past_runs(run))
    except StoreError as error:
        run.report.warn(f"what earlier runs have recorded could not be read: {error}")


def _is_guarded(run: Run) -> bool:
    """Whether it matters what is expected: to a delete run, or to a preview of what one would be refused."""
    return run.report.mode == "delete" or bool(run.limits.refuse_above_percent)


def guard(run: Run) -> None:
    """Refuse to clean up by a policy if more than `refuse_above_percent` of its versions would go unexpectedly.

    Its keys are left alone, and those of the other policies are not. The package's own keys do not count, because many runs
    in a row would make the next one refuse.
    """
    percent = run.limits.refuse_above_percent
    for policy in run.report.policies:
        if not percent or 100 * policy.unexpected <= percent * policy.versions:
            continue
        refusal = (
            f'policy "{policy.name}" would delete {policy.planned:,} of {policy.versions:,} versions, '
            f"{policy.unexpected:,} of them unexpectedly ({100 * policy.unexpected / policy.versions:.0f} %), "
            f"more than refuse_above_percent = {percent:g} allows: {run.expectations.explain(policy.name)}"
        )
        if run.report.mode == "delete":
            policy.refused = True
            run.report.refusals.append(refusal)
        else:
            run.report.warn(f"a delete run would be refused: {refusal}")
    run.drop_plans({policy.name for policy in run.report.policies if policy.refused})


def _add(run: Run, history: History, collection: Collection, policy: RetentionPolicy, judgement: Judgement) -> KeyReport:
    """Add the verdicts of one key to the report, which is returned, and its stale versions to the plan."""
    report = KeyReport(key=history.key, policy=policy.name)
    (run.report.housekeeping if policy is OWN_POLICY else run.report.key_reports).append(report)
    versions = judgement.versions
    if not history.complete:
        report.versions = report.kept = len(versions)
        report.bytes_seen = sum(versions.sizes)
        run.expectations.add_unjudged(policy, len(versions))
        if history.error:
            report.error = f"nothing deleted, because its versions cannot be read: {history.error}"
        else:
            run.report.warn(f"{label(history.key)}: nothing deleted, because its versions changed while they were read")
        return report
    if not versions:
        if not run.server_deletes:
            # Otherwise, the server may be about to delete the collection, too.
            run.dangling.add(history.key)
        run.report.warn(f"{label(history.key)}: no version of it was found, though the server lists it")
    _count(run, report, policy, judgement)
    if report.planned:
        stale = judgement.stale[::-1]
        plan = KeyPlan(
            history.key,
            policy,
            Ids(versions.ids[index] for index in stale),
            report,
            sizes=array("q", (versions.sizes[index] for index in stale)),
            collection=collection,
            mark=history.mark,
            takes_successor=any(not verdict.keep for verdict in judgement[1:2]),
            verdicts=_verdicts(run, policy, judgement, stale),
        )
        run.add_plan(plan)
    if judgement.is_dangling:
        run.dangling.add(history.key)
        run.report.warn(f"{label(history.key)}: nothing deleted, because {judgement[0].reasons[0]}")
    return report


def _verdicts(run: Run, policy: RetentionPolicy, judgement: Judgement, stale: Iterable[int]) -> array[int]:
    """Return where the reasons of stale versions are in the archive of the run, if it has one."""
    if not run.archive or policy is OWN_POLICY:
        return array("L")
    return array("L", (run.archive.index_of(judgement.why(index)) for index in stale))


def _count(run: Run, report: KeyReport, policy: RetentionPolicy, judgement: Judgement) -> None:
    """Add verdicts to the counts of the report, all of a key at once, because there may be millions."""
    sizes, stale = judgement.versions.sizes, judgement.stale
    report.versions += len(judgement)
    report.kept += len(judgement) - len(stale)
    report.planned += len(stale)
    report.bytes_seen += sum(sizes)
    report.bytes += sum(sizes[index] for index in stale)
    since = run.report.now - GROWTH_WINDOW
    recent = bisect_left(judgement.versions.created, True, key=lambda created: created <= since)  # noqa: FBT003 - a boundary
    report.versions_of_week += recent
    report.bytes_of_week += sum(sizes[:recent])
    if policy is not OWN_POLICY:
        run.expectations.add(policy, judgement)
    if warning := future_warning(run, judgement):
        run.report.warn(warning)
    kept_by = judgement.rules(keep=True)
    if "unreadable" in kept_by:
        for verdict in judgement:
            _warn_of_unreadable(run, report, verdict)
    if stale:
        stale_by = judgement.rules(keep=False)
        report.stale_by = dict(Counter(report.stale_by) + stale_by)
        if report.policy != OWN_POLICY.name:
            run.condemned_by.add(judgement, stale_by, keep=False)
    if report.policy != OWN_POLICY.name:
        run.kept_by.add(judgement, kept_by, keep=True)


def future_warning(run: Run, judgement: Judgement) -> str:
    """Describe a date of a key that lies in the future, and what can be done about it; empty if there is none.

    What is written while the run is at work is newer than the run, too, and no mistake.
    """
    if not judgement:
        return ""
    present = run.report.now + timedelta(seconds=run.seconds) + FUTURE_TOLERANCE
    versions, latest = judgement.versions, judgement[0].version
    if (created := versions.created[0]) > present:
        version_id, what = versions.ids[0], f"is dated {created:%Y-%m-%d %H:%M} UTC, in the future: it is kept until then"
        remedy = f"delete that version (prefect artifact delete --id {version_id})"
    elif versions.key is not None and latest.updated > present:
        version_id, what = latest.id, f"was last updated on {latest.updated:%Y-%m-%d %H:%M} UTC, in the future"
        remedy = "update that version again"
    else:
        return ""
    idle = "" if versions.key is None else "; its key counts as idle only from that date on"
    return f"{label(versions.key)}: version {version_id} {what}{idle}. If the date is wrong, {remedy}"


def _warn_of_unreadable(run: Run, report: KeyReport, verdict: Verdict) -> None:
    for rule, text in zip(verdict.rules, verdict.reasons, strict=True):
        if rule == "unreadable":
            run.report.warn(f"{label(report.key)}: version {verdict.version.id} is kept, because of an {text}")


def _policy_reports(run: Run) -> list[PolicyReport]:
    policies = [policy for policy in run.policies if policy is not OWN_POLICY]
    reports = {policy.name: PolicyReport(name=policy.name, sentence=policy.describe()) for policy in policies}
    for key in run.report.key_reports:
        report = reports[key.policy]
        report.keys_seen += key.key is not None
        report.versions += key.versions
        report.planned += key.planned
    for report in reports.values() if _is_guarded(run) else ():
        report.unexpected = run.expectations.unexpected(report.name)
    return list(reports.values())


plan_task = as_task(make_plan, "plan")
