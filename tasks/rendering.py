"""Formats a report: as markdown for its artifact, and as one line for the log, the flow run's state and the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from prefect_artifact_retention.policies.expectation import UNKEYED
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.tasks.report import SUCCESSES, CleanupReport, RuleCount, in_order

MAX_STALE_KEYS_LISTED = 20
MAX_KEYS_LISTED = 20
"""Keys listed in a section of the report; more make it longer, and `--json` has all."""

HELD_BY_EVENTS = (
    "What is deleted can be read in the server's events until these expire: after 7 days, unless "
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD says otherwise."
)
UNKEYED_LABEL = "(without a key)"
UNITS = ("kB", "MB", "GB", "TB")
NO_BREAK = "\u00a0"
NO_LINKS: Mapping[str, str] = {}

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")
_LINK = re.compile(r"(?<=[a-z])(?=://)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
"""The positions at which markdown makes a link of plain text: in URLs and e-mail addresses."""

WORD_JOINER = "\u2060"
_LIST_NUMBER = re.compile(r"^([0-9]+)\.")
_SIZE = re.compile(rf"[0-9.]+ (B|{'|'.join(UNITS)})")
_MAX_LABEL_CHARS = 250
"""A longer key is cut off. With less, keys that begin alike look the same; with more, one key fills a page of the report."""


def headline(report: CleanupReport) -> str:
    """Summarize in one line what a run did or would do."""
    stale = f"{report.planned:,} of {count(report.versions_seen, 'version')} stale {stale_where(report)}".rstrip()
    if report.mode == "preview" and not _is_unplanned(report):
        what = f"{count(report.planned, 'version')} ({size(report.bytes_planned)})"
        by = f" by {report.planned_for:%Y-%m-%d %H:%M}" if report.next_days else ""
        return f"Would delete {what}{by}: {stale}{_moved(report)}"
    not_begun = {
        "skipped": "Skipped, nothing deleted: another cleanup is deleting some of the same keys",
        "declined": f"Declined by {report.approved_by}, nothing deleted",
        "outdated": f"Nothing deleted yet: more is stale than {report.approved_by} has approved, so it is asked again",
    }
    if report.outcome in not_begun:
        return not_begun[report.outcome]
    text = f"Deleted {count(report.deleted, 'version')} ({size(report.bytes_freed)}): {stale}{_moved(report)}"
    if _is_unplanned(report):
        text = "Deleted nothing, because no version was evaluated"
    if report.outcome == "refused":
        what = "no version was evaluated" if _is_unplanned(report) else stale
        return f"Refused in part. {text}" if report.deleted else f"Refused, nothing deleted: {what}"
    if report.outcome == "unfinished":
        return f"{text}; unfinished" + (f", {report.remaining:,} remain" if report.remaining else "")
    if report.outcome == "failed":
        return f"{text}; failed, {count(sum(1 for _ in report.failures()) + len(report.errors), 'error')}"
    return text


def stale_where(report: CleanupReport) -> str:
    """Say in how many keys versions are stale; empty if none are."""
    stale = [each.key is not None for each in report.key_reports if each.planned]
    keys = [f"in {count(sum(stale), 'key')}"] if any(stale) else []
    return " and ".join([*keys, *["without a key"] * (not all(stale))])


def _moved(report: CleanupReport) -> str:
    is_preview = report.mode == "preview"
    number, amount = (report.to_offload, report.bytes_to_offload) if is_preview else (report.offloaded, report.bytes_offloaded)
    done = "would move" if is_preview else "moved"
    return f"; {done} the data of {count(number, 'version')} to the archive ({size(amount)})" if number else ""


def _is_unplanned(report: CleanupReport) -> bool:
    """Whether the run ended before it had evaluated any version, so that nothing can be said of them."""
    is_early = report.outcome in {"skipped", "refused", "failed", "unfinished", "declined"}
    return is_early and not report.key_reports and not report.policies


def outcome_message(report: CleanupReport) -> str:
    """Return the headline with the first causes of a refusal or failure."""
    causes = [*report.refusals, *report.errors, *(f"{label(key.key)}: {key.error}" for key in report.failures())]
    return ". ".join([headline(report), *causes[:3], *([f"and {len(causes) - 3:,} more"] if len(causes) > 3 else [])])  # noqa: PLR2004


def size(amount: int) -> str:
    """Format a number of bytes."""
    if amount < 1000:  # noqa: PLR2004 - SI units
        return f"{amount} B"
    power = next((power for power in range(1, len(UNITS)) if round(amount / 1000**power, 1) < 1000), len(UNITS))  # noqa: PLR2004
    return f"{amount / 1000**power:.1f} {UNITS[power - 1]}"


def label(key: str | None) -> str:
    """Format a key as one short printable line."""
    if key is None:
        return UNKEYED_LABEL
    text = key if key and key.isprintable() else repr(key)
    return text if len(text) <= _MAX_LABEL_CHARS else f"{text[:_MAX_LABEL_CHARS]}… ({len(key)} characters)"


def count_keys(keys: Iterable[str | None]) -> str:
    """Count keys; artifacts without one (None) are none, and named apart."""
    keys = list(keys)
    named = [key for key in keys if key is not None]
    return " and ".join([*([count(len(named), "key")] if named else []), *(["the artifacts without a key"] * (None in keys))])


def scope_label(keys: Iterable[str]) -> str:
    """Format the scope of a run, from the globs of its keys in any order, as one printable line."""
    return ", ".join(label(glob) for glob in in_order(keys)) or "all keys"


def with_links(text: str, links: Mapping[str, str], *names: str) -> str:
    """Append the named links, as far as they are known, to the markdown description of an artifact."""
    return " · ".join([text, *(f"[{name}]({links[name]})" for name in names if name in links)])


def link_line(links: Mapping[str, str]) -> str:
    """Render the addresses of related pages by name as a line of markdown; empty without any."""
    return " · ".join(f"[{escape(name)}]({url})" for name, url in links.items())


def markdown(report: CleanupReport, *, links: Mapping[str, str] = NO_LINKS, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """Render the report as markdown for both Prefect UIs.

    Args:
        report: The report.
        links: Addresses of related pages by name.
        pictures: Alternative text and address of each picture.
    """
    parts = [
        f"# {escape(headline(report))}",
        link_line(links),
        f"{report.outcome.capitalize()} · mode {report.mode} · as of {report.now:%Y-%m-%d %H:%M:%S} UTC · "
        f"{report.duration_seconds:.0f} s"
        + (f" · {_answer(report)} by {escape(report.approved_by)}" if report.approved_by else "")
        + (f" · by the plan of {report.planned_at:%Y-%m-%d %H:%M:%S} UTC" if report.planned_at else "")
        + (f" · only {escape(scope_label(report.scope))}" if report.scope else "")
        + (f" · server {escape(report.server)}" if report.server else ""),
        escape(report.awaits) if report.planned and report.outcome in SUCCESSES else "",
        *_problems(report),
        *(f"![{escape(alt)}]({url})" for alt, url in pictures),
        *([] if _is_unplanned(report) else _details(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(report: CleanupReport) -> str:
    return "declined" if report.outcome == "declined" else "approved"


def _details(report: CleanupReport) -> Iterable[str]:
    return (
        _totals(report),
        _archive(report),
        _keys(report),
        _policies(report),
        _holds(report),
        _rules("Stale, and why", report.condemned_by),
        _rules("Kept, and why", report.kept_by),
        _unmanaged(report),
    )


def _problems(report: CleanupReport) -> Iterable[str]:
    failures = [f"{label(key.key)}: {key.error}" for key in report.failures()]
    for title, lines in (
        ("Skipped" if report.outcome == "skipped" else "Refused", report.refusals),
        ("Failures", [*report.errors, *failures]),
        ("Differences from the plan that was shown", report.differences),
        ("Repaired", [f"{label(key)}: its latest version had vanished and was posted again" for key in report.repaired]),
        ("Warnings", report.warnings),
        ("Doubts about the policies", report.doubts),
    ):
        if lines:
            yield f"## {title}\n\n" + bullet_list(lines)
    if report.stopped_at:
        where = escape(label(None if report.stopped_at == UNKEYED else report.stopped_at))
        if report.mode == "delete":
            yield f"The next delete run begins with {where}."
        else:
            yield f"Planning stopped before {where}, because its time was over."


def _totals(report: CleanupReport) -> str:
    rows = [
        ("Keys seen", report.keys_seen),
        ("Versions evaluated", report.versions_seen),
        ("Kept", report.kept),
        ("Stale", f"{report.planned:,} ({size(report.bytes_planned)})"),
    ]
    if report.mode != "preview":
        rows += [
            ("Deleted", f"{report.deleted:,} ({size(report.bytes_freed)})"),
            ("Already gone", report.already_gone),
            ("Kept on re-check", report.spared),
            *([("Not in the plan that was shown", report.withheld)] if report.withheld else []),
            ("Failed", report.failed),
        ]
    if report.to_offload:
        rows.append(("Data to move to the archive", f"{report.to_offload:,} ({size(report.bytes_to_offload)})"))
        if report.mode != "preview":
            rows.append(("Moved", f"{report.offloaded:,} ({size(report.bytes_offloaded)})"))
    if report.events_purged is not None:
        rows.append(("Events about them deleted", f"{report.events_purged:,} ({size(report.event_bytes_purged)})"))
    table = pipe_table(("Total", "Versions"), rows)
    is_held = report.events_purged is None and (report.planned if report.mode == "preview" else report.deleted)
    return f"{table}\n\n{HELD_BY_EVENTS}" if is_held else table


def _archive(report: CleanupReport) -> str:
    if not (archive := report.archive):
        return ""
    if not archive.versions:
        return _offloaded(report, title="## Archive\n\n")
    files = f"{count(archive.parts, 'file')} ({size(archive.bytes)}) of {escape(archive.url)}"
    text = f"## Archive\n\n{count(archive.versions, 'version')} archived in {files} before they were deleted."
    return f"{text} `{archive.restore}` brings them back.{_offloaded(report)}" if archive.restore else text


def _offloaded(report: CleanupReport, title: str = " ") -> str:
    if not report.offloaded:
        return ""
    return f"{title}The data of {count(report.offloaded, 'version')} were moved there; each says how they come back."


def _policies(report: CleanupReport) -> str:
    rows = [(policy.name, policy.sentence, policy.keys_seen, policy.versions, policy.planned) for policy in report.policies]
    source = f"From {escape(report.policy_source)}, digest {report.policy_digest}."
    notes = "\n\n" + bullet_list(report.notes) if report.notes else ""
    own = count(sum(key.deleted for key in report.housekeeping), "version")
    housekeeping = f"\n\nBesides, {own} of this package's own artifacts went." if not own.startswith("0 ") else ""
    table = pipe_table(("Policy", "Rule", "Keys", "Versions", "Stale"), rows)
    return f"## Policies\n\n{source}\n\n{table}{notes}{housekeeping}"


def _keys(report: CleanupReport) -> str:
    stale = sorted((key for key in report.key_reports if key.planned), key=lambda key: key.planned, reverse=True)
    if not stale:
        is_known = report.policies or report.outcome not in {"failed", "unfinished"}
        return "## Keys\n\nNothing is stale." if is_known else ""
    rows = [
        (
            label(key.key),
            key.policy,
            key.versions,
            key.kept,
            key.planned,
            *([key.deleted] if report.mode == "delete" else []),
            size(key.bytes_seen),
            size(key.bytes),
            *([size(key.bytes_freed)] if report.mode == "delete" else []),
        )
        for key in stale[:MAX_STALE_KEYS_LISTED]
    ]
    title = f"## Keys\n\n{count_keys(key.key for key in stale)} with stale versions"
    title += f"; the {MAX_STALE_KEYS_LISTED} with the most:" if len(stale) > MAX_STALE_KEYS_LISTED else ":"
    deleted, freed = (["Deleted"], ["Freed"]) if report.mode == "delete" else ([], [])
    header = ("Key", "Policy", "Versions", "Kept", "Stale", *deleted, "Size", "Stale size", *freed)
    return f"{title}\n\n{pipe_table(header, rows)}"


def _holds(report: CleanupReport) -> str:
    lines = report.holds[:MAX_KEYS_LISTED]
    if (more := len(report.holds) - MAX_KEYS_LISTED) > 0:
        lines.append(f"and {count(more, 'key')} more")
    return "## Keys on hold\n\n" + bullet_list(lines) if lines else ""


def _rules(title: str, counts: Sequence[RuleCount]) -> str:
    if not counts:
        return ""
    rows = [(each.rule, each.versions, each.example) for each in counts]
    return f"## {title}\n\n" + pipe_table(("Rule", "Versions", "For example"), rows)


def _unmanaged(report: CleanupReport) -> str:
    lines = [label(key) for key in report.unmanaged[:MAX_KEYS_LISTED]]
    if (more := len(report.unmanaged) - MAX_KEYS_LISTED) > 0:
        lines.append(f"and {count(more, 'key')} more")
    if report.unmanaged_unkeyed:
        lines.append(count(report.unmanaged_unkeyed, "artifact") + " without a key")
    return "## Unmanaged\n\nNo policy is for these; they were left alone.\n\n" + bullet_list(lines) if lines else ""


def escape(text: str) -> str:
    """Escape text for markdown: on one line, without markup and links.

    A backslash does not keep Prefect's user interfaces from making a link of an address, so an invisible character does.
    """
    printable = "".join(char if char.isprintable() else " " for char in text)
    return _LIST_NUMBER.sub(r"\1\\.", _MARKUP.sub(r"\\\1", _LINK.sub(WORD_JOINER, printable)))


def _is_number(cell: object) -> bool:
    return isinstance(cell, int) or bool(_SIZE.fullmatch(str(cell)))


def _digits(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def bullet_list(lines: Iterable[str]) -> str:
    """Render lines of plain text as a list."""
    return "\n".join(f"- {escape(line.strip())}" for line in lines)


def pipe_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Render cells of plain text as a table; a column of numbers is aligned to the right."""
    rows = list(rows)
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    lines = [header, ["---:" if right else ":---" for right in numeric]]
    # A number and its unit stay on one line.
    lines += [[escape(_digits(cell)).replace(" ", NO_BREAK if _is_number(cell) else " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
