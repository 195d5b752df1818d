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
from prefect_artifact_retention.policies.formatting import count, days
from prefect_artifact_retention.policies.model import RESULT, RetentionPolicy, Verdict, Version, Versions
from prefect_artifact_retention.policies.periods import CALENDAR, Period

ONE_DAY = timedelta(days=1)
ONE_HOUR = timedelta(hours=1)
CACHED_REASONS = 10_000
"""Words that are made once and serve again."""


class Reason(NamedTuple):
    """Why a version stays or goes: the rule's name, and the words that a person reads."""

    rule: str
    text: str


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

    __slots__ = ("_decisions", "_order", "_rest", "stale", "versions")

    def __init__(self, case: _Case, decisions: Mapping[int, Decision], rest: _Rest) -> None:
        """Take the decisions on single versions, in the order of the verdicts, and the one on all others."""
        self.versions = case.versions
        self._order = case.order
        self._decisions = decisions
        self._rest = rest
        if rest.stays:
            self.stale = [index for index, (stays, _reasons) in decisions.items() if not stays]
        else:
            kept = {index for index, (stays, _reasons) in decisions.items() if stays}
            self.stale = [index for index in self._order if index not in kept]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, rank: int) -> Verdict: ...

    @overload
    def __getitem__(self, rank: slice) -> list[Verdict]: ...

    def __getitem__(self, rank: int | slice) -> Verdict | list[Verdict]:
        if isinstance(rank, slice):
            return [self._verdict(index) for index in self._order[rank]]
        return self._verdict(self._order[rank])

    def _verdict(self, index: int) -> Verdict:
        keep, reasons = self._decisions.get(index) or self._rest.decide(index)
        texts, rules = tuple(reason.text for reason in reasons), tuple(reason.rule for reason in reasons)
        return Verdict(self.versions[index], keep, texts, rules)

    def stale_runs(self) -> tuple[set[UUID], set[UUID]]:
        """The flow runs and the task runs that wrote those that go."""
        flow_runs, task_runs = self.versions.flow_run_ids, self.versions.task_run_ids
        return (
            {run_id for index in self.stale if (run_id := flow_runs[index])},
            {run_id for index in self.stale if (run_id := task_runs[index])},
        )

    def kept(self) -> Iterator[int]:
        """The places of those that stay, in the order of the verdicts."""
        stale = set(self.stale)
        return (index for index in self._order if index not in stale)

    @property
    def is_dangling(self) -> bool:
        """Whether the collection names a latest version that is not among them; all stay then."""
        return self._rest.rule == "dangling"

    def rules(self, *, keep: bool) -> Counter[str]:
        """How many of those that stay, or of those that go, each rule has kept or condemned."""
        rules = Counter(reason.rule for stays, reasons in self._decisions.values() if stays == keep for reason in reasons)
        if self._rest.stays == keep:
            expired = len(self) - self._rest.unexpired - sum(index >= self._rest.unexpired for index in self._decisions)
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
    kept_by = case.kept_by()
    single = {*kept_by, *case.controls, *protections}
    decisions: dict[int, Decision] = {}
    for index in case.order:
        if index not in single:
            continue
        keep, reasons = case.decide(index, kept_by.get(index, ()))
        if index in protections:
            protecting = tuple(protections[index])
            keep, reasons = True, (*reasons, *protecting) if keep else protecting
        decisions[index] = keep, reasons
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
            self.order = [self.latest, *(index for index in self.order if index != self.latest)]
        self.future = _first(self.created, lambda moment: moment <= now)
        limit = policy.expire_after_days
        self.unexpired = self._number_within(limit) if limit else len(versions)
        self.controls = {index: read_control(versions.metadata(index), now) for index in versions.controlled}

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

    def _age(self, index: int) -> timedelta:
        return self.now - self.created[index]

    def _superseded_for(self, index: int) -> timedelta | None:
        """The time since the next newer version was created; None while nothing supersedes it."""
        if index <= self.future or index == self.latest or self.versions.key is None:
            return None
        return self._age(index - 1)

    def decide(self, index: int, kept_by: Sequence[Reason] = ()) -> Decision:
        """Apply the first of keep_all, the hard limit, the version's own TTL and the keep rules that has a say."""
        if self.policy.keep_all:
            return True, (Reason("keep_all", "keep all"),)
        if index >= self.unexpired:
            limit = days(self.policy.expire_after_days)
            return False, (Reason("expire_after_days", f"{_format_age(self._age(index))} old, expires after {limit}"),)
        if (control := self.controls.get(index)) and control.ttl is not None:
            lives = self._age(index) <= control.ttl
            text = f"its own TTL of {days(control.ttl / ONE_DAY)}"
            return lives, (Reason("ttl", f"within {text}" if lives else f"{text} is over"),)
        if kept_by:
            return True, tuple(kept_by)
        superseded_for = self._superseded_for(index)
        if superseded_for is None:
            return False, (Reason("unclaimed", f"{_format_age(self._age(index))} old, outside every keep rule"),)
        return False, (Reason("unclaimed", f"superseded {_format_age(superseded_for)} ago, outside every keep rule"),)

    def protections(self) -> Mapping[int, list[Reason]]:
        """What keeps versions whatever else is decided."""
        found: defaultdict[int, list[Reason]] = defaultdict(list)
        if self.latest is not None:
            found[self.latest].append(LATEST)
        for index, control in self.controls.items():
            if control.held:
                found[index].append(Reason("hold", control.held))
            for problem in control.unreadable:
                found[index].append(Reason("unreadable", problem))
        for ids, what in ((self.versions.flow_run_ids, "flow run"), (self.versions.task_run_ids, "task run")):
            for index, run_id in enumerate(ids if self.running else ()):
                if run_id in self.running:
                    found[index].append(Reason("running", f"its {what} has not finished"))
        for index in range(self.future):
            found[index].append(Reason("future", "created after this run began"))
        for index in self._results():
            found[index].append(Reason("result", "Prefect keeps the result of a run in it"))
        return found

    def _results(self) -> list[int]:
        if self.versions.key is not None:
            return []
        return [index for index, kind in enumerate(self.versions.types) if kind in {None, RESULT}]

    def idle(self, protections: Mapping[int, Sequence[Reason]]) -> Reason | None:
        """Why the whole key goes, if it has gone idle and nothing in it is held, running, future or within its TTL."""
        limit = self.policy.drop_idle_keys_after_days
        if not limit or not self.versions or self._age(0) <= limit * ONE_DAY:
            return None
        lives = any(control.ttl is not None and self._age(index) <= control.ttl for index, control in self.controls.items())
        if lives or any(reason is not LATEST for reasons in protections.values() for reason in reasons):
            return None
        text = f"idle key: its newest version is {_format_age(self._age(0))} old, dropped after {days(limit)}"
        return Reason("drop_idle_keys_after_days", text)

    def kept_by(self) -> Mapping[int, list[Reason]]:
        """What the keep rules claim.

        Slots go to the latest first, then to the newest. Versions with a TTL of their own take none (the latest excepted), and
        versions newer than `now` stand outside every ranking: what does not count among the kept must not push others out.
        """
        outside = {index for index, control in self.controls.items() if control.has_ttl and index != self.latest}
        outside.update(range(self.future))
        ranked = [index for index in self.order if index not in outside]
        kept_by: defaultdict[int, list[Reason]] = defaultdict(list)
        for index, reason in self._kept_by_rules(ranked):
            kept_by[index].append(reason)
        return kept_by

    def _kept_by_rules(self, ranked: Sequence[int]) -> Iterator[tuple[int, Reason]]:
        policy = self.policy
        for rank, index in enumerate(ranked[: policy.keep_last], start=1):
            yield index, _last(rank, policy.keep_last)
        if within := policy.keep_within_days:
            number, reason = self._number_within(within), Reason("keep_within_days", f"within {days(within)}")
            yield from ((index, reason) for index in ranked if index < number)
        for period in CALENDAR:
            if periods := getattr(policy, period.rule):
                yield from self._kept_by_calendar(ranked, period, periods)
        if policy.grace_days:
            yield from self._kept_by_grace(ranked)
        if policy.keep_oldest and ranked:
            yield ranked[-1], Reason("keep_oldest", "oldest version")

    def _kept_by_calendar(self, ranked: Sequence[int], period: Period, limit: int) -> Iterator[tuple[int, Reason]]:
        zone = ZoneInfo(self.policy.timezone)
        taken: set[str] = set()
        for index in ranked:
            name = period.name(self.created[index].astimezone(zone))
            if name in taken:
                continue
            if len(taken) == limit:
                return
            taken.add(name)
            yield index, Reason(period.rule, f"{period.word} {name}")

    def _kept_by_grace(self, ranked: Sequence[int]) -> Iterator[tuple[int, Reason]]:
        grace = self.policy.grace_days
        for index in ranked:
            superseded_for = self._superseded_for(index)
            if superseded_for is None:
                yield index, Reason("grace_days", "not superseded")
            elif superseded_for <= grace * ONE_DAY:
                text = f"superseded {_format_age(superseded_for)} ago, within {days(grace)} of grace"
                yield index, Reason("grace_days", text)
            else:
                # All others have been superseded for longer.
                return


LATEST = Reason("latest", "latest version of its key")


@lru_cache(CACHED_REASONS)
def _last(rank: int, limit: int) -> Reason:
    return Reason("keep_last", f"last {rank} of {limit}")


def _first(created: Sequence[datetime], applies: Callable[[datetime], bool]) -> int:
    """The first place, the newest being 0, for which something applies that applies to all behind it, too."""
    return bisect_left(created, True, key=applies)  # noqa: FBT003 - the value sought


def _format_age(age: timedelta) -> str:
    """An age in words, rounded down: whole days, or hours below two days."""
    hours = age // ONE_HOUR
    return count(hours // 24, "day") if hours >= 48 else count(hours, "hour")  # noqa: PLR2004 - two days
