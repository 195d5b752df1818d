"""A cleanup without Prefect's engine: all steps of the flow in its own code, against whatever server is active."""

from collections.abc import Collection, Sequence
from uuid import UUID

from prefect_artifact_retention.flows.cleanup import SHOWN, clean_up, open_run
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.progress import ProgressArtifact
from prefect_artifact_retention.tasks.rendering import outcome_message
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport, Mode


async def cleanup(
    policies: Sequence[RetentionPolicy] = (),
    *,
    mode: Mode = "preview",
    keys: Sequence[str] = (),
    own_runs: Collection[UUID] = frozenset(),
    attended: bool = True,
    **parameters: float,
) -> CleanupReport:
    """Run the steps, with the flow's parameters: discover to verify, the report, the history and the progress included.

    Unlike the flow, it makes no flow run, no task runs and no event of its own, which take seconds; and it gives way to other
    runs only if it is told which flow run it is.

    Args:
        policies: As the flow's.
        mode: As the flow's.
        keys: As the flow's.
        attended: Whether a person has started it.
        own_runs: The flow run that it passes for, if any: one that the server has.
        parameters: The flow's other parameters.

    Raises:
        CleanupFailed: As the flow does; so do the errors of a run that cannot begin.
    """
    settings = load_settings().with_parameters(**parameters)
    async with open_run(settings, mode, policies, keys, own_runs, SHOWN.get()) as run:
        progress = ProgressArtifact(run.server.connection)
        run.listen(progress.listen)
        run.is_attended = attended
        await clean_up(run, progress, vacuum=settings.reclaim == "vacuum")
    if run.report.outcome in {"failed", "refused"}:
        raise CleanupFailed(run.report, outcome_message(run.report))
    return run.report
