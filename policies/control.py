"""Holds and TTLs: the entries by which a producer controls the retention of one version, in its metadata.

`retention-hold` is "true" or a date (UTC, inclusive); `retention-ttl-days` is a number of days. An invalid value keeps the
version and is reported, and so does any other entry that reads as `retention-...`, such as `retention_hold`: holds fail
closed, because a deletion cannot be undone. `retention-hold-by`, `-since` and `-reason` say who holds it, since when and why,
and hold nothing by themselves. The entries of this package itself begin with `artifact-retention-`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from prefect_artifact_retention.policies.formatting import printable

HOLD = "retention-hold"
HOLD_BY = "retention-hold-by"
HOLD_SINCE = "retention-hold-since"
HOLD_REASON = "retention-hold-reason"
HOLD_ENTRIES = (HOLD, HOLD_BY, HOLD_SINCE, HOLD_REASON)
TTL_DAYS = "retention-ttl-days"
MAX_TTL_DAYS = 36_525
"""A hundred years. A longer TTL counts as invalid, and so keeps its version."""

_IS_MEANT = re.compile(r"[^a-z0-9]*retention([^a-z0-9]|hold|ttl)", re.IGNORECASE | re.ASCII)
"""How names begin that are meant for this package, whatever their case and separators: `Retention-Hold`, `retention_ttl`."""

_DAYS = re.compile(r"[0-9]+(\.[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MAX_QUOTED_CHARS = 40
"""A longer value is cut off in messages."""


@dataclass(frozen=True, slots=True)
class Control:
    """The hold and the TTL of one version.

    Attributes:
        held: The reason for which a hold keeps the version, such as "held until 2026-12-31"; None without a hold in force.
        ttl: The time to live; None without a valid one.
        has_ttl: Whether there is a TTL, valid or not, misspelt or not; such a version takes no slot of a keep rule.
        unreadable: A message for each entry with an invalid value or an unknown name; each keeps the version.
    """

    held: str | None = None
    ttl: timedelta | None = None
    has_ttl: bool = False
    unreadable: tuple[str, ...] = ()


NO_CONTROL = Control()


def select_control(metadata: Mapping[str, str]) -> dict[str, str]:
    """Select the entries that are meant to control retention, misspelt ones included."""
    return {name: value for name, value in metadata.items() if _IS_MEANT.match(name)}


def read_control(metadata: Mapping[str, str], now: datetime) -> Control:
    """Read the hold and the TTL in the metadata of one version, as of `now`."""
    if not (metadata := select_control(metadata)):
        return NO_CONTROL
    unknown = sorted(metadata.keys() - {*HOLD_ENTRIES, TTL_DAYS})
    unreadable = [f"unknown metadata entry {_shown(name)} (known are {HOLD} and {TTL_DAYS})" for name in unknown]
    held, ttl = None, None
    if HOLD in metadata:
        try:
            is_held, until = read_hold(metadata[HOLD])
            if is_held and in_force(until, now):
                held = describe_hold(until, *(str(metadata.get(name, "")) for name in HOLD_ENTRIES[1:]))
        except ValueError:
            unreadable.append(f"unreadable {HOLD} {_shown(metadata[HOLD])}")
    if TTL_DAYS in metadata:
        try:
            ttl = _read_ttl(metadata[TTL_DAYS])
        except ValueError:
            unreadable.append(f"unreadable {TTL_DAYS} {_shown(metadata[TTL_DAYS])}")
    return Control(held, ttl, any("ttl" in name.lower() for name in metadata), tuple(unreadable))


def read_hold(value: object) -> tuple[bool, date | None]:
    """Read a `retention-hold`: whether it holds, and until which day; None is without an end.

    Raises:
        ValueError: It is neither true, false nor a date.
    """
    text = str(value).strip().lower()
    if text in {"true", "false"}:
        return text == "true", None
    if not _DATE.fullmatch(text):
        raise ValueError(text)
    return True, date.fromisoformat(text)


def in_force(until: date | None, now: datetime) -> bool:
    """Whether a hold until a day, which is included, still holds."""
    return until is None or now.astimezone(UTC).date() <= until


def describe_hold(until: date | None, by: str = "", since: str = "", reason: str = "") -> str:
    """Describe a hold as the reason of a verdict: held until 2030-12-31 by ada@laptop since 2026-11-28: for the auditors."""
    text = "held" + (f" until {until}" if until else "")
    text += (f" by {by}" if by else "") + (f" since {since[:10]}" if since else "")
    return printable(text + (f": {reason}" if reason else ""))


def _read_ttl(value: object) -> timedelta:
    text = str(value).strip()
    # A TTL of 0 could mean "at once" or, as everywhere else here, "off".
    if not _DAYS.fullmatch(text) or float(text) > MAX_TTL_DAYS or not (ttl := timedelta(days=float(text))):
        raise ValueError(text)
    return ttl


def _shown(value: object) -> str:
    text = repr(str(value))
    return text if len(text) <= _MAX_QUOTED_CHARS else text[:_MAX_QUOTED_CHARS] + "…"
