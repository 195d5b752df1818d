"""The figures of real cleanups, from the history of a real server."""

from database import series
from prefect_artifact_retention.flows.metrics import collect, text
from prefect_artifact_retention.policies import RetentionPolicy
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from servers import POSTGRESQL_API, SQLITE_API, Server, on, thorough

KEEP_2 = RetentionPolicy(name="two", keep_last=2)


@on(SQLITE_API, thorough(POSTGRESQL_API))
async def test_the_figures_are_those_of_the_last_delete_run(server: Server) -> None:
    """A preview after it changes none; runs that do not keep up are counted."""
    await server.database.insert(series("report", range(1, 8)))
    await server.run_flow([KEEP_2], mode="delete", max_deletions=1)
    await server.database.insert(series("other", [1, 2, 3]))
    report = await server.run_flow([KEEP_2], mode="delete", max_deletions=1)
    await server.run_flow([KEEP_2])
    with server.active():
        exposition = text(await collect())
    figures = {
        sample.name.removeprefix("artifact_retention_"): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if "outcome" not in sample.labels
    }
    assert (report.outcome, report.stalled_runs) == ("unfinished", 2)
    assert (figures["versions"], figures["backlog_versions"], figures["stalled_runs"]) == (8, 4, 2)
    assert (figures["keys"], figures["last_run_deleted_versions"]) == (2, 1)
    assert figures["last_run_timestamp_seconds"] == report.now.replace(second=0, microsecond=0).timestamp()
