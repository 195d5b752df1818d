"""The planner: which versions of one collection stay, which go, and why. Pure; the clock is an argument.

Who decides, first that applies: `keep_all`, `expire_after_days`, the version's own TTL, the keep rules. The keep rules are a
union, as in restic's `ApplyPolicy`: a version goes only if none of them keeps it. Protections come last, beat everything and
change no slot of a rule: the latest version, a hold, a run that has not finished, a version newer than `now`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect_artifact_retention.policies.control import NO_CONTROL, Control, read_control
from prefect_artifact_retention.policies.model import RetentionPolicy, Verdict, Version
from prefect_artifact_retention.policies.periods import CALENDAR, Period
from prefect_artifact_retention.policies.words import count, days

ONE_DAY = timedelta(days=1)
ONE_HOUR = timedelta(hours=1)
REMEMBERED = 10_000
"""Words that are made once and serve again: of a million versions, most are told the same about."""


class Reason(NamedTuple):
    """Why a version stays or goes: the rule's name, and the words that a person reads."""

    rule: str
    words: str


class _Candidate(NamedTuple):
    """A version with what is derived from it once.

    `superseded_for` is the time since the next newer version was created; None while nothing supersedes it. `claims` gains the
    reason of each keep rule that claims it.
    """

    version: Version
    age: timedelta
    control: Control
    is_latest: bool
    is_future: bool
    superseded_for: timedelta | None
    claims: list[Reason]


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
    # A listing that shifts while it is read may repeat a row; one version takes one slot.
    unique = {version.id: version for version in versions}.values()
    ordered = sorted(unique, key=lambda version: (version.created, version.id), reverse=True)
    if not ordered:
        return ()
    key = ordered[0].key
    if any(version.key != key for version in ordered):
        raise ValueError(f"versions of more than one key: {key!r} and others")
    if key is not None:
        if latest_id is None:
            latest_id = ordered[0].id
        if all(version.id != latest_id for version in ordered):
            reason = Reason("dangling", "the collection's latest_id names no version that was read")
            return tuple(_verdict(version, keep=True, reasons=(reason,)) for version in ordered)

    # The latest ranks first even where others are newer by `created`; the sort is stable, all else stays in its order.
    candidates = sorted(_candidates(ordered, latest_id, now), key=lambda candidate: not candidate.is_latest)
    if idle := _idle(candidates, policy, running):
        return tuple(_verdict(candidate.version, keep=False, reasons=(idle,)) for candidate in candidates)
    _claim(candidates, policy)
    return tuple(_judge(candidate, policy, running) for candidate in candidates)


def _candidates(ordered: Iterable[Version], latest_id: UUID | None, now: datetime) -> Iterator[_Candidate]:
    newer: datetime | None = None
    for version in ordered:
        created = version.created
        is_future = created > now
        is_latest = version.key is not None and version.id == latest_id
        superseded_for = None if newer is None or is_future or is_latest else now - newer
        control = read_control(version.metadata, now) if version.metadata else NO_CONTROL
        yield _Candidate(version, now - created, control, is_latest, is_future, superseded_for, [])
        if not is_future and version.key is not None:
            newer = created


def _judge(candidate: _Candidate, policy: RetentionPolicy, running: Collection[UUID]) -> Verdict:
    keep, reasons = _decide(candidate, policy)
    if protections := _protections(candidate, running):
        reasons = (*reasons, *protections) if keep else protections
        keep = True
    return _verdict(candidate.version, keep=keep, reasons=reasons)


def _decide(candidate: _Candidate, policy: RetentionPolicy) -> tuple[bool, tuple[Reason, ...]]:
    """Apply the first of keep_all, the hard limit, the version's own TTL and the keep rules that has a say."""
    if policy.keep_all:
        return True, (Reason("keep_all", "keep all"),)
    limit = policy.expire_after_days
    if limit and candidate.age > limit * ONE_DAY:
        return False, (Reason("expire_after_days", f"{_age(candidate.age)} old, expires after {days(limit)}"),)
    ttl = candidate.control.ttl
    if ttl is not None:
        lives = candidate.age <= ttl
        words = f"its own TTL of {days(ttl / ONE_DAY)}"
        return lives, (Reason("ttl", f"within {words}" if lives else f"{words} is over"),)
    if candidate.claims:
        return True, tuple(candidate.claims)
    if candidate.superseded_for is None:
        return False, _unclaimed(candidate.age // ONE_HOUR, "{} old")
    return False, _unclaimed(candidate.superseded_for // ONE_HOUR, "superseded {} ago")


@lru_cache(REMEMBERED)
def _unclaimed(hours: int, since: str) -> tuple[Reason, ...]:
    return (Reason("unclaimed", f"{since.format(_age(hours * ONE_HOUR))}, outside every keep rule"),)


def _protections(candidate: _Candidate, running: Collection[UUID]) -> tuple[Reason, ...]:
    if not (candidate.is_latest or candidate.is_future or running or candidate.control is not NO_CONTROL):
        # Nothing protects most versions; a million of them are worth the look.
        return ()
    return tuple(_all_protections(candidate, running))


def _all_protections(candidate: _Candidate, running: Collection[UUID]) -> Iterator[Reason]:
    version = candidate.version
    if candidate.is_latest:
        yield Reason("latest", "latest version of its key")
    if candidate.control.held:
        yield Reason("hold", candidate.control.held)
    for problem in candidate.control.unreadable:
        yield Reason("unreadable", problem)
    if version.flow_run_id in running:
        yield Reason("running", "its flow run has not finished")
    if version.task_run_id in running:
        yield Reason("running", "its task run has not finished")
    if candidate.is_future:
        yield Reason("future", "created after this run began")


def _idle(candidates: Sequence[_Candidate], policy: RetentionPolicy, running: Collection[UUID]) -> Reason | None:
    """Why the whole key goes, if it has gone idle and nothing in it is held, running, future or within its TTL."""
    limit = policy.drop_idle_keys_after_days
    youngest = min(candidate.age for candidate in candidates)
    if not limit or youngest <= limit * ONE_DAY:
        return None
    for candidate in candidates:
        lives = candidate.control.ttl is not None and candidate.age <= candidate.control.ttl
        if lives or any(protection.rule != "latest" for protection in _protections(candidate, running)):
            return None
    words = f"idle key: its newest version is {_age(youngest)} old, dropped after {days(limit)}"
    return Reason("drop_idle_keys_after_days", words)


def _claim(candidates: Sequence[_Candidate], policy: RetentionPolicy) -> None:
    """Let the keep rules claim their versions.

    Slots go to the latest first, then to the newest. Versions with a TTL of their own take none (the latest excepted), and
    versions newer than `now` stand outside every ranking: what does not count among the kept must not push others out.
    """
    ranked = [c for c in candidates if not c.is_future and (c.is_latest or not c.control.has_ttl)]
    for candidate, reason in _claims(ranked, policy):
        candidate.claims.append(reason)


def _claims(ranked: Sequence[_Candidate], policy: RetentionPolicy) -> Iterator[tuple[_Candidate, Reason]]:
    for rank, candidate in enumerate(ranked[: policy.keep_last], start=1):
        yield candidate, _last(rank, policy.keep_last)
    within = policy.keep_within_days
    for candidate in ranked if within else ():
        if candidate.age <= within * ONE_DAY:
            yield candidate, Reason("keep_within_days", f"within {days(within)}")
    for period in CALENDAR:
        if periods := getattr(policy, period.rule):
            yield from _calendar_claims(ranked, period, periods, ZoneInfo(policy.timezone))
    if policy.grace_days:
        yield from _grace_claims(ranked, policy.grace_days)
    if policy.keep_oldest and ranked:
        yield ranked[-1], Reason("keep_oldest", "oldest version")


@lru_cache(REMEMBERED)
def _last(rank: int, most: int) -> Reason:
    return Reason("keep_last", f"last {rank} of {most}")


def _grace_claims(ranked: Sequence[_Candidate], grace: float) -> Iterator[tuple[_Candidate, Reason]]:
    for candidate in ranked:
        if candidate.superseded_for is None:
            yield candidate, Reason("grace_days", "not superseded")
        elif candidate.superseded_for <= grace * ONE_DAY:
            words = f"superseded {_age(candidate.superseded_for)} ago, within {days(grace)} of grace"
            yield candidate, Reason("grace_days", words)


def _calendar_claims(
    ranked: Sequence[_Candidate], period: Period, most: int, zone: ZoneInfo
) -> Iterator[tuple[_Candidate, Reason]]:
    taken: set[str] = set()
    for candidate in ranked:
        name = period.name(candidate.version.created.astimezone(zone))
        if name in taken:
            continue
        if len(taken) == most:
            return
        taken.add(name)
        yield candidate, Reason(period.rule, f"{period.word} {name}")


def _verdict(version: Version, *, keep: bool, reasons: tuple[Reason, ...]) -> Verdict:
    return Verdict(version, keep, *_columns(reasons))


@lru_cache(REMEMBERED)
def _columns(reasons: tuple[Reason, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of some reasons, and their rules."""
    return tuple(reason.words for reason in reasons), tuple(reason.rule for reason in reasons)


def _age(age: timedelta) -> str:
    """An age in words, rounded down: whole days, or hours below two days."""
    hours = age // ONE_HOUR
    return count(hours // 24, "day") if hours >= 48 else count(hours, "hour")  # noqa: PLR2004 - two days
