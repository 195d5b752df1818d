"""Doubts about policies: what is valid, and yet is hardly meant. They are shown to people, and stop nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from prefect_artifact_retention.policies.formatting import days
from prefect_artifact_retention.policies.loading import OWN_POLICY, covering
from prefect_artifact_retention.policies.model import LINK, RESULT, TYPES, RetentionPolicy
from prefect_artifact_retention.policies.periods import CALENDAR


def find_doubts(policies: Sequence[RetentionPolicy], *, offloads: bool = True) -> list[str]:
    """Return what is doubtful in valid policies, in their order and one line each; no server is needed to know it.

    Args:
        policies: The policies.
        offloads: Whether there is an archive to which data can be moved.
    """
    return [
        f'policy "{policy.name}": {doubt}'
        for number, policy in enumerate(policies)
        if policy is not OWN_POLICY
        for doubt in (
            *_superfluous_globs(policies[:number], policy),
            *_types(policy),
            *_limited_rules(policy),
            *([] if offloads else _offload(policy)),
        )
    ]


def _superfluous_globs(earlier: Sequence[RetentionPolicy], policy: RetentionPolicy) -> Iterator[str]:
    for glob in () if policy.unkeyed else policy.match_keys:
        if name := covering(earlier, glob, policy):
            yield f'{glob!r} in match_keys never applies, because policy "{name}" before it takes all these keys'


def _types(policy: RetentionPolicy) -> Iterator[str]:
    for kind in policy.match_types:
        if kind == LINK:
            yield f"match_types has {kind!r}, but Prefect's create_link_artifact makes artifacts of type 'markdown'"
        elif kind == RESULT:
            yield f"match_types has {kind!r}, but results of runs have no key, and are never deleted"
        elif kind not in TYPES and (close := difflib.get_close_matches(kind, TYPES, n=1, cutoff=0.8)):
            yield f"match_types has {kind!r}, but the type that Prefect has is {close[0]!r}"


def _offload(policy: RetentionPolicy) -> Iterator[str]:
    if limit := policy.offload_larger_than_kb:
        yield f"offload_larger_than_kb = {limit} does nothing, because no archive is configured that keeps data"


def _limited_rules(policy: RetentionPolicy) -> Iterator[str]:
    """Describe each rule that would keep versions for longer than a limit of its policy lets it."""
    reaches = [
        (f"{period.rule} = {number}", f"reach back about {days(round(number * period.days))}", (number - 1) * period.days)
        for period in CALENDAR
        if (number := getattr(policy, period.rule))
    ]
    grace = policy.grace_days
    reaches.append((f"grace_days = {grace:g}", f"keep a version for {days(grace)} after it was superseded", grace))
    expiry, idle = policy.expire_after_days, policy.drop_idle_keys_after_days
    for rule, reach, least in reaches:
        if 0 < expiry < least:
            yield f"{rule} would {reach}, but expire_after_days = {expiry:g} leaves nothing that is older than {days(expiry)}"
        if 0 < idle < least:
            yield f"{rule} would {reach}, but drop_idle_keys_after_days = {idle:g} deletes a key that is idle for longer"
