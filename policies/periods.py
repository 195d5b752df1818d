"""The calendar periods of the rules keep_hourly to keep_yearly.

A period is identified by the local date and time in the policy's time zone, so a day lasts 23 to 25 hours where clocks change.
An hour is a wall-clock hour with its UTC offset: the hour that is repeated at the end of daylight saving time counts twice.
Weeks are ISO 8601 weeks, so 2026-W53 ends on 2027-01-03.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple


class Period(NamedTuple):
    """One calendar rule.

    Attributes:
        rule: The field of the policy, such as `keep_daily`.
        word: The adjective in a reason, such as "daily".
        noun: The noun in a policy's description, such as "day".
        days: How long it lasts, on average.
        name: Names the period of a local time; two times are in the same period if the names are equal.
    """

    rule: str
    word: str
    noun: str
    days: float
    name: Callable[[datetime], str]

    def describe(self, number: int) -> str:
        """Describe what a rule of this many periods keeps."""
        if number == 1:
            return f"the newest of the last {self.noun} that has any"
        return f"the newest of each of the last {number} {self.noun}s that have any"


def _iso_week(local: datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year:04d}-W{week:02d}"


def _hour(local: datetime) -> str:
    return f"{local:%Y-%m-%d %H:00%z}"


CALENDAR = (
    Period("keep_hourly", "hourly", "hour", 1 / 24, _hour),
    Period("keep_daily", "daily", "day", 1, lambda local: f"{local:%Y-%m-%d}"),
    Period("keep_weekly", "weekly", "week", 7, _iso_week),
    Period("keep_monthly", "monthly", "month", 365.25 / 12, lambda local: f"{local:%Y-%m}"),
    Period("keep_yearly", "yearly", "year", 365.25, lambda local: f"{local:%Y}"),
)
