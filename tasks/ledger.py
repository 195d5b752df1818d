"""The ledger: the log of a run says for each key what was deleted, by which policy and rules."""

from __future__ import annotations

from collections.abc import Iterator

from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.tasks.rendering import label, size
from prefect_artifact_retention.tasks.report import CleanupReport, KeyReport
from prefect_artifact_retention.tasks.run import Run

CLOUD_LOG_LINES = 100
"""Lines on Prefect Cloud, which counts them, unless said otherwise."""


def ledger(run: Run) -> Iterator[str]:
    """Return who has approved the deletions, a line for each key with any, or with data moved, and how many more there are.

    There are `max_log_lines` at most of the latter.
    """
    limit = run.limits.max_log_lines or (CLOUD_LOG_LINES if run.server.connection.is_cloud else None)
    report = run.report
    keys = [key for key in _keys(report) if key.deleted or key.offloaded]
    if report.approved_by:
        yield f"Approved by {printable(report.approved_by)}: {count(report.planned - report.withheld, 'version')}"
    yield from map(_line, keys[:limit])
    if more := len(keys[limit:]) if limit else 0:
        yield f"Versions of {count(more, 'key')} more were deleted or moved; the report has all"


def _keys(report: CleanupReport) -> Iterator[KeyReport]:
    yield from report.key_reports
    yield from report.housekeeping


def _line(key: KeyReport) -> str:
    facts = []
    if key.deleted:
        rules = ", ".join(f"{rule} {number:,}" for rule, number in key.stale_by.items())
        facts.append(
            f'{count(key.deleted, "version")} deleted by policy "{key.policy}" (stale: {rules}), '
            f"first {key.first_deleted}, last {key.last_deleted}"
        )
    if key.offloaded:
        facts.append(f"data of {count(key.offloaded, 'version')} ({size(key.bytes_offloaded)}) moved to the archive")
    return f"{label(key.key)}: {'; '.join(facts)}"
