"""The report of a flow run that the command line has started, whatever Prefect makes of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from httpx import HTTPError
from prefect.exceptions import PrefectException
from prefect_artifact_retention.policies import RetentionError, StoreError
from prefect_artifact_retention.stores.connection import reason
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport
from prefect_artifact_retention.tasks.restore_report import RestoreFailed, RestoreReport

R = TypeVar("R", CleanupReport, RestoreReport)


def report_of(run: Callable[[], R], finished: Sequence[R]) -> R:
    """Run a flow, and return its report, also of a run that was refused or failed.

    Args:
        run: Runs it.
        finished: Gets the report once the run is over, before Prefect is told.

    Raises:
        RetentionError: The run could not begin.
    """
    try:
        return run()
    except (CleanupFailed, RestoreFailed) as error:
        return error.report  # type: ignore[return-value]  # each flow has one of the two
    except PrefectException as error:
        # The answer to Prefect's last request was lost, or somebody has cancelled or deleted the flow run: Prefect gives
        # no result back, and the run has one all the same.
        if not finished:
            raise RetentionError(str(error)) from None
    except HTTPError as error:
        if not finished:
            raise StoreError(f"the Prefect server failed during the run: {reason(error)}") from None
        finished[-1].errors.append(f"the Prefect server failed after the run, whose state it may not show: {reason(error)}")
        finished[-1].outcome = "failed"
    return finished[-1]
