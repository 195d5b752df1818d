"""The figures for Prometheus: what the history says, as the official parsers read it, in a file and at a gateway."""

import os
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect_artifact_retention.flows.metrics import Collected, check_gateway, push, text, write
from prefect_artifact_retention.policies import ConfigurationError, StoreError
from prefect_artifact_retention.tasks.history import Row, stalled_runs
from prefect_artifact_retention.tasks.metrics import collect_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

SERVER = "http://prefect:4200/api"


def row(when: str = "2026-11-28 03:00", **fields: object) -> Row:
    """A run that found 30 stale versions of 100, and deleted 10."""
    given = {
        "when": when,
        "run": "rested-owl",
        "mode": "delete",
        "scope": "all keys",
        "outcome": "unfinished",
        "keys_seen": 7,
        "versions_before": 100,
        "stale": 30,
        "deleted": 10,
        "versions_after": 90,
        "bytes_before": 5000,
        "bytes_after": 4000,
        "seconds": 1.5,
    }
    return Row.model_validate(given | fields)


def collected(*rows: Row) -> Collected:
    """The figures of a history."""
    return Collected(SERVER, collect_metrics(SERVER, rows))


def figures(exposition: str, scope: str) -> dict[str, float]:
    """What the parser of OpenMetrics reads of a scope, by name; of an outcome, by its own."""
    samples = [sample for family in parse_openmetrics(exposition) for sample in family.samples]
    assert {sample.labels["server"] for sample in samples} <= {SERVER}
    return {
        sample.name.removeprefix("artifact_retention_") + sample.labels.get("outcome", ""): sample.value
        for sample in samples
        if sample.labels["scope"] == scope
    }


def test_the_last_delete_run_of_each_scope_is_what_the_official_parsers_read() -> None:
    """A preview is no delete run; a skipped one has no figures; the last success may be longer ago; a scope is any text."""
    odd = 'a "quoted" \\ scope'
    exposition = text(
        collected(
            row("2026-11-29 12:00", mode="preview", stale=500),
            row("2026-11-29 03:00", outcome="skipped", stale=0, deleted=0, versions_before=0, versions_after=0),
            row("2026-11-28 03:00"),
            row("2026-11-27 03:00", scope=odd, outcome="failed"),
            row("sometime", scope="no date"),
        )
    )
    seen = figures(exposition, "all keys")
    assert (seen["last_run_timestamp_seconds"], seen["last_success_timestamp_seconds"]) == (1795921200, 1795834800)
    assert (seen["last_run_outcomeskipped"], seen["last_run_outcomeunfinished"]) == (1, 0)
    assert (seen["backlog_versions"], seen["versions"], seen["data_bytes"], seen["keys"]) == (20, 90, 4000, 7)
    assert (seen["last_run_deleted_versions"], seen["last_run_duration_seconds"], seen["stalled_runs"]) == (10, 1.5, 1)
    other = figures(exposition, odd)
    assert other["last_run_outcomefailed"] == 1
    assert "last_success_timestamp_seconds" not in other
    assert figures(exposition, "no date") == {}

    # As node_exporter reads it, which refuses types that it does not know.
    families = list(parse_prometheus(exposition))
    assert {family.type for family in families} == {"gauge"}
    assert all(family.documentation for family in families)


def test_a_run_that_looked_at_no_key_does_not_hide_what_the_one_before_left() -> None:
    """It failed or was refused before it planned; that, and when it was, is said all the same."""
    zeros = {"keys_seen": 0, "versions_before": 0, "stale": 0, "deleted": 0, "versions_after": 0, "bytes_after": 0}
    for outcome in ("failed", "refused"):
        seen = figures(text(collected(row("2026-11-29 03:00", outcome=outcome, **zeros), row())), "all keys")
        assert (seen[f"last_run_outcome{outcome}"], seen["last_run_timestamp_seconds"]) == (1, 1795921200)
        assert (seen["backlog_versions"], seen["versions"], seen["keys"]) == (20, 90, 7)
    empty = figures(text(collected(row(outcome="completed", **zeros), row())), "all keys")
    assert (empty["versions"], empty["backlog_versions"]) == (0, 0)


def test_a_history_without_delete_runs_has_no_figures() -> None:
    """It is valid all the same."""
    assert figures(text(collected(row(mode="preview"))), "all keys") == {}


def test_runs_have_stalled_if_none_since_the_first_has_made_the_backlog_smaller() -> None:
    """From the newest back, while they are unfinished. A run that did not plan all keys does not know its backlog."""

    def stalled(*left: int | None) -> int:
        return stalled_runs(row(stale=(each or 0) + 10, covered="" if each is not None else '["a", "m"]') for each in left)

    assert stalled() == 0
    assert stalled(5) == 1
    assert stalled(5, 6, 7) == 1
    assert stalled(5, 5, 5) == 3
    assert stalled(5, 6, 5, 9) == 3
    assert stalled(None, 5, None) == 3
    assert stalled(5, None) == 1
    assert stalled_runs([row(outcome="completed"), row(), row()]) == 0
    assert stalled_runs([row(), row(outcome="skipped"), row(), row(outcome="completed"), row()]) == 2


def test_a_file_is_replaced_whole_and_left_as_it_was_if_that_fails(tmp_path: Path) -> None:
    """Nothing else stays in the folder, which a collector reads."""
    file = tmp_path / "retention.prom"
    file.write_text("old", encoding="utf-8")
    write(file, collected(row()))
    assert file.read_text(encoding="utf-8") == text(collected(row()))
    assert [each.name for each in tmp_path.iterdir()] == ["retention.prom"]
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match="is no regular file"):
        write(folder, collected(row()))
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write(tmp_path / ("x" * 250), collected(row()))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "retention.prom"]


def test_a_link_stays_one_and_a_device_is_left_alone(tmp_path: Path) -> None:
    """Whoever calls it as root with /dev/stdout still has that afterwards."""
    file, link, pipe = (tmp_path / name for name in ("retention.prom", "link.prom", "pipe"))
    link.symlink_to(file)
    write(link, collected(row()))
    assert link.is_symlink()
    assert file.read_text(encoding="utf-8") == text(collected(row()))
    os.mkfifo(pipe)
    with pytest.raises(ConfigurationError, match="is no regular file"):
        write(pipe, collected(row()))
    assert pipe.is_fifo()


def test_a_push_replaces_the_figures_of_the_server() -> None:
    """By the method and the path that a push gateway has for it; what it refuses, and a gateway that is down, are one line."""
    calls: queue.Queue[tuple[str, str]] = queue.Queue()
    status = 200

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            calls.put((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gateway:
        thread = threading.Thread(target=gateway.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{gateway.server_port}"
        try:
            push(address, collected(row()))
            path, body = calls.get(timeout=10)
            status = 400
            with pytest.raises(StoreError, match="answers with 400"):
                push(address, collected(row()))
        finally:
            gateway.shutdown()
            thread.join()
    assert path.startswith("/metrics/job/artifact-retention/server@base64/")
    assert {family.name for family in parse_prometheus(body)} >= {"artifact_retention_versions"}
    for unreachable in (address, f"http://{'a' * 70}.example"):
        with pytest.raises(StoreError, match="cannot be reached"):
            push(unreachable, collected(row()))


@pytest.mark.parametrize(
    "address",
    ["", "gateway", "ftp://gateway", "http://", "http://gateway:x", "http://gateway/é", "http://ada:secret@gateway"],
)
def test_an_address_that_is_no_gateway_is_refused(address: str) -> None:
    """Also one with a password, which the list of processes would show; it is not repeated."""
    with pytest.raises(ConfigurationError, match="--push") as refused:
        check_gateway(address)
    assert "secret" not in str(refused.value)
