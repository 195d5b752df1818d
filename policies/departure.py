"""Departure: when a version that is kept can go, or what that takes. Found by asking the evaluation, not by rules of its own.

If nothing is written, a version that is stale stays so, because ages only grow and holds only end. So the first moment at
which it is stale can be searched for among those at which an age comes to a limit or a hold ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect_artifact_retention.policies.control import HOLD, read_control, read_hold
from prefect_artifact_retention.policies.evaluation import ONE_DAY, Judgement, judge
from prefect_artifact_retention.policies.formatting import days
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.policies.model import RetentionPolicy, Version, Versions
from prefect_artifact_retention.policies.periods import CALENDAR
from prefect_artifact_retention.policies.simulation import age_limits

TICK = timedelta(microseconds=1)
"""The least difference of two dates: limits are inclusive, and are over a tick later."""

MAX_EVALUATED = 2_000_000
"""Versions that are evaluated for the dates of a key, at most; beyond it, dates are rounded up. With more, an explanation of a
key with thousands of versions takes longer."""

CONTROLLED_WEIGHT = 15
"""As how many more versions one with metadata counts there: its hold and TTL are read anew for every date. With less, an
explanation of a thousand of them takes longer."""

SLOTS = ("keep_last", *(period.rule for period in CALENDAR))
"""The rules that keep a version until as much has been written as they keep."""

ENDED_BY_WRITING = frozenset({*SLOTS, "grace_days"})
"""The rules that may keep a version no more when others are written, at any time; they give no date before which it stays."""

AT_ONCE = "now"
A_NEWER_ONE = "a newer version exists"
NEVER = {
    "keep_all": "never: keep all",
    "keep_oldest": "never: the oldest version stays",
    "result": "never: the result of a run",
}
WHEN = {
    "hold": "it is released",
    "unreadable": "its metadata can be read as meant",
    "running": "its run has finished",
    "dangling": "its collection names a latest version that exists",
    "mixed_types": "its key has one policy",
    "future": "its date has come",
}


class Departure(NamedTuple):
    """When a version can go.

    Attributes:
        at: The earliest date on which it can go if nothing is written; None if it can now, or then stays for good.
        needs: What it takes for it to go where there is no such date; `AT_ONCE` if it is stale.
    """

    at: datetime | None
    needs: str = ""


@dataclass(frozen=True)
class _Key:
    """A key as it is judged at any time."""

    versions: Versions
    policy: RetentionPolicy
    latest_id: UUID | None
    running: Collection[UUID]
    conflict: str
    hold: Hold | None

    def judge(self, now: datetime) -> Judgement:
        return judge(
            self.versions,
            self.policy,
            now=now,
            latest_id=self.latest_id,
            running=self.running,
            conflict=self.conflict,
            held=self.hold.describe() if self.hold and self.hold.is_in_force(now) else "",
        )

    def moments(self, now: datetime) -> list[datetime]:
        """Return the moments after `now` at which a verdict may change, in order; some of them, if there are too many."""
        found = sorted({moment for moment in self._moments() if moment > now})
        weight = len(self.versions) + CONTROLLED_WEIGHT * len(self.versions.controlled)
        step = max(1, -(-len(found) * weight // MAX_EVALUATED))
        return found[step - 1 : -1 : step] + found[-1:]

    def _moments(self) -> Iterator[datetime]:
        limits = age_limits(self.policy)
        yield from self.versions.created
        yield from (moment + limit + TICK for limit in limits for moment in {*self.versions.created, *self.versions.updated})
        for index in self.versions.controlled:
            metadata, created = self.versions.metadata(index), self.versions.created[index]
            if ttl := read_control(metadata, created).ttl:
                yield created + ttl + TICK
            try:
                yield from _end(read_hold(metadata.get(HOLD, "false"))[1])
            except ValueError:
                # It keeps its version without an end.
                continue
        yield from _end(self.hold.until if self.hold else None)


def _end(until: date | None) -> Iterator[datetime]:
    if until and until < date.max:
        yield datetime.combine(until + ONE_DAY, time(), UTC)


def departures(  # noqa: PLR0913 - what a verdict depends on
    versions: Iterable[Version],
    policy: RetentionPolicy,
    *,
    now: datetime,
    latest_id: UUID | None = None,
    running: Collection[UUID] = frozenset(),
    conflict: str = "",
    hold: Hold | None = None,
) -> dict[UUID, Departure]:
    """Return when each version of a key can go; one that is stale can now, and needs nothing but a cleanup.

    Args:
        versions: As for `evaluate`, and so are the others.
        policy: The policy of the key.
        now: The server's clock.
        latest_id: The `latest_id` of the collection.
        running: The runs that are not in a terminal state.
        conflict: Why it is not certain that this is the policy of the key; empty if it is.
        hold: The hold on the whole key, if any.
    """
    key = _Key(Versions.of(versions), policy, latest_id, running, conflict, hold)
    moments = [now, *key.moments(now)]
    end = key.judge(moments[-1])
    ids = key.versions.ids
    dates = _search(moments, end.stale, lambda now, _: key.judge(now).stale)
    found = {ids[index]: Departure(at) if at > now else Departure(None, AT_ONCE) for index, at in dates}
    kept = [*end.kept()]
    rules = {index: {reason.rule for reason in end.why(index)} for index in kept}

    def settled(now: datetime, some: Sequence[int]) -> list[int]:
        judgement = key.judge(now)
        return [index for index in some if {reason.rule for reason in judgement.why(index)} - ENDED_BY_WRITING <= rules[index]]

    needs = _Needs(key, now)
    for index, since in _search(moments, kept, settled):
        later = f", not before {since:%Y-%m-%d}" if since > now else ""
        text = needs.describe(index, rules[index])
        found[ids[index]] = Departure(None, text if text.startswith("never") else text + later)
    return found


def _search(
    moments: Sequence[datetime], indexes: Sequence[int], happened: Callable[[datetime, Sequence[int]], Iterable[int]]
) -> Iterator[tuple[int, datetime]]:
    """Find for each of some versions the first moment at which something has happened to it; by the last one it has to all."""
    open_ranges = [(0, len(moments), indexes)]
    while open_ranges:
        begin, end, some = open_ranges.pop()
        if not some:
            continue
        if end - begin == 1:
            yield from ((index, moments[begin]) for index in some)
            continue
        middle = (begin + end) // 2
        by_then = {*happened(moments[middle - 1], some)}
        open_ranges.append((begin, middle, [index for index in some if index in by_then]))
        open_ranges.append((middle, end, [index for index in some if index not in by_then]))


class _Needs:
    """What it takes for a version to go that stays as long as nothing is written."""

    def __init__(self, key: _Key, now: datetime) -> None:
        self._key = key
        self._now = now
        self._ranks: dict[str, dict[UUID, int]] = {}

    def describe(self, index: int, rules: Collection[str]) -> str:
        if never := next((text for rule, text in NEVER.items() if rule in rules), ""):
            return never
        parts = [self._written(index, rule) for rule in SLOTS if rule in rules]
        if "grace_days" in rules:
            # Its grace begins with the next version, which is one of those that others wait for.
            grace = f"{days(self._key.policy.grace_days)} have passed since a newer version"
            parts = [grace, *(part for part in parts if part != A_NEWER_ONE)]
        elif not parts and "latest" in rules:
            parts = [A_NEWER_ONE]
        parts += [text for rule, text in WHEN.items() if rule in rules]
        return "when " + (", and " if any(" or " in part for part in parts) else " and ").join(parts)

    def _written(self, index: int, rule: str) -> str:
        """Describe how much must be written before a rule of slots keeps a version no more."""
        limit = getattr(self._key.policy, rule)
        missing = max(1, limit + 2 - self._rank(rule).get(self._key.versions.ids[index], limit + 1))
        if rule == "keep_last":
            return A_NEWER_ONE if missing == 1 else f"{missing} newer versions exist"
        period = next(each for each in CALENDAR if each.rule == rule)
        zone = ZoneInfo(self._key.policy.timezone)
        name = period.name(self._key.versions.created[index].astimezone(zone))
        text = f"a newer {period.noun} has one" if missing == 1 else f"{missing} newer {period.noun}s have one"
        is_open = name == period.name(self._now.astimezone(zone))
        return f"this {period.noun} has a newer one or {text}" if is_open else text

    def _rank(self, rule: str) -> dict[UUID, int]:
        """Return the slots of a rule, the first being 1, once a newer version is written in a period of its own."""
        if rule not in self._ranks:
            versions, policy = self._key.versions, self._key.policy
            period = next((each.days for each in CALENDAR if each.rule == rule), 0.0)
            written = max(versions.created) + 2 * period * ONE_DAY + TICK
            newest = Version(UUID(int=2**128 - 1), versions.key, written, written)
            alone = RetentionPolicy.model_validate({"name": rule, rule: getattr(policy, rule), "timezone": policy.timezone})
            judgement = judge([newest, *versions], alone, now=written, latest_id=newest.id)
            ranked = [each for each in judgement if rule in each.rules]
            self._ranks[rule] = {each.version.id: rank for rank, each in enumerate(ranked, start=1)}
        return self._ranks[rule]


def describe(departure: Departure) -> str:
    """Describe a departure in a few words."""
    return f"{departure.at:%Y-%m-%d %H:%M}" if departure.at else departure.needs
