"""The rules of docs/policies.md by brute force, written before `evaluation.py` was read.

Every question is asked again for every version by counting over the whole collection: slow, and hard to get wrong.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect_artifact_retention.policies import RetentionPolicy, Version


def kept_ids(
    versions: Sequence[Version],
    policy: RetentionPolicy,
    *,
    now: datetime,
    latest_id: UUID | None = None,
    running: frozenset[UUID] = frozenset(),
) -> set[UUID]:
    """The ids of those that stay."""
    everything = {version.id for version in versions}
    if policy.keep_all:
        return everything
    if latest_id is not None and latest_id not in everything:
        return everything
    if _idle(versions, latest_id, policy, now, running):
        return set()
    ranked = _ranked(versions, latest_id)
    latest = ranked[0] if ranked and ranked[0].key is not None else None
    return {
        version.id
        for version in versions
        if version == latest
        or _protected(version, now, running)
        or (not _expired(version, policy, now) and _wanted(version, ranked, latest, policy, now))
    }


def _ranked(versions: Sequence[Version], latest_id: UUID | None) -> list[Version]:
    """Newest first, the latest before everything else."""
    newest_first = sorted(versions, key=lambda version: (version.created, version.id), reverse=True)
    return [v for v in newest_first if v.id == latest_id] + [v for v in newest_first if v.id != latest_id]


def _older_than(moment: datetime, days: float, now: datetime) -> bool:
    """Boundaries are inclusive: exactly `days` old is not yet older."""
    return now - moment > timedelta(days=days)


def _expired(version: Version, policy: RetentionPolicy, now: datetime) -> bool:
    return policy.expire_after_days > 0 and _older_than(version.created, policy.expire_after_days, now)


def _wanted(version: Version, ranked: list[Version], latest: Version | None, policy: RetentionPolicy, now: datetime) -> bool:
    """The version's own TTL decides alone; without one, the union of the keep rules does."""
    if "retention-ttl-days" in version.metadata:
        return _within_ttl(version, now)
    return (
        _within_days(version, policy, now)
        or _has_a_slot(version, ranked, latest, policy, now)
        or _in_grace(version, ranked, policy, now)
    )


def _within_ttl(version: Version, now: datetime) -> bool:
    if "retention-ttl-days" not in version.metadata or _ttl_is_unreadable(version):
        return False
    return not _older_than(version.created, float(version.metadata["retention-ttl-days"]), now)


def _within_days(version: Version, policy: RetentionPolicy, now: datetime) -> bool:
    return policy.keep_within_days > 0 and not _older_than(version.created, policy.keep_within_days, now)


def _has_a_slot(
    version: Version, ranked: list[Version], latest: Version | None, policy: RetentionPolicy, now: datetime
) -> bool:
    """For each rule that counts: how many rank before this version?"""
    contenders = [v for v in ranked if v.created <= now and (v == latest or "retention-ttl-days" not in v.metadata)]
    if version not in contenders:
        return False
    before = contenders[: contenders.index(version)]
    if len(before) < policy.keep_last:
        return True
    if policy.keep_oldest and version == contenders[-1]:
        return True
    zone = ZoneInfo(policy.timezone)
    local = version.created.astimezone(zone)
    calendar_rules: list[tuple[int, Callable[[datetime], object]]] = [
        (policy.keep_hourly, lambda t: (t.year, t.month, t.day, t.hour, t.utcoffset())),
        (policy.keep_daily, lambda t: (t.year, t.month, t.day)),
        (policy.keep_weekly, lambda t: (t.isocalendar().year, t.isocalendar().week)),
        (policy.keep_monthly, lambda t: (t.year, t.month)),
        (policy.keep_yearly, lambda t: t.year),
    ]
    for count, period in calendar_rules:
        periods_before = {period(v.created.astimezone(zone)) for v in before}
        if period(local) not in periods_before and len(periods_before) < count:
            return True
    return False


def _in_grace(version: Version, ranked: list[Version], policy: RetentionPolicy, now: datetime) -> bool:
    """A version stays until `grace_days` after the next newer one was created; so does one that nothing supersedes."""
    if policy.grace_days == 0:
        return False
    present = sorted((v for v in ranked if v.created <= now), key=lambda v: (v.created, v.id))
    newer = present[present.index(version) + 1 :] if version in present else []
    return not newer or not _older_than(newer[0].created, policy.grace_days, now)


def _protected(version: Version, now: datetime, running: frozenset[UUID]) -> bool:
    """Held, written by a run that still runs, created after now, or marked in a way that nobody can read."""
    if version.flow_run_id in running or version.task_run_id in running:
        return True
    return version.created > now or _held(version, now) or _ttl_is_unreadable(version) or _has_misspelt_entry(version)


def _has_misspelt_entry(version: Version) -> bool:
    """An entry that somebody meant for us, and that is neither of the two."""
    names = {name for name in version.metadata if name.lower().replace("_", "-").startswith("retention-")}
    return bool(names - {"retention-hold", "retention-ttl-days"})


def _held(version: Version, now: datetime) -> bool:
    hold = version.metadata.get("retention-hold")
    if hold is None or hold == "false":  # "false" is written nowhere, and has one reading only
        return False
    try:
        until = date.fromisoformat(hold)
    except ValueError:
        return True  # "true", and everything that nobody can read
    return now.astimezone(UTC).date() <= until


def _ttl_is_unreadable(version: Version) -> bool:
    try:
        return not 0 < float(version.metadata.get("retention-ttl-days", "1")) < 100_000
    except ValueError:
        return True


def _idle(
    versions: Sequence[Version], latest_id: UUID | None, policy: RetentionPolicy, now: datetime, running: frozenset[UUID]
) -> bool:
    """The last sign of life, a new version or an update of the latest, is too old, and nothing asks for the key to stay."""
    if policy.drop_idle_keys_after_days == 0 or not versions:
        return False
    signs = [*(version.created for version in versions), _ranked(versions, latest_id)[0].updated]
    if not all(_older_than(sign, policy.drop_idle_keys_after_days, now) for sign in signs):
        return False
    return not any(_protected(version, now, running) or _within_ttl(version, now) for version in versions)
