"""Moves the data of large versions to the archive. The versions stay, with a note of where their data are.

As before a deletion, a part is written and read back first, of what is as it was judged. Then only what is as it was
archived gets its note: in the database in one transaction that compares it, through the API right after it was read once more.
Data that were archived and stay all the same do no harm, and a version with a note is too small to be moved again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.evaluation import Reason
from prefect_artifact_retention.policies.loading import select_policy
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.archive.stubs import RULE
from prefect_artifact_retention.stores.changes import Changes, Replacement
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.rows import state_of
from prefect_artifact_retention.stores.transactions import LostConnectionError
from prefect_artifact_retention.tasks.archive import MAX_PART_BYTES, Candidate, Offloaded, RunArchive
from prefect_artifact_retention.tasks.archiving import MAX_PART_VERSIONS, archive_offloaded
from prefect_artifact_retention.tasks.holds import refresh_holds
from prefect_artifact_retention.tasks.plan import unfinished_runs
from prefect_artifact_retention.tasks.run import OffloadPlan, Run

MAX_HOLDS_AGE_SECONDS = 30
"""How old the list of held keys may be when data are replaced. With less, there are more requests; with more, a new hold
counts later."""


async def offload(run: Run) -> None:
    """Move what was planned, within the time budget.

    Raises:
        StoreError: The archive cannot be written, or the server or the database fails.
    """
    if not run.archive or run.is_stalled:
        return
    plans = {plan.collection.key: plan for plan in run.offloads}
    judged = {version_id: version for plan in run.offloads for version_id, version in plan.versions.items()}
    for candidates in _parts(run, run.archive):
        if run.seconds >= run.budget_seconds:
            run.report.outcome = "unfinished"
            return
        offloaded = await archive_offloaded(run, run.archive, candidates, judged)
        await run.notify_deleting()
        if not await refresh_holds(run, MAX_HOLDS_AGE_SECONDS):
            return
        some = [each for each in offloaded if not run.hold_on(each.version.key)]
        if isinstance(run.store, DatabaseStore):
            await shielded(_replace_in_database(run.store, some, plans))
        elif isinstance(run.store, ApiStore):
            await _replace_through_api(run, run.store, some, plans)


def _parts(run: Run, archive: RunArchive) -> Iterator[list[Candidate]]:
    """Split the versions of all plans into parts."""
    part: list[Candidate] = []
    space = MAX_PART_BYTES
    for plan in run.offloads:
        limit = plan.policy.offload_larger_than_kb
        verdict = archive.index_of((Reason(RULE, f"its data have more than {limit} kB, and are in the archive"),))
        for version in plan.versions.values():
            if part and (version.size > space or len(part) == MAX_PART_VERSIONS):
                yield part
                part, space = [], MAX_PART_BYTES
            part.append(Candidate(version.id, version.size, verdict, plan.policy.name, None))
            space -= version.size
    if part:
        yield part


async def _replace_in_database(store: DatabaseStore, offloaded: Sequence[Offloaded], plans: Mapping[str, OffloadPlan]) -> None:
    replacements = [
        Replacement(
            version.id,
            str(version.key),
            plans[str(version.key)].collection.type,
            state,
            version.flow_run_id,
            version.task_run_id,
            version.stub,
        )
        for version, state in offloaded
        if version.key in plans
    ]
    sizes = {version.id: version.size for version, _state in offloaded}
    try:
        await _replace_together(store, replacements, plans, sizes)
    except LostConnectionError:
        raise
    except StoreError:
        # Somebody may have locked a version, or one may be refused: each key finds out for itself.
        key_of = attrgetter("key")
        for key, some in groupby(sorted(replacements, key=key_of), key_of):
            try:
                await _replace_together(store, [*some], plans, sizes)
            except LostConnectionError:
                raise
            except StoreError as error:
                plans[key].report.error = f"its data were not moved to the archive: {error}"


async def _replace_together(
    store: DatabaseStore, replacements: Sequence[Replacement], plans: Mapping[str, OffloadPlan], sizes: Mapping[UUID, int]
) -> None:
    replaced: set[UUID] = await store.transactions.write(Changes.replace_data, replacements)
    for each in replacements:
        if each.id in replaced:
            _account(plans[each.key], sizes[each.id])


async def _replace_through_api(
    run: Run, store: ApiStore, offloaded: Sequence[Offloaded], plans: Mapping[str, OffloadPlan]
) -> None:
    """Replace data one after the other, each right after it was read once more."""
    for each in offloaded:
        plan = plans.get(str(each.version.key))
        if not plan or not await refresh_holds(run, MAX_HOLDS_AGE_SECONDS) or run.hold_on(each.version.key):
            continue
        try:
            await shielded(_replace(run, store, each, plan))
        except StoreError as error:
            plan.report.error = f"the data of version {each.version.id} may not have been moved to the archive: {error}"
        await run.notify_deleting()


async def _replace(run: Run, store: ApiStore, each: Offloaded, plan: OffloadPlan) -> None:
    version = each.version
    flow_run, task_run = ({run_id} if run_id else set[UUID]() for run_id in (version.flow_run_id, version.task_run_id))
    if await unfinished_runs(run, flow_run, task_run):
        return
    collections = await store.collections([plan.collection.key])
    if not collections or collections[0].latest_id == version.id:
        return
    if select_policy(run.policies, plan.collection.key, collections[0].type) != plan.policy:
        return
    deadline = store.replacement_deadline()
    found = await store.versions([version.id])
    if found and state_of(found[0]) == each.state and await store.replace_data(version.id, version.stub, deadline=deadline):
        _account(plan, version.size)


def _account(plan: OffloadPlan, size: int) -> None:
    plan.report.offloaded += 1
    plan.report.bytes_offloaded += size
