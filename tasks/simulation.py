"""Simulates policies: what they would leave day by day, added up by policy. Reads no server; `observation` does.

A rhythm continues as it was, or is given as a cron expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count as numbers
from itertools import cycle, islice, pairwise, takewhile
from types import MappingProxyType
from uuid import UUID

from cronsim import CronSim, CronSimError
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, Version
from prefect_artifact_retention.policies.control import TTL_DAYS
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.simulation import Course, Simulator
from prefect_artifact_retention.tasks.rendering import UNITS, size
from pydantic import BaseModel, Field

RHYTHMS: Mapping[str, str] = MappingProxyType({"hourly": "0 * * * *", "daily": "0 0 * * *", "weekly": "0 0 * * 1"})
"""What may be given in place of a cron expression."""

MAX_ARRIVALS = 100_000
"""Versions of a key in a simulation; with more, it takes minutes and gigabytes."""

YEAR = 365
"""Days."""

MIN_GAPS = 4
"""Gaps between versions that are a rhythm in themselves; with fewer, one odd gap makes a rhythm."""

THINNED = 2.0
"""How much longer the older half of the gaps may be on average than the newer one before it counts as thinned by a cleanup."""

MAX_SILENCE = 3.0
"""The silence, in the longest gaps of a key, after which nothing more is expected of it."""

STEADY_DAYS = 91
"""The days that are compared with as many before; with fewer, what grows by one version a month looks steady."""

STEADY = 0.01
"""The change in these days, as a share, up to which a policy is in a steady state; so it is if no key has gained two versions,
because the calendar alone makes a difference of one."""

MAX_SIZE = 10**12
"""The most bytes that a version is taken to have. With far more, sums have too many digits for a table."""

_SIZE = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?(B|{'|'.join(UNITS)})?", re.IGNORECASE)


class SimulatedPolicy(BaseModel):
    """What a policy would leave of its keys."""

    name: str = Field(description="The name of the policy.")
    sentence: str = Field(description="What it keeps.")
    keys: int = Field(default=0, description="Its keys.")
    versions_now: int = Field(default=0, description="The versions that they have now.")
    bytes_now: int = Field(default=0, description="The bytes of the data of these.")
    versions: list[int] = Field(description="The versions after the cleanup of each day, the first being today's.")
    bytes: list[int] = Field(description="The bytes of the data of these.")

    @property
    def versions_over_time(self) -> list[int]:
        """What is drawn of the versions: those there are now, before the first cleanup, and those after each later one."""
        return [self.versions_now, *self.versions[1:]]

    @property
    def bytes_over_time(self) -> list[int]:
        """What is drawn of the bytes of the data of these."""
        return [self.bytes_now, *self.bytes[1:]]

    def steady(self) -> tuple[int, int, int] | None:
        """Return the most versions and bytes of the last quarter, and how many versions more that is than in the one before.

        The difference is 0 in a steady state. None if too few days are simulated to know.
        """
        if len(self.versions) < 2 * STEADY_DAYS:
            return None
        most, before = max(self.versions[-STEADY_DAYS:]), max(self.versions[-2 * STEADY_DAYS : -STEADY_DAYS])
        change = most - before
        is_steady = abs(change) <= max(self.keys, STEADY * before)
        return most, max(self.bytes[-STEADY_DAYS:]), 0 if is_steady else change


class Simulation(BaseModel):
    """What policies would leave, day by day."""

    server: str = Field(description="The server that was observed; empty if the rhythm was given.")
    now: datetime = Field(description="When the simulation begins.")
    days: int = Field(description="How many days it is long.")
    rhythm: str = Field(description="How often versions are written.")
    policy_source: str = Field(description="Where the policies come from.")
    policies: list[SimulatedPolicy] = Field(description="The policies that have keys, in their order.")
    notes: list[str] = Field(default=[], description="What was not simulated, and what was assumed.")

    @property
    def milestones(self) -> list[int]:
        """The days of which the table has the numbers."""
        return sorted({day for day in (30, YEAR) if day < self.days} | {self.days})


@dataclass(frozen=True)
class Sample:
    """A key whose calendar is drawn: each of its versions, and the cleanup that deletes it."""

    key: str
    course: Course
    fates: Sequence[int]

    def left(self, simulator: Simulator) -> int:
        """Count the versions that are there in the end."""
        return self.fates.count(len(simulator.cleanups))


@dataclass
class Tally:
    """Adds up the keys of the policies.

    Attributes:
        simulator: Plays the keys.
        samples: The key with the most versions in the end, by the name of the policy.
    """

    simulator: Simulator
    policies: Sequence[RetentionPolicy]
    samples: dict[str, Sample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        days = len(self.simulator.cleanups)
        zeros = [0] * (days + 1)
        self._changes = {policy.name: (zeros.copy(), zeros.copy()) for policy in self.policies}
        self._reports = {
            policy.name: SimulatedPolicy(name=policy.name, sentence=policy.describe(), versions=[], bytes=[])
            for policy in self.policies
        }

    def add(self, key: str, course: Course) -> None:
        """Play a key."""
        name = course.policy.name
        report, (versions, amounts) = self._reports[name], self._changes[name]
        report.keys += 1
        report.versions_now += len(course.present)
        report.bytes_now += sum(version.size for version in course.present)
        fates = self.simulator.play(course)
        for version, begin, end in zip(course.versions, self.simulator.arrivals(course), fates, strict=True):
            if begin < end:
                versions[begin] += 1
                versions[end] -= 1
                amounts[begin] += version.size
                amounts[end] -= version.size
        sample = Sample(key, course, fates)
        if name not in self.samples or sample.left(self.simulator) > self.samples[name].left(self.simulator):
            self.samples[name] = sample

    def policies_with_keys(self) -> list[SimulatedPolicy]:
        """Return the result, in the order of the policies."""
        for name, report in self._reports.items():
            report.versions, report.bytes = (_sums(changes) for changes in self._changes[name])
        return [report for report in self._reports.values() if report.keys]


def _sums(changes: Sequence[int]) -> list[int]:
    total, sums = 0, []
    for change in changes[:-1]:
        total += change
        sums.append(total)
    return sums


def continue_rhythm(versions: Sequence[Version], begin: datetime, end: datetime) -> list[Version]:
    """Return the versions that would be written after `begin`, up to `end`, if a key goes on as it did.

    There are `MAX_ARRIVALS` + 1 at most. The gaps between its versions repeat themselves, and so do their sizes and TTLs. Gaps
    that a cleanup has widened do not count: as long as the older half of the gaps is on average much longer than the newer,
    it is left out. A key with a single version has no rhythm, and one that has been silent for long gets no more.
    """
    past = sorted((version for version in versions if version.created <= begin), key=lambda version: version.created)
    gaps = [later.created - earlier.created for earlier, later in pairwise(past)]
    while len(gaps) >= 2 * MIN_GAPS and _mean(gaps[: len(gaps) // 2]) > THINNED * _mean(gaps[len(gaps) // 2 :]):
        gaps = gaps[len(gaps) // 2 :]
    while len(gaps) >= 2 * MIN_GAPS and gaps[0] > THINNED * max(gaps[len(gaps) // 2 :]):
        # What is older is there for a hold, or as the oldest.
        gaps = gaps[1:]
    if not any(gaps) or begin - past[-1].created > MAX_SILENCE * max(gaps):
        return []
    models = past[-len(gaps) :]
    return list(islice(_arrivals(past[-1].created, begin, end, list(zip(gaps, models, strict=True))), MAX_ARRIVALS + 1))


def _mean(gaps: Sequence[timedelta]) -> timedelta:
    return sum(gaps, timedelta()) / len(gaps)


def _arrivals(
    newest: datetime, begin: datetime, end: datetime, models: Sequence[tuple[timedelta, Version]]
) -> Iterator[Version]:
    ids = (UUID(int=number) for number in numbers(1))
    for gap, model in cycle(models):
        newest += gap
        if newest > end:
            return
        if newest > begin:
            ttl = {name: text for name, text in model.metadata.items() if name == TTL_DAYS}
            yield model._replace(id=next(ids), created=newest, updated=newest, metadata=ttl)


def given_rhythm(rhythm: str, amount: int, begin: datetime, days: int) -> list[Version]:
    """Return the versions of a key that is written at a given rhythm, in UTC.

    Args:
        rhythm: One of `RHYTHMS`, or a cron expression.
        amount: The bytes of each version.
        begin: When the key is new.
        days: How long it is written.

    Raises:
        ConfigurationError: It is no rhythm, or one of too many versions.
    """
    try:
        moments = takewhile(lambda moment: moment <= begin + timedelta(days=days), CronSim(RHYTHMS.get(rhythm, rhythm), begin))
    except CronSimError as error:
        raise ConfigurationError(
            f"command line: --rhythm {rhythm!r} is none of {', '.join(RHYTHMS)}, and no cron expression: {error}"
        ) from None
    arrivals = [
        Version(UUID(int=number), "key", moment, moment, "markdown", amount)
        for number, moment in enumerate(islice(moments, MAX_ARRIVALS + 1), start=1)
    ]
    if len(arrivals) > MAX_ARRIVALS:
        raise ConfigurationError(
            f"command line: --rhythm {rhythm!r} is more than {MAX_ARRIVALS:,} versions in {days} days: give fewer --days"
        )
    return arrivals


def read_size(text: str) -> int:
    """Read an amount such as 20kB or 1.5 MB, as bytes.

    Raises:
        ConfigurationError: It is none, or more than `MAX_SIZE`.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ConfigurationError(f"command line: --size {text!r} is no amount of data, such as 300B, 20kB or 1.5MB")
    powers = {unit.lower(): power for power, unit in enumerate(UNITS, start=1)}
    amount = float(match[1]) * 1000.0 ** powers.get((match[2] or "b").lower(), 0)
    if amount > MAX_SIZE:
        raise ConfigurationError(f"command line: --size is more than {size(MAX_SIZE)}, which no version has")
    return round(amount)


def table(simulation: Simulation) -> Iterator[tuple[str, ...]]:
    """Return the rows of the table by policy, the head first: versions and bytes now, at each milestone, and once steady."""
    ahead = ["a year" if day == YEAR else count(day, "day") for day in simulation.milestones]
    yield "Policy", "Keys", "Now", *(f"In {when}" for when in ahead), "Steady state"
    for policy in simulation.policies:
        yield (
            printable(policy.name),
            f"{policy.keys:,}",
            _amount(policy.versions_now, policy.bytes_now),
            *(_amount(policy.versions[day], policy.bytes[day]) for day in simulation.milestones),
            _steady(policy),
        )


def _amount(versions: int, amount: int) -> str:
    return f"{versions:,} ({size(amount)})"


def _steady(policy: SimulatedPolicy) -> str:
    steady = policy.steady()
    if steady is None:
        return f"unknown before {2 * STEADY_DAYS} days"
    versions, amount, change = steady
    if not change:
        return _amount(versions, amount)
    return f"still {'growing' if change > 0 else 'shrinking'}: {change:+,} in {STEADY_DAYS} days"
