"""Expectation: how many stale versions of a policy a steady state explains, so that a run can refuse the others.

In a steady state, what is stale has become so since the last run that left nothing stale, and is about as much as comes in
that time, whatever its share of all versions: of a key that is written hourly under `keep_last = 10`, 24 of 34 go every night.
Two things are not expected:

- *Overdue* versions, which the same policy would have deleted at the last run already. There are none, unless the policy has
  become stricter, or the key has come to it from another one.
- An *excess*: more than on the busiest day on record for each day since. A producer out of control pushes out what was kept of
  its key. If that run was not long ago, keys that are new since then do not count, for nothing of them was ever kept, nor does
  a whole key that has become idle.

Without a past run of the policy, nothing is expected. Nor is anything if there are days on end, since that run, on which no
version at all was created and no run was: either the clock is wrong, or everything stood still. What is written under a wrong
clock does not end them, for it does not fill the days that never were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from prefect_artifact_retention.policies.evaluation import ONE_DAY, Judgement, judge
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.policies.model import RetentionPolicy, Versions

UNKEYED = "~"
"""The place of the artifacts without a key in the order in which keys are planned: behind all characters of keys."""

MIN_SILENCE = timedelta(days=2)
"""The whole days without a version from which the clock is doubted. With less, a quiet workspace is refused sooner; with more,
a mistyped policy may empty keys that are as old."""


class Settled(NamedTuple):
    """What a run that left nothing stale of a policy knew of it.

    Attributes:
        busiest_day: The most versions that were created on one day since the run before; of all versions, if there was none.
        waiting: The versions that only their unfinished runs kept, or that could not be judged; all may become stale at once.
    """

    busiest_day: int
    waiting: int


class PastRun(NamedTuple):
    """What is on record of a run.

    Attributes:
        when: When it was, by the server's clock.
        settled: The policies of which it left nothing stale, by name.
        begin: The first key that it planned, if it did not get to all of them.
        end: The key before which it stopped; empty if it got to all of them. Before `begin`, if it went on with the first key.
    """

    when: datetime
    settled: Mapping[str, Settled]
    begin: str = ""
    end: str = ""

    def covers(self, key: str | None) -> bool:
        """Whether the run got to a key, or to the artifacts without one."""
        place = UNKEYED if key is None else key
        if self.begin < self.end:
            return self.begin <= place < self.end
        return not self.end or place >= self.begin or place < self.end


class _Tally:
    """The versions of one policy, compared with its past runs."""

    def __init__(self, name: str, now: datetime, past: Sequence[PastRun]) -> None:
        mine = [each for each in past if name in each.settled and each.when <= now]
        self.runs = sorted(mine, key=lambda each: each.when, reverse=True)
        by_day: Counter[date] = Counter()
        for each in mine:
            by_day[each.when.date()] += each.settled[name].busiest_day
        self.name = name
        self.waiting_then: dict[datetime, int] = {}
        self.busiest_day = max(by_day.values(), default=0)
        self.longest_pause = max((later.when - earlier.when for later, earlier in pairwise(self.runs)), default=timedelta())
        self.days_since: Counter[int] = Counter()
        self.days_before: Counter[int] = Counter()
        self.planned = self.overdue = self.fresh = self.waiting = self.unreached = 0

    @property
    def last(self) -> datetime | None:
        """The run to count from; if it was not the same one for all keys, the earliest."""
        return min(self.waiting_then, default=None)

    @property
    def most_a_day(self) -> int:
        """The versions of the busiest day, on record or still there."""
        return max(self.busiest_day, *self.days_before.values(), 0)

    @property
    def long(self) -> timedelta:
        """A time that is longer than what passes between two runs."""
        return max(MIN_SILENCE, 2 * self.longest_pause)

    @property
    def days(self) -> set[int]:
        """The days with versions, by their number before the present."""
        return {*self.days_since, *self.days_before}

    def add(self, policy: RetentionPolicy, judgement: Judgement, now: datetime) -> None:
        """Add the verdicts on a key, or on some of the artifacts without one."""
        versions, stale = judgement.versions, judgement.stale
        run = next((each for each in self.runs if each.covers(versions.key)), None)
        if run:
            self.waiting_then[run.when] = run.settled[self.name].waiting
        begin, end = versions.first_until(now), len(versions) if run is None else versions.first_until(run.when)
        self.days_since.update(_by_day(versions, begin, end, now))
        self.days_before.update(_by_day(versions, max(begin, end), len(versions), now))
        self.waiting += judgement.waiting()
        self.planned += len(stale)
        if run is None:
            self.unreached += len(stale)
            return
        if not stale:
            return
        overdue = 0
        if old := {versions.ids[index] for index in stale if index >= end}:
            before = versions.from_index(end)
            overdue = sum(before.ids[index] in old for index in judge(before, policy, now=run.when).stale)
        self.overdue += overdue
        is_new = end == len(versions) and versions.key is not None
        # Since a run of long ago, a key may have become large, and a mistyped policy would empty it.
        if not (is_new or judgement.is_idle) or now - run.when > self.long:
            self.fresh += len(stale) - overdue


def _by_day(versions: Versions, begin: int, end: int, now: datetime) -> Counter[int]:
    """Count some versions by how many whole days ago they were created; midnight would divide what comes from run to run."""
    found: Counter[int] = Counter()
    while begin < end:
        day = (now - versions.created[begin]) // ONE_DAY
        following = min(end, versions.first_until(now - (day + 1) * ONE_DAY))
        found[day] = following - begin
        begin = following
    return found


class Expectations:
    """The stale versions of each policy of a run, compared with what is expected."""

    def __init__(self, now: datetime, past: Sequence[PastRun] = ()) -> None:
        self.now = now
        self.past = past
        self._tallies: dict[str, _Tally] = {}

    def add(self, policy: RetentionPolicy, judgement: Judgement) -> None:
        """Add the verdicts on a key, or on some of the artifacts without one."""
        self._tally(policy.name).add(policy, judgement, self.now)

    def add_unjudged(self, policy: RetentionPolicy, number: int) -> None:
        """Add versions of a key that could not be judged in this run, all of which may be stale in the next one."""
        self._tally(policy.name).waiting += number

    def unexpected(self, name: str) -> int:
        """Return how many of the stale versions of a policy are not expected."""
        tally = self._tally(name)
        if tally.last is None or self._is_silent(tally):
            return tally.planned
        return tally.unreached + self._overdue(tally) + self._excess(tally)

    def settled(self, name: str) -> Settled:
        """Return what is to be recorded of a policy once nothing of it is stale any more."""
        tally = self._tally(name)
        return Settled(max(tally.days_since.values(), default=0), tally.waiting)

    def explain(self, name: str) -> str:
        """Describe why stale versions of a policy are not expected."""
        tally = self._tally(name)
        if tally.last is None:
            return "no earlier run has cleaned up by this policy"
        when = f"{tally.last:%Y-%m-%d %H:%M} UTC"
        if self._is_silent(tally):
            quiet = count(self._silence(tally).days, "day")
            return f"no version at all was created for {quiet} since {when} by the server's clock, which may be wrong"
        causes = []
        if overdue := self._overdue(tally):
            causes.append(
                f"{overdue} should have gone by the run of {when} already, so the policy has become stricter, was given other "
                "keys, or could not be applied to some of them then"
            )
        if excess := self._excess(tally):
            causes.append(f"{excess} are more than has come on the busiest days, {tally.most_a_day}, since the run of {when}")
        if tally.unreached:
            causes.append(f"{tally.unreached} are of keys that no earlier run has reached")
        return " and ".join(causes)

    def _is_silent(self, tally: _Tally) -> bool:
        return self._silence(tally) > tally.long

    def _silence(self, tally: _Tally) -> timedelta:
        """Return the most whole days on end, since the last run that counts, without any version and without any run."""
        last = (self.now - (tally.last or self.now)) // ONE_DAY
        days = {(self.now - each.when) // ONE_DAY for each in self.past}.union(*(each.days for each in self._tallies.values()))
        signs = sorted({0, last, *(day for day in days if 0 < day < last)})
        return max((later - earlier - 1 for earlier, later in pairwise(signs)), default=0) * ONE_DAY

    @staticmethod
    def _overdue(tally: _Tally) -> int:
        return max(0, tally.overdue - sum(tally.waiting_then.values()))

    def _excess(self, tally: _Tally) -> int:
        # Each day begun: a burst may be on both of two days that a night touches.
        days = (self.now.date() - (tally.last or self.now).date()).days + 1
        return max(0, tally.fresh - days * tally.most_a_day)

    def _tally(self, name: str) -> _Tally:
        if name not in self._tallies:
            self._tallies[name] = _Tally(name, self.now, self.past)
        return self._tallies[name]
