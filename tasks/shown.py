"""Keeps a run to the plan that a person has seen: what is stale by that and by a fresh plan may go, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from prefect_artifact_retention.policies.loading import OWN_KEYS
from prefect_artifact_retention.policies.meaning import meaning
from prefect_artifact_retention.tasks.planfile import Difference, PlanFile, PlannedKey, describe_differences
from prefect_artifact_retention.tasks.run import KeyPlan, Run


def plan_of(run: Run, *, keep_last: int | None = None, keep_within_days: float | None = None) -> PlanFile:
    """Return the plan of a run as a document, without the package's own keys.

    Args:
        run: The run, after planning.
        keep_last: What stood in for the configured rules, if anything did.
        keep_within_days: Likewise.
    """
    planned = [
        PlannedKey(key=plan.key, policy=plan.policy.name, bytes=sum(plan.sizes), ids=[*plan.stale]) for plan in run.user_plans
    ]
    return PlanFile(
        server=run.report.server,
        now=run.now,
        scope=run.report.scope,
        keep_last=keep_last,
        keep_within_days=keep_within_days,
        policies=[dict(each) for each in meaning(run.policies)],
        planned=planned,
    )


def keep_to_plan(run: Run, plan: PlanFile) -> list[Difference]:
    """Take from the plans of a run what was not shown, and say in its report how it differs. Return how."""
    differences = list(_differences(run, plan))
    run.plans = [each for each in run.plans if each.stale]
    # That data are moved to the archive was not shown version by version.
    run.offloads.clear()
    run.report.differences = describe_differences(differences)
    return differences


def _differences(run: Run, plan: PlanFile) -> Iterator[Difference]:
    shown = dict(plan.by_key())
    for each in run.user_plans:
        ids = shown.pop(each.key, frozenset[UUID]())
        stale = [version_id for version_id in each.stale if version_id in ids]
        more, fewer = len(each.stale) - len(stale), len(ids) - len(stale)
        if more:
            _withhold(run, each, stale)
        if more or fewer:
            yield Difference(each.key, more, fewer)
    # What a run has not got to in its time is as it was, for all that is known.
    if not run.is_partial:
        yield from (Difference(key, 0, len(ids)) for key, ids in shown.items() if ids and key not in OWN_KEYS)


def _withhold(run: Run, plan: KeyPlan, stale: list[UUID]) -> None:
    """Leave all of a key alone but some of its stale versions."""
    before = len(plan.stale)
    if plan.collection and stale and stale[-1] == plan.collection.latest_id:
        # The latest goes with the whole key only.
        del stale[-1]
    plan.drop(before, kept=stale)
    plan.report.withheld += before - len(stale)
    run.planned -= before - len(stale)
