"""Figures of the last delete runs as gauges for Prometheus and its like, from the history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from prefect_artifact_retention.tasks.history import NOT_AT_WORK, Row, stalled_runs
from prefect_artifact_retention.tasks.report import SUCCESSES, Outcome
from prometheus_client import CollectorRegistry, Gauge

PREFIX = "artifact_retention"
OUTCOMES = [outcome for outcome in get_args(Outcome) if outcome != "outdated"]
"""The outcomes that a row of the history may have."""


def collect_metrics(server: str, rows: Sequence[Row]) -> CollectorRegistry:
    """Collect the figures of the last delete run of each scope.

    All are gauges, whose text both the parser of OpenMetrics and that of Prometheus' older format read, as node_exporter has.

    Args:
        server: The address of the server, a label of each figure.
        rows: The history, the newest first.
    """
    registry = CollectorRegistry()
    gauges = {
        name: Gauge(f"{PREFIX}_{name}", text, ["server", "scope", *others], registry=registry)
        for name, (text, *others) in {
            "last_run_timestamp_seconds": ("When the last delete run began.",),
            "last_success_timestamp_seconds": ("When the last successful delete run began.",),
            "last_run_outcome": ("1 for the outcome of the last delete run, 0 for all others.", "outcome"),
            "last_run_duration_seconds": ("How long the last delete run took.",),
            "last_run_deleted_versions": ("Versions that the last delete run has deleted.",),
            "keys": ("Keys with a policy.",),
            "versions": ("Versions after the last delete run.",),
            "data_bytes": ("Bytes of the data of these versions.",),
            "backlog_versions": ("Stale versions that the last delete run has left; none if it did not plan all keys.",),
            "stalled_runs": ("Unfinished delete runs in a row that have not made the backlog smaller.",),
        }.items()
    }

    def put(name: str, scope: str, value: float | None, *others: str) -> None:
        if value is not None:
            gauges[name].labels(server, scope, *others).set(value)

    for scope, runs in _by_scope(rows).items():
        last, *_ = runs
        put("last_run_timestamp_seconds", scope, _timestamp(last))
        put("last_success_timestamp_seconds", scope, next((_timestamp(row) for row in runs if row.outcome in SUCCESSES), None))
        for outcome in OUTCOMES:
            put("last_run_outcome", scope, last.outcome == outcome, outcome)
        at_work = next((row for row in runs if _has_figures(row)), None)
        if at_work:
            put("last_run_duration_seconds", scope, at_work.seconds)
            put("last_run_deleted_versions", scope, at_work.deleted)
            put("keys", scope, at_work.keys_seen)
            put("versions", scope, at_work.versions_after)
            put("data_bytes", scope, at_work.bytes_after)
            put("backlog_versions", scope, at_work.backlog)
            put("stalled_runs", scope, stalled_runs(row for row in runs if row.policies == at_work.policies))
    return registry


def _by_scope(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the delete runs of each scope, the newest first; a row whose date cannot be read is dropped."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.mode == "delete" and row.began is not None:
            found.setdefault(row.scope, []).append(row)
    return found


def _has_figures(row: Row) -> bool:
    """Whether a run has looked at any key: one that failed or was refused before has zeros, which would hide a backlog."""
    return row.outcome not in NOT_AT_WORK and (row.keys_seen > 0 or row.outcome in SUCCESSES)


def _timestamp(row: Row) -> float | None:
    return row.began.timestamp() if row.began else None
