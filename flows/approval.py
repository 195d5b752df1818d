"""Asks a person to approve what a run would delete, in Prefect's own form, and deletes that and nothing else.

The flow run is suspended meanwhile: it has no process and blocks no other run. When it is resumed, on whatever worker, the
flow begins anew, finds what was asked, and gets the answer. Nobody answers: the server ends the run, and nothing has gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

import httpx
from prefect import runtime
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.flow_runs import asuspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect_artifact_retention.flows.server_policies import resolve_all
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import ConfigurationError, RetentionError, RetentionPolicy, StoreError
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.stores.connection import HTTP_NOT_FOUND, connect, connect_home, reason
from prefect_artifact_retention.tasks.planfile import ShownPlan
from prefect_artifact_retention.tasks.publication import links
from prefect_artifact_retention.tasks.rendering import escape, pipe_table, size, stale_where
from prefect_artifact_retention.tasks.report import SUCCESSES, CleanupReport, Mode
from prefect_artifact_retention.tasks.run import Run
from prefect_artifact_retention.tasks.shown import plan_of
from prefect_artifact_retention.tasks.waiting import (
    WaitingPlan,
    find_waiting,
    forget_plan,
    load_plan,
    store_plan,
    write_head,
)
from pydantic import Field, ValidationError

NOBODY_SAID = "somebody who gave no name"
MAX_NAME_CHARS = 200

GRACE = timedelta(days=1)
"""How long after the time for an answer the answer counts: a worker may be slow to take the run up."""


class Approval(RunInput):
    """The form in which a person answers."""

    approve: bool = Field(
        default=False, title="Delete these versions", description="Off: nothing is deleted, and the run ends."
    )
    versions: int = Field(
        default=0, title="Number of versions", description="Type how many versions go, as it is said above, in digits alone."
    )
    by: str = Field(
        default="", title="Your name", description="Stands in the report and in the history.", max_length=MAX_NAME_CHARS
    )


class Answer(NamedTuple):
    """What a person has answered.

    Attributes:
        approves: Whether the versions are to be deleted.
        by: Who has answered, as far as it was said.
    """

    approves: bool
    by: str


class Part(NamedTuple):
    """One part of a run with approval: the plan that is shown, or what is done upon the answer.

    Attributes:
        mode: What the part does.
        shown: The plan that was approved.
        answer: The answer.
        planned: Called with the run once it is planned, before it is closed.
    """

    mode: Mode
    shown: ShownPlan | None = None
    answer: Answer | None = None
    planned: Callable[[Run], Awaitable[None]] | None = None


Work = Callable[[Part], Awaitable[CleanupReport]]


async def clean_up_with_approval(
    settings: RetentionSettings, policies: Sequence[RetentionPolicy], work: Work
) -> CleanupReport:
    """Plan, ask, and do what the answer says.

    Args:
        settings: The settings.
        policies: The policies of the run, if they are not the configured ones.
        work: Does a part.

    Raises:
        ConfigurationError: There are no policies to delete by, or the flow run has no deployment, or is a subflow run.
        StoreError: The server cannot be reached, or refuses a request.
        prefect.exceptions.Pause: The flow run is suspended until somebody answers.
    """
    await resolve_all(policies, settings, "delete")
    context = FlowRunContext.get()
    if context and context.flow_run and context.flow_run.parent_task_run_id:
        raise ConfigurationError("mode = approve: Prefect suspends no flow run that another flow has started")
    if not runtime.deployment.id:
        raise ConfigurationError("mode = approve: needs a deployment, whose worker goes on with the run once it is approved")
    run_id = UUID(runtime.flow_run.id)
    async with connect() as connection:
        waiting = await find_waiting(connection, run_id)
    number, why = 1, ""
    while True:
        if waiting is None:
            report, waiting = await _plan(run_id, number, why, work)
            if waiting is None:
                return report
            get_run_logger().info(report.awaits)
        answer = await ask(waiting, settings)
        if answer.approve and answer.versions != waiting.versions:
            wrong = f"{answer.versions:,} is not the number of versions that would go."
            get_run_logger().warning(f"{wrong} Nothing was deleted, and it is asked again")
            why = f"**{wrong}**"
            waiting = waiting.model_copy(
                update={"number": waiting.number + 1, "text": f"{why}\n\n{_unquestioned(waiting.text)}"}
            )
            async with connect() as connection:
                await write_head(connection, run_id, waiting)
            continue
        said = Answer(answer.approve, printable(answer.by.strip()) or NOBODY_SAID)
        async with connect() as connection:
            shown = None
            if said.approves:
                plan = await load_plan(connection, run_id, waiting)
                shown = ShownPlan(plan, timedelta(hours=settings.approval_hours) + GRACE, on_server=True)
        report = await work(Part("delete", shown, said))
        if report.outcome != "outdated":
            async with connect() as connection:
                await forget_plan(connection, run_id, waiting)
            return report
        number, why = waiting.number + 1, "**More is stale by now than was approved, so nothing was deleted yet.**"
        waiting = None


async def _plan(run_id: UUID, number: int, why: str, work: Work) -> tuple[CleanupReport, WaitingPlan | None]:
    """Plan, and keep what is to be approved; None if there is nothing, or it could not be planned."""
    stored: list[WaitingPlan] = []

    async def store(run: Run) -> None:
        plan = plan_of(run)
        if plan.versions and run.report.outcome in SUCCESSES:
            text = "\n\n".join(part for part in (why, _question(run.report)) if part)
            async with connect_home(run.server.connection) as home:
                stored.append(await store_plan(home, run_id, plan, number, text))

    report = await work(Part("preview", planned=store))
    return report, stored[0] if stored else None


def awaits(settings: RetentionSettings) -> str:
    """Say in the report of a plan what it waits for."""
    command = f"artifact-retention approve {runtime.flow_run.id}"
    hours = f"{settings.approval_hours:g} hours"
    return f"Nothing goes until a person approves it, within {hours}: by the form on the run's page in the UI, or {command}"


def _question(report: CleanupReport) -> str:
    rows = [(each.name, each.planned, each.versions) for each in report.policies if each.planned]
    page = links().get("Reports")
    parts = (
        f"Deletes **{count(report.planned, 'version')}** {stale_where(report)}, {size(report.bytes_planned)}."
        + (f" [The report]({page}) says of which keys, and why." if page else ""),
        pipe_table(("Policy", "Stale", "Of versions"), rows),
        *(escape(warning) for warning in report.warnings if "a delete run would" in warning),
    )
    return "\n\n".join(parts)


def _unquestioned(text: str) -> str:
    """Return what is said of a plan without what was wrong with the last answer."""
    return text.partition("\n\n")[2] if text.startswith("**") else text


async def ask(waiting: WaitingPlan, settings: RetentionSettings) -> Approval:
    """Suspend the flow run, or return the answer if there is one. A run that was resumed without any is not approved.

    Raises:
        StoreError: The answer cannot be read, so that nobody knows what it is.
        prefect.exceptions.Pause: The flow run is suspended.
    """
    form = Approval.with_initial_data(description=waiting.text)
    seconds = round(timedelta(hours=settings.approval_hours).total_seconds())
    # With the name of the plan: an answer counts for what was shown, also if another process had planned at the same time.
    key = f"approval-{waiting.number}-{waiting.name}"
    try:
        return await asuspend_flow_run(wait_for_input=form, timeout=seconds, key=key)
    except ValidationError:
        pass
    except httpx.HTTPError as error:
        if not isinstance(error, httpx.HTTPStatusError) or error.response.status_code != HTTP_NOT_FOUND:
            raise StoreError(f"nobody could be asked, or the answer not be read: {reason(error)}") from None
    except (PrefectException, RuntimeError) as error:
        raise StoreError(f"nobody could be asked, or the answer not be read: {printable(str(error))}") from None
    return Approval(by="a run that was resumed without an answer")


async def answer_run(run: str, *, approves: bool, versions: int | None = None, by: str = "") -> tuple[str, WaitingPlan]:
    """Answer for a flow run that waits, in place of its form, and return its name and what it was asked for.

    Args:
        run: Its id, or its name.
        approves: Whether the versions are to be deleted.
        versions: How many versions the caller means; None if it does not matter.
        by: Who answers.

    Raises:
        RetentionError: No such run waits, or it waits for another number.
        StoreError: The server cannot be reached.
    """
    async with connect() as connection:
        named = {"id": {"any_": [run]}} if _is_id(run) else {"name": {"any_": [run]}}
        found = await connection.ask("/flow_runs/filter", {"flow_runs": named, "sort": "EXPECTED_START_TIME_DESC"})
        paused = [each for each in found if each["state_type"] == "PAUSED"]
        if len(paused) != 1:
            # `prefect deployment run` prints the name that Prefect invents, and the run has another once it has begun.
            none = "there is none; a run changes its name when it begins, and keeps its id"
            states = ", ".join(f"{each['id']} is {each['state_name']}" for each in found[:5]) or none
            raise RetentionError(f"of the name or id {run!r}, {len(paused)} runs wait for an approval: {printable(states)}")
        run_id, name = UUID(paused[0]["id"]), str(paused[0]["name"])
        if (waiting := await find_waiting(connection, run_id)) is None:
            raise RetentionError(f"run {printable(name)} is paused, but waits for no approval of this package")
        if versions not in {None, waiting.versions}:
            raise RetentionError(f"run {printable(name)} would delete {count(waiting.versions, 'version')}, not {versions:,}")
        given = {"approve": approves, "versions": waiting.versions, "by": by[:MAX_NAME_CHARS]}
        answered = connection.json(await connection.request("POST", f"/flow_runs/{run_id}/resume", {"run_input": given}))
        if answered["status"] != "ACCEPT":
            raise RetentionError(f"run {printable(name)} does not go on: {printable(str(answered['details'].get('reason')))}")
        return name, waiting


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
