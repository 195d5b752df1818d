"""A delete run as the command line starts it, which has a report whatever Prefect makes of the flow run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypedDict, Unpack

from prefect_artifact_retention.flows import cleanup
from prefect_artifact_retention.flows.outcome import report_of
from prefect_artifact_retention.flows.server_policies import resolve_all
from prefect_artifact_retention.flows.settings import RetentionSettings, resolve_policies
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.stores.connection import uses_ephemeral_server
from prefect_artifact_retention.tasks.planfile import ShownPlan
from prefect_artifact_retention.tasks.report import CleanupReport

Work = Callable[[], Coroutine[Any, Any, CleanupReport]]


class Parameters(TypedDict):
    """Parameters of the flow that are flags."""

    max_deletions: int
    time_budget_minutes: float
    refuse_above_percent: float
    ignore_guard: bool
    target: str


def delete(
    follow: Callable[[Work], CleanupReport],
    settings: RetentionSettings,
    policies: Sequence[RetentionPolicy],
    keys: Sequence[str],
    *,
    shown: ShownPlan | None,
    **parameters: Unpack[Parameters],
) -> CleanupReport:
    """Run the flow in mode delete, and return its report, also of a run that was refused or failed.

    Args:
        follow: Runs it, with what shows its progress.
        settings: The settings.
        policies: What stands in for the configured policies; empty if nothing does.
        keys: The globs of the keys.
        shown: The plan that is carried out, if any.
        parameters: The flow's other parameters.

    Raises:
        ConfigurationError: The policies are invalid, or there are none.
        RetentionError: The run could not begin.
    """
    if settings.policies or uses_ephemeral_server():
        # Before anything is sent.
        resolve_policies(policies, settings, "delete")
    finished: list[CleanupReport] = []

    async def run() -> CleanupReport:
        cleanup.FINISHED.set(finished)
        cleanup.SHOWN.set(shown)
        await cleanup.reach_server(settings)
        await resolve_all(policies, settings, "delete")
        return await cleanup.artifact_cleanup(mode="delete", policies=list(policies), keys=list(keys), **parameters)

    try:
        return report_of(lambda: follow(run), finished)
    except OSError:
        # Whatever else has written to an output that nobody takes: the run is over, and has its result.
        if not finished:
            raise
        return finished[-1]
