"""The doctor: examines the artifacts of a server, repairs what is broken if told to, and tells what was found.

The command line writes nothing without `--fix`. The flow `artifact-doctor` also leaves its result as an artifact with charts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, runtime
from prefect.states import Completed, Failed
from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.cleanup import open_archive_of, open_run
from prefect_artifact_retention.flows.server_policies import resolve_all
from prefect_artifact_retention.flows.settings import RetentionSettings, load_settings
from prefect_artifact_retention.policies import ConfigurationError, RetentionError, StoreError
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.policies.loading import DOCTOR_KEY, PREVIEW_POLICY
from prefect_artifact_retention.policies.writing import as_tables
from prefect_artifact_retention.stores.connection import Connection, reason, ui_address
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.identity import check_writable
from prefect_artifact_retention.tasks import doctor
from prefect_artifact_retention.tasks.charts import growth_chart, largest_chart
from prefect_artifact_retention.tasks.checkup import (
    Checkup,
    CheckupFailed,
    Finding,
    headline,
    markdown,
    outcome_message,
)
from prefect_artifact_retention.tasks.publish import create_first_accepted
from prefect_artifact_retention.tasks.rendering import WORD_JOINER
from prefect_artifact_retention.tasks.run import Run


async def examine_server(settings: RetentionSettings, repair: Callable[[Sequence[Finding]], bool]) -> Checkup:
    """Examine a server. What can be repaired is shown to `repair` first, and is repaired if that returns True.

    Raises:
        ConfigurationError: The policies are invalid.
        StoreError: The server or the database cannot be reached.
    """
    settings, broken = await _with_usable_policies(settings)
    async with open_run(settings, "preview", (), (), with_archive=False) as run:
        return await _examine_and_repair(run, settings, repair, broken)


async def _with_usable_policies(settings: RetentionSettings) -> tuple[RetentionSettings, list[Finding]]:
    """Return the settings without a list of policies on the server that fails every run, and the finding that it does.

    Of all commands, the doctor must not fail by it: he is called when something is wrong.
    """
    if not settings.leaves_policies_to_server:
        return settings, []
    try:
        await resolve_all((), settings, "preview")
    except RetentionError as error:
        finding = Finding(
            kind="policies_unreadable",
            is_broken=True,
            what="The list of policies on the server, which fails every run",
            count=1,
            examples=[str(error)],
            advice="Correct it in the UI, or push another one",
        )
        return settings.with_policies(as_tables([PREVIEW_POLICY]), "built in, for previews only"), [finding]
    return settings, []


async def _examine_and_repair(
    run: Run, settings: RetentionSettings, repair: Callable[[Sequence[Finding]], bool], broken: Sequence[Finding]
) -> Checkup:
    checkup = await doctor.examine(run)
    checkup.findings[:0] = broken
    await _examine_archive(settings, run.server.connection, checkup)
    checkup.findings.sort(key=lambda finding: not finding.is_broken)
    repairable = [finding for finding in checkup.findings if finding.keys_to_repair]
    if repairable and repair(repairable):
        try:
            if isinstance(run.store, DatabaseStore):
                await check_writable(run.store.transactions, with_events=False, with_data=False)
            await doctor.fix(run, checkup)
        except StoreError as error:
            # What was found is told all the same.
            checkup.errors.append(str(error))
    return checkup


async def _examine_archive(settings: RetentionSettings, connection: Connection, checkup: Checkup) -> None:
    """Add what is wrong with the archive, if one is configured; also that it cannot be read, which ends no examination."""
    try:
        if archive := await open_archive_of(settings, connection):
            await doctor.examine_archive(archive, checkup)
    except RetentionError as error:
        # Of a setting that is invalid, the error names it already.
        message = str(error) if isinstance(error, ConfigurationError) else f"{settings.archive_setting}: {error}"
        checkup.findings.append(
            Finding(
                kind="archive_unreadable",
                is_broken=True,
                what="The archive, which cannot be read",
                count=1,
                examples=[message],
                advice="Correct the setting, or bring back what is missing. Until then, nothing is deleted or restored",
            )
        )


def announcement(findings: Sequence[Finding]) -> str:
    """Say what a repair is about to do."""
    parts = [f"{finding.what.lower()}: {finding.shown}" for finding in findings]
    keys = sum(len(finding.keys_to_repair) for finding in findings)
    return f"repairing the collections of {count(keys, 'key')}. " + "; ".join(parts)


def show(checkup: Checkup) -> None:
    """Print what was found, without why nothing was repaired."""
    text = markdown(checkup.model_copy(update={"errors": []}))
    terminal.show(terminal.Report(text.replace(WORD_JOINER, "")))


def _flow_run_name() -> str:
    return "examine and repair" if runtime.flow_run.parameters.get("fix") else "examine"


@flow(name="artifact-doctor", flow_run_name=_flow_run_name, persist_result=False, retries=0)
async def artifact_doctor(fix: bool = False) -> Checkup:  # noqa: FBT001, FBT002 - a box of the run form
    """Examine the artifacts of the server: what is broken, what deserves a look, what grows.

    The run ends Completed, named Healthy, if nothing is broken or all of it was repaired; and Failed, named Broken, otherwise,
    as the command exits with 1.

    Args:
        fix: Repair broken collections, as the server itself would. Otherwise, the run only reports them.

    Returns:
        What was found, also published as the artifact `artifact-retention-doctor`.

    Raises:
        CheckupFailed: Something is broken; carries what was found.
        ConfigurationError: A setting is invalid; nothing was examined.
        StoreError: The server or the database cannot be reached, or the report cannot be written.
    """
    try:
        checkup = await _examine_and_publish(load_settings(), fix=fix)
    except RetentionError as error:
        # The caller raises the error that is the data of the state. Raised here, it would be logged with a traceback.
        return Failed(message=str(error), data=error)  # type: ignore[return-value]
    message = outcome_message(checkup)
    if checkup.is_broken:
        return Failed(name="Broken", message=message, data=CheckupFailed(checkup, message))  # type: ignore[return-value]
    return Completed(name="Healthy", message=message, data=checkup)  # type: ignore[return-value]


async def _examine_and_publish(settings: RetentionSettings, *, fix: bool) -> Checkup:
    log = get_run_logger()

    def repair(findings: Sequence[Finding]) -> bool:
        if fix:
            log.info(announcement(findings))
        return fix

    settings, broken = await _with_usable_policies(settings)
    async with open_run(settings, "preview", (), (), {UUID(runtime.flow_run.id)}, with_archive=False) as run:
        await run.server.detect_concurrency(artifact_doctor.name)
        checkup = await _examine_and_repair(run, settings, repair, broken)
        log.info(outcome_message(checkup))
        try:
            await create_first_accepted(
                run.server.connection.client,
                _texts(checkup),
                type="markdown",
                key=DOCTOR_KEY,
                description=headline(checkup),
            )
        except httpx.HTTPError as error:
            raise StoreError(f"the report could not be written: {reason(error)}") from None
        return checkup


def _texts(checkup: Checkup) -> Iterator[str]:
    """Render what was found; for a proxy that takes no large artifact also without pictures."""
    pictures = [picture for picture in (growth_chart(checkup), largest_chart(checkup)) if picture]
    yield markdown(checkup, links=_links(), pictures=[(picture.alt, picture.data_uri) for picture in pictures])
    yield markdown(checkup, links=_links())


def _links() -> Mapping[str, str]:
    ui = ui_address()
    pages = {"This run": f"runs/flow-run/{runtime.flow_run.id}", "Checkups": f"artifacts/key/{DOCTOR_KEY}"}
    return {name: f"{ui}/{page}" for name, page in pages.items()} if ui else {}
