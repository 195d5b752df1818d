"""What policies promise where the server itself deletes artifacts of an age, as the plans of Prefect Cloud do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prefect_artifact_retention.policies.formatting import days
from prefect_artifact_retention.policies.loading import OWN_POLICY
from prefect_artifact_retention.policies.model import RetentionPolicy
from prefect_artifact_retention.policies.periods import CALENDAR

PLANS: Mapping[str, int] = {"hobby": 7, "starter": 7, "team": 14, "pro": 30}
"""The days for which a plan of Prefect Cloud keeps an artifact after its creation; those of Enterprise are agreed upon. From
https://docs.prefect.io/v3/concepts/rate-limits ("Metadata retention"), read on 2026-11-29."""


def broken_promises(policies: Sequence[RetentionPolicy], after_days: float) -> list[str]:
    """Say what of valid policies does not hold where the server deletes every artifact of an age; one line each.

    Args:
        policies: The policies.
        after_days: The age, in days since the creation of an artifact.
    """
    lines = []
    for policy in policies:
        if policy is not OWN_POLICY:
            broken = [*_promises(policy, after_days), *_idle_limits(policy, after_days)]
            lines += [f'policy "{policy.name}": {line}' for line in broken or [f"promises nothing beyond {days(after_days)}"]]
    return lines


def consequences(policies: Sequence[RetentionPolicy], after_days: float, *, archives: bool) -> list[str]:
    """Say what such a server deletes whatever the policies say, and how copies are kept for longer; one line each.

    Args:
        policies: The policies.
        after_days: As for `broken_promises`.
        archives: Whether there is an archive that keeps the data of versions.
    """
    protected = "the latest version of a key that nobody writes to, versions on hold, and versions with a longer TTL"
    lines = [f"whatever the policies say, at an age of {days(after_days)} go, too: {protected}"]
    limit = after_days - 1
    if limit > 0:
        has_archive = "the archive has" if archives else "an archive (archive_url) has"
        late = [
            f'"{each.name}"'
            for each in policies
            if each is not OWN_POLICY and not 0 < each.expire_after_days <= limit and each.keeps_beyond(limit)
        ]
        if late:
            lines.append(
                f"to keep copies for longer: {has_archive} what a cleanup deletes, and nothing that the server deletes "
                f"before; with expire_after_days = {limit:g}, a cleanup every night is in time for all but the latest "
                f"version of a key. Policies that delete later, or never: {', '.join(late)}"
            )
    return lines


def _promises(policy: RetentionPolicy, after_days: float) -> Iterator[str]:
    """Describe each rule that keeps versions for longer than the server does."""
    gone = f"what is older than {days(after_days)} is deleted by the server"
    if policy.keep_all:
        yield f"keep_all = true promises to keep everything: {gone}"
    if 0 < policy.expire_after_days <= after_days:
        # What this package deletes before, no rule promises.
        return
    if policy.keep_last:
        yield (
            f"keep_last = {policy.keep_last} promises as many versions of any age: {gone}, so a key that is written less "
            f"often than {policy.keep_last} times in {days(after_days)} has fewer"
        )
    if (promised := policy.keep_within_days) > after_days:
        yield f"keep_within_days = {promised:g} promises {days(promised)}: {gone}"
    if promised := policy.grace_days:
        # Counted from the replacement of a version, which may be of any age by then.
        yield f"grace_days = {promised:g} promises {days(promised)} after a newer version has replaced one: {gone}"
    for period in CALENDAR:
        number = getattr(policy, period.rule)
        if (reach := round(number * period.days)) > after_days:
            yield f"{period.rule} = {number} promises {days(reach)}: {gone}"
        elif number > 1:
            # As with keep_last: a period without versions does not count.
            yield (
                f"{period.rule} = {number} promises the newest of {number} {period.noun}s that have any, of any age: {gone}, "
                f"so a key that is written in fewer than {number} {period.noun}s of {days(after_days)} has fewer"
            )
    if policy.keep_oldest:
        yield f"keep_oldest = true promises the oldest version for good: {gone}"


def _idle_limits(policy: RetentionPolicy, after_days: float) -> Iterator[str]:
    """Describe each limit that is never reached."""
    for limit in ("expire_after_days", "drop_idle_keys_after_days"):
        if (value := getattr(policy, limit)) >= after_days:
            yield f"{limit} = {value:g} deletes nothing: the server has deleted it after {days(after_days)}"
