"""The models of what an examination of a server has found: `doctor --json` prints them; and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

from prefect_artifact_retention.policies import RetentionError
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.tasks.rendering import NO_LINKS, bullet_list, escape, label, link_line, pipe_table, size
from pydantic import BaseModel, Field

MAX_EXAMPLES = 10
"""Examples of a finding. More make the document longer."""

MAX_EXAMPLES_SHOWN = 3
"""Examples of a finding in its table. More make the table wider."""

PROJECTED_DAYS = 30
GROWTH_DAYS = 84
"""The days of which the growth is told. With more, the document is longer."""

Kind = Literal[
    "unreadable",
    "policies_unreadable",
    "latest_missing",
    "latest_not_newest",
    "no_collection",
    "placeholder_left",
    "metadata_unreadable",
    "keys_without_policy",
    "policies_without_key",
    "look_alikes",
    "runs_gone",
    "runs_unfinished",
    "not_vacuumed",
    "archive_unreadable",
    "archive_damaged",
    "archive_left_over",
]


class Finding(BaseModel):
    """One kind of thing that was found."""

    kind: Kind = Field(description="What kind of thing it is.")
    is_broken: bool = Field(description="Whether something is wrong. Otherwise, it deserves a look.")
    what: str = Field(description="What was found.")
    count: int = Field(description="How many.")
    examples: list[str] = Field(description=f"Some of them, {MAX_EXAMPLES} at most.")
    advice: str = Field(description="What to do.")
    shares: list[int] = Field(default=[], exclude=True)
    repaired: int = Field(default=0, description="How many of them --fix has repaired.")
    errors: list[str] = Field(default=[], description=f"Why it has not repaired others, {MAX_EXAMPLES} at most.")
    keys_to_repair: list[str] = Field(default=[], exclude=True)
    placeholders: dict[str, list[UUID]] = Field(default={}, exclude=True)

    @property
    def is_left(self) -> bool:
        """Whether anything that is broken is left of it."""
        return self.is_broken and self.repaired < self.count

    @property
    def shown(self) -> str:
        """The first examples in one line, and how many more there are."""
        shown = self.examples[:MAX_EXAMPLES_SHOWN]
        more = self.count - (sum(self.shares[: len(shown)]) if self.shares else len(shown))
        return "; ".join(shown) + (f"; and {more:,} more" if more else "")


class KeySize(BaseModel):
    """What there is of one key; of all artifacts without one, if it is null."""

    key: str | None = Field(description="The key.")
    versions: int = Field(default=0, description="Its versions.")
    bytes: int = Field(default=0, description="Bytes of the data of its versions.")
    versions_of_day: int = Field(default=0, description="Those of the last day.")
    bytes_of_day: int = Field(default=0, description="Bytes of these.")
    versions_of_week: int = Field(default=0, description="Those of the last seven days.")
    bytes_of_week: int = Field(default=0, description="Bytes of these.")


class Growth(BaseModel):
    """What 24 hours have added, as far as it is still there."""

    until: datetime = Field(description="The end of the 24 hours.")
    versions: int = Field(default=0, description="The versions.")
    bytes: int = Field(default=0, description="Bytes of their data.")


class DiskReport(BaseModel):
    """What artifacts take in the database."""

    bytes: int = Field(description="Bytes on disk, with indexes; on SQLite, of the whole file.")
    free_bytes: int = Field(description="Bytes of pages of SQLite that are free to be used again.")
    rows: int = Field(description="Rows, as PostgreSQL's statistics have them.")
    dead_rows: int = Field(description="Deleted rows that no vacuum has removed, likewise.")
    vacuumed: datetime | None = Field(description="When PostgreSQL has vacuumed the table last, by itself or told to.")


class Checkup(BaseModel):
    """What an examination of a server has found."""

    server: str = Field(description="The address of the API, without credentials.")
    now: datetime = Field(description="The server's clock, from which ages are counted.")
    through: Literal["api", "database"] = Field(description="How versions were read.")
    keys_seen: int = Field(default=0, description="Keys with a collection or versions.")
    findings: list[Finding] = Field(default=[], description="What was found, broken things first; none if all is well.")
    total: KeySize = Field(default=KeySize(key=None), description="All artifacts together.")
    projected_bytes: int = Field(
        default=0, description=f"Bytes in {PROJECTED_DAYS} days if it grows as in the last week, and nothing is deleted."
    )
    most_versions: list[KeySize] = Field(default=[], description="The keys with the most versions.")
    most_bytes: list[KeySize] = Field(default=[], description="The keys with the most bytes.")
    growth: list[Growth] = Field(
        default=[], description=f"What each of the last {GROWTH_DAYS} days has added, the latest day first."
    )
    disk: DiskReport | None = Field(default=None, description="Through the database only.")
    warnings: list[str] = Field(default=[], description="What must be known to read this.")
    errors: list[str] = Field(default=[], description="Why --fix has repaired nothing, or nothing further.")

    @property
    def is_broken(self) -> bool:
        """Whether anything is broken that is not repaired."""
        return any(finding.is_left for finding in self.findings)


class CheckupFailed(RetentionError):  # noqa: N818 - as the other results of runs that failed
    """An examination has found something that is broken and was not repaired."""

    def __init__(self, checkup: Checkup, message: str) -> None:
        super().__init__(message)
        self.checkup = checkup


def headline(checkup: Checkup) -> str:
    """Summarize in one line whether a server is healthy."""
    total = checkup.total
    all_of_it = f"{count(checkup.keys_seen, 'key')} with {count(total.versions, 'version')} ({size(total.bytes)})"
    broken = [finding for finding in checkup.findings if finding.is_broken]
    if not broken:
        return f"Healthy: {all_of_it}, and nothing is broken"
    left = sum(finding.count - finding.repaired for finding in broken)
    repaired = sum(finding.repaired for finding in broken)
    if not left:
        return f"{repaired:,} repaired, and nothing else is broken: {all_of_it}"
    return f"{left:,} broken" + (f", {repaired:,} repaired" if repaired else "") + f": {all_of_it}"


def outcome_message(checkup: Checkup) -> str:
    """Return the headline with what is broken."""
    left = [f"{each.what}: {each.count - each.repaired:,}" for each in checkup.findings if each.is_left]
    return ". ".join([headline(checkup), *left, *checkup.errors])


def markdown(checkup: Checkup, *, links: Mapping[str, str] = NO_LINKS, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """Render a checkup as markdown, for the terminal and for both Prefect UIs.

    Args:
        checkup: The checkup.
        links: Addresses of related pages by name.
        pictures: Alternative text and address of each picture.
    """
    return "\n\n".join(part for part in _parts(checkup, links, pictures) if part) + "\n"


def _parts(checkup: Checkup, links: Mapping[str, str], pictures: Sequence[tuple[str, str]]) -> Iterator[str]:
    broken = [finding for finding in checkup.findings if finding.is_broken]
    advice = [finding for finding in checkup.findings if not finding.is_broken]
    yield f"# {escape(headline(checkup))}"
    yield link_line(links)
    through = "database" if checkup.through == "database" else "API"
    yield f"On {escape(checkup.server)}, as of {checkup.now:%Y-%m-%d %H:%M:%S} UTC, through the {through}."
    if checkup.warnings:
        yield f"## Warnings\n\n{bullet_list(checkup.warnings)}"
    if broken:
        yield f"## Broken\n\n{_table(broken)}"
    if errors := [*checkup.errors, *(error for finding in broken for error in finding.errors)]:
        yield f"## Not repaired\n\n{bullet_list(errors)}"
    if advice:
        yield f"## Worth a look\n\n{_table(advice)}"
    if checkup.total.versions:
        yield from _growth(checkup)
        yield from (f"![{escape(alt)}]({url})" for alt, url in pictures)
        yield from _largest(checkup)


def _table(findings: Sequence[Finding]) -> str:
    rows = [(each.what, each.count, each.shown, _state(each)) for each in findings]
    return pipe_table(("Found", "Number", "For example", "What to do"), rows)


def _state(finding: Finding) -> str:
    if not finding.repaired:
        return finding.advice
    return "Repaired" if not finding.is_left else f"{finding.repaired:,} are repaired. {finding.advice}"


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


def _largest(checkup: Checkup) -> Iterator[str]:
    header = ("Key", "Versions", "Size", "Versions of the last week", "Size")
    for title, keys in (("Most versions", checkup.most_versions), ("Most bytes", checkup.most_bytes)):
        rows = [
            (label(each.key), each.versions, size(each.bytes), each.versions_of_week, size(each.bytes_of_week))
            for each in keys
        ]
        yield f"## {title}\n\n{pipe_table(header, rows)}"
