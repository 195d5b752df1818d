"""Policies that have changed are not applied unattended: a person has to apply or accept them first.

Every delete run leaves a record of the policies that it has applied. While `require_accepted_policies` is on, a scheduled run
whose policies are on no record is refused. Where there is no record at all, as at the first deployment, it goes on; records
that cannot be read are some.
"""

from __future__ import annotations

from prefect.context import FlowRunContext
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.acceptance import Acceptance, latest
from prefect_artifact_retention.policies.meaning import describe_changes, meaning
from prefect_artifact_retention.stores.acceptances import Acceptances
from prefect_artifact_retention.tasks.report import GIVEN_POLICIES, SUCCESSES
from prefect_artifact_retention.tasks.run import Run

NO_PERSON = {"SCHEDULE", "AUTOMATION", "DEPLOYMENT"}
"""What may have created a flow run in place of a person, as Prefect names it; Prefect Cloud does so for each run."""


def is_attended() -> bool:
    """Whether a person has started the current flow run: no schedule, no automation and no other flow."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None:
        return True
    created_by = run.created_by.type if run.created_by else None
    return not (run.auto_scheduled or run.parent_task_run_id or created_by in NO_PERSON)


def _remedy(target: str) -> str:
    where = f" --target {target}" if target else ""
    return (
        f"see what they would delete with `artifact-retention policies diff --live{where}`, then run a deployment of all keys "
        f"once by hand, or `artifact-retention policies accept{where}`"
    )


async def refuse_unaccepted(run: Run) -> None:
    """Refuse an unattended delete run whose policies have never been applied or accepted.

    Not one over some keys by policies of its own: these stand in its deployment, and change nothing that is configured.

    Raises:
        StoreError: It cannot be read which have been.
    """
    has_own_policies = run.report.policy_source == GIVEN_POLICIES and run.report.scope
    if run.report.mode != "delete" or run.is_attended or has_own_policies or not run.limits.require_accepted_policies:
        return
    records, unreadable = await Acceptances(run.server.connection).all()
    last = latest(records)
    if any(record.digest == run.report.policy_digest for record in records) or not (last or unreadable):
        return
    if last is None:
        run.report.refusals.append(
            f"no record of policies that were applied or accepted can be read ({unreadable[0]}): {_remedy(run.report.target)}"
        )
        return
    since = f"{last.at:%Y-%m-%d %H:%M} UTC ({last.by})"
    refusal = (
        f"the policies have changed since {since}, and no person has applied or accepted them: {_remedy(run.report.target)}"
    )
    run.report.refusals += [
        refusal,
        *(
            describe_changes(last.policies, meaning(run.policies))
            if last.policies is not None
            else ["they were too many to be on record"]
        ),
    ]


async def record_applied(run: Run, by: str) -> None:
    """Leave a record of the policies that a delete run has applied. A failure is a warning.

    A run over some keys leaves none: nobody has seen what the policies do to the others.
    """
    report = run.report
    if report.mode != "delete" or report.outcome not in SUCCESSES or report.scope:
        return
    records = Acceptances(run.server.connection)
    try:
        last = latest((await records.all())[0])
        if last is None or last.digest != report.policy_digest:
            await records.write(Acceptance.of(meaning(run.policies), report.now, by))
    except StoreError as error:
        report.warn(f"it could not be recorded which policies were applied: {error}")
