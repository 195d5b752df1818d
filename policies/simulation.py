"""Simulation: which versions of a key a cleanup every day would leave, by the evaluation of real cleanups.

What a key has after a cleanup is what `judge` keeps of what it had after the one before, and of what was written since. A
simulation plays that day by day. Runs that have not finished are taken to finish before the first cleanup.

Whether a version goes on a day depends on its date only as far as a rule can tell: on its calendar periods, and on the cleanup
at which it comes to each age that a policy names. Keys whose versions are alike in that (most keys that are written at the
same rhythm are) have the same fate, and are played once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect_artifact_retention.policies.control import read_control, select_control
from prefect_artifact_retention.policies.evaluation import ONE_DAY, judge
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.policies.model import RetentionPolicy, Version
from prefect_artifact_retention.policies.periods import CALENDAR

AGES = ("keep_within_days", "grace_days", "expire_after_days", "drop_idle_keys_after_days")
"""The rules of a policy that compare an age with a limit."""


def age_limits(policy: RetentionPolicy) -> list[timedelta]:
    """Return the ages that a policy names."""
    return [limit * ONE_DAY for rule in AGES if (limit := getattr(policy, rule))]


@dataclass(frozen=True)
class Course:
    """The versions that a key has, and those that will be written.

    Attributes:
        policy: The policy of the key.
        present: The versions that it has at the first cleanup.
        arrivals: The versions that will be written after it, the oldest first.
        latest_id: The `latest_id` of its collection; None for the newest version.
        hold: The hold on the key, if any.
        conflict: Why the key has no one policy, so that nothing of it goes; mostly empty.
    """

    policy: RetentionPolicy
    present: Sequence[Version]
    arrivals: Sequence[Version]
    latest_id: UUID | None = None
    hold: Hold | None = None
    conflict: str = ""

    @cached_property
    def versions(self) -> Sequence[Version]:
        """All versions, the oldest first, those to come behind those that are there."""
        return [*sorted(self.present, key=lambda version: (version.created, version.id)), *self.arrivals]


class Simulator:
    """Plays a cleanup every 24 hours.

    Attributes:
        cleanups: The time of each cleanup; the first is at the begin of the simulation.
    """

    def __init__(self, begin: datetime, days: int) -> None:
        """Take the time of the first cleanup, and how many days the last one is after it."""
        self.cleanups = [begin + day * ONE_DAY for day in range(days + 1)]
        self._fates: dict[bytes, array[int]] = {}

    def play(self, course: Course) -> array[int]:
        """Return by which cleanup, by its index, each of the versions of a course is deleted.

        It is the number of cleanups for a version that none of them deletes.
        """
        alike = self._signature(course)
        if alike not in self._fates:
            self._fates[alike] = self._play(course)
        return self._fates[alike]

    def _play(self, course: Course) -> array[int]:
        versions = course.versions
        fates = array("l", [len(self.cleanups)]) * len(versions)
        index_of = {version.id: index for index, version in enumerate(versions)}
        created = [version.created for version in course.arrivals]
        there, arrived = [*range(len(course.present))], 0
        for cleanup, now in enumerate(() if course.policy.keep_all else self.cleanups):
            before, arrived = arrived, bisect_right(created, now)
            there += range(len(course.present) + before, len(course.present) + arrived)
            judgement = judge(
                [versions[index] for index in there],
                course.policy,
                now=now,
                latest_id=course.arrivals[arrived - 1].id if arrived else course.latest_id,
                conflict=course.conflict,
                held=course.hold.describe() if course.hold and course.hold.is_in_force(now) else "",
            )
            for stale in judgement.stale:
                fates[index_of[judgement.versions.ids[stale]]] = cleanup
            there = [index for index in there if fates[index] > cleanup]
        return fates

    def _signature(self, course: Course) -> bytes:
        """Return what the fates of the versions depend on. Courses with the same signature have the same fates."""
        policy, versions = course.policy, course.versions
        limits = age_limits(policy)
        zone = ZoneInfo(policy.timezone) if any(getattr(policy, period.rule) for period in CALENDAR) else None
        latest = [index for index, version in enumerate(versions) if version.id == course.latest_id]
        numbers = array("q", [len(course.present), *latest])
        for version in versions:
            numbers.append(self._first(version.created))
            numbers.extend([self._first_beyond(version.created + limit) for limit in limits])
            if zone:
                numbers.extend(_periods(version.created.astimezone(zone), hours=policy.keep_hourly > 0))
        idle = policy.drop_idle_keys_after_days * ONE_DAY
        numbers.extend([self._first_beyond(versions[index].updated + idle) for index in latest if idle])
        controls = [(index, *self._control(version)) for index, version in enumerate(versions) if version.metadata]
        texts = (policy.model_dump_json(), course.hold, course.conflict, controls)
        return numbers.tobytes() + repr(texts).encode()

    def _control(self, version: Version) -> tuple[int, object]:
        ttl = read_control(version.metadata, version.created).ttl
        entries = select_control(version.metadata)
        return (0 if ttl is None else self._first_beyond(version.created + ttl)), sorted(entries.items())

    def _first(self, moment: datetime) -> int:
        """Return the first cleanup that is not before a moment."""
        return max(0, -((self.cleanups[0] - moment) // ONE_DAY))

    def _first_beyond(self, moment: datetime) -> int:
        """Return the first cleanup that is after a moment."""
        return max(0, (moment - self.cleanups[0]) // ONE_DAY + 1)

    def arrivals(self, course: Course) -> list[int]:
        """Return for each of the versions of a course the first cleanup that sees it."""
        return [0] * len(course.present) + [self._first(version.created) for version in course.arrivals]


def _periods(local: datetime, *, hours: bool) -> Iterator[int]:
    """Name the calendar periods of a local time: all but an hour are known by the day."""
    yield local.toordinal()
    if hours:
        yield local.hour
        yield (local.utcoffset() or timedelta()) // timedelta(minutes=1)
