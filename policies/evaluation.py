"""Evaluates a policy: decides for each version of one collection whether it is kept or stale, with all the reasons.

The first of these that applies decides: `keep_all`, `expire_after_days`, the version's own TTL, the keep rules. The keep rules
are a union, as in restic's `ApplyPolicy`: a version is stale only if no rule keeps it.

Protections come last, override every rule and use none of its slots: the latest version; a hold on the version or on the whole
key; an unfinished run; a version newer than `now`; a result of a run, which Prefect's server stores in an artifact without a
key and without a type (`Artifact.from_result` in its `server/schemas/core.py`).
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
"""How many reasons of `keep_last` are cached. With fewer, a large `keep_last` formats the same texts anew for each key."""


class Reason(NamedTuple):
    """One reason of a verdict: the name of the rule, and the text that is shown."""

    rule: str
    text: str


PROTECTIONS = frozenset({"latest", "hold", "unreadable", "running", "future", "result", "dangling", "mixed_types"})
"""The rules for which a version stays whatever its policy says."""

CONDEMNATIONS = ("unclaimed", "expire_after_days", "ttl", "drop_idle_keys_after_days")
"""The rules by which a version goes."""

Decision = tuple[bool, tuple[Reason, ...]]
"""Whether a version is kept, and the reasons."""


def evaluate(
    versions: Iterable[Version],
    policy: RetentionPolicy,
    *,
    now: datetime,
    latest_id: UUID | None = None,
    running: Collection[UUID] = frozenset(),
) -> tuple[Verdict, ...]:
    """Evaluate a policy on all versions of one collection, or on any number of artifacts without a key.

    Args:
        versions: All versions of one key in any order, or artifacts whose key is None.
        policy: The policy of that key.
        now: The server's clock.
        latest_id: The `latest_id` of the collection. None protects the newest version of a key instead.
        running: Ids of the flow runs and task runs that are not in a terminal state.

    Returns:
        One verdict per version, the latest first, then by (created, id) descending.

    Raises:
        ValueError: The versions have more than one key.
    """
    return tuple(judge(versions, policy, now=now, latest_id=latest_id, running=running))


class Judgement(Sequence[Verdict]):
    """The verdicts of `evaluate` as a sequence that builds each one when it is accessed: most are only counted.

    Attributes:
        versions: The versions, the newest first.
        stale: The indexes into `versions` of the stale ones, in the order of the verdicts.
    """

    __slots__ = ("_decisions", "_order", "_rest", "stale", "versions")

    def __init__(self, case: _Case, decisions: Mapping[int, Decision], rest: _Rest) -> None:
        """Store the decisions on single versions, in the order of the verdicts, and the decision on the rest."""
        self.versions = case.versions
        self._order = case.order
        self._decisions = decisions
        self._rest = rest
        kept = {index for index, (stays, _reasons) in decisions.items() if stays}
        self.stale = [index for index in decisions if index < rest.kept and index not in kept]
        if rest.kept < len(self._order):
            self.stale += [index for index in self._order if index >= rest.kept and index not in kept]

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

    def why(self, index: int) -> tuple[Reason, ...]:
        """Return the reasons of the decision on the version at an index into `versions`."""
        return (self._decisions.get(index) or self._rest.decide(index))[1]

    def stale_runs(self) -> tuple[set[UUID], set[UUID]]:
        """Return the flow runs and the task runs that wrote the stale versions."""
        flow_runs, task_runs = self.versions.flow_run_ids, self.versions.task_run_ids
        return (
            {run_id for index in self.stale if (run_id := flow_runs[index])},
            {run_id for index in self.stale if (run_id := task_runs[index])},
        )

    def kept(self) -> Iterator[int]:
        """Iterate over the indexes of the versions that are kept, in the order of the verdicts."""
        stale = set(self.stale)
        return (index for index in self._order if index not in stale)

    def unprotected(self, larger_than: int) -> list[int]:
        """Return the indexes of the versions that are kept by their policy or TTL alone, and have more bytes than that."""
        large = [index for index, size in enumerate(self.versions.sizes) if size > larger_than]
        kept = {*large}.difference(self.stale) if large else ()
        return [index for index in large if index in kept and PROTECTIONS.isdisjoint(why.rule for why in self.why(index))]

    def waiting(self) -> int:
        """Count the versions that only unfinished runs or holds keep, or that stay because they cannot be judged."""
        if self._rest.keeps.keys() & {"dangling", "mixed_types"}:
            return len(self)
        by_rules = max((number for rule, number in self._rest.keeps.items() if rule != "hold"), default=0)
        return self._undecided(by_rules, self._rest.kept) + sum(
            stays and all(reason.rule in {"running", "hold"} for reason in reasons)
            for stays, reasons in self._decisions.values()
        )

    @property
    def is_dangling(self) -> bool:
        """Whether `latest_id` names none of the versions; all of them are kept then."""
        return "dangling" in self._rest.keeps

    @property
    def is_idle(self) -> bool:
        """Whether the whole key is stale, because it is idle."""
        return self._rest.drops == "drop_idle_keys_after_days"

    def rules(self, *, keep: bool) -> Counter[str]:
        """Count by rule the reasons for which versions are kept, or for which they are stale."""
        rules = Counter(reason.rule for stays, reasons in self._decisions.values() if stays == keep for reason in reasons)
        kept, unexpired = self._rest.kept, max(self._rest.kept, self._rest.unexpired)
        if keep:
            rules.update({rule: self._undecided(0, number) for rule, number in self._rest.keeps.items()})
        else:
            rules[self._rest.drops] += self._undecided(kept, unexpired)
            rules["expire_after_days"] += self._undecided(unexpired, len(self))
        return +rules

    def _undecided(self, begin: int, end: int) -> int:
        """Count the indexes of a range that have no decision of their own."""
        return max(0, end - begin) - sum(begin <= index < end for index in self._decisions)


class _Rest(NamedTuple):
    """The decision on all versions of a key that have none of their own: the newest of them are kept, the others are stale.

    Attributes:
        keeps: How many versions, from the newest on, a rule keeps.
        drops: The rule by which the others are stale, as far as `expire_after_days` does not apply.
        unexpired: How many versions `expire_after_days` does not apply to; they are the newest.
        decide: Returns the decision, with its reasons, for an index.
    """

    keeps: Mapping[str, int]
    drops: str
    unexpired: int
    decide: Callable[[int], Decision]

    @property
    def kept(self) -> int:
        """How many versions, from the newest on, are kept."""
        return max(self.keeps.values(), default=0)


def judge(  # noqa: PLR0913 - what a verdict depends on
    versions: Iterable[Version],
    policy: RetentionPolicy,
    *,
    now: datetime,
    latest_id: UUID | None = None,
    running: Collection[UUID] = frozenset(),
    conflict: str = "",
    held: str = "",
) -> Judgement:
    """Evaluate like `evaluate`, but without building the verdicts; for callers that mostly count them.

    Args:
        versions: As for `evaluate`, and so are the others.
        policy: The policy of the key.
        now: The server's clock.
        latest_id: The `latest_id` of the collection.
        running: The runs that are not in a terminal state.
        conflict: Why it is not certain that this is the policy of the key; then everything is kept. Empty if it is.
        held: The reason for which a hold on the whole key keeps all its versions. Empty if there is none.
    """
    case = _Case(Versions.of(versions), policy, now, latest_id, running)
    if case.latest is None and case.versions.key is not None and case.versions:
        return _alike(case, Reason("dangling", "the collection's latest_id names no version that was read"), stays=True)
    if conflict:
        return _alike(case, Reason("mixed_types", conflict), stays=True)
    protections = case.protections()
    if not held and (idle := case.idle(protections)):
        return _alike(case, idle, stays=False)
    of_key = (Reason("hold", held),) if held else ()

    def decide(index: int, kept_by: Sequence[Reason] = ()) -> Decision:
        keep, reasons = case.decide(index, kept_by)
        protecting = (*protections.get(index, ()), *of_key)
        return (True, (*reasons, *protecting) if keep else protecting) if protecting else (keep, reasons)

    kept_by = case.kept_by()
    single = {*kept_by, *case.controls, *protections}
    decisions = {index: decide(index, kept_by.get(index, ())) for index in case.order if index in single}
    numbers = {"keep_all": case.all, "keep_last": case.last, "keep_within_days": case.within}
    keeps = {rule: min(number, case.unexpired) for rule, number in numbers.items()}
    if held:
        keeps["hold"] = len(case.versions)
    return Judgement(case, decisions, _Rest(keeps, "unclaimed", case.unexpired, decide))


def _alike(case: _Case, reason: Reason, *, stays: bool) -> Judgement:
    """Return the same decision on all versions of a key."""
    number = len(case.versions)
    keeps, drops = ({reason.rule: number}, "") if stays else ({}, reason.rule)
    return Judgement(case, {}, _Rest(keeps, drops, number, lambda _index: (stays, (reason,))))


class _Case:
    """The evaluation of one policy on one collection. Versions are referred to by their index, the newest by 0.

    Attributes:
        latest: The index of the latest version; None if there is none.
        order: All indexes in the order of the verdicts: the latest first, even where others have a later `created`.
        future: How many versions were created after `now`; they have the lowest indexes.
        unexpired: How many versions `expire_after_days` does not apply to; they, too, have the lowest indexes.
        all: How many versions `keep_all` keeps: all or none.
        within: How many versions are recent enough for `keep_within_days`; likewise.
        last: How many versions `keep_last` keeps, if these are the newest; else 0, and they are ranked.
        controls: The holds and TTLs, by index.
        outside: The versions that take no slot of a rule: those newer than `now`, and those with a TTL, except the latest.
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
        within = policy.keep_within_days
        self.all = len(versions) if policy.keep_all else 0
        self.within = self._number_within(within) if within else 0
        self._within = Reason("keep_within_days", f"within {days(within)}")
        self.controls = {index: read_control(versions.metadata(index), now) for index in versions.controlled}
        self.outside = {index for index, control in self.controls.items() if control.has_ttl and index != self.latest}
        self.outside.update(range(self.future))
        self.last = 0 if self.outside or self.latest else min(policy.keep_last, len(versions))

    def _find(self, latest_id: UUID | None) -> int | None:
        if self.versions.key is None or not self.versions:
            return None
        if latest_id is None:
            return 0
        return self.versions.ids.index(latest_id) if latest_id in self.versions.ids else None

    def _number_within(self, limit: float) -> int:
        """Count the versions that are at most `limit` days old; they have the lowest indexes."""
        since = self.now - limit * ONE_DAY
        return _first(self.created, lambda moment: moment < since)

    def _is_within(self, index: int) -> bool:
        return index < self.within and index not in self.outside

    def _age(self, index: int) -> timedelta:
        return self.now - self.created[index]

    def _superseded_for(self, index: int) -> timedelta | None:
        """Return the time since the next newer version was created; None for a version that nothing supersedes."""
        if index <= self.future or index == self.latest or self.versions.key is None:
            return None
        return self._age(index - 1)

    def decide(self, index: int, kept_by: Sequence[Reason] = ()) -> Decision:
        """Decide by the first that applies: keep_all, expire_after_days, the version's own TTL, the rules that keep it."""
        if self.policy.keep_all:
            return True, (Reason("keep_all", "keep all"),)
        if index >= self.unexpired:
            limit = days(self.policy.expire_after_days)
            return False, (Reason("expire_after_days", f"{_format_age(self._age(index))} old, expires after {limit}"),)
        if (control := self.controls.get(index)) and control.ttl is not None:
            lives = self._age(index) <= control.ttl
            text = f"its own TTL of {days(control.ttl / ONE_DAY)}"
            return lives, (Reason("ttl", f"within {text}" if lives else f"{text} is over"),)
        reasons = [_last(index + 1, self.policy.keep_last)] if index < self.last else []
        reasons += kept_by
        if self._is_within(index):
            # In the order of the fields of a policy.
            reasons.insert(bool(reasons) and reasons[0].rule == "keep_last", self._within)
        if reasons:
            return True, tuple(reasons)
        superseded_for = self._superseded_for(index)
        age = self._age(index) if superseded_for is None else superseded_for
        since = f"{_format_age(age)} old" if superseded_for is None else f"superseded {_format_age(age)} ago"
        return False, (Reason("unclaimed", f"{since}, outside every keep rule"),)

    def protections(self) -> Mapping[int, list[Reason]]:
        """Return the reasons that keep versions whatever the rules decide, by index."""
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
            found[index].append(Reason("future", "newer than the plan"))
        for index in self._results():
            found[index].append(Reason("result", "Prefect keeps the result of a run in it"))
        return found

    def _results(self) -> list[int]:
        if self.versions.key is not None:
            return []
        return [index for index, kind in enumerate(self.versions.types) if kind in {None, RESULT}]

    def idle(self, protections: Mapping[int, Sequence[Reason]]) -> Reason | None:
        """Return why the whole key is stale: it is idle, and no version of it is held, running, future or within its TTL.

        A latest version that is updated in place, as a progress artifact is, is a sign of life like a new version.
        """
        limit = self.policy.drop_idle_keys_after_days
        if not limit or self.latest is None:
            return None
        created, updated = self.created[0], self.versions.updated[self.latest]
        idle_for = self.now - max(created, updated)
        if idle_for <= limit * ONE_DAY:
            return None
        lives = any(control.ttl is not None and self._age(index) <= control.ttl for index, control in self.controls.items())
        if lives or any(reason is not LATEST for reasons in protections.values() for reason in reasons):
            return None
        newest = f"its newest version is {_format_age(idle_for)} old"
        last = newest if created >= updated else f"its latest version was last updated {_format_age(idle_for)} ago"
        text = f"idle key: {last}, dropped after {days(limit)}"
        return Reason("drop_idle_keys_after_days", text)

    def kept_by(self) -> Mapping[int, list[Reason]]:
        """Return the keep rules that keep each version, by index, but for those that keep a number of the newest.

        The latest version takes the first slot of a rule, then the newest do. Those `outside` are not kept by a rule, and must
        not push out one that is.
        """
        outside = self.outside
        ranked = [index for index in self.order if index not in outside] if outside else self.order
        kept_by: defaultdict[int, list[Reason]] = defaultdict(list)
        for index, reason in self._kept_by_rules(ranked):
            kept_by[index].append(reason)
        return kept_by

    def _kept_by_rules(self, ranked: Sequence[int]) -> Iterator[tuple[int, Reason]]:
        policy = self.policy
        for rank, index in enumerate(ranked[: 0 if self.last else policy.keep_last], start=1):
            yield index, _last(rank, policy.keep_last)
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
                # All older versions were superseded earlier.
                return


LATEST = Reason("latest", "latest version of its key")


@lru_cache(CACHED_REASONS)
def _last(rank: int, limit: int) -> Reason:
    return Reason("keep_last", f"last {rank} of {limit}")


def _first(created: Sequence[datetime], applies: Callable[[datetime], bool]) -> int:
    """Return the lowest index for which a condition applies that applies to all higher indexes, too."""
    return bisect_left(created, True, key=applies)  # noqa: FBT003 - the value sought


def _format_age(age: timedelta) -> str:
    """Format an age, rounded down to whole days, or to hours below two days."""
    hours = age // ONE_HOUR
    return count(hours // 24, "day") if hours >= 48 else count(hours, "hour")  # noqa: PLR2004 - two days
