"""Examines the artifacts of a server, repairs what is broken if told to, and prints what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.cleanup import open_run
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.identity import check_writable
from prefect_artifact_retention.tasks.doctor import PROJECTED_DAYS, Checkup, Finding, KeySize, examine, fix
from prefect_artifact_retention.tasks.rendering import WORD_JOINER, bullet_list, escape, label, pipe_table, size

MAX_EXAMPLES_SHOWN = 3


async def examine_server(settings: RetentionSettings, repair: Callable[[Sequence[Finding]], bool]) -> Checkup:
    """Examine a server. What can be repaired is shown to `repair` first, and is repaired if that returns True.

    Raises:
        ConfigurationError: The policies are invalid.
        StoreError: The server or the database cannot be reached; or the database not written to, and there is something to
            repair.
    """
    async with open_run(settings, "preview", (), ()) as run:
        checkup = await examine(run)
        repairable = [finding for finding in checkup.findings if finding.keys_to_repair]
        if repairable and repair(repairable):
            if isinstance(run.store, DatabaseStore):
                await check_writable(run.store.transactions, with_events=False, with_data=False)
            await fix(run, checkup)
        return checkup


def announcement(findings: Sequence[Finding]) -> str:
    """Say what a repair is about to do."""
    parts = [f"{finding.what.lower()}: {_examples(finding)}" for finding in findings]
    keys = sum(len(finding.keys_to_repair) for finding in findings)
    return f"repairing the collections of {count(keys, 'key')}. " + "; ".join(parts)


def show(checkup: Checkup) -> None:
    """Print what was found."""
    terminal.show(terminal.Report("\n\n".join(_parts(checkup)).replace(WORD_JOINER, "")))


def _parts(checkup: Checkup) -> Iterator[str]:
    broken = [finding for finding in checkup.findings if finding.is_broken]
    advice = [finding for finding in checkup.findings if not finding.is_broken]
    total = checkup.total
    all_of_it = f"{count(checkup.keys, 'key')} with {count(total.versions, 'version')} ({size(total.bytes)})"
    if not broken:
        yield f"# Healthy: {all_of_it}, and nothing is broken"
    else:
        left = sum(finding.count - finding.repaired for finding in broken)
        yield f"# {_title(left, sum(finding.repaired for finding in broken))}: {all_of_it}"
    through = "database" if checkup.through == "database" else "API"
    yield f"On {escape(checkup.server)}, as of {checkup.now:%Y-%m-%d %H:%M:%S} UTC, through the {through}."
    if checkup.warnings:
        yield f"## Warnings\n\n{bullet_list(checkup.warnings)}"
    if broken:
        yield f"## Broken\n\n{_table(broken)}"
        if errors := [error for finding in broken for error in finding.errors]:
            yield f"## Not repaired\n\n{bullet_list(errors)}"
    if advice:
        yield f"## Worth a look\n\n{_table(advice)}"
    if total.versions:
        yield from _growth(checkup)


def _title(left: int, repaired: int) -> str:
    if not left:
        return f"{repaired:,} repaired, and nothing else is broken"
    return f"{left:,} broken" + (f", {repaired:,} repaired" if repaired else "")


def _table(findings: Sequence[Finding]) -> str:
    rows = [(each.what, each.count, _examples(each), _state(each)) for each in findings]
    return pipe_table(("Found", "Number", "For example", "What to do"), rows)


def _state(finding: Finding) -> str:
    if not finding.repaired:
        return finding.advice
    return "Repaired" if not finding.is_left else f"{finding.repaired:,} are repaired. {finding.advice}"


def _examples(finding: Finding) -> str:
    shown = finding.examples[:MAX_EXAMPLES_SHOWN]
    more = finding.count - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more else "")


def _growth(checkup: Checkup) -> Iterator[str]:
    total = checkup.total
    lines = [
        f"Last day: {count(total.versions_of_day, 'version')}, {size(total.bytes_of_day)}",
        f"Last week: {count(total.versions_of_week, 'version')}, {size(total.bytes_of_week)}",
        f"In {PROJECTED_DAYS} days, if it goes on as in the last week and nothing is deleted: {size(checkup.projected_bytes)}",
    ]
    if disk := checkup.disk:
        lines.append(f"On disk: {size(disk.bytes)}")
        if disk.rows or disk.dead_rows:
            vacuumed = f"{disk.vacuumed:%Y-%m-%d %H:%M} UTC" if disk.vacuumed else "none yet"
            lines[-1] += f"; {count(disk.dead_rows, 'dead row')}, last vacuum: {vacuumed}"
    yield f"## Growth\n\n{bullet_list(lines)}"
    for title, keys in (("Most versions", checkup.most_versions), ("Most bytes", checkup.most_bytes)):
        yield f"## {title}\n\n{pipe_table(('Key', 'Versions', 'Size', 'Versions of the last week', 'Size'), map(_row, keys))}"


def _row(amount: KeySize) -> tuple[object, ...]:
    return (
        label(amount.key),
        amount.versions,
        size(amount.bytes),
        amount.versions_of_week,
        size(amount.bytes_of_week),
    )
