"""The sweep: one run that cleans up all targets of the configuration, each as if it were alone.

Each target gets a subflow run of its own, with its own connection, credentials, budgets and speed, and an error there costs
only its row of the combined report. Runs, log and events are on the server on which the sweep is; the report, the history and
the progress of each target are on the target.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from httpx import HTTPError
from prefect import flow, get_run_logger, runtime
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.states import Completed, Failed
from prefect_artifact_retention.flows.cleanup import (
    EVENT_FIELDS,
    FINISHED,
    IS_ATTENDED,
    announce,
    artifact_cleanup,
    reach_server,
    signs_of_life,
)
from prefect_artifact_retention.flows.settings import Minutes, Number, Percent, RetentionSettings, load_settings
from prefect_artifact_retention.flows.targets import find_target
from prefect_artifact_retention.flows.termination import cancel_on_sigterm
from prefect_artifact_retention.policies import ConfigurationError, RetentionError
from prefect_artifact_retention.policies.loading import REPORT_KEY
from prefect_artifact_retention.policies.model import refuse_bool
from prefect_artifact_retention.stores.connection import connect, reason
from prefect_artifact_retention.stores.destination import Destination
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.tasks.acceptance import is_attended
from prefect_artifact_retention.tasks.publication import run_link
from prefect_artifact_retention.tasks.rendering import scope_label
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport, Mode
from prefect_artifact_retention.tasks.sweep import SweepFailed, SweepReport, TargetRow, outcome_message, publish_sweep
from pydantic import BeforeValidator, Field

AtOnce = Annotated[int, Field(ge=1, le=50), BeforeValidator(refuse_bool)]

FINAL_SECONDS = 2
"""The time for the combined report at shutdown, after the final reports of the targets: Docker kills a container 10 seconds
after SIGTERM."""


def _flow_run_name() -> str:
    parameters = runtime.flow_run.parameters
    where = ", ".join(parameters.get("targets", [])) or "all targets"
    return f"{parameters.get('mode', 'preview')} {scope_label(parameters.get('keys', []))[:80]} on {where[:80]}"


@flow(name="artifact-sweep", flow_run_name=_flow_run_name, persist_result=False, retries=0)
async def artifact_sweep(  # noqa: PLR0913, PLR0917 - the fields of the run form
    mode: Mode = "preview",
    targets: list[str] = [],  # noqa: B006 - Prefect shows it in the run form and never changes it
    keys: list[str] = [],  # noqa: B006
    at_once: AtOnce = 4,
    max_deletions: Number = 0,
    time_budget_minutes: Minutes = 0,
    refuse_above_percent: Percent = 0,
    require_accepted_policies: bool = False,  # noqa: FBT001, FBT002 - a box of the run form
) -> SweepReport:
    """Clean up the targets of the configuration, several at once, and report on all of them on one page.

    Args:
        mode: preview reports what would be deleted; delete deletes it.
        targets: Names of targets in the configuration. Empty: all of them.
        keys: Globs of the keys to clean up, such as report-*. Empty: all keys, and the artifacts without a key.
        at_once: Targets at work at the same time.
        max_deletions: Delete at most this many versions of each target; the next sweep goes on. 0: as configured, else no
            limit.
        time_budget_minutes: Stop on each target after this time; the next sweep goes on. 0: as configured, else no limit.
        refuse_above_percent: Delete nothing of a policy on a target if more than this share of its versions would go
            unexpectedly. 0: as configured, else off. If another is configured, the stricter holds.
        require_accepted_policies: Refuse the targets of a scheduled sweep on which no person has applied or accepted the
            policies yet. Off: as configured.

    Returns:
        The report, also published as the artifact `artifact-retention-sweep`.

    Raises:
        SweepFailed: A target was refused or failed; carries the report.
        ConfigurationError: A setting is invalid, or there is no such target; nothing has run.
        StoreError: The server on which the sweep is cannot be reached.
    """
    given: dict[str, Any] = {
        "mode": mode,
        "keys": keys,
        "max_deletions": max_deletions,
        "time_budget_minutes": time_budget_minutes,
        "refuse_above_percent": refuse_above_percent,
        "require_accepted_policies": require_accepted_policies,
    }
    try:
        settings = load_settings()
        names = _names(settings, targets)
        await reach_server(settings)
    except RetentionError as error:
        if mode == "delete":
            announce("failed", keys, {"error": str(error)})
        # The caller raises the error that is the data of the state. Raised here, it would be logged with a traceback.
        return Failed(message=str(error), data=error)  # type: ignore[return-value]
    report = await _sweep(names, at_once, given)
    message = outcome_message(report)
    if report.outcome in {"failed", "refused"}:
        return Failed(message=message, data=SweepFailed(report, message))  # type: ignore[return-value]
    name = report.outcome.capitalize() if report.outcome != "completed" else None
    return Completed(message=message, data=report, name=name)  # type: ignore[return-value]


def _names(settings: RetentionSettings, asked: Sequence[str]) -> list[str]:
    targets, source = settings.all_targets(), settings.source("targets")
    if not targets:
        raise ConfigurationError("a sweep needs [[targets]] tables in the configuration, and there are none")
    for name in asked:
        find_target(targets, name, source=f"parameters: targets ({source})")
    return [target.name for target in targets if target.name in asked or not asked]


async def _sweep(names: Sequence[str], at_once: int, given: dict[str, Any]) -> SweepReport:
    """Clean up the targets, and leave the combined report, whatever goes wrong on one of them."""
    report = SweepReport(mode=given["mode"], now=datetime.now(UTC), scope=given["keys"])
    began = time.monotonic()
    rows: dict[str, TargetRow] = {}
    turns = asyncio.Semaphore(at_once)
    IS_ATTENDED.set(is_attended())

    async def clean_up(name: str) -> None:
        async with turns:
            await _clean_up(name, given, rows)
            get_run_logger().info(f"{name}: {rows[name].outcome}")

    def emit(ending: Any) -> None:  # noqa: ANN401 - an outcome, or what only events have
        fields = EVENT_FIELDS & TargetRow.model_fields.keys()
        totals = {field: sum(getattr(row, field) for row in rows.values()) for field in fields}
        totals["stalled_runs"] = max((row.stalled_runs for row in rows.values()), default=0)
        outcomes = {name: row.outcome for name, row in rows.items()}
        if report.mode == "delete":
            announce(ending, report.scope, totals | {"targets": outcomes})

    async def all_of_them() -> None:
        # Not one that raises at the first error: all are awaited, also when they are cancelled.
        for result in await asyncio.gather(*map(clean_up, names), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    try:
        async with signs_of_life(lambda: emit("running")):
            await cancel_on_sigterm(all_of_them())
    except (TerminationSignal, asyncio.CancelledError):
        stopped = "the sweep was shut down before this run had anything to report"
        _finish(report, names, {name: TargetRow(name=name, outcome="unfinished", causes=[stopped]) for name in names} | rows)
        with suppress(Exception):
            async with asyncio.timeout(FINAL_SECONDS):
                await _publish(report)
        emit("stopped")
        raise
    _finish(report, names, rows)
    report.duration_seconds = time.monotonic() - began
    try:
        await _publish(report)
    except RetentionError as error:
        report.errors.append(str(error))
    except Exception as error:  # noqa: BLE001 - the event and the state say all the same how it ended
        report.errors.append(f"the combined report could not be written: unexpected {type(error).__name__}")
    get_run_logger().info(outcome_message(report))
    emit(report.outcome)
    return report


def _finish(report: SweepReport, names: Sequence[str], rows: dict[str, TargetRow]) -> None:
    report.targets = [rows[name] for name in names]


async def _publish(report: SweepReport) -> None:
    async with connect() as home:
        await publish_sweep(Server(home), report, run_link().get("This run", ""))


async def _clean_up(name: str, given: dict[str, Any], rows: dict[str, TargetRow]) -> None:
    """Clean up one target, and add its row: also of a run that is shut down, if it had begun."""
    finished: list[CleanupReport] = []
    FINISHED.set(finished)
    try:
        rows[name] = await _run_on(name, given, finished)
    except (TerminationSignal, asyncio.CancelledError):
        if finished:
            rows[name] = _row(name, finished[-1])
        raise


async def _run_on(name: str, given: dict[str, Any], finished: Sequence[CleanupReport]) -> TargetRow:
    """Run the flow `artifact-cleanup` on one target, and return its row, whatever becomes of the run."""
    began = time.monotonic()
    try:
        return _row(name, await artifact_cleanup(target=name, **given))
    except CleanupFailed as error:
        return _row(name, error.report)
    except (RetentionError, PrefectException) as error:
        cause = str(error)
    except HTTPError as error:
        cause = f"the Prefect server on which the sweep is failed during the run: {reason(error)}"
    except Exception as error:  # noqa: BLE001 - an error on one target is none of the others
        cause = f"unexpected {type(error).__name__}"
    if finished:
        # Prefect gives no result back, because somebody has deleted the flow run or its last request was lost.
        finished[-1].errors.append(cause)
        finished[-1].outcome = "failed"
        return _row(name, finished[-1])
    return TargetRow(name=name, outcome="failed", causes=[cause], duration_seconds=time.monotonic() - began)


def _row(name: str, report: CleanupReport) -> TargetRow:
    ui = Destination(name, report.server).ui_url
    return TargetRow.of(name, report, f"{ui}/artifacts/key/{REPORT_KEY}")
