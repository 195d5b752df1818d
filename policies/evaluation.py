"""The planner: which versions of one collection stay, which go, and why. Pure; the clock is an argument.

Who decides, first that applies: `keep_all`, `expire_after_days`, the version's own TTL, the keep rules. The keep rules are a
union, as in restic's `ApplyPolicy`: a version goes only if none of them keeps it. Protections come last, beat everything and
change no slot of a rule: the latest version, a hold, a run that has not finished, a version newer than `now`, and what nobody
published: Prefect's server keeps the result of a run in an artifact without key and type (`Artifact.from_result` in its
`server/schemas/core.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, overload
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect_artifact_retention.policies.control import read_control
from prefect_artifact_retention.policies.model import RESULT, RetentionPolicy, Verdict, Version, Versions
from prefect_artifact_retention.policies.periods import CALENDAR, Period
from prefect_artifact_retention.policies.words import count, days

ONE_DAY = timedelta(days=1)
ONE_HOUR = timedelta(hours=1)
REMEMBERED = 10_000
"""Words that are made once and serve again."""


class Reason(NamedTuple):
    """Why a version stays or goes: the rule's name, and the words that a person reads."""

    rule: str
    words: str


Decision = tuple[bool, tuple[Reason, ...]]
"""Whether a version stays, and why."""


def evaluate(
    versions: Iterable[Version],
    policy: RetentionPolicy,
    *,
    now: datetime,
    latest_id: UUID | None = None,
    running: Collection[UUID] = frozenset(),
) -> tuple[Verdict, ...]:
    """Judge all versions of one collection, or any number of artifacts without a key.

    Args:
        versions: The versions of one key, complete, in any order; or artifacts whose key is None.
        policy: The policy of that key.
        now: The server's clock.
        latest_id: The version that the collection names as its latest. None protects the newest version of a key.
        running: Ids of the flow runs and task runs that are not in a terminal state.

    Returns:
        One verdict per version, the latest first, then by (created, id) descending.

    Raises:
        ValueError: The versions are of more than one key.
    """
    return tuple(judge(versions, policy, now=now, latest_id=latest_id, running=running))


class Judgement(Sequence[Verdict]):
    """The verdicts of `evaluate`, each made when it is looked at: of a million, most are only counted.

    Attributes:
        versions: The versions, the newest first.
        condemned: The places among them of those that go, in the order of the verdicts.
    """

    __slots__ = ("_decisions", "_order", "_rest", "condemned", "versions")

    def __init__(self, case: _Case, decisions: Mapping[int, Decision], rest: _Rest) -> None:
        """Take the decisions on single versions, in the order of the verdicts, and the one on all others."""
        self.versions = case.versions
        self._order = case.order
        self._decisions = decisions
        self._rest = rest
        if rest.stays:
            self.condemned = [place for place, (stays, _reasons) in decisions.items() if not stays]
        else:
            kept = {place for place, (stays, _reasons) in decisions.items() if stays}
            self.condemned = [place for place in self._order if place not in kept]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, rank: int) -> Verdict: ...

    @overload
    def __getitem__(self, rank: slice) -> list[Verdict]: ...

    def __getitem__(self, rank: int | slice) -> Verdict | list[Verdict]:
        if isinstance(rank, slice):
            return [self._verdict(place) for place in self._order[rank]]
        return self._verdict(self._order[rank])

    def _verdict(self, place: int) -> Verdict:
        keep, reasons = self._decisions.get(place) or self._rest.decide(place)
        words, rules = tuple(reason.words for reason in reasons), tuple(reason.rule for reason in reasons)
        return Verdict(self.versions[place], keep, words, rules)

    def condemned_runs(self) -> tuple[set[UUID], set[UUID]]:
        """The flow runs and the task runs that wrote those that go."""
        flow_runs, task_runs = self.versions.flow_run_ids, self.versions.task_run_ids
        return (
            {run_id for place in self.condemned if (run_id := flow_runs[place])},
            {run_id for place in self.condemned if (run_id := task_runs[place])},
        )

    def kept(self) -> Iterator[int]:
        """The places of those that stay, in the order of the verdicts."""
        condemned = set(self.condemned)
        return (place for place in self._order if place not in condemned)

    @property
    def is_dangling(self) -> bool:
        """Whether the collection names a latest version that is not among them; all stay then."""
        return self._rest.rule == "dangling"

    def rules(self, *, keep: bool) -> Counter[str]:
        """How many of those that stay, or of those that go, each rule has kept or condemned."""
        rules = Counter(reason.rule for stays, reasons in self._decisions.values() if stays == keep for reason in reasons)
        if self._rest.stays == keep:
            expired = len(self) - self._rest.unexpired - sum(place >= self._rest.unexpired for place in self._decisions)
            rules["expire_after_days"] += expired
            rules[self._rest.rule] += len(self) - len(self._decisions) - expired
        return +rules


class _Rest(NamedTuple):
    """The decision on all versions of a key of which none is made by itself.

    Attributes:
        stays: Whether they stay.
        rule: The rule behind that, for the newer ones.
        unexpired: How many are newer; the others go because of `expire_after_days`.
        decide: Gives the reasons in words.
    """

    stays: bool
    rule: str
    unexpired: int
    decide: Callable[[int], Decision]


def judge(
    versions: Iterable[Version],
    policy: RetentionPolicy,
    *,
    now: datetime,
    latest_id: UUID | None = None,
    running: Collection[UUID] = frozenset(),
) -> Judgement:
    """Do what `evaluate` does, for those that count more verdicts than they read."""
    case = _Case(Versions.of(versions), policy, now, latest_id, running)
    if case.latest is None and case.versions.key is not None and case.versions:
        return _alike(case, Reason("dangling", "the collection's latest_id names no version that was read"), stays=True)
    protections = case.protections()
    if idle := case.idle(protections):
        return _alike(case, idle, stays=False)
    claims = case.claims()
    single = {*claims, *case.controls, *protections}
    decisions: dict[int, Decision] = {}
    for place in case.order:
        if place not in single:
            continue
        keep, reasons = case.decide(place, claims.get(place, ()))
        if place in protections:
            protecting = tuple(protections[place])
            keep, reasons = True, (*reasons, *protecting) if keep else protecting
        decisions[place] = keep, reasons
    rule = "keep_all" if policy.keep_all else "unclaimed"
    return Judgement(case, decisions, _Rest(policy.keep_all, rule, case.unexpired, case.decide))


def _alike(case: _Case, reason: Reason, *, stays: bool) -> Judgement:
    """Decide alike on all versions of a key."""
    return Judgement(case, {}, _Rest(stays, reason.rule, len(case.versions), lambda _place: (stays, (reason,))))


class _Case:
    """One collection and its policy, with what is derived from them once. A version is named by its place, the newest is 0.

    Attributes:
        latest: The place of the latest version; None if there is none.
        order: All places, the latest's first, even where others are newer by `created`.
        future: How many were created after `now`; they are the first.
        unexpired: How many `expire_after_days` does not condemn; they are the first, too.
        controls: What the metadata of those that have any asks for.
    """

    def __init__(
        self,
        versions: Versions,
        policy: RetentionPolicy,
        now: datetime,
        latest_id: UUID | None,
        running: Collection[UUID],
    ) -> None:
        self.versions = versions
        self.policy = policy
        self.now = now
        self.running = running
        self.created = versions.created
        self.latest = self._find(latest_id)
        self.order: Sequence[int] = range(len(versions))
        if self.latest:
            self.order = [self.latest, *(place for place in self.order if place != self.latest)]
        self.future = _first(self.created, lambda moment: moment <= now)
        limit = policy.expire_after_days
        self.unexpired = self._number_within(limit) if limit else len(versions)
        self.controls = {place: read_control(versions.metadata(place), now) for place in versions.controlled}

    def _find(self, latest_id: UUID | None) -> int | None:
        if self.versions.key is None or not self.versions:
            return None
        if latest_id is None:
            return 0
        return self.versions.ids.index(latest_id) if latest_id in self.versions.ids else None

    def _number_within(self, limit: float) -> int:
        """How many are at most so many days old; they are the first."""
        since = self.now - limit * ONE_DAY
        return _first(self.created, lambda moment: moment < since)

    def _age(self, place: int) -> timedelta:
        return self.now - self.created[place]

    def _superseded_for(self, place: int) -> timedelta | None:
        """The time since the next newer version was created; None while nothing supersedes it."""
        if place <= self.future or place == self.latest or self.versions.key is None:
            return None
        return self._age(place - 1)

    def decide(self, place: int, claims: Sequence[Reason] = ()) -> Decision:
        """Apply the first of keep_all, the hard limit, the version's own TTL and the keep rules that has a say."""
        if self.policy.keep_all:
            return True, (Reason("keep_all", "keep all"),)
        if place >= self.unexpired:
            limit = days(self.policy.expire_after_days)
            return False, (Reason("expire_after_days", f"{_in_words(self._age(place))} old, expires after {limit}"),)
        if (control := self.controls.get(place)) and control.ttl is not None:
            lives = self._age(place) <= control.ttl
            words = f"its own TTL of {days(control.ttl / ONE_DAY)}"
            return lives, (Reason("ttl", f"within {words}" if lives else f"{words} is over"),)
        if claims:
            return True, tuple(claims)
        superseded_for = self._superseded_for(place)
        if superseded_for is None:
            return False, (Reason("unclaimed", f"{_in_words(self._age(place))} old, outside every keep rule"),)
        return False, (Reason("unclaimed", f"superseded {_in_words(superseded_for)} ago, outside every keep rule"),)

    def protections(self) -> Mapping[int, list[Reason]]:
        """What keeps versions whatever else is decided."""
        found: defaultdict[int, list[Reason]] = defaultdict(list)
        if self.latest is not None:
            found[self.latest].append(LATEST)
        for place, control in self.controls.items():
            if control.held:
                found[place].append(Reason("hold", control.held))
            for problem in control.unreadable:
                found[place].append(Reason("unreadable", problem))
        for ids, what in ((self.versions.flow_run_ids, "flow run"), (self.versions.task_run_ids, "task run")):
            for place, run_id in enumerate(ids if self.running else ()):
                if run_id in self.running:
                    found[place].append(Reason("running", f"its {what} has not finished"))
        for place in range(self.future):
            found[place].append(Reason("future", "created after this run began"))
        for place in self._results():
            found[place].append(Reason("result", "Prefect keeps the result of a run in it"))
        return found

    def _results(self) -> list[int]:
        if self.versions.key is not None:
            return []
        return [place for place, kind in enumerate(self.versions.types) if kind in {None, RESULT}]

    def idle(self, protections: Mapping[int, Sequence[Reason]]) -> Reason | None:
        """Why the whole key goes, if it has gone idle and nothing in it is held, running, future or within its TTL."""
        limit = self.policy.drop_idle_keys_after_days
        if not limit or not self.versions or self._age(0) <= limit * ONE_DAY:
            return None
        lives = any(control.ttl is not None and self._age(place) <= control.ttl for place, control in self.controls.items())
        if lives or any(reason is not LATEST for reasons in protections.values() for reason in reasons):
            return None
        words = f"idle key: its newest version is {_in_words(self._age(0))} old, dropped after {days(limit)}"
        return Reason("drop_idle_keys_after_days", words)

    def claims(self) -> Mapping[int, list[Reason]]:
        """What the keep rules claim.

        Slots go to the latest first, then to the newest. Versions with a TTL of their own take none (the latest excepted), and
        versions newer than `now` stand outside every ranking: what does not count among the kept must not push others out.
        """
        outside = {place for place, control in self.controls.items() if control.has_ttl and place != self.latest}
        outside.update(range(self.future))
        ranked = [place for place in self.order if place not in outside]
        claims: defaultdict[int, list[Reason]] = defaultdict(list)
        for place, reason in self._claims(ranked):
            claims[place].append(reason)
        return claims

    def _claims(self, ranked: Sequence[int]) -> Iterator[tuple[int, Reason]]:
        policy = self.policy
        for rank, place in enumerate(ranked[: policy.keep_last], start=1):
            yield place, _last(rank, policy.keep_last)
        if within := policy.keep_within_days:
            number, reason = self._number_within(within), Reason("keep_within_days", f"within {days(within)}")
            yield from ((place, reason) for place in ranked if place < number)
        for period in CALENDAR:
            if periods := getattr(policy, period.rule):
                yield from self._calendar_claims(ranked, period, periods)
        if policy.grace_days:
            yield from self._grace_claims(ranked)
        if policy.keep_oldest and ranked:
            yield ranked[-1], Reason("keep_oldest", "oldest version")

    def _calendar_claims(self, ranked: Sequence[int], period: Period, most: int) -> Iterator[tuple[int, Reason]]:
        zone = ZoneInfo(self.policy.timezone)
        taken: set[str] = set()
        for place in ranked:
            name = period.name(self.created[place].astimezone(zone))
            if name in taken:
                continue
            if len(taken) == most:
                return
            taken.add(name)
            yield place, Reason(period.rule, f"{period.word} {name}")

    def _grace_claims(self, ranked: Sequence[int]) -> Iterator[tuple[int, Reason]]:
        grace = self.policy.grace_days
        for place in ranked:
            superseded_for = self._superseded_for(place)
            if superseded_for is None:
                yield place, Reason("grace_days", "not superseded")
            elif superseded_for <= grace * ONE_DAY:
                words = f"superseded {_in_words(superseded_for)} ago, within {days(grace)} of grace"
                yield place, Reason("grace_days", words)
            else:
                # All others have been superseded for longer.
                return


LATEST = Reason("latest", "latest version of its key")


@lru_cache(REMEMBERED)
def _last(rank: int, most: int) -> Reason:
    return Reason("keep_last", f"last {rank} of {most}")


def _first(created: Sequence[datetime], applies: Callable[[datetime], bool]) -> int:
    """The first place, the newest being 0, for which something applies that applies to all behind it, too."""
    return bisect_left(created, True, key=applies)  # noqa: FBT003 - the value sought


def _in_words(age: timedelta) -> str:
    """An age in words, rounded down: whole days, or hours below two days."""
    hours = age // ONE_HOUR
    return count(hours // 24, "day") if hours >= 48 else count(hours, "hour")  # noqa: PLR2004 - two days
