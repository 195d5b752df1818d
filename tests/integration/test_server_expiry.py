"""What the server deletes by itself, told to the reader of the report: a self-hosted server's db_vacuum, and Cloud."""

from pathlib import Path

import pytest
from fake import FakeServer
from prefect.settings import PREFECT_API_KEY, PREFECT_CLOUD_API_URL, temporary_settings
from prefect_artifact_retention.flows.local_server import LOG
from prefect_artifact_retention.policies import RetentionError, RetentionPolicy
from prefect_artifact_retention.tasks.report import CleanupReport
from servers import FAKE, SQLITE_API, Server, on, started

SHORT = RetentionPolicy(name="short", match_keys=["a-*"], keep_within_days=5)
LONG = RetentionPolicy(name="long", keep_within_days=60)


EXPIRIES = pytest.mark.parametrize(
    ("enabled", "told"),
    [
        ("events,flow_runs", ["older than 30 days", "key's latest and versions on hold included", '"long"']),
        ("true", ["older than 30 days"]),
        ("orphans", ["flow runs that no longer exist"]),
        ("events", []),
    ],
)
RETENTION_SECONDS = 30 * 86400


def check(report: CleanupReport, told: list[str]) -> None:
    """The notes name what the server deletes and the policy that promises more, or say nothing."""
    notes = " ".join(report.notes)
    assert bool(notes) == bool(told)
    for words in told:
        assert words in notes
    assert '"short"' not in notes


@EXPIRIES
@on(FAKE)
async def test_a_servers_own_vacuum_is_named_with_the_policies_that_promise_more(
    server: FakeServer, enabled: str, told: list[str]
) -> None:
    """Nothing is said where only events go."""
    server.expiry = {"enabled": True if enabled == "true" else enabled.split(","), "retention_period": RETENTION_SECONDS}
    check(await server.cleanup([SHORT, LONG]), told)


@pytest.mark.long
@EXPIRIES
async def test_a_real_servers_own_vacuum_is_named_in_the_report(tmp_path: Path, enabled: str, told: list[str]) -> None:
    """In the published one as well."""
    settings = {
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": enabled,
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(RETENTION_SECONDS),
    }
    try:
        with started("sqlite", tmp_path, **settings) as server:
            report = await server.cleanup([SHORT, LONG])
            published = await server.database.run("SELECT data FROM artifact WHERE key = 'artifact-retention-report'")
    except RetentionError:
        if enabled == "orphans" and "Invalid vacuum type" in (tmp_path / LOG).read_text():
            pytest.skip("this older server knows no vacuum of orphans")
        raise
    check(report, told)
    assert ("db\\\\_vacuum" in published[0][0]) == bool(told)


@on(SQLITE_API)
async def test_cloud_is_named_with_the_policies_that_promise_more(server: Server) -> None:
    """Our own server stands in for Cloud, by the address that Prefect takes for Cloud's."""
    cloud = {PREFECT_CLOUD_API_URL: f"{server.local.address}/api", PREFECT_API_KEY: "pnu_none"}
    with temporary_settings(updates=cloud):
        report = await server.cleanup([SHORT, LONG])
    (note,) = report.notes
    assert "Prefect Cloud deletes artifacts by itself" in note
    assert '"long"' in note
    assert '"short"' not in note
