"""The report of a restore, and how people see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Literal

from prefect_artifact_retention.policies import RetentionError
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.tasks.rendering import NO_LINKS, bullet_list, escape, label, link_line, pipe_table, size
from pydantic import BaseModel, Field, computed_field

MAX_CAUSES = 3
"""The causes of a failure that the message of the flow run has. With more, nobody reads them."""

MAX_KEYS_SHOWN = 20
"""Keys in the table of the report, those with the most versions. With more, it is an endless page in Prefect's UI."""


class RestoredKey(BaseModel):
    """What is restored of one key, or of the artifacts without a key (None)."""

    key: str | None = Field(description="The key.")
    to_key: str | None = Field(description="The key under which the versions are restored.")
    versions: int = Field(description="The versions that were asked for and are in the archive.")
    bytes: int = Field(description="The bytes of their data.")
    first_created: datetime = Field(description="When the oldest of them was created.")
    last_created: datetime = Field(description="When the newest of them was created.")
    present: int = Field(default=0, description="How many exist already, and are left alone.")
    elsewhere: dict[str, int] = Field(
        default_factory=dict,
        description="How many of these an earlier restore has created anew under another key than this one, by that key.",
    )
    unavailable: int = Field(default=0, description="How many cannot be restored, because the archive has not their payloads.")
    restored: int = Field(default=0, description="How many were restored.")
    held_until: date | None = Field(
        default=None,
        description="The last day (UTC) on which a hold keeps what was restored; None without one, or without an end.",
    )
    held: str = Field(default="", description="The hold that keeps it; empty without one.")
    error: str = Field(default="", description="Why not all could be restored; empty if all could.")

    @property
    def missing(self) -> int:
        """The versions that are to be restored: none of a key of which a plan says why not."""
        return 0 if self.error else self.versions - self.present - self.unavailable


class RestoreReport(BaseModel):
    """What a restore has done, or would do."""

    applied: bool = Field(description="Whether it restored; else it was a preview.")
    way: Literal["database", "api"] = Field(
        description="Whether versions are restored exactly in the database, or as new versions through the API."
    )
    server: str = Field(description="The address of the server's API.")
    archive: str = Field(description="The address of the archive.")
    now: datetime = Field(description="The server's clock.")
    key_reports: list[RestoredKey] = Field(default_factory=list, description="What is restored of each key.")
    others: dict[str, int] = Field(
        default_factory=dict,
        description="Versions asked for that are of other servers, by the address of the server; they are left out.",
    )
    data: bool = Field(default=False, description="Whether only data come back, into versions that exist.")
    warnings: list[str] = Field(default_factory=list, description="What else is to be known.")
    errors: list[str] = Field(default_factory=list, description="Why the whole restore failed.")
    outcome: Literal["completed", "failed"] = Field(default="completed", description="How it ended.")
    duration_seconds: float = Field(default=0, description="How long it took.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def versions(self) -> int:
        """The versions that were asked for and are in the archive."""
        return sum(each.versions for each in self.key_reports)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def present(self) -> int:
        """How many of them exist already."""
        return sum(each.present for each in self.key_reports)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unavailable(self) -> int:
        """How many of them cannot be restored, because the archive has not their payloads."""
        return sum(each.unavailable for each in self.key_reports)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def restored(self) -> int:
        """How many were restored."""
        return sum(each.restored for each in self.key_reports)

    @property
    def missing(self) -> int:
        """How many are to be restored."""
        return sum(each.missing for each in self.key_reports)

    def causes(self) -> list[str]:
        """Return why something could not be restored."""
        return [*self.errors, *(f"{label(each.key)}: {each.error}" for each in self.key_reports if each.error)]


class RestoreFailed(RetentionError):  # noqa: N818 - as CleanupFailed
    """A restore failed, in whole or for some keys. Its report has the causes and what was restored."""

    def __init__(self, report: RestoreReport, message: str) -> None:
        super().__init__(message)
        self.report = report


def headline(report: RestoreReport) -> str:
    """Return the result in one line."""
    keys = count(sum((each.restored if report.applied else each.missing) > 0 for each in report.key_reports), "key")
    if report.applied:
        text = f"{count(report.restored, 'version')} of {keys} restored"
    else:
        text = f"{count(report.missing, 'version')} of {keys} to restore"
    if report.data:
        text = f"data of {text}"
    if report.present:
        text += f", {report.present:,} present already"
    if report.unavailable:
        text += f", {report.unavailable:,} not archived with their payloads"
    if failed := sum(bool(each.error) for each in report.key_reports):
        text += f", {count(failed, 'key')} failed"
    return text


def outcome_message(report: RestoreReport) -> str:
    """Return the headline with the first causes of a failure."""
    causes = report.causes()
    more = [f"and {len(causes) - MAX_CAUSES:,} more"] if len(causes) > MAX_CAUSES else []
    return ". ".join([headline(report), *causes[:MAX_CAUSES], *more])


def notes(report: RestoreReport) -> Iterable[str]:
    """Describe what is not restored, and what else is to be known."""
    yield from report.errors
    for server, number in report.others.items():
        yield f"{count(number, 'version')} of the server {server} left out: give that address as from_server to restore them"
    yield from report.warnings


def remark(each: RestoredKey) -> str:
    """Return what is to be known of a key besides numbers."""
    facts = []
    if each.error:
        facts.append(each.error)
    if each.unavailable:
        facts.append(f"{each.unavailable:,} cannot be restored: the archive has not their payloads")
    facts += [f"{number:,} restored already, as new versions of {label(key)}" for key, number in each.elsewhere.items()]
    if each.to_key != each.key and each.versions > sum(each.elsewhere.values()):
        facts.append(f"as new versions of {label(each.to_key)}")
    if each.held and each.error and not each.restored:
        facts.append(f"nothing of it was restored, and it is on hold all the same: {each.held}")
    elif each.held:
        facts.append(each.held)
    return "; ".join(facts)


def markdown(report: RestoreReport, *, links: Mapping[str, str] = NO_LINKS) -> str:
    """Render the report as markdown for both Prefect UIs."""
    most = sorted(report.key_reports, key=lambda each: (not each.error, -each.versions))
    rows = [
        (
            label(each.key),
            each.versions,
            each.present,
            each.restored if report.applied else each.missing,
            size(each.bytes),
            f"{each.first_created:%Y-%m-%d %H:%M}",
            f"{each.last_created:%Y-%m-%d %H:%M}",
            remark(each),
        )
        for each in most[:MAX_KEYS_SHOWN]
    ]
    done = "Restored" if report.applied else "To restore"
    header = ("Key", "Versions", "Present", done, "Size", "First created (UTC)", "Last created (UTC)", "Remarks")
    hidden = len(most) - len(rows)
    ways = {"database": "exactly, in the database", "api": "as new versions, through the API"}
    parts = [
        f"# {escape(headline(report))}",
        link_line(links),
        " · ".join(
            (
                report.outcome.capitalize(),
                f"{'restored' if report.applied else 'preview'} {'in place' if report.data else ways[report.way]}",
                f"as of {report.now:%Y-%m-%d %H:%M:%S} UTC",
                f"{report.duration_seconds:.0f} s",
                f"server {escape(report.server)}",
                f"archive {escape(report.archive)}",
            )
        ),
        bullet_list(notes(report)),
        pipe_table(header, rows) if rows else "",
        f"And {count(hidden, 'key')} more." if hidden else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
