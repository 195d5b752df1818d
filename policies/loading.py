"""Reads policies from configuration; each mistake is one message that names source, policy, field and value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from prefect_artifact_retention.policies.errors import ConfigurationError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.globs import covers
from prefect_artifact_retention.policies.model import SELECTORS, RetentionPolicy
from pydantic import BaseModel, ValidationError

REPORT_KEY = "artifact-retention-report"
HISTORY_KEY = "artifact-retention-history"
PROGRESS_KEY = "artifact-retention-progress"
RESTORED_KEY = "artifact-retention-restored"
DOCTOR_KEY = "artifact-retention-doctor"
SWEEP_KEY = "artifact-retention-sweep"
OWN_PREFIX = "artifact-retention-"
OWN_KEYS = (REPORT_KEY, HISTORY_KEY, PROGRESS_KEY, RESTORED_KEY, DOCTOR_KEY, SWEEP_KEY)
"""The keys of the artifacts that this package writes."""

OWN_POLICY = RetentionPolicy(name="artifact-retention (built in)", match_keys=list(OWN_KEYS), keep_last=30)
"""The policy of the package's own keys, which every cleanup adds a version to. It comes before all other policies."""

PREVIEW_POLICY = RetentionPolicy(name="preview (built in)", keep_last=10, keep_within_days=30)
"""The policy of a preview where none is configured; nothing is ever deleted by it."""


def load_policies(tables: Sequence[Mapping[str, Any]], *, source: str) -> tuple[RetentionPolicy, ...]:
    """Read an ordered list of policies from configuration.

    Args:
        tables: One mapping of field names to values per policy, as TOML or JSON gives them.
        source: The file or variable that they come from, for the messages.

    Raises:
        ConfigurationError: A policy is invalid, or two contradict each other. Lists every problem, one to a line.
    """
    policies, problems = [], []
    for number, table in enumerate(tables, start=1):
        try:
            policies.append(RetentionPolicy.model_validate(table))
        except ValidationError as error:
            name = table.get("name") if isinstance(table, Mapping) else None
            label = f'policy "{name}"' if name and str(name).isprintable() else f"policy number {number}"
            problems += [f"{source}: {label}: {problem}" for problem in describe_validation_error(error)]
    if not problems:
        problems = [f"{source}: {problem}" for problem in _conflicts(policies)]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return tuple(policies)


def check_policies(policies: Sequence[RetentionPolicy], *, source: str) -> None:
    """Refuse policies that contradict each other.

    Raises:
        ConfigurationError: Two have the same name, or one can never apply because of another.
    """
    if problems := [f"{source}: {problem}" for problem in _conflicts(policies)]:
        raise ConfigurationError("\n".join(problems))


def select_policy(policies: Sequence[RetentionPolicy], key: str | None, latest_type: str | None) -> RetentionPolicy | None:
    """Find the one policy of a key: the first that matches. None leaves the key unmanaged."""
    return next((policy for policy in policies if policy.matches(key, latest_type)), None)


def type_conflict(policies: Sequence[RetentionPolicy], key: str, latest_type: str | None, types: Iterable[str | None]) -> str:
    """Describe the policies that a key would have by the types of its versions, if there is more than one; else empty.

    The latest version alone must not hand hundreds of others to a policy that nobody meant for them. Where the policy by the
    latest version is `keep_all`, there is nothing to fear.
    """
    chosen = select_policy(policies, key, latest_type)
    others = {kind: select_policy(policies, key, kind) for kind in {*types} - {latest_type}}
    if chosen is None or chosen.keep_all or all(policy and _rules(policy) == _rules(chosen) for policy in others.values()):
        return ""
    by_type = [(latest_type, chosen), *sorted(others.items(), key=lambda item: str(item[0]))]
    named = (f"{kind} has {f'policy {policy.name}' if policy else 'none'}" for kind, policy in by_type)
    return f"the types of its versions would give it different policies: {printable(', '.join(named))}"


def _rules(policy: RetentionPolicy) -> dict[str, Any]:
    return policy.model_dump(exclude={"name", *SELECTORS})


def stand_in(policies: Sequence[RetentionPolicy], override: RetentionPolicy) -> tuple[RetentionPolicy, ...]:
    """Replace the rules of every keyed policy by those of `override`, except where a policy has `keep_all`.

    The selectors stay, so keys with `keep_all` stay protected by it. Keys that no policy selects get `override` itself,
    without those of its globs that the others take.
    """
    rules = _rules(override)
    replaced = [
        policy
        if policy.keep_all
        else RetentionPolicy(
            name=f"{policy.name}, by {override.name}"[:100], **policy.model_dump(include=set(SELECTORS)), **rules
        )
        for policy in policies
        if not policy.unkeyed
    ]
    left = [glob for glob in override.match_keys if not covering(replaced, glob, override)]
    return tuple([*replaced, override.model_copy(update={"match_keys": left})] if left else replaced)


def describe_validation_error(error: ValidationError) -> Iterator[str]:
    """Format each problem that pydantic found as one line: field = value: problem."""
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            yield f"unknown field {field} = {problem['input']!r}"
        elif problem["type"] == "missing":
            yield f"{field} is missing"
        elif field:
            yield f"{field} = {_shown(problem['input'])}: {message[:1].lower()}{message[1:]}"
        else:
            yield from message.splitlines()


def _shown(value: object) -> str:
    text = repr(value.model_dump() if isinstance(value, BaseModel) else value)
    return text if len(text) <= 100 else text[:100] + "…"  # noqa: PLR2004 - one line of a terminal


def _conflicts(policies: Sequence[RetentionPolicy]) -> Iterator[str]:
    for number, policy in enumerate(policies):
        earlier = policies[:number]
        if any(each.name == policy.name for each in earlier):
            yield f'two policies have name = "{policy.name}"'
        elif own := [glob for glob in policy.match_keys if policy is not OWN_POLICY and _is_for_own_keys(glob)]:
            yield f'policy "{policy.name}": match_keys = {own} can never apply: policy "{OWN_POLICY.name}" is for these keys'
        elif shadowing := _shadowing(earlier, policy):
            what = "unkeyed = true" if policy.unkeyed else f"match_keys = {policy.match_keys}"
            names = " and ".join(f'"{name}"' for name in shadowing)
            who = f"policy {names} before it takes" if len(shadowing) == 1 else f"policies {names} before it take"
            yield f'policy "{policy.name}": {what} can never apply: {who} them all'


def _is_for_own_keys(glob: str) -> bool:
    return glob.startswith(OWN_PREFIX) and any(fnmatchcase(key, glob) for key in OWN_KEYS)


def _shadowing(earlier: Sequence[RetentionPolicy], later: RetentionPolicy) -> list[str]:
    """Return the names of the policies that together take every key of a later one; none if it may have a key."""
    if later.unkeyed:
        return [policy.name for policy in earlier if policy.unkeyed][:1]
    first = [covering(earlier, glob, later) for glob in later.match_keys]
    return [] if None in first else list(dict.fromkeys(name for name in first if name))


def covering(earlier: Sequence[RetentionPolicy], glob: str, later: RetentionPolicy) -> str | None:
    """Return the name of the first policy that takes every key which a later one would select by this glob."""
    for policy in earlier:
        all_types = not policy.match_types or (later.match_types and {*later.match_types} <= {*policy.match_types})
        all_keys = {*policy.exclude_keys} <= {*later.exclude_keys} and any(covers(own, glob) for own in policy.match_keys)
        if all_types and all_keys and not policy.unkeyed:
            return policy.name
    return None
